use super::*;
use record::{Gone, Tokens};

const CANARY: &str = "canary-in-a-token";

fn record(id: &str) -> Record {
    Record {
        id: id.to_owned(),
        user: "u".to_owned(),
        workspace: "w".to_owned(),
        email: None,
        plan: None,
        fedramp: false,
        label: None,
        enabled: true,
        order: 1,
        issuer: "i".to_owned(),
        backend: "b".to_owned(),
        imported_at: 1,
        generation: 1,
        expires_at: None,
        renewed_at: None,
        tokens: Tokens {
            id_token: CANARY.into(),
            access_token: CANARY.into(),
            refresh_token: Some(CANARY.into()),
        },
        gone: Some(Gone { cause: "c".to_owned(), since: 2 }),
        spent: Vec::new(),
        tags: Vec::new(),
        notes: None,
        pools: Vec::new(),
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::at(&dir.path().join("root"));
    crate::dirs::prepare(&root).unwrap();
    (dir, Store::new(&root))
}

#[test]
fn an_account_comes_back_as_it_was_and_the_one_before_is_kept() {
    let (_dir, store) = store();
    let mut one = record("a");
    store.save_account(&one).unwrap();
    one.generation = 2;
    store.save_account(&one).unwrap();
    let read = store.accounts().unwrap();
    assert_eq!((read.len(), read[0].generation, read[0].gone.clone()), (1, 2, one.gone.clone()));
    let before: Record = record::open(&store.account_file("a", ".previous")).unwrap().unwrap();
    assert_eq!(before.generation, 1);
    assert!(!format!("{read:?}").contains(CANARY), "Debug shows no secret");
}

#[cfg(unix)]
#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_dir, store) = store();
    store.save_account(&record("a")).unwrap();
    store.secret().unwrap();
    for path in [store.account_file("a", ""), store.root.join("root.key")] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
}

#[test]
fn damage_is_named_and_nothing_is_changed() {
    let (_dir, store) = store();
    store.save_account(&record("a")).unwrap();
    let path = store.account_file("a", "");
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let fault = store.accounts().unwrap_err();
        assert_eq!(fault.code(), ErrorCode::Store);
        assert!(fault.refusal.message.contains("a.json"), "{fault}");
        assert!(!fault.refusal.message.contains(CANARY));
        assert_eq!(std::fs::read(&path).unwrap(), &whole[..cut]);
    }
    let edited = String::from_utf8(whole).unwrap().replace("\"enabled\":true", "\"enabled\":false");
    std::fs::write(&path, edited).unwrap();
    assert!(store.accounts().unwrap_err().refusal.message.contains("checksum"));
}

#[test]
fn a_credential_that_was_written_but_not_yet_named_is_found_again() {
    let (_dir, store) = store();
    let known = record("a");
    store.save_account(&known).unwrap();
    let folder = store.root.join("accounts");
    let next = Record { generation: 2, ..known.clone() };
    let whole = record::seal(&next).unwrap();
    std::fs::write(folder.join(".new-whole"), &whole).unwrap();
    std::fs::write(folder.join(".new-torn"), &whole[..whole.len() / 2]).unwrap();
    let later = Record { generation: 9, ..known };
    std::fs::write(folder.join(".new-stranger"), record::seal(&later).unwrap()).unwrap();
    store.sweep().unwrap();
    assert_eq!(store.accounts().unwrap()[0].generation, 2);
    assert_eq!(atomic::unfinished(&folder).unwrap(), Vec::<PathBuf>::new());
}

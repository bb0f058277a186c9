use super::*;

mod backups;
mod damage;
mod sealing;

use crate::vault::Vault;
use cma_core::identity::AccountId;
use cma_proto::error::ErrorCode;
use http::header::AUTHORIZATION;
use record::{Gone, Tokens};
use std::path::Path;

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
        terms: record::Terms::default(),
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::at(&dir.path().join("root"));
    crate::dirs::prepare(&root).unwrap();
    (dir, Store::new(&root))
}

#[test]
fn an_account_comes_back_as_it_was_and_the_one_before_is_kept_without_its_spent_token() {
    let (_dir, store) = store();
    let mut one = Record { gone: None, ..record("a") };
    store.save_account(&one).unwrap();
    one.label = Some("work".to_owned());
    store.save_account(&one).unwrap();
    let before = |store: &Store| {
        store.get::<Record>(&store.account_file("a", ".previous")).unwrap().unwrap()
    };
    let edited = before(&store);
    assert_eq!((edited.generation, edited.label.as_deref()), (1, None));
    assert!(edited.tokens.refresh_token.is_some(), "the same credential: nothing was sent");
    one.generation = 2;
    store.save_account(&one).unwrap();
    let read = store.accounts().unwrap();
    assert_eq!((read.len(), read[0].generation), (1, 2));
    let spent = before(&store);
    assert_eq!((spent.generation, spent.label.as_deref()), (1, Some("work")));
    assert!(spent.tokens.refresh_token.is_none(), "a newer credential came of it");
    one.gone = Some(Gone { cause: "c".to_owned(), since: 2 });
    store.save_account(&one).unwrap();
    assert!(before(&store).tokens.refresh_token.is_none(), "the login is gone");
    assert!(!format!("{read:?}").contains(CANARY), "Debug shows no secret");
}

#[test]
fn what_is_made_of_a_record_shows_no_secret() {
    let vault = Vault::default();
    vault.put(&record("a"));
    let pass = vault.current(&AccountId::from_written("a")).unwrap();
    assert!(pass.authorization.to_str().unwrap().contains(CANARY));
    let sent = http::HeaderMap::from_iter([(AUTHORIZATION, pass.authorization.clone())]);
    assert!(!format!("{vault:?} {pass:?} {sent:?}").contains(CANARY));
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
fn a_credential_that_was_written_but_not_yet_named_is_found_again() {
    let (_dir, store) = store();
    let known = record("a");
    store.save_account(&known).unwrap();
    let folder = store.root.join("accounts");
    let next = Record { generation: 2, ..known.clone() };
    let whole = record::encode(&next).unwrap().to_vec();
    std::fs::write(folder.join(".new-whole"), &whole).unwrap();
    std::fs::write(folder.join(".new-torn"), &whole[..whole.len() / 2]).unwrap();
    let later = Record { generation: 9, ..known };
    std::fs::write(folder.join(".new-stranger"), record::encode(&later).unwrap()).unwrap();
    store.sweep().unwrap();
    assert_eq!(store.accounts().unwrap()[0].generation, 2);
    assert_eq!(atomic::unfinished(&folder).unwrap(), Vec::<PathBuf>::new());
}

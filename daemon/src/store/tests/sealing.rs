//! From clear to sealed and back, stopped at every step; keyrings that work, refuse and forget.

use super::*;
use crate::{
    config::Config,
    store::{
        keyring::Keyring,
        seal::{Method, SealFile, SealReport},
    },
};
use std::fs;

const PASSPHRASE: &str = "four plain words here";

fn by(passphrase: &str) -> Method {
    Method::Passphrase(passphrase.to_owned().into())
}

fn no_keyring() -> Result<Keyring, String> {
    Err("none here".to_owned())
}

/// A root with one of everything that may hold a token.
fn furnished() -> (tempfile::TempDir, Store) {
    let (dir, store) = store();
    for id in ["a", "b", "c"] {
        let record = Record { gone: None, ..record(id) };
        store.save_account(&record).unwrap();
        store.save_account(&Record { label: Some(id.to_owned()), ..record }).unwrap();
    }
    store.remove_account(&AccountId::from_written("c"), 7).unwrap();
    let note = RenewalNote { generation: 1, sent_at: 1, attempts: 1 };
    store.note_renewal(&AccountId::from_written("a"), &note).unwrap();
    store.save_state(&State { port: Some(7), ..State::default() }).unwrap();
    store.backup("mine", None).unwrap();
    fs::create_dir_all(store.root.join("damaged")).unwrap();
    fs::write(store.root.join("damaged/x"), format!("torn {CANARY}")).unwrap();
    fs::write(store.root.join("accounts/.new-torn"), format!("torn {CANARY}")).unwrap();
    (dir, store)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() { files(&entry.path(), found) } else { found.push(entry.path()) }
    }
}

/// The files that have the canary.
fn telling(store: &Store) -> Vec<PathBuf> {
    let mut all = Vec::new();
    files(&store.root, &mut all);
    let tells = |path: &PathBuf| {
        fs::read(path).unwrap().windows(CANARY.len()).any(|part| part == CANARY.as_bytes())
    };
    all.retain(tells);
    all
}

/// The same root after a start.
fn again(store: &Store) -> Store {
    let store = Store::new(&Root::at(&store.root));
    store.look_for_seal().unwrap();
    store
}

fn holds(store: &Store) {
    let records = store.accounts().unwrap();
    assert_eq!(records.iter().map(|record| &*record.id).collect::<Vec<_>>(), ["a", "b"]);
    assert!(records.iter().all(|record| record.tokens.refresh_token.is_some()));
    assert_eq!(store.state().unwrap().port, Some(7));
    assert!(store.removed_account(&AccountId::from_written("c")).is_some());
    assert_eq!(store.open_backup("mine").unwrap().accounts.len(), 2);
    assert!(store.renewal_note(&AccountId::from_written("a")).unwrap().is_some());
}

#[test]
fn a_sealed_root_tells_nothing_and_opens_with_its_passphrase_only() {
    let (_dir, store) = furnished();
    assert!(telling(&store).len() > 5);
    let report: SealReport = store.seal_on(&by(PASSPHRASE), &no_keyring()).unwrap();
    assert_eq!((report.state, report.plain), ("on", 0));
    assert_eq!(telling(&store), Vec::<PathBuf>::new());
    holds(&store);
    // New files are sealed from the first byte on.
    store.save_account(&Record { gone: None, ..record("b") }).unwrap();
    store.backup("later", None).unwrap();
    assert_eq!(telling(&store), Vec::<PathBuf>::new());

    let next = again(&store);
    assert!(next.is_locked());
    assert_eq!(next.state().unwrap().port, Some(7), "the port is known without the key");
    assert_eq!(next.accounts().unwrap_err().code(), ErrorCode::Denied);
    assert_eq!(next.save_account(&record("a")).unwrap_err().code(), ErrorCode::Denied);
    let mut before = Vec::new();
    files(&next.root, &mut before);
    let fault = next.unlock(&"not that one at all".to_owned().into()).unwrap_err();
    assert_eq!(fault.code(), ErrorCode::Denied);
    let mut after = Vec::new();
    files(&next.root, &mut after);
    assert_eq!((before, next.is_locked()), (after, true), "nothing was changed");
    next.unlock(&PASSPHRASE.to_owned().into()).unwrap();
    holds(&next);

    let report = next.seal_off(&no_keyring()).unwrap();
    assert_eq!((report.state, report.sealed), ("off", 0));
    assert!(!next.root.join("seal.json").exists());
    let clear = again(&next);
    assert!(!clear.is_locked());
    holds(&clear);
}

#[test]
fn a_new_key_makes_the_old_passphrase_and_the_old_paper_worthless() {
    let (_dir, store) = furnished();
    store.seal_on(&by(PASSPHRASE), &no_keyring()).unwrap();
    let paper = fs::read(store.root.join("seal.json")).unwrap();
    store.rekey(&by("another four words"), &no_keyring()).unwrap();
    let next = again(&store);
    assert!(next.unlock(&PASSPHRASE.to_owned().into()).is_err());
    next.unlock(&"another four words".to_owned().into()).unwrap();
    holds(&next);
    fs::write(store.root.join("seal.json"), paper).unwrap();
    let old = again(&store);
    old.unlock(&PASSPHRASE.to_owned().into()).unwrap();
    let opened = old.get::<Record>(&old.account_file("a", ""));
    assert!(opened.is_err(), "files are under the new key");
}

#[test]
fn a_damaged_seal_paper_is_mended_from_its_copy_and_both_damaged_stop_the_start() {
    let (_dir, store) = furnished();
    store.seal_on(&by(PASSPHRASE), &no_keyring()).unwrap();
    for way in [&b""[..], b"{", b"\0\0\0\0"] {
        fs::write(store.root.join("seal.json"), way).unwrap();
        let next = again(&store);
        next.unlock(&PASSPHRASE.to_owned().into()).unwrap();
        assert!(next.repairs()[0].contains("seal.json"));
    }
    fs::write(store.root.join("seal.json"), b"").unwrap();
    fs::write(store.root.join("seal.previous.json"), b"").unwrap();
    let broken = Store::new(&Root::at(&store.root)).look_for_seal().unwrap_err();
    assert_eq!(broken.code(), ErrorCode::Store);
    assert!(broken.refusal.message.contains("seal"), "{broken}");
}

#[test]
fn a_sealed_file_under_another_name_or_with_a_changed_bit_is_damage() {
    let (_dir, store) = furnished();
    store.seal_on(&by(PASSPHRASE), &no_keyring()).unwrap();
    let path = store.account_file("a", "");
    let whole = fs::read(&path).unwrap();
    for at in [0, 12, 40, 90, whole.len() / 2, whole.len() - 1] {
        let mut bent = whole.clone();
        bent[at] ^= 1;
        fs::write(&path, &bent).unwrap();
        holds(&store);
    }
    assert_eq!(store.repairs().len(), 6);
    fs::copy(store.account_file("b", ""), &path).unwrap();
    holds(&store);
}

/// A change that stops after any number of files is finished by the next opening.
#[test]
fn a_change_of_the_seal_that_is_killed_anywhere_is_finished_by_the_next_opening() {
    // The files that a kill leaves are those of a pass that some files couldn't be part of: each
    // step replaces one file, so every state in between is "some sealed, some not".
    let (_dir, store) = furnished();
    let mut clear = Vec::new();
    files(&store.root.join("accounts"), &mut clear);
    files(&store.root.join("removed"), &mut clear);
    clear.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    clear.push(store.root.join("state.json"));
    clear.push(store.root.join("backups/mine.json"));
    clear.sort();
    let in_clear: Vec<_> = clear.iter().map(|path| fs::read(path).unwrap()).collect();
    store.seal_on(&by(PASSPHRASE), &no_keyring()).unwrap();
    let sealed: Vec<_> = clear.iter().map(|path| fs::read(path).unwrap()).collect();
    let papers = fs::read_to_string(store.root.join("seal.json")).unwrap();
    for (to, stage) in [("on", "sealing"), ("off", "unsealing"), ("on", "on")] {
        for step in 0..=clear.len() {
            for (at, path) in clear.iter().enumerate() {
                let done = (at < step) == (to == "on");
                fs::write(path, if done { &sealed[at] } else { &in_clear[at] }).unwrap();
            }
            let mut paper: serde_json::Value = serde_json::from_str(&papers).unwrap();
            paper["content"]["stage"] = stage.into();
            let content: SealFile = serde_json::from_value(paper["content"].clone()).unwrap();
            let paper = record::encode(&content).unwrap();
            fs::write(store.root.join("seal.json"), &paper).unwrap();
            fs::write(store.root.join("seal.previous.json"), &paper).unwrap();
            let next = again(&store);
            assert!(next.is_locked(), "{stage} {step}");
            next.unlock(&PASSPHRASE.to_owned().into()).unwrap();
            holds(&next);
            let report = next.seal_report().unwrap();
            assert_eq!(report.state, to, "{stage} {step}");
            if to == "on" {
                assert_eq!(telling(&next), Vec::<PathBuf>::new(), "{stage} {step}");
            } else {
                assert_eq!(report.sealed, 0, "{stage} {step}: {report:?}");
                assert!(!next.root.join("seal.json").exists());
            }
            assert!(next.repairs().is_empty(), "{stage} {step}: {:?}", next.repairs());
        }
    }
}

/// What a killed daemon left unfinished is not touched while the root is locked.
#[test]
fn an_unfinished_sealed_credential_waits_for_the_key() {
    let (_dir, store) = furnished();
    store.seal_on(&by(PASSPHRASE), &no_keyring()).unwrap();
    let next = Record { generation: 2, gone: None, ..record("a") };
    store.save_account(&next).unwrap();
    let whole = fs::read(store.account_file("a", "")).unwrap();
    fs::copy(store.account_file("a", ".previous"), store.account_file("a", "")).unwrap();
    fs::write(store.root.join("accounts/.new-x"), whole).unwrap();
    let locked = again(&store);
    locked.sweep().unwrap();
    assert!(locked.root.join("accounts/.new-x").exists());
    locked.unlock(&PASSPHRASE.to_owned().into()).unwrap();
    assert_eq!(locked.accounts().unwrap()[0].generation, 2);
    assert!(!locked.root.join("accounts/.new-x").exists());
}

#[test]
fn short_passphrases_and_dead_keyrings_are_refused_before_anything_changes() {
    let (_dir, store) = furnished();
    let before = telling(&store).len();
    let short = store.seal_on(&by("short"), &no_keyring()).unwrap_err();
    assert_eq!(short.code(), ErrorCode::BadRequest);
    let none = store.seal_on(&Method::Keyring, &no_keyring()).unwrap_err();
    assert!(
        none.refusal.message.contains("none here") && none.refusal.hint.contains("--passphrase")
    );
    assert!(!store.root.join("seal.json").exists() && telling(&store).len() >= before);
}

#[test]
fn a_test_tool_counts_on_loopback_only() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::at(dir.path());
    let config = Config::load(&root, |_| None).unwrap();
    assert!(!config.loopback());
}

//! Every truth file, damaged in every way: what comes back, and that no spent token does.

use super::*;
use std::fs;

/// What can happen to a file.
const WAYS: [&str; 6] = ["empty", "cut", "zeroed", "flipped", "edited", "other shape"];

fn damage(path: &Path, way: &str) {
    let mut bytes = fs::read(path).unwrap();
    match way {
        "empty" => bytes.clear(),
        "cut" => bytes.truncate(bytes.len() / 2),
        "zeroed" => bytes.fill(0),
        "flipped" => {
            let at = bytes.len() / 2;
            bytes[at] ^= 4;
        },
        "edited" => {
            let text = String::from_utf8(bytes).unwrap();
            let edited = text.replace("\"enabled\":true", "\"enabled\":false");
            let edited =
                edited.replace("\"port\":7", "\"port\":8").replace("attempts\":3", "attempts\":0");
            assert_ne!(edited, text, "the file has what is edited");
            bytes = edited.into_bytes();
        },
        _ => bytes = record::encode(&serde_json::json!({"a": 1})).unwrap().to_vec(),
    }
    fs::write(path, bytes).unwrap();
}

fn evidence(store: &Store) -> usize {
    fs::read_dir(store.root.join("damaged")).map_or(0, Iterator::count)
}

fn live(id: &str, token: &str) -> Record {
    let tokens = Tokens { refresh_token: Some(token.to_owned().into()), ..record(id).tokens };
    Record { gone: None, tokens, ..record(id) }
}

#[test]
fn the_generation_before_with_the_same_credential_gives_everything_back() {
    for way in WAYS {
        let (_dir, store) = store();
        store.save_account(&live("a", "t1")).unwrap();
        store.save_account(&Record { label: Some("x".to_owned()), ..live("a", "t1") }).unwrap();
        damage(&store.account_file("a", ""), way);
        let back = store.accounts().unwrap();
        assert_eq!((back.len(), back[0].gone.clone()), (1, None), "{way}");
        assert!(back[0].same_refresh_token(&live("a", "t1")), "{way}");
        assert_eq!((evidence(&store), store.repairs().len()), (1, 1), "{way}");
        assert!(store.repairs()[0].contains("accounts/a.json"), "{:?}", store.repairs());
        // Mended for good: the next reading finds nothing to do.
        assert_eq!(store.accounts().unwrap().len(), 1);
        assert_eq!(store.repairs().len(), 1, "{way}");
    }
}

#[test]
fn a_spent_refresh_token_never_comes_back() {
    for way in WAYS {
        let (_dir, store) = store();
        store.save_account(&Record { label: Some("x".to_owned()), ..live("a", "t1") }).unwrap();
        let next = Record {
            generation: 2,
            spent: live("a", "t1").spent_with_current(),
            ..live("a", "t2")
        };
        store.save_account(&next).unwrap();
        damage(&store.account_file("a", ""), way);
        let back = store.accounts().unwrap().remove(0);
        assert!(back.tokens.refresh_token.is_none(), "{way}");
        assert!(back.gone.is_some_and(|gone| gone.cause.contains("damaged")), "{way}");
        assert_eq!((back.generation, back.label.as_deref()), (2, Some("x")), "{way}");
        assert!(back.spent.len() == 1, "{way}: what was sent is remembered");
    }
}

/// A login that ended is not revived by the copy from before its end.
#[test]
fn an_ended_login_stays_ended() {
    let (_dir, store) = store();
    store.save_account(&live("a", "t1")).unwrap();
    let gone = Some(Gone { cause: "refresh outcome unknown".to_owned(), since: 5 });
    store.save_account(&Record { gone, ..live("a", "t1") }).unwrap();
    damage(&store.account_file("a", ""), "cut");
    let back = store.accounts().unwrap().remove(0);
    assert!(back.tokens.refresh_token.is_none() && back.gone.is_some());
}

#[test]
fn a_generation_of_the_older_form_counts_as_spent() {
    let (_dir, store) = store();
    store.save_account(&live("a", "t1")).unwrap();
    store.save_account(&live("a", "t1")).unwrap();
    let before = store.account_file("a", ".previous");
    let text = fs::read_to_string(&before).unwrap();
    fs::write(&before, text.replace("{\"schema\":2", "{\"schema\":1")).unwrap();
    damage(&store.account_file("a", ""), "cut");
    assert!(store.accounts().unwrap()[0].tokens.refresh_token.is_none());
}

#[test]
fn a_newer_file_that_was_never_named_comes_before_the_generation_before() {
    let (_dir, store) = store();
    store.save_account(&live("a", "t1")).unwrap();
    store.save_account(&live("a", "t1")).unwrap();
    let next = Record { generation: 2, ..live("a", "t2") };
    let folder = store.root.join("accounts");
    fs::write(folder.join(".new-x"), record::encode(&next).unwrap()).unwrap();
    damage(&store.account_file("a", ""), "cut");
    store.sweep().unwrap();
    let back = store.accounts().unwrap().remove(0);
    assert!(back.generation == 2 && back.same_refresh_token(&next));
    assert_eq!((evidence(&store), store.repairs().len()), (1, 1));
}

#[test]
fn swapped_files_are_put_right_without_loss() {
    let (_dir, store) = store();
    for (id, token) in [("a", "ta"), ("b", "tb")] {
        store.save_account(&live(id, token)).unwrap();
        store.save_account(&Record { generation: 2, ..live(id, token) }).unwrap();
    }
    let [a, b] = ["a", "b"].map(|id| store.account_file(id, ""));
    let (of_a, of_b) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
    fs::write(&a, of_b).unwrap();
    fs::write(&b, of_a).unwrap();
    let back = store.accounts().unwrap();
    assert_eq!(back.len(), 2);
    for (record, token) in back.iter().zip(["ta", "tb"]) {
        assert!(record.same_refresh_token(&live(&record.id, token)), "{}", record.id);
        assert_eq!(record.generation, 2);
    }
    assert_eq!(evidence(&store), 2);
}

#[test]
fn one_file_over_another_costs_nobody_but_that_one_its_newest_token() {
    let (_dir, store) = store();
    for id in ["a", "b"] {
        store.save_account(&live(id, id)).unwrap();
        store.save_account(&Record { generation: 2, ..live(id, id) }).unwrap();
    }
    fs::copy(store.account_file("a", ""), store.account_file("b", "")).unwrap();
    let back = store.accounts().unwrap();
    assert_eq!(back.iter().map(|record| &*record.id).collect::<Vec<_>>(), ["a", "b"]);
    assert!(back[0].tokens.refresh_token.is_some() && back[1].tokens.refresh_token.is_none());
}

#[test]
fn a_missing_file_comes_back_and_a_removed_one_does_not() {
    let (_dir, store) = store();
    for id in ["a", "b"] {
        store.save_account(&live(id, id)).unwrap();
        store.save_account(&live(id, id)).unwrap();
    }
    fs::remove_file(store.account_file("a", "")).unwrap();
    store.remove_account(&AccountId::from_written("b"), 9).unwrap();
    // As after a kill in the middle of the removal.
    fs::write(store.account_file("b", ".previous"), record::encode(&live("b", "b")).unwrap())
        .unwrap();
    let back = store.accounts().unwrap();
    assert_eq!(back.iter().map(|record| &*record.id).collect::<Vec<_>>(), ["a"]);
    assert!(!store.account_file("b", ".previous").exists());
}

#[test]
fn a_backup_is_the_last_resort_and_its_token_is_not_used() {
    let (_dir, store) = store();
    store.save_account(&Record { label: Some("x".to_owned()), ..live("a", "t1") }).unwrap();
    store.backup("one", None).unwrap();
    for name in ["", ".previous"] {
        fs::write(store.account_file("a", name), b"").unwrap();
    }
    let back = store.accounts().unwrap().remove(0);
    assert_eq!(back.label.as_deref(), Some("x"));
    assert!(back.tokens.refresh_token.is_none());
}

#[test]
fn where_nothing_whole_is_left_the_others_load_and_the_loss_is_named_once() {
    let (_dir, store) = store();
    for id in ["a", "b"] {
        store.save_account(&live(id, id)).unwrap();
    }
    damage(&store.account_file("a", ""), "cut");
    let back = store.accounts().unwrap();
    assert_eq!((back.len(), &*back[0].id), (1, "b"));
    assert!(store.repairs()[0].contains("sign in again"), "{:?}", store.repairs());
    assert_eq!(evidence(&store), 1);
    assert_eq!(store.accounts().unwrap().len(), 1);
    assert_eq!(store.repairs().len(), 1);
}

#[test]
fn a_file_from_the_future_stops_the_start_and_nothing_is_changed() {
    let (_dir, store) = store();
    store.save_account(&live("a", "t")).unwrap();
    let path = store.account_file("a", "");
    let text = fs::read_to_string(&path).unwrap().replace("{\"schema\":2", "{\"schema\":99");
    fs::write(&path, &text).unwrap();
    let fault = store.accounts().unwrap_err();
    assert!(fault.refusal.message.contains("newer version"), "{fault}");
    assert!(!fault.refusal.message.contains(CANARY));
    assert_eq!((fs::read_to_string(&path).unwrap(), evidence(&store)), (text, 0));
}

#[test]
fn choices_come_back_from_the_ones_before_from_a_backup_or_anew() {
    let state = |port| State {
        pin: Some(("a".to_owned(), 1)),
        port: Some(port),
        last_order: 3,
        ..State::default()
    };
    for way in WAYS {
        let (_dir, store) = store();
        store.save_state(&state(6)).unwrap();
        store.save_state(&state(7)).unwrap();
        store.backup("one", None).unwrap();
        let path = store.root.join("state.json");
        damage(&path, way);
        assert_eq!(store.state().unwrap(), state(6), "{way}: the ones before");
        fs::write(&path, b"").unwrap();
        fs::write(store.root.join("state.previous.json"), b"").unwrap();
        assert_eq!(store.state().unwrap(), state(7), "{way}: the backup's");
        fs::remove_dir_all(store.root.join("backups")).unwrap();
        fs::write(&path, b"").unwrap();
        assert_eq!(store.state().unwrap(), State::default(), "{way}");
        assert_eq!((evidence(&store), store.repairs().len()), (3, 3), "{way}");
    }
}

#[test]
fn a_damaged_note_still_says_that_a_token_was_sent() {
    for way in WAYS {
        let (_dir, store) = store();
        let id = AccountId::from_written("a");
        store.save_account(&Record { generation: 4, ..live("a", "t") }).unwrap();
        store.note_renewal(&id, &RenewalNote { generation: 4, sent_at: 1, attempts: 3 }).unwrap();
        damage(&store.account_file("a", ".renewal"), way);
        let note = store.renewal_note(&id).unwrap().unwrap();
        assert_eq!((note.generation, note.attempts), (4, 1), "{way}");
        assert_eq!(evidence(&store), 1, "{way}");
    }
}

#[test]
fn a_root_key_of_another_length_is_set_aside_and_made_anew() {
    let (_dir, store) = store();
    let first = store.secret().unwrap();
    assert_eq!(store.secret().unwrap(), first);
    fs::write(store.root.join("root.key"), &first[..9]).unwrap();
    assert_ne!(store.secret().unwrap(), first);
    assert_eq!(evidence(&store), 1);
}

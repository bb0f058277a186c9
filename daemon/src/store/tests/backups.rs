//! Backups: whole, never replaced, bounded, and worth what can be proven.

use super::*;
use crate::store::backup::{KEPT, Worth};
use std::fs;

fn live(id: &str, token: &str) -> Record {
    let tokens = Tokens { refresh_token: Some(token.to_owned().into()), ..record(id).tokens };
    Record { gone: None, tokens, ..record(id) }
}

#[test]
fn a_backup_is_never_replaced_and_bad_names_are_refused() {
    let (_dir, store) = store();
    store.save_account(&live("a", "t")).unwrap();
    store.backup("one", None).unwrap();
    let whole = fs::read(store.root.join("backups/one.json")).unwrap();
    assert_eq!(store.backup("one", None).unwrap_err().code(), ErrorCode::Negative);
    assert_eq!(fs::read(store.root.join("backups/one.json")).unwrap(), whole);
    for name in ["", "../x", "a.b", "a/b", &"x".repeat(65)] {
        assert_eq!(store.backup(name, None).unwrap_err().code(), ErrorCode::BadRequest, "{name}");
    }
    assert_eq!(store.open_backup("two").unwrap_err().code(), ErrorCode::NotFound);
}

#[test]
fn automatic_ones_are_bounded_and_named_ones_stay() {
    let (_dir, store) = store();
    assert_eq!(store.auto_backup("x").unwrap(), None, "nothing to keep");
    store.save_account(&live("a", "t")).unwrap();
    store.backup("mine", None).unwrap();
    for _ in 0..KEPT + 5 {
        store.auto_backup("x").unwrap().unwrap();
    }
    let all = store.backups().unwrap();
    assert_eq!(all.len(), KEPT + 1);
    assert!(all.iter().any(|listed| listed.name == "mine"));
    assert_eq!(store.prune(2).unwrap().len(), KEPT - 2);
    assert_eq!(store.backups().unwrap().len(), 3);
}

#[test]
fn a_damaged_backup_is_listed_as_such_and_the_next_one_serves() {
    let (_dir, store) = store();
    store.save_account(&live("a", "t")).unwrap();
    store.backup("old", None).unwrap();
    store.backup("torn", None).unwrap();
    let path = store.root.join("backups/torn.json");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let all = store.backups().unwrap();
    let torn = all.iter().find(|listed| listed.name == "torn").unwrap();
    assert!(torn.damaged.as_ref().is_some_and(|why| why.contains("not whole")), "{torn:?}");
    assert_eq!(store.open_backup("torn").unwrap_err().code(), ErrorCode::Store);
    assert!(store.newest_backup_of("a").is_some());
}

#[test]
fn only_what_the_roots_own_papers_prove_gives_a_refresh_token_back() {
    let (_dir, store) = store();
    let kept = live("a", "t1");
    // Nothing is known of it: a fresh install.
    assert!(
        matches!(store.worth(&kept, None), Worth::Stripped(r) if r.tokens.refresh_token.is_none())
    );
    // The pool has exactly it.
    assert!(matches!(store.worth(&kept, Some(&kept)), Worth::Whole(_)));
    // The pool has what came of it.
    let next = Record { generation: 2, spent: kept.spent_with_current(), ..live("a", "t2") };
    assert!(matches!(store.worth(&kept, Some(&next)), Worth::Stripped(r) if r.generation > 2));
    // It was removed as it was, or after a renewal.
    store.save_account(&kept).unwrap();
    store.remove_account(&AccountId::from_written("a"), 1_700_000_009).unwrap();
    assert!(matches!(store.worth(&kept, None), Worth::Whole(_)));
    store.save_account(&next).unwrap();
    store.remove_account(&AccountId::from_written("a"), 1_700_000_010).unwrap();
    assert!(matches!(store.worth(&kept, None), Worth::Stripped(_)));
    // Removed when its login was gone.
    let gone = Some(Gone { cause: "reused".to_owned(), since: 1 });
    store.save_account(&Record { gone, ..kept.clone() }).unwrap();
    store.remove_account(&AccountId::from_written("a"), 1_700_000_011).unwrap();
    assert!(matches!(store.worth(&kept, None), Worth::Stripped(_)));
}

use super::*;

#[test]
fn what_is_said_names_the_account_and_never_a_line_more() {
    let done = LoginDone {
        account: "0123456789ab".to_owned(),
        name: "work".to_owned(),
        email: Some("a@example.test\u{1b}[31m\n".to_owned()),
        plan: Some("pro".to_owned()),
        workspace: "w".to_owned(),
        created: true,
        accounts: 1,
        notes: Vec::new(),
    };
    let text = said(&done);
    assert_eq!(text.lines().count(), 1);
    assert!(text.starts_with("Added a@example.test"), "{text}");
    assert!(!text.contains('\u{1b}') && text.contains("plan pro") && text.contains("1 account."));
    let again = LoginDone { created: false, accounts: 2, email: None, plan: None, ..done };
    assert_eq!(said(&again), "Signed in again: work (id 0123456789ab). The pool has 2 accounts.\n");
}

use super::*;

fn switched(from: Option<&str>, to: Option<&str>) -> Switched {
    let owned = |id: Option<&str>| id.map(ToOwned::to_owned);
    let name = to.map(|_| "work".to_owned());
    Switched { from: owned(from), to: owned(to), name, epoch: 3, notes: Vec::new() }
}

#[test]
fn a_switch_says_what_changed() {
    assert!(said(&switched(None, Some("a")), "the global pool").starts_with("Pinned to work:"));
    assert_eq!(
        said(&switched(Some("a"), Some("a")), "the global pool"),
        "Already pinned to work for the global pool.\n"
    );
    assert!(said(&switched(Some("a"), None), "the global pool").starts_with("Unpinned"));
    assert!(said(&switched(None, None), "the global pool").starts_with("Nothing was pinned"));
}

#[test]
fn an_import_needs_a_file_that_is_there() {
    let refused = |path: &str| auth_file(Some(PathBuf::from(path))).unwrap_err();
    assert_eq!(refused("-").code, ErrorCode::BadRequest);
    assert_eq!(refused("/nowhere/auth.json").code, ErrorCode::NotFound);
    assert_eq!(refused("/").code, ErrorCode::Store);
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(auth_file(Some(file.path().to_owned())).unwrap(), file.path());
}

#[test]
fn an_import_tells_new_from_known() {
    let mut account = Imported {
        id: "a1".to_owned(),
        email: Some("a@b.c".to_owned()),
        plan: Some("pro".to_owned()),
        workspace: "w".to_owned(),
        created: true,
        notes: Vec::new(),
    };
    assert_eq!(imported(&account), "Added a@b.c (id a1, plan pro).\n");
    (account.created, account.email, account.plan) = (false, None, None);
    assert_eq!(imported(&account), "Updated a1 (id a1).\n");
}

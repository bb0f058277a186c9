use super::*;
use crate::render::plain;
use cma_proto::takeover::{KeptInfo, SourceInfo};

fn found(name: &str, state: &str, account: Option<&str>) -> FoundInfo {
    FoundInfo {
        account: account.map(str::to_owned),
        name: name.to_owned(),
        email: None,
        plan: None,
        workspace: None,
        format: "f".to_owned(),
        path: "/p".to_owned(),
        state: state.to_owned(),
        reason: format!("because of {name}"),
        taken: state == "new",
        label: None,
        tags: Vec::new(),
        enabled: account.is_some(),
        flagged: false,
        pool: None,
        notes: Vec::new(),
    }
}

#[test]
fn a_report_says_what_would_come_of_everything() {
    let source = SourceInfo {
        format: "plugin".to_owned(),
        path: "/p".to_owned(),
        state: "sealed".to_owned(),
        reason: Some("no passphrase".to_owned()),
        accounts: 0,
        notes: Vec::new(),
    };
    let kept = KeptInfo {
        what: "budgets".to_owned(),
        path: "/b".to_owned(),
        count: 2,
        fate: "kept".to_owned(),
        reason: "r".to_owned(),
    };
    let mut report = Report {
        applied: false,
        sources: vec![source],
        accounts: vec![found("a", "new", Some("1")), found("b", "unusable", None)],
        kept: vec![kept],
        notes: Vec::new(),
    };
    let text = plain(&said(&report));
    for part in [
        "plugin `/p`: sealed: no passphrase",
        "because of a",
        "because of b",
        "budgets (2) of `/b`: would be kept for later (r)",
        "Would take 1 of 2 logins.",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("unusable, disabled"), "{text}");
    report.applied = true;
    assert!(said(&report).contains("Took 1 of 2 logins."));
    assert!(said(&Report::default()).starts_with("Nothing to take over was found."));
}

#[test]
fn the_next_command_is_the_one_that_takes() {
    assert!(next(Some("/a/b")).contains("`cmactl import --apply --from /a/b`"));
    assert!(next(None).contains("`cmactl import --apply`"));
}

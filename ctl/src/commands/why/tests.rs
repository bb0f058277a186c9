use super::*;
use crate::render::plain;

#[test]
fn a_choice_is_told_best_first_with_what_kept_others_out() {
    let candidate = |name: &str, excluded: Option<&str>| Candidate {
        account: format!("id-{name}"),
        name: name.to_owned(),
        excluded: excluded.map(ToOwned::to_owned),
        keys: vec![("headroom".to_owned(), "58 %".to_owned())],
    };
    let mut why = Why {
        request: None,
        at: 1_770_000_000,
        chosen: Some("id-work".to_owned()),
        decided_by: "more headroom".to_owned(),
        retry_at: None,
        candidates: vec![candidate("work", None), candidate("home", Some("cooling"))],
        attempts: Vec::new(),
    };
    let told = |why: &Why| plain(&explained(why, 1_770_000_000, &Clock::utc()));
    let text = told(&why);
    assert!(text.starts_with("A request now would go to work: more headroom\n"), "{text}");
    assert!(text.contains("1  work     yes          58 %"), "{text}");
    assert!(text.contains("no: cooling"), "{text}");

    why.request = Some("r1".to_owned());
    why.chosen = None;
    why.retry_at = Some(1_770_000_600);
    why.attempts = vec!["work: 429".to_owned()];
    let text = told(&why);
    assert!(text.starts_with("Request r1 went to no account (2026-02-02 02:40): "), "{text}");
    assert!(text.contains("tried again in 10 min"), "{text}");
    assert!(text.contains("\nAttempts:\n  1. work: 429\n"), "{text}");
}

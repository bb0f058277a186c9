use super::*;
use crate::render::plain;

fn show() -> Show {
    let seats = ["A", "B", "C"].map(|name| Seat::new(&format!("id-{name}"), name));
    Show::new(seats.into(), 40)
}

fn event(change: Change) -> Event {
    Event { epoch: 1, at_ms: 0, change }
}

fn served(account: &str) -> Event {
    event(Change::Served {
        request: "r".to_owned(),
        account: Some(account.to_owned()),
        model: None,
        status: 200,
        outcome: "complete".to_owned(),
        attempts: 1,
        first_byte_ms: Some(9),
        total_ms: 20,
        input_tokens: None,
        cached_tokens: None,
        output_tokens: None,
    })
}

fn quota(account: &str, used_percent: f64) -> Event {
    let primary = WindowInfo {
        limit: "codex".to_owned(),
        name: "primary".to_owned(),
        used_percent,
        minutes: Some(300),
        resets_at: None,
        seen_at: 0,
    };
    event(Change::Quota { account: account.to_owned(), windows: vec![primary] })
}

fn cooling(account: &str) -> Event {
    event(Change::State {
        account: account.to_owned(),
        state: "cooling".to_owned(),
        reason: Some("usage limit reached".to_owned()),
        until: None,
    })
}

#[test]
fn a_limit_and_the_next_answer_of_another_make_one_move() {
    let mut show = show();
    show.hear(&served("id-A"));
    assert!(show.hear(&quota("id-A", 96.0)).is_empty());
    assert_eq!(show.hear(&cooling("id-A")).len(), 1);
    assert!(show.hear(&quota("id-A", 108.0)).is_empty(), "a limit is told once");
    assert_eq!(show.hear(&served("id-A")).len(), 1, "one that ran on still counts");
    let news = show.hear(&served("id-C"));
    let expected = News::Moved {
        from: "A".to_owned(),
        to: "C".to_owned(),
        reason: "usage limit reached".to_owned(),
    };
    assert_eq!(news.first(), Some(&expected));
    assert!(plain(&show.line(&expected)).contains("limit hit on A → moved to C"));
    assert_eq!(show.hear(&served("id-C")).len(), 1, "a move is told once");
    assert!(show.seats()[0].ran_dry() && !show.seats()[2].ran_dry());
    let summary = show.summary();
    assert_eq!((summary.moves, summary.first_byte_ms_p50), (1, Some(9)));
    assert_eq!(summary.ran_dry, ["A"]);
}

#[test]
fn a_full_window_is_a_limit_even_without_a_word() {
    let mut show = show();
    assert_eq!(show.hear(&quota("id-B", 102.0)).len(), 1);
    assert!(show.seats()[1].ran_dry());
}

#[test]
fn the_frame_fits_80_columns_and_shows_who_serves() {
    let mut show = show();
    show.hear(&served("id-B"));
    show.hear(&quota("id-A", 100.0));
    show.hear(&cooling("id-A"));
    let frame = plain(&show.frame());
    assert!(frame.lines().all(|line| line.chars().count() <= 80), "{frame}");
    assert!(frame.contains("▶ B"), "{frame}");
    assert!(frame.contains("100 %"), "{frame}");
    assert!(frame.contains("0 of 40 requests"), "{frame}");
}

#[test]
fn the_verdict_is_the_clients() {
    let answer = |n, ok| Answer { n, ok, error: Some("boom".to_owned()).filter(|_| !ok) };
    let mut show = show();
    assert!(show.verdict(0).is_err(), "no answer at all is no success");
    assert!(show.count(&answer(1, true)).is_none());
    assert!(show.verdict(1).is_ok());
    assert!(show.verdict(2).is_err(), "a client that stopped early is an error");
    assert!(show.count(&answer(2, false)).is_some());
    let refusal = show.verdict(2).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Negative);
    assert!(refusal.message.contains("boom"));
}

#[test]
fn names_are_cut_to_their_column() {
    assert_eq!(short("abc", 5), "abc  ");
    assert_eq!(short("abcdef", 5), "abcd…");
}

use super::{time::Clock, *};

#[test]
fn spans_have_two_units_at_most() {
    let check = |seconds, expected| assert_eq!(time::span(seconds), expected);
    check(0, "0 s");
    check(59, "59 s");
    check(61, "1 min");
    check(2 * 3600 + 13 * 60 + 5, "2 h 13 min");
    check(3 * 3600, "3 h");
    check(3 * 86_400 + 4 * 3600 + 59, "3 d 4 h");
}

#[test]
fn moments_are_told_from_here() {
    assert_eq!(time::relative(100, 100), "now");
    assert_eq!(time::relative(160, 100), "in 1 min");
    assert_eq!(time::relative(40, 100), "1 min ago");
}

#[test]
fn clocks_read_both_spellings() {
    let clock = Clock::utc();
    assert_eq!(clock.time_ms(1_770_000_000_123), "02:40:00.123");
    assert_eq!(clock.date_time("2026-02-13T14:03:27.5Z"), "2026-02-13 14:03:27.500");
    assert_eq!(clock.date_time("yesterday"), "yesterday");
    assert_eq!(clock.date(1_770_000_000), "2026-02-02 02:40");
}

#[test]
fn bars_are_empty_full_and_in_between() {
    assert_eq!(bar(0.0, 5), "░░░░░");
    assert_eq!(bar(1.0, 5), "█░░░░");
    assert_eq!(bar(60.0, 5), "███░░");
    assert_eq!(bar(99.9, 5), "████░");
    assert_eq!(bar(130.0, 5), "█████");
    assert_eq!(bar(f64::NAN, 5), "░░░░░");
}

#[test]
fn tones_take_no_width_and_leave_no_trace_in_plain_text() {
    let painted = Tone::Bad.paint("ab\ncd");
    assert_eq!(plain(&painted), "ab\ncd");
    assert_eq!(coloured(&painted).matches("\x1b[0m").count(), 2);
    let columns = [Column::Left("name"), Column::Right("n")];
    let rows = |tone: Option<Tone>| {
        let name = tone.map_or_else(|| "alpha".to_owned(), |tone| tone.paint("alpha"));
        vec![vec![name, "1".to_owned()], vec!["b".to_owned(), "22".to_owned()]]
    };
    let text = plain(&table(&columns, rows(Some(Tone::Good))));
    assert_eq!(text, plain(&table(&columns, rows(None))));
    assert_eq!(text, "name    n\nalpha   1\nb      22\n");
}

#[test]
fn words_from_outside_carry_no_escape_codes() {
    assert_eq!(clean("a\x1b[31mb\u{2063}c\u{202e}d\n"), "a [31mbcd ");
}

#[test]
fn json_has_its_schema_and_one_line() {
    let refusal = Refusal::new(cma_proto::error::ErrorCode::Denied, "no\nway", "go away");
    let line = json_line(&Refused { error: &refusal }).unwrap();
    assert_eq!(line.lines().count(), 1);
    let read: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        read,
        serde_json::json!({
            "schema": 1,
            "error": { "code": "denied", "message": "no\nway", "hint": "go away" },
        })
    );
}

use super::*;
use std::{fs, io::Write as _};

fn lines(tail: &mut Tail) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(lines) = tail.read(u64::MAX).unwrap() {
        all.extend(lines);
    }
    all
}

#[test]
fn the_last_lines_are_found_across_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let long = "x".repeat(usize::try_from(BLOCK).unwrap());
    fs::write(&path, format!("one\n{long}\nthree\nfour\n")).unwrap();
    let check = |n: usize, expected: &[&str]| {
        assert_eq!(lines(&mut Tail::open(&path, n).unwrap()), expected, "last {n}");
    };
    check(0, &[]);
    check(1, &["four"]);
    check(2, &["three", "four"]);
    check(3, &[&long, "three", "four"]);
    check(4, &["one", &long, "three", "four"]);
    check(99, &["one", &long, "three", "four"]);
}

#[test]
fn so_many_lines_are_no_more_while_another_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "one\ntwo\n").unwrap();
    let mut tail = Tail::open(&path, 1).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"three\n").unwrap();
    let end = tail.end;
    assert_eq!(tail.read(end).unwrap().unwrap(), ["two"]);
    assert_eq!(tail.read(end).unwrap(), None);
}

#[test]
fn a_torn_last_line_waits_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "one\ntwo").unwrap();
    let mut tail = Tail::open(&path, 1).unwrap();
    assert_eq!(lines(&mut tail), Vec::<String>::new());
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"!\n").unwrap();
    assert_eq!(lines(&mut tail), ["two!"]);
    assert_eq!(tail.rest(), None);
}

#[test]
fn following_survives_rotation_and_truncation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "one\n").unwrap();
    let mut tail = Tail::open(&path, 10).unwrap();
    assert_eq!(lines(&mut tail), ["one"]);
    fs::rename(&path, dir.path().join("log.1")).unwrap();
    tail.turn().unwrap();
    fs::write(dir.path().join("log.1"), "one\nlate\n").unwrap();
    fs::write(&path, "two\n").unwrap();
    tail.turn().unwrap();
    assert_eq!(lines(&mut tail), ["late"], "the old file's last words come first");
    tail.turn().unwrap();
    assert_eq!(lines(&mut tail), ["two"]);
    fs::write(&path, "3\n").unwrap();
    tail.turn().unwrap();
    assert_eq!(lines(&mut tail), ["3"]);
}

#[test]
fn lines_for_people_and_for_programs() {
    let line = r#"{"timestamp":"2026-02-13T14:03:27.5Z","level":"WARN","fields":{"message":"slow\u001b[2J","ms":7},"target":"cmad::proxy","span":{"name":"request","id":"r1"},"spans":[]}"#;
    let human = |line| crate::render::plain(&human(line, &Clock::utc()));
    assert_eq!(human(line), "2026-02-13 14:03:27.500 WARN  cmad::proxy: slow [2J id=r1 ms=7\n");
    assert_eq!(human("torn {"), "torn {\n");
    assert_eq!(human(r#"{"level":"INFO","fields":{"message":"hey"}}"#), "INFO  hey\n");
    assert_eq!(json(line), format!("{{\"schema\":1,{}\n", &line[1..]));
    assert_eq!(json("torn \"{"), "{\"schema\":1,\"unreadable\":\"torn \\\"{\"}\n");
    assert_eq!(json("{}"), "{\"schema\":1}\n");
}

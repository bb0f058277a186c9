use super::*;
use std::collections::BTreeMap;

const OWN: u32 = 500;
const PARENT: u32 = 400;

fn read(vars: &[(&str, &str)]) -> Guard {
    let vars: BTreeMap<_, _> = vars.iter().copied().collect();
    Guard::read(&|name| vars.get(name).map(OsString::from), OWN, PARENT)
}

fn check(vars: &[(&str, &str)], tried: usize) {
    assert_eq!(read(vars).tried(), tried, "{vars:?}");
    assert_eq!(read(vars).recursion(), tried > 0);
}

#[test]
fn only_our_own_id_and_our_parents_are_recursion() {
    check(&[], 0);
    check(&[(PID, "500")], 1);
    check(&[(PID, "400")], 1);
    check(&[(PID, "300")], 0);
    for odd in ["", "0", "-1", "x", "4000000000000"] {
        check(&[(PID, odd)], 0);
    }
}

#[test]
fn an_unknown_parent_matches_nothing() {
    let guard = Guard::read(&|_| Some(OsString::from("0")), OWN, 0);
    assert_eq!(guard.tried(), 0);
}

#[test]
fn every_round_takes_the_next() {
    check(&[(PID, "500"), (TRIED, "1")], 2);
    check(&[(PID, "400"), (TRIED, "7")], 8);
    check(&[(PID, "300"), (TRIED, "7")], 0);
}

#[test]
fn a_tool_of_the_cli_is_no_recursion() {
    check(&[(PID, "400"), ("CODEX_THREAD_ID", "t1")], 0);
    check(&[(PID, "500"), ("CODEX_THREAD_ID", "t2"), (THREAD, "t1")], 0);
    // A launcher script inside a tool's shell: the same thread as when the shim started it.
    check(&[(PID, "400"), ("CODEX_THREAD_ID", "t1"), (THREAD, "t1")], 1);
}

#[test]
fn a_mark_is_read_back_as_the_next_round() {
    let read_marks = |guard: &Guard, own| {
        let mut command = Command::new("codex");
        guard.mark(&mut command);
        let vars: BTreeMap<_, _> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        let thread = guard.thread.clone();
        Guard::read(
            &|name| match name {
                "CODEX_THREAD_ID" => thread.clone(),
                name => vars.get(&OsString::from(name)).cloned(),
            },
            own,
            PARENT,
        )
    };
    for vars in [&[][..], &[("CODEX_THREAD_ID", "t1")], &[("CODEX_THREAD_ID", "t1"), (TRIED, "5")]]
    {
        let first = read(vars);
        let second = read_marks(&first, OWN);
        let third = read_marks(&second, OWN);
        assert_eq!((first.tried(), second.tried(), third.tried()), (0, 1, 2), "{vars:?}");
    }
}

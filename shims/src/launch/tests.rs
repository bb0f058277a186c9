use super::*;
use std::collections::BTreeMap;

/// Calls `run` with an environment of these variables.
fn with<T>(vars: &[(&str, &str)], run: impl Fn(Lookup<'_>) -> T) -> T {
    let vars: BTreeMap<_, _> = vars.iter().copied().collect();
    run(&|name| vars.get(name).map(OsString::from))
}

fn check_outer(vars: &[(&str, &str)], removed: &[&str]) {
    assert_eq!(with(vars, |lookup| outer(lookup)), removed, "{vars:?}");
}

#[test]
fn only_our_own_variables_are_removed() {
    check_outer(&[], &[]);
    check_outer(&[(TOKEN, "at-cma-1")], &[TOKEN, ISSUER]);
    check_outer(&[(TOKEN, "at-mine"), (ISSUER, "https://mine")], &[]);
    check_outer(&[(ISSUER, "http://127.0.0.1:1/api")], &[]);
    // Inside a tool of the CLI: the key is blanked, the issuer perhaps not.
    let inside = ("CMA_SHIM_PID", "1");
    check_outer(&[inside, (TOKEN, ""), (ISSUER, "http://127.0.0.1:1/api")], &[TOKEN, ISSUER]);
    check_outer(&[inside, (TOKEN, ""), (ISSUER, "")], &[TOKEN, ISSUER]);
    check_outer(&[inside, (ISSUER, "https://mine")], &[TOKEN]);
    check_outer(&[inside, (TOKEN, "at-mine"), (ISSUER, "http://127.0.0.1:1/api")], &[]);
}

#[test]
fn endpoints_of_an_outer_launch_are_known() {
    let inside = ("CMA_SHIM_PID", "1");
    let own = "http://127.0.0.1:1/own/abc/oauth/token";
    for (vars, url, outer) in [
        (&[inside][..], own, true),
        (&[inside], "", true),
        (&[], own, false),
        (&[], "", false),
        (&[inside], "https://mine/own/token", false),
        (&[inside], "http://127.0.0.1:1/mine", false),
    ] {
        assert_eq!(with(vars, |lookup| is_outer_endpoint(OsStr::new(url), lookup)), outer, "{url}");
    }
}

#[test]
fn a_persons_own_key_is_known() {
    for (vars, own) in [
        (&[][..], false),
        (&[("CODEX_API_KEY", "sk-1")], true),
        (&[("CODEX_API_KEY", "")], false),
        (&[(TOKEN, "at-mine")], true),
        (&[(TOKEN, "")], false),
        (&[(TOKEN, "at-cma-1")], false),
    ] {
        assert_eq!(with(vars, has_own_key), own, "{vars:?}");
    }
}

#[test]
fn a_printed_plan_keeps_its_key() {
    let base = |port: &str| {
        vec![OsString::from("-c"), format!("openai_base_url=\"http://{port}/codex\"").into()]
    };
    let ours = [(TOKEN, "at-cma-1")];
    assert!(with(&ours, |lookup| is_printed(&base("127.0.0.1:9"), lookup)));
    assert!(!with(&ours, |lookup| is_printed(&base("example.com"), lookup)));
    assert!(!with(&ours, |lookup| is_printed(&["exec".into()], lookup)));
    assert!(!with(&[(TOKEN, "at-mine")], |lookup| is_printed(&base("127.0.0.1:9"), lookup)));
    let inside = [ours[0], ("CMA_SHIM_PID", "1")];
    assert!(!with(&inside, |lookup| is_printed(&base("127.0.0.1:9"), lookup)));
}

#[test]
fn the_mode_is_the_persons_word() {
    for (mode, own) in [("own", true), ("pool", false), ("", false), ("odd", false)] {
        assert_eq!(with(&[("CMA_AUTH_MODE", mode)], stays_own), own, "{mode}");
    }
}

#[test]
fn a_request_says_what_the_person_wants() {
    let through = Through {
        interactive: true,
        overrides: vec!["a=1".to_owned()],
        profile: Some("work".to_owned()),
        dir: Some("sub".to_owned()),
        ..Through::default()
    };
    let vars = [("NO_PROXY", "a,b"), ("no_proxy", "c")];
    let asked = with(&vars, |lookup| request("0.169.0".to_owned(), &through, lookup)).unwrap();
    assert_eq!(asked.no_proxy, "a,b,c");
    assert_eq!(Path::new(&asked.cwd), env::current_dir().unwrap().join("sub"));
    assert!(Path::new(&asked.codex_home).is_absolute());
    assert!(asked.interactive && !asked.printed);
    assert_eq!((asked.overrides, asked.profile), (through.overrides, through.profile));
    let asked = with(&[("no_proxy", "c")], |lookup| {
        request(
            String::new(),
            &Through { dir: Some("/x".to_owned()), ..Through::default() },
            lookup,
        )
    });
    assert_eq!(asked.unwrap().no_proxy, "c");
}

fn check_merge(own: &[&str], want: &[&str]) {
    let plan = ["--no-daemon", "-c", "url=1", "-c", "token="].map(str::to_owned);
    let own: Vec<_> = own.iter().map(OsString::from).collect();
    let Invocation::Through(through) = args::read(&own) else { panic!("{own:?}") };
    assert_eq!(merge(&plan, &own, &through), want);
}

#[test]
fn the_plans_arguments_stand_where_they_hold() {
    check_merge(&[], &["--no-daemon", "-c", "url=1", "-c", "token="]);
    check_merge(&["hi"], &["--no-daemon", "-c", "url=1", "-c", "token=", "hi"]);
    check_merge(
        &["exec", "-c", "a=1", "hi"],
        &["--no-daemon", "exec", "-c", "a=1", "-c", "url=1", "-c", "token=", "hi"],
    );
    check_merge(
        &["-c", "a=1", "resume", "--no-daemon"],
        &["-c", "a=1", "-c", "url=1", "-c", "token=", "resume", "--no-daemon"],
    );
}

#[test]
fn a_missing_daemon_costs_a_line_or_the_start() {
    let refusal = || Refusal::new(ErrorCode::Unreachable, "no daemon", "run `x`");
    for policy in [&[][..], &[("CMA_ON_UNAVAILABLE", "direct")], &[("CMA_ON_UNAVAILABLE", "odd")]] {
        assert_eq!(with(policy, |lookup| decide(Err(refusal()), lookup)), Ok(None), "{policy:?}");
    }
    let failure = with(&[("CMA_ON_UNAVAILABLE", "error")], |lookup| {
        decide(Err(refusal()), lookup).unwrap_err()
    });
    assert_eq!(failure.code, ErrorCode::Unreachable.exit_code());
    assert_eq!(failure.line, "no daemon; codex was not started (run `x`)");
}

#[test]
fn standing_aside_is_plain_whatever_the_policy() {
    let aside = Launch::Aside { reason: "an API key".to_owned(), tell: false };
    let answer =
        with(&[("CMA_ON_UNAVAILABLE", "error")], |lookup| decide(Ok(aside.clone()), lookup));
    assert_eq!(answer, Ok(None));
}

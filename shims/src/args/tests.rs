use super::*;

fn parse(line: &str) -> Invocation {
    // `~` stands for a space inside an argument.
    let args: Vec<_> =
        line.split_whitespace().map(|arg| OsString::from(arg.replace('~', " "))).collect();
    read(&args)
}

fn through(line: &str) -> Through {
    match parse(line) {
        Invocation::Through(through) => through,
        Invocation::Plain => panic!("`{line}` is plain"),
    }
}

fn check_plain(lines: &[&str]) {
    for line in lines {
        assert_eq!(parse(line), Invocation::Plain, "`{line}`");
    }
}

#[test]
fn the_terminal_interface_is_interactive() {
    for line in [
        "",
        "fix~the~-c~thing",
        "-m gpt-5 hello",
        "resume",
        "resume --last",
        "fork 0199 go~on",
        "--search",
        "-",
        "-- exec",
        "-- --help",
        "-- login",
        "-i a.png login",
        "-i a.png b.png --search",
        "--image a.png exec",
        "--no-alt-screen resume",
        "agent",
        "exe",
    ] {
        assert!(through(line).interactive, "`{line}`");
    }
}

#[test]
fn commands_that_make_requests_go_through() {
    for line in [
        "exec hi",
        "e hi",
        "exec -",
        "exec",
        "exec -- --oss",
        "exec -- help",
        "exec resume --last",
        "exec hello resume --last",
        "exec review --uncommitted",
        "exec login",
        "-m gpt-5 exec hi",
        "-mgpt-5 exec hi",
        "-m=gpt-5 exec hi",
        "--model=gpt-5 exec hi",
        "--model login exec hi",
        "-i=a.png exec hi",
        "-ia.png exec hi",
        "--image=a.png exec hi",
        "-i a.png -m x exec hi",
        "hello exec hi",
        "exec -o logout hi",
        "exec --output-schema help hi",
        "review --uncommitted",
        "app-server",
        "app-server --listen unix://",
        "app-server --listen daemon",
        "mcp-server",
        "apply 1",
        "a 1",
        "doctor --json",
        "debug models",
        "debug prompt-input hi",
        "mcp list --json",
        "plugin list",
        "archive 0199",
    ] {
        assert!(!through(line).interactive, "`{line}`");
    }
}

#[test]
fn commands_without_requests_are_plain() {
    check_plain(&[
        "--version",
        "-V",
        "--help",
        "-h",
        "help",
        "help exec",
        "exec --help",
        "exec help",
        "exec hi -h",
        "exec resume -h",
        "completion bash",
        "features list",
        "login",
        "login status",
        "logout",
        "sandbox -- ls",
        "sandbox ls --color",
        "execpolicy check",
        "mcp",
        "mcp add x -- cmd",
        "mcp get x",
        "mcp remove x",
        "mcp help",
        "plugin",
        "plugin help",
        "debug",
        "debug help",
        "debug models --bundled",
        "app-server generate-ts",
        "app-server generate-json-schema --out x",
        "app-server proxy",
        "update",
        "exec-server",
        "-m gpt-5 login",
        "-C /tmp features list",
    ]);
}

#[test]
fn other_backends_are_left_alone() {
    check_plain(&[
        "--oss",
        "exec --oss hi",
        "--oss exec hi",
        "--local-provider ollama",
        "--local-provider=ollama exec hi",
        "--remote ws://h:1",
        "--remote=unix:// resume",
        "agents",
        "queue",
        "remote-control",
        "cloud",
        "cloud-tasks list",
        "app-server daemon start",
        "app-server --startup-sign-out",
        "-c model_provider=azure",
        "-cmodel_provider=azure exec hi",
        "-c=model_provider=azure exec hi",
        "exec -c model_provider=\"azure\" hi",
        "exec hi --config ~model_provider~=~azure",
        "exec --config=model_provider=azure hi",
        "-c openai_base_url=http://x exec hi",
        "-c chatgpt_base_url=\"http://x\" exec hi",
        "-c model_provider=openai exec -c model_provider=azure hi",
    ]);
    for line in [
        "-c model_provider=openai exec hi",
        "-c model_provider=\"openai\" exec hi",
        "-c model_provider=azure exec -c model_provider='openai' hi",
        "-c model_providers.x.base_url=http://x exec hi",
        "exec -- -c model_provider=azure",
        "exec -m -- --oss",
    ] {
        drop(through(line));
    }
}

#[test]
fn what_the_daemon_must_know_is_read_in_every_spelling() {
    let one = "-c a=1 -cb=2 exec -c=c=3 --config d=4 -p work hi --config=e=5 -Cdir --cd /x/y";
    let read = through(one);
    assert_eq!(read.overrides, ["a=1", "b=2", "c=3", "d=4", "e=5"]);
    assert_eq!(read.profile.as_deref(), Some("work"));
    assert_eq!(read.dir.as_deref(), Some("/x/y"));
    assert_eq!(through("--profile=a -pb").profile.as_deref(), Some("b"));
    assert_eq!(through("-C=d").dir.as_deref(), Some("d"));
    assert_eq!(through("--cd=d exec hi").dir.as_deref(), Some("d"));
    assert!(through("exec --ignore-user-config hi").ignore_user_config);
    assert!(!through("exec -- --ignore-user-config").ignore_user_config);
    assert!(through("--no-daemon resume").no_daemon);
    assert!(!through("-- --no-daemon").no_daemon);
}

#[test]
fn overrides_of_the_plan_go_after_the_persons_last() {
    for (line, at) in [
        ("", 0),
        ("exec hi", 0),
        ("-m x exec hi", 0),
        ("-c a=1 exec hi", 2),
        ("exec -ca=1 hi", 2),
        ("-c a=1 exec resume --config b=2 --last", 6),
        ("exec hi -- -c a=1", 0),
    ] {
        assert_eq!(through(line).insert_at, at, "`{line}`");
    }
}

#[test]
fn a_flag_without_its_value_is_not_followed_further() {
    assert_eq!(through("exec hi -c").overrides, [""; 0]);
    check_plain(&["-m --oss", "-c --help"]);
}

#[cfg(unix)]
#[test]
fn arguments_need_not_be_text() {
    use std::os::unix::ffi::OsStringExt as _;
    let args = [OsString::from("exec"), OsString::from_vec(vec![b'h', 0xff, b'i'])];
    assert!(matches!(read(&args), Invocation::Through(_)));
}

#[test]
fn the_account_is_taken_out_and_nothing_else_is() {
    let words = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
    let taken = |line: &str| account(&words(line)).map(|(account, rest)| (account, rest.len()));
    assert_eq!(taken("--account work exec hi"), Ok((Some("work".to_owned()), 2)));
    assert_eq!(taken("exec --account=tag:a hi -c x=1"), Ok((Some("tag:a".to_owned()), 4)));
    assert_eq!(taken("--account a --account b"), Ok((Some("b".to_owned()), 0)));
    assert_eq!(taken("exec -- --account a"), Ok((None, 4)));
    assert_eq!(taken("--accounts x"), Ok((None, 2)));
    // Another program's arguments; a prompt or a flag's value of that name is none.
    assert_eq!(taken("sandbox aws --account 5"), Ok((None, 4)));
    assert_eq!(taken("-c a=1 sandbox aws --account 5"), Ok((None, 6)));
    assert_eq!(taken("--account a sandbox aws --account 5"), Ok((Some("a".to_owned()), 4)));
    assert_eq!(taken("exec sandbox --account a"), Ok((Some("a".to_owned()), 2)));
    assert_eq!(taken("--profile sandbox --account a"), Ok((Some("a".to_owned()), 2)));
    for bad in ["--account", "exec --account=", "--account --json"] {
        assert!(account(&words(bad)).is_err(), "{bad}");
    }
}

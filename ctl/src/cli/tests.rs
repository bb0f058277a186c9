use super::*;
use clap::CommandFactory as _;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("cmactl").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_one_line_of_help() {
    fn check(command: &clap::Command) {
        for sub in command.get_subcommands() {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains('\n'), "{}: {about:?}", sub.get_name());
            check(sub);
        }
    }
    check(&Cli::command());
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    for line in ["--json --no-start --root /r status", "status --json --no-start --root /r"] {
        let cli = parse(line).unwrap();
        assert!(cli.global.json && cli.global.no_start);
        assert_eq!(cli.global.root.as_deref(), Some(std::path::Path::new("/r")));
        assert_eq!(cli.global.wire, Wire::Bincode);
    }
    assert_eq!(parse("list --wire json").unwrap().global.wire, Wire::Json);
}

#[test]
fn commands_of_the_contract_are_understood() {
    for line in [
        "status",
        "list",
        "switch work",
        "unpin",
        "import",
        "import a/auth.json --label work",
        "import -",
        "login",
        "login work --device-auth",
        "login --browser --no-browser --org w-1 --json",
        "login --manual --issuer http://127.0.0.1:9 --timeout 60",
        "login --batch accounts.toml --check",
        "import --preview",
        "import --from /old --preview --json",
        "import --apply",
        "import --yes --from /old",
        "export",
        "export --secrets --to /new.json",
        "enable 1",
        "disable a@b.c",
        "label 1 work",
        "remove 1 --yes",
        "reset-credits list",
        "reset-credits use work --credit c-1 --yes",
        "why",
        "why --request r1",
        "events --json",
        "logs -f -n 5",
        "logs",
        "daemon run",
        "daemon start",
        "daemon stop --now",
        "daemon restart",
        "daemon status",
        "version",
        "launch --print --json",
        "demo --client builtin --plain",
        "backup create",
        "backup create before-trip",
        "backup list",
        "backup restore x --preview",
        "backup prune --keep 3",
        "seal on",
        "seal on --passphrase",
        "seal rekey --keyring",
        "seal off",
        "seal status",
        "unlock",
        "status --project",
        "list --project --json",
        "switch work --project",
        "unpin --project",
        "import --project",
        "tag work +a -b",
        "tag --json 1 -b",
        "note 1 two words",
        "workspace",
        "workspace list --live",
        "workspace show",
        "workspace use acct-1 --project",
        "workspace use --any",
        "project list",
        "project show some-key",
        "project add 1 --only",
        "project drop 1",
        "project allow a/dir",
        "project deny",
        "project forget key --yes",
        "allow",
        "deny a/dir",
    ] {
        assert!(parse(line).is_ok(), "{line}");
    }
}

#[test]
fn nonsense_is_a_usage_error_with_exit_code_2() {
    for line in [
        "",
        "launch",
        "switch",
        "daemon",
        "status now",
        "demo --client curl",
        "login --browser --device",
        "login --check",
        "login work --batch a.toml",
        "login --timeout 901",
        "tag 1",
        "project",
        "workspace use",
        "workspace use a --any",
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.use_stderr(), "{line}");
        assert_eq!(error.exit_code(), 2, "{line}");
        let refusal = usage(&error);
        assert!(!refusal.message.is_empty() && !refusal.message.contains('\n'), "{refusal:?}");
        assert!(!refusal.message.starts_with("error"), "{refusal:?}");
    }
}

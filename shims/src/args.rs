//! Which command it is, and the few flags that matter to a launch.
//!
//! This reads the CLI's arguments as the CLI's own parser (clap) reads them, as far as needed: which
//! options take a value, that `-i` takes values until the next flag, that a command may follow a
//! prompt, that nothing after `--` is a flag. A word that is no command is a prompt. Checked by
//! hand against 0.98 to 0.169; an option that a later version adds is at worst read as a switch.

use crate::Failure;
use std::ffi::OsString;

/// Flags that make a launch plain: help, version and `debug models --bundled`
/// make no request, the others choose another backend (or, `--startup-sign-out`, work on the
/// person's own login).
const PLAIN_FLAGS: &[&str] =
    &["help", "version", "bundled", "oss", "local-provider", "remote", "startup-sign-out"];

/// How an invocation is to be started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// As it is: it makes no request, or the person has chosen another way.
    Plain,
    /// Through the daemon.
    Through(Through),
}

/// What the daemon must know of an invocation, and where its arguments go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Through {
    /// No command, `resume` or `fork`.
    pub(crate) interactive: bool,
    /// The person's own `--no-daemon`; the CLI accepts only one.
    pub(crate) no_daemon: bool,
    /// Values of `-c` and `--config`.
    pub(crate) overrides: Vec<String>,
    /// The last `-p`.
    pub(crate) profile: Option<String>,
    /// `--ignore-user-config` of `codex exec`.
    pub(crate) ignore_user_config: bool,
    /// The last `-C`.
    pub(crate) dir: Option<String>,
    /// Where among the person's arguments the plan's overrides go: after their last `-c`, else
    /// first. CLIs up to 0.149 forget every `-c` before a command that has one after it; and a
    /// person's `-c shell_environment_policy.set={…}` must not undo what the plan sets in there.
    pub(crate) insert_at: usize,
}

/// Reads the arguments that follow the program's name.
pub(crate) fn read(args: &[OsString]) -> Invocation {
    let mut reader = Reader { args, next: 0, through: Through::default() };
    let mut words = Words::default();
    while let Some(arg) = reader.take() {
        if arg == "--" {
            break;
        }
        let plain = match arg.strip_prefix("--") {
            Some(long) => reader.long(long),
            None if arg.len() > 1 && arg.starts_with('-') => reader.short(&arg),
            None => {
                words.meet(arg);
                false
            },
        };
        if plain {
            return Invocation::Plain;
        }
    }
    let Some(interactive) = words.route() else {
        return Invocation::Plain;
    };
    if elsewhere(&reader.through.overrides) {
        return Invocation::Plain;
    }
    Invocation::Through(Through { interactive, ..reader.through })
}

/// Takes `--account SELECTOR` out of the arguments: it is ours, the CLI doesn't know it. The last one
/// counts; what follows `--`, or is another program's as in `codex sandbox PROGRAM …`, is not looked at.
///
/// # Errors
/// A flag without a value.
pub(crate) fn account(args: &[OsString]) -> Result<(Option<String>, Vec<OsString>), Failure> {
    const NAME: &str = "--account";
    let (mut account, mut rest) = (None, Vec::with_capacity(args.len()));
    let (mut args, mut first, mut value_of_flag) = (args.iter(), true, false);
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        let is_value = std::mem::replace(&mut value_of_flag, wants_value(&text));
        let is_flag = text.len() > 1 && text.starts_with('-');
        let is_first = !is_value && !is_flag && std::mem::take(&mut first);
        if text == "--" || (is_first && text == "sandbox") {
            rest.push(arg.clone());
            break;
        }
        let value = match text.strip_prefix(NAME) {
            Some("") => args.next().map(|value| value.to_string_lossy().into_owned()),
            Some(inline) => inline.strip_prefix('=').map(str::to_owned),
            None => {
                rest.push(arg.clone());
                continue;
            },
        };
        match value.filter(|value| !value.is_empty() && !value.starts_with('-')) {
            Some(value) => account = Some(value),
            // `--accounts` and the like are the CLI's business.
            None if text != NAME && !text.starts_with("--account=") => rest.push(arg.clone()),
            None => {
                return Err(Failure::new(
                    2,
                    "`--account` names nobody; say which one, as `cmactl list` shows them",
                ));
            },
        }
    }
    rest.extend(args.cloned());
    Ok((account, rest))
}

/// Whether the argument after this one is its value.
fn wants_value(arg: &str) -> bool {
    match arg.strip_prefix("--") {
        Some(long) => takes_value(long),
        None => {
            matches!(arg.as_bytes(), [b'-', b'c' | b'C' | b'i' | b'p' | b'a' | b'm' | b'o' | b's'])
        },
    }
}

/// What a command means for a launch.
#[derive(Debug, Clone, Copy)]
enum Command {
    /// Draws the terminal interface.
    Interactive,
    /// Makes requests.
    Requests,
    /// Makes requests; a prompt or one of these commands follows.
    Exec(&'static [&'static str]),
    /// Makes requests, but no command below it does.
    Server,
    /// Only these commands below it make requests.
    Below(&'static [&'static str]),
    /// Makes none, or makes them where a plan has no say.
    Plain,
}

/// Every command that a version of the CLI has had, hidden ones included.
fn command(word: &str) -> Option<Command> {
    Some(match word {
        "resume" | "fork" => Command::Interactive,
        // `archive` and its like start an app-server in themselves, which asks the backend.
        "review" | "mcp-server" | "apply" | "a" | "doctor" | "archive" | "unarchive" | "delete" => {
            Command::Requests
        },
        "exec" | "e" => Command::Exec(&["resume", "fork", "review", "help"]),
        "app-server" => Command::Server,
        "debug" => Command::Below(&["models", "prompt-input", "app-server"]),
        "mcp" => Command::Below(&["list"]),
        "plugin" => Command::Below(&["add", "list", "marketplace", "remove"]),
        "agents"
        | "queue"
        | "remote-control"
        | "cloud"
        | "cloud-tasks"
        | "login"
        | "logout"
        | "completion"
        | "update"
        | "sandbox"
        | "features"
        | "exec-server"
        | "execpolicy"
        | "responses-api-proxy"
        | "stdio-to-uds"
        | "migrate-rollouts"
        | "migrate-nfs-db"
        | "help" => Command::Plain,
        "app" if cfg!(any(target_os = "macos", windows)) => Command::Plain,
        _ => return None,
    })
}

/// The command met and, where it has some, the command below it.
#[derive(Debug, Default)]
struct Words {
    command: Option<Command>,
    below: Option<String>,
}

impl Words {
    /// Takes a word that is no flag and no flag's value: a command where one is possible, else a
    /// prompt, a session or a file.
    fn meet(&mut self, word: String) {
        match self.command {
            None => self.command = command(&word),
            Some(Command::Exec(commands)) if !commands.contains(&word.as_str()) => {},
            Some(_) => {
                self.below.get_or_insert(word);
            },
        }
    }

    /// Whether the invocation makes requests, and if so whether it is interactive.
    fn route(&self) -> Option<bool> {
        let below = self.below.as_deref();
        let requests = match self.command {
            None | Some(Command::Interactive) => return Some(true),
            Some(Command::Requests) => true,
            Some(Command::Exec(_)) => below != Some("help"),
            Some(Command::Server) => below.is_none(),
            Some(Command::Below(commands)) => below.is_some_and(|word| commands.contains(&word)),
            Some(Command::Plain) => false,
        };
        requests.then_some(false)
    }
}

/// Whether overrides choose another provider or base address than the plan would.
fn elsewhere(overrides: &[String]) -> bool {
    let mut provider = None;
    for (key, value) in overrides.iter().filter_map(|pair| pair.split_once('=')) {
        match key.trim() {
            "openai_base_url" | "chatgpt_base_url" => return true,
            "model_provider" => provider = Some(value.trim().trim_matches(['"', '\''])),
            _ => {},
        }
    }
    provider.is_some_and(|provider| provider != "openai")
}

/// Options of `codex`, `codex exec` and `codex app-server` that take a value: only there can a
/// command follow, and only there may a value be mistaken for one.
fn takes_value(long: &str) -> bool {
    match long {
        "config"
        | "enable"
        | "disable"
        | "image"
        | "model"
        | "profile"
        | "sandbox"
        | "cd"
        | "add-dir"
        | "ask-for-approval"
        | "remote-auth-token-env" => true,
        "thread-source"
        | "cyber-access-program"
        | "output-schema"
        | "color"
        | "output-last-message" => true,
        "startup-client-info" | "cloud-skills-snapshot" | "code-mode-host" | "listen" => true,
        _ => long.starts_with("ws-"),
    }
}

struct Reader<'a> {
    args: &'a [OsString],
    next: usize,
    through: Through,
}

impl Reader<'_> {
    fn take(&mut self) -> Option<String> {
        let arg = self.args.get(self.next)?;
        self.next += 1;
        Some(arg.to_string_lossy().into_owned())
    }

    /// The next argument, if it can be a value: one that looks like a flag is a flag.
    fn take_value(&mut self) -> Option<String> {
        let arg = self.args.get(self.next)?.as_encoded_bytes();
        if arg.len() > 1 && arg.starts_with(b"-") { None } else { self.take() }
    }

    /// Takes a long option with its value; whether it makes the launch plain.
    fn long(&mut self, text: &str) -> bool {
        let (name, inline) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if PLAIN_FLAGS.contains(&name) {
            return true;
        }
        if name == "no-daemon" {
            self.through.no_daemon = true;
        } else if name == "ignore-user-config" {
            self.through.ignore_user_config = true;
        } else if takes_value(name) {
            self.option(name, inline);
        }
        false
    }

    /// Takes a short option with its value; whether it makes the launch plain.
    fn short(&mut self, arg: &str) -> bool {
        let mut chars = arg.trim_start_matches('-').chars();
        let name = match chars.next() {
            Some('h' | 'V') => return true,
            Some('c') => "config",
            Some('C') => "cd",
            Some('i') => "image",
            Some('p') => "profile",
            Some('a' | 'm' | 'o' | 's') => "",
            _ => return false,
        };
        let rest = chars.as_str();
        let inline = rest.strip_prefix('=').unwrap_or(rest);
        self.option(name, (!rest.is_empty()).then(|| inline.to_owned()));
        false
    }

    fn option(&mut self, name: &str, inline: Option<String>) {
        let is_inline = inline.is_some();
        let Some(value) = inline.or_else(|| self.take_value()) else {
            // The CLI will complain.
            return;
        };
        match name {
            "config" => {
                self.through.overrides.push(value);
                self.through.insert_at = self.next;
            },
            "profile" => self.through.profile = Some(value),
            "cd" => self.through.dir = Some(value),
            "image" if !is_inline => while self.take_value().is_some() {},
            _ => {},
        }
    }
}

#[cfg(test)]
mod tests;

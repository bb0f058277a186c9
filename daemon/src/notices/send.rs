//! The ways by which a notice reaches a person.
//!
//! Programs are started with fixed arguments and a small environment of their own, no shell between;
//! each way has ten seconds. What fails is logged without the token, and tried no second time.

use super::Notice;
use crate::{
    blocking::{self, Panicked},
    clock,
    config::{
        Config,
        notify::{Ntfy, TOKEN_VARIABLE},
    },
    fault::without_url,
    network::Network,
};
use cma_proto::usage::Notified;
use secrecy::{ExposeSecret as _, SecretString};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long one way may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether a program has ended.
const PAUSE: Duration = Duration::from_millis(20);
/// What a program that shows something, or a hook, gets of our environment.
const PASSED: [&str; 9] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
];

/// Tells a notice by every way that is set up.
pub(super) async fn all(config: &Config, notice: &Notice) -> Vec<Notified> {
    let notify = &config.notify;
    let mut told = Vec::new();
    let mut keep = |way: &str, outcome: Result<(), String>| {
        if let Err(error) = &outcome {
            tracing::warn!(way, error, "a notice didn't arrive");
        }
        told.push(Notified { way: way.to_owned(), error: outcome.err() });
    };
    if notify.desktop {
        keep("desktop", start(desktop(notice)).await);
    }
    if let Some(ntfy) = &notify.ntfy {
        keep("ntfy", post(&config.network, ntfy, notice).await);
    }
    if let Some((program, arguments)) = notify.command.split_first() {
        let mut command = Command::new(program);
        command.args(arguments);
        keep("command", start(hook(command, notice)).await);
    }
    told
}

fn hook(mut command: Command, notice: &Notice) -> Command {
    dress(&mut command);
    command
        .env("CMA_NOTICE", notice.kind.word())
        .env("CMA_NOTICE_TITLE", &notice.title)
        .env("CMA_NOTICE_TEXT", &notice.text)
        .env("CMA_NOTICE_ACCOUNT", notice.account.as_deref().unwrap_or_default())
        .env("CMA_NOTICE_AT", clock::unix().to_string());
    command
}

#[cfg(not(target_os = "macos"))]
fn desktop(notice: &Notice) -> Command {
    let mut command = Command::new("notify-send");
    dress(&mut command);
    command.args(["--app-name=cma", "--", &notice.title, &notice.text]);
    command
}

/// The texts are arguments of the script, never part of it.
#[cfg(target_os = "macos")]
fn desktop(notice: &Notice) -> Command {
    let mut command = Command::new("osascript");
    dress(&mut command);
    command.args([
        "-e",
        "on run argv",
        "-e",
        "display notification (item 2 of argv) with title (item 1 of argv)",
        "-e",
        "end run",
        &notice.title,
        &notice.text,
    ]);
    command
}

fn dress(command: &mut Command) {
    let kept = PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.env_clear().envs(kept).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}

/// Runs a program to its end, on a thread for such work.
async fn start(command: Command) -> Result<(), String> {
    blocking::run(move || run(command))
        .await
        .unwrap_or_else(|Panicked| Err("it could not be started".to_owned()))
}

fn run(mut command: Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|error| format!("`{program}`: {error}"))?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("`{program}` ended with {status}")),
            Ok(None) if begun.elapsed() > PATIENCE => {
                // It may have ended this moment.
                drop(child.kill());
                drop(child.wait());
                return Err(format!("`{program}` took more than {} s", PATIENCE.as_secs()));
            },
            Ok(None) => std::thread::sleep(PAUSE),
            Err(error) => return Err(format!("`{program}`: {error}")),
        }
    }
}

async fn post(network: &Network, ntfy: &Ntfy, notice: &Notice) -> Result<(), String> {
    let token = match &ntfy.token_file {
        Some(path) => {
            let path = path.clone();
            let read = blocking::run(move || token(&path)).await;
            Some(read.unwrap_or_else(|Panicked| Err("its token can't be read".to_owned()))?)
        },
        None => std::env::var(TOKEN_VARIABLE).ok().map(SecretString::from),
    };
    let builder = reqwest::Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("cma/", env!("CARGO_PKG_VERSION")));
    let client = network.client(builder, &ntfy.at)?;
    // A header holds one line of ASCII; the text may hold more.
    let title: String = notice
        .title
        .chars()
        .map(|c| if c.is_ascii() && !c.is_control() { c } else { '?' })
        .collect();
    let mut request = client.post(&ntfy.at.base).header("title", title).body(notice.text.clone());
    if let Some(token) = &token {
        request = request.bearer_auth(token.expose_secret());
    }
    let answer = request.send().await.map_err(|error| without_url(&error).to_owned())?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("it answered {}", answer.status()))
    }
}

/// A token from a file that is its owner's alone.
fn token(path: &Path) -> Result<SecretString, String> {
    let failed = |why: &str| format!("the token file `{}` {why}", path.display());
    let meta =
        std::fs::metadata(path).map_err(|error| failed(&format!("can't be read: {error}")))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(failed("is readable for others; run `chmod 600` on it"));
        }
    }
    if meta.len() > 4096 {
        return Err(failed("is too large for a token"));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| failed(&format!("can't be read: {error}")))?;
    Ok(text.trim().to_owned().into())
}

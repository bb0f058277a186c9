//! `seal` and `unlock`: passphrases are read here and given to the daemon, which keeps no copy on disk.
//!
//! A passphrase comes from the environment or from the terminal without an echo, never from an
//! argument: arguments are for everybody to read.

use super::Context;
use crate::{
    cli::{Seal, SealBy as Chosen},
    error::{Failure, unexpected},
    render::{Screen, Tone, clean, put, time},
};
use cma_proto::{
    client::Client,
    error::{ErrorCode, Refusal},
    message::{Reply, Request},
    survive::{SealBy, SealInfo, Secret, Survive, Survived},
};
use std::{io::IsTerminal as _, process::ExitCode};

/// `seal on`, `off`, `status`, `rekey`.
pub(super) fn seal(
    context: &Context,
    command: &Seal,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let (asked, done) = match command {
        Seal::On(by) => {
            (Survive::SealOn { by: chosen(by, "CMA_PASSPHRASE")? }, "The root is sealed.")
        },
        Seal::Off => (Survive::SealOff, "The root is not sealed any more."),
        Seal::Status => (Survive::SealStatus, ""),
        Seal::Rekey(by) => (
            Survive::SealRekey { by: chosen(by, "CMA_NEW_PASSPHRASE")? },
            "The root is sealed under a new key.",
        ),
    };
    let info = ask(&mut context.connect()?, asked)?;
    tell(&info, done, screen)
}

/// `unlock`.
pub(super) fn unlock(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let mut client = context.connect()?;
    let now = ask(&mut client, Survive::SealStatus)?;
    if now.state != "locked" {
        // What an unlock before could not read is read now.
        let info = ask(&mut client, Survive::Unlock { passphrase: None })?;
        return tell(&info, "", screen);
    }
    let keyring = now.by.iter().any(|by| by == "keyring");
    let given = from_environment("CMA_PASSPHRASE");
    if keyring && given.is_none() {
        match ask(&mut client, Survive::Unlock { passphrase: None }) {
            Ok(info) => return tell(&info, "The root is open.", screen),
            Err(Failure::Refused(why)) if why.code == ErrorCode::Denied && can_prompt() => {
                screen.say(Tone::Warn, "warning", &clean(&why.message))?;
            },
            Err(failure) => return Err(failure),
        }
    }
    let question = if keyring { "Recovery code: " } else { "Passphrase: " };
    let secret = given.map_or_else(|| prompt(question, "CMA_PASSPHRASE"), Ok)?;
    let info = ask(&mut client, Survive::Unlock { passphrase: Some(secret) })?;
    tell(&info, "The root is open.", screen)
}

fn ask(client: &mut Client, asked: Survive) -> Result<SealInfo, Failure> {
    match client.call(&Request::Survive(asked))? {
        Reply::Survived(Survived::Seal(info)) => Ok(info),
        other => Err(unexpected(other).into()),
    }
}

fn tell(info: &SealInfo, done: &str, screen: &mut Screen) -> Result<ExitCode, Failure> {
    screen.answer(info, |info| said(info, done, time::now()))?;
    screen.notes(&info.notes)?;
    Ok(ExitCode::SUCCESS)
}

fn said(info: &SealInfo, done: &str, now: u64) -> String {
    let mut text = String::new();
    if !done.is_empty() {
        put!(text, "{done}\n");
    }
    put!(text, "seal {}", clean(&info.state));
    if let Some(since) = info.since {
        put!(text, " · since {}", time::relative(since, now));
    }
    if !info.by.is_empty() {
        put!(text, " · opens by {}", clean(&info.by.join(" or ")));
    }
    put!(text, " · {} files sealed, {} in clear\n", info.sealed, info.plain);
    if let Some(Secret(code)) = &info.recovery {
        put!(
            text,
            "\nRecovery code, shown this once; it opens the root when the keyring has forgotten it:\n\n    {}\n\n",
            clean(code)
        );
    }
    text
}

/// What the person chose, with the passphrase it needs.
fn chosen(by: &Chosen, variable: &str) -> Result<SealBy, Refusal> {
    if by.keyring {
        return Ok(SealBy::Keyring);
    }
    if let Some(given) = from_environment(variable) {
        return Ok(SealBy::Passphrase(given));
    }
    let first = prompt("New passphrase: ", variable)?;
    let again = prompt("The same again: ", variable)?;
    if first != again {
        return Err(Refusal::new(
            ErrorCode::BadRequest,
            "the two passphrases are not the same; nothing was changed",
            "run the command again",
        ));
    }
    Ok(SealBy::Passphrase(first))
}

fn from_environment(variable: &str) -> Option<Secret> {
    std::env::var(variable).ok().filter(|text| !text.is_empty()).map(Secret)
}

fn can_prompt() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks without an echo.
fn prompt(question: &str, variable: &str) -> Result<Secret, Refusal> {
    if !can_prompt() {
        return Err(Refusal::new(
            ErrorCode::BadRequest,
            "a passphrase is needed and there is no terminal to ask on",
            format!("set `{variable}` for this command"),
        ));
    }
    rpassword::prompt_password(question).map(Secret).map_err(|error| {
        Refusal::new(
            ErrorCode::BadRequest,
            format!("no passphrase could be read: {error}"),
            format!("set `{variable}` for this command"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_code_is_shown_once_and_a_plain_status_has_none() {
        let mut info = SealInfo {
            state: "on".to_owned(),
            by: vec!["keyring".to_owned(), "recovery".to_owned()],
            since: Some(10),
            sealed: 4,
            plain: 0,
            recovery: Some(Secret("ABCD-EFGH".to_owned())),
            notes: Vec::new(),
        };
        let text = said(&info, "The root is sealed.", 20);
        assert!(text.contains("ABCD-EFGH") && text.contains("keyring or recovery"), "{text}");
        assert!(!format!("{info:?}").contains("ABCD"));
        info.recovery = None;
        assert!(!said(&info, "", 20).contains("Recovery"));
    }
}

//! `login`: shows a person the way to the issuer and waits with them; the daemon does the rest.
//!
//! Where to go is chosen from where this runs ([`desk`]); a way that turns out to be closed gives
//! way to the next, with one line that says so. Ctrl-C ends the sign-in at the daemon too. What a
//! person reads is on stderr; stdout gets the account that came of it.

mod batch;
mod desk;
mod show;

use super::Context;
use crate::{
    cli::LoginArgs,
    error::{Failure, unexpected},
    render::{Patience, Screen, Tone, clean},
};
use cma_proto::{
    client::Client,
    error::{ErrorCode, Refusal},
    login::{LoginBegin, LoginDone, LoginEnd, LoginMethod, LoginReply, LoginRequest, LoginStarted},
    message::{Reply, Request},
};
use desk::Way;
use serde::Serialize;
use std::{
    io::{self, BufRead as _, IsTerminal as _},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError, sync_channel},
    },
};

/// As a shell tells that Ctrl-C ended a program: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Serialize)]
struct Begun<'a> {
    started: &'a LoginStarted,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Signed<'a> {
    signed_in: &'a LoginDone,
}

/// What came of one sign-in.
enum Outcome {
    Done(LoginDone),
    Ended(LoginEnd, Refusal),
    /// Ctrl-C.
    Interrupted,
}

/// What the person does meanwhile: Ctrl-C (a second one ends the program at once), and typing.
struct Person {
    interrupt: Arc<AtomicBool>,
    lines: Option<Receiver<String>>,
}

impl Person {
    fn new() -> Self {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // Where no handler can be installed the program ends by the signal, and the daemon
            // forgets the sign-in when nobody asks any more.
            drop(signal_hook::flag::register_conditional_shutdown(
                signal,
                i32::from(INTERRUPTED),
                Arc::clone(&flag),
            ));
            drop(signal_hook::flag::register(signal, Arc::clone(&flag)));
        }
        Self { interrupt: flag, lines: None }
    }

    fn interrupts(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }

    /// What was typed, if anything. There is one reader of stdin, from the first asking on.
    fn typed(&mut self) -> Result<String, TryRecvError> {
        self.lines.get_or_insert_with(read_lines).try_recv()
    }
}

pub(super) fn login(
    context: &Context,
    args: LoginArgs,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let ways = desk::ways(args.way, args.no_browser, &desk::Desk::here());
    let mut person = Person::new();
    if let Some(file) = &args.batch {
        return batch::batch(context, file, &args, &ways, &mut person, screen);
    }
    let begin = LoginBegin {
        method: LoginMethod::Browser,
        org: args.org,
        account: args.account,
        email: None,
        issuer: args.issuer,
        timeout_secs: args.timeout,
        label: args.label,
        tags: Vec::new(),
        enabled: true,
    };
    match sign_in(context, begin, &ways, &mut person, screen)? {
        Outcome::Done(done) => {
            screen.answer(&Signed { signed_in: &done }, |_json| said(&done))?;
            screen.notes(&done.notes)?;
            screen.talk(
                "`codex` uses it from now on; `cmactl status` shows the pool, `cmactl login` adds \
                 another account.\n",
            )?;
            Ok(ExitCode::SUCCESS)
        },
        Outcome::Ended(_, refusal) => Err(refusal.into()),
        Outcome::Interrupted => {
            screen.refusal(&interrupted())?;
            Ok(ExitCode::from(INTERRUPTED))
        },
    }
}

fn interrupted() -> Refusal {
    Refusal::new(
        ErrorCode::Negative,
        "the sign-in was cancelled; nothing was changed",
        "run `cmactl login` again",
    )
}

fn said(done: &LoginDone) -> String {
    let what = if done.created { "Added" } else { "Signed in again:" };
    let name = clean(done.email.as_deref().unwrap_or(&done.name));
    let plan = done.plan.as_deref().map(|plan| format!(", plan {}", clean(plan)));
    let count = match done.accounts {
        1 => "1 account".to_owned(),
        n => format!("{n} accounts"),
    };
    format!(
        "{what} {name} (id {}{}). The pool has {count}.\n",
        clean(&done.account),
        plan.unwrap_or_default()
    )
}

/// One sign-in by the first way that is open.
fn sign_in(
    context: &Context,
    mut begin: LoginBegin,
    ways: &[Way],
    person: &mut Person,
    screen: &mut Screen,
) -> Result<Outcome, Failure> {
    let mut client = context.connect()?;
    let (mut refused, mut last): (Option<Refusal>, Option<Refusal>) = (None, None);
    for way in ways {
        if let Some(refusal) = &last {
            let next = way.method_name();
            screen.say(
                Tone::Warn,
                "note",
                &format!("{}; trying {next}", clean(&refusal.message)),
            )?;
        }
        begin.method = way.method;
        match call(&mut client, LoginRequest::Begin(begin.clone())) {
            Ok(LoginReply::Started(started)) => {
                return wait(&mut client, &started, *way, person, screen);
            },
            // Taken ports, no codes here: another way may be open. The reason to tell in the end is
            // that of the first way, which fits best.
            Ok(LoginReply::Ended {
                end: LoginEnd::PortsTaken | LoginEnd::NoDeviceCodes,
                refusal,
            }) => {
                refused.get_or_insert_with(|| refusal.clone());
                last = Some(refusal);
            },
            Ok(LoginReply::Ended { end, refusal }) => return Ok(Outcome::Ended(end, refusal)),
            Ok(other) => return Err(unexpected(other).into()),
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Err(refused.unwrap_or_else(interrupted).into())
}

fn call(client: &mut Client, step: LoginRequest) -> Result<LoginReply, Refusal> {
    match client.call(&Request::Login(step))? {
        Reply::Login(reply) => Ok(*reply),
        other => Err(unexpected(other)),
    }
}

/// Shows where to go and waits for the end.
fn wait(
    client: &mut Client,
    started: &LoginStarted,
    way: Way,
    person: &mut Person,
    screen: &mut Screen,
) -> Result<Outcome, Failure> {
    if screen.json() {
        let notice = started.first.then_some(show::NOTICE);
        screen.object(&Begun { started, notice })?;
    } else if started.first {
        screen.talk(&show::notice())?;
    }
    screen.talk(&show::way(started, way, io::stderr().is_terminal()))?;
    if way.open
        && let Err(why) = desk::open(&started.url)
    {
        screen.say(Tone::Warn, "note", &format!("no browser could be opened ({why})"))?;
    }
    let asked = way.method == LoginMethod::Manual || !way.open;
    let pasting = way.method != LoginMethod::Device && (asked || io::stdin().is_terminal());
    drive(client, started, (way, pasting), person, screen)
}

fn drive(
    client: &mut Client,
    started: &LoginStarted,
    (way, mut pasting): (Way, bool),
    person: &mut Person,
    screen: &mut Screen,
) -> Result<Outcome, Failure> {
    let id = || started.id.clone();
    let mut patience = Patience::new();
    let (mut told, mut refused) = (Vec::new(), None);
    loop {
        let mut step = LoginRequest::Poll { id: id() };
        if person.interrupts() {
            step = LoginRequest::Cancel { id: id() };
        }
        match pasting.then(|| person.typed()) {
            Some(Ok(line)) if matches!(line.trim(), "" | "q" | "quit" | "cancel") => {
                // An empty line is a slip of the finger; a word is meant.
                if !line.trim().is_empty() {
                    step = LoginRequest::Cancel { id: id() };
                }
            },
            Some(Ok(url)) => step = LoginRequest::Paste { id: id(), url },
            Some(Err(TryRecvError::Disconnected)) if way.method == LoginMethod::Manual => {
                // Nothing more can come.
                drop(call(client, LoginRequest::Cancel { id: id() }));
                return Err(refused.unwrap_or_else(nothing_pasted).into());
            },
            Some(Err(TryRecvError::Disconnected)) => pasting = false,
            Some(Err(TryRecvError::Empty)) | None => {},
        }
        let pasted = matches!(step, LoginRequest::Paste { .. });
        match call(client, step) {
            Ok(LoginReply::Waiting(waiting)) => {
                for note in waiting.notes.iter().filter(|note| !told.contains(*note)) {
                    screen.say(Tone::Warn, "note", &clean(note))?;
                }
                told.clone_from(&waiting.notes);
                // Where something is typed, nothing may move.
                if way.open || way.method == LoginMethod::Device || waiting.stage != "person" {
                    patience.tick(screen, &show::waiting(&waiting, way))?;
                }
            },
            Ok(LoginReply::Done(mut done)) => {
                done.notes.retain(|note| !told.contains(note));
                return Ok(Outcome::Done(done));
            },
            Ok(LoginReply::Ended { .. }) if person.interrupts() => return Ok(Outcome::Interrupted),
            Ok(LoginReply::Ended { end, refusal }) => return Ok(Outcome::Ended(end, refusal)),
            Ok(other @ LoginReply::Started(_)) => return Err(unexpected(other).into()),
            Err(refusal) if pasted => {
                if !screen.json() {
                    screen.refusal(&refusal)?;
                }
                refused = Some(refusal);
            },
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

fn nothing_pasted() -> Refusal {
    Refusal::new(
        ErrorCode::BadRequest,
        "stdin ended before an address was pasted",
        "run `cmactl login --manual` in a terminal, or pipe the address in",
    )
}

/// What is typed, line by line. The thread ends with stdin or with the program.
fn read_lines() -> Receiver<String> {
    // A person pastes one line; a pipe waits for its turn.
    let (lines, read) = sync_channel(4);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    read
}

#[cfg(test)]
mod tests;

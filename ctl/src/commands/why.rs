//! `why`: how a choice was or would be made.

use super::{Context, choose};
use crate::{
    cli::choosing::WhyArgs,
    error::{Failure, unexpected},
    render::{
        Column, Screen, Tone, clean, put, table,
        time::{self, Clock},
    },
};
use cma_proto::{
    choose::{ChooseReply, ChooseRequest, Explained},
    message::{Candidate, Why},
};
use serde::Serialize;
use std::process::ExitCode;

/// One object: how the choice was made, with what it cost and meant.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    why: &'a Why,
    strategy: &'a str,
    by: &'a str,
    able: u32,
    warm: Option<Warm<'a>>,
    cache: &'a str,
    cost_us: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Warm<'a> {
    account: &'a str,
    tokens: u32,
}

pub(super) fn why(
    context: &Context,
    args: WhyArgs,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let WhyArgs { now: _, last, request, project } = args;
    let request = request.or_else(|| last.then(|| "last".to_owned()));
    let dir = choose::here(project)?;
    let explanation = match choose::ask(context, ChooseRequest::Why { request, dir })? {
        ChooseReply::Why(explanation) => *explanation,
        other => return Err(unexpected(other).into()),
    };
    let Explained { why, strategy, by, able, warm, cache, cost_us } = &explanation;
    let warm = warm.as_ref().map(|(account, tokens)| Warm { account, tokens: *tokens });
    let (able, cost_us) = (*able, *cost_us);
    let shown = Shown { why, strategy, by, able, warm, cache, cost_us };
    screen.answer(&shown, |shown| {
        explained(shown.why, time::now(), &Clock::local()) + &meant(shown)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the choice meant beside who was chosen.
fn meant(shown: &Shown<'_>) -> String {
    let mut text = String::from("\n");
    let mut line = |word: &str, said: &str| {
        put!(text, "{} {}\n", Tone::Dim.paint(format!("{word:<9}")), clean(said));
    };
    let by = match shown.by {
        "force" => " · a force is on",
        "pin" => " · an account is pinned",
        "launch" => " · the launch names its accounts",
        _ => "",
    };
    line("strategy", &format!("{}{by} · {} could serve", shown.strategy, shown.able));
    line("cache", shown.cache);
    if let Some(cost) = shown.cost_us {
        line("cost", &format!("{cost} µs"));
    }
    text
}

fn explained(why: &Why, now: u64, clock: &Clock) -> String {
    let mut text = String::new();
    let chosen = why.chosen.as_ref().map(|id| {
        let named = why.candidates.iter().find(|candidate| &candidate.account == id);
        Tone::Strong.paint(clean(named.map_or(id, |candidate| &candidate.name)))
    });
    let by = clean(&why.decided_by);
    match (&why.request, chosen) {
        (None, Some(chosen)) => put!(text, "A request now would go to {chosen}: {by}\n"),
        (None, None) => put!(text, "A request now would be refused: {by}\n"),
        (Some(request), chosen) => {
            let request = clean(request);
            let chosen = chosen.unwrap_or_else(|| Tone::Bad.paint("no account"));
            put!(text, "Request {request} went to {chosen} ({}): {by}\n", clock.date(why.at));
        },
    }
    if let Some(at) = why.retry_at {
        put!(text, "It can be tried again {}.\n", time::relative(at, now));
    }
    text.push('\n');
    text += &candidates(&why.candidates);
    if !why.attempts.is_empty() {
        text += "\nAttempts:\n";
    }
    for (n, attempt) in why.attempts.iter().enumerate() {
        put!(text, "  {}. {}\n", n + 1, clean(attempt));
    }
    text
}

/// One column a key: what decided is where two rows first differ, read from the left.
fn candidates(candidates: &[Candidate]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in candidates.iter().flat_map(|candidate| &candidate.keys) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let shown: Vec<String> = names.iter().map(|name| clean(name)).collect();
    let led = [Column::Right("#"), Column::Left("account"), Column::Left("could serve")];
    let columns: Vec<Column<'_>> =
        led.into_iter().chain(shown.iter().map(|name| Column::Left(name))).collect();
    let row = |(n, candidate): (usize, &Candidate)| {
        let serve = match &candidate.excluded {
            None => Tone::Good.paint("yes"),
            Some(why) => Tone::Warn.paint(format!("no: {}", clean(why))),
        };
        let key = |name: &&str| {
            let found = candidate.keys.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| clean(value)).unwrap_or_default()
        };
        let led = [(n + 1).to_string(), clean(&candidate.name), serve];
        led.into_iter().chain(names.iter().map(key)).collect()
    };
    table(&columns, candidates.iter().enumerate().map(row).collect())
}

#[cfg(test)]
mod tests;

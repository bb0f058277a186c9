//! `why`: how a choice was or would be made.

use super::Context;
use crate::{
    error::{Failure, unexpected},
    render::{
        Column, Screen, Tone, clean, put, table,
        time::{self, Clock},
    },
};
use cma_proto::message::{Candidate, Reply, Request, Why};
use std::process::ExitCode;

pub(super) fn why(
    context: &Context,
    request: Option<String>,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let why = match context.connect()?.call(&Request::Why { request })? {
        Reply::Why(why) => why,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&*why, |why| explained(why, time::now(), &Clock::local()))?;
    Ok(ExitCode::SUCCESS)
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

fn candidates(candidates: &[Candidate]) -> String {
    let columns = [
        Column::Right("#"),
        Column::Left("account"),
        Column::Left("could serve"),
        Column::Left("compared by"),
    ];
    let row = |(n, candidate): (usize, &Candidate)| {
        let serve = match &candidate.excluded {
            None => Tone::Good.paint("yes"),
            Some(why) => Tone::Warn.paint(format!("no: {}", clean(why))),
        };
        let keys: Vec<String> = candidate
            .keys
            .iter()
            .map(|(name, value)| format!("{} {}", Tone::Dim.paint(clean(name)), clean(value)))
            .collect();
        vec![(n + 1).to_string(), clean(&candidate.name), serve, keys.join(" · ")]
    };
    table(&columns, candidates.iter().enumerate().map(row).collect())
}

#[cfg(test)]
mod tests;

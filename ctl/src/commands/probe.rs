//! `probe`: how far accounts are used, asked of upstream.

use super::{Context, usage::ask};
use crate::{
    error::{Failure, unexpected},
    render::{Column, Patience, Screen, Tone, clean, put, table, time},
};
use cma_proto::{
    error::{ErrorCode, Refusal},
    usage::{ProbeInfo, ProbesInfo, UsageReply, UsageRequest},
};
use std::{process::ExitCode, time::Duration};

/// How often it is looked how far a run is.
const LOOK: Duration = Duration::from_millis(100);

/// `probe`: a start waits for the end of the run.
pub(super) fn probe(
    context: &Context,
    request: UsageRequest,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let follow = matches!(request, UsageRequest::ProbeStart { .. });
    let shown = run(context, request, screen)?;
    let now = time::now();
    screen.answer(&shown, |shown| picture(shown, now))?;
    let failed = shown.probes.iter().filter(|one| one.state == "failed").count();
    if follow && failed > 0 {
        return Err(Refusal::new(
            ErrorCode::Upstream,
            format!("{failed} of {} accounts could not be asked", shown.probes.len()),
            "what was known of them stands; run `cmactl status`, then try again",
        )
        .into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for probes; a run that begins is waited for.
pub(super) fn run(
    context: &Context,
    request: UsageRequest,
    screen: &mut Screen,
) -> Result<ProbesInfo, Failure> {
    let follow = matches!(request, UsageRequest::ProbeStart { .. });
    let mut client = context.connect()?;
    let mut shown = probes(ask(&mut client, request)?)?;
    let mut patience = Patience::new();
    while follow && shown.running {
        let ended = |one: &&ProbeInfo| !matches!(one.state.as_str(), "queued" | "running");
        let done = shown.probes.iter().filter(ended).count();
        patience.tick(screen, &format!("{done} of {} accounts asked", shown.probes.len()))?;
        std::thread::sleep(LOOK);
        shown = probes(ask(&mut client, UsageRequest::ProbeShow)?)?;
    }
    Ok(shown)
}

fn probes(reply: UsageReply) -> Result<ProbesInfo, Failure> {
    match reply {
        UsageReply::Probes(shown) => Ok(shown),
        other => Err(unexpected(other).into()),
    }
}

fn picture(shown: &ProbesInfo, now: u64) -> String {
    if shown.probes.is_empty() {
        return "No account was asked for.\n".to_owned();
    }
    let columns = [
        Column::Left("account"),
        Column::Left("probe"),
        Column::Left("used"),
        Column::Left("known"),
        Column::Left("before"),
    ];
    let row = |one: &ProbeInfo| {
        let tone = match one.state.as_str() {
            "done" | "fresh" => Tone::Good,
            "failed" => Tone::Bad,
            _ => Tone::Dim,
        };
        let mut state = tone.paint(clean(&one.state));
        if let Some(error) = &one.error {
            put!(state, ": {}", clean(error));
        }
        let windows = one.windows.iter().map(|window| {
            let length =
                window.minutes.map_or_else(|| clean(&window.name), |it| time::span(it * 60));
            format!("{length} {:.0} %", window.used_percent)
        });
        let known = one.seen_at.map_or_else(String::new, |at| time::relative(at, now));
        let before = one.history.iter().rev().skip(1).take(4).map(|past| match past.used_percent {
            Some(used) => format!("{used:.0} %"),
            None => "–".to_owned(),
        });
        vec![
            clean(one.name.as_deref().unwrap_or(&one.account)),
            state,
            windows.collect::<Vec<_>>().join(" · "),
            format!("{} {}", clean(&one.confidence), Tone::Dim.paint(known)),
            Tone::Dim.paint(before.collect::<Vec<_>>().join(" ")),
        ]
    };
    table(&columns, shown.probes.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::plain;

    #[test]
    fn a_failed_probe_says_why_and_shows_what_is_still_known() {
        let one = ProbeInfo {
            account: "ab12".to_owned(),
            name: Some("work".to_owned()),
            state: "failed".to_owned(),
            error: Some("no answer from upstream".to_owned()),
            took_ms: None,
            confidence: "recent".to_owned(),
            seen_at: Some(1_000),
            windows: vec![cma_proto::message::WindowInfo {
                limit: "codex".to_owned(),
                name: "primary".to_owned(),
                used_percent: 41.6,
                minutes: Some(300),
                resets_at: None,
                seen_at: 1_000,
            }],
            history: Vec::new(),
        };
        let shown = ProbesInfo { running: false, probes: vec![one] };
        let text = plain(&picture(&shown, 4_600));
        for part in ["work", "failed: no answer", "5 h 42 %", "recent 1 h ago"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

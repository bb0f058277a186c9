//! `events`: the snapshot's epoch, then every change, until the daemon ends or Ctrl-C.

use super::{Context, end_on_interrupt, name_of};
use crate::{
    error::Failure,
    render::{
        Screen, Tone, clean, put,
        time::{self, Clock},
    },
};
use cma_proto::message::{Change, Event, Status, WindowInfo};
use std::{collections::BTreeMap, process::ExitCode};

pub(super) fn events(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    end_on_interrupt();
    let mut client = context.connect()?;
    let status = client.subscribe()?;
    let mut teller = Teller::new(Clock::local());
    let snapshot = Change::Snapshot { status: Box::new(status.clone()) };
    let mut event = Event { epoch: status.epoch, at_ms: time::now_ms(), change: snapshot };
    loop {
        screen.answer(&event, |event| teller.line(event))?;
        match client.next_event()? {
            Some(next) => event = next,
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Turns events into lines; remembers how accounts are called.
struct Teller {
    names: BTreeMap<String, String>,
    clock: Clock,
}

impl Teller {
    const fn new(clock: Clock) -> Self {
        Self { names: BTreeMap::new(), clock }
    }

    fn line(&mut self, event: &Event) -> String {
        let told = self.told(&event.change, event.at_ms / 1000);
        let at = self.clock.time_ms(event.at_ms);
        format!("{} {} {told}\n", Tone::Dim.paint(at), Tone::Dim.paint(event.epoch.to_string()))
    }

    fn name(&self, id: &str) -> String {
        self.names.get(id).cloned().unwrap_or_else(|| clean(id))
    }

    fn told(&mut self, change: &Change, now: u64) -> String {
        match change {
            Change::Snapshot { status } => self.snapshot(status),
            Change::Accounts { account, what } => format!("{} {}", self.name(account), clean(what)),
            Change::State { account, state, reason, until } => {
                let mut text = format!("{} is {}", self.name(account), clean(state));
                if let Some(until) = until.filter(|until| *until > now) {
                    put!(text, " for {}", time::span(until - now));
                }
                if let Some(reason) = reason {
                    put!(text, ": {}", clean(reason));
                }
                let tone = if state == "ready" { Tone::Good } else { Tone::Warn };
                tone.paint(text)
            },
            Change::Pin { account: Some(account) } => format!("pinned to {}", self.name(account)),
            Change::Pin { account: None } => "unpinned".to_owned(),
            Change::Quota { account, windows } => {
                let windows: Vec<String> = windows.iter().map(used).collect();
                Tone::Dim.paint(format!("{} used {}", self.name(account), windows.join(" · ")))
            },
            Change::Retry { request, account, reason } => Tone::Warn.paint(format!(
                "request {} goes on without {}: {}",
                clean(request),
                self.name(account),
                clean(reason)
            )),
            Change::Served { .. } => self.served(change),
            Change::Phase { phase } => format!("daemon {}", clean(phase)),
        }
    }

    fn snapshot(&mut self, status: &Status) -> String {
        let named = |account| clean(name_of(account));
        self.names = status.accounts.iter().map(|it| (it.id.clone(), named(it))).collect();
        let mut text = format!(
            "snapshot: epoch {}, {} accounts, daemon {}",
            status.epoch,
            status.accounts.len(),
            clean(&status.daemon.phase)
        );
        for note in &status.notes {
            put!(text, "; {}", clean(note));
        }
        text
    }

    fn served(&self, change: &Change) -> String {
        let Change::Served {
            request,
            account,
            model,
            status,
            outcome,
            attempts,
            first_byte_ms,
            total_ms,
            input_tokens,
            output_tokens,
            cached_tokens: _,
        } = change
        else {
            return String::new();
        };
        let mut text = format!("request {} ", clean(request));
        match account {
            Some(account) => put!(text, "served by {}", self.name(account)),
            None => text += "refused",
        }
        put!(text, ": {status} {}", clean(outcome));
        if let Some(model) = model {
            put!(text, " · {}", clean(model));
        }
        if let Some(first) = first_byte_ms {
            put!(text, " · first byte {first} ms");
        }
        put!(text, " · {total_ms} ms");
        if let (Some(input), Some(output)) = (input_tokens, output_tokens) {
            put!(text, " · {input} tokens in, {output} out");
        }
        if *attempts > 1 {
            put!(text, " · {attempts} attempts");
        }
        if outcome == "complete" { text } else { Tone::Warn.paint(text) }
    }
}

fn used(window: &WindowInfo) -> String {
    format!("{:.0} % of {}", window.used_percent, clean(&window.name))
}

#[cfg(test)]
mod tests;

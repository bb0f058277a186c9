//! Threads: where they run, and moving one by hand.

use super::Context;
use crate::{
    cli::SessionCommand,
    error::{Failure, unexpected},
    render::{Column, Screen, Tone, clean, put, table, time},
};
use cma_proto::{
    message::{Reply, Request},
    sessions::{
        SessionDetail, SessionInfo, SessionList, SessionMoved, SessionPin, SessionsReply,
        SessionsRequest,
    },
};
use std::process::ExitCode;

/// Shown without `--all`: what fits a screen.
const SCREEN: u32 = 30;

/// `cmactl session …`
pub(super) fn session(
    context: &Context,
    command: Option<SessionCommand>,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let request = match command.unwrap_or(SessionCommand::List { all: false }) {
        SessionCommand::List { all } => {
            SessionsRequest::List { limit: if all { u32::MAX } else { SCREEN } }
        },
        SessionCommand::Show { id } => SessionsRequest::Show { id },
        SessionCommand::Move { id, account, without_summary } => {
            SessionsRequest::Move { id, account, without_summary }
        },
        SessionCommand::Unpin { id } => SessionsRequest::Unpin { id },
    };
    let reply = match context.connect()?.call(&Request::Sessions(request))? {
        Reply::Sessions(reply) => reply,
        other => return Err(unexpected(other).into()),
    };
    match reply {
        SessionsReply::List(list) => screen.answer(&list, listed)?,
        SessionsReply::Shown(detail) => {
            screen.answer(&*detail, detailed)?;
            if !screen.json() {
                screen.notes(&detail.notes)?;
            }
        },
        SessionsReply::Moved(moved) => {
            screen.answer(&moved, said)?;
            screen.notes(&moved.notes)?;
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn said(moved: &SessionMoved) -> String {
    let id = clean(&moved.id);
    match &moved.pinned {
        Some(pin) => format!(
            "Thread {id} goes to {} from its next request on, while that can serve.\n",
            clean(&pin.account_name)
        ),
        None => format!("Thread {id}: the pool chooses.\n"),
    }
}

fn listed(list: &SessionList) -> String {
    if list.sessions.is_empty() {
        return "No thread has run yet.\n".to_owned();
    }
    let columns = [
        Column::Left("thread"),
        Column::Left("account"),
        Column::Left("model"),
        Column::Left("project"),
        Column::Right("requests"),
        Column::Right("cached"),
        Column::Left("seen"),
    ];
    let now = time::now();
    let row = |one: &SessionInfo| {
        let account = one.account_name.as_deref().map_or_else(|| "-".to_owned(), clean);
        let account = match &one.pinned {
            Some(pin) if Some(&pin.account) == one.account.as_ref() => {
                format!("{account} (pinned)")
            },
            Some(pin) => format!("{account} → {} (pinned)", clean(&pin.account_name)),
            None => account,
        };
        vec![
            clean(&one.id),
            account,
            clean(one.model.as_deref().unwrap_or("-")),
            clean(one.project.as_deref().unwrap_or("-")),
            one.requests.to_string(),
            cached(one),
            seen(one, now),
        ]
    };
    let mut text = table(&columns, list.sessions.iter().map(row).collect());
    if list.more > 0 {
        let more = format!("{} older: `cmactl session list --all`", list.more);
        put!(text, "{}\n", Tone::Dim.paint(more));
    }
    text
}

fn seen(one: &SessionInfo, now: u64) -> String {
    if one.live > 0 { Tone::Good.paint("now") } else { time::relative(one.last_seen_at, now) }
}

/// The share of what was sent that a prompt cache had.
fn cached(one: &SessionInfo) -> String {
    match one.input_tokens {
        0 => "-".to_owned(),
        input => format!("{} %", one.cached_tokens.saturating_mul(100) / input),
    }
}

fn detailed(detail: &SessionDetail) -> String {
    let one = &detail.session;
    let now = time::now();
    let text_of = |text: &Option<String>| clean(text.as_deref().unwrap_or("-"));
    let mut lines = vec![("thread", clean(&one.id))];
    if one.parent.is_some() {
        lines.push(("subagent of", text_of(&one.parent)));
    }
    lines.push(("account", text_of(&one.account_name)));
    if let Some(pin) = &one.pinned {
        lines.push(("pinned", pinned(pin, now)));
    }
    lines.extend([
        ("model", text_of(&one.model)),
        ("project", text_of(&one.project)),
        ("requests", one.requests.to_string()),
        ("cached", cached(one)),
        ("first seen", time::relative(one.first_seen_at, now)),
        ("last seen", seen(one, now)),
    ]);
    let mut text = String::new();
    for (name, value) in lines {
        put!(text, "{} {value}\n", Tone::Dim.paint(format!("{name:<11}")));
    }
    for moved in &detail.moves {
        put!(
            text,
            "{} {} to {}, {}: {}; dropped {}\n",
            Tone::Dim.paint(format!("{:<11}", "moved")),
            clean(&moved.from_name),
            clean(&moved.to_name),
            time::relative(moved.at, now),
            clean(&moved.reason),
            clean(&moved.dropped)
        );
    }
    text
}

fn pinned(pin: &SessionPin, now: u64) -> String {
    let summary = if pin.without_summary { ", without what was compacted if need be" } else { "" };
    format!("{}, {}{summary}", clean(&pin.account_name), time::relative(pin.since, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::plain;

    fn thread() -> SessionInfo {
        SessionInfo {
            id: "01a1fbe7-913e".to_owned(),
            account: Some("aa".to_owned()),
            account_name: Some("work".to_owned()),
            model: Some("gpt-5.5".to_owned()),
            requests: 12,
            input_tokens: 200,
            cached_tokens: 150,
            last_seen_at: time::now(),
            ..SessionInfo::default()
        }
    }

    fn pin(account: &str) -> SessionPin {
        SessionPin {
            account: account.to_owned(),
            account_name: format!("{account}-name\u{1b}[31m"),
            since: time::now(),
            without_summary: true,
        }
    }

    #[test]
    fn the_list_says_where_each_thread_runs() {
        assert_eq!(listed(&SessionList::default()), "No thread has run yet.\n");
        let here = SessionInfo { pinned: Some(pin("aa")), live: 1, ..thread() };
        let there = SessionInfo { pinned: Some(pin("bb")), input_tokens: 0, ..thread() };
        let list = SessionList { sessions: vec![thread(), here, there], more: 4 };
        let text = plain(&listed(&list));
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].contains("work  ") && lines[1].contains("75 %"), "{text}");
        assert!(
            lines[2].contains("work (pinned)") && lines[2].trim_end().ends_with("now"),
            "{text}"
        );
        assert!(lines[3].contains("work → bb-name [31m (pinned)"), "{text}");
        assert!(lines[4].contains("4 older"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn a_move_is_told_with_what_it_took() {
        let moved = cma_proto::sessions::SessionMove {
            at: time::now(),
            from: "aa".to_owned(),
            from_name: "work".to_owned(),
            to: "bb".to_owned(),
            to_name: "home".to_owned(),
            reason: "usage limit reached".to_owned(),
            dropped: "turn state, 3 reasoning items".to_owned(),
        };
        let session =
            SessionInfo { parent: Some("p".to_owned()), pinned: Some(pin("bb")), ..thread() };
        let detail = SessionDetail { session, moves: vec![moved], notes: Vec::new() };
        let text = plain(&detailed(&detail));
        assert!(text.contains("work to home, "), "{text}");
        assert!(
            text.contains("usage limit reached; dropped turn state, 3 reasoning items"),
            "{text}"
        );
        assert!(text.contains("subagent of p") && text.contains("bb-name"), "{text}");
    }
}

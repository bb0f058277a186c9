//! Tells a person what they would want to look up: the pool is low, a login is gone, an account is
//! back, nothing can serve. Off unless a way is set up.
//!
//! One task looks at the pool when it changes and once a minute, compares it with what it saw before
//! ([`watch`]) and tells the difference ([`send`]), one notice after another. In quiet hours it doesn't
//! look: what is still so when they end is told then. No request waits for any of it.

mod send;
mod watch;

use crate::{
    app::{App, Phase},
    clock,
    config::notify::{Kind, Notify},
    fault::Fault,
};
use cma_core::{account::State, time::Wall};
use cma_proto::{error::ErrorCode, usage::Notified};
use jiff::{Timestamp, tz::TimeZone};
use std::{sync::Arc, time::Duration};
use tokio::sync::broadcast::error::RecvError;
use watch::{Seen, Watch};

/// Changes come in bursts: a limit is a state, a quota and a retry.
const SETTLE: Duration = Duration::from_millis(300);
/// Quiet hours end and windows reset without a change being told.
const LOOK: Duration = Duration::from_secs(60);

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) kind: Kind,
    pub(crate) title: String,
    pub(crate) text: String,
    /// The account it is about, by id.
    pub(crate) account: Option<String>,
}

/// Watches the pool until the daemon flushes; ends at once when nobody is to be told.
pub(crate) async fn keep(app: Arc<App>) {
    let notify = &app.config.notify;
    if notify.is_off() {
        return;
    }
    let mut changes = app.actor.changes();
    let mut watch = Watch::new(notify.low);
    // What stood when another daemon handed over, that one has told.
    let mut known = app.before.pid().is_some();
    let mut flushing = std::pin::pin!(app.phases.reached(Phase::Flushing));
    loop {
        if !is_quiet(notify, &TimeZone::system(), clock::wall()) {
            let Some(seen) = look(&app).await else { return };
            if app.phases.handed_over() {
                return;
            }
            let mut news = watch.next(&seen, clock::wall());
            if std::mem::take(&mut known) {
                news.clear();
            }
            for notice in news {
                if notify.on.contains(&notice.kind) {
                    tracing::info!(kind = notice.kind.word(), text = notice.text, "notice");
                    send::all(&app.config, &notice).await;
                }
            }
        }
        tokio::select! {
            biased;
            () = &mut flushing => return,
            change = changes.recv() => match change {
                Ok(_) | Err(RecvError::Lagged(_)) => tokio::time::sleep(SETTLE).await,
                Err(RecvError::Closed) => return,
            },
            () = tokio::time::sleep(LOOK) => {},
        }
        // All that waits is one look's worth.
        while changes.try_recv().is_ok() {}
    }
}

/// Tells by every way that is set up that telling works.
///
/// # Errors
/// [`ErrorCode::Config`] when none is.
pub(crate) async fn test(app: &App) -> Result<Vec<Notified>, Fault> {
    let notify = &app.config.notify;
    if notify.is_off() {
        return Err(Fault::new(
            ErrorCode::Config,
            "no way of telling is set up",
            "add `[notify]` with `desktop = true`, `ntfy` or `command` to the root's `config.toml`, then \
             `cmactl daemon restart`",
        ));
    }
    let notice = Notice {
        kind: Kind::Test,
        title: "cma".to_owned(),
        text: "This is how cma tells you things.".to_owned(),
        account: None,
    };
    Ok(send::all(&app.config, &notice).await)
}

/// What the pool is like now; none when it is gone.
async fn look(app: &App) -> Option<Vec<Seen>> {
    app.actor
        .look(|pool, now| {
            pool.states(now)
                .map(|(account, state)| Seen {
                    id: account.id.clone(),
                    name: Arc::clone(&account.name),
                    // What any model can still take; a limit of one model's own is no low pool.
                    left: account.quota.headroom(None, now),
                    known: !account.quota.windows().is_empty(),
                    out_until: match &state {
                        State::Cooling(_, until) | State::Full(until) => Some(*until),
                        _ => None,
                    },
                    state,
                })
                .collect()
        })
        .await
        .ok()
}

fn is_quiet(notify: &Notify, zone: &TimeZone, now: Wall) -> bool {
    let Some(quiet) = notify.quiet else { return false };
    i64::try_from(now.millis())
        .ok()
        .and_then(|at| Timestamp::from_millisecond(at).ok())
        .and_then(|at| {
            let at = at.to_zoned(zone.clone());
            let (hour, minute) = (u16::try_from(at.hour()).ok()?, u16::try_from(at.minute()).ok()?);
            Some(quiet.has(hour * 60 + minute))
        })
        .unwrap_or(false)
}

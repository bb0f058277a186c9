//! The only stair between the core's types and the protocol's.

use crate::{
    actor::Gone, app::App, fault::Fault, proxy::trace::Trace, roster, store::record::Record,
};
use cma_core::{
    account::{Account, State},
    identity::AccountId,
    pool::Topic,
    quota::Quota,
    scope::{Pools, Scope},
    select::{Candidate, Need},
    time::Now,
};
use cma_proto::{
    VERSION,
    error::ErrorCode,
    message::{
        self, AccountInfo, Change, DaemonInfo, PinInfo, ProxyInfo, Status, UpstreamInfo, WindowInfo,
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

/// What the pool knows of an account, taken out of the actor.
struct Seen {
    state: State,
    generation: u64,
    expires_at: Option<u64>,
    in_flight: u32,
    served: u64,
    windows: Vec<WindowInfo>,
}

struct PoolSeen {
    epoch: u64,
    pin: Option<(AccountId, u64, Option<String>)>,
    next: Option<AccountId>,
    accounts: BTreeMap<AccountId, Seen>,
}

/// One pool at one epoch. An account's index is its place among all accounts of all pools, so that
/// it names the same one wherever it is typed.
pub(super) struct PoolShown {
    pub(super) epoch: u64,
    pub(super) pin: Option<PinInfo>,
    pub(super) next: Option<String>,
    pub(super) accounts: Vec<AccountInfo>,
    pub(super) notes: Vec<String>,
}

/// What `status` shows of a pool.
pub(super) async fn pool(app: &App, scope: Scope) -> Result<PoolShown, Fault> {
    let asked = Need { scope, ..Need::default() };
    let need = asked.clone();
    let seen = app
        .actor
        .look(move |pool, now| PoolSeen {
            epoch: pool.epoch(),
            pin: pool.pin_of(&need.scope).map(|(id, since)| {
                (id.clone(), since.secs(), pool.pin_yields_in(&need.scope, now))
            }),
            next: pool.next_for(&need, now).map(|account| account.id.clone()),
            accounts: pool
                .states(now)
                .map(|(account, state)| (account.id.clone(), seen(account, state, now)))
                .collect(),
        })
        .await
        .map_err(stopping)?;
    let records = app.roster.all();
    let pin =
        seen.pin.map(|(id, since, yielded)| PinInfo { account: id.to_string(), since, yielded });
    let accounts: Vec<_> = records
        .iter()
        .zip(1..)
        .filter(|(record, _index)| asked.scope.place(&Pools::of(&record.pools)).is_some())
        .map(|(record, index)| {
            let known = seen.accounts.get(&AccountId::from_written(&record.id));
            account(record, index, known)
        })
        .collect();
    Ok(PoolShown {
        epoch: seen.epoch,
        notes: notes(&records, pin.as_ref(), &accounts),
        pin,
        next: seen.next.map(|id| id.to_string()),
        accounts,
    })
}

/// The whole picture: the daemon and the global pool.
pub(crate) async fn status(app: &App) -> Result<Status, Fault> {
    let PoolShown { epoch, pin, next, accounts, mut notes } = pool(app, Scope::Global).await?;
    let (backend, issuer) = (&app.config.backend.authority, &app.config.issuer.authority);
    let mut first = app.roster.troubles().shown(backend, issuer);
    first.extend(super::survive::notes(app));
    first.extend(super::usage::notes(app));
    first.extend(app.proxy.surface.notes());
    first.extend(app.before.pid().map(|pid| {
        format!("the daemon before this one (pid {pid}) still serves what it had begun")
    }));
    first.extend(super::choose::notes(app).await);
    notes.splice(0..0, first);
    let all = app.roster.all().len();
    // Of a locked pool that is said already, and nothing is known of what is in there.
    if all == 0 && !app.roster.is_locked() {
        notes.push(
            "the pool is empty: `cmactl login` signs in, `cmactl import` takes over an `auth.json`"
                .to_owned(),
        );
    } else if all > accounts.len() {
        let more = all - accounts.len();
        let verb = if more == 1 { "account is" } else { "accounts are" };
        notes.push(format!("{more} more {verb} in projects alone: `cmactl project list`"));
    }
    Ok(Status {
        epoch,
        daemon: daemon(app),
        proxy: proxy(app),
        upstream: UpstreamInfo {
            backend: app.config.backend.base.clone(),
            issuer: app.config.issuer.base.clone(),
        },
        notes,
        pin,
        next,
        accounts,
    })
}

fn seen(account: &Account, state: State, now: Now) -> Seen {
    Seen {
        state,
        generation: account.token.generation.0,
        expires_at: account.token.expires.map(|at| at.millis() / 1000),
        in_flight: account.in_flight,
        served: account.served,
        windows: windows(&account.quota, now),
    }
}

pub(super) fn windows(quota: &Quota, now: Now) -> Vec<WindowInfo> {
    quota
        .windows()
        .iter()
        .map(|window| WindowInfo {
            limit: window.limit.to_string(),
            name: window.place.name().to_owned(),
            used_percent: window.used_at(now),
            minutes: window.minutes,
            resets_at: window.resets.map(cma_core::time::Wall::secs),
            seen_at: window.seen.millis() / 1000,
        })
        .collect()
}

fn account(record: &Record, index: u32, seen: Option<&Seen>) -> AccountInfo {
    let state = seen.map(|seen| &seen.state);
    AccountInfo {
        index,
        id: record.id.clone(),
        label: record.label.clone(),
        email: record.email.clone(),
        plan: record.plan.clone(),
        workspace: record.workspace.clone(),
        enabled: record.enabled,
        state: state.map_or("unknown", State::word).to_owned(),
        reason: state.and_then(State::reason),
        until: match state {
            Some(State::NeedsLogin(_, since)) => Some(since.millis() / 1000),
            Some(state) => state.until().map(cma_core::time::Wall::secs),
            None => None,
        },
        generation: seen.map_or(record.generation, |seen| seen.generation),
        token_expires_at: seen.and_then(|seen| seen.expires_at).or(record.expires_at),
        in_flight: seen.map_or(0, |seen| seen.in_flight),
        served: seen.map_or(0, |seen| seen.served),
        windows: seen.map(|seen| seen.windows.clone()).unwrap_or_default(),
        tags: record.tags.clone(),
    }
}

fn daemon(app: &App) -> DaemonInfo {
    DaemonInfo {
        pid: std::process::id(),
        version: VERSION.to_owned(),
        instance: app.instance.clone(),
        started_at: app.started_at,
        phase: if app.roster.is_locked() { "locked" } else { app.phases.now().word() }.to_owned(),
        root: app.root.path().display().to_string(),
        log: app.root.log_file().display().to_string(),
        environment: app.config.environment.clone(),
    }
}

fn proxy(app: &App) -> ProxyInfo {
    let counters = &app.proxy.traces.counters;
    ProxyInfo {
        url: app.url.clone(),
        active: counters.active.load(Ordering::Relaxed),
        connections: counters.connections.load(Ordering::Relaxed),
        served: counters.served.load(Ordering::Relaxed),
        failed: counters.failed.load(Ordering::Relaxed),
        retried: counters.retried.load(Ordering::Relaxed),
        refused: counters.refused.load(Ordering::Relaxed),
    }
}

fn notes(records: &[Arc<Record>], pin: Option<&PinInfo>, accounts: &[AccountInfo]) -> Vec<String> {
    let called = |id: &str| {
        records
            .iter()
            .find(|record| record.id == id)
            .map_or(id, |record| roster::name(record))
            .to_owned()
    };
    let mut notes = Vec::new();
    if let Some(PinInfo { account, yielded: Some(why), .. }) = pin {
        notes.push(format!(
            "the pin on `{}` yields ({why}) and returns by itself; `cmactl unpin` takes it away",
            called(account)
        ));
    }
    for account in accounts.iter().filter(|account| account.state == "needs_login") {
        notes.push(format!(
            "`{}` needs a login ({}): run `cmactl login {}` (or `cmactl import` a fresh login)",
            called(&account.id),
            account.reason.as_deref().unwrap_or("its credential is gone"),
            account.id
        ));
    }
    notes
}

/// A change as the protocol tells it; none when its account has gone meanwhile.
pub(crate) async fn change(app: &App, topic: &Topic) -> Option<Change> {
    match topic {
        Topic::Pin => {
            let pin =
                app.actor.look(|pool, _now| pool.pin().map(|(id, _since)| id.to_string())).await;
            Some(Change::Pin { account: pin.ok()? })
        },
        Topic::Accounts(id) => {
            let what = if app.roster.get(id).is_some() { "updated" } else { "removed" };
            Some(Change::Accounts { account: id.to_string(), what: what.to_owned() })
        },
        Topic::State(id) => {
            let state = look(app, id, |account, now| account.state(now)).await?;
            Some(Change::State {
                account: id.to_string(),
                state: state.word().to_owned(),
                reason: state.reason(),
                until: state.until().map(cma_core::time::Wall::secs),
            })
        },
        Topic::Quota(id) => {
            let windows = look(app, id, |account, now| windows(&account.quota, now)).await?;
            Some(Change::Quota { account: id.to_string(), windows })
        },
    }
}

async fn look<T: Send + 'static>(
    app: &App,
    id: &AccountId,
    look: impl FnOnce(&Account, Now) -> T + Send + 'static,
) -> Option<T> {
    let id = id.clone();
    app.actor
        .look(move |pool, now| {
            pool.accounts()
                .iter()
                .find(|account| account.id == id)
                .map(|account| look(account, now))
        })
        .await
        .ok()
        .flatten()
}

/// A finished request as the protocol tells it.
pub(crate) fn served(trace: &Trace) -> Change {
    Change::Served {
        request: trace.id.to_string(),
        account: trace.account.as_ref().map(ToString::to_string),
        model: trace.model.as_ref().map(ToString::to_string),
        status: trace.status,
        outcome: trace.outcome.to_owned(),
        attempts: trace.tried,
        first_byte_ms: trace.first_byte_ms,
        total_ms: trace.total_ms,
        input_tokens: trace.usage.map(|usage| usage.input),
        cached_tokens: trace.usage.map(|usage| usage.cached),
        output_tokens: trace.usage.map(|usage| usage.output),
    }
}

/// Candidates as the protocol tells them, and what decided.
pub(crate) fn candidates(all: &[Candidate]) -> (Vec<message::Candidate>, Option<String>, String) {
    let mut eligible = all.iter().filter(|candidate| candidate.excluded.is_none());
    let (first, second) = (eligible.next(), eligible.next());
    let decided = match (first, second) {
        (None, _) => "no account can serve",
        (Some(_), None) => "it is the only one that can serve",
        (Some(first), Some(second)) => first.key.decided_against(&second.key),
    };
    let shown = all
        .iter()
        .map(|candidate| message::Candidate {
            account: candidate.id.to_string(),
            name: candidate.name.to_string(),
            excluded: candidate.said.clone(),
            keys: candidate.key.shown(),
        })
        .collect();
    (shown, first.map(|first| first.id.to_string()), decided.to_owned())
}

/// The daemon is going down.
pub(crate) fn stopping(_gone: Gone) -> Fault {
    Fault::new(ErrorCode::Draining, "the daemon is stopping", "run the command again in a moment")
}

//! What the requests about threads do: where they run, and a person's word on where they should.
//!
//! Moving a thread is a pin of its own, stronger than the pool's: durable first, then the pool, then
//! what requests look at. It counts from the thread's next request on; one under way is left alone.

use super::convert::stopping;
use crate::{app::App, blocking, clock, fault::Fault, roster};
use cma_core::{
    affinity::Told,
    identity::AccountId,
    pool::Input,
    scope::Scope,
    select::{self, Need},
    thread::{ByHand, Thread, Threads},
};
use cma_proto::{
    error::ErrorCode,
    message::Reply,
    sessions::{
        SessionDetail, SessionInfo, SessionList, SessionMove, SessionMoved, SessionPin,
        SessionsReply, SessionsRequest,
    },
};
use std::{cmp::Reverse, sync::Arc};

/// Threads in one answer: a screen or ten of them, and far below what a frame holds.
const MOST: usize = 500;
/// Candidates named when a prefix fits several.
const NAMED: usize = 4;

/// Answers one request of this family.
pub(super) async fn handle(app: &Arc<App>, request: SessionsRequest) -> Result<Reply, Fault> {
    Ok(Reply::Sessions(match request {
        SessionsRequest::List { limit } => SessionsReply::List(list(app, limit)),
        SessionsRequest::Show { id } => SessionsReply::Shown(Box::new(show(app, &id).await?)),
        SessionsRequest::Move { id, account, without_summary } => {
            SessionsReply::Moved(go(app, &id, &account, without_summary).await?)
        },
        SessionsRequest::Unpin { id } => SessionsReply::Moved(unpin(app, &id).await?),
    }))
}

/// Whether a request changes nothing, so that it is answered while the daemon goes down.
pub(super) const fn looks(request: &SessionsRequest) -> bool {
    matches!(request, SessionsRequest::List { .. } | SessionsRequest::Show { .. })
}

/// An account left the pool: nothing is pinned to it any more.
pub(super) fn forget(app: &App, account: &AccountId) {
    let mut threads = app.proxy.traces.threads.lock();
    let gone: Vec<_> = threads
        .by_hand()
        .iter()
        .filter(|(_key, by_hand)| by_hand.account == *account)
        .map(|(key, _by_hand)| Arc::clone(key))
        .collect();
    for key in gone {
        threads.hand(&key, None);
    }
}

/// Tells the pool of pins that became readable.
pub(super) async fn tell_pins(app: &App) -> Result<(), Fault> {
    for (key, pin) in app.pins.all() {
        tell(app, &key, Some(pin)).await?;
    }
    Ok(())
}

async fn tell(app: &App, key: &Arc<str>, pin: Option<ByHand>) -> Result<(), Fault> {
    let account = pin.as_ref().map(|pin| pin.account.clone());
    let told = Told::Pin(Arc::clone(key), account);
    app.actor.command(Input::Thread(told)).await.map_err(stopping)?;
    app.proxy.traces.threads.lock().hand(key, pin);
    Ok(())
}

fn list(app: &App, limit: u32) -> SessionList {
    let threads = app.proxy.traces.threads.lock();
    let mut all: Vec<_> = threads.all().collect();
    all.sort_by_key(|(_key, thread)| (Reverse(thread.live > 0), Reverse(thread.last)));
    let limit = usize::try_from(limit).unwrap_or(MOST).min(MOST);
    let more = all.len().saturating_sub(limit);
    all.truncate(limit);
    let sessions = all.into_iter().map(|(key, thread)| info(app, &threads, key, thread)).collect();
    SessionList { sessions, more: u32::try_from(more).unwrap_or(u32::MAX) }
}

async fn show(app: &App, id: &str) -> Result<SessionDetail, Fault> {
    let (key, thread) = find(app, id)?;
    let pinned = app.proxy.traces.threads.lock().by_hand().get(&key).cloned();
    let notes = match pinned {
        Some(pin) => yields(app, &thread.scope, pin.account).await?.into_iter().collect(),
        None => Vec::new(),
    };
    let session = info(app, &app.proxy.traces.threads.lock(), &key, &thread);
    let moves = thread.moves.iter().map(|moved| SessionMove {
        at: moved.at.secs(),
        from: moved.from.to_string(),
        from_name: name_of(app, &moved.from),
        to: moved.to.to_string(),
        to_name: name_of(app, &moved.to),
        reason: moved.reason.to_string(),
        dropped: moved.dropped.to_string(),
    });
    Ok(SessionDetail { session, moves: moves.collect(), notes })
}

async fn go(
    app: &Arc<App>,
    id: &str,
    account: &str,
    without_summary: bool,
) -> Result<SessionMoved, Fault> {
    app.pins.writable()?;
    let (key, thread) = find(app, id)?;
    let record = app.roster.select(account)?;
    let account = AccountId::from_written(&record.id);
    let seen = account.clone();
    let pools = app.actor.look(move |pool, _now| {
        pool.accounts().iter().find(|account| account.id == seen).map(|found| found.pools.clone())
    });
    let pools = pools.await.map_err(stopping)?;
    if pools.is_none_or(|pools| thread.scope.place(&pools).is_none()) {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            format!("`{}` is not in the pool that serves this thread", roster::name(&record)),
            "run `cmactl list` for the global pool, `cmactl list --project` for a folder's own",
        ));
    }
    let pin = ByHand { account: account.clone(), since: clock::wall(), without_summary };
    let (pins, kept, thread_key) = (Arc::clone(&app.pins), pin.clone(), Arc::clone(&key));
    blocking::disk(move || pins.set(&thread_key, Some(kept))).await?;
    tell(app, &key, Some(pin.clone())).await?;
    tracing::info!(thread = &*thread.id, account = account.as_str(), "thread moved by hand");
    let notes = yields(app, &thread.scope, account).await?.into_iter().collect();
    let pinned = Some(shown(app, &pin));
    Ok(SessionMoved { id: thread.id.to_string(), pinned, notes })
}

async fn unpin(app: &Arc<App>, id: &str) -> Result<SessionMoved, Fault> {
    app.pins.writable()?;
    let (key, thread) = find(app, id)?;
    let known = app.pins.all().iter().any(|(pinned, _pin)| *pinned == key);
    let mut notes = Vec::new();
    if known {
        let (pins, gone) = (Arc::clone(&app.pins), Arc::clone(&key));
        blocking::disk(move || pins.set(&gone, None)).await?;
        tell(app, &key, None).await?;
    } else {
        notes.push("it was not pinned".to_owned());
    }
    Ok(SessionMoved { id: thread.id.to_string(), pinned: None, notes })
}

/// Why a pin isn't followed now, when it isn't.
async fn yields(app: &App, scope: &Scope, account: AccountId) -> Result<Option<String>, Fault> {
    let need = Need { scope: scope.clone(), ..Need::default() };
    let why = app.actor.look(move |pool, now| {
        let found = pool.accounts().iter().find(|known| known.id == account)?;
        select::excluded(found, &need, now).map(|excluded| excluded.said(found, now))
    });
    let why = why.await.map_err(stopping)?;
    Ok(why.map(|why| format!("it can't serve now ({why}); others do until it can")))
}

/// The one thread of that id, or of an id that begins so. A pinned one is found when it isn't
/// remembered otherwise.
fn find(app: &App, id: &str) -> Result<(Arc<str>, Thread), Fault> {
    let wanted = id.trim().to_lowercase();
    let threads = app.proxy.traces.threads.lock();
    let mut all: Vec<(Arc<str>, Thread)> =
        threads.all().map(|(key, thread)| (Arc::clone(key), thread.clone())).collect();
    for key in threads.by_hand().keys().filter(|key| threads.get(key).is_none()) {
        let (project, id) = key.rsplit_once('/').map_or((None, &**key), |(p, id)| (Some(p), id));
        let scope = project.map_or(Scope::Global, crate::project::own_scope);
        all.push((Arc::clone(key), Thread { id: id.into(), scope, ..Thread::default() }));
    }
    drop(threads);
    let is = |exact: bool| {
        let wanted = &wanted;
        move |(key, thread): &(Arc<str>, Thread)| {
            [key, &thread.id].iter().any(|name| {
                let name = name.to_lowercase();
                if exact { name == *wanted } else { name.starts_with(wanted.as_str()) }
            })
        }
    };
    let exact = all.iter().any(is(true));
    all.retain(is(exact));
    let none = || {
        Fault::new(
            ErrorCode::NotFound,
            format!("there is no thread `{}`", id.trim()),
            "run `cmactl session list` to see them",
        )
    };
    if wanted.is_empty() || all.is_empty() {
        return Err(none());
    }
    if all.len() > 1 {
        let named: Vec<_> =
            all.iter().take(NAMED).map(|(key, _thread)| format!("`{key}`")).collect();
        let more = if all.len() > NAMED { " or others" } else { "" };
        return Err(Fault::new(
            ErrorCode::Ambiguous,
            format!("`{}` could be {}{more}", id.trim(), named.join(" or ")),
            "give more of its id",
        ));
    }
    all.pop().ok_or_else(none)
}

fn info(app: &App, threads: &Threads, key: &Arc<str>, thread: &Thread) -> SessionInfo {
    let text = |text: &Arc<str>| text.to_string();
    SessionInfo {
        id: thread.id.to_string(),
        parent: thread.session.as_ref().filter(|session| **session != thread.id).map(text),
        project: thread.scope.key().map(text),
        account: thread.account.as_ref().map(ToString::to_string),
        account_name: thread.account.as_ref().map(|account| name_of(app, account)),
        model: thread.model.as_ref().map(text),
        requests: thread.requests,
        live: thread.live,
        first_seen_at: thread.first.secs(),
        last_seen_at: thread.last.secs(),
        input_tokens: thread.input,
        cached_tokens: thread.cached,
        pinned: threads.by_hand().get(key).map(|pin| shown(app, pin)),
    }
}

fn shown(app: &App, pin: &ByHand) -> SessionPin {
    SessionPin {
        account: pin.account.to_string(),
        account_name: name_of(app, &pin.account),
        since: pin.since.secs(),
        without_summary: pin.without_summary,
    }
}

fn name_of(app: &App, id: &AccountId) -> String {
    app.roster.get(id).map_or_else(|| id.to_string(), |record| roster::name(&record).to_owned())
}

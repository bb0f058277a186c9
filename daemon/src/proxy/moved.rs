//! A thread's request on its way to an account that may be another than the one before.
//!
//! Decides what of it the account gets: which turn state, and the body with or without what another
//! workspace sealed. What is known of threads is the core's (`cma_core::thread`), and so is the edit
//! (`cma_core::bound`); this file reads a body only when one has to be edited, off the loop.
//!
//! First the request goes as it is. Refused for something sealed, it goes to the same account once
//! more without reasoning; refused again, what can't be read is a compaction, which stands for the
//! thread's past: then the thread stays with its account, waits for it, or its person is told in one
//! line what to type (`cmactl session move … --without-summary`).

use super::{
    Proxy,
    body::{REPLAY_LIMIT, Source, UpBody},
    headers,
    relay::Answer,
    respond,
    trace::Trace,
};
use crate::{blocking, clock, project::Bounds, roster, vault::Pass};
use bytes::Bytes;
use cma_core::{
    bound::{self, Dropped, Leave, Mark, Without},
    frame::Create,
    identity::AccountId,
    pool::Refused,
    select::Need,
    skim::Skim,
    thread::{Begun, Host, Names, Served, Threads, TurnState},
    time::Span,
};
use cma_proto::error::ErrorCode;
use http::{HeaderMap, HeaderName, HeaderValue, header, response};
use parking_lot::Mutex;
use std::{borrow::Cow, io::Read as _, sync::Arc};

/// Sticky within a turn, and to the account that gave it.
const TURN_STATE: HeaderName = HeaderName::from_static("x-codex-turn-state");
/// A body that unpacks to more than this is not edited: four times what is kept of one as it came.
const MAX_UNPACKED: usize = 4 * REPLAY_LIMIT;
/// The official CLI packs with zstd's own default.
const LEVEL: i32 = 3;

/// What is known of threads, shared by all requests. Held for a look-up at a time.
pub(crate) type Known = Arc<Mutex<Threads>>;

/// One request of a thread, over all its attempts.
#[derive(Debug)]
pub(super) struct Ride {
    known: Known,
    /// The thread, as its client names it.
    id: Option<Arc<str>>,
    /// The thread, as the pool names it.
    key: Option<Arc<str>>,
    turn: Option<Arc<str>>,
    /// The turn state that the client shows.
    shown: Option<HeaderValue>,
    packing: Packing,
    on: Option<Attempt>,
    /// Whether the thread's count of requests under way is to be lowered here.
    live: bool,
    /// Whether it only has what is new: what came before it is known where it goes.
    goes_on: bool,
    stuck: Option<Box<Stuck>>,
}

/// Where a request's bytes are read from when they have to be edited.
pub(super) trait Original: Sync {
    /// All of them; `None` when they can't be had.
    fn whole(&self) -> impl Future<Output = Option<Bytes>> + Send;
}

impl Original for Source {
    fn whole(&self) -> impl Future<Output = Option<Bytes>> + Send {
        Self::whole(self)
    }
}

/// A frame of a WebSocket.
impl Original for Bytes {
    fn whole(&self) -> impl Future<Output = Option<Self>> + Send {
        std::future::ready((self.len() <= MAX_UNPACKED).then(|| self.clone()))
    }
}

/// One account that gets it.
#[derive(Debug)]
struct Attempt {
    account: AccountId,
    workspace: Arc<str>,
    /// The account before, when it is another.
    from: Option<AccountId>,
    /// Why it isn't the one before.
    reason: String,
    state: TurnState,
    /// Boxed: most requests have none, and all are moved.
    edited: Option<Box<Edited>>,
}

/// A body without some of its parts.
#[derive(Debug, Clone)]
struct Edited {
    bytes: Bytes,
    without: Without,
    dropped: Dropped,
    foreign: Option<Mark>,
    lost: Option<Mark>,
    compactions_left: u32,
}

/// A compaction that an account can't read.
#[derive(Debug)]
struct Stuck {
    /// Who served the thread last, if that is known.
    owner: Option<AccountId>,
    there: AccountId,
}

/// What to do about a refusal of something sealed.
#[derive(Debug)]
pub(super) enum Foreign {
    /// Send it to the same account again; for the trace.
    Again(String),
    /// This account can't have it; for the trace.
    Elsewhere(String),
    /// It is not about what another account sealed: the client gets upstream's answer.
    Theirs,
}

/// How the client packed its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Zstd,
    /// In a way that can't be unpacked here.
    Other,
}

/// What a request says of itself: over HTTP in its headers, over a WebSocket in its frame.
#[derive(Debug)]
pub(super) struct Said<'a> {
    /// The thread that it is of.
    pub(super) thread: Option<Arc<str>>,
    /// What it says of its turn, as JSON; nothing where it says nothing.
    pub(super) metadata: &'a [u8],
    /// The turn state that it shows.
    pub(super) state: Option<HeaderValue>,
    packing: Packing,
}

impl<'a> Said<'a> {
    /// Of a request over HTTP.
    pub(super) fn of(told: &headers::Told<'a>) -> Self {
        let packing = match told.encoding.map(HeaderValue::as_bytes) {
            None | Some(b"identity") => Packing::Plain,
            Some(b"zstd") => Packing::Zstd,
            Some(_) => Packing::Other,
        };
        let metadata = told.metadata.map(HeaderValue::as_bytes).unwrap_or_default();
        Self { thread: told.thread(), metadata, state: told.state.cloned(), packing }
    }

    /// Of a frame: the handshake's, and what the frame itself says since then.
    pub(super) fn in_frame(create: &'a Create, handshake: &'a HeaderMap) -> Self {
        let thread = match create.thread() {
            Some(said) => Some(said).filter(|said| headers::is_name(said)).cloned(),
            None => headers::name(handshake, &headers::THREAD),
        };
        Self {
            thread,
            metadata: create.metadata().map_or_else(|| metadata(handshake), str::as_bytes),
            state: create.turn_state().and_then(|state| state.parse().ok()),
            packing: Packing::Plain,
        }
    }
}

fn metadata(headers: &HeaderMap) -> &[u8] {
    headers.get(&headers::METADATA).map(HeaderValue::as_bytes).unwrap_or_default()
}

/// What is read of a request's metadata.
#[derive(Default)]
struct Metadata<'a> {
    turn_id: Option<Cow<'a, str>>,
    /// The thread that a new one begins as a copy of (0.169.0, observed).
    forked_from_thread_id: Option<Cow<'a, str>>,
}

impl Ride {
    /// Takes a request in and says in `need` and `trace` which thread and turn it is of. It isn't counted
    /// as a request of its thread yet ([`Self::count`]): it may not be sent at all.
    pub(super) fn read(
        known: &Known,
        bounds: &Bounds,
        said: Said<'_>,
        need: &mut Need,
        trace: &mut Trace,
    ) -> Self {
        let Said { thread, metadata, state: shown, packing } = said;
        let id = thread.or_else(|| trace.session.clone());
        let key = bounds.session(id.as_ref());
        let metadata = Metadata::of(metadata);
        let turn = name(metadata.turn_id.as_deref());
        if let (Some(key), Some(from)) = (&key, name(metadata.forked_from_thread_id.as_deref()))
            && known.lock().get(key).is_none()
        {
            // What it copies is sealed for the account of the one before, and cached there.
            need.session = bounds.session(Some(&from));
        }
        need.thread.clone_from(&key);
        need.turn.clone_from(&turn);
        trace.thread.clone_from(&key);
        let known = Arc::clone(known);
        let (on, stuck) = (None, None);
        Self { known, id, key, turn, shown, packing, on, live: false, goes_on: false, stuck }
    }

    /// Counts it as a request of its thread, once.
    pub(super) fn count(&mut self, need: &Need, trace: &mut Trace) {
        if let (false, Some(key), Some(id)) = (self.live, &self.key, &self.id) {
            let session = trace.session.as_ref();
            let begun = Begun { id, session, scope: &need.scope, model: need.model.as_ref() };
            let Names { key, session, model } = self.known.lock().begin(key, &begun, clock::wall());
            self.live = true;
            // The trace outlives its request by hours; names of its own would hold the pages around them
            // for as long.
            trace.session = session;
            trace.model = trace.model.take().and(model);
            trace.thread = Some(Arc::clone(&key));
            self.key = Some(key);
        }
    }

    /// Says that it goes on from a response that is known where it goes.
    pub(super) const fn goes_on(&mut self) {
        self.goes_on = true;
    }

    /// Makes it ready for an account. Whether that account can have it at all.
    pub(super) async fn board(
        &mut self,
        proxy: &Proxy,
        account: &AccountId,
        pass: &Pass,
        source: &impl Original,
        need: &Need,
    ) -> bool {
        if self.on.as_ref().is_some_and(|on| on.account == *account) {
            return true;
        }
        let workspace = &pass.workspace_id;
        let host = Host { account, workspace };
        let met = self.key.as_ref().map(|key| {
            let (turn, shown) = (self.turn.as_ref(), self.shown.as_ref());
            self.known.lock().meet(key, host, turn, shown, clock::wall())
        });
        let met = met.unwrap_or_default();
        if met.unread {
            self.stuck = Some(Box::new(Stuck { owner: met.from, there: account.clone() }));
            return false;
        }
        let (edited, reason) = if met.without.is_nothing() && met.from.is_none() {
            (None, String::new())
        } else {
            Box::pin(async {
                let edited = self.edit(source, met.without).await;
                (edited.map(Box::new), self.why(proxy, met.from.as_ref(), account, need).await)
            })
            .await
        };
        let (account, workspace) = (account.clone(), Arc::clone(workspace));
        let (state, from) = (met.state, met.from);
        self.on = Some(Attempt { account, workspace, from, reason, state, edited });
        true
    }

    /// The body for an attempt; `None` when too much of it has gone by.
    pub(super) fn body(&self, source: &Source) -> Option<UpBody> {
        match self.edited() {
            Some(edited) => Some(UpBody::Whole(edited.bytes.clone())),
            None => source.attempt().map(UpBody::Replay),
        }
    }

    /// The headers for an attempt.
    pub(super) fn dress(&self, headers: &mut HeaderMap) {
        match self.on.as_ref().map(|on| &on.state) {
            Some(TurnState::Drop) => drop(headers.remove(TURN_STATE)),
            Some(TurnState::Own(state)) => drop(headers.insert(TURN_STATE, state.clone())),
            Some(TurnState::Shown) | None => {},
        }
        if let Some(edited) = self.edited() {
            headers.insert(header::CONTENT_LENGTH, edited.bytes.len().into());
        }
    }

    /// The frame for an attempt, when it is another than the client's own.
    pub(super) fn frame(&self) -> Option<&Bytes> {
        self.edited().map(|edited| &edited.bytes)
    }

    /// Which turn state the attempt gets; `None` where nothing is known of the thread.
    pub(super) fn turn_state(&self) -> Option<&TurnState> {
        let _known = self.key.as_ref()?;
        self.on.as_ref().map(|on| &on.state)
    }

    /// The account refused something sealed.
    pub(super) async fn refused(&mut self, source: &impl Original) -> Foreign {
        let Some(on) = &self.on else { return Foreign::Theirs };
        let (account, workspace) = (on.account.clone(), Arc::clone(&on.workspace));
        let before = on.edited.as_ref().map(|edited| edited.dropped).unwrap_or_default();
        let asked = on.edited.as_ref().map(|edited| edited.without).unwrap_or_default();
        let mut compactions = on.edited.as_ref().map_or(0, |edited| edited.compactions_left);
        if asked.reasoning != Leave::All {
            if let Some(key) = &self.key {
                self.known.lock().refused(key, &workspace, clock::wall());
            }
            let without = Without { reasoning: Leave::All, ..asked };
            let Some(edited) = Box::pin(self.edit(source, without)).await else {
                return Foreign::Theirs;
            };
            compactions = edited.compactions_left;
            if edited.dropped.sealed() > before.sealed() {
                return self.again(edited);
            }
        }
        if compactions == 0 {
            return Foreign::Theirs;
        }
        if self.may_lose(&account) {
            let without = Without { reasoning: Leave::All, compaction: Leave::All, ..asked };
            return match Box::pin(self.edit(source, without)).await {
                Some(edited) => self.again(edited),
                None => Foreign::Theirs,
            };
        }
        if let Some(key) = &self.key {
            self.known.lock().unread(key, &workspace);
        }
        let owner = self.on.take().and_then(|on| on.from);
        self.stuck = Some(Box::new(Stuck { owner, there: account }));
        Foreign::Elsewhere("it can't read what the thread's compaction left".to_owned())
    }

    fn again(&mut self, edited: Edited) -> Foreign {
        let reason = format!(
            "it can't read what another account sealed; sent again without {}",
            edited.dropped
        );
        if let Some(on) = &mut self.on {
            on.edited = Some(Box::new(edited));
        }
        Foreign::Again(reason)
    }

    /// An answer begins: what it took is remembered and told.
    pub(super) fn delivered(&mut self, proxy: &Proxy, parts: &response::Parts, trace: &mut Trace) {
        // From here on the trace's end is the request's.
        self.live = false;
        if parts.status.is_success() {
            self.shown(proxy, parts.headers.get(TURN_STATE), trace);
        }
    }

    /// The same for an answer that is a good one, by the turn state that came with it.
    pub(super) fn shown(&mut self, proxy: &Proxy, state: Option<&HeaderValue>, trace: &mut Trace) {
        self.live = false;
        let Some(on) = self.on.take() else { return };
        let edited = on.edited.as_ref();
        let mut dropped = edited.map(|edited| edited.dropped).unwrap_or_default();
        dropped.turn_state = self.shown.is_some() && on.state == TurnState::Drop;
        if let Some(from) = &on.from {
            let names = (name_of(proxy, from), name_of(proxy, &on.account));
            let why = &on.reason;
            trace
                .attempts
                .push(format!("moved from {} to {} ({why}): dropped {dropped}", names.0, names.1));
        } else if !dropped.is_nothing() {
            trace.attempts.push(format!("{}: dropped {dropped} of another account", on.account));
        }
        let Some(key) = &self.key else { return };
        let mut known = self.known.lock();
        // What is not in it stays what it was.
        let kept = known.get(key).filter(|_thread| self.goes_on).and_then(|thread| thread.foreign);
        let served = Served {
            host: Host { account: &on.account, workspace: &on.workspace },
            turn: self.turn.as_ref(),
            state,
            foreign: edited.and_then(|edited| edited.foreign).or(kept),
            lost: edited.and_then(|edited| edited.lost),
            reason: on.reason,
            dropped,
        };
        known.served(key, served, clock::wall());
    }

    /// Whether an account was ruled out because it can't read the thread's compaction.
    pub(super) const fn is_stuck(&self) -> bool {
        self.stuck.is_some()
    }

    /// The line for a thread that can't go on by itself.
    pub(super) fn stuck(&self, proxy: &Proxy, refused: &Refused) -> Answer {
        let owner = self.stuck.as_ref().and_then(|stuck| stuck.owner.as_ref());
        let owner = owner.and_then(|owner| proxy.roster.get(owner));
        let whose = match owner.as_deref().map(roster::name) {
            None => "no account that can serve now can read what was compacted".to_owned(),
            Some(name) => {
                let why = refused.reasons.iter().find(|(known, _why)| **known == *name);
                let why = why.map_or(String::new(), |(_name, why)| format!(" ({why})"));
                format!("only `{name}`{why} can read what was compacted")
            },
        };
        let wait = refused.retry_at.map_or(String::new(), |at| {
            format!("try again in {}, or ", spoken(at.since(clock::wall())))
        });
        let known = self.known.lock();
        let id = self.key.as_ref().and_then(|key| known.get(key)).map(|thread| &*thread.id);
        let there = self.stuck.as_ref().map(|stuck| name_of(proxy, &stuck.there));
        let line = format!(
            "cma: this thread was compacted, and {whose}: {wait}run `cmactl session move {} {} --without-summary` to \
             go on without it.",
            id.unwrap_or("ID"),
            there.as_deref().unwrap_or("ACCOUNT"),
        );
        respond::stop(ErrorCode::Exhausted, &line)
    }

    fn edited(&self) -> Option<&Edited> {
        self.on.as_ref()?.edited.as_deref()
    }

    /// Whether its person said that it may go on there without what was compacted.
    fn may_lose(&self, account: &AccountId) -> bool {
        let known = self.known.lock();
        let by_hand = self.key.as_ref().and_then(|key| known.by_hand().get(key));
        by_hand.is_some_and(|by_hand| by_hand.without_summary && by_hand.account == *account)
    }

    /// The body without some parts; `None` when it can't be edited: then it goes as it is, and
    /// upstream says what it thinks.
    async fn edit(&self, source: &impl Original, without: Without) -> Option<Edited> {
        if without.is_nothing() || self.packing == Packing::Other {
            return None;
        }
        let (body, packing) = (source.whole().await?, self.packing);
        blocking::run(move || edit(&body, packing, without)).await.ok()?
    }

    /// Why it isn't the account before.
    async fn why(
        &self,
        proxy: &Proxy,
        from: Option<&AccountId>,
        to: &AccountId,
        need: &Need,
    ) -> String {
        let Some(from) = from.cloned() else { return String::new() };
        let (to, need) = (to.clone(), Need { exclude: Vec::new(), only: None, ..need.clone() });
        let look = proxy.actor.look(move |pool, now| {
            let thread = need.thread().map(|thread| pool.affinity().pinned(thread));
            if thread.flatten() == Some(&to) {
                return "moved by hand".to_owned();
            }
            let candidates = pool.explain(&need, now);
            let before = candidates.into_iter().find(|candidate| candidate.id == from);
            let excluded = before.map(|before| before.said);
            match excluded {
                None => "it left the pool".to_owned(),
                Some(Some(why)) => why,
                Some(None) if pool.pin_of(&need.scope).is_some_and(|(pin, _since)| *pin == to) => {
                    "the other one is pinned".to_owned()
                },
                Some(None) => "its last attempt failed".to_owned(),
            }
        });
        look.await.unwrap_or_default()
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        if let Some(key) = self.key.as_ref().filter(|_key| self.live) {
            self.known.lock().end(key, clock::wall());
        }
    }
}

/// A delivered answer has ended.
pub(super) fn ended(known: &Known, trace: &Trace) {
    let (Some(key), Some(_delivered)) = (&trace.thread, trace.first_byte_ms) else { return };
    let mut known = known.lock();
    known.end(key, clock::wall());
    if let Some(usage) = &trace.usage {
        known.used(key, usage.input, usage.cached);
    }
}

/// Unpacks, edits, packs.
fn edit(body: &[u8], packing: Packing, without: Without) -> Option<Edited> {
    let plain = unpacked(body, packing)?;
    let stripped = bound::strip(&plain, &without).ok()?;
    let bytes = match packing {
        Packing::Plain => stripped.json,
        Packing::Zstd => zstd::encode_all(stripped.json.as_slice(), LEVEL).ok()?,
        Packing::Other => return None,
    };
    Some(Edited {
        bytes: bytes.into(),
        without,
        dropped: stripped.dropped,
        foreign: stripped.reasoning,
        lost: stripped.compaction,
        compactions_left: stripped.compactions_left,
    })
}

fn unpacked(body: &[u8], packing: Packing) -> Option<Cow<'_, [u8]>> {
    match packing {
        Packing::Plain => Some(Cow::Borrowed(body)),
        Packing::Zstd => {
            let mut plain = Vec::new();
            let reader = zstd::Decoder::new(body).ok()?;
            reader.take(MAX_UNPACKED as u64 + 1).read_to_end(&mut plain).ok()?;
            (plain.len() <= MAX_UNPACKED).then_some(Cow::Owned(plain))
        },
        Packing::Other => None,
    }
}

impl<'a> Metadata<'a> {
    /// Reads it once for all that is asked of it; empty when a request says nothing of itself.
    fn of(written: &'a [u8]) -> Self {
        let mut said = Self::default();
        let read = Skim::whole(written, |skim, name| match name {
            b"turn_id" => skim.text(&mut said.turn_id),
            b"forked_from_thread_id" => skim.text(&mut said.forked_from_thread_id),
            _ => skim.pass(),
        });
        read.map(|()| said).unwrap_or_default()
    }
}

/// What is said as a name, within bounds.
fn name(said: Option<&str>) -> Option<Arc<str>> {
    said.filter(|name| !name.is_empty() && name.len() <= headers::MAX_NAME).map(Arc::from)
}

fn name_of(proxy: &Proxy, id: &AccountId) -> String {
    proxy.roster.get(id).map_or_else(|| id.to_string(), |record| roster::name(&record).to_owned())
}

/// A time to wait, for a person.
fn spoken(span: Span) -> String {
    let minutes = span.millis().div_ceil(60_000);
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("{minutes} min"),
        (hours, 0) => format!("{hours} h"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests;

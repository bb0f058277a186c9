//! One turn of a WebSocket: select an account, send, judge, deliver or go on.
//!
//! The rules are those of a turn over HTTP ([`crate::proxy::turn`]), with one difference: a frame that
//! builds on an earlier response can only be sent where that response is known. When it can't be, the
//! client is told so and sends everything again; the account is chosen anew then, with what was learned.

use super::{
    flow::{Chances, Ended, Flow, Source},
    frame::{self, Create},
    link::{Link, NoLink, Socket},
    session::{BROKEN, Leave, Session, say},
};
use crate::{
    actor::Lease,
    clock,
    proxy::{
        relay::Answer,
        respond,
        sniff::{End, Sniffer},
        trace::Trace,
    },
    trouble::Place,
    upstream::Failure,
    vault::Pass,
};
use cma_core::{
    identity::AccountId,
    pool::{Refused, Release},
    quota,
    select::Need,
    verdict::{self, Act, Mark, Outcome, Verdict},
};
use cma_proto::error::ErrorCode;
use http::{StatusCode, response};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Utf8Bytes, protocol::frame::coding::CloseCode};

/// As for a turn over HTTP.
const MAX_ATTEMPTS: u32 = 8;
/// As for a turn over HTTP.
const BUDGET: Duration = Duration::from_secs(120);
/// As for a turn over HTTP.
const MAX_WAIT: Duration = Duration::from_secs(8);
/// As for a turn over HTTP.
const FIRST_PAUSE: Duration = Duration::from_millis(150);
/// A handshake that takes longer is not worth waiting for while there is HTTP. The CLI gives up after
/// 15 s (`websocket_connect_timeout_ms`, 0.169.0).
const SHAKE: Duration = Duration::from_secs(10);
/// Bytes a second of a line that is slow and not broken.
const SLOWEST: usize = 32 * 1024;

/// A turn in progress.
pub(super) struct Turn {
    pub(super) frame: Utf8Bytes,
    pub(super) create: Create,
    need: Need,
    pub(super) trace: Trace,
    /// The account to renew and try once more after a 401.
    renewed: Option<AccountId>,
    pauses: u32,
    /// Upstream's last error as a frame, and whether the CLI stops on it.
    last: Option<(Utf8Bytes, bool)>,
    last_reason: String,
    pub(super) chances: Chances,
}

/// What an attempt leads to.
pub(super) enum Step {
    Again,
    /// A word of our own ends the turn.
    Say(Utf8Bytes),
    /// The turn is over.
    Over(Result<(), Leave>),
}

/// The way an attempt takes.
enum Way {
    Link(Lease),
    Http(Lease, Pass),
    Step(Step),
}

/// The time for something that large to leave as well: the time for an answer runs from there.
pub(super) fn patience(limit: Duration, bytes: usize) -> Duration {
    let seconds = u64::try_from(bytes / SLOWEST).unwrap_or(u64::MAX);
    limit.saturating_add(Duration::from_secs(seconds))
}

/// Counts a turn while it runs.
struct Active<'a>(&'a AtomicU32);

impl<'a> Active<'a> {
    fn new(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turn {
    pub(super) fn prewarm(&self) -> bool {
        self.create.is_prewarm()
    }

    /// Gives the account back with what was learned, and prepares the next attempt.
    fn apply(&mut self, session: &Session, lease: Lease, verdict: &Verdict) -> Option<u32> {
        let account = lease.account.clone();
        session.proxy.traces.retry(&mut self.trace, &account, &verdict.reason);
        self.last_reason.clone_from(&verdict.reason);
        let model = self.need.model.clone();
        lease.finish(Release { mark: verdict.mark.clone(), served: false, model });
        match verdict.act {
            // A connection that has lived its time: no fault of anybody's.
            Act::RetrySame if verdict.mark == Mark::Fine => self.need.only = Some(account),
            Act::RetrySame if self.renewed.as_ref() != Some(&account) => {
                // The next select on this account waits for its renewal.
                self.renewed = Some(account.clone());
                self.need.only = Some(account);
            },
            Act::RetrySame | Act::RetryOther | Act::Deliver => {
                self.need.only = None;
                self.need.exclude.push(account);
            },
            Act::Wait => return Some(self.pauses),
        }
        None
    }

    async fn pause(&mut self) {
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.pauses.min(5))).await;
        self.pauses += 1;
    }

    /// Whether it is worth waiting for an account, after having waited.
    async fn waited(&mut self, refused: &Refused) -> bool {
        let tried_only = !self.need.exclude.is_empty() || self.need.only.is_some();
        let left = MAX_WAIT.saturating_sub(self.trace.started.elapsed());
        let soon = refused
            .retry_at
            .map(|at| Duration::from_millis(at.since(clock::wall()).millis()))
            .filter(|wait| *wait <= left);
        if tried_only && refused.tried && !self.stops_here() {
            self.need.exclude.clear();
            self.need.only = None;
            self.pause().await;
            return true;
        }
        let Some(wait) = soon else { return false };
        self.need.exclude.clear();
        self.need.only = None;
        tokio::time::sleep(wait + Duration::from_millis(20)).await;
        true
    }

    /// Leaves out what upstream can't read, for one more attempt with the same account.
    fn unseal(&mut self, account: &AccountId) -> bool {
        let fits = self.chances.unsealed && self.create.previous_response_id.is_none();
        self.chances.unsealed = false;
        let Some(frame) = fits.then(|| frame::without_reasoning(&self.frame)).flatten() else {
            return false;
        };
        self.trace.attempts.push(format!("{account}: reasoning of another workspace left out"));
        self.frame = frame;
        self.need.only = Some(account.clone());
        true
    }

    /// Whether upstream's last error is already one on which the CLI stops by itself.
    fn stops_here(&self) -> bool {
        self.last.as_ref().is_some_and(|(_frame, stops)| *stops)
    }
}

impl Session {
    /// Serves a turn to its end.
    pub(super) async fn turn(
        &mut self,
        local: &mut Socket,
        frame: Utf8Bytes,
        create: Create,
    ) -> Result<(), Leave> {
        let proxy = Arc::clone(&self.proxy);
        let _active = Active::new(&proxy.traces.counters.active);
        let mut turn = self.begin(frame, create);
        loop {
            if turn.trace.tried >= MAX_ATTEMPTS || turn.trace.started.elapsed() > BUDGET {
                return self.give_up(local, turn, None).await;
            }
            let lease = match proxy.actor.select(turn.need.clone()).await {
                Err(_gone) => return Err(Leave::Close(CloseCode::Restart, "the daemon stops")),
                Ok(Ok(lease)) => lease,
                Ok(Err(refused)) => {
                    if Box::pin(turn.waited(&refused)).await {
                        continue;
                    }
                    return self.give_up(local, turn, Some(&refused)).await;
                },
            };
            match self.attempt(local, &mut turn, lease).await {
                Step::Again => {},
                Step::Say(frame) => return say(local, frame).await,
                Step::Over(over) => return over,
            }
        }
    }

    fn begin(&mut self, frame: Utf8Bytes, create: Create) -> Turn {
        let (mut frame, mut create) = (frame, create);
        // A prewarm that was answered here is sent with its turn.
        if let Some(warm) = self.warm.take()
            && create.previous_response_id.as_ref() == Some(&warm.id)
            && let Some(whole) = frame::whole(&frame, &warm.input)
        {
            frame = whole;
            create.previous_response_id = None;
        }
        let model = create.model.as_deref().map(Arc::from);
        let need =
            Need { session: self.bounds.session(self.name.as_ref()), model, ..self.bounds.need() };
        let trace = self.proxy.traces.begin(self.name.clone(), need.model.clone());
        Turn {
            frame,
            create,
            need,
            trace,
            renewed: None,
            pauses: 0,
            last: None,
            last_reason: String::new(),
            chances: Chances { unsealed: true, silence: true },
        }
    }

    async fn attempt(&mut self, local: &mut Socket, turn: &mut Turn, lease: Lease) -> Step {
        let account = lease.account.clone();
        let Some(pass) = self.proxy.vault.pass(&account, lease.generation) else {
            // It left the pool between the choice and now.
            turn.need.exclude.push(account);
            return Step::Again;
        };
        let keeps = |link: &Link| link.account == account && link.is_fresh();
        if let Some(old) = self.link.take_if(|link| !keeps(link)) {
            old.close().await;
        }
        if let Some(previous) = &turn.create.previous_response_id
            && !self.link.as_ref().is_some_and(|link| link.has_history)
        {
            tracing::debug!(request = %turn.trace.id, account = %account, "asks for the whole input");
            return Step::Say(frame::previous_not_found(previous));
        }
        match self.way(turn, lease, pass).await {
            Way::Link(lease) => self.over_link(local, turn, lease).await,
            Way::Http(lease, pass) => Box::pin(self.over_http(local, turn, lease, &pass)).await,
            Way::Step(step) => step,
        }
    }

    /// The way for this attempt, with the connection there if it is one over a WebSocket.
    async fn way(&mut self, turn: &mut Turn, lease: Lease, pass: Pass) -> Way {
        if self.link.is_some() {
            return Way::Link(lease);
        }
        if !self.proxy.sockets.breaker.lock().allows(Instant::now()) {
            return Way::Http(lease, pass);
        }
        let proxy = Arc::clone(&self.proxy);
        let limit = proxy.config.head_timeout.min(SHAKE);
        let open = Link::open(
            &proxy.upstream,
            &proxy.responses,
            (&lease.account, &pass),
            &self.head,
            limit,
        );
        let no_link = match Box::pin(open).await {
            Ok(link) => {
                proxy.sockets.breaker.lock().worked();
                proxy.roster.troubles().gone(Place::Backend);
                self.link = Some(link);
                return Way::Link(lease);
            },
            Err(no_link) => no_link,
        };
        Box::pin(self.no_link(turn, lease, pass, no_link)).await
    }

    /// Judges a handshake that failed. What is the host's goes over HTTP; what is the account's is
    /// what it would be there.
    async fn no_link(&mut self, turn: &mut Turn, lease: Lease, pass: Pass, no_link: NoLink) -> Way {
        let now = clock::wall();
        let fail = |none: bool| {
            self.proxy.sockets.breaker.lock().failed(Instant::now(), none);
        };
        let (parts, bytes) = match no_link {
            NoLink::Failed(Failure::Connect(why)) => {
                let verdict = verdict::classify(&Outcome::ConnectFailed, now);
                let reason = format!("{}: {why}", verdict.reason);
                self.proxy.roster.troubles().met(Place::Backend, &reason);
                turn.trace.tried += 1;
                return Way::Step(self.judged(turn, lease, &Verdict { reason, ..verdict }).await);
            },
            NoLink::Failed(why) => {
                tracing::debug!(request = %turn.trace.id, ?why, "websocket handshake failed");
                fail(false);
                return Way::Http(lease, pass);
            },
            NoLink::TimedOut => {
                tracing::debug!(request = %turn.trace.id, "websocket handshake took too long");
                fail(false);
                return Way::Http(lease, pass);
            },
            NoLink::Refused(parts, bytes) => (parts, bytes),
        };
        let status = parts.status.as_u16();
        tracing::debug!(request = %turn.trace.id, status, "websocket handshake refused");
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        match status {
            404 | 405 | 426 | 501 => fail(true),
            403 if json.is_none() => fail(false),
            500..=599 => fail(false),
            _ => {
                turn.trace.tried += 1;
                return Way::Step(self.refused(turn, lease, &parts, &bytes).await);
            },
        }
        Way::Http(lease, pass)
    }

    /// Judges an HTTP answer that is no success.
    pub(super) async fn refused(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
        parts: &response::Parts,
        bytes: &[u8],
    ) -> Step {
        lease.quota_seen(quota::from_headers(&parts.headers, clock::wall()));
        let json: Option<Value> = serde_json::from_slice(bytes).ok();
        let page = verdict::is_page(parts.status, &parts.headers);
        let outcome = if page {
            Outcome::Page(parts.status)
        } else {
            Outcome::Head { status: parts.status, headers: &parts.headers, body: json.as_ref() }
        };
        let verdict = verdict::classify(&outcome, clock::wall());
        if page {
            self.proxy.roster.troubles().met(Place::Backend, &verdict.reason);
            return self.judged(turn, lease, &verdict).await;
        }
        let stops = verdict::stops_the_cli(parts.status, json.as_ref());
        let frame = match parts.status {
            // Of an answer the CLI prints the body, of a frame of that status the frame.
            StatusCode::BAD_REQUEST => frame::stop(String::from_utf8_lossy(bytes).trim()),
            status => frame::wrap(status.as_u16(), &parts.headers, bytes),
        };
        if frame::is_foreign(bytes) && turn.unseal(&lease.account) {
            return Step::Again;
        }
        if verdict.act == Act::Deliver {
            self.ended(turn, lease, parts.status.as_u16(), &verdict, Sniffer::new(clock::wall()));
            return Step::Say(frame);
        }
        turn.last = Some((frame, stops));
        self.judged(turn, lease, &verdict).await
    }

    /// Applies a verdict on an attempt that showed nothing.
    pub(super) async fn judged(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
        verdict: &Verdict,
    ) -> Step {
        if turn.apply(self, lease, verdict).is_some() {
            turn.pause().await;
        }
        match &turn.create.previous_response_id {
            // It can't be sent anywhere else as it is.
            Some(previous) => Step::Say(frame::previous_not_found(previous)),
            None => Step::Again,
        }
    }

    async fn over_link(&mut self, local: &mut Socket, turn: &mut Turn, lease: Lease) -> Step {
        let frame = self.signed(turn, &lease.account);
        let Some(link) = &mut self.link else { return Step::Again };
        turn.trace.tried += 1;
        let proxy = Arc::clone(&self.proxy);
        let limit = proxy.config.head_timeout;
        let sent = tokio::time::timeout(patience(limit, frame.len()), link.send(frame)).await;
        let account = lease.account.clone();
        let mut flow = Flow::new(&proxy.sockets, &account, &mut turn.trace, limit, turn.chances);
        let ended = match sent {
            Ok(Ok(())) => flow.run(local, Source::Link(link), &mut self.next).await,
            Ok(Err(_)) | Err(_) => {
                let cut = verdict::classify(&Outcome::Cut, clock::wall());
                Ended::Hidden(cut, None)
            },
        };
        let sniffer = flow.sniffer;
        if matches!(ended, Ended::Final(None)) {
            link.has_history = true;
        } else if let Some(link) = self.link.take() {
            // What runs on it is nobody's any more.
            link.close().await;
        }
        self.settle(turn, lease, ended, sniffer).await
    }

    /// Draws the consequences of an attempt's end.
    pub(super) async fn settle(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
        ended: Ended,
        sniffer: Sniffer,
    ) -> Step {
        turn.trace.account = Some(lease.account.clone());
        let fine =
            |mark, reason: &str| Verdict { act: Act::Deliver, mark, reason: reason.to_owned() };
        match ended {
            Ended::Final(fault) => {
                let verdict = match &fault {
                    None => fine(Mark::Fine, ""),
                    Some(fault) => {
                        lease.quota_seen(fault.windows(clock::wall()));
                        fault.verdict(clock::wall())
                    },
                };
                self.ended(turn, lease, 200, &verdict, sniffer);
                Step::Over(Ok(()))
            },
            Ended::Hidden(verdict, said) => {
                if let Some((frame, fault)) = said {
                    lease.quota_seen(fault.windows(clock::wall()));
                    turn.last = Some((frame, fault.stops_the_cli()));
                }
                lease.quota_seen(sniffer.said().windows);
                self.judged(turn, lease, &verdict).await
            },
            Ended::Silent => {
                turn.chances.silence = false;
                let silent = verdict::classify(&Outcome::HeadTimeout, clock::wall());
                let reason = "it began and fell silent".to_owned();
                self.judged(turn, lease, &Verdict { reason, ..silent }).await
            },
            Ended::Foreign => {
                let account = lease.account.clone();
                drop(lease);
                if !turn.unseal(&account) {
                    // The next attempt shows what upstream says.
                    turn.need.only = Some(account);
                }
                match &turn.create.previous_response_id {
                    Some(previous) => Step::Say(frame::previous_not_found(previous)),
                    None => Step::Again,
                }
            },
            Ended::Broken(why) => {
                turn.trace.attempts.push(format!("{}: {why}", lease.account));
                self.ended(turn, lease, 200, &fine(Mark::Shaky, "cut"), sniffer);
                Step::Over(Err(BROKEN))
            },
            Ended::ClientGone => {
                turn.trace.status = 200;
                drop(lease);
                self.traced(turn, "abandoned");
                Step::Over(Err(Leave::Gone))
            },
        }
    }

    /// A turn whose answer was delivered: gives the account back, and notes it.
    fn ended(
        &self,
        turn: &mut Turn,
        lease: Lease,
        status: u16,
        verdict: &Verdict,
        sniffer: Sniffer,
    ) {
        let said = sniffer.said();
        let outcome = match (&said.end, verdict.mark.clone()) {
            (None, Mark::Shaky) => "cut",
            (Some(End::Completed | End::Incomplete), _) if status == 200 => "complete",
            _ => "failed",
        };
        turn.trace.account = Some(lease.account.clone());
        turn.trace.status = status;
        turn.trace.usage = said.usage;
        if !verdict.reason.is_empty() && outcome != "cut" {
            turn.trace.attempts.push(format!("{}: {}", lease.account, verdict.reason));
        }
        lease.quota_seen(said.windows);
        let served = outcome == "complete" && !turn.prewarm();
        let model = turn.need.model.clone();
        lease.finish(Release { mark: verdict.mark.clone(), served, model });
        self.traced(turn, outcome);
    }

    /// Keeps a turn's trace. A prewarm is no turn.
    fn traced(&self, turn: &mut Turn, outcome: &'static str) {
        turn.trace.outcome = outcome;
        if !turn.prewarm() {
            self.proxy.traces.end(turn.trace.clone());
        }
    }

    /// The final word.
    async fn give_up(
        &mut self,
        local: &mut Socket,
        mut turn: Turn,
        refused: Option<&Refused>,
    ) -> Result<(), Leave> {
        let ours: Answer = match refused {
            Some(refused) if refused.retry_at.is_some() && refused.quota => {
                respond::refused(refused)
            },
            _ if turn.stops_here() => {
                turn.trace.status = StatusCode::BAD_REQUEST.as_u16();
                self.traced(&mut turn, "failed");
                let Some((frame, _stops)) = turn.last.take() else { return Ok(()) };
                return say(local, frame).await;
            },
            Some(refused) if turn.trace.tried == 0 => respond::refused(refused),
            _ => respond::stop(
                ErrorCode::Upstream,
                &format!(
                    "cma: {} failed in {} attempts, the last one: {}. Run `cmactl why --request {}` for all of them.",
                    self.proxy.upstream.endpoint.authority,
                    turn.trace.tried,
                    turn.last_reason,
                    turn.trace.id
                ),
            ),
        };
        turn.trace.status = ours.status().as_u16();
        self.traced(&mut turn, "failed");
        say(local, frame::wrapped(ours).await).await
    }

    /// The turn's frame for an account: without a turn state that another one gave.
    fn signed(&self, turn: &Turn, account: &AccountId) -> Utf8Bytes {
        let foreign = turn
            .create
            .turn_state()
            .is_some_and(|state| !self.proxy.sockets.gave_state(state, account));
        let edited = foreign.then(|| frame::without_turn_state(&turn.frame)).flatten();
        edited.unwrap_or_else(|| turn.frame.clone())
    }
}

//! One turn: select an account, send, judge, deliver or go on.
//!
//! Failover happens only before the first byte is delivered (a stream's preamble is held back for it,
//! `held`), only while the body can be sent again, and within two budgets: attempts and time. When
//! the host fails for several accounts, nobody walks on: all wait (`host`). What an outcome means is the core's verdict; this file
//! applies it. When nothing is left, the client gets an answer on which it stops and speaks for
//! itself (`respond`), never one on which it loops.

mod begin;
mod blame;

use super::{
    Proxy,
    body::{BODY_LIMIT, Source, UpBody},
    books, headers,
    held::Ready,
    keys::Launch,
    moved::{Foreign, Ride},
    relay::{Accounts, Answer, Ending, Out, Relay},
    respond, shown,
    stated::Stated,
    trace::{Trace, millis},
};
use crate::{
    actor::Lease,
    clock,
    trouble::Place,
    upstream::{Driven, Failure},
};
use bytes::{Bytes, BytesMut};
use cma_core::{
    bound,
    budget::Blocked,
    cooldown::Cause,
    identity::AccountId,
    pool::{Input, Refused, Release},
    quota,
    select::Need,
    time::Span,
    verdict::{self, Act, Mark, Outcome, Verdict},
};
use cma_proto::error::ErrorCode;
use http::{HeaderMap, Request, Response, StatusCode, header, request, response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// Upstream attempts of one request, whatever happens. The CLI's own retries multiply nothing,
/// since it stops on the final answer.
const MAX_ATTEMPTS: u32 = 8;
/// No new attempt begins after this time: a person has given up by then.
const BUDGET: Duration = Duration::from_secs(120);
/// Longest wait for an account that comes back by itself (a throttle of seconds).
const MAX_WAIT: Duration = Duration::from_secs(8);
/// The same when upstream stated the wait; the CLI waits that long itself (0.169.0, observed).
const STATED_WAIT: Duration = Duration::from_secs(30);
/// Accounts whose tokens one request lets upstream refuse. Walks through a pool have got whole pools
/// revoked.
const MAX_REFUSED: usize = 2;
/// Rounds in which a host that refuses everybody's token is asked again: a few seconds.
const REFUSED_ROUNDS: u32 = 3;
/// First pause after a fault that all accounts share; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(150);
/// Read of an error's body: enough to judge it.
const MAX_ERROR: usize = 64 * 1024;
/// An error's body that doesn't come is judged without it.
const ERROR_TIMEOUT: Duration = Duration::from_secs(5);
/// Resets this close are one time to a person: the CLI tells minutes.
const SAME_TIME: Span = Span::from_secs(60);
/// Header values taken as names are bounded.
const MAX_NAME: usize = 256;
/// What older CLIs call their session (0.98.0 and 0.128.0, observed).
pub(super) const OLD_SESSION: &str = "session_id";

/// A turn in progress.
struct Turn {
    proxy: Arc<Proxy>,
    parts: request::Parts,
    source: Source,
    need: Need,
    trace: Trace,
    ride: Ride,
    /// The account to renew and try once more after a 401.
    renewed: Option<AccountId>,
    /// Accounts whose token was refused.
    refused_by: Vec<AccountId>,
    /// How often the host was found to refuse everybody's.
    refused_rounds: u32,
    /// Whether upstream stated how long to wait.
    stated: bool,
    /// Whether the request compacts its thread.
    compacts: bool,
    /// How often a stream's beginning was silent.
    silences: u32,
    pauses: u32,
    /// Waits that upstream stated with its own failures.
    rests: Stated,
    last: Option<Last>,
    last_reason: String,
    /// The budget of an account that would have served.
    over: Option<Blocked>,
    overhead: shown::Overhead,
}

/// The last error that upstream answered, whole.
struct Last {
    parts: response::Parts,
    bytes: Bytes,
    /// Whether the CLI stops on it by itself.
    stops: bool,
}

/// What one attempt leads to.
enum Step {
    /// Upstream's answer, with what is wrong with it if anything.
    Deliver(Lease, Box<Ready>, String),
    /// An answer of our own.
    Say(Answer),
    Again,
}

/// Serves a Responses request.
///
/// Boxed: kilobytes that would otherwise stay with the connection while the answer streams.
pub(crate) fn serve(
    proxy: Arc<Proxy>,
    launch: &Launch,
    request: Request<Incoming>,
) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
    let (mut parts, incoming) = request.into_parts();
    if incoming.size_hint().lower() > BODY_LIMIT {
        return Box::pin(std::future::ready(too_large()));
    }
    let session = name(&parts.headers, "session-id").or_else(|| name(&parts.headers, OLD_SESSION));
    let model = parts
        .headers
        .get("x-codex-routing-hint")
        .and_then(|value| value.to_str().ok())
        .and_then(|hint| hint.split(';').find_map(|part| part.trim().strip_prefix("model=")))
        .filter(|model| model.len() <= MAX_NAME)
        .map(Arc::from);
    let compacts = begin::is_compaction(&parts.headers);
    let overhead = shown::Overhead::asked(&proxy, &parts.headers);
    let bounds = &launch.bounds;
    let mut need =
        Need { session: bounds.session(session.as_ref()), model: model.clone(), ..bounds.need() };
    let mut trace = proxy.traces.begin(session, model);
    if let Some(blocked) = books::admit(&proxy, &mut trace, launch) {
        return Box::pin(std::future::ready(blocked));
    }
    let ride = Ride::begin(&proxy.traces.threads, bounds, &parts.headers, &mut need, &mut trace);
    parts.headers = headers::upwards(parts.headers, &proxy.host);
    let source = Source::new(incoming);
    let turn = Turn {
        proxy,
        parts,
        source,
        need,
        trace,
        ride,
        renewed: None,
        refused_by: Vec::new(),
        refused_rounds: 0,
        stated: false,
        compacts,
        silences: 0,
        pauses: 0,
        rests: Stated::default(),
        last: None,
        last_reason: String::new(),
        over: None,
        overhead,
    };
    Box::pin(turn.run())
}

fn too_large() -> Answer {
    respond::error(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::TooLarge,
        "the request is larger than any model takes",
    )
}

impl Turn {
    async fn run(mut self) -> Answer {
        loop {
            if self.trace.tried >= MAX_ATTEMPTS
                || self.refused_rounds > REFUSED_ROUNDS
                || self.trace.started.elapsed() > BUDGET
            {
                return self.give_up(None);
            }
            if let Some(pause) = self.proxy.health.waits() {
                if self.last_reason.is_empty() {
                    "the host fails for several accounts".clone_into(&mut self.last_reason);
                }
                tokio::time::sleep(pause).await;
                continue;
            }
            let lease = match self.proxy.actor.select(self.need.clone()).await {
                Err(_gone) => return respond::draining(),
                Ok(Ok(mut lease)) => match books::with(&self.trace, &lease.account) {
                    Ok(()) => {
                        self.trace.choice = lease.choice.take();
                        lease
                    },
                    Err(blocked) => {
                        self.need.exclude.push(lease.account.clone());
                        self.over = Some(blocked);
                        continue;
                    },
                },
                Ok(Err(refused)) if self.over.is_some() => return self.over_budget(&refused),
                Ok(Err(refused)) => {
                    if Box::pin(self.waited(&refused)).await {
                        continue;
                    }
                    return self.give_up(Some(&refused));
                },
            };
            self.rests.over(&lease.account).await;
            match self.attempt(lease).await {
                Step::Deliver(lease, ready, reason) => {
                    return self.deliver(lease, *ready, &reason);
                },
                Step::Say(answer) => return answer,
                Step::Again if self.source.client_failed() => return self.client_failed(),
                Step::Again => {},
            }
        }
    }

    /// No account is left but those whose budgets are used up.
    fn over_budget(&mut self, refused: &Refused) -> Answer {
        match self.over.take() {
            Some(blocked) if self.trace.tried == 0 => {
                books::blocked(&self.proxy, &mut self.trace, &blocked)
            },
            _ => self.give_up(Some(refused)),
        }
    }

    /// Whether it is worth waiting for an account, after having waited: one that comes back in
    /// moments or when upstream said, or the next round over accounts that only had the host's
    /// faults.
    async fn waited(&mut self, refused: &Refused) -> bool {
        let elapsed = self.trace.started.elapsed();
        let patience = if self.stated {
            STATED_WAIT.min(BUDGET.saturating_sub(elapsed))
        } else {
            MAX_WAIT.saturating_sub(elapsed)
        };
        let tried_only = !self.need.exclude.is_empty() || self.need.only.is_some();
        let soon = refused
            .retry_at
            .map(|at| Duration::from_millis(at.since(clock::wall()).millis()))
            .filter(|wait| *wait <= patience);
        if self.blamed() {
            return true;
        }
        if let Some(renewed) =
            self.renewed.as_ref().filter(|id| self.need.only.as_ref() == Some(id))
        {
            self.proxy.health.settled(renewed);
        }
        if self.refused_by.len() >= MAX_REFUSED {
            return false;
        }
        if tried_only && refused.tried && !self.stops_here() && !self.ride.is_stuck() {
            self.need.exclude.clear();
            self.need.only = None;
            self.pause().await;
            return true;
        }
        match soon {
            Some(wait) => {
                self.need.exclude.clear();
                self.need.only = None;
                tokio::time::sleep(wait + Duration::from_millis(20)).await;
                true
            },
            None => false,
        }
    }

    async fn attempt(&mut self, lease: Lease) -> Step {
        let account = lease.account.clone();
        let Some(pass) = self.proxy.vault.pass(&account, lease.generation) else {
            // It left the pool between the choice and now.
            self.need.exclude.push(account);
            return Step::Again;
        };
        if !self.ride.board(&self.proxy, &account, &pass, &self.source, &self.need).await {
            self.need.exclude.push(account);
            return Step::Again;
        }
        let Some(body) = self.ride.body(&self.source) else {
            return Step::Say(self.give_up_on(lease));
        };
        self.trace.tried += 1;
        let request = self.request(&pass, body);
        let mut repeats = 0;
        let outcome = {
            let (turn, source) = (&*self, &self.source);
            let again = || {
                turn.ride.body(source).map(|body| {
                    repeats += 1;
                    turn.request(&pass, body)
                })
            };
            // Pinned here: each future around it would be as large again.
            let send = std::pin::pin!(turn.proxy.upstream.send(&account, request, again));
            turn.overhead.upstream(turn.head_in_time(send)).await
        };
        self.trace.tried += repeats;
        match outcome {
            Ok(response)
                if response.status().is_success()
                    && !verdict::is_page(response.status(), response.headers()) =>
            {
                quota_seen(&lease, &response);
                self.begun(lease, Box::new(Ready::new(response))).await
            },
            Ok(response) => Box::pin(self.refused(lease, response)).await,
            Err(failure) => {
                if self.source.client_failed() {
                    return Step::Again;
                }
                let verdict = verdict::classify(&failure.outcome(), clock::wall());
                let reason = match failure {
                    Missed::Failed(Failure::Connect(why)) => {
                        let reason = format!("{}: {why}", verdict.reason);
                        self.proxy.roster.troubles().met(Place::Backend, &reason);
                        reason
                    },
                    _ => verdict.reason.clone(),
                };
                Box::pin(self.apply(lease, Verdict { reason, ..verdict }, false)).await
            },
        }
    }

    /// Judges an answer that is no success, or not upstream's own.
    async fn refused(&mut self, lease: Lease, response: Response<Driven>) -> Step {
        let status = response.status();
        if verdict::is_page(status, response.headers()) {
            let verdict = verdict::classify(&Outcome::Page(status), clock::wall());
            self.proxy.roster.troubles().met(Place::Backend, &verdict.reason);
            return self.apply(lease, verdict, false).await;
        }
        self.proxy.roster.troubles().gone(Place::Backend);
        quota_seen(&lease, &response);
        // What is delivered whatever it says is not read first.
        let blind = verdict::classify(
            &Outcome::Head { status, headers: response.headers(), body: None },
            clock::wall(),
        );
        if blind.act == Act::Deliver && status != StatusCode::BAD_REQUEST {
            return Step::Deliver(lease, Box::new(Ready::new(response)), blind.reason);
        }
        let (parts, body) = response.into_parts();
        let (bytes, whole) = read_error(body).await;
        if let Some(body) = whole {
            self.proxy.upstream.give_back(body.into_connection());
        }
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        let outcome = Outcome::Head { status, headers: &parts.headers, body: json.as_ref() };
        let verdict = verdict::classify(&outcome, clock::wall());
        // Without a time to wait for, the CLI gives up on any 429 (0.169.0, observed).
        let throttled = status == StatusCode::TOO_MANY_REQUESTS
            && !parts.headers.contains_key(header::RETRY_AFTER);
        let stops = throttled || verdict::stops_the_cli(status, json.as_ref());
        let foreign = json.as_ref().is_some_and(bound::is_foreign);
        self.rests.heard(&lease.account, status, &parts.headers);
        self.last = Some(Last { parts, bytes, stops });
        if verdict.act == Act::Deliver {
            return self.bad_request(lease, foreign, &verdict.reason).await;
        }
        self.apply(lease, verdict, status.is_server_error()).await
    }

    /// A 400 is upstream's word to the client, unless it is about what another account sealed.
    async fn bad_request(&mut self, lease: Lease, foreign: bool, reason: &str) -> Step {
        let account = lease.account.clone();
        let next = if foreign { self.ride.refused(&self.source).await } else { Foreign::Theirs };
        lease.finish(Release { mark: Mark::Fine, served: false, model: None });
        match next {
            Foreign::Theirs => {
                self.trace.attempts.push(format!("{account}: {reason}"));
                self.trace.account = Some(account);
                return Step::Say(self.give_up(None));
            },
            Foreign::Again(reason) => {
                self.proxy.traces.retry(&mut self.trace, &account, &reason);
                self.need.only = Some(account);
            },
            Foreign::Elsewhere(reason) => {
                self.proxy.traces.retry(&mut self.trace, &account, &reason);
                self.need.only = None;
                self.need.exclude.push(account);
            },
        }
        Step::Again
    }

    /// Gives the account back with what was learned, and prepares the next attempt.
    async fn apply(&mut self, lease: Lease, verdict: Verdict, hosts: bool) -> Step {
        let account = lease.account.clone();
        let verdict = self.weighed(&account, verdict, hosts);
        self.stated |= matches!(verdict.mark, Mark::Cool(Cause::Throttled(Some(_))));
        self.proxy.traces.retry(&mut self.trace, &account, &verdict.reason);
        self.last_reason.clone_from(&verdict.reason);
        lease.finish(Release { mark: verdict.mark, served: false, model: self.need.model.clone() });
        match verdict.act {
            Act::RetrySame if self.renewed.as_ref() != Some(&account) => {
                // The next select on this account waits for its renewal.
                self.renewed = Some(account.clone());
                self.need.only = Some(account);
            },
            Act::RetrySame | Act::RetryOther | Act::Deliver => {
                self.need.only = None;
                self.need.exclude.push(account);
            },
            Act::Wait => {
                if self.refused_by.len() >= MAX_REFUSED {
                    // None of the others is shown to a host that refuses tokens.
                    self.need.exclude.clear();
                    self.need.only = self.refused_by.first().cloned();
                }
                self.pause().await;
            },
        }
        Step::Again
    }

    async fn pause(&mut self) {
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.pauses.min(5))).await;
        self.pauses += 1;
    }

    fn deliver(mut self, lease: Lease, ready: Ready, reason: &str) -> Answer {
        self.ride.delivered(&self.proxy, &ready.parts, &mut self.trace);
        let Self { proxy, mut trace, overhead, .. } = self;
        let Ready { mut parts, body, held, sniffer } = ready;
        headers::downwards(&mut parts.headers);
        overhead.tell(&mut parts.headers, &trace, &lease.account);
        if parts.status.is_success() {
            proxy.roster.troubles().gone(Place::Backend);
            for blamed in proxy.health.served(&lease.account) {
                proxy.actor.tell(Input::Learn(blamed, Mark::Unauthorized));
            }
        }
        trace.account = Some(lease.account.clone());
        trace.status = parts.status.as_u16();
        trace.first_byte_ms = Some(millis(&trace.started));
        if !reason.is_empty() {
            trace.attempts.push(format!("{}: {reason}", lease.account));
        }
        proxy.traces.counters.active.fetch_add(1, Ordering::Relaxed);
        let ending = Ending { sniffer, accounts: Accounts { proxy, lease, trace } };
        Response::from_parts(parts, Out::Relay(Box::new(Relay::new(body, held, ending))))
    }

    /// Waits for a head; the time for it runs from when the client's body has been read, so that a
    /// slow upload is not a silent host.
    async fn head_in_time(
        &self,
        send: impl Future<Output = Result<Response<Driven>, Failure>>,
    ) -> Result<Response<Driven>, Missed> {
        let limit = self.proxy.config.head_timeout;
        let begun = Instant::now();
        let mut send = std::pin::pin!(send);
        let mut wake = begun + limit;
        loop {
            match tokio::time::timeout_at(wake, &mut send).await {
                Ok(sent) => return sent.map_err(Missed::Failed),
                Err(_elapsed) => {
                    let from = self.source.done_at().map(|done| done.max(begun));
                    let due = from.map_or_else(|| Instant::now() + limit, |from| from + limit);
                    if due <= Instant::now() {
                        return Err(Missed::TimedOut);
                    }
                    wake = due;
                },
            }
        }
    }

    fn request(&self, pass: &crate::vault::Pass, body: UpBody) -> Request<UpBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.proxy.upstream_uri(&self.parts.uri);
        *request.headers_mut() = self.parts.headers.clone();
        headers::sign(request.headers_mut(), pass);
        self.ride.dress(request.headers_mut());
        request
    }

    /// Whether upstream's last answer is already one on which the CLI stops by itself.
    fn stops_here(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.stops)
    }

    fn give_up_on(&mut self, lease: Lease) -> Answer {
        drop(lease);
        // Another account could serve it, but the body has gone by.
        self.last_reason.push_str("; the request is too large to be sent again");
        self.give_up(None)
    }

    /// The final word.
    fn give_up(&mut self, refused: Option<&Refused>) -> Answer {
        let answer = match refused {
            Some(refused) if self.ride.is_stuck() => self.ride.stuck(&self.proxy, refused),
            Some(refused)
                if refused.retry_at.is_some()
                    && refused.quota
                    && !self.speaks_for_the_pool(refused) =>
            {
                respond::refused(refused)
            },
            _ if self.stops_here() => self.last_answer(),
            Some(refused) if self.trace.tried == 0 => respond::refused(refused),
            _ => respond::stop(
                ErrorCode::Upstream,
                &format!(
                    "cma: {} failed in {} attempts, the last one: {}. Run `cmactl why --request {}` for all of them.",
                    self.proxy.upstream.endpoint.authority,
                    self.trace.tried,
                    self.last_reason,
                    self.trace.id
                ),
            ),
        };
        self.closed(answer.status(), "failed");
        answer
    }

    /// Whether upstream's last answer is the pool's as well, with all it says beside the time (whose
    /// credits are gone, which windows are full): its account is the only one, or the first to come
    /// back.
    fn speaks_for_the_pool(&self, refused: &Refused) -> bool {
        let Some(last) = self.last.as_ref().filter(|last| last.stops) else { return false };
        let body: Value = serde_json::from_slice(&last.bytes).unwrap_or_default();
        let reset = quota::reset_in_error(&body, clock::wall());
        // A throttle is over in seconds, before any limit.
        let throttled = last.parts.status == StatusCode::TOO_MANY_REQUESTS
            && !verdict::stops_the_cli(last.parts.status, Some(&body));
        let first = reset
            .zip(refused.retry_at)
            .is_some_and(|(reset, first)| reset.since(first) <= SAME_TIME);
        refused.reasons.len() == 1 || throttled || first
    }

    fn last_answer(&mut self) -> Answer {
        let Some(Last { mut parts, bytes, .. }) = self.last.take() else {
            return respond::not_here();
        };
        headers::downwards(&mut parts.headers);
        parts.headers.remove(header::CONTENT_LENGTH);
        Response::from_parts(parts, Out::Whole(bytes))
    }

    fn client_failed(&mut self) -> Answer {
        let answer = if self.source.too_large() {
            too_large()
        } else {
            respond::error(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, "the body ended early")
        };
        self.closed(answer.status(), "abandoned");
        answer
    }

    fn closed(&mut self, status: StatusCode, outcome: &'static str) {
        self.trace.status = status.as_u16();
        self.trace.outcome = outcome;
        self.proxy.traces.end(self.trace.clone());
    }
}

fn quota_seen(lease: &Lease, response: &Response<Driven>) {
    lease.quota_seen(quota::from_headers(response.headers(), clock::wall()));
}

/// Why no head came.
enum Missed {
    Failed(Failure),
    TimedOut,
}

impl Missed {
    const fn outcome(&self) -> Outcome<'static> {
        match self {
            Self::Failed(Failure::Connect(_)) => Outcome::ConnectFailed,
            Self::Failed(Failure::Garbage) => Outcome::Garbage,
            Self::Failed(Failure::Cut | Failure::ClientBody) => Outcome::Cut,
            Self::TimedOut => Outcome::HeadTimeout,
        }
    }
}

fn name(headers: &HeaderMap, header: &str) -> Option<Arc<str>> {
    let value = headers.get(header)?.to_str().ok()?;
    (!value.is_empty() && value.len() <= MAX_NAME).then(|| value.into())
}

/// Reads an error's body within bounds; gives the body back when that was all of it.
async fn read_error(mut body: Driven) -> (Bytes, Option<Driven>) {
    let mut bytes = BytesMut::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > MAX_ERROR {
                    return false;
                }
                bytes.extend_from_slice(data);
            }
        }
        true
    };
    let whole = tokio::time::timeout(ERROR_TIMEOUT, read).await.unwrap_or(false);
    (bytes.freeze(), whole.then_some(body))
}

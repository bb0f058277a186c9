//! One turn: select an account, send, judge, deliver or go on.
//!
//! Failover happens only before the first byte is delivered (a stream's preamble is held back for it,
//! `held`), only while the body can be sent again, and within the bounds of its course (`course`). When
//! the host fails for several accounts, nobody walks on: all wait (`host`). What an outcome means is the
//! core's verdict. When nothing is left, the client gets an answer on which it stops and speaks for
//! itself (`respond`), never one on which it loops.

mod begin;

use super::{
    Proxy,
    asked::Asked,
    body::{BODY_LIMIT, Source, UpBody},
    books,
    course::{self, Course, Missed, Word, head_in_time},
    error_body, headers,
    held::{Ready, first_word},
    keys::Launch,
    moved::{Foreign, Ride, Said},
    relay::{Accounts, Answer, Ending, Out, Relay},
    respond, shown,
    surface::standing,
    trace::millis,
};
use crate::{
    actor::Lease,
    clock,
    trouble::Place,
    upstream::{Driven, Outbound},
    vault::Pass,
};
use bytes::Bytes;
use cma_core::{
    bound,
    pool::{Refused, Release},
    quota::{self, Window},
    select::{Bar, Need},
    time::Span,
    verdict::{self, Act, Mark, Outcome, Verdict},
};
use cma_proto::error::ErrorCode;
use http::{HeaderMap, Request, Response, StatusCode, header, response};
use http_body::Body as _;
use hyper::body::Incoming;
use serde_json::Value;
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// How long the head of a unary compaction may take.
const COMPACTION: Duration = Duration::from_secs(300);
/// Resets this close are one time to a person: the CLI tells minutes.
const SAME_TIME: Span = Span::from_secs(60);

/// A turn in progress. Boxed from the start: moved into its future, it would be in it twice.
struct Turn<'l> {
    proxy: Arc<Proxy>,
    launch: &'l Launch,
    asked: Asked,
    source: Source,
    course: Course,
    ride: Ride,
    /// Whether the request compacts its thread.
    compacts: bool,
    /// Whether it is an older CLI's own call for that, whose answer is JSON and made whole before its head.
    unary: bool,
    /// Whether the client asked for a stream, as the CLI always does (0.98.0 to 0.169.0, observed).
    wants_stream: bool,
    /// How often an attempt was silent.
    silences: u32,
    /// Boxed: most turns have none, and all are moved.
    last: Option<Box<Last>>,
    overhead: shown::Overhead,
}

/// The last error that upstream answered, whole.
struct Last {
    parts: response::Parts,
    bytes: Bytes,
    word: Word,
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
) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
    let (mut parts, incoming) = request.into_parts();
    if incoming.size_hint().lower() > BODY_LIMIT {
        return Box::pin(std::future::ready(respond::too_large()));
    }
    let told = headers::Told::by(&parts.headers);
    let (session, model) = (told.session(), told.model());
    let overhead = shown::Overhead::asked(&proxy, &told);
    let wants_stream = told.wants_stream();
    let bounds = &launch.bounds;
    let mut need =
        Need { session: bounds.session(session.as_ref()), model: model.clone(), ..bounds.need() };
    let mut trace = proxy.traces.begin(session, model);
    if let Some(blocked) = books::admit(&proxy, &mut trace, launch) {
        return Box::pin(std::future::ready(blocked));
    }
    let known = &proxy.traces.threads;
    let said = Said::of(&told);
    let unary = parts.uri.path().ends_with("/compact");
    let compacts = unary || begin::is_compaction(&said);
    let mut ride = Ride::read(known, bounds, said, &mut need, &mut trace);
    ride.count(&need, &mut trace);
    parts.headers = headers::upwards(parts.headers, &proxy.host);
    let source = Source::new(incoming);
    let host_wait = proxy.config.host_wait;
    let turn = Box::new(Turn {
        proxy,
        launch,
        asked: Asked::new(parts),
        source,
        course: Course::new(need, trace, host_wait),
        ride,
        compacts,
        unary,
        wants_stream,
        silences: 0,
        last: None,
        overhead,
    });
    Box::pin(turn.run())
}

impl Turn<'_> {
    async fn run(mut self: Box<Self>) -> Answer {
        loop {
            if self.course.is_spent() {
                return self.give_up(None);
            }
            if let Some(pause) = self.proxy.health.waits() {
                let wait = self.course.wait_for_host(pause);
                if while_there(&self.source, wait).await.is_none() {
                    return self.course.client_failed(&self.proxy.traces, &self.source);
                }
                continue;
            }
            let asked = clock::mono();
            let select = self.proxy.actor.select(self.course.need.clone());
            let Some(selected) = while_there(&self.source, select).await else {
                return self.course.client_failed(&self.proxy.traces, &self.source);
            };
            self.course.queued(asked);
            let mut lease = match selected {
                Err(_gone) => return respond::draining(),
                Ok(Ok(lease)) => lease,
                Ok(Err(refused)) => match self.course.over() {
                    Some(blocked) => {
                        return books::blocked(&self.proxy, &mut self.course.trace, &blocked);
                    },
                    None => match Box::pin(self.waited(&refused)).await {
                        Some(true) => continue,
                        Some(false) => return self.give_up(Some(&refused)),
                        None => {
                            return self.course.client_failed(&self.proxy.traces, &self.source);
                        },
                    },
                },
            };
            if !self.course.takes(&mut lease) {
                continue;
            }
            let rests = self.course.rests.over(&lease.account);
            if while_there(&self.source, rests).await.is_none() {
                return self.course.client_failed(&self.proxy.traces, &self.source);
            }
            match self.attempt(lease).await {
                Step::Deliver(lease, ready, reason) => {
                    return self.deliver(lease, *ready, &reason);
                },
                Step::Say(answer) => return answer,
                Step::Again if self.source.client_failed() => {
                    return self.course.client_failed(&self.proxy.traces, &self.source);
                },
                Step::Again => {},
            }
        }
    }

    /// Whether it is worth waiting for an account, after having waited; `None` when the client left.
    async fn waited(&mut self, refused: &Refused) -> Option<bool> {
        let rounds = self.last.as_ref().is_none_or(|last| last.word.allows_rounds());
        while_there(&self.source, self.course.waited(&self.proxy, refused, rounds)).await
    }

    async fn attempt(&mut self, lease: Lease) -> Step {
        let account = lease.account.clone();
        let Some(pass) = self.proxy.vault.pass(&account, lease.generation) else {
            // It left the pool between the choice and now.
            self.course.need.exclude.push(account);
            return Step::Again;
        };
        if !self.ride.board(&self.proxy, &account, &pass, &self.source, &self.course.need).await {
            self.course.unfit(account, Bar::Unread);
            return Step::Again;
        }
        let Some(body) = self.ride.body(&self.source) else {
            return Step::Say(self.give_up_on(lease));
        };
        self.course.trace.tried += 1;
        let limit = if self.unary { COMPACTION } else { self.proxy.config.head_timeout };
        let hold = self.bounds().silence.unwrap_or_default();
        self.silences = self.course.believed(self.silences, limit + hold);
        let headers = self.asked.headers();
        let request = self.request(headers, &pass, body);
        let mut repeats = 0;
        let outcome = {
            let (turn, source) = (&*self, &self.source);
            let again = |_undone| {
                turn.ride.body(source).map(|body| {
                    repeats += 1;
                    turn.request(turn.asked.once_more(), &pass, body)
                })
            };
            // Pinned here: each future around it would be as large again.
            let send = std::pin::pin!(turn.proxy.upstream.send(&account, request, again));
            // What can't be sent again isn't worth giving up.
            let silences = if source.is_oversized() { u32::MAX } else { turn.silences };
            let limit = first_word(limit, silences);
            turn.overhead.upstream(head_in_time(source, limit, send)).await
        };
        self.course.trace.tried += repeats;
        match outcome {
            Ok(response)
                if response.status().is_success()
                    && !verdict::is_page(response.status(), response.headers()) =>
            {
                let mut ready = Box::new(Ready::new(response));
                let headers = &ready.parts.headers;
                let windows = windows(headers);
                let (proxy, launch) = (&self.proxy, self.launch);
                let instead = standing::instead(proxy, launch, &account, &windows, headers);
                ready.instead = instead.await;
                // Before the answer is waited for.
                lease.quota_seen(windows);
                self.begun(lease, ready).await
            },
            Ok(response) => {
                let own = pass.way.host.is_some();
                Box::pin(self.refused(lease, own, response)).await
            },
            Err(failure) => {
                if self.source.client_failed() {
                    return Step::Again;
                }
                let verdict = verdict::classify(&failure.outcome(), clock::wall());
                let verdict = course::of_host(verdict, pass.way.host.is_some());
                self.silences += u32::from(matches!(failure, Missed::TimedOut));
                let reason = failure.told(&self.proxy, &verdict.reason);
                Box::pin(self.apply(lease, Verdict { reason, ..verdict }, false)).await
            },
        }
    }

    /// Judges an answer that is no success, or not upstream's own. `own` says whether the account is
    /// behind a host of its own.
    async fn refused(&mut self, lease: Lease, own: bool, response: Response<Driven>) -> Step {
        let status = response.status();
        if verdict::is_page(status, response.headers()) {
            let verdict = verdict::classify(&Outcome::Page(status), clock::wall());
            let verdict = course::of_host(verdict, own);
            self.proxy.roster.troubles().met(Place::Backend, &verdict.reason);
            return self.apply(lease, verdict, false).await;
        }
        self.proxy.roster.troubles().gone(Place::Backend);
        lease.quota_seen(windows(response.headers()));
        // What is delivered whatever it says is not read first.
        let blind = verdict::classify(
            &Outcome::Head { status, headers: response.headers(), body: None },
            clock::wall(),
        );
        if blind.act == Act::Deliver && status != StatusCode::BAD_REQUEST {
            return Step::Deliver(lease, Box::new(Ready::new(response)), blind.reason);
        }
        let (parts, mut body) = response.into_parts();
        let (bytes, whole) = error_body::read(&mut body).await;
        if whole {
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
        self.course.rests.heard(&lease.account, status, &parts.headers);
        let word = Word { stops, bars: verdict.mark.bars(), attempt: self.course.trace.tried };
        self.last = Some(Box::new(Last { parts, bytes, word }));
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
        if self.course.unsealed(&self.proxy.traces, &account, next) {
            // No word of upstream's about the request as its client sent it.
            self.last = None;
            return Step::Again;
        }
        self.course.trace.attempts.push(format!("{account}: {reason}"));
        self.course.trace.account = Some(account);
        Step::Say(self.give_up(None))
    }

    /// Gives the account back with what was learned, and prepares the next attempt.
    async fn apply(&mut self, lease: Lease, verdict: Verdict, hosts: bool) -> Step {
        if self.course.failed(&self.proxy, lease, verdict, hosts) {
            // Who left meanwhile is found out by the next look at the source.
            let _left = while_there(&self.source, self.course.pause()).await;
        }
        Step::Again
    }

    fn deliver(mut self: Box<Self>, lease: Lease, ready: Ready, reason: &str) -> Answer {
        self.ride.delivered(&self.proxy, &ready.parts, &mut self.course.trace);
        let Self { proxy, course: Course { mut trace, .. }, overhead, .. } = *self;
        let Ready { mut parts, body, held, broken, sniffer, instead } = ready;
        overhead.tell(&mut parts.headers, &trace, &lease.account);
        if parts.status.is_success() {
            proxy.roster.troubles().gone(Place::Backend);
            course::served(&proxy, &lease.account);
            instead.put(&mut parts.headers);
        }
        trace.account = Some(lease.account.clone());
        trace.status = parts.status.as_u16();
        trace.first_byte_ms = Some(millis(&trace.started));
        if !reason.is_empty() {
            trace.attempts.push(format!("{}: {reason}", lease.account));
        }
        proxy.traces.counters.active.fetch_add(1, Ordering::Relaxed);
        let ending = Ending { sniffer, accounts: Accounts { proxy, lease, trace } };
        Response::from_parts(
            parts,
            Out::Relay(Box::new(Relay::begun(body, (held, broken), ending))),
        )
    }

    fn request(&self, headers: HeaderMap, pass: &Pass, body: UpBody) -> Outbound {
        let mut request = self.proxy.outbound(self.asked.parts(), headers, body);
        headers::sign(request.headers_mut(), pass);
        self.ride.dress(request.headers_mut());
        request
    }

    /// Whether upstream's last answer is already one on which the CLI stops by itself.
    fn stops_here(&self, refused: Option<&Refused>) -> bool {
        let tried = self.course.trace.tried;
        self.last.as_ref().is_some_and(|last| last.word.is_final(refused.is_some(), tried))
    }

    fn give_up_on(&mut self, lease: Lease) -> Answer {
        drop(lease);
        // Another account could serve it, but the body has gone by: its client has it still. The CLI sends
        // a 5xx again by itself, a few times and without a word (0.169.0, observed).
        let reason = std::mem::take(&mut self.course.reason);
        let before = if reason.is_empty() { reason } else { format!("{reason}; ") };
        self.course.reason = format!("{before}the request is too large to be sent again");
        let answer = respond::error(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Upstream,
            &format!("cma: {}", self.course.reason),
        );
        self.course.closed(&self.proxy.traces, answer.status(), "failed");
        answer
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
            _ if self.stops_here(refused) => self.last_answer(),
            Some(refused) if self.course.trace.tried == 0 || refused.is_final() => {
                respond::refused(refused)
            },
            _ => self.course.exhausted(&self.proxy),
        };
        self.course.closed(&self.proxy.traces, answer.status(), "failed");
        answer
    }

    /// Whether upstream's last answer is the pool's as well, with all it says beside the time (whose
    /// credits are gone, which windows are full): its account is the only one, or the first to come
    /// back.
    fn speaks_for_the_pool(&self, refused: &Refused) -> bool {
        let Some(last) = self.last.as_ref().filter(|last| last.word.stops) else { return false };
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
        let Some(last) = self.last.take() else { return respond::not_here() };
        let Last { mut parts, bytes, .. } = *last;
        headers::downwards(&mut parts.headers);
        parts.headers.remove(header::CONTENT_LENGTH);
        Response::from_parts(parts, Out::Whole(bytes))
    }
}

/// Waits for something while the client is there.
async fn while_there<T>(source: &Source, wait: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        waited = wait => Some(waited),
        () = source.broken_off() => None,
    }
}

fn windows(headers: &HeaderMap) -> Vec<Window> {
    quota::from_headers(headers, clock::wall())
}

//! An errand: a call that an account is chosen for, as for a turn, with failover as far as is safe.
//!
//! What changes nothing is tried on other accounts like a turn. What makes something (a picture, a
//! file, a call) is sent again only when it can't have happened: nothing was sent, or the account was
//! refused (401, 402, 403, 429). What one account has (a stored response) is looked for account by
//! account while they answer 404.
//!
//! A kind of errand that a plan doesn't include must not keep the account from turns: such a refusal
//! rests the account for that kind alone, in the pool's table of models, by the kind's own name.

use super::{
    super::{
        Proxy,
        body::{BODY_LIMIT, Source, UpBody},
        headers,
        keys::Launch,
        relay::{Accounts, Answer, Ending, Out, Relay},
        respond,
        trace::{Trace, millis},
        turn::OLD_SESSION,
    },
    table::{Errand, Safety},
};
use crate::{
    actor::Lease,
    clock,
    upstream::{Driven, Failure},
    vault::Pass,
};
use bytes::{Bytes, BytesMut};
use cma_core::{
    identity::AccountId,
    pool::{Refused, Release},
    select::Need,
    verdict::{self, Act, Mark, Outcome, Verdict},
};
use cma_proto::error::ErrorCode;
use http::{HeaderMap, Request, Response, StatusCode, header, request, response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// Attempts of one errand, as of a turn.
const MAX_ATTEMPTS: u32 = 8;
/// No new attempt begins after this time.
const BUDGET: Duration = Duration::from_secs(120);
/// Longest wait for an account that comes back by itself.
const MAX_WAIT: Duration = Duration::from_secs(8);
/// First pause after a round in which nobody could; doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How long a head may take: a picture or a compaction is made whole before its head is sent.
const HEAD: Duration = Duration::from_secs(300);
/// Read of an error's body, and how long it may take.
const MAX_ERROR: usize = 64 * 1024;
const ERROR_TIMEOUT: Duration = Duration::from_secs(5);
/// Header values taken as names are bounded.
const MAX_NAME: usize = 256;

struct Run {
    proxy: Arc<Proxy>,
    errand: Errand,
    parts: request::Parts,
    source: Source,
    need: Need,
    trace: Trace,
    renewed: Option<AccountId>,
    waited: bool,
    /// The last error that upstream answered, whole.
    last: Option<(response::Parts, Bytes)>,
    reason: String,
}

enum Step {
    Done(Answer),
    Again,
}

/// Serves an errand.
pub(super) async fn serve(
    proxy: Arc<Proxy>,
    launch: &Launch,
    errand: Errand,
    request: Request<Incoming>,
) -> Answer {
    let (mut parts, incoming) = request.into_parts();
    if incoming.size_hint().lower() > BODY_LIMIT {
        return too_large();
    }
    let bounds = &launch.bounds;
    let named = ["session-id", "thread-id", OLD_SESSION]
        .into_iter()
        .find_map(|name| value(&parts.headers, name));
    // Without a session: what upstream keeps stays where the launch's first one of that kind went.
    let own = || Some(format!("{}/{}", launch.name(), errand.family()?).into());
    let session = named.or_else(|| errand.stays().then(own).flatten());
    let model = errand.family().map(Arc::from).or_else(|| {
        let hint = parts.headers.get("x-codex-routing-hint")?.to_str().ok()?;
        let model = hint.split(';').find_map(|part| part.trim().strip_prefix("model="))?;
        (model.len() <= MAX_NAME).then(|| model.into())
    });
    parts.headers = headers::upwards(parts.headers, &proxy.host);
    let need =
        Need { session: bounds.session(session.as_ref()), model: model.clone(), ..bounds.need() };
    let trace = proxy.traces.begin(session, model);
    let source = Source::new(incoming);
    let run = Run {
        proxy,
        errand,
        parts,
        source,
        need,
        trace,
        renewed: None,
        waited: false,
        last: None,
        reason: String::new(),
    };
    run.run().await
}

fn value(headers: &HeaderMap, name: &str) -> Option<Arc<str>> {
    let value = headers.get(name)?.to_str().ok()?;
    (!value.is_empty() && value.len() <= MAX_NAME).then(|| value.into())
}

fn too_large() -> Answer {
    respond::error(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::TooLarge,
        "the request is larger than anything upstream takes",
    )
}

impl Run {
    async fn run(mut self) -> Answer {
        loop {
            if self.trace.tried >= MAX_ATTEMPTS || self.trace.started.elapsed() > BUDGET {
                return self.give_up(None);
            }
            let lease = match self.proxy.actor.select(self.need.clone()).await {
                Err(_gone) => return respond::draining(),
                Ok(Ok(lease)) => lease,
                Ok(Err(refused)) => {
                    if self.wait(&refused).await {
                        continue;
                    }
                    return self.give_up(Some(&refused));
                },
            };
            match Box::pin(self.attempt(lease)).await {
                Step::Done(answer) => return answer,
                Step::Again if self.source.client_failed() => return self.client_failed(),
                Step::Again => {},
            }
        }
    }

    /// Whether it is worth going on, after having waited: for the next round over accounts that
    /// only had the host's faults, or once for an account that comes back in moments.
    async fn wait(&mut self, refused: &Refused) -> bool {
        if refused.tried && self.errand.safety() == Safety::Repeatable {
            self.need.exclude.clear();
            self.need.only = None;
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.trace.tried.min(5))).await;
            return true;
        }
        let soon = refused
            .retry_at
            .map(|at| Duration::from_millis(at.since(clock::wall()).millis()))
            .filter(|wait| *wait <= MAX_WAIT && !self.waited && !refused.tried);
        let Some(wait) = soon else { return false };
        self.waited = true;
        self.need.exclude.clear();
        self.need.only = None;
        tokio::time::sleep(wait + Duration::from_millis(20)).await;
        true
    }

    async fn attempt(&mut self, lease: Lease) -> Step {
        let account = lease.account.clone();
        let Some(pass) = self.proxy.vault.pass(&account, lease.generation) else {
            self.need.exclude.push(account);
            return Step::Again;
        };
        let Some(body) = self.source.attempt() else {
            drop(lease);
            self.reason.push_str("; the request is too large to be sent again");
            return Step::Done(self.give_up(None));
        };
        self.trace.tried += 1;
        let request = self.request(&pass, UpBody::Replay(body));
        let once = self.errand.safety() == Safety::Once;
        let sent = {
            let run = &*self;
            let again = || {
                // A kept connection that broke may have delivered it.
                let body = run.source.attempt().filter(|_body| !once)?;
                Some(run.request(&pass, UpBody::Replay(body)))
            };
            run.in_time(run.proxy.upstream.send(&account, request, again)).await
        };
        match sent {
            Ok(Some(response)) => self.judge(lease, response).await,
            Ok(None) => self.apply(lease, &Outcome::HeadTimeout),
            Err(_failure) if self.source.client_failed() => Step::Again,
            Err(Failure::Connect(_)) => self.apply(lease, &Outcome::ConnectFailed),
            Err(Failure::Garbage) => self.apply(lease, &Outcome::Garbage),
            Err(Failure::Cut | Failure::ClientBody) => self.apply(lease, &Outcome::Cut),
        }
    }

    /// The head, or none in time; the time runs from when the client's body has been read.
    async fn in_time(
        &self,
        send: impl Future<Output = Result<Response<Driven>, Failure>>,
    ) -> Result<Option<Response<Driven>>, Failure> {
        let mut send = std::pin::pin!(send);
        let mut wake = Instant::now() + HEAD;
        loop {
            match tokio::time::timeout_at(wake, &mut send).await {
                Ok(sent) => return sent.map(Some),
                Err(_elapsed) => {
                    let due = self.source.done_at().unwrap_or_else(Instant::now) + HEAD;
                    if due <= Instant::now() {
                        return Ok(None);
                    }
                    wake = due;
                },
            }
        }
    }

    async fn judge(&mut self, lease: Lease, response: Response<Driven>) -> Step {
        let status = response.status();
        if verdict::is_page(status, response.headers()) {
            drop(response);
            return self.apply(lease, &Outcome::Page(status));
        }
        let elsewhere = self.errand.safety() == Safety::Owned && status == StatusCode::NOT_FOUND;
        let delivered =
            matches!(status.as_u16(), 200..=399 | 400 | 404..=407 | 409..=428 | 430..=499);
        if delivered && !elsewhere {
            return Step::Done(self.deliver(lease, response));
        }
        let (parts, body) = response.into_parts();
        let bytes = self.error(body).await;
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        let headers = parts.headers.clone();
        self.last = Some((parts, bytes));
        if elsewhere {
            self.reason = "404: not this account's".to_owned();
            self.next(lease, Mark::Fine);
            return Step::Again;
        }
        self.apply(lease, &Outcome::Head { status, headers: &headers, body: json.as_ref() })
    }

    /// Applies what an attempt's outcome means, as far as this errand allows.
    fn apply(&mut self, lease: Lease, outcome: &Outcome<'_>) -> Step {
        let Verdict { act, mark, reason } = verdict::classify(outcome, clock::wall());
        self.proxy.traces.retry(&mut self.trace, &lease.account, &reason);
        self.reason = reason;
        // Whether it may have happened.
        let refusal = matches!(
            outcome,
            Outcome::ConnectFailed
                | Outcome::Head {
                    status: StatusCode::UNAUTHORIZED
                        | StatusCode::PAYMENT_REQUIRED
                        | StatusCode::FORBIDDEN
                        | StatusCode::TOO_MANY_REQUESTS,
                    ..
                }
        );
        let account = lease.account.clone();
        self.next(lease, self.own(mark));
        if self.errand.safety() == Safety::Once && !refusal {
            return Step::Done(self.give_up(None));
        }
        if act == Act::RetrySame && self.renewed.as_ref() != Some(&account) {
            self.need.exclude.retain(|tried| *tried != account);
            self.need.only = Some(account.clone());
            self.renewed = Some(account);
        }
        Step::Again
    }

    /// What a mark means for an errand of this kind.
    fn own(&self, mark: Mark) -> Mark {
        use cma_core::cooldown::Cause;
        match mark {
            mark if self.errand.family().is_none() => mark,
            Mark::Cool(Cause::Forbidden | Cause::PaymentRequired | Cause::NotEntitled)
            | Mark::ModelNotIncluded => Mark::ModelNotIncluded,
            // A limit of this kind is no limit of turns; theirs would say so itself.
            Mark::Cool(_) => Mark::Fine,
            mark @ (Mark::Fine | Mark::Unauthorized | Mark::Shaky) => mark,
        }
    }

    /// Gives the account back and leaves it out from here on.
    fn next(&mut self, lease: Lease, mark: Mark) {
        self.need.only = None;
        self.need.exclude.push(lease.account.clone());
        lease.finish(Release { mark, served: false, model: self.need.model.clone() });
    }

    fn deliver(&mut self, lease: Lease, response: Response<Driven>) -> Answer {
        let (mut parts, body) = response.into_parts();
        headers::downwards(&mut parts.headers);
        self.trace.account = Some(lease.account.clone());
        self.trace.status = parts.status.as_u16();
        self.trace.first_byte_ms = Some(millis(&self.trace.started));
        let proxy = Arc::clone(&self.proxy);
        proxy.traces.counters.active.fetch_add(1, Ordering::Relaxed);
        let accounts = Accounts { proxy, lease, trace: self.trace.clone() };
        let ending = Ending { sniffer: None, accounts };
        Response::from_parts(parts, Out::Relay(Box::new(Relay::new(body, Vec::new(), ending))))
    }

    fn request(&self, pass: &Pass, body: UpBody) -> Request<UpBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.proxy.upstream_uri(&self.parts.uri);
        *request.headers_mut() = self.parts.headers.clone();
        if self.parts.uri.path().starts_with("/codex/") {
            headers::sign(request.headers_mut(), pass);
        } else {
            headers::identify(request.headers_mut(), pass);
        }
        request
    }

    /// An error's body within bounds; its connection is kept when that was all of it.
    async fn error(&self, mut body: Driven) -> Bytes {
        let mut bytes = BytesMut::new();
        let read = async {
            while let Some(Ok(frame)) = body.frame().await {
                if let Some(data) = frame.data_ref() {
                    if bytes.len() + data.len() > MAX_ERROR {
                        return;
                    }
                    bytes.extend_from_slice(data);
                }
            }
        };
        let _late = tokio::time::timeout(ERROR_TIMEOUT, read).await;
        if body.is_end_stream() {
            self.proxy.upstream.give_back(body.into_connection());
        }
        bytes.freeze()
    }

    /// The final word: upstream's own last one, but for a 401.
    fn give_up(&mut self, refused: Option<&Refused>) -> Answer {
        let last =
            self.last.take().filter(|(parts, _bytes)| parts.status != StatusCode::UNAUTHORIZED);
        let answer = match (refused, last) {
            (_, Some((mut parts, bytes))) => {
                headers::downwards(&mut parts.headers);
                parts.headers.remove(header::CONTENT_LENGTH);
                Response::from_parts(parts, Out::Whole(bytes))
            },
            (Some(refused), None) if self.trace.tried == 0 => respond::refused(refused),
            _ => respond::stop(
                ErrorCode::Upstream,
                &format!(
                    "cma: {} failed in {} attempts, the last one: {}. Run `cmactl why --request {}` for all of them.",
                    self.proxy.upstream.endpoint.authority,
                    self.trace.tried,
                    self.reason,
                    self.trace.id
                ),
            ),
        };
        self.closed(answer.status(), "failed");
        answer
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

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
        Proxy, aux,
        body::{BODY_LIMIT, Source, UpBody},
        books,
        course::{Course, head_in_time},
        error_body, headers,
        keys::Launch,
        relay::{Accounts, Answer, Ending, Out, Relay},
        respond,
        trace::millis,
    },
    table::{Errand, Safety},
};
use crate::{
    actor::Lease,
    clock,
    upstream::{Driven, Outbound},
    vault::Pass,
};
use bytes::Bytes;
use cma_core::{
    pool::{Refused, Release},
    select::Need,
    verdict::{self, Act, Mark, Outcome, Verdict},
};
use http::{Request, Response, StatusCode, header, request, response};
use http_body::Body as _;
use hyper::body::Incoming;
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// How long a head may take: a picture is made whole before its head is sent.
const HEAD: Duration = Duration::from_secs(300);
/// Accounts whose fresh tokens one errand lets be refused: more say nothing more, and cost a renewal
/// each.
const MAX_DENIED: usize = 2;

struct Run {
    proxy: Arc<Proxy>,
    errand: Errand,
    parts: request::Parts,
    source: Source,
    course: Course,
    /// The last error that upstream answered, whole.
    last: Option<(response::Parts, Bytes)>,
    /// Accounts that refused this kind with a fresh token.
    denied: usize,
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
        return respond::too_large();
    }
    let bounds = &launch.bounds;
    let told = headers::Told::by(&parts.headers);
    let named = told.session().or_else(|| told.thread());
    // Without a session: what upstream keeps stays where the launch's first one of that kind went.
    let own = || Some(format!("{}/{}", launch.name(), errand.family()?).into());
    let session = named.or_else(|| errand.stays().then(own).flatten());
    let model = errand.family().map(Arc::from).or_else(|| told.model());
    parts.headers = headers::upwards(parts.headers, &proxy.host);
    let key = bounds.session(session.as_ref());
    // What upstream keeps has a thread of its own within the session; all else goes where the session is,
    // and who makes its pictures says nothing of who serves its turns.
    let stays = errand.family().filter(|_family| errand.stays());
    let thread = key.as_ref().zip(stays).map(|(key, family)| format!("{key}/{family}").into());
    let guest = thread.is_none();
    let need = Need { session: key, thread, guest, model: model.clone(), ..bounds.need() };
    let mut trace = proxy.traces.begin(session, model);
    if errand.spends()
        && let Some(blocked) = books::admit(&proxy, &mut trace, launch)
    {
        return blocked;
    }
    let source = Source::new(incoming);
    // Nobody watches an errand for minutes.
    let course = Course::new(need, trace, Duration::ZERO);
    let run = Run { proxy, errand, parts, source, course, last: None, denied: 0 };
    run.run().await
}

impl Run {
    async fn run(mut self) -> Answer {
        loop {
            if self.course.is_spent() {
                return self.give_up(None);
            }
            let mut lease = match self.proxy.actor.select(self.course.need.clone()).await {
                Err(_gone) => return respond::draining(),
                Ok(Ok(lease)) => lease,
                Ok(Err(refused)) => match self.course.over() {
                    Some(blocked) => {
                        return books::blocked(&self.proxy, &mut self.course.trace, &blocked);
                    },
                    None if Box::pin(self.waited(&refused)).await => continue,
                    None => return self.give_up(Some(&refused)),
                },
            };
            if !self.course.takes(&mut lease) {
                continue;
            }
            match Box::pin(self.attempt(lease)).await {
                Step::Done(answer) => return answer,
                Step::Again if self.source.client_failed() => {
                    return self.course.client_failed(&self.proxy.traces, &self.source);
                },
                Step::Again => {},
            }
        }
    }

    /// Whether it is worth waiting for an account, after having waited.
    async fn waited(&mut self, refused: &Refused) -> bool {
        // After a 401 nothing was made, whatever became of that account's renewal.
        let rounds = self.errand.safety() == Safety::Repeatable || self.course.need.only.is_some();
        self.course.waited(&self.proxy, refused, rounds).await
    }

    async fn attempt(&mut self, lease: Lease) -> Step {
        let account = lease.account.clone();
        let Some(pass) = self.proxy.vault.pass(&account, lease.generation) else {
            self.course.need.exclude.push(account);
            return Step::Again;
        };
        let Some(body) = self.source.attempt() else {
            drop(lease);
            self.course.reason.push_str("; the request is too large to be sent again");
            return Step::Done(self.give_up(None));
        };
        self.course.trace.tried += 1;
        let request = self.request(&pass, UpBody::Replay(body));
        let once = self.errand.safety() == Safety::Once;
        let sent = {
            let run = &*self;
            let again = |undone: bool| {
                // A kept connection that broke may have delivered it.
                let body = run.source.attempt().filter(|_body| undone || !once)?;
                Some(run.request(&pass, UpBody::Replay(body)))
            };
            let send = run.proxy.upstream.send(&account, request, again);
            head_in_time(&run.source, HEAD, send).await
        };
        match sent {
            Ok(response) => self.judge(lease, response).await,
            Err(_missed) if self.source.client_failed() => Step::Again,
            Err(missed) => self.failed(lease, &missed.outcome()).await,
        }
    }

    async fn judge(&mut self, lease: Lease, response: Response<Driven>) -> Step {
        let status = response.status();
        if verdict::is_page(status, response.headers()) {
            drop(response);
            return self.failed(lease, &Outcome::Page(status)).await;
        }
        let elsewhere = self.errand.safety() == Safety::Owned && status == StatusCode::NOT_FOUND;
        let delivered =
            matches!(status.as_u16(), 200..=399 | 400 | 404..=407 | 409..=428 | 430..=499);
        if delivered && !elsewhere {
            return Step::Done(self.deliver(lease, response));
        }
        let (parts, mut body) = response.into_parts();
        let (bytes, whole) = error_body::read(&mut body).await;
        if whole {
            self.proxy.upstream.give_back(body.into_connection());
        }
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        let headers = parts.headers.clone();
        self.last = Some((parts, bytes));
        if elsewhere {
            "404: not this account's".clone_into(&mut self.course.reason);
            let account = lease.account.clone();
            let model = self.course.need.model.clone();
            lease.finish(Release { mark: Mark::Fine, served: false, model });
            self.course.elsewhere(account);
            return Step::Again;
        }
        self.failed(lease, &Outcome::Head { status, headers: &headers, body: json.as_ref() }).await
    }

    /// Applies what an attempt's outcome means, as far as this errand allows.
    async fn failed(&mut self, lease: Lease, outcome: &Outcome<'_>) -> Step {
        let verdict = verdict::classify(outcome, clock::wall());
        let mut verdict = Verdict { mark: self.own(verdict.mark), ..verdict };
        if verdict.mark == Mark::Unauthorized && self.is_denied(&lease).await {
            self.denied += 1;
            verdict = Verdict {
                act: Act::RetryOther,
                mark: Mark::ModelNotIncluded,
                reason: "its fresh token was refused for this (401)".to_owned(),
            };
        }
        let given_up = self.denied >= MAX_DENIED;
        // Whether it may have happened.
        let refusal = matches!(
            outcome,
            Outcome::ConnectFailed
                | Outcome::ConnectBarred
                | Outcome::Head {
                    status: StatusCode::UNAUTHORIZED
                        | StatusCode::PAYMENT_REQUIRED
                        | StatusCode::FORBIDDEN
                        | StatusCode::TOO_MANY_REQUESTS,
                    ..
                }
        );
        let pauses = self.course.failed(&self.proxy, lease, verdict, false);
        if given_up || (self.errand.safety() == Safety::Once && !refusal) {
            return Step::Done(self.give_up(None));
        }
        if pauses {
            self.course.pause().await;
        }
        Step::Again
    }

    /// Whether a refused token isn't worth a renewal: it is fresh, and this kind alone is refused to it.
    /// Whether the login is over is for a turn to tell.
    async fn is_denied(&self, lease: &Lease) -> bool {
        let account = &lease.account;
        // A 401 of the token before, which was renewed meanwhile, says nothing of this one.
        let current = self.proxy.vault.generation(account) == Some(lease.generation);
        let own = current && self.errand.family().is_some();
        let denied = own
            && (self.course.has_renewed(account)
                || aux::was_just_renewed(&self.proxy, account).await);
        if denied {
            self.proxy.health.settled(account);
        }
        denied
    }

    /// What a mark means for an errand of this kind.
    fn own(&self, mark: Mark) -> Mark {
        use cma_core::cooldown::Cause;
        match mark {
            mark if self.errand.family().is_none() => mark,
            Mark::Cool(Cause::Forbidden | Cause::PaymentRequired | Cause::NotEntitled)
            | Mark::ModelNotIncluded => Mark::ModelNotIncluded,
            // A limit of this kind is no limit of turns; theirs would say so itself.
            Mark::Cool(_) | Mark::ModelLimit { .. } => Mark::Fine,
            mark @ (Mark::Fine | Mark::Unauthorized | Mark::Shaky) => mark,
        }
    }

    fn deliver(&mut self, lease: Lease, response: Response<Driven>) -> Answer {
        let (mut parts, body) = response.into_parts();
        headers::downwards(&mut parts.headers);
        self.course.trace.account = Some(lease.account.clone());
        self.course.trace.status = parts.status.as_u16();
        self.course.trace.first_byte_ms = Some(millis(&self.course.trace.started));
        let proxy = Arc::clone(&self.proxy);
        proxy.traces.counters.active.fetch_add(1, Ordering::Relaxed);
        let accounts = Accounts { proxy, lease, trace: self.course.trace.clone() };
        let ending = Ending { sniffer: None, accounts };
        Response::from_parts(parts, Out::Relay(Box::new(Relay::new(body, ending))))
    }

    fn request(&self, pass: &Pass, body: UpBody) -> Outbound {
        let mut request = self.proxy.outbound(&self.parts, self.parts.headers.clone(), body);
        if self.parts.uri.path().starts_with("/codex/") {
            headers::sign(request.headers_mut(), pass);
        } else {
            headers::identify(request.headers_mut(), pass);
        }
        request
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
            (Some(refused), None) if self.course.trace.tried == 0 => respond::refused(refused),
            _ => self.course.exhausted(&self.proxy),
        };
        self.course.closed(&self.proxy.traces, answer.status(), "failed");
        answer
    }
}

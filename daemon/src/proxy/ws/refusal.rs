//! What upstream refuses otherwise than by an error of the turn: handshakes, what is sealed, and what a
//! turn goes on from.
//!
//! Of a failed handshake, what is the host's goes over HTTP behind the client's socket. So does what
//! upstream says of an account at a handshake, with the same account: the CLI alone does that as well
//! (0.169.0, observed), and only what a turn is answered says for certain that the account can't serve.
//! What it stops on (a used up limit, a 400) is believed at once.

use super::{
    again::Carried,
    frame,
    link::NoLink,
    session::{ANEW, Session},
    socket::{Socket, Text},
    turn::{Step, Turn, Way},
};
use crate::{
    actor::Lease,
    clock,
    proxy::{books, course},
    trouble::Place,
    upstream::Failure,
    vault::Pass,
};
use cma_core::{
    cooldown::Cause,
    identity::AccountId,
    sniff::Sniffer,
    verdict::{self, Mark, Outcome, Verdict},
};
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long an account whose handshake was refused is served over HTTP.
pub(super) const BRIDGED: Duration = Duration::from_secs(600);
/// The same where upstream only asked for a while, without saying for how long. Meanwhile each step of a
/// tool loop costs a whole input.
const BRIDGED_BRIEFLY: Duration = Duration::from_secs(15);

/// Accounts whose handshakes upstream refused, and until when they are served over HTTP. Of all sockets:
/// each of a thread's turns may come on another, and a refusal costs a renewal.
#[derive(Debug, Default)]
pub(super) struct Bridged(Mutex<Vec<(AccountId, Instant)>>);

impl Bridged {
    /// Whether turns of that account go over HTTP.
    pub(super) fn has(&self, account: &AccountId) -> bool {
        let now = Instant::now();
        self.0.lock().iter().any(|(of, until)| of == account && now < *until)
    }

    pub(super) fn add(&self, account: &AccountId, time: Duration) {
        let now = Instant::now();
        let mut all = self.0.lock();
        all.retain(|(of, until)| of != account && now < *until);
        all.push((account.clone(), now + time));
    }
}

impl Session {
    /// Judges a handshake that failed.
    pub(super) async fn no_link(
        &mut self,
        local: &mut Socket,
        turn: &mut Turn,
        (lease, pass): (Lease, Pass),
        no_link: NoLink,
    ) -> Way {
        let now = clock::wall();
        let own = pass.way.host.is_some();
        let fail = |none: bool| {
            self.proxy.sockets.breakers.failed(pass.way.host.as_ref(), none);
        };
        let (parts, bytes) = match no_link {
            NoLink::Failed(Failure::Connect(why)) => {
                return self
                    .not_connected(local, turn, (lease, pass), (&Outcome::ConnectFailed, &why))
                    .await;
            },
            NoLink::Failed(Failure::Barred(why)) => {
                return self
                    .not_connected(local, turn, (lease, pass), (&Outcome::ConnectBarred, &why))
                    .await;
            },
            NoLink::Failed(why) => {
                tracing::debug!(request = %turn.course.trace.id, ?why, "websocket handshake failed");
                fail(false);
                return Way::Http(lease, pass);
            },
            NoLink::TimedOut => {
                tracing::debug!(request = %turn.course.trace.id, "websocket handshake took too long");
                fail(false);
                return Way::Http(lease, pass);
            },
            NoLink::Refused(parts, bytes) => (parts, bytes),
        };
        let status = parts.status.as_u16();
        tracing::debug!(request = %turn.course.trace.id, status, "websocket handshake refused");
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        let head =
            Outcome::Head { status: parts.status, headers: &parts.headers, body: json.as_ref() };
        let mark = verdict::classify(&head, now).mark;
        let limit = matches!(mark, Mark::Cool(Cause::UsageLimit(_)))
            || verdict::stops_the_cli(parts.status, json.as_ref());
        let page = verdict::is_page(parts.status, &parts.headers);
        match status {
            // In front of a host that answers requests, the page may be all it has to say of an upgrade;
            // a portal answers the request with it as well.
            _ if page => {},
            404 | 405 | 426 | 501 => fail(true),
            403 if json.is_none() => fail(false),
            500..=599 => fail(false),
            401 if !turn.course.has_renewed(&lease.account) => {
                turn.sent();
                return Way::Step(self.refused(turn, (lease, own), &parts, &bytes).await);
            },
            _ if limit => {
                turn.sent();
                return Way::Step(self.refused(turn, (lease, own), &parts, &bytes).await);
            },
            408 | 425 | 429 => {
                let time = match mark {
                    Mark::Cool(Cause::Throttled(Some(wait))) => {
                        Duration::from_millis(wait.millis()).min(BRIDGED)
                    },
                    _ => BRIDGED_BRIEFLY,
                };
                self.proxy.sockets.bridged.add(&lease.account, time);
            },
            _ => self.proxy.sockets.bridged.add(&lease.account, BRIDGED),
        }
        Way::Http(lease, pass)
    }

    /// Judges a connection that didn't come about, and why.
    async fn not_connected(
        &mut self,
        local: &mut Socket,
        turn: &mut Turn,
        (lease, pass): (Lease, Pass),
        (outcome, why): (&Outcome<'_>, &str),
    ) -> Way {
        let verdict = verdict::classify(outcome, clock::wall());
        let verdict = course::of_host(verdict, pass.way.host.is_some());
        let reason = format!("{}: {why}", verdict.reason);
        self.proxy.roster.troubles().met(Place::Backend, &reason);
        if turn.prewarm() {
            // Its turn waits for the host, and once is enough.
            drop(lease);
            return Way::Step(self.warmed(local, turn).await);
        }
        turn.sent();
        Way::Step(self.judged(turn, lease, Verdict { reason, ..verdict }, false))
    }

    /// Upstream can't read something sealed, and said so by that frame.
    pub(super) async fn foreign(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
        said: Text,
        verdict: &Verdict,
    ) -> Step {
        let proxy = Arc::clone(&self.proxy);
        let again = turn.unseals(&proxy.traces, &lease.account).await;
        match &turn.create.previous_response_id {
            // It can't be sent again as it is; what comes with everything meets what was learned.
            Some(previous) => {
                let previous = previous.clone();
                self.ask_for_all(turn, &previous)
            },
            None if again => Step::Again,
            None => {
                let verdict = Verdict { mark: Mark::Fine, ..verdict.clone() };
                let status = StatusCode::BAD_REQUEST.as_u16();
                self.ended(turn, lease, status, &verdict, Sniffer::new(clock::wall()));
                Step::Say(said)
            },
        }
    }

    /// Ends the turn in a way on which the client sends it again with its whole input; what was learned
    /// goes on with that.
    pub(super) fn ask_for_all(&self, turn: &mut Turn, previous: &str) -> Step {
        books::again(&mut turn.course.trace);
        let carried = Carried {
            tried: turn.course.trace.tried,
            attempts: std::mem::take(&mut turn.course.trace.attempts),
            reason: std::mem::take(&mut turn.course.reason),
            last: turn.last.take(),
            silences: turn.silences,
            doubts: std::mem::take(&mut turn.doubts),
            refusals: turn.course.refusals(),
        };
        self.proxy.sockets.again.keep(turn.course.trace.thread.as_ref(), carried);
        if self.knows_previous() {
            Step::Say(frame::previous_not_found(previous))
        } else {
            Step::Over(Err(ANEW))
        }
    }
}

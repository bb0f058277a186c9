//! The end of a turn over a WebSocket, and of each of its attempts: what was learned is told to the pool,
//! the lease given back, the trace kept, and the client's last word said.
//!
//! Each way out of a turn gives its lease back once and ends its trace once. Whether there is another
//! attempt is said here ([`Step`]); which account makes it never is.

use super::{
    super::{
        again::{Carried, Last},
        flow::{Ended, Heard},
        frame,
        session::{BROKEN, Leave, Session, say},
        socket::Socket,
    },
    Step, Turn,
};
use crate::{
    actor::Lease,
    clock,
    proxy::{
        books,
        course::{self, Word},
        relay::Answer,
        respond, shown, surface,
    },
    trouble::Place,
};
use cma_core::{
    budget::Blocked,
    pool::{Refused, Release},
    sniff::{End, Sniffer},
    verdict::{self, Act, Mark, Outcome, Verdict},
};
use http::StatusCode;

impl Turn {
    /// Whether upstream's last error is already one on which the CLI stops by itself.
    fn stops_here(&self, refused: Option<&Refused>) -> bool {
        let tried = self.course.trace.tried;
        self.last.as_ref().is_some_and(|last| last.word.is_final(refused.is_some(), tried))
    }
}

impl Session {
    /// Draws the consequences of an attempt's end.
    pub(in crate::proxy::ws) async fn settle(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
        ended: Ended,
        heard: Heard,
    ) -> Step {
        let Heard { sniffer, state, held } = heard;
        turn.course.trace.account = Some(lease.account.clone());
        if turn.course.trace.first_byte_ms.is_some() && !turn.prewarm() {
            turn.ride.shown(&self.proxy, state.as_ref(), &mut turn.course.trace);
        }
        let fine =
            |mark, reason: &str| Verdict { act: Act::Deliver, mark, reason: reason.to_owned() };
        match ended {
            Ended::Final(fault) => {
                let verdict = match &fault {
                    None => {
                        self.proxy.roster.troubles().gone(Place::Backend);
                        course::served(&self.proxy, &lease.account);
                        surface::look_around(&self.proxy, &self.launch);
                        fine(Mark::Fine, "")
                    },
                    Some(fault) => {
                        lease.quota_seen(fault.windows(clock::wall()));
                        fault.verdict(clock::wall())
                    },
                };
                self.ended(turn, lease, 200, &verdict, sniffer);
                Step::Over(Ok(()))
            },
            Ended::Hidden(verdict, said) => {
                let hosts = said.as_ref().is_some_and(|(_frame, fault)| fault.is_hosts());
                if let Some((frame, fault)) = said {
                    lease.quota_seen(fault.windows(clock::wall()));
                    if let Some(status) = fault.status {
                        turn.course.rests.heard(&lease.account, status, &fault.headers);
                    }
                    let (stops, bars) = (fault.stops_the_cli(), verdict.mark.bars());
                    let word = Word { stops, bars, attempt: turn.course.trace.tried };
                    let head = (fault.status, &fault.headers);
                    turn.last = Some(Last::new(frame, head, word, fault.body).after(held));
                }
                lease.quota_seen(sniffer.said().windows);
                self.judged(turn, lease, verdict, hosts)
            },
            Ended::Silent => {
                turn.silences += 1;
                let silent = verdict::classify(&Outcome::HeadTimeout, clock::wall());
                let begun = !held.is_empty();
                let reason =
                    if begun { "it began and fell silent".to_owned() } else { silent.reason };
                self.judged(turn, lease, Verdict { reason, ..silent }, false)
            },
            Ended::Foreign(said, fault) => {
                let verdict = fault.verdict(clock::wall());
                self.foreign(turn, lease, said, &verdict).await
            },
            Ended::Unknown(said) => match turn.create.previous_response_id.clone() {
                Some(previous) => self.ask_for_all(turn, &previous),
                None => {
                    self.ended(turn, lease, 200, &fine(Mark::Fine, "nothing is known"), sniffer);
                    Step::Say(said)
                },
            },
            Ended::Broken(why) => {
                turn.course.trace.attempts.push(format!("{}: {why}", lease.account));
                self.ended(turn, lease, 200, &fine(Mark::Shaky, "cut"), sniffer);
                Step::Over(Err(BROKEN))
            },
            Ended::ClientGone => {
                turn.course.trace.status = 200;
                lease.quota_seen(sniffer.said().windows);
                drop(lease);
                self.traced(turn, "abandoned");
                Step::Over(Err(Leave::Gone))
            },
        }
    }

    /// A turn whose answer was delivered: gives the account back, and notes it.
    pub(in crate::proxy::ws) fn ended(
        &self,
        turn: &mut Turn,
        mut lease: Lease,
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
        turn.course.trace.account = Some(lease.account.clone());
        turn.course.trace.status = status;
        turn.course.trace.usage = said.usage;
        turn.course.trace.model = turn.course.trace.model.take().or(said.model);
        if !turn.prewarm() {
            shown::warmed(&mut lease, &turn.course.trace);
        }
        if !verdict.reason.is_empty() && outcome != "cut" {
            turn.course.trace.attempts.push(format!("{}: {}", lease.account, verdict.reason));
        }
        lease.quota_seen(said.windows);
        let served = outcome == "complete" && !turn.prewarm();
        let model = turn.course.need.model.clone();
        lease.finish(Release { mark: verdict.mark.clone(), served, model });
        self.traced(turn, outcome);
    }

    /// Keeps a turn's trace. A prewarm is no turn.
    pub(super) fn traced(&self, turn: &mut Turn, outcome: &'static str) {
        turn.course.trace.outcome = outcome;
        if !turn.prewarm() {
            self.proxy.traces.end(turn.course.trace.take());
        }
    }

    /// The final word.
    pub(super) async fn give_up(
        &mut self,
        local: &mut Socket,
        mut turn: Box<Turn>,
        refused: Option<&Refused>,
    ) -> Result<(), Leave> {
        let ours: Answer = match refused {
            Some(refused) if turn.ride.is_stuck() => turn.ride.stuck(&self.proxy, refused),
            Some(refused)
                if refused.retry_at.is_some()
                    && refused.quota
                    && !turn
                        .last
                        .as_ref()
                        .is_some_and(|it| it.speaks_for(refused, clock::wall())) =>
            {
                respond::refused(refused)
            },
            _ if turn.stops_here(refused) => {
                turn.course.trace.status = StatusCode::BAD_REQUEST.as_u16();
                self.traced(&mut turn, "failed");
                let Some(last) = turn.last.take() else { return Ok(()) };
                let (before, frame) = (last.before.clone(), last.frame.clone());
                if turn.prewarm() {
                    // Its turn meets the same; the CLI says nothing of a prewarm that fails.
                    let carried = Carried { last: Some(last), ..Carried::default() };
                    self.proxy.sockets.again.keep(turn.course.trace.thread.as_ref(), carried);
                }
                for event in before {
                    say(local, event).await?;
                }
                return say(local, frame).await;
            },
            Some(refused) if turn.course.trace.tried == 0 || refused.is_final() => {
                respond::refused(refused)
            },
            _ => turn.course.exhausted(&self.proxy),
        };
        turn.course.trace.status = ours.status().as_u16();
        self.traced(&mut turn, "failed");
        say(local, frame::wrapped(ours).await).await
    }

    /// Nobody waits for the turn any more.
    pub(in crate::proxy::ws) fn abandoned(&self, turn: &mut Turn) -> Result<(), Leave> {
        self.traced(turn, "abandoned");
        Err(Leave::Gone)
    }

    /// Says which budget keeps a turn out.
    pub(super) async fn blocked(
        &mut self,
        local: &mut Socket,
        turn: &mut Turn,
        blocked: &Blocked,
    ) -> Result<(), Leave> {
        let line = books::refused(&self.proxy, &mut turn.course.trace, blocked);
        say(local, frame::stop(&line)).await
    }
}

//! One turn of a WebSocket: select an account, send, judge, deliver or go on.
//!
//! The rules are those of a turn over HTTP ([`crate::proxy::turn`]), with one difference: a frame that
//! builds on an earlier response can only be sent where that response is known. When it can't be, the
//! client is told so and sends everything again; the account is chosen anew then, with what was learned.
//! What follows of an attempt's end, and the turn's last word, are `settle`'s.

mod settle;

use super::{
    again::Last,
    doubt::Doubts,
    flow::{Ended, Flow, Patience, Source, Told},
    frame::{self, Create},
    link::Link,
    listen::{self, listening, outlasting},
    session::{Leave, Session, say},
    socket::{CloseCode, Socket, Text},
};
use crate::{
    actor::Lease,
    clock,
    config::Config,
    proxy::{
        Proxy, books,
        course::{self, Course, Word},
        held::{self, Bounds},
        moved::{Ride, Said},
        surface::standing,
        trace::Traces,
    },
    trouble::Place,
    vault::Pass,
};
use bytes::Bytes;
use cma_core::{
    budget::Blocked,
    identity::AccountId,
    pool::Refused,
    quota,
    select::{Bar, Need},
    sniff::Sniffer,
    thread::TurnState,
    verdict::{self, Act, Outcome, Verdict},
};
use http::{StatusCode, response};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

/// A handshake that takes longer is not worth waiting for while there is HTTP. The CLI gives up after
/// 15 s (`websocket_connect_timeout_ms`, 0.169.0).
const SHAKE: Duration = Duration::from_secs(10);

/// A turn in progress.
pub(super) struct Turn {
    pub(super) frame: Text,
    pub(super) create: Create,
    pub(super) course: Course,
    ride: Ride,
    /// Whether it compacts its thread.
    compacts: bool,
    /// How often an attempt's beginning was silent.
    pub(super) silences: u32,
    /// Whether the next attempt is to wait.
    pauses: bool,
    /// When its client was last told something.
    pub(super) heard: listen::Heard,
    pub(super) last: Option<Last>,
    pub(super) doubts: Doubts,
}

/// What an attempt leads to.
pub(super) enum Step {
    Again,
    /// A word of our own ends the turn.
    Say(Text),
    /// The turn is over.
    Over(Result<(), Leave>),
}

/// The way an attempt takes.
pub(super) enum Way {
    Link(Lease),
    Http(Lease, Pass),
    Step(Step),
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

    /// What an attempt's events are told to; its thread isn't when it is a prewarm.
    pub(super) fn told(&mut self) -> Told<'_> {
        let warms = self.prewarm();
        let Self { ride, course, frame, .. } = self;
        Told { ride: Some(ride).filter(|_ride| !warms), trace: &mut course.trace, frame }
    }

    /// Another attempt is on its way.
    pub(super) fn sent(&mut self) {
        self.course.trace.tried += 1;
        if !self.prewarm() {
            self.ride.count(&self.course.need, &mut self.course.trace);
        }
    }

    /// How long an attempt is waited for.
    pub(super) fn patience(&self, config: &Config) -> Patience {
        Patience {
            first: held::first_word(config.head_timeout, self.silences),
            hold: Bounds::of(&config.streams, self.compacts, self.silences),
            stall: config.streams.stall,
        }
    }

    /// Whether it is worth waiting for an account, after having waited.
    async fn waited(&mut self, proxy: &Proxy, refused: &Refused) -> bool {
        let rounds = self.last.as_ref().is_none_or(|last| last.word.allows_rounds());
        self.course.waited(proxy, refused, rounds).await
    }

    /// The frame with its bytes as they can be edited.
    fn original(&self) -> Bytes {
        Bytes::from(self.frame.clone())
    }

    /// Something sealed was refused: whether there is another attempt in that.
    pub(super) async fn unseals(&mut self, traces: &Traces, account: &AccountId) -> bool {
        let original = self.original();
        let next = self.ride.refused(&original).await;
        self.course.unsealed(traces, account, next)
    }
}

impl Session {
    /// Serves a turn to its end.
    pub(super) async fn turn(
        &mut self,
        local: &mut Socket,
        frame: Text,
        create: Create,
    ) -> Result<(), Leave> {
        let proxy = Arc::clone(&self.proxy);
        let _active = Active::new(&proxy.traces.counters.active);
        let (mut turn, blocked) = self.begin(frame, create);
        if let Some(blocked) = blocked {
            return self.blocked(local, &mut turn, &blocked).await;
        }
        loop {
            if turn.heard.again(local).await.is_err() {
                return self.abandoned(&mut turn);
            }
            if std::mem::take(&mut turn.pauses) {
                let pause = turn.course.pause();
                if listening(local, &mut self.next, pause).await.is_none() {
                    return self.abandoned(&mut turn);
                }
            }
            if turn.course.is_spent() {
                return self.give_up(local, turn, None).await;
            }
            if let Some(pause) = proxy.health.waits() {
                if turn.prewarm() {
                    return self.put_off(local, &turn).await;
                }
                let wait = turn.course.wait_for_host(pause);
                if listening(local, &mut self.next, wait).await.is_none() {
                    return self.abandoned(&mut turn);
                }
                continue;
            }
            let asked = clock::mono();
            let select = proxy.actor.select(turn.course.need.clone());
            let heard = &mut turn.heard;
            let Some(selected) = outlasting(local, &mut self.next, heard, select).await else {
                return self.abandoned(&mut turn);
            };
            turn.course.queued(asked);
            let mut lease = match selected {
                Err(_gone) => {
                    books::again(&mut turn.course.trace);
                    return Err(Leave::Close(CloseCode::SERVICE_RESTART, "the daemon stops"));
                },
                Ok(Ok(lease)) => lease,
                Ok(Err(refused)) => match turn.course.over() {
                    Some(blocked) => return self.blocked(local, &mut turn, &blocked).await,
                    None if refused.unreached && turn.prewarm() => {
                        return self.put_off(local, &turn).await;
                    },
                    None => {
                        let waits = Box::pin(turn.waited(&proxy, &refused));
                        match listening(local, &mut self.next, waits).await {
                            Some(true) => continue,
                            Some(false) => {
                                return self.give_up(local, turn, Some(&refused)).await;
                            },
                            None => return self.abandoned(&mut turn),
                        }
                    },
                },
            };
            if !turn.course.takes(&mut lease) {
                continue;
            }
            let rests = turn.course.rests.over(&lease.account);
            if listening(local, &mut self.next, rests).await.is_none() {
                return self.abandoned(&mut turn);
            }
            match self.attempt(local, &mut turn, lease).await {
                Step::Again => {},
                Step::Say(frame) => {
                    books::again(&mut turn.course.trace);
                    return say(local, frame).await;
                },
                Step::Over(over) => return over,
            }
        }
    }

    /// Answers a prewarm here. Nobody waits for it: its turn brings its input along.
    async fn put_off(&mut self, local: &mut Socket, turn: &Turn) -> Result<(), Leave> {
        match self.warmed(local, turn).await {
            Step::Say(frame) => say(local, frame).await,
            Step::Over(over) => over,
            Step::Again => Ok(()),
        }
    }

    /// Takes a turn in, with the budget that keeps it out if there is one.
    fn begin(&mut self, frame: Text, create: Create) -> (Box<Turn>, Option<Blocked>) {
        let (mut frame, mut create) = (frame, create);
        // A prewarm that was answered here is sent with its turn, which needn't find out anew why.
        let mut doubts = Doubts::default();
        if let Some(warm) = self.warm.take()
            && create.previous_response_id.as_ref() == Some(&warm.id)
            && let Some(whole) = frame::whole(&frame, &warm.input)
        {
            frame = whole;
            create.previous_response_id = None;
            doubts = warm.doubts;
        }
        let model = create.model.clone();
        let bounds = &self.launch.bounds;
        let mut need = Need { session: bounds.session(self.name.as_ref()), model, ..bounds.need() };
        let mut trace = self.proxy.traces.begin(self.name.clone(), need.model.clone());
        // A prewarm is no turn.
        let mut open = || books::open(&self.proxy, &mut trace, &self.launch).err();
        let blocked = if create.is_prewarm() { None } else { open() };
        let said = Said::in_frame(&create, &self.head);
        let compacts = held::is_compaction(&said);
        let known = &self.proxy.traces.threads;
        let mut ride = Ride::read(known, bounds, said, &mut need, &mut trace);
        if create.previous_response_id.is_some() {
            ride.goes_on();
        }
        let whole = create.previous_response_id.is_none() && !create.is_prewarm();
        let mut turn = Box::new(Turn {
            frame,
            create,
            course: Course::new(need, trace, self.proxy.config.host_wait),
            ride,
            compacts,
            silences: 0,
            pauses: false,
            heard: listen::Heard::new(self.proxy.config.streams.stall),
            last: None,
            doubts,
        });
        let thread = turn.course.trace.thread.as_ref().filter(|_thread| whole);
        if let Some(before) = self.proxy.sockets.again.take(thread) {
            turn.course.trace.tried = before.tried;
            turn.course.trace.attempts = before.attempts;
            turn.course.reason = before.reason;
            turn.last = before.last;
            turn.silences = before.silences;
            turn.doubts.and(before.doubts);
            turn.course.had(before.refusals);
        }
        (turn, blocked)
    }

    async fn attempt(&mut self, local: &mut Socket, turn: &mut Turn, lease: Lease) -> Step {
        let account = lease.account.clone();
        let Some(pass) = self.proxy.vault.pass(&account, lease.generation) else {
            // It left the pool between the choice and now.
            turn.course.need.exclude.push(account);
            return Step::Again;
        };
        // A token that was renewed meanwhile comes with a new connection, unless the turn builds on what
        // only the old one knows.
        let builds = turn.create.previous_response_id.is_some();
        let keeps = |link: &Link| {
            link.account == account
                && link.is_fresh()
                && (builds || link.generation == lease.generation)
                // Its workspace may have moved since, or it is only known now where that is.
                && link.way == pass.way
        };
        if let Some(old) = self.link.take_if(|link| !keeps(link)) {
            old.close().await;
        }
        if let Some(previous) = &turn.create.previous_response_id
            && self.link.as_ref().is_none_or(|link| link.answered.is_none())
        {
            tracing::debug!(request = %turn.course.trace.id, account = %account, "asks for the whole input");
            let previous = previous.clone();
            return self.ask_for_all(turn, &previous);
        }
        self.believe(turn, &pass);
        let original = turn.original();
        if !turn.ride.board(&self.proxy, &account, &pass, &original, &turn.course.need).await {
            turn.course.unfit(account, Bar::Unread);
            return Step::Again;
        }
        // The same bytes as the frame, which is let go of once something was shown.
        drop(original);
        match self.way(local, turn, lease, pass).await {
            Way::Link(lease) => self.over_link(local, turn, lease).await,
            Way::Http(lease, pass) => Box::pin(self.over_http(local, turn, lease, &pass)).await,
            Way::Step(step) => step,
        }
    }

    /// The last silence for which there is time is believed, as over HTTP: it waits longer, and not for a
    /// connection that swallowed a message.
    fn believe(&self, turn: &mut Turn, pass: &Pass) {
        if turn.silences == 0 || turn.prewarm() {
            return;
        }
        let Patience { first, hold, .. } = turn.patience(&self.proxy.config);
        let wait = first + hold.silence.unwrap_or_default();
        let believed = turn.course.believed(turn.silences, wait);
        if believed > turn.silences {
            turn.silences = believed;
            turn.doubts.last_chance(pass.way.host.as_ref());
        }
    }

    /// The way for this attempt, with the connection there if it is one over a WebSocket.
    async fn way(&mut self, local: &mut Socket, turn: &mut Turn, lease: Lease, pass: Pass) -> Way {
        if self.link.is_some() {
            return Way::Link(lease);
        }
        let (sockets, host) = (&self.proxy.sockets, pass.way.host.as_ref());
        if turn.doubts.of(&lease.account, host)
            || sockets.bridged.has(&lease.account)
            || !sockets.breakers.allows(host)
        {
            return Way::Http(lease, pass);
        }
        let proxy = Arc::clone(&self.proxy);
        let limit = proxy.config.head_timeout.min(SHAKE);
        let open = Link::open(
            &proxy.upstream,
            &proxy.responses,
            (&lease.account, lease.generation, &pass),
            &self.head,
            limit,
        );
        let Some(opened) = listening(local, &mut self.next, Box::pin(open)).await else {
            return Way::Step(Step::Over(self.abandoned(turn)));
        };
        let no_link = match opened {
            Ok(link) => {
                proxy.roster.troubles().gone(Place::Backend);
                self.link = Some(link);
                return Way::Link(lease);
            },
            Err(no_link) => no_link,
        };
        Box::pin(self.no_link(local, turn, (lease, pass), no_link)).await
    }

    /// Judges an HTTP answer that is no success. `own` says whether the account is behind a host of its
    /// own.
    pub(super) async fn refused(
        &mut self,
        turn: &mut Turn,
        (lease, own): (Lease, bool),
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
            return self.judged(turn, lease, course::of_host(verdict, own), false);
        }
        let stops = verdict::stops_the_cli(parts.status, json.as_ref());
        let frame = match parts.status {
            // Of an answer the CLI prints the body, of a frame of that status the frame.
            StatusCode::BAD_REQUEST => frame::stop(String::from_utf8_lossy(bytes).trim()),
            status => frame::wrap(status.as_u16(), &parts.headers, bytes),
        };
        if frame::is_foreign(bytes) {
            return self.foreign(turn, lease, frame, &verdict).await;
        }
        if verdict.act == Act::Deliver {
            self.ended(turn, lease, parts.status.as_u16(), &verdict, Sniffer::new(clock::wall()));
            return Step::Say(frame);
        }
        turn.course.rests.heard(&lease.account, parts.status, &parts.headers);
        let head = (Some(parts.status), &parts.headers);
        let (bars, attempt) = (verdict.mark.bars(), turn.course.trace.tried);
        let word = Word { stops, bars, attempt };
        turn.last = Some(Last::new(frame, head, word, json.unwrap_or_default()));
        self.judged(turn, lease, verdict, parts.status.is_server_error())
    }

    /// Applies a verdict on an attempt that showed nothing. `hosts` says that the failure is one of
    /// the host's.
    pub(super) fn judged(
        &self,
        turn: &mut Turn,
        lease: Lease,
        verdict: Verdict,
        hosts: bool,
    ) -> Step {
        // What a prewarm meets, its turn meets again: it is counted once.
        let hosts = hosts && !turn.prewarm();
        // One that goes on from an earlier response can't be sent anywhere else as it is: when somebody
        // could serve it, its client is asked for all of it, and when nobody can, told so at once.
        turn.pauses = turn.course.failed(&self.proxy, lease, verdict, hosts);
        Step::Again
    }

    async fn over_link(&mut self, local: &mut Socket, turn: &mut Turn, lease: Lease) -> Step {
        let Some(frame) = self.signed(turn, &lease.account) else {
            return Step::Say(frame::unreadable());
        };
        let Some(link) = &mut self.link else { return Step::Again };
        turn.sent();
        let proxy = Arc::clone(&self.proxy);
        let limit = proxy.config.head_timeout;
        let limit = course::patience(limit, frame.len());
        // Nearly each leaves at once, and needs no timer.
        let sent = {
            let mut send = std::pin::pin!(link.send(frame));
            match futures_util::poll!(send.as_mut()) {
                Poll::Ready(sent) => Some(Ok(sent)),
                Poll::Pending => {
                    let send = tokio::time::timeout(limit, send);
                    outlasting(local, &mut self.next, &mut turn.heard, Box::pin(send)).await
                },
            }
        };
        let Some(sent) = sent else {
            self.link = None;
            return Step::Over(self.abandoned(turn));
        };
        let Some(link) = &mut self.link else { return Step::Again };
        let account = lease.account.clone();
        let patience = turn.patience(&proxy.config);
        let to = (&proxy, &self.launch);
        let standing = standing::of(&proxy, &self.launch).await;
        let mut flow = Flow::new(to, &account, turn.told(), patience, self.wake.as_mut());
        flow.standing = standing;
        // A connection has proved itself once something came of it.
        flow.unproved = link.answered.is_none().then(|| link.way.host.clone());
        let ended = match sent {
            Ok(Ok(())) => flow.run(local, Source::Link(link), &mut self.next).await,
            Ok(Err(_)) | Err(_) => {
                let cut = verdict::classify(&Outcome::Cut, clock::wall());
                Ended::Hidden(cut, None)
            },
        };
        let ended = flow.blamed_on_link(ended, link, lease.generation);
        let (heard, unproved) = (flow.heard, flow.unproved);
        let host = link.way.host.clone();
        let begun = !heard.held.is_empty();
        let lost = turn.doubts.note((&ended, begun), unproved.is_some(), host.as_ref());
        if lost && unproved.is_some() {
            proxy.sockets.breakers.lost(host.as_ref());
        }
        if matches!(ended, Ended::Final(None)) {
            link.answered = Some(clock::mono());
        } else if let Some(link) = self.link.take() {
            // What runs on it is nobody's any more.
            link.close().await;
        }
        // What refuses a frame may be there for frames alone.
        if let Ended::Hidden(verdict, Some(_)) = &ended
            && turn.doubts.refuses(&account, verdict)
            && let Some(pass) = proxy.vault.pass(&account, lease.generation)
        {
            let reason = format!("{} in a frame", verdict.reason);
            proxy.traces.retry(&mut turn.course.trace, &account, &reason);
            if let Some(previous) = turn.create.previous_response_id.clone() {
                return self.ask_for_all(turn, &previous);
            }
            return Box::pin(self.over_http(local, turn, lease, &pass)).await;
        }
        self.settle(turn, lease, ended, heard).await
    }

    /// The turn's frame for an account: without what only another one can read, and with a turn state
    /// of its own if any. `None` when that would have to be edited and the frame isn't JSON all through.
    pub(super) fn signed(&self, turn: &Turn, account: &AccountId) -> Option<Text> {
        let edited = turn.ride.frame().and_then(|bytes| Text::try_from(bytes.clone()).ok());
        let frame = edited.unwrap_or_else(|| turn.frame.clone());
        let Some(shown) = turn.create.turn_state() else { return Some(frame) };
        let own = match turn.ride.turn_state() {
            Some(TurnState::Own(state)) => state.to_str().ok(),
            Some(TurnState::Drop) => None,
            // What is known of its thread would let it through, or nothing is known of a thread: who gave
            // it decides, where that is known.
            shown_or_unknown => {
                let gave = self.proxy.sockets.gave_state(shown, account);
                gave.unwrap_or(shown_or_unknown.is_some()).then_some(shown)
            },
        };
        if own == Some(shown) { Some(frame) } else { frame::with_turn_state(&frame, own) }
    }
}

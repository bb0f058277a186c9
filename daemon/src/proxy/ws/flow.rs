//! One attempt's events on their way to the client.
//!
//! Until the first part of an answer, events are held back, bounded in time and bytes: an attempt that
//! fails by then has shown nothing, and the request can begin again elsewhere. From there on what comes
//! is passed on as it comes, errors too, and nothing is hidden.
//!
//! Upstream is read only while the client's socket takes what was read before.

use super::{
    frame,
    link::{Came, Link},
    socket::{Said, Socket, Text},
    sse,
};
use crate::{
    clock,
    proxy::{
        Proxy,
        held::Bounds,
        keys::Launch,
        moved::Ride,
        surface::{self, standing::Standing},
        trace::{Trace, millis},
    },
};
use bytes::Bytes;
use cma_core::{
    event::{self, Fault, Kind, OfConnection},
    identity::AccountId,
    sniff::Sniffer,
    token::Generation,
    verdict::{self, Act, Mark, Outcome, Verdict},
};
use http::HeaderValue;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// A client that takes nothing for this long has gone.
const BLOCKED: Duration = Duration::from_secs(300);

/// After a rest this long, whatever is between may have forgotten a connection, and says so to nobody.
const RESTED: Duration = Duration::from_secs(60);

/// How long an attempt is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For its first event.
    pub(super) first: Duration,
    /// For the first part of its answer, while its beginning is held back.
    pub(super) hold: Bounds,
    /// For more, once something was shown.
    pub(super) stall: Duration,
}

/// What an attempt said.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) sniffer: Sniffer,
    /// The turn state that it gave.
    pub(super) state: Option<HeaderValue>,
    /// What is held back.
    pub(super) held: Vec<Text>,
}

/// Where an attempt's events come from.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Link(&'a mut Link),
    Http(&'a mut sse::Stream),
}

impl Source<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Came> {
        match self {
            Self::Link(link) => link.poll(context),
            Self::Http(stream) => stream.poll(context),
        }
    }

    /// Passes on what comes next of the answer's parts, without a look at what they say; whether there
    /// were any. Nearly all events are.
    fn poll_pass(&mut self, local: &mut Socket, context: &mut Context<'_>) -> Poll<bool> {
        match self {
            Self::Link(link) => {
                link.poll_pass(local, |text| Kind::of(text.as_bytes()) == Kind::Visible, context)
            },
            Self::Http(_) => Poll::Ready(false),
        }
    }
}

/// What an attempt's events are told to.
#[derive(Debug)]
pub(super) struct Told<'a> {
    pub(super) ride: Option<&'a mut Ride>,
    pub(super) trace: &'a mut Trace,
    /// The turn's frame, let go of once something was shown.
    pub(super) frame: &'a mut Text,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The final event was passed on. With its fault, if that is what it was.
    Final(Option<Fault>),
    /// Nothing was shown: it can begin again. With the frame that said so, if one did.
    Hidden(Verdict, Option<(Text, Fault)>),
    /// Nothing was shown, and nothing more came.
    Silent,
    /// Nothing was shown, and upstream can't read something sealed. With the frame that said so.
    Foreign(Text, Fault),
    /// Nothing was shown, and what it goes on from is not known there. With the frame that said so.
    Unknown(Text),
    /// It broke off after something was shown.
    Broken(&'static str),
    /// Nobody listens any more.
    ClientGone,
}

/// An attempt's state on its way down.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    pub(super) proxy: &'a Arc<Proxy>,
    /// Whose launch the client is of.
    pub(super) launch: &'a Launch,
    pub(super) account: &'a AccountId,
    trace: &'a mut Trace,
    /// The thread, until it was told that this account answers it.
    ride: Option<&'a mut Ride>,
    /// What was sent, kept to be sent again until something was shown.
    frame: &'a mut Text,
    pub(super) heard: Heard,
    held_bytes: usize,
    shown: bool,
    /// Something was given to the client's socket and not flushed.
    dirty: bool,
    sent: Instant,
    /// When the first event came.
    begun: Option<Instant>,
    /// The host of a connection that no answer has come of yet; told to its breaker with the first part of
    /// one.
    pub(super) unproved: Option<Option<HeaderValue>>,
    /// What the launch's accounts have left.
    pub(super) standing: Standing,
    last: Instant,
    patience: Patience,
    /// May be due too early, and is never due too late.
    wake: Pin<&'a mut Sleep>,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        (proxy, launch): (&'a Arc<Proxy>, &'a Launch),
        account: &'a AccountId,
        told: Told<'a>,
        patience: Patience,
        mut wake: Pin<&'a mut Sleep>,
    ) -> Self {
        let now = clock::mono();
        let hold = patience.hold.silence.unwrap_or(patience.hold.time).min(patience.hold.time);
        let soonest = now + patience.first.min(hold);
        if wake.is_elapsed() || wake.deadline() > soonest {
            wake.as_mut().reset(soonest);
        }
        let Told { ride, trace, frame } = told;
        Self {
            proxy,
            launch,
            account,
            trace,
            ride,
            frame,
            heard: Heard { sniffer: Sniffer::new(clock::wall()), state: None, held: Vec::new() },
            held_bytes: 0,
            shown: false,
            dirty: false,
            sent: now,
            begun: None,
            unproved: None,
            standing: Standing::default(),
            last: now,
            patience,
            wake,
        }
    }

    /// Passes events on until the attempt has ended. A frame that the client sends meanwhile waits in
    /// `next`, and nothing more is read from it then.
    pub(super) async fn run(
        &mut self,
        local: &mut Socket,
        mut source: Source<'_>,
        next: &mut Option<Text>,
    ) -> Ended {
        let ended = std::future::poll_fn(|context| {
            if let Poll::Ready(ended) = self.down(local, &mut source, context) {
                return Poll::Ready(ended);
            }
            if self.dirty {
                match local.poll_flush(context) {
                    Poll::Ready(Ok(())) => {
                        self.dirty = false;
                        // An answer that takes its time is the thread's from here on, whatever becomes of
                        // it and of this daemon.
                        if let Some(ride) = self.ride.take_if(|_ride| self.shown) {
                            ride.shown(self.proxy, self.heard.state.as_ref(), self.trace);
                        }
                    },
                    Poll::Ready(Err(_gone)) => return Poll::Ready(Ended::ClientGone),
                    Poll::Pending => {},
                }
            }
            while next.is_none() {
                match local.poll_said(context) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(Said::Text(text))) => *next = Some(text),
                    Poll::Ready(Ok(Said::Sign)) => {},
                    Poll::Ready(_gone_or_broken) => return Poll::Ready(Ended::ClientGone),
                }
            }
            self.clocked(local, context)
        })
        .await;
        if !self.dirty || matches!(ended, Ended::ClientGone) {
            return ended;
        }
        match tokio::time::timeout(BLOCKED, local.flush()).await {
            Ok(Ok(())) => ended,
            // It left at the last event: it had its answer.
            Ok(Err(_)) if matches!(ended, Ended::Final(_)) => ended,
            Ok(Err(_)) | Err(_) => Ended::ClientGone,
        }
    }

    /// What an attempt's end over a link says, in the light of that link: one that was used before and
    /// is silent or gone at the first word may be dead since then, and one that was opened with another
    /// token than the account's is refused for that one. Neither is the account's fault.
    pub(super) fn blamed_on_link(&self, ended: Ended, link: &Link, current: Generation) -> Ended {
        let (verdict, said) = match ended {
            Ended::Hidden(verdict, said) => (verdict, said),
            Ended::Silent if self.begun.is_none() && self.was_dead(link) => {
                (verdict::classify(&Outcome::HeadTimeout, clock::wall()), None)
            },
            ended => return ended,
        };
        let reason = if verdict.mark == Mark::Unauthorized && link.generation != current {
            "the connection's token was renewed meanwhile"
        } else if said.is_none() && self.begun.is_none() && self.was_dead(link) {
            "the connection was dead"
        } else {
            return Ended::Hidden(verdict, said);
        };
        let reason = format!("{reason} ({})", verdict.reason);
        Ended::Hidden(Verdict { act: Act::RetrySame, mark: Mark::Fine, reason }, None)
    }

    /// Whether a link without a word may have been dead before its turn: cut, or silent after a rest.
    fn was_dead(&self, link: &Link) -> bool {
        let Some(rested) = link.answered else { return false };
        clock::since(self.sent) < self.patience.first
            || self.sent.saturating_duration_since(rested) >= RESTED
    }

    /// Moves what is there from upstream to the client.
    fn down(
        &mut self,
        local: &mut Socket,
        source: &mut Source<'_>,
        context: &mut Context<'_>,
    ) -> Poll<Ended> {
        loop {
            match local.poll_ready(context) {
                Poll::Ready(Ok(())) => {},
                Poll::Ready(Err(_gone)) => return Poll::Ready(Ended::ClientGone),
                Poll::Pending => return Poll::Pending,
            }
            if self.shown && ready!(source.poll_pass(local, context)) {
                self.last = clock::mono();
                self.dirty = true;
                continue;
            }
            match source.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Came::Nothing) => {},
                Poll::Ready(Came::Text(text)) => {
                    self.last = clock::mono();
                    if let Some(ended) = self.take(local, text) {
                        return Poll::Ready(ended);
                    }
                },
                Poll::Ready(Came::End(why)) if self.shown => {
                    return Poll::Ready(Ended::Broken(why));
                },
                Poll::Ready(Came::End(why)) => {
                    let cut = verdict::classify(&Outcome::Cut, clock::wall());
                    let verdict = Verdict { reason: why.to_owned(), ..cut };
                    return Poll::Ready(Ended::Hidden(verdict, None));
                },
            }
        }
    }

    fn take(&mut self, local: &mut Socket, text: Text) -> Option<Ended> {
        let mut text = text;
        let kind = Kind::of(text.as_bytes());
        match kind {
            Kind::Visible if self.shown => {
                self.pass(local, &text);
                return None;
            },
            Kind::Metadata => {
                let mut headers = event::metadata(text.as_bytes());
                if let Some(state) = headers.get(frame::TURN_STATE) {
                    if let Ok(state) = state.to_str() {
                        self.proxy.sockets.note_state(state, self.account);
                    }
                    self.heard.state = Some(state.clone());
                }
                // As of an answer over HTTP: the tag of the pool's list, not of the account's.
                if let Some(told) = headers.get(frame::MODELS).cloned() {
                    surface::after_turn(self.proxy, self.launch, &mut headers);
                    let tag = headers.get(frame::MODELS);
                    if tag != Some(&told) {
                        let tag = tag.and_then(|tag| tag.to_str().ok());
                        text = frame::with_header(&text, frame::MODELS, tag).unwrap_or(text);
                    }
                }
            },
            // Kept until the next one: a copy, for what it was read with isn't held as long.
            Kind::Limits => {
                self.heard.sniffer.event(Bytes::copy_from_slice(text.as_bytes()));
                let pools = self.standing.in_event(self.account, &text);
                text = pools.map_or(text, Text::from);
            },
            // It repeats the whole answer, and is read once it has left.
            _ if kind.is_final() => self.heard.sniffer.event(text.clone().into()),
            _ => {},
        }
        let fault = kind.is_fault().then(|| Fault::read(text.as_bytes()));
        // Not what only precedes an answer: it may be all that comes through.
        if (kind == Kind::Visible || (kind.is_final() && fault.is_none()))
            && let Some(host) = self.unproved.take()
        {
            self.proxy.sockets.breakers.worked(host.as_ref());
        }
        if !self.shown {
            self.begun.get_or_insert(self.last);
            if kind.is_before_the_answer()
                && self.held_bytes + text.len() <= self.patience.hold.bytes
            {
                self.held_bytes += text.len();
                self.heard.held.push(text);
                return None;
            }
            if let Some(fault) = &fault {
                let verdict = fault.verdict(clock::wall());
                if fault.of_connection() == Some(OfConnection::PreviousUnknown) {
                    return Some(Ended::Unknown(text));
                }
                if frame::is_foreign(text.as_bytes()) {
                    return Some(Ended::Foreign(text, fault.clone()));
                }
                if verdict.act != Act::Deliver {
                    return Some(Ended::Hidden(verdict, Some((text, fault.clone()))));
                }
            }
            self.show(local);
        }
        self.pass(local, &text);
        kind.is_final().then_some(Ended::Final(fault))
    }

    /// Lets go of what was held.
    fn show(&mut self, local: &mut Socket) {
        self.shown = true;
        // Tens of megabytes at worst, and the answer may take minutes.
        *self.frame = Text::default();
        self.trace.first_byte_ms = Some(millis(&self.trace.started));
        self.held_bytes = 0;
        for text in std::mem::take(&mut self.heard.held) {
            self.pass(local, &text);
        }
    }

    /// Gives a message to the client's socket.
    fn pass(&mut self, local: &mut Socket, text: &str) {
        self.dirty = true;
        local.give(text);
    }

    /// What time alone decides.
    fn clocked(&mut self, local: &mut Socket, context: &mut Context<'_>) -> Poll<Ended> {
        while self.wake.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let Patience { first, hold, stall } = self.patience;
            let due = match (self.begun, hold.silence) {
                _ if self.shown => self.last + if self.dirty { BLOCKED } else { stall },
                (Some(begun), Some(silence)) => (begun + hold.time).min(self.last + silence),
                (Some(begun), None) => begun + hold.time,
                (None, _) => self.sent + first,
            };
            if now < due {
                self.wake.as_mut().reset(due);
                continue;
            }
            if self.shown {
                let gone = self.dirty;
                let stalled = Ended::Broken("nothing came for too long");
                return Poll::Ready(if gone { Ended::ClientGone } else { stalled });
            }
            if self.begun.is_none() {
                return Poll::Ready(Ended::Silent);
            }
            if hold.silence.is_some_and(|silence| self.last.elapsed() >= silence) {
                return Poll::Ready(Ended::Silent);
            }
            self.show(local);
            // It has to be flushed, by another round.
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

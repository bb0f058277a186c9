//! The one owner of the pool.
//!
//! [`Pool`] takes inputs one after another, in the order in which they came into its two inboxes, so
//! production sees the same kind of sequence that the core's tests do. Control (people, config) goes
//! before work (requests), so a burst of requests can't starve a switch. Effects leave at once: replies
//! by one-shot channels, renewals as tracked tasks, changes to whoever listens.
//!
//! A task empties the inboxes whenever something comes in, and waits for the one timer. Whoever asks
//! for an account, or tells something of one, empties them at once, if nobody is at it, and is answered
//! where it stands: a request would otherwise be put aside and taken up again twice, for nothing. Only one
//! that has to wait goes by a channel.
//!
//! The work inbox is unbounded on purpose: it holds at most one select and one release for each
//! client connection, and those are bounded at the gate. That makes a release infallible and
//! wait-free, so a lease can't leak, not even from a `Drop`.

use crate::{
    app::Tasks,
    clock::{self, Clock},
    renewal::Renewer,
};
use cma_core::{
    identity::AccountId,
    pace::Pace,
    pool::{Effect, Grant, Input, LeaseId, Pool, Refused, Release, RenewalFailure, Ticket, Topic},
    quota::Window,
    select::{Choice, Need},
    time::{Now, Wall},
    token::Generation,
    verdict::Mark,
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, Sleep},
};

/// Commands waiting; each is a person's, so few.
const CONTROL_INBOX: usize = 64;
/// Changes a slow listener may be behind before it gets a snapshot instead.
const CHANGES: usize = 256;

/// Longest time without a look at the clocks.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

type Look = Box<dyn FnOnce(&Pool, Now) + Send>;
/// What somebody who asks gets, and how long the choice took.
type Granted = (Grant, Duration);

#[expect(clippy::large_enum_variant, reason = "nearly all are inputs, which would be boxed each")]
enum Control {
    Input(Input, oneshot::Sender<u64>),
    Look(Look),
    /// No renewals from here on; answered when it holds.
    StopRenewing(oneshot::Sender<()>),
}

enum Work {
    Select(Need, oneshot::Sender<Granted>),
    /// Something was asked or told at the desk: the timer is due earlier.
    Waits,
    /// Somebody who asked went away.
    Gone,
    Input(Input),
    Renewed(AccountId, Generation, Result<(Generation, Option<u64>), RenewalFailure>),
}

/// Talks to the actor. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    control: mpsc::Sender<Control>,
    inbox: Inbox,
    changes: broadcast::Sender<Change>,
}

/// A change of the pool.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) epoch: u64,
    pub(crate) topic: Topic,
}

/// The actor is gone: the daemon is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is stopping")]
pub(crate) struct Gone;

/// A choice, and how long it took.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) choice: Choice,
    pub(crate) took: Duration,
}

/// One request's hold on one account. Dropping it unfinished releases it as abandoned.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) account: AccountId,
    pub(crate) generation: Generation,
    /// What it was chosen by, and what that took; for whoever traces it.
    pub(crate) choice: Option<Box<Made>>,
    id: Option<LeaseId>,
    /// Told with its end: a thread, and how many tokens of it are cached.
    warm: Option<(Arc<str>, u32)>,
    inbox: Inbox,
}

impl Lease {
    /// Gives the account back with what was learned, in one message: it cools before anybody else
    /// can choose it.
    pub(crate) fn finish(mut self, release: Release) {
        let last = self.last(release);
        self.inbox.tell(last);
    }

    /// What is told at its end; nothing once it has ended.
    fn last(&mut self, release: Release) -> impl Iterator<Item = Input> + use<> {
        let warm = self.warm.take().map(|(thread, tokens)| Input::Warm(thread, tokens));
        warm.into_iter().chain(self.id.take().map(|id| Input::Release(id, release)))
    }

    /// Tells, with its end, how much of a thread its account has cached from here on.
    pub(crate) fn warm(&mut self, thread: Arc<str>, tokens: u32) {
        self.warm = Some((thread, tokens));
    }

    /// Tells the quota an answer carried.
    pub(crate) fn quota_seen(&self, windows: Vec<Window>) {
        if !windows.is_empty() {
            self.inbox.tell([Input::QuotaSeen(self.account.clone(), windows)]);
        }
    }
}

/// The work inbox, and the desk where it needn't be used.
#[derive(Debug, Clone)]
struct Inbox {
    desk: SharedDesk,
    work: mpsc::UnboundedSender<Work>,
}

impl Inbox {
    /// Tells at the desk, or by the inbox when somebody is at it, or nobody there.
    fn tell(&self, inputs: impl IntoIterator<Item = Input>) {
        match self.desk.0.try_lock().as_deref_mut() {
            Some(Some(desk)) => desk.take_in(inputs),
            Some(None) | None => {
                for input in inputs {
                    let _stopping = self.work.send(Work::Input(input));
                }
            },
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // By the inbox: wherever it is dropped, nothing is done there.
        for input in self.last(Release { mark: Mark::Fine, served: false, model: None }) {
            let _stopping = self.inbox.work.send(Work::Input(input));
        }
    }
}

impl Handle {
    /// Asks for an account. Waits while a token is renewed, else answers at once.
    ///
    /// Cancellation-safe: a grant that nobody takes is released, whether it was on its way or not.
    pub(crate) async fn select(&self, need: Need) -> Result<Result<Lease, Refused>, Gone> {
        let granted = match self.inbox.desk.ask(need) {
            Asked::Answered(granted) => granted,
            Asked::Waits(grant) => self.granted(grant).await?,
            Asked::NotNow(need) => {
                let (reply, grant) = oneshot::channel();
                self.inbox.work.send(Work::Select(need, reply)).map_err(|_closed| Gone)?;
                self.granted(grant).await?
            },
        };
        match granted {
            (Grant::Lease { lease, account, generation, choice }, took) => {
                let choice = Some(Box::new(Made { choice: *choice, took }));
                let (id, inbox) = (Some(lease), self.inbox.clone());
                Ok(Ok(Lease { account, generation, choice, id, warm: None, inbox }))
            },
            (Grant::Refused(refused), _took) => Ok(Err(refused)),
        }
    }

    /// Waits for an answer. Going away meanwhile tells the actor.
    async fn granted(&self, grant: oneshot::Receiver<Granted>) -> Result<Granted, Gone> {
        let mut asking = Asking { grant, work: Some(&self.inbox.work) };
        let granted = (&mut asking.grant).await;
        asking.work = None;
        granted.map_err(|_closed| Gone)
    }

    /// Tells something about an account outside a lease.
    pub(crate) fn tell(&self, input: Input) {
        self.inbox.tell([input]);
    }

    /// Gives an input ahead of all requests; returns the epoch after it.
    pub(crate) async fn command(&self, input: Input) -> Result<u64, Gone> {
        let (reply, done) = oneshot::channel();
        self.control.send(Control::Input(input, reply)).await.map_err(|_closed| Gone)?;
        done.await.map_err(|_closed| Gone)
    }

    /// Looks at the pool, ahead of all requests.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Pool, Now) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (reply, seen) = oneshot::channel();
        let look: Look = Box::new(move |pool, now| {
            // The asker may have gone meanwhile.
            let _asker_gone = reply.send(look(pool, now));
        });
        self.control.send(Control::Look(look)).await.map_err(|_closed| Gone)?;
        seen.await.map_err(|_closed| Gone)
    }

    /// Starts no renewal from here on. Those under way are tracked tasks and are awaited elsewhere.
    pub(crate) async fn stop_renewing(&self) {
        let (reply, done) = oneshot::channel();
        if self.control.send(Control::StopRenewing(reply)).await.is_ok() {
            let _actor_gone = done.await;
        }
    }

    /// Changes from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}

/// Somebody who waits for a grant: going away tells the actor, and gives back what came meanwhile.
struct Asking<'a> {
    grant: oneshot::Receiver<Granted>,
    work: Option<&'a mpsc::UnboundedSender<Work>>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let Some(work) = self.work else { return };
        self.grant.close();
        let _stopping = work.send(match self.grant.try_recv() {
            Ok((Grant::Lease { lease, .. }, _took)) => {
                let release = Release { mark: Mark::Fine, served: false, model: None };
                Work::Input(Input::Release(lease, release))
            },
            _ => Work::Gone,
        });
    }
}

/// The actor before it runs.
pub(crate) struct Actor {
    desk: Desk,
    shared: SharedDesk,
}

/// Where the pool is while the actor runs.
#[derive(Clone, Default)]
struct SharedDesk(Arc<Mutex<Option<Desk>>>);

impl std::fmt::Debug for SharedDesk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedDesk").finish_non_exhaustive()
    }
}

/// What comes of asking at the desk.
enum Asked {
    Answered(Granted),
    Waits(oneshot::Receiver<Granted>),
    /// Somebody is at it, or nobody there: the question has to wait in the inbox.
    NotNow(Need),
}

impl SharedDesk {
    /// Asks for an account, after all that waits in the inboxes.
    fn ask(&self, need: Need) -> Asked {
        match self.0.try_lock().as_deref_mut() {
            Some(Some(desk)) => desk.ask(need),
            Some(None) | None => Asked::NotNow(need),
        }
    }
}

/// Takes the pool away when the actor ends, however it does: nobody is answered from then on.
struct Open(SharedDesk);

impl Drop for Open {
    fn drop(&mut self) {
        let desk = self.0.0.lock().take();
        drop(desk);
    }
}

/// The pool with its inboxes.
struct Desk {
    pool: Pool,
    clock: Clock,
    control: mpsc::Receiver<Control>,
    work: mpsc::UnboundedReceiver<Work>,
    work_in: mpsc::UnboundedSender<Work>,
    changes: broadcast::Sender<Change>,
    renewer: Arc<Renewer>,
    tasks: Tasks,
    waiting: BTreeMap<Ticket, oneshot::Sender<Granted>>,
    /// Who asks at the desk, and the answer.
    asking: Option<Ticket>,
    answer: Option<Grant>,
    /// When the choice began that is being made.
    begun: Instant,
    /// When the task's timer fires.
    due: Instant,
    next_ticket: u64,
    renewing: bool,
}

impl Actor {
    /// An actor over an empty pool, and the handle to it.
    pub(crate) fn new(seed: u64, renewer: Arc<Renewer>, tasks: Tasks) -> (Self, Handle) {
        let (control_in, control) = mpsc::channel(CONTROL_INBOX);
        let (work_in, work) = mpsc::unbounded_channel();
        let (changes, _nobody_yet) = broadcast::channel(CHANGES);
        let desk = Desk {
            pool: Pool::new(seed),
            clock: Clock::start(),
            control,
            work,
            work_in: work_in.clone(),
            changes: changes.clone(),
            renewer,
            tasks,
            waiting: BTreeMap::new(),
            asking: None,
            answer: None,
            begun: Instant::now(),
            due: Instant::now(),
            next_ticket: 1,
            renewing: true,
        };
        let shared = SharedDesk::default();
        let inbox = Inbox { desk: shared.clone(), work: work_in };
        let handle = Handle { control: control_in, inbox, changes };
        (Self { desk, shared }, handle)
    }

    /// Sets how fast credentials are renewed ahead of their expiry.
    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.desk.pool.set_pace(pace);
    }

    /// Takes inputs in before the loop runs.
    pub(crate) fn prime(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let now = self.desk.clock.now();
        for input in inputs {
            self.desk.pool.handle(now, input);
        }
    }

    /// Runs until `stop` resolves.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        // A long timer is cut: the wall clock may jump while it runs (sleep, NTP).
        let mut timer = std::pin::pin!(tokio::time::sleep(LONGEST_SLEEP));
        self.desk.apply(self.desk.clock.now());
        let open = Open(self.shared);
        *open.0.0.lock() = Some(self.desk);
        std::future::poll_fn(|context| {
            if stop.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let mut desk = open.0.0.lock();
            let Some(desk) = desk.as_mut() else { return Poll::Ready(()) };
            desk.poll(timer.as_mut(), context);
            Poll::Pending
        })
        .await;
    }
}

impl Desk {
    /// Takes in what waits and what the time brings, until there is nothing more.
    fn poll(&mut self, mut timer: Pin<&mut Sleep>, context: &mut Context<'_>) {
        loop {
            if let Poll::Ready(Some(control)) = self.control.poll_recv(context) {
                self.control(control);
                continue;
            }
            if let Poll::Ready(Some(work)) = self.work.poll_recv(context) {
                self.works(work);
                continue;
            }
            if let Some(wake) = self.pool.next_wake(self.clock.now()) {
                let due = clock::mono() + Duration::from_millis(wake.millis());
                // One that fires early costs a tick; moving it costs more, and at every request.
                if due < timer.deadline() {
                    timer.as_mut().reset(due);
                }
            }
            if timer.as_mut().poll(context).is_pending() {
                self.due = timer.deadline();
                return;
            }
            timer.as_mut().reset(clock::mono() + LONGEST_SLEEP);
            let now = self.clock.now();
            self.pool.handle(now, Input::Tick);
            self.apply(now);
        }
    }

    /// Takes in what waits.
    fn catch_up(&mut self) {
        // Mostly nothing does.
        while !(self.control.is_empty() && self.work.is_empty()) {
            if let Ok(control) = self.control.try_recv() {
                self.control(control);
            } else if let Ok(work) = self.work.try_recv() {
                self.works(work);
            } else {
                return;
            }
        }
    }

    /// Takes in what waits, and then a question.
    fn ask(&mut self, need: Need) -> Asked {
        self.catch_up();
        let now = self.clock.now();
        let ticket = self.ticket();
        self.asking = Some(ticket);
        self.pool.handle(now, Input::Select(ticket, need));
        self.apply(now);
        self.asking = None;
        if let Some(grant) = self.answer.take() {
            return Asked::Answered((grant, self.begun.elapsed()));
        }
        let (reply, grant) = oneshot::channel();
        self.waiting.insert(ticket, reply);
        let _stopping = self.work_in.send(Work::Waits);
        Asked::Waits(grant)
    }

    /// Takes in what waits, and then inputs. The task is woken only where it has to look earlier than it
    /// would.
    fn take_in(&mut self, inputs: impl IntoIterator<Item = Input>) {
        self.catch_up();
        let now = self.clock.now();
        for input in inputs {
            self.pool.handle(now, input);
        }
        self.apply(now);
        let wake = self.pool.next_wake(now);
        if wake.is_some_and(|wake| clock::mono() + Duration::from_millis(wake.millis()) < self.due)
        {
            let _stopping = self.work_in.send(Work::Waits);
        }
    }

    /// For a choice that begins now.
    fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        // How long a choice takes is told in microseconds.
        self.begun = Instant::now();
        ticket
    }

    /// Takes in what waits in the work inbox, until something waits in the other one.
    fn works(&mut self, first: Work) {
        let now = self.clock.now();
        let mut next = Some(first);
        while let Some(work) = next {
            self.work(now, work);
            next = if self.control.is_empty() { self.work.try_recv().ok() } else { None };
        }
    }

    fn control(&mut self, control: Control) {
        let now = self.clock.now();
        match control {
            Control::Input(input, done) => {
                self.pool.handle(now, input);
                self.apply(now);
                let _asker_gone = done.send(self.pool.epoch());
            },
            Control::Look(look) => look(&self.pool, now),
            Control::StopRenewing(done) => {
                self.renewing = false;
                let _asker_gone = done.send(());
            },
        }
    }

    fn work(&mut self, now: Now, work: Work) {
        let input = match work {
            Work::Select(need, reply) => {
                let ticket = self.ticket();
                self.waiting.insert(ticket, reply);
                Input::Select(ticket, need)
            },
            Work::Input(input) => input,
            // The task is awake, and looks at its timer next.
            Work::Waits => return,
            Work::Gone => {
                self.sweep(now);
                return;
            },
            Work::Renewed(id, _from, Ok((generation, expires))) => {
                Input::Renewed(id, generation, expires.map(Wall::from_secs))
            },
            Work::Renewed(id, from, Err(failure)) => Input::RenewalFailed(id, from, failure),
        };
        self.pool.handle(now, input);
        self.apply(now);
    }

    /// Takes those who went away out of the pool's queue.
    fn sweep(&mut self, now: Now) {
        let gone: Vec<Ticket> = self
            .waiting
            .iter()
            .filter(|(_ticket, reply)| reply.is_closed())
            .map(|(ticket, _reply)| *ticket)
            .collect();
        for ticket in gone {
            self.waiting.remove(&ticket);
            self.pool.handle(now, Input::Cancel(ticket));
        }
    }

    fn apply(&mut self, now: Now) {
        while let Some(effect) = self.pool.poll_effect() {
            match effect {
                Effect::Reply(ticket, grant) => self.reply(now, ticket, grant),
                Effect::Renew(id, generation) => self.renew(id, generation),
                Effect::Changed(topic) => {
                    if self.changes.receiver_count() > 0 {
                        let change = Change { epoch: self.pool.epoch(), topic };
                        let _nobody_listens = self.changes.send(change);
                    }
                },
                Effect::Note(text) => tracing::warn!(text, "pool"),
            }
        }
    }

    fn reply(&mut self, now: Now, ticket: Ticket, grant: Grant) {
        if self.asking == Some(ticket) {
            self.answer = Some(grant);
            return;
        }
        let Some(reply) = self.waiting.remove(&ticket) else { return };
        // Whoever asked is gone: nobody will give the account back but us.
        if let Err((Grant::Lease { lease, .. }, _took)) = reply.send((grant, self.begun.elapsed()))
        {
            let release = Release { mark: Mark::Fine, served: false, model: None };
            self.pool.handle(now, Input::Release(lease, release));
        }
    }

    fn renew(&self, id: AccountId, generation: Generation) {
        let work = self.work_in.clone();
        if !self.renewing {
            let stopping = RenewalFailure::Transient("the daemon is stopping".into());
            let _stopping = work.send(Work::Renewed(id, generation, Err(stopping)));
            return;
        }
        let renewer = Arc::clone(&self.renewer);
        self.tasks.spawn("renewal", async move {
            let outcome = renewer.renew(id.clone(), generation).await;
            let outcome = outcome.map(|fresh| (fresh.generation, fresh.expires_at));
            let _stopping = work.send(Work::Renewed(id, generation, outcome));
        });
    }
}

/// A seed for the pool's chance, different at each start.
pub(crate) fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // Only the spread of renewals depends on it.
        Err(_no_randomness) => clock::wall().millis(),
    }
}

#[cfg(test)]
mod tests;

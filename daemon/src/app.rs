//! Builds everything from a configuration, runs it, and takes it down in order.
//!
//! Phases: starting → serving → draining → flushing. Draining lets running turns end and answers
//! new ones with "try again"; flushing waits for renewals under way, because a token that the
//! issuer rotated and nobody saved is a lost login. Every task is spawned through [`Tasks`], so none
//! is forgotten.

#[cfg(unix)]
use crate::handover::take::{Claim, Taken};
use crate::{
    actor::{self, Actor, Handle},
    budgets::Budgets,
    cache,
    choosing::Choosing,
    clock,
    config::Config,
    fault::Fault,
    handover::{Before, Doors, doors::Property},
    ipc,
    ledger::Ledger,
    lifecycle::Held,
    login::Logins,
    mirror::{self, Mirror},
    notices,
    probes::Probes,
    project::Projects,
    proxy::{
        self, Proxy,
        books::Books,
        keys::Keys,
        moved::Known,
        own::Lent,
        relay::{self, Ending},
        surface::Surface,
        trace::Traces,
    },
    renewal::Renewer,
    roster::Roster,
    store::{Store, keyring::Keyring, pins::Pins},
    tokens::Tokens,
    truth::Given,
    upstream::Upstream,
    vault::Vault,
};
use cma_core::{affinity::Told, identity::AccountId, pool::Input};
use cma_proto::{endpoint::Root, error::ErrorCode};
use http::HeaderValue;
use parking_lot::Mutex;
#[cfg(unix)]
use std::sync::atomic::AtomicBool;
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Poll, Waker},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

/// What a second signal leaves running responses.
const HURRY: Duration = Duration::from_secs(5);
/// After which a start is over, with what clients ask for at once.
const STARTED: Duration = Duration::from_secs(2);

/// Where the daemon is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Starting,
    Serving,
    Draining,
    Flushing,
}

impl Phase {
    /// As `status` shows it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Flushing => "flushing",
        }
    }
}

/// The current phase, and waiting for one.
#[derive(Debug, Clone)]
pub(crate) struct Phases(Arc<watch::Sender<Phase>>, Given);

impl Phases {
    fn new(given: Given) -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Starting)), given)
    }

    pub(crate) fn now(&self) -> Phase {
        *self.0.borrow()
    }

    /// Another daemon has taken over: what runs here ends, and what still comes in on connections that
    /// are open is served to its end.
    #[cfg(unix)]
    pub(crate) fn hand_over(&self) {
        self.enter(Phase::Draining);
    }

    /// Whether that is so.
    pub(crate) fn handed_over(&self) -> bool {
        self.now() >= Phase::Draining && self.1.is()
    }

    /// Whether turns are to be refused.
    pub(crate) fn refuses(&self) -> bool {
        self.now() >= Phase::Draining && !self.handed_over()
    }

    /// Phases only go forward.
    pub(crate) fn enter(&self, phase: Phase) {
        let entered = self.0.send_if_modified(|now| {
            let forward = *now < phase;
            if forward {
                *now = phase;
            }
            forward
        });
        if entered {
            tracing::info!(phase = phase.word(), "phase");
        }
    }

    /// Resolves when that phase or a later one is reached. Connections ask at each of their steps:
    /// while the phase is the one before and the asker too, that is one look.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        // The sender lives as long as `self`.
        let mut reached = std::pin::pin!(phases.wait_for(|now| *now >= phase));
        let mut asked: Option<(Phase, Waker)> = None;
        std::future::poll_fn(|context| {
            let now = self.now();
            let as_before = |(before, waker): &(Phase, Waker)| {
                *before == now && waker.will_wake(context.waker())
            };
            if asked.as_ref().is_some_and(as_before) {
                return Poll::Pending;
            }
            if reached.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            // Without a budget it wasn't looked at.
            if tokio::task::coop::has_budget_remaining() {
                asked = Some((now, context.waker().clone()));
            }
            Poll::Pending
        })
        .await;
    }

    /// Changes of the phase from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}

/// Spawns tasks by name and waits for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    awaited: TaskTracker,
    idle: TaskTracker,
}

impl Tasks {
    /// A task that a stop waits for.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        tracing::trace!(name, "task");
        drop(self.awaited.spawn(boxed(task)));
    }

    /// A task that holds nothing worth waiting for.
    pub(crate) fn spawn_idle(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        tracing::trace!(name, "idle task");
        drop(self.idle.spawn(boxed(task)));
    }

    /// Resolves when all awaited tasks have ended.
    pub(crate) async fn ended(&self) {
        self.awaited.close();
        self.awaited.wait().await;
    }
}

/// tokio's part of a task is compiled for each type of one: boxed, all are of one type.
fn boxed(
    task: impl Future<Output = ()> + Send + 'static,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(task)
}

/// How a stop was asked for.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    asked: Notify,
    hurry: Notify,
    now: Notify,
}

impl Stop {
    /// Let running turns end.
    pub(crate) fn drain(&self) {
        self.asked.notify_one();
    }

    /// Leave running turns some seconds.
    pub(crate) fn hurry(&self) {
        self.asked.notify_one();
        self.hurry.notify_one();
    }

    /// Don't wait for running turns.
    pub(crate) fn cut(&self) {
        self.asked.notify_one();
        self.now.notify_one();
    }
}

/// What the daemon consists of, for the rooms that serve people.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) root: Root,
    pub(crate) config: Arc<Config>,
    pub(crate) actor: Handle,
    pub(crate) roster: Arc<Roster>,
    pub(crate) projects: Arc<Projects>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) choosing: Arc<Choosing>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) logins: Arc<Logins>,
    pub(crate) probes: Arc<Probes>,
    pub(crate) renewer: Arc<Renewer>,
    pub(crate) mirror: Mirror,
    pub(crate) phases: Phases,
    pub(crate) stop: Stop,
    pub(crate) doors: Doors,
    /// The daemon that this one has taken over from.
    pub(crate) before: Before,
    /// Another daemon is asking for the root right now.
    #[cfg(unix)]
    pub(crate) handing_over: AtomicBool,
    /// Renewals and what else a stop always waits for.
    pub(crate) renewals: Tasks,
    pub(crate) url: String,
    pub(crate) instance: String,
    pub(crate) started_at: u64,
}

impl App {
    /// Whether another daemon is asking for the root right now.
    pub(crate) fn is_handing_over(&self) -> bool {
        #[cfg(unix)]
        return self.handing_over.load(Ordering::Acquire);
        // No socket outlives its process there.
        #[cfg(not(unix))]
        false
    }

    /// Ends now, without waiting for running turns; those of the daemon before end as well.
    pub(crate) fn cut(&self) {
        self.stop.cut();
        self.before.cut();
    }
}

/// Everything built and listening, not yet running.
pub(crate) struct Built {
    pub(crate) app: Arc<App>,
    actor: Actor,
    listener: TcpListener,
    ipc: ipc::Listener,
    settling: mpsc::UnboundedReceiver<Box<Ending>>,
    /// Connections and renewals: a stop waits for the first within limits, for the second always.
    connections: Tasks,
    renewals: Tasks,
    #[cfg(unix)]
    claim: Option<Claim>,
}

/// Where the sockets and the lock come from.
pub(crate) enum Whence {
    /// Nobody had the root.
    Fresh(Held),
    /// From the daemon before.
    #[cfg(unix)]
    Taken(Taken),
}

/// What a daemon listens on and holds.
struct Sockets {
    listener: TcpListener,
    control: ipc::Listener,
    held: Held,
    #[cfg(unix)]
    claim: Option<Claim>,
}

impl Whence {
    /// A root that was open stays open.
    fn check(&self, store: &Store) -> Result<(), Fault> {
        let was_open = match self {
            Self::Fresh(_) => false,
            #[cfg(unix)]
            Self::Taken(taken) => taken.claim.was_open,
        };
        if !was_open || !store.is_locked() {
            return Ok(());
        }
        Err(Fault::new(
            ErrorCode::Denied,
            "the root is sealed and this start can't open it; the running daemon goes on",
            "set `CMA_PASSPHRASE` for the restart, or stop, start and `cmactl unlock`",
        ))
    }

    fn sockets(self, root: &Root, config: &Config, roster: &Roster) -> Result<Sockets, Fault> {
        let held = match self {
            Self::Fresh(held) => held,
            #[cfg(unix)]
            Self::Taken(taken) => {
                let control = ipc::Listener::taken(taken.control)?;
                let listener = crate::lifecycle::take(taken.listener, config, roster)?;
                let claim = Some(taken.claim);
                return Ok(Sockets { listener, control, held: taken.held, claim });
            },
        };
        let listener = crate::lifecycle::bind(config, roster)?;
        let control = ipc::Listener::bind(root)?;
        Ok(Sockets {
            listener,
            control,
            held,
            #[cfg(unix)]
            claim: None,
        })
    }
}

/// Reads the root and binds both listeners.
///
/// # Errors
/// The typed reason why it can't: configuration, store, a taken port.
#[expect(clippy::too_many_lines, reason = "a list of what there is, each thing once")]
pub(crate) fn build(root: Root, config: Config, whence: Whence) -> Result<Built, Fault> {
    let config = Arc::new(config);
    let store = Store::new(&root);
    open_seal(&store, &config)?;
    whence.check(&store)?;
    store.sweep()?;
    let secret = store.secret()?;
    let vault = Arc::new(Vault::default());
    let roster = Arc::new(Roster::load(store, Arc::clone(&config), Arc::clone(&vault))?);
    let projects = Arc::new(Projects::load(&root, roster.store().clone())?);
    let choosing = Arc::new(Choosing::load(&root, roster.store().clone())?);
    let pins = Arc::new(Pins::load(&root, roster.store().clone())?);
    let ledger = Ledger::start(root.path(), config.ledger)?;
    let budgets = Budgets::load(root.path(), roster.store().clone(), ledger.clone())?;
    let books = Books::new(ledger, budgets);
    let tokens = Tokens::load(&root, roster.store().clone())?;
    let sockets = whence.sockets(&root, &config, &roster)?;
    let (listener, ipc) = (sockets.listener, sockets.control);
    let at = listener
        .local_addr()
        .map_err(|error| Fault::internal(format!("own address unknown: {error}")))?;
    let property = property(&listener, &ipc, sockets.held)?;
    let (connections, renewals) = (Tasks::default(), Tasks::default());
    let renewer =
        Arc::new(Renewer::new(Arc::clone(&roster), Arc::clone(&vault), Arc::clone(&config)));
    let (mut actor, handle) = Actor::new(actor::seed(), Arc::clone(&renewer), renewals.clone());
    prime(&mut actor, &config, &roster, &projects);
    actor.prime(choosing.inputs());
    let threads = recall(&root, &mut actor, &pins);
    let phases = Phases::new(roster.truth().given().clone());
    let instance = format!("{:08x}", actor::seed() & 0xffff_ffff);
    let host = HeaderValue::try_from(config.backend.authority.as_str())
        .map_err(|error| Fault::internal(error.to_string()))?;
    let (ended, settling) = mpsc::unbounded_channel();
    let network = config.network.clone();
    let proxy = Arc::new(Proxy {
        config: Arc::clone(&config),
        actor: handle.clone(),
        roster: Arc::clone(&roster),
        choosing: Arc::clone(&choosing),
        vault,
        upstream: Upstream::new(config.backend.clone(), network, connections.clone()),
        keys: Keys::new(&secret).with_tokens(tokens),
        lent: Lent::default(),
        health: proxy::host::Host::new(),
        traces: Traces::new(
            u16::from_str_radix(&instance[..4], 16).unwrap_or_default(),
            threads,
            books,
        ),
        sockets: proxy::ws::Sockets::new(connections.clone()),
        surface: Surface::new(connections.clone()),
        phases: phases.clone(),
        port: at.port(),
        host,
        ended,
        responses: proxy::joined(&config.backend.path, "/codex/responses"),
    });
    let logins = Arc::new(Logins::new(
        Arc::clone(&config),
        Arc::clone(&roster),
        handle.clone(),
        renewals.clone(),
    ));
    let probes = Arc::new(Probes::new(connections.clone(), phases.clone()));
    let mirror = Mirror::load(&root, roster.store().clone())?;
    let app = Arc::new(App {
        root,
        config,
        actor: handle,
        roster,
        projects,
        pins,
        choosing,
        proxy,
        logins,
        probes,
        renewer,
        mirror,
        phases,
        stop: Stop::default(),
        doors: Doors::new(property),
        before: Before::default(),
        #[cfg(unix)]
        handing_over: AtomicBool::new(false),
        renewals: renewals.clone(),
        url: format!("http://{at}"),
        instance,
        started_at: clock::unix(),
    });
    Ok(Built {
        app,
        actor,
        listener,
        ipc,
        settling,
        connections,
        renewals,
        #[cfg(unix)]
        claim: sockets.claim,
    })
}

/// Tells the pool what the root holds.
fn prime(actor: &mut Actor, config: &Config, roster: &Roster, projects: &Projects) {
    actor.set_pace(config.pace);
    actor.prime(roster.all().iter().map(|record| Input::Upsert(roster.seed(record))));
    if let Some((pin, _since)) = roster.state().pin {
        actor.prime([Input::Pin(Some(AccountId::from_written(&pin)))]);
    }
    actor.prime(projects.all().iter().filter_map(|project| {
        let (pin, _since) = project.pin.as_ref()?;
        Some(Input::PinIn(project.key.as_str().into(), Some(AccountId::from_written(pin))))
    }));
}

/// Where threads ran before, and where their person wants them; the pool is told both.
fn recall(root: &Root, actor: &mut Actor, pins: &Pins) -> Known {
    let mut threads = cache::threads::recall(root);
    let ran = threads.all();
    let ran = ran.filter_map(|(key, thread)| Some((Arc::clone(key), thread.account.clone()?)));
    actor.prime([Input::Thread(Told::Recall(ran.collect()))]);
    for (key, pin) in pins.all() {
        actor.prime([Input::Thread(Told::Pin(Arc::clone(&key), Some(pin.account.clone())))]);
        threads.hand(&key, Some(pin));
    }
    Arc::new(Mutex::new(threads))
}

/// Opens a sealed root with what is at hand: `CMA_PASSPHRASE`, or the system's keyring. When neither
/// does it, the daemon starts locked and says so.
fn open_seal(store: &Store, config: &Config) -> Result<(), Fault> {
    store.look_for_seal()?;
    if !store.is_locked() {
        return Ok(());
    }
    let opened = match std::env::var("CMA_PASSPHRASE").ok().filter(|text| !text.is_empty()) {
        Some(passphrase) => store.unlock(&passphrase.into()),
        None if store.opens_by_keyring() => store.unlock_by(&Keyring::find(config)),
        None => return Ok(()),
    };
    match opened {
        Err(fault) if fault.code() == ErrorCode::Denied => {
            tracing::warn!(%fault, "the root stays locked");
            store.stays_locked(&fault.refusal.message);
            Ok(())
        },
        opened => opened,
    }
}

/// Waits for what runs, as long as it may take.
async fn drained(app: &App, connections: &Tasks) {
    let mut over = std::pin::pin!(tokio::time::sleep(app.config.drain_timeout));
    let mut ended = std::pin::pin!(connections.ended());
    loop {
        tokio::select! {
            () = &mut ended => return,
            () = &mut over => {
                tracing::warn!("drain time is over; running responses are cut");
                return;
            },
            () = app.stop.hurry.notified() => {
                tracing::info!("running responses have some seconds left, on request");
                let soon = Instant::now() + HURRY;
                if soon < over.deadline() {
                    over.as_mut().reset(soon);
                }
            },
            () = app.stop.now.notified() => {
                tracing::info!("running responses are cut on request");
                return;
            },
        }
    }
}

/// What could be given to another daemon.
#[cfg(unix)]
fn property(listener: &TcpListener, ipc: &ipc::Listener, lock: Held) -> Result<Property, Fault> {
    use std::os::fd::AsFd as _;
    let cloned = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|error| Fault::internal(format!("a socket can't be kept: {error}")))
    };
    Ok(Property { lock, sockets: [cloned(listener.as_fd())?, cloned(ipc.as_fd())?] })
}

#[cfg(windows)]
fn property(_listener: &TcpListener, _ipc: &ipc::Listener, lock: Held) -> Result<Property, Fault> {
    Ok(Property { lock })
}

impl Built {
    /// The proxy's address.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Tells the daemon before this one, if there is one, that there is no way back. Nothing was
    /// accepted or renewed until here.
    ///
    /// # Errors
    /// When that can't be; the one before goes on then.
    pub(crate) fn claim(&mut self) -> Result<(), Fault> {
        #[cfg(unix)]
        if let Some(claim) = self.claim.take() {
            claim.mine(&self.app)?;
        }
        Ok(())
    }

    /// Serves until a stop is asked for, then goes down in order.
    pub(crate) async fn run(self) {
        let Self { app, actor, listener, ipc, settling, connections, renewals, .. } = self;
        let stopped = Arc::new(Notify::new());
        let stop_actor = Arc::clone(&stopped);
        let background = Tasks::default();
        let actor = clock::Stopped(Box::pin(async move { actor.run(stop_actor.notified()).await }));
        background.spawn("actor", actor);
        let (told, recalled) = oneshot::channel();
        let cache = cache::keep(
            app.root.clone(),
            app.actor.clone(),
            app.phases.clone(),
            Arc::clone(&app.roster),
            told,
        );
        let caching = Tasks::default();
        caching.spawn("cache", cache);
        let _late = tokio::time::timeout(cache::AT_START, recalled).await;
        let proxy = Arc::clone(&app.proxy);
        let accepting = connections.clone();
        background.spawn("proxy", proxy::serve(proxy, listener, accepting, Arc::clone(&app)));
        let settling = relay::settle(settling, app.phases.clone());
        background.spawn("settle", clock::Stopped(Box::pin(settling)));
        let threads = Arc::clone(&app.proxy.traces.threads);
        caching.spawn(
            "threads",
            cache::threads::keep(
                app.root.clone(),
                threads,
                app.phases.clone(),
                Arc::clone(&app.roster),
            ),
        );
        background.spawn_idle("mirror", mirror::keep(Arc::clone(&app)));
        background.spawn_idle("notices", notices::keep(Arc::clone(&app)));
        background.spawn_idle("ipc", ipc.serve(Arc::clone(&app), background.clone()));
        app.phases.enter(Phase::Serving);
        background.spawn_idle("started", started(Arc::clone(&app)));

        tokio::select! {
            () = app.stop.asked.notified() => {},
            () = app.phases.reached(Phase::Draining) => {},
        }
        app.phases.enter(Phase::Draining);
        drained(&app, &connections).await;
        app.phases.enter(Phase::Flushing);
        app.actor.stop_renewing().await;
        renewals.ended().await;
        caching.ended().await;
        stopped.notify_one();
        app.proxy.upstream.close_idle();
        background.ended().await;
        app.proxy.traces.books.ledger.close();
    }
}

/// Gives back what only the start needed, unless somebody is being served.
async fn started(app: Arc<App>) {
    tokio::time::sleep(STARTED).await;
    if app.proxy.traces.counters.active.load(Ordering::Relaxed) == 0 {
        crate::sys::release_memory();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that looks only when it was woken misses nothing, whatever phases go by in between.
    #[tokio::test]
    async fn a_phase_is_reached_through_those_before_it() {
        let phases = Phases::new(Given::default());
        let waiting = phases.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut flushing = std::pin::pin!(waiting.reached(Phase::Flushing));
            // As a connection does: asks again though nothing has changed.
            for _ in 0..3 {
                assert!(futures_util::poll!(flushing.as_mut()).is_pending());
            }
            flushing.await;
        });
        for phase in [Phase::Serving, Phase::Draining] {
            tokio::task::yield_now().await;
            phases.enter(phase);
        }
        tokio::task::yield_now().await;
        assert!(tasks.try_join_next().is_none());
        phases.enter(Phase::Flushing);
        let reached = tokio::time::timeout(Duration::from_secs(5), tasks.join_next()).await;
        assert!(reached.expect("it was never woken").unwrap().is_ok());
    }
}

//! Who chooses: this program's pool, or a rule of another program.

use super::{Scene, peers};
use crate::{
    account::Terms,
    cooldown::Cause,
    identity::AccountId,
    pool::{Effect, Grant, Input, LeaseId, Pool, Release, Seed, Ticket},
    quota::Window,
    scope::Pools,
    select::Need,
    strategy::{Rules, Strategy},
    time::{Now, Wall},
    token::Generation,
    verdict::Mark,
};
use std::{collections::BTreeMap, sync::Arc};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With so many tokens cached from here on.
    Served(u32),
    /// The account was out, until then.
    Limit(Wall),
}

/// Chooses, and hears what came of it.
pub(super) trait Rule {
    /// An account for a request that was refused by those `tried`.
    fn pick(&mut self, now: Now, ask: usize, thread: u32, tried: &[usize]) -> Option<usize>;
    /// What upstream said of an account's windows.
    fn learned(&mut self, now: Now, account: usize, windows: &[Window]);
    /// How a request ended.
    fn ended(&mut self, now: Now, account: usize, thread: u32, ask: usize, outcome: Outcome);
}

/// A rule by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// One of ours.
    Ours(Strategy),
    /// Each request to the next account; threads are not known (the OpenCode plugin's default).
    PeerRoundRobin,
    /// Each request to the account that served least; threads are not known.
    PeerLeastUsed,
    /// Threads stay for a while; else the highest score of health, tokens and time since last used
    /// (codex-multi-auth).
    PeerHybrid,
    /// Threads stay; else by chance, weighted by what is left of each account (codex-lb).
    PeerCapacity,
}

impl Contender {
    /// The rules of other programs.
    pub const PEERS: [Self; 4] =
        [Self::PeerRoundRobin, Self::PeerLeastUsed, Self::PeerHybrid, Self::PeerCapacity];

    /// As it is typed and printed.
    pub fn name(self) -> String {
        match self {
            Self::Ours(strategy) => strategy.name().to_owned(),
            Self::PeerRoundRobin => "peer:round-robin".to_owned(),
            Self::PeerLeastUsed => "peer:least-used".to_owned(),
            Self::PeerHybrid => "peer:hybrid".to_owned(),
            Self::PeerCapacity => "peer:capacity-weighted".to_owned(),
        }
    }

    /// The one of that name.
    pub fn of(name: &str) -> Option<Self> {
        let peer = Self::PEERS.into_iter().find(|one| one.name() == name);
        peer.or_else(|| Strategy::of(name).map(Self::Ours))
    }

    pub(super) fn rule(self, scene: Scene) -> Box<dyn Rule> {
        match self {
            Self::Ours(strategy) => Box::new(Ours::new(scene, strategy)),
            Self::PeerRoundRobin => Box::new(peers::RoundRobin::new(scene)),
            Self::PeerLeastUsed => Box::new(peers::LeastUsed::new(scene)),
            Self::PeerHybrid => Box::new(peers::Hybrid::new(scene)),
            Self::PeerCapacity => Box::new(peers::Capacity::new(scene)),
        }
    }
}

/// The pool as it is in the daemon.
struct Ours {
    pool: Pool,
    ids: Vec<AccountId>,
    leases: BTreeMap<usize, LeaseId>,
    threads: BTreeMap<u32, Arc<str>>,
}

impl Ours {
    fn new(scene: Scene, strategy: Strategy) -> Self {
        let mut pool = Pool::new(scene.seed);
        let ids: Vec<AccountId> =
            (0..scene.accounts).map(|n| AccountId::of("simulated", &n.to_string())).collect();
        let start = super::now(0);
        pool.handle(start, Input::Rules(Rules { strategy, ..Rules::default() }));
        for (order, id) in (1..).zip(&ids) {
            pool.handle(
                start,
                Input::Upsert(Seed {
                    id: id.clone(),
                    order,
                    workspace: "w".into(),
                    pools: Pools::default(),
                    plan: None,
                    name: id.as_str().into(),
                    enabled: true,
                    at_home: true,
                    generation: Generation(1),
                    expires: None,
                    gone: None,
                    terms: Terms::default(),
                }),
            );
        }
        while pool.poll_effect().is_some() {}
        Self { pool, ids, leases: BTreeMap::new(), threads: BTreeMap::new() }
    }

    fn thread(&mut self, thread: u32) -> Arc<str> {
        Arc::clone(self.threads.entry(thread).or_insert_with(|| thread.to_string().into()))
    }

    fn id(&self, account: usize) -> Option<AccountId> {
        self.ids.get(account).cloned()
    }
}

impl Rule for Ours {
    fn pick(&mut self, now: Now, ask: usize, thread: u32, tried: &[usize]) -> Option<usize> {
        let need = Need {
            session: Some(self.thread(thread)),
            exclude: tried.iter().filter_map(|n| self.id(*n)).collect(),
            ..Need::default()
        };
        self.pool.handle(now, Input::Tick);
        self.pool.handle(now, Input::Select(Ticket(ask as u64), need));
        let mut granted = None;
        while let Some(effect) = self.pool.poll_effect() {
            if let Effect::Reply(_, Grant::Lease { lease, account, .. }) = effect {
                self.leases.insert(ask, lease);
                granted = self.ids.iter().position(|id| *id == account);
            }
        }
        granted
    }

    fn learned(&mut self, now: Now, account: usize, windows: &[Window]) {
        if let Some(id) = self.id(account) {
            self.pool.handle(now, Input::QuotaSeen(id, windows.to_vec()));
        }
    }

    fn ended(&mut self, now: Now, _account: usize, thread: u32, ask: usize, outcome: Outcome) {
        let mark = match outcome {
            Outcome::Served(warm) => {
                let thread = self.thread(thread);
                self.pool.handle(now, Input::Warm(thread, warm));
                Mark::Fine
            },
            Outcome::Limit(resets) => Mark::Cool(Cause::UsageLimit(Some(resets))),
        };
        if let Some(lease) = self.leases.remove(&ask) {
            let served = mark == Mark::Fine;
            self.pool.handle(now, Input::Release(lease, Release { mark, served, model: None }));
        }
        while self.pool.poll_effect().is_some() {}
    }
}

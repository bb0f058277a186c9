//! A week of threads over accounts with windows, in moments: which rule would have served how much.
//!
//! The pool that chooses here is the pool that chooses in the daemon, driven by a virtual clock; the
//! rules of other programs are beside it as what they are known to do. What upstream does (`upstream`)
//! and what people do (`traffic`) is the same for all, and all of it follows from the seed.

mod peers;
mod rule;
mod traffic;
mod upstream;

pub use rule::Contender;
pub use traffic::{Ask, Made, Traffic, Workload};

use crate::time::{Mono, Now, Span, Wall};
use rule::{Outcome, Rule};
use serde_json::{Value, json};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};
use upstream::{Account, Cache};

/// The wall clock at the simulation's start: a Monday at midnight.
const START: Wall = Wall::from_secs(1_800_230_400);
/// Served requests are counted in slots of this length for the picture.
const SLOT: Span = Span::from_secs(6 * 3600);

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    /// How many accounts.
    pub accounts: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Whether accounts have limits at all.
    pub limits: bool,
}

/// What came of one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Its name.
    pub rule: String,
    /// Requests that were answered.
    pub served: u64,
    /// Requests for which every account was out.
    pub refused: u64,
    /// Attempts that met a limit and went on to another account.
    pub failovers: u64,
    /// Share of the weekly quota that ended unused at a reset, in percent.
    pub wasted: f64,
    /// Share of all quota spent that went on reading anew what was cached with another account or had
    /// cooled, in percent.
    pub reread: f64,
    /// Share of the input that was cached, in percent.
    pub cached: f64,
    /// How often a thread went on with another account.
    pub switches: u64,
    /// Moves by why: the account before was out, or was given up while it could still serve.
    pub moved_freely: u64,
    /// Served and refused, a slot of six hours each.
    pub slots: Vec<(u64, u64)>,
}

impl Report {
    /// As `--json` prints it.
    pub fn json(&self) -> Value {
        json!({
            "rule": self.rule,
            "served": self.served,
            "refused": self.refused,
            "failovers": self.failovers,
            "wasted_percent": self.wasted,
            "reread_percent": self.reread,
            "cached_percent": self.cached,
            "switches": self.switches,
            "switches_while_it_could_serve": self.moved_freely,
            "slots": self.slots.iter().map(|(served, refused)| json!([served, refused])).collect::<Vec<_>>(),
        })
    }
}

/// What one account without limits would have had cached, in percent.
pub fn alone(traffic: &Traffic, seed: u64) -> Report {
    let scene = Scene { accounts: 1, seed, limits: false };
    let contender = Contender::Ours(crate::strategy::Strategy::Balanced);
    let mut report = run(scene, traffic, contender);
    "one account without limits".clone_into(&mut report.rule);
    report
}

/// A request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Running {
    ends: u64,
    ask: usize,
    account: usize,
}

/// Runs a week.
pub fn run(scene: Scene, traffic: &Traffic, contender: Contender) -> Report {
    let mut week = Week::new(scene, traffic, contender);
    for (at, ask) in traffic.asks.iter().enumerate() {
        week.finish_until(ask.at);
        week.ask(at, ask);
    }
    week.finish_until(u64::MAX);
    week.report()
}

/// One run.
struct Week<'a> {
    traffic: &'a Traffic,
    accounts: Vec<Account>,
    cache: Cache,
    rule: Box<dyn Rule>,
    running: BinaryHeap<Reverse<Running>>,
    /// The account of each thread, the last one.
    homes: BTreeMap<u32, usize>,
    report: Report,
    input: u64,
    cached: u64,
    spent: u64,
    /// What the same requests would have cost with everything cached that could be.
    least: u64,
}

impl<'a> Week<'a> {
    fn new(scene: Scene, traffic: &'a Traffic, contender: Contender) -> Self {
        let mut rng = fastrand::Rng::with_seed(scene.seed ^ 0x5eed);
        let accounts: Vec<Account> = (0..scene.accounts)
            .map(|n| Account::new(n, scene, traffic.demand, traffic.days(), &mut rng))
            .collect();
        let mut rule = contender.rule(scene);
        // All know what upstream says of its windows at the start.
        for (n, account) in accounts.iter().enumerate() {
            rule.learned(now(0), n, &account.windows(0));
        }
        let report = Report {
            rule: contender.name(),
            served: 0,
            refused: 0,
            failovers: 0,
            wasted: 0.0,
            reread: 0.0,
            cached: 0.0,
            switches: 0,
            moved_freely: 0,
            slots: Vec::new(),
        };
        Self {
            traffic,
            accounts,
            cache: Cache::default(),
            rule,
            running: BinaryHeap::new(),
            homes: BTreeMap::new(),
            report,
            input: 0,
            cached: 0,
            spent: 0,
            least: 0,
        }
    }

    fn ask(&mut self, at: usize, ask: &Ask) {
        let mut tried = Vec::new();
        loop {
            let Some(n) = self.rule.pick(now(ask.at), at, ask.thread, &tried) else {
                self.report.refused += 1;
                self.slot(ask.at).1 += 1;
                return;
            };
            let Some(account) = self.accounts.get_mut(n) else { return };
            if let Some(resets) = account.out_until(ask.at) {
                self.rule.ended(now(ask.at), n, ask.thread, at, Outcome::Limit(wall(resets)));
                self.report.failovers += 1;
                tried.push(n);
                continue;
            }
            if let Some(before) = self.homes.insert(ask.thread, n).filter(|before| *before != n) {
                self.report.switches += 1;
                let could = self
                    .accounts
                    .get_mut(before)
                    .is_some_and(|one| one.out_until(ask.at).is_none());
                self.report.moved_freely += u64::from(could);
            }
            self.running.push(Reverse(Running { ends: ask.at + ask.lasts, ask: at, account: n }));
            return;
        }
    }

    /// Ends all requests that end by then.
    fn finish_until(&mut self, until: u64) {
        while let Some(Reverse(next)) =
            self.running.peek().copied().filter(|next| next.0.ends <= until)
        {
            self.running.pop();
            let traffic = self.traffic;
            let (Some(ask), Some(account)) =
                (traffic.asks.get(next.ask), self.accounts.get_mut(next.account))
            else {
                continue;
            };
            let cached = self.cache.take(ask, next.account);
            let cost = upstream::cost(ask, cached);
            account.spend(next.ends, cost);
            let windows = account.windows(next.ends);
            self.input += ask.input;
            self.cached += cached;
            self.spent += cost;
            self.least += upstream::cost(ask, ask.prefix.saturating_sub(upstream::PROMPT));
            self.report.served += 1;
            self.slot(ask.at).0 += 1;
            let warm = u32::try_from(ask.input + ask.output).unwrap_or(u32::MAX);
            self.rule.learned(now(next.ends), next.account, &windows);
            self.rule.ended(
                now(next.ends),
                next.account,
                ask.thread,
                next.ask,
                Outcome::Served(warm),
            );
        }
    }

    fn slot(&mut self, at: u64) -> &mut (u64, u64) {
        let slot = usize::try_from(at / SLOT.millis()).unwrap_or_default().min(1000);
        if self.report.slots.len() <= slot {
            self.report.slots.resize(slot + 1, (0, 0));
        }
        // It was made long enough a line above.
        let last = self.report.slots.len() - 1;
        #[expect(clippy::indexing_slicing, reason = "within its length")]
        &mut self.report.slots[slot.min(last)]
    }

    #[expect(clippy::cast_precision_loss, reason = "tokens of a week fit")]
    fn report(mut self) -> Report {
        let end = self.traffic.days() * upstream::DAY;
        let (mut lost, mut had) = (0, 0);
        for account in &mut self.accounts {
            account.pass(end);
            lost += account.lost;
            had += account.had;
        }
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        self.report.wasted = share(lost, had);
        self.report.reread = share(self.spent - self.least.min(self.spent), self.spent);
        self.report.cached = share(self.cached, self.input);
        self.report
    }
}

fn now(at: u64) -> Now {
    Now { mono: Mono::from_millis(at + 1), wall: wall(at) }
}

fn wall(at: u64) -> Wall {
    START.plus(Span::from_millis(at))
}

#[cfg(test)]
mod tests;

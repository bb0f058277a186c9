//! Rules of other programs, as their behaviour is known: to compare with, never to serve.
//!
//! Each gets its best side: an account that met a limit is left out until its reset, which not all of
//! them manage, and local throttles of theirs are left away.

use super::{
    Scene,
    rule::{Outcome, Rule},
};
use crate::{
    quota::Window,
    time::{Now, Span, Wall},
};
use std::collections::BTreeMap;

/// Until when each account is known to be out.
#[derive(Debug, Clone)]
struct Out(Vec<Option<Wall>>);

impl Out {
    fn new(scene: Scene) -> Self {
        Self(vec![None; scene.accounts])
    }

    fn able(&self, now: Now, tried: &[usize]) -> Vec<usize> {
        let open = |(n, until): (usize, &Option<Wall>)| {
            (until.is_none_or(|until| until <= now.wall) && !tried.contains(&n)).then_some(n)
        };
        self.0.iter().enumerate().filter_map(open).collect()
    }

    fn ended(&mut self, account: usize, outcome: Outcome) {
        if let (Outcome::Limit(until), Some(slot)) = (outcome, self.0.get_mut(account)) {
            *slot = Some(until);
        }
    }
}

/// The next one in the list, request by request.
pub(super) struct RoundRobin {
    out: Out,
    next: usize,
}

impl RoundRobin {
    pub(super) fn new(scene: Scene) -> Self {
        Self { out: Out::new(scene), next: 0 }
    }
}

impl Rule for RoundRobin {
    fn pick(&mut self, now: Now, _ask: usize, _thread: u32, tried: &[usize]) -> Option<usize> {
        let able = self.out.able(now, tried);
        let chosen = able.get(self.next.checked_rem(able.len())?).copied();
        self.next = self.next.wrapping_add(1);
        chosen
    }

    fn learned(&mut self, _now: Now, _account: usize, _windows: &[Window]) {}

    fn ended(&mut self, _now: Now, account: usize, _thread: u32, _ask: usize, outcome: Outcome) {
        self.out.ended(account, outcome);
    }
}

/// The one that served least.
pub(super) struct LeastUsed {
    out: Out,
    served: Vec<u64>,
}

impl LeastUsed {
    pub(super) fn new(scene: Scene) -> Self {
        Self { out: Out::new(scene), served: vec![0; scene.accounts] }
    }
}

impl Rule for LeastUsed {
    fn pick(&mut self, now: Now, _ask: usize, _thread: u32, tried: &[usize]) -> Option<usize> {
        let able = self.out.able(now, tried);
        let chosen = able.into_iter().min_by_key(|n| (self.served.get(*n).copied(), *n))?;
        if let Some(served) = self.served.get_mut(chosen) {
            *served += 1;
        }
        Some(chosen)
    }

    fn learned(&mut self, _now: Now, _account: usize, _windows: &[Window]) {}

    fn ended(&mut self, _now: Now, account: usize, _thread: u32, _ask: usize, outcome: Outcome) {
        self.out.ended(account, outcome);
    }
}

/// Threads and where they ran, for the rules that know threads.
#[derive(Debug, Default)]
struct Homes(BTreeMap<u32, (usize, Wall)>);

impl Homes {
    fn get(&self, thread: u32, now: Now, life: Span, able: &[usize]) -> Option<usize> {
        let (home, at) = self.0.get(&thread)?;
        (now.wall.since(*at) <= life && able.contains(home)).then_some(*home)
    }

    fn set(&mut self, thread: u32, home: usize, now: Now) {
        self.0.insert(thread, (home, now.wall));
    }
}

/// How long its threads stay: its affinity's default life.
const HYBRID_LIFE: Span = Span::from_secs(30 * 60);

/// Health, tokens, and time since last used.
pub(super) struct Hybrid {
    out: Out,
    homes: Homes,
    /// Health, tokens of its bucket, when both were looked at last, and when it served last.
    state: Vec<(f64, f64, Wall, Option<Wall>)>,
    last: Option<(usize, Wall)>,
}

impl Hybrid {
    pub(super) fn new(scene: Scene) -> Self {
        let fresh = (100.0, 50.0, super::wall(0), None);
        Self {
            out: Out::new(scene),
            homes: Homes::default(),
            state: vec![fresh; scene.accounts],
            last: None,
        }
    }

    fn refill(&mut self, now: Now) {
        for (health, tokens, at, _used) in &mut self.state {
            let hours = hours(now.wall.since(*at));
            *health = (*health + 2.0 * hours).min(100.0);
            *tokens = (*tokens + 360.0 * hours).min(50.0);
            *at = now.wall;
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a week fit")]
fn hours(span: Span) -> f64 {
    span.millis() as f64 / 3_600_000.0
}

impl Rule for Hybrid {
    fn pick(&mut self, now: Now, _ask: usize, thread: u32, tried: &[usize]) -> Option<usize> {
        self.refill(now);
        let able = self.out.able(now, tried);
        let home = self.homes.get(thread, now, HYBRID_LIFE, &able);
        let chosen = home.or_else(|| {
            let score = |n: usize| {
                let (health, tokens, _at, used) = self.state.get(n).copied()?;
                let idle = hours(now.wall.since(used.unwrap_or_default()));
                // What served in the last minute goes on serving.
                let sticky = self.last.is_some_and(|(last, at)| {
                    last == n && now.wall.since(at) < Span::from_secs(60)
                });
                let sticky = if sticky { 1000.0 } else { 0.0 };
                Some(health * 2.0 + tokens * 5.0 + idle * 2.0 + sticky)
            };
            let scored = able.iter().filter_map(|n| Some((*n, score(*n)?)));
            scored.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map(|(n, _score)| n)
        })?;
        if let Some((_health, tokens, _at, used)) = self.state.get_mut(chosen) {
            *tokens = (*tokens - 1.0).max(0.0);
            *used = Some(now.wall);
        }
        self.last = Some((chosen, now.wall));
        self.homes.set(thread, chosen, now);
        Some(chosen)
    }

    fn learned(&mut self, _now: Now, _account: usize, _windows: &[Window]) {}

    fn ended(&mut self, _now: Now, account: usize, _thread: u32, _ask: usize, outcome: Outcome) {
        self.out.ended(account, outcome);
        if let Some((health, tokens, ..)) = self.state.get_mut(account) {
            match outcome {
                Outcome::Served(_) => *health = (*health + 1.0).min(100.0),
                Outcome::Limit(_) => {
                    *health = (*health - 10.0).max(0.0);
                    *tokens = (*tokens - 10.0).max(0.0);
                },
            }
        }
    }
}

/// By chance, weighted by what is left.
pub(super) struct Capacity {
    out: Out,
    homes: Homes,
    left: Vec<Vec<Window>>,
    rng: fastrand::Rng,
}

impl Capacity {
    pub(super) fn new(scene: Scene) -> Self {
        Self {
            out: Out::new(scene),
            homes: Homes::default(),
            left: vec![Vec::new(); scene.accounts],
            rng: fastrand::Rng::with_seed(scene.seed),
        }
    }
}

impl Rule for Capacity {
    fn pick(&mut self, now: Now, _ask: usize, thread: u32, tried: &[usize]) -> Option<usize> {
        let able = self.out.able(now, tried);
        let home = self.homes.get(thread, now, Span::from_secs(3600), &able);
        let chosen = match home {
            Some(home) => home,
            None => {
                let left = |n: &usize| {
                    let windows = self.left.get(*n).map(Vec::as_slice).unwrap_or_default();
                    let left = windows.iter().map(|window| 100.0 - window.used_at(now));
                    left.fold(100.0, f64::min).max(0.1)
                };
                let total: f64 = able.iter().map(left).sum();
                let mut draw = self.rng.f64() * total;
                let hit = able.iter().find(|n| {
                    draw -= left(n);
                    draw <= 0.0
                });
                hit.or(able.last()).copied()?
            },
        };
        self.homes.set(thread, chosen, now);
        Some(chosen)
    }

    fn learned(&mut self, _now: Now, account: usize, windows: &[Window]) {
        if let Some(slot) = self.left.get_mut(account) {
            *slot = windows.to_vec();
        }
    }

    fn ended(&mut self, _now: Now, account: usize, _thread: u32, _ask: usize, outcome: Outcome) {
        self.out.ended(account, outcome);
    }
}

//! What a choice costs: the comparison alone, at 20 and 500 accounts and by every strategy.
//!
//! `cargo bench -p cma-tests --bench choose`. Budgets: 20 µs at 20 accounts and 200 µs at 500, p99.
//! Through the actor: `cargo test --release -p cmad through_the_actor -- --nocapture`.

#![expect(clippy::print_stdout, reason = "its figures are its output")]

use cma_core::{
    account::Terms,
    identity::AccountId,
    pool::{Effect, Grant, Input, Pool, Release, Seed, Ticket},
    quota::{MAIN_LIMIT, Place, Window},
    scope::Pools,
    select::Need,
    strategy::{Rules, Strategy},
    time::{Mono, Now, Span, Wall},
    token::Generation,
    verdict::Mark,
};
use std::time::{Duration, Instant};

/// Choices of a series; the first tenth warms up.
const CHOICES: u64 = 20_000;

fn pool(accounts: u32, strategy: Strategy, now: Now) -> Pool {
    let mut pool = Pool::new(1);
    pool.handle(now, Input::Rules(Rules { strategy, ..Rules::default() }));
    for n in 0..accounts {
        let id = AccountId::of("user", &n.to_string());
        pool.handle(
            now,
            Input::Upsert(Seed {
                id: id.clone(),
                order: n,
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
        // Every tenth is out, the others are used unevenly.
        let used = if n % 10 == 9 { 100.0 } else { f64::from(n * 37 % 90) };
        let window = |place, minutes: u64| Window {
            limit: MAIN_LIMIT.into(),
            model: None,
            place,
            used_percent: used,
            minutes: Some(minutes),
            resets: Some(now.wall.plus(Span::from_secs(minutes * 30))),
            seen: now.wall,
        };
        let windows = vec![window(Place::Primary, 300), window(Place::Secondary, 10_080)];
        pool.handle(now, Input::QuotaSeen(id, windows));
    }
    while pool.poll_effect().is_some() {}
    pool
}

/// Times of a request's way through the pool: the choice, its trace, its lease.
fn series(accounts: u32, strategy: Strategy) -> Vec<Duration> {
    let mut now = Now { mono: Mono::from_millis(1), wall: Wall::from_secs(1_800_000_000) };
    let mut pool = pool(accounts, strategy, now);
    let mut times = Vec::new();
    for n in 0..CHOICES {
        now.mono = Mono::from_millis(1 + n);
        // Of ten requests nine are of threads that are known.
        let thread =
            if n % 10 == 0 { format!("thread {n}") } else { format!("thread {}", n % 200 * 10) };
        let need =
            Need { session: Some(thread.into()), model: Some("gpt-5.5".into()), ..Need::default() };
        let begun = Instant::now();
        pool.handle(now, Input::Select(Ticket(n), need));
        times.push(begun.elapsed());
        while let Some(effect) = pool.poll_effect() {
            if let Effect::Reply(_, Grant::Lease { lease, .. }) = effect {
                let release = Release { mark: Mark::Fine, served: true, model: None };
                pool.handle(now, Input::Release(lease, release));
            }
        }
    }
    times.drain(..times.len() / 10);
    times.sort_unstable();
    times
}

fn main() {
    println!(
        "{:<22} {:>9} {:>10} {:>10} {:>10}",
        "strategy", "accounts", "p50 µs", "p99 µs", "max µs"
    );
    for strategy in Strategy::ALL {
        for accounts in [20, 500] {
            let times = series(accounts, strategy);
            let at = |share: f64| {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "a place in a list"
                )]
                let place = ((times.len() - 1) as f64 * share) as usize;
                times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
            };
            println!(
                "{:<22} {accounts:>9} {:>10.2} {:>10.2} {:>10.2}",
                strategy.name(),
                at(0.5),
                at(0.99),
                at(1.0)
            );
        }
    }
}

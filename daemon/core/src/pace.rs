//! How fast credentials are renewed when many are due at once.
//!
//! After a night's sleep, or for accounts imported together, all tokens may be due in one moment; an
//! issuer that sees five hundred renewals in a second sees an attack. So renewals that nobody waits
//! for go at a rate, after a small burst, and every distance between two is stretched by chance. A
//! renewal that a request waits for goes at once, and what it took is missing from the others.

use crate::{
    time::{Mono, Span},
    token::share,
};

/// The rate that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The time that one renewal takes of the rate.
    every: Span,
    /// How many may start in one moment when none did for a while.
    burst: u32,
}

impl Default for Pace {
    /// One a second, four at once: a pool of five hundred takes eight minutes, which is less than
    /// tokens are renewed ahead.
    fn default() -> Self {
        Self { every: Span::from_secs(1), burst: 4 }
    }
}

impl Pace {
    /// The same with another rate (per second) or burst.
    ///
    /// # Errors
    /// What is out of bounds, for a person.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the rate is checked to be between 0.01 and 100"
    )]
    pub fn with(self, rate: Option<f64>, burst: Option<u32>) -> Result<Self, String> {
        let every = match rate {
            None => self.every,
            Some(rate) if (0.01..=100.0).contains(&rate) => {
                Span::from_millis((1000.0 / rate).ceil() as u64)
            },
            Some(rate) => {
                return Err(format!("renewals_per_second `{rate}` is not between 0.01 and 100"));
            },
        };
        let burst = burst.unwrap_or(self.burst);
        if (1..=100).contains(&burst) {
            Ok(Self { every, burst })
        } else {
            Err(format!("renewals_at_once `{burst}` is not between 1 and 100"))
        }
    }
}

/// Keeps a [`Pace`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Pacer {
    pace: Pace,
    /// When all that was started has been paid for.
    paid: Mono,
}

impl Pacer {
    /// At that pace, with nothing started.
    pub const fn new(pace: Pace) -> Self {
        Self { pace, paid: Mono::from_millis(0) }
    }

    /// How long until one may start.
    pub fn wait(&self, now: Mono) -> Span {
        let credit = self.credit();
        let owed = self.paid.since(now).millis();
        // A clock that went back must not stop renewals for good.
        let most = self.pace.every.times(u64::from(self.pace.burst) * 16).millis();
        Span::from_millis(owed.min(most).saturating_sub(credit.millis()))
    }

    /// What may be unpaid when another one starts: that one counts as well.
    fn credit(&self) -> Span {
        self.pace.every.times(u64::from(self.pace.burst.saturating_sub(1)))
    }

    /// One starts. Once the burst is used up, `chance` in 0..1 stretches the distance to the next by
    /// up to a quarter.
    pub fn start(&mut self, now: Mono, chance: f64) {
        let every = self.pace.every.millis();
        let from = if self.paid > now { self.paid } else { now };
        let paid = from.plus(self.pace.every);
        let stretch = if paid.since(now) > self.credit() { share(every / 4, chance) } else { 0 };
        self.paid = paid.plus(Span::from_millis(stretch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::AccountId,
        pool::{Effect, Input, Pool, Seed},
        time::{Now, Wall},
        token::Generation,
    };

    #[test]
    fn never_more_than_the_rate_and_one_burst_in_any_stretch_of_time() {
        let pace = Pace::default().with(Some(2.0), Some(4)).unwrap();
        let (mut pacer, mut now, mut started) = (Pacer::new(pace), 5_000_u64, Vec::new());
        while started.len() < 200 {
            let wait = pacer.wait(Mono::from_millis(now)).millis();
            if wait > 0 {
                now += wait;
                continue;
            }
            pacer.start(Mono::from_millis(now), fastrand::f64());
            started.push(now);
        }
        assert_eq!(started.iter().filter(|at| **at == 5_000).count(), 4, "the burst");
        for (at, from) in started.iter().enumerate() {
            for (more, to) in started.iter().enumerate().skip(at) {
                let allowed = 4 + (to - from) / 500;
                assert!((more - at) as u64 <= allowed, "{at}..{more} in {} ms", to - from);
            }
        }
        let took = started.last().unwrap() - 5_000;
        assert!((98_000..=125_000).contains(&took), "jitter only slows, a quarter at most: {took}");
    }

    #[test]
    fn rest_earns_a_burst_and_no_more_and_a_clock_that_went_back_stops_nothing() {
        let mut pacer = Pacer::new(Pace::default());
        let later = Mono::from_millis(1_000_000_000);
        for _ in 0..4 {
            assert_eq!(pacer.wait(later), Span::ZERO);
            pacer.start(later, 0.0);
        }
        assert!(pacer.wait(later) > Span::ZERO);
        assert!(pacer.wait(Mono::from_millis(1)) < Span::from_secs(120));
    }

    /// A pool whose tokens are all over: as after a long sleep, or a start after one.
    #[test]
    fn five_hundred_renewals_due_at_once_go_at_the_pace_and_wake_nobody_in_vain() {
        let mut pool = Pool::new(7);
        pool.set_pace(Pace::default().with(Some(10.0), Some(5)).unwrap());
        let at = |ms: u64| Now {
            mono: Mono::from_millis(ms),
            wall: Wall::from_millis(1 << 40).plus(Span::from_millis(ms)),
        };
        for order in 0..500_u32 {
            let id = AccountId::of(&order.to_string(), "w");
            let name = order.to_string().as_str().into();
            let seed = Seed {
                id,
                order,
                name,
                pools: crate::scope::Pools::default(),
                workspace: "w".into(),
                plan: None,
                enabled: true,
                at_home: true,
                generation: Generation(1),
                expires: Some(Wall::from_millis(5)),
                gone: None,
                terms: crate::account::Terms::default(),
            };
            pool.handle(at(0), Input::Upsert(seed));
        }
        let (mut now, mut wakes, mut started) = (0, 0, Vec::new());
        loop {
            while let Some(effect) = pool.poll_effect() {
                if let Effect::Renew(id, generation) = effect {
                    started.push(now);
                    let expires = Some(at(now).wall.plus(Span::from_secs(864_000)));
                    let next = Generation(generation.0 + 1);
                    pool.handle(at(now), Input::Renewed(id, next, expires));
                }
            }
            if started.len() == 500 {
                break;
            }
            now += pool.next_wake(at(now)).unwrap().millis();
            wakes += 1;
            pool.handle(at(now), Input::Tick);
        }
        assert_eq!(started.iter().filter(|at| **at == 0).count(), 5);
        assert!((49_000..=63_000).contains(&now), "all within {now} ms");
        assert!(wakes <= 500, "{wakes} wakes");
        let most = started
            .iter()
            .map(|from| started.iter().filter(|at| (*from..from + 1000).contains(*at)).count());
        assert!(most.max() <= Some(15), "a burst and a second's rate");
    }

    #[test]
    fn bounds_are_named() {
        assert!(Pace::default().with(Some(0.0), None).is_err());
        assert!(Pace::default().with(Some(f64::NAN), None).is_err());
        assert!(Pace::default().with(None, Some(0)).is_err());
    }
}

//! A simulated world around a pool: virtual clocks, an issuer, requests that come and go.

use crate::{
    account::Account,
    cooldown::Cause,
    identity::AccountId,
    pool::{Effect, Grant, Input, LeaseId, Pool, Release, RenewalFailure, Seed, Ticket},
    quota::{MAIN_LIMIT, Place, Window},
    select::Need,
    time::{Mono, Now, Span, Wall},
    token::Generation,
    verdict::Mark,
};
use proptest::{collection::vec, option, prelude::*, test_runner::TestCaseResult};
use std::{collections::BTreeMap, sync::Arc};

pub(super) const ACCOUNTS: usize = 4;
pub(super) const SESSIONS: usize = 3;
/// The wall clock starts where jumps of a day lead nowhere odd.
const START: Wall = Wall::from_secs(1_800_000_000);
const DAY_MS: i64 = 86_400_000;

pub(super) fn account(n: usize) -> AccountId {
    AccountId::of("user", &format!("workspace {n}"))
}

pub(super) fn session(n: usize) -> Arc<str> {
    format!("session {n}").into()
}

/// One thing that happens in the world.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Select {
        session: Option<usize>,
        model: Option<bool>,
        exclude: Vec<usize>,
        only: Option<usize>,
    },
    Need(Need),
    Cancel(usize),
    Release {
        lease: usize,
        mark: Told,
        served: bool,
    },
    Learn {
        account: usize,
        mark: Told,
    },
    Quota {
        account: usize,
        used: u32,
        primary: bool,
        resets: u64,
    },
    /// The issuer answers one of the renewals under way.
    Issuer {
        renewal: usize,
        answer: Answer,
    },
    /// An answer to a renewal nobody asked for any more.
    Stale {
        account: usize,
        failed: bool,
    },
    Upsert {
        account: usize,
        enabled: bool,
        at_home: bool,
        fresh: bool,
        life: Option<u64>,
    },
    Remove(usize),
    Pin(Option<usize>),
    Wait(u64),
    /// The wall clock is set, in milliseconds against true time.
    Jump(i64),
}

/// A mark whose times are relative, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Told {
    Fine,
    Shaky,
    Unauthorized,
    Model,
    Limit(Option<u64>),
    Throttle(Option<u64>),
    Forbidden,
    Payment,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    /// A token that lives so many seconds by the issuer's clock, which is right.
    Token(Option<u64>),
    NotNow,
    Never,
}

impl Act {
    /// The same without expiries.
    pub(super) fn timeless(self) -> Self {
        match self {
            Self::Upsert { account, enabled, at_home, fresh, life: _ } => {
                Self::Upsert { account, enabled, at_home, fresh, life: None }
            },
            Self::Issuer { renewal, answer: Answer::Token(_) } => {
                Self::Issuer { renewal, answer: Answer::Token(None) }
            },
            other => other,
        }
    }
}

fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        4 => Just(Told::Fine),
        1 => Just(Told::Shaky),
        2 => Just(Told::Unauthorized),
        1 => Just(Told::Model),
        2 => option::of(1_u64..3600).prop_map(Told::Limit),
        2 => option::of(1_u64..600).prop_map(Told::Throttle),
        1 => Just(Told::Forbidden),
        1 => Just(Told::Payment),
    ]
}

fn calm() -> BoxedStrategy<Act> {
    let one = 0..ACCOUNTS;
    let life = || option::of(prop_oneof![1_u64..20, 60_u64..4000, 86_400_u64..900_000]);
    let answer = prop_oneof![
        4 => life().prop_map(Answer::Token),
        2 => Just(Answer::NotNow),
        1 => Just(Answer::Never),
    ];
    prop_oneof![
        8 => (option::of(0..SESSIONS), option::of(any::<bool>()), vec(one.clone(), 0..3), option::weighted(0.1, one.clone()))
            .prop_map(|(session, model, exclude, only)| Act::Select { session, model, exclude, only }),
        1 => (0_usize..8).prop_map(Act::Cancel),
        6 => (0_usize..8, told(), any::<bool>()).prop_map(|(lease, mark, served)| Act::Release { lease, mark, served }),
        1 => (one.clone(), told()).prop_map(|(account, mark)| Act::Learn { account, mark }),
        2 => (one.clone(), prop_oneof![0_u32..100, Just(100)], any::<bool>(), 1_u64..7200)
            .prop_map(|(account, used, primary, resets)| Act::Quota { account, used, primary, resets }),
        4 => (0_usize..4, answer).prop_map(|(renewal, answer)| Act::Issuer { renewal, answer }),
        1 => (one.clone(), any::<bool>()).prop_map(|(account, failed)| Act::Stale { account, failed }),
        2 => (one.clone(), prop::bool::weighted(0.8), prop::bool::weighted(0.9), any::<bool>(), life())
            .prop_map(|(account, enabled, at_home, fresh, life)| Act::Upsert { account, enabled, at_home, fresh, life }),
        1 => one.clone().prop_map(Act::Remove),
        1 => option::of(one).prop_map(Act::Pin),
        4 => prop_oneof![1_u64..20_000, 1_u64..8_000_000].prop_map(Act::Wait),
    ]
    .boxed()
}

/// Everything but clock jumps.
pub(super) fn calm_acts() -> impl Strategy<Value = Vec<Act>> {
    vec(calm(), 1..80)
}

/// Everything.
pub(super) fn acts() -> impl Strategy<Value = Vec<Act>> {
    vec(prop_oneof![12 => calm(), 1 => (-DAY_MS..DAY_MS).prop_map(Act::Jump)], 1..80)
}

/// A request that asked for an account.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) need: Need,
    pub(super) session: Option<usize>,
    pub(super) at: Mono,
    pub(super) answers: u32,
    pub(super) cancelled: bool,
}

/// A renewal that the issuer has not answered.
#[derive(Debug, Clone)]
pub(super) struct Renewal {
    pub(super) id: AccountId,
    generation: Generation,
    /// Whether its account is still as it was when it was asked for.
    pub(super) current: bool,
}

/// What one input led to.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) input: Input,
    pub(super) effects: Vec<Effect>,
    /// Whose lease ended, and with which mark.
    pub(super) released: Option<(AccountId, Mark)>,
    /// Set when the input was the result of an old renewal.
    pub(super) stale: Option<AccountId>,
}

impl Step {
    pub(super) fn replies(&self) -> impl Iterator<Item = (&Ticket, &Grant)> {
        self.effects.iter().filter_map(|effect| match effect {
            Effect::Reply(ticket, grant) => Some((ticket, grant)),
            Effect::Renew(..) | Effect::Changed(_) | Effect::Note(_) => None,
        })
    }
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) pool: Pool,
    pub(super) now: Now,
    /// How far the wall clock is from true time.
    skew: i64,
    pub(super) asked: BTreeMap<Ticket, Asked>,
    pub(super) leases: Vec<(LeaseId, AccountId)>,
    pub(super) renewals: Vec<Renewal>,
    pub(super) granted: usize,
    pub(super) released: usize,
    pub(super) generation: u64,
}

impl World {
    /// An empty pool.
    pub(super) fn bare() -> Self {
        Self {
            pool: Pool::new(7),
            now: Now { mono: Mono::from_millis(1), wall: START },
            skew: 0,
            asked: BTreeMap::new(),
            leases: Vec::new(),
            renewals: Vec::new(),
            granted: 0,
            released: 0,
            generation: 0,
        }
    }

    /// A pool with all accounts, some with tokens that end soon.
    pub(super) fn new() -> Self {
        let mut world = Self::bare();
        for (n, life) in [Some(864_000), Some(400), None, Some(3600)].into_iter().enumerate() {
            world.act(Act::Upsert { account: n, enabled: true, at_home: true, fresh: true, life });
        }
        world
    }

    /// Runs operations, checking after every single input.
    pub(super) fn run(
        acts: Vec<Act>,
        mut check: impl FnMut(&Self, &Step) -> TestCaseResult,
    ) -> Result<Self, TestCaseError> {
        let mut world = Self::new();
        for act in acts {
            if let Act::Wait(ms) = act {
                world.wait_checked(Span::from_millis(ms), &mut check)?;
            } else {
                let step = world.act(act);
                check(&world, &step)?;
            }
        }
        Ok(world)
    }

    /// A second world in which something else may happen next.
    pub(super) fn fork(&self) -> Self {
        self.clone()
    }

    pub(super) fn account(&self, id: &AccountId) -> Option<&Account> {
        self.pool.accounts().iter().find(|account| account.id == *id)
    }

    /// Does one thing. What makes no sense now is a tick.
    pub(super) fn act(&mut self, act: Act) -> Step {
        let mut stale = None;
        let input = match act {
            Act::Select { session: of, model, exclude, only } => {
                let need = Need {
                    session: of.map(session),
                    model: model.map(|m| if m { "large" } else { "small" }.into()),
                    exclude: exclude.into_iter().map(account).collect(),
                    only: only.map(account),
                    ..Need::default()
                };
                self.ask(need, of)
            },
            Act::Need(need) => self.ask(need, None),
            Act::Cancel(n) => self.cancel(n),
            Act::Release { lease, mark, served } => return self.release(lease, mark, served),
            Act::Learn { account: n, mark } => Input::Learn(account(n), self.mark(mark)),
            Act::Quota { account: n, used, primary, resets } => {
                Input::QuotaSeen(account(n), vec![self.window(used, primary, resets)])
            },
            Act::Issuer { renewal, answer } => self.issuer(renewal, answer, &mut stale),
            Act::Stale { account: n, failed } => {
                let old = self.account(&account(n)).map_or(0, |a| a.token.generation.0);
                stale = self.account(&account(n)).map(|a| a.id.clone());
                if failed {
                    let why = RenewalFailure::Permanent("old".into());
                    Input::RenewalFailed(account(n), Generation(old.saturating_sub(1)), why)
                } else {
                    Input::Renewed(account(n), Generation(old), None)
                }
            },
            Act::Upsert { account: n, enabled, at_home, fresh, life } => {
                self.upsert(n, enabled, at_home, fresh, life)
            },
            Act::Remove(n) => {
                self.orphan(&account(n));
                Input::Remove(account(n))
            },
            Act::Pin(pin) => Input::Pin(pin.map(account)),
            Act::Jump(to) => {
                self.set_skew(to);
                Input::Tick
            },
            Act::Wait(ms) => {
                self.wait(Span::from_millis(ms)).expect("waits make progress");
                Input::Tick
            },
        };
        self.input(input, None, stale)
    }

    /// Lets time pass, waking the pool when it wants to be woken.
    pub(super) fn wait(&mut self, span: Span) -> TestCaseResult {
        self.wait_checked(span, &mut |_world, _step| Ok(()))
    }

    fn wait_checked(
        &mut self,
        span: Span,
        check: &mut impl FnMut(&Self, &Step) -> TestCaseResult,
    ) -> TestCaseResult {
        let end = self.now.mono.plus(span);
        while let Some(wake) = self.pool.next_wake(self.now) {
            prop_assert!(wake > Span::ZERO);
            if self.now.mono.plus(wake) > end {
                break;
            }
            self.advance(wake);
            let step = self.input(Input::Tick, None, None);
            prop_assert!(!step.effects.is_empty(), "woken for nothing at {:?}", self.now);
            check(self, &step)?;
        }
        self.advance(end.since(self.now.mono));
        Ok(())
    }

    /// The issuer answers every renewal with a token of ten days.
    pub(super) fn renew_all(&mut self) {
        for _ in 0..self.renewals.len() {
            self.act(Act::Issuer { renewal: 0, answer: Answer::Token(Some(864_000)) });
        }
    }

    /// Every request ends.
    pub(super) fn end_all(&mut self) {
        while !self.leases.is_empty() {
            self.act(Act::Release { lease: 0, mark: Told::Fine, served: true });
        }
    }

    fn input(
        &mut self,
        input: Input,
        released: Option<(AccountId, Mark)>,
        stale: Option<AccountId>,
    ) -> Step {
        self.pool.handle(self.now, input.clone());
        let effects: Vec<_> = std::iter::from_fn(|| self.pool.poll_effect()).collect();
        for effect in &effects {
            match effect {
                Effect::Reply(ticket, grant) => {
                    self.asked.get_mut(ticket).expect("a ticket that was asked").answers += 1;
                    if let Grant::Lease { lease, account, .. } = grant {
                        self.leases.push((*lease, account.clone()));
                        self.granted += 1;
                    }
                },
                Effect::Renew(id, generation) => {
                    self.renewals.push(Renewal {
                        id: id.clone(),
                        generation: *generation,
                        current: true,
                    });
                },
                Effect::Changed(_) | Effect::Note(_) => {},
            }
        }
        Step { input, effects, released, stale }
    }

    fn ask(&mut self, need: Need, session: Option<usize>) -> Input {
        let ticket = Ticket(self.asked.len() as u64);
        let asked =
            Asked { need: need.clone(), session, at: self.now.mono, answers: 0, cancelled: false };
        self.asked.insert(ticket, asked);
        Input::Select(ticket, need)
    }

    fn cancel(&mut self, n: usize) -> Input {
        let mut waiting =
            self.asked.iter_mut().filter(|(_, asked)| asked.answers == 0 && !asked.cancelled);
        match waiting.nth(n) {
            Some((ticket, asked)) => {
                asked.cancelled = true;
                Input::Cancel(*ticket)
            },
            None => Input::Tick,
        }
    }

    fn release(&mut self, n: usize, mark: Told, served: bool) -> Step {
        if self.leases.is_empty() {
            return self.input(Input::Tick, None, None);
        }
        let (lease, id) = self.leases.remove(n % self.leases.len());
        self.released += 1;
        let mark = self.mark(mark);
        let release = Release { mark: mark.clone(), served, model: Some("large".into()) };
        self.input(Input::Release(lease, release), Some((id, mark)), None)
    }

    fn issuer(&mut self, n: usize, answer: Answer, stale: &mut Option<AccountId>) -> Input {
        if self.renewals.is_empty() {
            return Input::Tick;
        }
        let renewal = self.renewals.remove(n % self.renewals.len());
        if !renewal.current {
            *stale = self.account(&renewal.id).map(|account| account.id.clone());
        }
        match answer {
            Answer::Token(life) => {
                // Whoever has newer credentials than this renewal's is not given its result.
                if renewal.current {
                    self.generation += 1;
                }
                let generation =
                    if renewal.current { Generation(self.generation) } else { renewal.generation };
                Input::Renewed(renewal.id, generation, self.expiry(life))
            },
            Answer::NotNow => {
                let why = if n.is_multiple_of(2) {
                    RenewalFailure::Transient("busy".into())
                } else {
                    RenewalFailure::Unreached("no way there".into())
                };
                Input::RenewalFailed(renewal.id, renewal.generation, why)
            },
            Answer::Never => {
                let why = RenewalFailure::Permanent("revoked".into());
                Input::RenewalFailed(renewal.id, renewal.generation, why)
            },
        }
    }

    fn upsert(
        &mut self,
        n: usize,
        enabled: bool,
        at_home: bool,
        fresh: bool,
        life: Option<u64>,
    ) -> Input {
        let known = self.account(&account(n)).map(|account| account.token);
        let (generation, expires) = match known.filter(|_| !fresh) {
            Some(token) => (token.generation, token.expires),
            None => {
                self.generation += 1;
                self.orphan(&account(n));
                (Generation(self.generation), self.expiry(life))
            },
        };
        Input::Upsert(Seed {
            id: account(n),
            order: u32::try_from(n).unwrap() / 2,
            workspace: format!("workspace {n}").into(),
            pools: crate::scope::Pools::default(),
            plan: Some("plus".into()),
            name: format!("account {n}").into(),
            enabled,
            at_home,
            generation,
            expires,
            gone: None,
            terms: crate::account::Terms::default(),
        })
    }

    fn orphan(&mut self, id: &AccountId) {
        for renewal in self.renewals.iter_mut().filter(|renewal| renewal.id == *id) {
            renewal.current = false;
        }
    }

    fn mark(&self, told: Told) -> Mark {
        let secs = Span::from_secs;
        match told {
            Told::Fine => Mark::Fine,
            Told::Shaky => Mark::Shaky,
            Told::Unauthorized => Mark::Unauthorized,
            Told::Model => Mark::ModelNotIncluded,
            Told::Limit(s) => Mark::Cool(Cause::UsageLimit(s.map(|s| self.now.wall.plus(secs(s))))),
            Told::Throttle(s) => Mark::Cool(Cause::Throttled(s.map(secs))),
            Told::Forbidden => Mark::Cool(Cause::Forbidden),
            Told::Payment => Mark::Cool(Cause::PaymentRequired),
        }
    }

    fn window(&self, used: u32, primary: bool, resets: u64) -> Window {
        Window {
            limit: MAIN_LIMIT.into(),
            model: None,
            place: if primary { Place::Primary } else { Place::Secondary },
            used_percent: f64::from(used),
            minutes: Some(if primary { 300 } else { 10_080 }),
            resets: Some(self.now.wall.plus(Span::from_secs(resets))),
            seen: self.now.wall,
        }
    }

    /// When a token ends that the issuer makes now: by true time.
    fn expiry(&self, life: Option<u64>) -> Option<Wall> {
        let truth = shift(self.now.wall, -self.skew);
        life.map(|life| truth.plus(Span::from_secs(life)))
    }

    fn set_skew(&mut self, to: i64) {
        self.now.wall = shift(self.now.wall, to - self.skew);
        self.skew = to;
    }

    fn advance(&mut self, span: Span) {
        self.now = Now { mono: self.now.mono.plus(span), wall: self.now.wall.plus(span) };
    }
}

fn shift(wall: Wall, by: i64) -> Wall {
    let span = Span::from_millis(by.unsigned_abs());
    if by < 0 { wall.minus(span) } else { wall.plus(span) }
}

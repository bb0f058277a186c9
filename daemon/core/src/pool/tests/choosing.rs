//! Promises about choosing, each over random sequences of everything that can happen: strategies,
//! thresholds, forces, pauses, drains, caps, profiles, waits, limits and clocks that jump.
//!
//! `CMA_PROP_CASES` says how many sequences; 1,000 when it doesn't.

use super::world::session;
use crate::{
    account::Terms,
    cooldown::Cause,
    identity::AccountId,
    pool::{Effect, Grant, Input, LeaseId, Pool, Release, Seed, Ticket},
    quota::{MAIN_LIMIT, Place, Window},
    scope::Pools,
    select::{self, Bar, Need},
    strategy::{Preset, Profile, Rules, Strategy, Wait},
    time::{Mono, Now, Span, Wall},
    token::Generation,
    verdict::Mark,
};
use proptest::{collection::vec, option, prelude::*, strategy::Strategy as Shape};
use std::{collections::BTreeMap, sync::Arc};

const ACCOUNTS: u32 = 4;
const THREADS: usize = 4;
const MODELS: [&str; 2] = ["large", "small"];

/// How many sequences each promise is held against.
#[expect(clippy::disallowed_methods, reason = "a test's own knob")]
fn cases() -> u32 {
    std::env::var("CMA_PROP_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1000)
}

pub(super) fn config(divided_by: u32) -> ProptestConfig {
    let cases = (cases() / divided_by).max(8);
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

pub(super) fn id(n: u32) -> AccountId {
    AccountId::of("user", &format!("workspace {n}"))
}

pub(super) fn seed(n: u32, enabled: bool, terms: Terms) -> Seed {
    Seed {
        id: id(n),
        order: n,
        workspace: format!("workspace {n}").into(),
        pools: Pools::default(),
        plan: None,
        name: format!("account {n}").into(),
        enabled,
        at_home: true,
        generation: Generation(1),
        expires: None,
        gone: None,
        terms,
    }
}

/// The limit that the first model has for itself.
const OWN: &str = "own";

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Event {
    Ask {
        thread: Option<usize>,
        model: usize,
    },
    End {
        lease: usize,
        limit: Option<u64>,
        served: bool,
        /// Of the model's own.
        own: bool,
    },
    Quota {
        account: u32,
        used: u32,
        resets: u64,
        own: bool,
    },
    Upsert {
        account: u32,
        enabled: bool,
        paused: bool,
        drained: bool,
        weight: u32,
        cap: Option<u32>,
    },
    Rules {
        strategy: usize,
        preset: usize,
        wait: usize,
    },
    Force {
        account: Option<u32>,
        secs: u64,
    },
    Profile {
        deny: bool,
        prefer: bool,
    },
    Pin(Option<u32>),
    Remove(u32),
    Warm {
        thread: usize,
        tokens: u32,
    },
    Wait(u64),
    Jump(i64),
}

fn event() -> impl Shape<Value = Event> {
    let one = 0..ACCOUNTS;
    prop_oneof![
        10 => (option::of(0..THREADS), 0..MODELS.len()).prop_map(|(thread, model)| Event::Ask { thread, model }),
        7 => (0_usize..8, option::weighted(0.2, 1_u64..7200), any::<bool>(), any::<bool>())
            .prop_map(|(lease, limit, served, own)| Event::End { lease, limit, served, own }),
        2 => (one.clone(), prop_oneof![0_u32..100, Just(100)], 1_u64..7200, any::<bool>())
            .prop_map(|(account, used, resets, own)| Event::Quota { account, used, resets, own }),
        2 => (one.clone(), prop::bool::weighted(0.8), prop::bool::weighted(0.2), prop::bool::weighted(0.2), 0_u32..4, option::of(1_u32..3))
            .prop_map(|(account, enabled, paused, drained, weight, cap)| Event::Upsert { account, enabled, paused, drained, weight: weight * 500, cap }),
        1 => (0..Strategy::ALL.len(), 0..Preset::ALL.len(), 0_usize..3)
            .prop_map(|(strategy, preset, wait)| Event::Rules { strategy, preset, wait }),
        1 => (option::of(one.clone()), 1_u64..7200).prop_map(|(account, secs)| Event::Force { account, secs }),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(deny, prefer)| Event::Profile { deny, prefer }),
        1 => option::of(one.clone()).prop_map(Event::Pin),
        1 => one.prop_map(Event::Remove),
        2 => (0..THREADS, 0_u32..60_000).prop_map(|(thread, tokens)| Event::Warm { thread, tokens }),
        3 => prop_oneof![1_u64..20_000, 1_u64..8_000_000].prop_map(Event::Wait),
        1 => (-86_400_000_i64..86_400_000).prop_map(Event::Jump),
    ]
}

/// A pool and what is known of those who asked it.
pub(super) struct Desk {
    pub(super) pool: Pool,
    pub(super) now: Now,
    asked: BTreeMap<Ticket, (Need, u32)>,
    pub(super) leases: Vec<(LeaseId, AccountId)>,
}

impl Desk {
    pub(super) fn new(accounts: u32) -> Self {
        let now = Now { mono: Mono::from_millis(1), wall: Wall::from_secs(1_800_000_000) };
        let mut desk =
            Self { pool: Pool::new(11), now, asked: BTreeMap::new(), leases: Vec::new() };
        for n in 0..accounts {
            desk.input(Input::Upsert(seed(n, true, Terms::default()))).unwrap();
        }
        desk
    }

    pub(super) fn need(thread: Option<usize>) -> Need {
        Need { session: thread.map(session), ..Need::default() }
    }

    /// Takes an input in and holds what comes of it against the promises.
    pub(super) fn input(&mut self, input: Input) -> Result<Vec<Effect>, TestCaseError> {
        let asks = match &input {
            Input::Select(ticket, need) => {
                self.asked.insert(*ticket, (need.clone(), 0));
                let all = self.pool.explain(need, self.now);
                let first = all.into_iter().find(|one| one.excluded.is_none()).map(|one| one.id);
                Some((*ticket, first))
            },
            _ => None,
        };
        let homes: Vec<Option<AccountId>> = (0..THREADS)
            .map(|n| self.pool.affinity.get(&session(n), self.now.mono).cloned())
            .collect();
        self.pool.handle(self.now, input);
        let effects: Vec<_> = std::iter::from_fn(|| self.pool.poll_effect()).collect();
        for effect in &effects {
            let Effect::Reply(ticket, grant) = effect else { continue };
            let (need, answers) = self.asked.get_mut(ticket).expect("a ticket that was asked");
            *answers += 1;
            prop_assert_eq!(*answers, 1, "answered twice");
            let need = need.clone();
            match grant {
                Grant::Lease { lease, account, choice, .. } => {
                    self.leases.push((*lease, account.clone()));
                    self.holds(account, &need, &homes)?;
                    if let Some((asked, first)) = asks.as_ref().filter(|(asked, _)| asked == ticket)
                    {
                        prop_assert_eq!(
                            Some(account),
                            first.as_ref(),
                            "{:?} not as explained",
                            asked
                        );
                    }
                    let better = choice.second.as_ref().is_none_or(|(other, key)| {
                        other != account && (choice.key, account) < (*key, other)
                    });
                    prop_assert!(better, "the second was better");
                },
                Grant::Refused(_) => {
                    let view = self.pool.view(&need, self.now);
                    for account in self.pool.accounts() {
                        let out = select::barred(&view, &need, self.now)(account);
                        prop_assert!(out.is_some(), "refused while {} can serve", account.id);
                    }
                },
            }
        }
        Ok(effects)
    }

    /// Whether the account could serve at the instant it was granted.
    fn holds(
        &self,
        account: &AccountId,
        need: &Need,
        homes: &[Option<AccountId>],
    ) -> Result<(), TestCaseError> {
        let one = self.pool.accounts().iter().find(|one| one.id == *account).expect("in the pool");
        prop_assert!(one.enabled && !one.terms.paused, "off or paused");
        prop_assert!(one.rest(self.now).is_none(), "resting");
        let model = need.model.as_deref();
        prop_assert!(one.quota.full_until(model, self.now).is_none(), "full");
        prop_assert!(one.limited(model, self.now).is_none(), "the model's own limit");
        prop_assert!(one.terms.cap.is_none_or(|cap| one.in_flight <= cap), "over its cap");
        if let Some(forced) = self.pool.forced(self.now) {
            prop_assert!(forced.accounts.contains(account), "another one is forced");
        }
        if one.terms.drained {
            let home = (0..THREADS).find(|n| need.session == Some(session(*n)));
            let home = home.and_then(|n| homes.get(n).cloned().flatten());
            prop_assert_eq!(home.as_ref(), Some(account), "a new thread on a drained account");
        }
        let profile = need.project.as_ref().and_then(|key| self.pool.profiles.get(key));
        let model = need.model.as_deref().unwrap_or_default();
        prop_assert!(profile.is_none_or(|profile| profile.permits(model)), "a refused model");
        Ok(())
    }

    fn act(&mut self, event: Event) -> Result<(), TestCaseError> {
        let input = match event {
            Event::Ask { thread, model } => {
                let need = Need {
                    model: MODELS.get(model).map(|model| Arc::from(*model)),
                    project: Some("p".into()),
                    ..Self::need(thread)
                };
                Input::Select(Ticket(self.asked.len() as u64), need)
            },
            Event::End { .. } if self.leases.is_empty() => Input::Tick,
            Event::End { lease, limit, served, own } => {
                let (lease, _id) = self.leases.remove(lease % self.leases.len());
                let at = |secs| self.now.wall.plus(Span::from_secs(secs));
                let mark = match limit.map(at) {
                    Some(reset) if own => {
                        Mark::ModelLimit { limit: OWN.into(), reset: Some(reset) }
                    },
                    Some(reset) => Mark::Cool(Cause::UsageLimit(Some(reset))),
                    None => Mark::Fine,
                };
                let model = own.then(|| MODELS[0].into());
                Input::Release(lease, Release { mark, served, model })
            },
            Event::Quota { account, used, resets, own } => {
                let mut window = window(self.now, used, resets);
                if own {
                    (window.limit, window.model) = (OWN.into(), Some(MODELS[0].into()));
                }
                Input::QuotaSeen(id(account), vec![window])
            },
            Event::Upsert { account, enabled, paused, drained, weight, cap } => {
                let tags: Arc<[Arc<str>]> =
                    if account % 2 == 0 { ["even".into()].into() } else { [].into() };
                let terms = Terms { paused, drained, weight, cap, tags };
                Input::Upsert(seed(account, enabled, terms))
            },
            Event::Rules { strategy, preset, wait } => Input::Rules(Rules {
                strategy: Strategy::ALL[strategy],
                reserve: Preset::ALL[preset].reserve(),
                wait: [Wait::Off, Wait::UpTo(Span::from_secs(60)), Wait::UntilReset][wait],
            }),
            Event::Force { account, secs } => {
                let until = self.now.wall.plus(Span::from_secs(secs));
                Input::Force(account.map(|n| ([id(n)].into(), until)))
            },
            Event::Profile { deny, prefer } => {
                let list = |wanted: bool, word: &str| {
                    if wanted { vec![Arc::from(word)] } else { Vec::new() }
                };
                let profile = Profile {
                    deny: list(deny, "large"),
                    prefer: list(prefer, "even"),
                    ..Profile::default()
                };
                Input::Profile("p".into(), Some(profile))
            },
            Event::Pin(pin) => Input::Pin(pin.map(id)),
            Event::Remove(account) => Input::Remove(id(account)),
            Event::Warm { thread, tokens } => Input::Warm(session(thread), tokens),
            Event::Wait(ms) => return self.wait(Span::from_millis(ms)),
            Event::Jump(by) => {
                let span = Span::from_millis(by.unsigned_abs());
                let wall = self.now.wall;
                self.now.wall = if by < 0 { wall.minus(span) } else { wall.plus(span) };
                Input::Tick
            },
        };
        self.input(input).map(drop)
    }

    pub(super) fn wait(&mut self, span: Span) -> Result<(), TestCaseError> {
        let end = self.now.mono.plus(span);
        let mut wakes = 0;
        while let Some(wake) =
            self.pool.next_wake(self.now).filter(|wake| self.now.mono.plus(*wake) <= end)
        {
            prop_assert!(wake > Span::ZERO);
            wakes += 1;
            prop_assert!(wakes < 10_000, "it spins");
            self.now = Now { mono: self.now.mono.plus(wake), wall: self.now.wall.plus(wake) };
            self.input(Input::Tick)?;
        }
        let left = end.since(self.now.mono);
        self.now = Now { mono: end, wall: self.now.wall.plus(left) };
        Ok(())
    }

    /// An account for a need, given back at once.
    pub(super) fn pick(&mut self, need: Need) -> Option<AccountId> {
        let ticket = Ticket(self.asked.len() as u64);
        self.input(Input::Select(ticket, need)).unwrap();
        let (lease, account) = self.leases.pop()?;
        let release = Release { mark: Mark::Fine, served: true, model: None };
        self.input(Input::Release(lease, release)).unwrap();
        Some(account)
    }

    pub(super) fn rules(&mut self, strategy: Strategy) {
        self.input(Input::Rules(Rules { strategy, ..Rules::default() })).unwrap();
    }
}

pub(super) fn window(now: Now, used: u32, resets: u64) -> Window {
    Window {
        limit: MAIN_LIMIT.into(),
        model: None,
        place: Place::Primary,
        used_percent: f64::from(used),
        minutes: Some(300),
        resets: Some(now.wall.plus(Span::from_secs(resets))),
        seen: now.wall,
    }
}

proptest! {
    #![proptest_config(config(1))]

    /// Checked at every input: never an account that can't serve, never a refusal while one can,
    /// nobody answered twice, and every choice as it was explained the moment before.
    #[test]
    fn c1_any_order_of_events_keeps_every_promise_and_nobody_is_forgotten(events in vec(event(), 1..60)) {
        let mut desk = Desk::new(ACCOUNTS);
        for event in events {
            desk.act(event)?;
        }
        // Everything is lifted and everybody ends: who waited is answered.
        desk.input(Input::Force(None))?;
        desk.input(Input::Profile("p".into(), None))?;
        for n in 0..ACCOUNTS {
            desk.input(Input::Upsert(seed(n, true, Terms::default())))?;
        }
        for _ in 0..100 {
            while let Some((lease, _id)) = desk.leases.pop() {
                desk.input(Input::Release(lease, Release { mark: Mark::Fine, served: true, model: None }))?;
            }
            desk.wait(Span::from_secs(1800))?;
        }
        for (ticket, (need, answers)) in &desk.asked {
            prop_assert_eq!(*answers, 1, "{:?} {:?}", ticket, need);
        }
    }

    #[test]
    fn c2_explain_agrees_with_choose_under_any_rules(events in vec(event(), 1..30), strategy in 0..Strategy::ALL.len()) {
        let mut desk = Desk::new(ACCOUNTS);
        for event in events {
            desk.act(event)?;
        }
        desk.input(Input::Rules(Rules { strategy: Strategy::ALL[strategy], ..desk.pool.rules() }))?;
        for thread in [None, Some(0), Some(1), Some(2)] {
            let need = Desk::need(thread);
            let all = desk.pool.explain(&need, desk.now);
            let chosen = desk.pool.next_for(&need, desk.now).map(|account| account.id.clone());
            let first = all.first().filter(|one| one.excluded.is_none()).map(|one| one.id.clone());
            prop_assert_eq!(&chosen, &first);
            // Said for each that is out, and for none that isn't.
            prop_assert!(all.iter().all(|one| one.said.is_some() == one.excluded.is_some()));
            let mut able = all.iter().filter(|one| one.excluded.is_none());
            if let (Some(one), Some(other)) = (able.next(), able.next()) {
                prop_assert!(!one.key.decided_against(&other.key).is_empty());
            }
        }
    }

    /// A thread whose account can serve and has more than the reserve stays, whatever the strategy
    /// and whatever happens to the others.
    #[test]
    fn c3_a_healthy_thread_never_moves(
        strategy in 0..Strategy::ALL.len(),
        events in vec((0..THREADS, 0_u32..ACCOUNTS, 0_u32..90, any::<bool>(), 1_u64..600_000), 1..60),
    ) {
        let mut desk = Desk::new(ACCOUNTS);
        desk.rules(Strategy::ALL[strategy]);
        let mut homes: BTreeMap<usize, AccountId> = BTreeMap::new();
        for (thread, account, used, off, ms) in events {
            desk.input(Input::QuotaSeen(id(account), vec![window(desk.now, used, 7200)]))?;
            // Accounts that no thread is on come and go.
            if off && !homes.values().any(|home| *home == id(account)) {
                desk.input(Input::Upsert(seed(account, false, Terms::default())))?;
                prop_assert!(desk.pick(Desk::need(None)).is_some_and(|chosen| chosen != id(account)) || ACCOUNTS == 1);
                desk.input(Input::Upsert(seed(account, true, Terms::default())))?;
            }
            let chosen = desk.pick(Desk::need(Some(thread)));
            prop_assert!(chosen.is_some());
            let home = homes.entry(thread).or_insert_with(|| chosen.clone().expect("one"));
            prop_assert_eq!(Some(&*home), chosen.as_ref());
            desk.wait(Span::from_millis(ms))?;
        }
    }

    /// Whoever waits for a place under a cap gets one in the order of asking.
    #[test]
    fn c4_nobody_starves_in_the_queue(waiting in 1_usize..12, cap in 1_u32..3) {
        let mut desk = Desk::new(1);
        desk.input(Input::Upsert(seed(0, true, Terms { cap: Some(cap), ..Terms::default() })))?;
        let mut served = Vec::new();
        for n in 0..waiting + cap as usize {
            desk.input(Input::Select(Ticket(n as u64), Need::default()))?;
        }
        prop_assert_eq!(desk.pool.waiting(desk.now).0, waiting);
        while let Some((lease, _id)) = desk.leases.pop() {
            let release = Release { mark: Mark::Fine, served: true, model: None };
            for effect in desk.input(Input::Release(lease, release))? {
                if let Effect::Reply(ticket, Grant::Lease { .. }) = effect {
                    served.push(ticket.0);
                }
            }
        }
        let expected: Vec<u64> = (u64::from(cap)..).take(waiting).collect();
        prop_assert_eq!(served, expected);
    }

    /// A force and a wait each end by their time, whatever the wall clock does meanwhile.
    #[test]
    fn c5_any_clock_jump_ends_a_force_and_a_wait_in_time(
        secs in 1_u64..3600,
        jumps in vec((-86_400_000_i64..86_400_000, 1_u64..600_000), 0..8),
    ) {
        let mut desk = Desk::new(2);
        desk.input(Input::Rules(Rules { wait: Wait::UpTo(Span::from_secs(secs)), ..Rules::default() }))?;
        let until = desk.now.wall.plus(Span::from_secs(secs));
        desk.input(Input::Force(Some(([id(0)].into(), until))))?;
        for n in 0..2 {
            desk.input(Input::QuotaSeen(id(n), vec![window(desk.now, 100, secs.div_ceil(2))]))?;
        }
        let begun = desk.now.mono;
        desk.input(Input::Select(Ticket(0), Need::default()))?;
        for (by, ms) in jumps {
            desk.act(Event::Jump(by))?;
            desk.wait(Span::from_millis(ms))?;
        }
        let passed = desk.now.mono.since(begun);
        desk.wait(Span::from_millis((secs * 1000 + 10).saturating_sub(passed.millis())))?;
        prop_assert!(desk.pool.forced(desk.now).is_none(), "the force is still on");
        prop_assert_eq!(desk.asked[&Ticket(0)].1, 1, "it still waits");
    }
}

proptest! {
    // Ten thousand choices each; `c8` is held against all sequences.
    #![proptest_config(config(10))]

    #[test]
    fn c6_weights_are_met_within_two_percent_over_ten_thousand_choices(
        weights in vec(0_u32..=10_000, 2..9),
    ) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let served = shares(&weights, 10_000);
        let total: u32 = weights.iter().sum();
        for (n, weight) in (0..).zip(&weights) {
            let share = served.get(&id(n)).copied().unwrap_or_default() as f64 / 10_000.0;
            let wanted = f64::from(*weight) / f64::from(total);
            prop_assert!((share - wanted).abs() <= 0.02, "account {n}: {share} for {wanted}");
        }
    }

}

/// How often each account serves of so many requests of no thread, by weight; nothing is checked on
/// the way.
fn shares(weights: &[u32], choices: u64) -> BTreeMap<AccountId, u64> {
    let now = Now { mono: Mono::from_millis(1), wall: Wall::from_secs(1_800_000_000) };
    let mut pool = Pool::new(11);
    for (n, weight) in (0..).zip(weights) {
        let terms = Terms { weight: *weight, ..Terms::default() };
        pool.handle(now, Input::Upsert(seed(n, true, terms)));
    }
    let strategy = Strategy::WeightedRoundRobin;
    pool.handle(now, Input::Rules(Rules { strategy, ..Rules::default() }));
    let mut served = BTreeMap::new();
    for choice in 0..choices {
        pool.handle(now, Input::Select(Ticket(choice), Need::default()));
        while let Some(effect) = pool.poll_effect() {
            if let Effect::Reply(_, Grant::Lease { lease, account, .. }) = effect {
                *served.entry(account).or_default() += 1;
                let release = Release { mark: Mark::Fine, served: true, model: None };
                pool.handle(now, Input::Release(lease, release));
            }
        }
    }
    served
}

proptest! {
    #![proptest_config(config(1))]

    /// Shares are kept on the way and not only in the end: at any length nobody is ahead of its share,
    /// or behind it, by more than one request for each account.
    #[test]
    fn c8_weights_are_met_at_any_length(weights in vec(0_u32..=10_000, 2..9), choices in 1_u64..600) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let served = shares(&weights, choices);
        prop_assert_eq!(served.values().sum::<u64>(), choices);
        let total: u32 = weights.iter().sum();
        for (n, weight) in (0..).zip(&weights) {
            let count = served.get(&id(n)).copied().unwrap_or_default() as f64;
            let wanted = f64::from(*weight) / f64::from(total) * choices as f64;
            let most = weights.len() as f64;
            prop_assert!((count - wanted).abs() <= most, "account {n}: {count} for {wanted}");
        }
    }

    /// New threads reach every account that can serve, whatever the strategy that spreads them.
    #[test]
    fn c7_no_account_starves(
        strategy in prop::sample::select(vec![
            Strategy::Balanced, Strategy::RoundRobin, Strategy::LeastUsed, Strategy::Random, Strategy::WeightedRoundRobin,
        ]),
        accounts in 2_u32..9,
        gap in 1_u64..60_000,
    ) {
        let mut desk = Desk::new(accounts);
        desk.rules(strategy);
        let mut served: BTreeMap<AccountId, u32> = BTreeMap::new();
        for n in 0..accounts as usize * 20 {
            *served.entry(desk.pick(Desk::need(Some(1000 + n))).expect("one can serve")).or_default() += 1;
            desk.wait(Span::from_millis(gap))?;
        }
        prop_assert_eq!(served.len(), accounts as usize, "{:?}", served);
    }
}

#[test]
fn a_bar_is_told_in_words() {
    for bar in [Bar::OtherPool, Bar::Forced, Bar::Denied, Bar::Capped, Bar::Drained, Bar::Full] {
        assert!(bar.text().len() > 10);
    }
}

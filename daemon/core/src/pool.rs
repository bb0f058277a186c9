//! The machine: accounts, pin, leases, parked requests.
//!
//! Invariants, each a property test in `tests`:
//! - A lease is granted only on an account that can serve at that instant.
//! - Grants = releases + leases outstanding.
//! - At most one renewal outstanding per account; the result of an old generation changes nothing.
//! - A refusal names a time only when it ends by itself, and never one in the past.
//! - Every parked request is answered exactly once, by its deadline if it has one.
//! - `next_wake` lies in the future or is none.

use crate::{
    account::{Account, Crowd, Login, State, Stuck, Terms},
    affinity::{Affinity, Told},
    cooldown::{self, Cause},
    identity::AccountId,
    pace::{Pace, Pacer},
    quota::{Quota, Window},
    scope::{Pools, Scope},
    select::{self, Candidate, Choice, Need, Scratch, View},
    strategy::{Profile, Rules},
    time::{Due, Now, Span, Wall},
    token::{Generation, Token},
    verdict::Mark,
    warmth::Warmth,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use parked::{Parked, Waited, WaitsFor, Woken};

mod grants;
mod limits;
mod parked;

/// Longest a request waits for a token's renewal before another account is taken.
const PARK: Span = Span::from_secs(10);
/// A model that a plan doesn't include is asked for again after this time.
const MODEL_REST: Span = Span::from_secs(3600);

/// Names a request that waits for its grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names one request's hold on one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// What is known of an account when it enters the pool or changes.
#[derive(Debug, Clone)]
pub struct Seed {
    /// Who it is.
    pub id: AccountId,
    /// Its place in the person's list.
    pub order: u32,
    /// Its workspace.
    pub workspace: Arc<str>,
    /// The pools it is in.
    pub pools: Pools,
    /// Its plan.
    pub plan: Option<Arc<str>>,
    /// What it is called.
    pub name: Arc<str>,
    /// Whether it may serve.
    pub enabled: bool,
    /// Whether its credential is for the upstream in use.
    pub at_home: bool,
    /// Its credential.
    pub generation: Generation,
    /// When that credential's access token expires.
    pub expires: Option<Wall>,
    /// Set when only the person can mend its login: why and since when.
    pub gone: Option<(Arc<str>, Wall)>,
    /// What its person lets it do.
    pub terms: Terms,
}

/// Why a renewal brought no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenewalFailure {
    /// The issuer said never again; why, for a person.
    Permanent(Arc<str>),
    /// It may work later.
    Transient(Arc<str>),
    /// The issuer was not spoken to: no way there, or a page of the network's. It works again when that
    /// does, so it is tried again soon.
    Unreached(Arc<str>),
    /// The same, by what a person has to see to: a disk that can't note the attempt, no trust in whoever
    /// answers. It is tried again as soon, and nobody waits for it.
    Held(Arc<str>),
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// What it means for the account.
    pub mark: Mark,
    /// Whether a response was delivered from it.
    pub served: bool,
    /// Model the request asked for, for [`Mark::ModelNotIncluded`] and [`Mark::ModelLimit`].
    pub model: Option<Arc<str>>,
}

/// What comes in.
#[derive(Debug, Clone)]
pub enum Input {
    /// A request wants an account.
    Select(Ticket, Need),
    /// A waiting request went away.
    Cancel(Ticket),
    /// A lease ends, with what was learned.
    Release(LeaseId, Release),
    /// An account's answer means something while its lease goes on.
    Learn(AccountId, Mark),
    /// Quota became known.
    QuotaSeen(AccountId, Vec<Window>),
    /// A renewal brought a new credential, already durable.
    Renewed(AccountId, Generation, Option<Wall>),
    /// A renewal of that generation failed.
    RenewalFailed(AccountId, Generation, RenewalFailure),
    /// An account enters or changes.
    Upsert(Seed),
    /// An account leaves.
    Remove(AccountId),
    /// The person chose an account, or lets the pool choose again.
    Pin(Option<AccountId>),
    /// The same for a project's pool, by its key.
    PinIn(Arc<str>, Option<AccountId>),
    /// Only these serve what they may serve, until that time; none lifts it.
    Force(Option<(Arc<[AccountId]>, Wall)>),
    /// How to choose from here on.
    Rules(Rules),
    /// What a project wants, by its key; none forgets it.
    Profile(Arc<str>, Option<Profile>),
    /// So many tokens of a thread are cached by the account that served it last.
    Warm(Arc<str>, u32),
    /// Time passed.
    Tick,
    /// Something about threads.
    Thread(Told),
    /// All models that an account lists.
    Models(AccountId, Arc<[Arc<str>]>),
}

/// What should happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Answer a request.
    Reply(Ticket, Grant),
    /// Renew the credential of that generation.
    Renew(AccountId, Generation),
    /// Something a person may want to know changed.
    Changed(Topic),
    /// Input that made no sense; for the log.
    Note(String),
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// An account's state.
    State(AccountId),
    /// An account's quota.
    Quota(AccountId),
    /// The pin.
    Pin,
    /// An account came, changed or went.
    Accounts(AccountId),
}

/// The answer to [`Input::Select`].
#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// Serve with this account.
    Lease {
        /// To be given back by [`Input::Release`].
        lease: LeaseId,
        /// Who.
        account: AccountId,
        /// With which credential.
        generation: Generation,
        /// What it was chosen by.
        choice: Box<Choice>,
    },
    /// No account can serve.
    Refused(Refused),
}

/// Why none can, account by account.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The earliest time at which one can again.
    pub retry_at: Option<Wall>,
    /// Whether the one that comes back earliest is out of quota (and not out of order).
    pub quota: bool,
    /// Whether one only waits for a renewal whose issuer is out of reach: it is back when the network is.
    pub unreached: bool,
    /// Whether one could serve and was only ruled out because this request tried it before.
    pub tried: bool,
    /// Name and reason of each.
    pub reasons: Vec<(Arc<str>, String)>,
    /// Plan of the account that comes back first, else of the first in the list.
    pub plan: Option<Arc<str>>,
}

/// A force: only these serve what they may serve.
#[derive(Debug, Clone)]
pub struct Forced {
    /// Who.
    pub accounts: Arc<[AccountId]>,
    /// Until when.
    pub due: Due,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Pool {
    accounts: Vec<Account>,
    pin: Option<(AccountId, Wall)>,
    /// Pins of projects, by key.
    pins: BTreeMap<Arc<str>, (AccountId, Wall)>,
    affinity: Affinity,
    warmth: Warmth,
    rules: Rules,
    profiles: BTreeMap<Arc<str>, Profile>,
    forced: Option<Forced>,
    /// Choices made so far.
    turn: u64,
    /// Chance for the next choice; drawn anew after each, so that what is explained is what comes.
    draw: u64,
    scratch: Scratch,
    leases: BTreeMap<LeaseId, (AccountId, Generation)>,
    parked: Vec<Parked>,
    effects: VecDeque<Effect>,
    next_lease: u64,
    epoch: u64,
    rng: fastrand::Rng,
    pacer: Pacer,
}

impl Pool {
    /// An empty pool. The seed spreads renewals and draws where a strategy does; nothing else depends
    /// on chance.
    pub fn new(seed: u64) -> Self {
        Self {
            accounts: Vec::new(),
            pin: None,
            pins: BTreeMap::new(),
            affinity: Affinity::default(),
            warmth: Warmth::default(),
            rules: Rules::default(),
            profiles: BTreeMap::new(),
            forced: None,
            turn: 0,
            draw: seed,
            scratch: Scratch::default(),
            leases: BTreeMap::new(),
            parked: Vec::new(),
            effects: VecDeque::new(),
            next_lease: 1,
            epoch: 0,
            rng: fastrand::Rng::with_seed(seed),
            pacer: Pacer::default(),
        }
    }

    /// Renewals that nobody waits for go at this pace from here on.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pacer = Pacer::new(pace);
    }

    /// Takes one input in.
    pub fn handle(&mut self, now: Now, input: Input) {
        for account in &mut self.accounts {
            account.quota.doubt(now);
        }
        match input {
            Input::Select(ticket, need) => self.select(now, ticket, need, Waited::default()),
            Input::Cancel(ticket) => self.parked.retain(|parked| parked.ticket != ticket),
            Input::Release(lease, release) => self.release(now, lease, &release),
            Input::Learn(account, mark) => self.learn(now, &account, &mark, None),
            Input::QuotaSeen(account, windows) => self.quota_seen(now, &account, &windows),
            Input::Renewed(account, generation, expires) => {
                self.renewed(now, &account, generation, expires);
            },
            Input::RenewalFailed(account, generation, failure) => {
                self.renewal_failed(now, &account, generation, failure);
            },
            Input::Upsert(seed) => self.upsert(now, seed),
            Input::Remove(account) => self.remove(now, &account),
            Input::Pin(pin) => self.set_pin(now, None, pin),
            Input::PinIn(project, pin) => self.set_pin(now, Some(project), pin),
            Input::Force(forced) => self.force(now, forced),
            Input::Rules(rules) => {
                self.rules = rules;
                self.epoch += 1;
                self.unpark(now, Woken::All);
            },
            Input::Profile(project, profile) => {
                match profile {
                    Some(profile) => drop(self.profiles.insert(project, profile)),
                    None => drop(self.profiles.remove(&project)),
                }
                self.epoch += 1;
                self.unpark(now, Woken::All);
            },
            Input::Warm(thread, tokens) => self.warmth.set(&thread, tokens, now.mono),
            Input::Tick => self.tick(now),
            Input::Thread(told) => self.affinity.told(now, told),
            Input::Models(account, models) => self.models(now, &account, models),
        }
    }

    /// The next thing that should happen; poll until none after every [`Pool::handle`].
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// How long until something happens by itself: a renewal, a parked request's deadline, an
    /// account's return. `None` when nothing will.
    pub fn next_wake(&self, now: Now) -> Option<Span> {
        let parked = self.parked.iter().filter_map(|parked| parked.wake(now));
        let forced = self.forced.iter().map(|forced| forced.due.left(now));
        let pace = self.pacer.wait(now.mono);
        let accounts = self.accounts.iter().flat_map(|account| {
            let rest = account.rest(now).map(|rest| rest.due.left(now));
            let renewal = (account.enabled && account.at_home && account.login == Login::Good)
                .then(|| {
                    let due = account.token.renew_at().map(|at| at.since(now.wall))?;
                    let hold = account.renewal.1.map_or(Span::ZERO, |hold| hold.left(now));
                    // One that is due waits for its turn as well.
                    Some(due.max(hold).max(pace))
                })
                .flatten();
            [rest, renewal].into_iter().flatten()
        });
        // A millisecond at least: what is due now was handled now, and must not spin.
        parked.chain(forced).chain(accounts).min().map(|span| span.max(Span::from_millis(1)))
    }

    /// The n-th state of the pool.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All accounts, in the person's order.
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// The pinned account and since when.
    pub const fn pin(&self) -> Option<&(AccountId, Wall)> {
        self.pin.as_ref()
    }

    /// The account pinned in a pool and since when.
    pub fn pin_of(&self, scope: &Scope) -> Option<&(AccountId, Wall)> {
        scope.key().map_or(self.pin.as_ref(), |key| self.pins.get(key))
    }

    /// Why the pin is not followed now, when it isn't.
    pub fn pin_yields(&self, now: Now) -> Option<String> {
        self.pin_yields_in(&Scope::Global, now)
    }

    /// Why a pool's pin is not followed now, when it isn't.
    pub fn pin_yields_in(&self, scope: &Scope, now: Now) -> Option<String> {
        let (pin, _since) = self.pin_of(scope)?;
        let account = self.find(pin)?;
        let need = Need { scope: scope.clone(), ..Need::default() };
        let view = self.view(&need, now);
        // A pinned account finishes its own threads while it is drained; it is new ones that go on.
        select::barred(&view, &need, now)(account).map(|excluded| excluded.said(account, now))
    }

    /// How choices are made.
    pub const fn rules(&self) -> Rules {
        self.rules
    }

    /// How choices are made for a need: its project may want another strategy.
    pub fn rules_for(&self, need: &Need) -> Rules {
        let wanted = self.profile(need).and_then(|profile| profile.strategy);
        Rules { strategy: wanted.unwrap_or(self.rules.strategy), ..self.rules }
    }

    /// The force that is on.
    pub fn forced(&self, now: Now) -> Option<&Forced> {
        self.forced.as_ref().filter(|forced| !forced.due.reached(now))
    }

    /// Requests that wait because every account is out, and when the first of them should go on.
    pub fn waiting(&self, now: Now) -> (usize, Option<Wall>) {
        let dues = self.parked.iter().filter_map(|parked| match parked.waits_for {
            WaitsFor::Room { due, .. } => Some(due),
            WaitsFor::Renewal(_) => None,
        });
        (dues.clone().count(), dues.flatten().map(|due| due.shown(now)).min())
    }

    /// Tokens that a thread has cached where it ran last.
    pub fn warm(&self, thread: &str, now: Now) -> u32 {
        self.warmth.of(thread, now.mono)
    }

    /// Where threads run.
    pub const fn affinity(&self) -> &Affinity {
        &self.affinity
    }

    /// Leases outstanding.
    pub fn outstanding(&self) -> usize {
        self.leases.len()
    }

    /// The choice for a need, explained by the same comparison that makes it.
    pub fn explain(&self, need: &Need, now: Now) -> Vec<Candidate> {
        select::explain(&self.view(need, now), need, now)
    }

    fn profile(&self, need: &Need) -> Option<&Profile> {
        self.profiles.get(need.project.as_ref().or_else(|| need.scope.key())?)
    }

    /// The pool as a choice for that need sees it.
    pub fn view(&self, need: &Need, now: Now) -> View<'_> {
        // Where the global pool steps in, its pin still says with which account.
        let steps_in = matches!(need.scope, Scope::Project { fallback: true, .. });
        let pin = self.pin_of(&need.scope).or(self.pin.as_ref().filter(|_| steps_in));
        View {
            pin: pin.map(|(pin, _since)| pin),
            warmth: Some(&self.warmth),
            rules: self.rules_for(need),
            profile: self.profile(need),
            forced: self.forced(now).map(|forced| &*forced.accounts),
            turn: self.turn,
            draw: self.draw,
            ..View::new(&self.accounts, None, &self.affinity)
        }
    }

    fn find(&self, id: &AccountId) -> Option<&Account> {
        self.accounts.iter().find(|account| account.id == *id)
    }

    fn find_mut(&mut self, id: &AccountId) -> Option<&mut Account> {
        self.accounts.iter_mut().find(|account| account.id == *id)
    }

    fn changed(&mut self, topic: Topic) {
        self.epoch += 1;
        self.effects.push_back(Effect::Changed(topic));
    }

    fn note(&mut self, text: String) {
        self.effects.push_back(Effect::Note(text));
    }

    fn release(&mut self, now: Now, lease: LeaseId, release: &Release) {
        let Some((id, generation)) = self.leases.remove(&lease) else {
            self.note(format!("release of unknown lease {}", lease.0));
            return;
        };
        let mut stale = false;
        if let Some(account) = self.find_mut(&id) {
            account.in_flight = account.in_flight.saturating_sub(1);
            account.served += u64::from(release.served);
            stale = generation != account.token.generation;
            // A token that served is not fresh any more: its next refusal is worth a renewal.
            account.refused_fresh &= stale || !release.served;
        }
        self.epoch += 1;
        // A burst's last 401 comes after the renewal that its first one caused: not the new token's.
        // And who was given back without having served did nothing well.
        let idle = release.mark == Mark::Fine && !release.served;
        if !idle && (!stale || release.mark != Mark::Unauthorized) {
            self.learn(now, &id, &release.mark, release.model.as_ref());
        }
        // One that waits for a place under a cap gets the one that is free now; not before what was
        // learned of the account is known.
        if self.parked.iter().any(|parked| matches!(parked.waits_for, WaitsFor::Room { .. })) {
            self.unpark(now, Woken::Room);
        }
    }

    fn learn(&mut self, now: Now, id: &AccountId, mark: &Mark, model: Option<&Arc<str>>) {
        let Some(account) = self.find_mut(id) else { return };
        match mark {
            Mark::Fine => {
                if account.streak > 0 || account.shaky.is_some() {
                    (account.streak, account.shaky) = (0, None);
                }
            },
            Mark::Shaky => account.shaky = Some(Due::after(now, cooldown::SHAKY)),
            Mark::Cool(cause) => self.cool(now, id, cause.clone()),
            Mark::ModelNotIncluded => match model {
                Some(model) => {
                    account.without.insert(Arc::clone(model), Due::after(now, MODEL_REST));
                    account.without.retain(|_model, due| !due.reached(now));
                    self.changed(Topic::State(id.clone()));
                },
                None => self.cool(now, id, Cause::NotEntitled),
            },
            Mark::ModelLimit { limit, reset } => self.model_limit(now, id, model, (limit, *reset)),
            Mark::Unauthorized => {
                if account.refused_fresh {
                    self.cool(now, id, Cause::Unauthorized);
                } else {
                    self.renew(now, id, true);
                }
            },
        }
    }

    fn cool(&mut self, now: Now, id: &AccountId, cause: Cause) {
        let Some(account) = self.find_mut(id) else { return };
        // What arrives during a rest was sent before it: a burst is one failure, not one each.
        if account.rest(now).is_none() {
            account.streak = account.streak.saturating_add(1);
        }
        let full = account.quota.full_until(None, now);
        let rest = cooldown::rest(now, cause, account.streak, full);
        // Two requests may bring the same news: the later end counts, a shorter one never wins.
        let longer = account.rest(now).is_none_or(|known| rest.due.later_than(known.due));
        if longer {
            account.cooldown = Some(rest);
            self.changed(Topic::State(id.clone()));
        }
    }

    /// Starts a renewal unless one is under way. `refused` says that upstream rejected the token.
    fn renew(&mut self, now: Now, id: &AccountId, refused: bool) {
        let chance = self.rng.f64();
        let Some(account) = self.find_mut(id) else { return };
        match &mut account.login {
            Login::Good if account.renewal.1.is_none_or(|hold| hold.reached(now)) || refused => {
                account.login = Login::Renewing { refused };
                let generation = account.token.generation;
                self.effects.push_back(Effect::Renew(id.clone(), generation));
                self.pacer.start(now.mono, chance);
                self.changed(Topic::State(id.clone()));
            },
            Login::Renewing { refused: known } => *known |= refused,
            Login::Good | Login::Gone { .. } => {},
        }
    }

    fn renewed(&mut self, now: Now, id: &AccountId, generation: Generation, expires: Option<Wall>) {
        let chance = self.rng.f64();
        let Some(account) = self.find_mut(id) else { return };
        if generation <= account.token.generation {
            let known = account.token.generation;
            self.note(format!(
                "renewal of {id} to generation {}, already {}",
                generation.0, known.0
            ));
            return;
        }
        account.refused_fresh = matches!(account.login, Login::Renewing { refused: true });
        account.login = Login::Good;
        account.renewal = (0, None);
        account.stuck = None;
        // No issuer hands out a token that has expired: our clock is ahead. Then only a refusal
        // tells; believing it would renew again and again.
        let learned = Token::learned(now, generation, expires, chance);
        account.token = if learned.usable(now) {
            learned
        } else {
            Token::learned(now, generation, None, chance)
        };
        self.changed(Topic::State(id.clone()));
        self.unpark(now, Woken::Account(id));
    }

    fn renewal_failed(
        &mut self,
        now: Now,
        id: &AccountId,
        generation: Generation,
        failure: RenewalFailure,
    ) {
        let Some(account) = self.find_mut(id) else { return };
        let Login::Renewing { refused } = account.login else {
            self.note(format!("a renewal of {id} failed that was not under way"));
            return;
        };
        if generation != account.token.generation {
            self.note(format!("an old renewal of {id} failed"));
            return;
        }
        match failure {
            RenewalFailure::Permanent(cause) => {
                account.login = Login::Gone { cause, since: now.wall };
            },
            RenewalFailure::Transient(ref why)
            | RenewalFailure::Unreached(ref why)
            | RenewalFailure::Held(ref why) => {
                account.login = Login::Good;
                let streak = account.renewal.0.saturating_add(1);
                let due = match failure {
                    RenewalFailure::Unreached(_) | RenewalFailure::Held(_) => {
                        cooldown::unreached(now, streak)
                    },
                    _ => cooldown::rest(now, Cause::RenewalFailed, streak, None).due,
                };
                account.renewal = (streak, Some(due));
                let unreached = matches!(failure, RenewalFailure::Unreached(_));
                account.stuck = Some(Stuck { why: Arc::clone(why), unreached });
                if refused {
                    // It is no good, whatever its expiry says; the account itself did nothing wrong
                    // and rests for nothing.
                    account.token = account.token.refused(now);
                }
            },
        }
        self.changed(Topic::State(id.clone()));
        self.unpark(now, Woken::Account(id));
    }

    fn upsert(&mut self, now: Now, seed: Seed) {
        let chance = self.rng.f64();
        let token = Token::learned(now, seed.generation, seed.expires, chance);
        let login = match seed.gone {
            Some((cause, since)) => Login::Gone { cause, since },
            None => Login::Good,
        };
        let id = seed.id.clone();
        // A removed account may come back while requests from before still run on it.
        let running = self.leases.values().filter(|(account, _generation)| *account == id).count();
        if let Some(account) = self.find_mut(&id) {
            // Two commands may arrive in another order than their records were read: an older
            // generation changes nothing.
            if seed.generation > account.token.generation {
                account.token = token;
                account.renewal = (0, None);
                account.stuck = None;
                account.refused_fresh = false;
                account.login = login;
                if account.cooldown.as_ref().is_some_and(|rest| !rest.cause.is_quota()) {
                    account.cooldown = None;
                }
            }
            account.pools = seed.pools;
            account.plan = seed.plan;
            account.name = seed.name;
            account.enabled = seed.enabled;
            account.at_home = seed.at_home;
            account.order = seed.order;
            account.terms = seed.terms;
        } else {
            self.accounts.push(Account {
                id: seed.id,
                order: seed.order,
                workspace: seed.workspace,
                pools: seed.pools,
                plan: seed.plan,
                name: seed.name,
                enabled: seed.enabled,
                at_home: seed.at_home,
                login,
                token,
                cooldown: None,
                quota: Quota::default(),
                in_flight: u32::try_from(running).unwrap_or(u32::MAX),
                served: 0,
                streak: 0,
                renewal: (0, None),
                stuck: None,
                shaky: None,
                without: BTreeMap::new(),
                limited: BTreeMap::new(),
                lists: None,
                unlisted: Vec::new(),
                refused_fresh: false,
                terms: seed.terms,
                turn: 0,
                credit: 0,
                crowd: Crowd::default(),
            });
        }
        self.accounts.sort_by(|a, b| (a.order, &a.id).cmp(&(b.order, &b.id)));
        self.changed(Topic::Accounts(id.clone()));
        self.tick(now);
        // It may serve now, or no more: either way nobody has to wait for it.
        self.unpark(now, Woken::Account(&id));
    }

    fn remove(&mut self, now: Now, id: &AccountId) {
        if self.find(id).is_none() {
            self.note(format!("remove of unknown account {id}"));
            return;
        }
        self.accounts.retain(|account| account.id != *id);
        self.affinity.forget(id);
        if self.pin.as_ref().is_some_and(|(pin, _since)| pin == id) {
            self.pin = None;
            self.changed(Topic::Pin);
        }
        self.pins.retain(|_project, (pin, _since)| pin != id);
        if let Some(forced) = self.forced.take_if(|forced| forced.accounts.contains(id)) {
            let left: Arc<[AccountId]> =
                forced.accounts.iter().filter(|one| *one != id).cloned().collect();
            self.forced = (!left.is_empty()).then_some(Forced { accounts: left, ..forced });
            self.changed(Topic::Pin);
        }
        // Requests it is serving run on; their leases end as those of a stranger.
        self.changed(Topic::Accounts(id.clone()));
        self.unpark(now, Woken::Account(id));
    }

    fn set_pin(&mut self, now: Now, project: Option<Arc<str>>, pin: Option<AccountId>) {
        if let Some(id) = &pin
            && self.find(id).is_none()
        {
            self.note(format!("pin on unknown account {id}"));
            return;
        }
        let pin = pin.map(|id| (id, now.wall));
        match (project, pin) {
            (None, pin) => self.pin = pin,
            (Some(project), Some(pin)) => drop(self.pins.insert(project, pin)),
            (Some(project), None) => drop(self.pins.remove(&project)),
        }
        self.affinity.chosen(now.mono);
        self.changed(Topic::Pin);
    }

    fn force(&mut self, now: Now, forced: Option<(Arc<[AccountId]>, Wall)>) {
        self.forced = match forced {
            Some((accounts, until)) => {
                let accounts: Arc<[AccountId]> =
                    accounts.iter().filter(|id| self.find(id).is_some()).cloned().collect();
                if accounts.is_empty() {
                    self.note("force on accounts that are not in the pool".to_owned());
                }
                let due = Due::at(now, until, cooldown::LONGEST);
                (!accounts.is_empty()).then_some(Forced { accounts, due })
            },
            None => None,
        };
        self.changed(Topic::Pin);
        self.unpark(now, Woken::All);
    }

    fn tick(&mut self, now: Now) {
        if self.forced.take_if(|forced| forced.due.reached(now)).is_some() {
            self.changed(Topic::Pin);
            self.unpark(now, Woken::All);
        }
        let mut back = Vec::new();
        let mut renew = Vec::new();
        for account in &mut self.accounts {
            if account.cooldown.as_ref().is_some_and(|rest| rest.due.reached(now)) {
                account.cooldown = None;
                back.push(account.id.clone());
            }
            if account.wants_renewal(now) {
                renew.push((account.token.renew_at(), account.id.clone()));
            }
        }
        for id in back {
            self.changed(Topic::State(id));
        }
        // Whose token is over first goes first; who finds no place now is asked at the next wake.
        renew.sort();
        for (_at, id) in renew {
            if self.pacer.wait(now.mono) > Span::ZERO {
                break;
            }
            self.renew(now, &id, false);
        }
        self.unpark(now, Woken::Time);
    }
}

impl Pool {
    /// What a person sees of each account.
    pub fn states(&self, now: Now) -> impl Iterator<Item = (&Account, State)> {
        self.accounts.iter().map(move |account| (account, account.state(now)))
    }

    /// The account a request of a new thread would get.
    pub fn next(&self, now: Now) -> Option<&Account> {
        self.next_for(&Need::default(), now)
    }

    /// The account a request with that need would get.
    pub fn next_for(&self, need: &Need, now: Now) -> Option<&Account> {
        let at = select::choose(&self.view(need, now), need, now)?;
        self.accounts.get(at)
    }
}

mod listed;
#[cfg(test)]
mod tests;

//! The machine: accounts, pin, leases, parked requests.
//!
//! Invariants, each a property test in `tests`:
//! - A lease is granted only on an account that can serve at that instant.
//! - Grants = releases + leases outstanding.
//! - At most one renewal outstanding per account; the result of an old generation changes nothing.
//! - A refusal names a time only when it ends by itself, and never one in the past.
//! - Every parked request is answered exactly once, by its deadline.
//! - `next_wake` lies in the future or is none.

use crate::{
    account::{Account, Login, State},
    affinity::{Affinity, Told},
    cooldown::{self, Cause},
    identity::AccountId,
    pace::{Pace, Pacer},
    quota::{Quota, Window},
    scope::{Pools, Scope},
    select::{self, Candidate, Need, View},
    time::{Due, Mono, Now, Span, Wall},
    token::{Generation, Token},
    verdict::Mark,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

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
}

/// Why a renewal brought no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenewalFailure {
    /// The issuer said never again; why, for a person.
    Permanent(Arc<str>),
    /// It may work later.
    Transient(Arc<str>),
    /// The issuer was not spoken to: no way there, a page of the network's, or a disk that can't
    /// note the attempt. It works again when that does, so it is tried again soon.
    Unreached(Arc<str>),
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// What it means for the account.
    pub mark: Mark,
    /// Whether a response was delivered from it.
    pub served: bool,
    /// Model the request asked for, for [`Mark::ModelNotIncluded`].
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
    /// Whether one could serve and was only ruled out because this request tried it before.
    pub tried: bool,
    /// Name and reason of each.
    pub reasons: Vec<(Arc<str>, String)>,
    /// Plan of the account that comes back first, else of the first in the list.
    pub plan: Option<Arc<str>>,
}

#[derive(Debug, Clone)]
struct Parked {
    ticket: Ticket,
    need: Need,
    deadline: Mono,
    waits_for: AccountId,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Pool {
    accounts: Vec<Account>,
    pin: Option<(AccountId, Wall)>,
    /// Pins of projects, by key.
    pins: BTreeMap<Arc<str>, (AccountId, Wall)>,
    affinity: Affinity,
    leases: BTreeMap<LeaseId, (AccountId, Generation)>,
    parked: Vec<Parked>,
    effects: VecDeque<Effect>,
    next_lease: u64,
    epoch: u64,
    rng: fastrand::Rng,
    pacer: Pacer,
}

impl Pool {
    /// An empty pool. The seed spreads renewals; nothing else depends on chance.
    pub fn new(seed: u64) -> Self {
        Self {
            accounts: Vec::new(),
            pin: None,
            pins: BTreeMap::new(),
            affinity: Affinity::default(),
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
            Input::Select(ticket, need) => self.select(now, ticket, need, None),
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
        let parked = self.parked.iter().map(|parked| parked.deadline.since(now.mono));
        let accounts = self.accounts.iter().flat_map(|account| {
            let rest = account.rest(now).map(|rest| rest.due.left(now));
            let renewal = (account.enabled && account.at_home && account.login == Login::Good)
                .then(|| {
                    let due = account.token.renew_at().map(|at| at.since(now.wall))?;
                    let hold = account.renewal.1.map_or(Span::ZERO, |hold| hold.left(now));
                    // One that is due waits for its turn as well.
                    Some(due.max(hold).max(self.pacer.wait(now.mono)))
                })
                .flatten();
            [rest, renewal].into_iter().flatten()
        });
        // A millisecond at least: what is due now was handled now, and must not spin.
        parked.chain(accounts).min().map(|span| span.max(Span::from_millis(1)))
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
        select::excluded(account, &need, now).map(|excluded| excluded.text)
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
        select::explain(&self.view(&need.scope), need, now)
    }

    fn view(&self, scope: &Scope) -> View<'_> {
        // Where the global pool steps in, its pin still says with which account.
        let steps_in = matches!(scope, Scope::Project { fallback: true, .. });
        let pin = self.pin_of(scope).or(self.pin.as_ref().filter(|_| steps_in));
        View {
            accounts: &self.accounts,
            pin: pin.map(|(pin, _since)| pin),
            affinity: &self.affinity,
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

    /// `deadline` is set for a request that was parked before: it keeps its first one.
    fn select(&mut self, now: Now, ticket: Ticket, need: Need, deadline: Option<Mono>) {
        let late = deadline.is_some_and(|deadline| now.mono >= deadline);
        let mut need = need;
        loop {
            let Some(at) = select::choose(&self.view(&need.scope), &need, now) else {
                let refused = self.refusal(&need, now);
                self.effects.push_back(Effect::Reply(ticket, Grant::Refused(refused)));
                return;
            };
            let Some(account) = self.accounts.get_mut(at) else { return };
            if account.sendable(now) {
                self.grant(now, ticket, &need, at);
                return;
            }
            if late {
                // It waited long enough for this one: take any other.
                need.exclude.push(account.id.clone());
                continue;
            }
            let waits_for = account.id.clone();
            self.renew(now, &waits_for, false);
            let deadline = deadline.unwrap_or_else(|| now.mono.plus(PARK));
            self.parked.push(Parked { ticket, need, deadline, waits_for });
            return;
        }
    }

    fn grant(&mut self, now: Now, ticket: Ticket, need: &Need, at: usize) {
        let Some(account) = self.accounts.get_mut(at) else { return };
        let lease = LeaseId(self.next_lease);
        self.next_lease += 1;
        account.in_flight += 1;
        let (id, generation) = (account.id.clone(), account.token.generation);
        self.affinity.runs(need, &id, now.mono);
        self.leases.insert(lease, (id.clone(), generation));
        let grant = Grant::Lease { lease, account: id, generation };
        self.effects.push_back(Effect::Reply(ticket, grant));
    }

    fn refusal(&self, need: &Need, now: Now) -> Refused {
        // What the request itself ruled out before is judged by the account's own state: the
        // answer is about when the pool can serve, not about this request's history.
        let need = Need { exclude: Vec::new(), only: None, ..need.clone() };
        let out: Vec<_> = self
            .accounts
            .iter()
            .filter(|account| need.scope.place(&account.pools).is_some())
            .map(|account| (account, select::excluded(account, &need, now)))
            .collect();
        let first = out
            .iter()
            .filter_map(|(account, excluded)| {
                let excluded = excluded.as_ref()?;
                excluded.until.map(|until| (until, excluded.quota, *account))
            })
            .min_by(|a, b| (a.0, a.2.order).cmp(&(b.0, b.2.order)));
        Refused {
            tried: out.iter().any(|(_account, excluded)| excluded.is_none()),
            retry_at: first.map(|(until, _quota, _account)| until),
            quota: first.is_some_and(|(_until, quota, _account)| quota),
            reasons: out
                .iter()
                .map(|(account, excluded)| {
                    let text = excluded.as_ref().map_or_else(
                        || "already tried for this request".to_owned(),
                        |excluded| excluded.text.clone(),
                    );
                    (Arc::clone(&account.name), text)
                })
                .collect(),
            plan: first
                .map(|(_until, _quota, account)| account)
                .or_else(|| out.first().map(|(account, _excluded)| *account))
                .and_then(|account| account.plan.clone()),
        }
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
        if stale && release.mark == Mark::Unauthorized {
            // A burst's last 401 arrives after the renewal that its first one caused: it says
            // nothing about the new token.
            return;
        }
        self.learn(now, &id, &release.mark, release.model.as_ref());
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
        let full = account.quota.full_until(now);
        let rest = cooldown::rest(now, cause, account.streak, full);
        // Two requests may bring the same news: the later end counts, a shorter one never wins.
        let longer = account.rest(now).is_none_or(|known| rest.due.later_than(known.due));
        if longer {
            account.cooldown = Some(rest);
            self.changed(Topic::State(id.clone()));
        }
    }

    fn quota_seen(&mut self, now: Now, id: &AccountId, windows: &[Window]) {
        let Some(account) = self.find_mut(id) else { return };
        if !account.quota.merge(windows) {
            return;
        }
        // Knowledge newer than the limit that cooled it ends the rest: windows were reset early.
        let freed = account.cooldown.as_ref().is_some_and(|rest| {
            matches!(rest.cause, Cause::UsageLimit(_)) && account.quota.headroom(now) > 1.0
        }) && windows.iter().any(|window| window.used_percent < 99.0)
            && account.quota.full_until(now).is_none();
        if freed {
            account.cooldown = None;
            account.streak = 0;
            self.changed(Topic::State(id.clone()));
        }
        self.changed(Topic::Quota(id.clone()));
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
        self.unpark(now, Some(id));
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
            RenewalFailure::Transient(ref why) | RenewalFailure::Unreached(ref why) => {
                account.login = Login::Good;
                let streak = account.renewal.0.saturating_add(1);
                let due = match failure {
                    RenewalFailure::Unreached(_) => cooldown::unreached(now, streak),
                    _ => cooldown::rest(now, Cause::RenewalFailed, streak, None).due,
                };
                account.renewal = (streak, Some(due));
                account.stuck = Some(Arc::clone(why));
                if refused {
                    // It is no good, whatever its expiry says; the account itself did nothing wrong
                    // and rests for nothing.
                    account.token = account.token.refused(now);
                }
            },
        }
        self.changed(Topic::State(id.clone()));
        self.unpark(now, Some(id));
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
                lists: None,
                unlisted: Vec::new(),
                refused_fresh: false,
            });
        }
        self.accounts.sort_by(|a, b| (a.order, &a.id).cmp(&(b.order, &b.id)));
        self.changed(Topic::Accounts(id.clone()));
        self.tick(now);
        // It may serve now, or no more: either way nobody has to wait for it.
        self.unpark(now, Some(&id));
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
        // Requests it is serving run on; their leases end as those of a stranger.
        self.changed(Topic::Accounts(id.clone()));
        self.unpark(now, Some(id));
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

    fn tick(&mut self, now: Now) {
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
        self.unpark(now, None);
    }

    /// Chooses again for those who waited for `account`, and for all whose time is up.
    fn unpark(&mut self, now: Now, account: Option<&AccountId>) {
        let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|parked| now.mono >= parked.deadline || account == Some(&parked.waits_for));
        self.parked = waiting;
        for parked in ready {
            self.select(now, parked.ticket, parked.need, Some(parked.deadline));
        }
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
        let at = select::choose(&self.view(&need.scope), need, now)?;
        self.accounts.get(at)
    }
}

mod listed;
#[cfg(test)]
mod tests;

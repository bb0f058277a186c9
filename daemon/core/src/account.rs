//! One account's life.
//!
//! Three facts that are independent of each other, each a small machine of its own: whether the
//! person lets it serve (`enabled`), what its login can do ([`Login`]), and whether it rests
//! ([`Cooldown`]). One flat enum would forget a rest when a token is renewed, or a renewal when the
//! person disables the account. What a person sees ([`State`]) is derived from the three.

use crate::{
    cooldown::{Cause, Cooldown},
    identity::AccountId,
    quota::Quota,
    scope::Pools,
    strategy::WEIGHT_ONE,
    time::{Due, Mono, Now, Wall},
    token::Token,
};
use std::{collections::BTreeMap, sync::Arc};

/// What an account's login can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// The token may be used.
    Good,
    /// The token is being renewed. `refused` says whether upstream rejected the current one: then
    /// it is not sent again meanwhile.
    Renewing {
        /// Upstream rejected the current token.
        refused: bool,
    },
    /// Only the person can mend it, by signing in again.
    Gone {
        /// Why, for a person.
        cause: Arc<str>,
        /// Since when.
        since: Wall,
    },
}

/// What its person lets an account do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// It serves nothing new; its login is kept fresh meanwhile.
    pub paused: bool,
    /// It finishes the threads that are on it and takes no new one.
    pub drained: bool,
    /// Its share where weights count, in thousandths.
    pub weight: u32,
    /// Requests it may serve at once.
    pub cap: Option<u32>,
    /// Words to prefer or avoid it by.
    pub tags: Arc<[Arc<str>]>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { paused: false, drained: false, weight: WEIGHT_ONE, cap: None, tags: [].into() }
    }
}

/// Why a token could not be renewed the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// For a person.
    pub why: Arc<str>,
    /// Whether the issuer wasn't spoken to at all: the fault is of the way there.
    pub unreached: bool,
}

/// One account of the pool.
#[derive(Debug, Clone)]
pub struct Account {
    /// Who it is.
    pub id: AccountId,
    /// Position in the person's list.
    pub order: u32,
    /// Its workspace.
    pub workspace: Arc<str>,
    /// The pools it is in.
    pub pools: Pools,
    /// Its plan as the token says.
    pub plan: Option<Arc<str>>,
    /// What it is called: label, else e-mail, else id.
    pub name: Arc<str>,
    /// Whether the person lets it serve.
    pub enabled: bool,
    /// Whether its credential was made for the upstream in use.
    pub at_home: bool,
    /// What its login can do.
    pub login: Login,
    /// What is known of its token.
    pub token: Token,
    /// Its rest, if any.
    pub cooldown: Option<Cooldown>,
    /// What is known of its quota.
    pub quota: Quota,
    /// Requests it is serving.
    pub in_flight: u32,
    /// Requests it served.
    pub served: u64,
    /// Failures in a row that cooled it.
    pub streak: u32,
    /// Renewals in a row that failed for a passing reason, and when the next may start.
    pub renewal: (u32, Option<Due>),
    /// Why the last of these failed.
    pub stuck: Option<Stuck>,
    /// Until when a fault of the way there counts against it.
    pub shaky: Option<Due>,
    /// Models its plan doesn't include, and until when that is believed.
    pub without: BTreeMap<Arc<str>, Due>,
    /// Models whose own limit is used up: which limit, and until when.
    pub limited: BTreeMap<Arc<str>, (Arc<str>, Due)>,
    /// All models it lists, and until when that is believed.
    pub lists: Option<(Arc<[Arc<str>]>, Due)>,
    /// Models that others list and it doesn't.
    pub unlisted: Vec<Arc<str>>,
    /// Generation whose token was refused right after being renewed by a refusal.
    pub refused_fresh: bool,
    /// What its person lets it do.
    pub terms: Terms,
    /// Number of the choice that took it last; 0 for never.
    pub turn: u64,
    /// What it is owed by weight, in thousandths of a choice.
    pub credit: i64,
    /// Threads that came to it lately.
    pub crowd: Crowd,
}

/// Threads that came lately, each counting half as much every half hour: about the number of those
/// that are still at work. One number instead of a list of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crowd {
    thousandths: u64,
    at: Mono,
}

impl Crowd {
    /// A thread is at work for about an hour, its requests and pauses together.
    const HALF: u64 = 30 * 60 * 1000;

    /// Its number now, in thousandths.
    pub const fn thousandths(self, now: Mono) -> u64 {
        let passed = now.since(self.at).millis();
        let halves = passed / Self::HALF;
        if halves >= 40 {
            return 0;
        }
        let left = self.thousandths >> halves;
        // Straight lines between the halves: the same on every machine.
        left - left * (passed % Self::HALF) / (2 * Self::HALF)
    }

    /// One more.
    #[must_use]
    pub const fn joined(self, now: Mono) -> Self {
        Self { thousandths: self.thousandths(now).saturating_add(1000), at: now }
    }
}

/// What a person sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Can serve.
    Ready,
    /// Rests until then.
    Cooling(Cause, Wall),
    /// One of its windows is full until then; nobody was refused for it.
    Full(Wall),
    /// Its token is being renewed and the old one can't be used.
    Refreshing,
    /// Its token has to be renewed and could not be yet: why, and when it is tried again. The
    /// account is not to blame for it.
    Waiting(Arc<str>, Wall),
    /// The person has to sign in.
    NeedsLogin(Arc<str>, Wall),
    /// The person disabled it.
    Disabled,
    /// The person paused it.
    Paused,
    /// It finishes its threads and takes no new one.
    Draining,
    /// Its credential is for another upstream.
    Elsewhere,
}

impl State {
    /// One word, as in `--json`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Cooling(..) | Self::Full(_) => "cooling",
            Self::Refreshing | Self::Waiting(..) => "refreshing",
            Self::NeedsLogin(..) => "needs_login",
            Self::Disabled => "disabled",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Elsewhere => "elsewhere",
        }
    }

    /// Why, for a person.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Ready => None,
            Self::Cooling(cause, _) => Some(cause.text().to_owned()),
            Self::Full(_) => Some("its quota window is full".to_owned()),
            Self::Refreshing => Some("its token is being renewed".to_owned()),
            Self::Waiting(why, _) => Some(format!("{}: {why}", Cause::RenewalFailed.text())),
            Self::NeedsLogin(cause, _) => Some(cause.to_string()),
            Self::Disabled => Some("disabled by you".to_owned()),
            Self::Paused => Some("paused by you".to_owned()),
            Self::Draining => Some("it finishes its threads and takes no new one".to_owned()),
            Self::Elsewhere => Some("imported for another upstream".to_owned()),
        }
    }

    /// When it ends by itself.
    pub const fn until(&self) -> Option<Wall> {
        match self {
            Self::Cooling(_, until) | Self::Waiting(_, until) | Self::Full(until) => Some(*until),
            Self::Ready
            | Self::Refreshing
            | Self::NeedsLogin(..)
            | Self::Disabled
            | Self::Paused
            | Self::Draining
            | Self::Elsewhere => None,
        }
    }
}

impl Account {
    /// What a person sees now.
    pub fn state(&self, now: Now) -> State {
        if !self.enabled {
            return State::Disabled;
        }
        if self.terms.paused {
            return State::Paused;
        }
        if !self.at_home {
            return State::Elsewhere;
        }
        if let Login::Gone { cause, since } = &self.login {
            return State::NeedsLogin(Arc::clone(cause), *since);
        }
        if let Some(rest) = self.rest(now) {
            return State::Cooling(rest.cause.clone(), rest.due.shown(now));
        }
        if !self.sendable(now) {
            if let (_streak, Some(due)) = self.renewal
                && !due.reached(now)
            {
                let stuck = self.stuck.as_ref().map(|stuck| Arc::clone(&stuck.why));
                let why = stuck.unwrap_or_else(|| "the issuer can't now".into());
                return State::Waiting(why, due.shown(now));
            }
            return State::Refreshing;
        }
        // Nobody was refused yet; whoever asked next would be.
        if let Some(full) = self.quota.full_until(None, now) {
            return State::Full(full);
        }
        if self.terms.drained {
            return State::Draining;
        }
        State::Ready
    }

    /// The rest that still runs.
    pub fn rest(&self, now: Now) -> Option<&Cooldown> {
        self.cooldown.as_ref().filter(|rest| !rest.due.reached(now))
    }

    /// Whether the current token may be sent now.
    pub fn sendable(&self, now: Now) -> bool {
        match self.login {
            Login::Good => self.token.usable(now),
            Login::Renewing { refused } => !refused && self.token.usable(now),
            Login::Gone { .. } => false,
        }
    }

    /// Whether a renewal should start now.
    pub fn wants_renewal(&self, now: Now) -> bool {
        self.enabled
            && self.at_home
            && self.login == Login::Good
            && (self.token.renewal_due(now) || !self.token.usable(now))
            && self.renewal.1.is_none_or(|due| due.reached(now))
    }

    /// When a model whose own limit is used up can be asked for again.
    pub fn limited(&self, model: Option<&str>, now: Now) -> Option<Wall> {
        let (_limit, due) = self.limited.get(model?)?;
        (!due.reached(now)).then(|| due.shown(now))
    }

    /// Whether a model is known not to be in its plan.
    pub fn lacks(&self, model: Option<&str>, now: Now) -> bool {
        let Some(model) = model else { return false };
        let listed = self.lists.as_ref().is_some_and(|(_all, due)| !due.reached(now));
        self.without.get(model).is_some_and(|due| !due.reached(now))
            || (listed && self.unlisted.iter().any(|unlisted| **unlisted == *model))
    }
}

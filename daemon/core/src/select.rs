//! Which account serves a request: one comparison, used to choose and to explain.
//!
//! Every account gets a [`Key`]; the smallest eligible one wins. The order of its fields is the
//! order of what people care about: their own choice, the warm prompt cache, quota that is there,
//! quota that would be lost at its reset, and an even load. `explain` prints the same keys, so there
//! is no second opinion that could drift.

use crate::{
    account::{Account, Login, State},
    affinity::Affinity,
    cooldown::Cause,
    identity::AccountId,
    scope::Scope,
    time::{Now, Wall},
};
use std::sync::Arc;

/// Below this percentage of headroom an account is kept as a reserve.
const LOW: f64 = 5.0;
/// Below this it is nearly out.
const CRITICAL: f64 = 1.0;

/// What a request needs.
#[derive(Debug, Clone, Default)]
pub struct Need {
    /// Session of the thread, for affinity.
    pub session: Option<Arc<str>>,
    /// The thread itself; none is the session.
    pub thread: Option<Arc<str>>,
    /// The turn it is part of.
    pub turn: Option<Arc<str>>,
    /// Model asked for.
    pub model: Option<Arc<str>>,
    /// Accounts already tried for this request.
    pub exclude: Vec<AccountId>,
    /// The account to stay with, for a retry on the same one.
    pub only: Option<AccountId>,
    /// Workspaces the launch allows; empty allows all.
    pub workspaces: Arc<[Arc<str>]>,
    /// Accounts the launch allows; none allows all.
    pub accounts: Option<Arc<[AccountId]>>,
    /// The pool it is served from.
    pub scope: Scope,
}

impl Need {
    /// The name of its thread.
    pub fn thread(&self) -> Option<&Arc<str>> {
        self.thread.as_ref().or(self.session.as_ref())
    }
}

/// What is compared, first field first, smaller is better.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// 0 when its person moved the thread here, 1 when its turn runs here, 2 else.
    pub held: u8,
    /// 0 when it is in the request's own pool, 1 when it only steps in for that.
    pub away: u8,
    /// 0 when the person pinned it.
    pub pin: u8,
    /// 0 when the thread ran on it last, 1 when its session did, 2 else.
    pub affinity: u8,
    /// 0 when its token can be sent as it is.
    pub token: u8,
    /// 0 when nothing failed on the way to it lately.
    pub shaky: u8,
    /// 0 enough headroom, 1 low, 2 critical.
    pub reserve: u8,
    /// 0 for the most quota to lose at the next reset, in powers of two of percent an hour.
    pub reset: u8,
    /// Requests in flight.
    pub load: u32,
    /// Used share of its fullest window, in steps of 5 %.
    pub used: u8,
    /// Position in the person's list.
    pub order: u32,
    /// Last resort, so that a tie never depends on insertion.
    pub id: AccountId,
}

impl Key {
    /// Names and values, in order of comparison, for a person.
    pub fn shown(&self) -> Vec<(String, String)> {
        let yes = |zero: u8, yes: &str, no: &str| if zero == 0 { yes } else { no }.to_owned();
        let reserve = ["enough", "low", "critical"];
        let away = (self.away > 0).then(|| ("pool", "steps in for the project's".to_owned()));
        let rest = [
            ("pin", yes(self.pin, "pinned", "-")),
            ("affinity", {
                let warm = ["this thread's account", "its session's account"];
                warm.get(usize::from(self.affinity)).copied().unwrap_or("-").to_owned()
            }),
            ("token", yes(self.token, "ready", "must be renewed first")),
            ("path", yes(self.shaky, "fine", "failed lately")),
            ("headroom", reserve.get(usize::from(self.reserve)).copied().unwrap_or("?").to_owned()),
            ("lost at reset", self.reset.to_string()),
            ("in flight", self.load.to_string()),
            ("used", format!("{} %", u32::from(self.used) * 5)),
            ("order", self.order.to_string()),
        ];
        let held = ["moved here", "its turn runs here"].get(usize::from(self.held));
        let held = held.map(|held| ("thread", (*held).to_owned()));
        held.into_iter()
            .chain(away)
            .chain(rest)
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// The first field in which `self` is better than `other`, for a person.
    pub fn decided_against(&self, other: &Self) -> &'static str {
        if self.held != other.held {
            if self.held == 0 { "the thread was moved to it" } else { "its turn runs on it" }
        } else if self.away != other.away {
            "it is the project's own"
        } else if self.pin != other.pin {
            "it is pinned"
        } else if self.affinity != other.affinity {
            "the thread ran on it last"
        } else if self.token != other.token {
            "its token is ready"
        } else if self.shaky != other.shaky {
            "nothing failed on it lately"
        } else if self.reserve != other.reserve {
            "it has more headroom"
        } else if self.reset != other.reset {
            "more of its quota would be lost at the next reset"
        } else if self.load != other.load {
            "it has less in flight"
        } else if self.used != other.used {
            "less of its quota is used"
        } else {
            "it comes first in the list"
        }
    }
}

/// Why an account can't serve a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excluded {
    /// For a person.
    pub text: String,
    /// When that ends by itself.
    pub until: Option<Wall>,
    /// Whether it is out of quota, as against out of order.
    pub quota: bool,
}

/// What selection sees.
#[derive(Debug)]
pub struct View<'a> {
    /// All accounts.
    pub accounts: &'a [Account],
    /// The person's choice.
    pub pin: Option<&'a AccountId>,
    /// Where sessions ran.
    pub affinity: &'a Affinity,
}

/// One account's part in a choice.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Who.
    pub id: AccountId,
    /// What it is called.
    pub name: Arc<str>,
    /// What kept it out.
    pub excluded: Option<Excluded>,
    /// What is compared.
    pub key: Key,
}

/// The best eligible account, by its place in `view.accounts`.
pub fn choose(view: &View<'_>, need: &Need, now: Now) -> Option<usize> {
    let mut best: Option<(usize, Key)> = None;
    for (at, account) in view.accounts.iter().enumerate() {
        if excluded(account, need, now).is_some() {
            continue;
        }
        let key = key(view, account, need, now);
        if best.as_ref().is_none_or(|(_at, least)| key < *least) {
            best = Some((at, key));
        }
    }
    best.map(|(at, _key)| at)
}

/// Every account's part in the same choice, best first, those kept out last.
pub fn explain(view: &View<'_>, need: &Need, now: Now) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = view
        .accounts
        .iter()
        .filter(|account| need.scope.place(&account.pools).is_some())
        .map(|account| Candidate {
            id: account.id.clone(),
            name: Arc::clone(&account.name),
            excluded: excluded(account, need, now),
            key: key(view, account, need, now),
        })
        .collect();
    all.sort_by(|a, b| (a.excluded.is_some(), &a.key).cmp(&(b.excluded.is_some(), &b.key)));
    all
}

/// What keeps an account from serving this request, if anything.
pub fn excluded(account: &Account, need: &Need, now: Now) -> Option<Excluded> {
    let out = |text: String, until| Some(Excluded { text, until, quota: false });
    if need.scope.place(&account.pools).is_none() {
        return out("it is in another pool".to_owned(), None);
    }
    if need.accounts.as_ref().is_some_and(|allowed| !allowed.contains(&account.id)) {
        return out("the folder's policy doesn't name it".to_owned(), None);
    }
    if need.only.as_ref().is_some_and(|only| *only != account.id) {
        return out("the request stays with another account".to_owned(), None);
    }
    if need.exclude.contains(&account.id) {
        return out("already tried for this request".to_owned(), None);
    }
    if !need.workspaces.is_empty() && !need.workspaces.contains(&account.workspace) {
        return out("its workspace is not allowed for this launch".to_owned(), None);
    }
    let state = account.state(now);
    if matches!(state, State::NeedsLogin(..) | State::Disabled | State::Elsewhere) {
        return out(state.reason().unwrap_or_default(), None);
    }
    // Before any rest: at a rest's end it would still be so, and a refusal must not promise more.
    if account.lacks(need.model.as_deref(), now) {
        return out(Cause::NotEntitled.text().to_owned(), None);
    }
    // A window seen full (by a header of the last answer that still went through) is believed.
    let full = account.quota.full_until(now);
    if let State::Cooling(cause, until) = &state {
        let until = *until;
        return Some(Excluded {
            text: cause.text().to_owned(),
            until: Some(full.map_or(until, |full| until.max(full))),
            quota: cause.is_quota() || full.is_some_and(|full| full > until),
        });
    }
    if let State::Waiting(_, until) = state {
        let text = state.reason().unwrap_or_default();
        return Some(Excluded {
            text,
            until: Some(full.map_or(until, |full| until.max(full))),
            quota: full.is_some_and(|full| full > until),
        });
    }
    full.map(|until| Excluded {
        text: "its quota window is full".to_owned(),
        until: Some(until),
        quota: true,
    })
}

fn key(view: &View<'_>, account: &Account, need: &Need, now: Now) -> Key {
    let not = |is: bool| u8::from(!is);
    let headroom = account.quota.headroom(now);
    let (held, affinity) = view.affinity.place(need, &account.id, now.mono);
    Key {
        held,
        away: need.scope.place(&account.pools).unwrap_or(u8::MAX),
        pin: not(view.pin == Some(&account.id)),
        affinity,
        token: not(account.sendable(now) || matches!(account.login, Login::Gone { .. })),
        shaky: u8::from(account.shaky.is_some_and(|due| !due.reached(now))),
        reserve: if headroom < CRITICAL { 2 } else { u8::from(headroom < LOW) },
        reset: lost_at_reset(account, now),
        load: account.in_flight,
        used: steps(100.0 - headroom),
        order: account.order,
        id: account.id.clone(),
    }
}

/// How much quota would be lost at the next reset of the longest window, as a rank: the share left,
/// divided by the hours left, in powers of two. What is unknown is in the middle.
fn lost_at_reset(account: &Account, now: Now) -> u8 {
    const MIDDLE: u8 = 8;
    let Some(window) = account.quota.longest(now) else { return MIDDLE };
    let Some(resets) = window.resets else { return MIDDLE };
    let minutes = (resets.since(now.wall).millis() / 60_000).max(30);
    #[expect(clippy::cast_precision_loss, reason = "minutes of a month fit")]
    let rate = (100.0 - window.used_at(now)).max(0.0) * 60.0 / minutes as f64;
    // 64 %/h and more → 0; each halving one rank later; 1 %/h → 6, 0.25 %/h → 8.
    let mut rank = 0;
    let mut step = 64.0;
    while rate < step && rank < 2 * MIDDLE {
        rank += 1;
        step /= 2.0;
    }
    rank
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=20")]
fn steps(used: f64) -> u8 {
    (used / 5.0).clamp(0.0, 20.0) as u8
}

#[cfg(test)]
mod tests;

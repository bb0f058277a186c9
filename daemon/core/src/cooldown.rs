//! How long an account rests, and why.
//!
//! Only what the account itself is answerable for cools it: a limit, a throttle, a refusal of its
//! identity. Faults that all accounts share (a dead host, a 5xx, a silent head) never do, or one
//! bad minute upstream would empty the pool; they leave a short mark that `select` looks at.

use crate::time::{Due, Now, Span, Wall};

/// A reset later than this is not believed: no plan has a window over a month.
pub(crate) const LONGEST: Span = Span::from_secs(32 * 24 * 3600);
/// A limit without a reset time: long enough not to hammer, short enough to notice a new window.
const LIMIT_UNTOLD: Span = Span::from_secs(15 * 60);
/// First wait after a throttle that names none; doubles with each further one.
const THROTTLE_FIRST: Span = Span::from_secs(5);
/// A throttle never rests an account longer: it is a rate, not a quota.
const THROTTLE_CAP: Span = Span::from_secs(300);
/// A 403 with no other account to blame; doubles with each further one.
const FORBIDDEN_FIRST: Span = Span::from_secs(60);
/// Cap of the above.
const FORBIDDEN_CAP: Span = Span::from_secs(3600);
/// A 402, or a plan that doesn't include what was asked: people change plans, not often.
const NOT_ENTITLED: Span = Span::from_secs(3600);
/// A token refused right after its renewal.
const UNAUTHORIZED: Span = Span::from_secs(300);
/// First wait after a renewal that failed for a passing reason; doubles with each further one.
const RENEWAL_FIRST: Span = Span::from_secs(2);
/// Cap of the above.
const RENEWAL_CAP: Span = Span::from_secs(300);
/// Cap of the above when the issuer was not spoken to: a network that comes back is noticed in seconds by
/// the requests that wait for it.
const UNREACHED_CAP: Span = Span::from_secs(7);
/// How long a fault of the way there is remembered against an account, as a tie-breaker only.
pub const SHAKY: Span = Span::from_secs(15);

/// Why an account rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Its quota is used up; the reset upstream named.
    UsageLimit(Option<Wall>),
    /// Too many requests; the wait upstream named.
    Throttled(Option<Span>),
    /// Its plan doesn't include this.
    NotEntitled,
    /// 402.
    PaymentRequired,
    /// 403.
    Forbidden,
    /// 401 with a token just renewed.
    Unauthorized,
    /// Its token is spent and could not be renewed yet.
    RenewalFailed,
}

impl Cause {
    /// For a person.
    pub const fn text(&self) -> &'static str {
        match self {
            Self::UsageLimit(_) => "usage limit reached",
            Self::Throttled(_) => "asked to slow down",
            Self::NotEntitled => "not included in its plan",
            Self::PaymentRequired => "payment required",
            Self::Forbidden => "forbidden by upstream",
            Self::Unauthorized => "its fresh token was refused",
            Self::RenewalFailed => "its token could not be renewed yet",
        }
    }

    /// Whether the account is out of quota, as against out of favour.
    pub const fn is_quota(&self) -> bool {
        matches!(self, Self::UsageLimit(_) | Self::Throttled(_))
    }
}

/// A rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cooldown {
    /// Why.
    pub cause: Cause,
    /// Since when: what was seen before says nothing against it.
    pub since: Wall,
    /// Until when.
    pub due: Due,
}

/// When a renewal may be tried again that did not reach the issuer, for the `streak`-th time.
pub fn unreached(now: Now, streak: u32) -> Due {
    let wait = RENEWAL_FIRST.times(1 << streak.saturating_sub(1).min(16));
    Due::after(now, wait.min(UNREACHED_CAP))
}

/// How long an account rests for `cause` when it is the `streak`-th failure in a row, from 1.
/// `full_until` is the reset of its full windows, for a limit that names none itself.
pub fn rest(now: Now, cause: Cause, streak: u32, full_until: Option<Wall>) -> Cooldown {
    let doubled =
        |first: Span, cap: Span| first.times(1 << streak.saturating_sub(1).min(16)).min(cap);
    let due = match &cause {
        Cause::UsageLimit(reset) => match reset.or(full_until).filter(|at| *at > now.wall) {
            Some(reset) => Due::at(now, reset, LONGEST),
            None => Due::after(now, LIMIT_UNTOLD),
        },
        Cause::Throttled(Some(wait)) => {
            Due::after(now, (*wait).clamp(Span::from_secs(1), THROTTLE_CAP))
        },
        Cause::Throttled(None) => Due::after(now, doubled(THROTTLE_FIRST, THROTTLE_CAP)),
        Cause::Forbidden => Due::after(now, doubled(FORBIDDEN_FIRST, FORBIDDEN_CAP)),
        Cause::NotEntitled | Cause::PaymentRequired => Due::after(now, NOT_ENTITLED),
        Cause::Unauthorized => Due::after(now, UNAUTHORIZED),
        Cause::RenewalFailed => Due::after(now, doubled(RENEWAL_FIRST, RENEWAL_CAP)),
    };
    Cooldown { cause, since: now.wall, due }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Mono;

    #[test]
    fn waits_are_what_upstream_says_within_caps() {
        let now = Now { mono: Mono::from_millis(7), wall: Wall::from_secs(1_000) };
        let left = |cause, streak| rest(now, cause, streak, None).due.left(now);
        assert_eq!(left(Cause::UsageLimit(Some(Wall::from_secs(1_060))), 1), Span::from_secs(60));
        assert_eq!(left(Cause::UsageLimit(Some(Wall::from_secs(10))), 1), LIMIT_UNTOLD);
        assert_eq!(left(Cause::UsageLimit(Some(Wall::from_secs(u64::MAX))), 1), LONGEST);
        assert_eq!(left(Cause::Throttled(Some(Span::from_secs(30))), 9), Span::from_secs(30));
        assert_eq!(left(Cause::Throttled(Some(Span::from_secs(30_000))), 1), THROTTLE_CAP);
        assert_eq!(left(Cause::Throttled(None), 3), Span::from_secs(20));
        assert_eq!(left(Cause::Throttled(None), u32::MAX), THROTTLE_CAP);
        let full = rest(now, Cause::UsageLimit(None), 1, Some(Wall::from_secs(1_500)));
        assert_eq!(full.due.left(now), Span::from_secs(500));
    }
}

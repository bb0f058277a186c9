//! When many accounts fail alike, it is their host's fault: a pause for everybody instead of a walk
//! through the pool.
//!
//! Two kinds of failure are looked at. Failures of the host (a 5xx, an overload inside a stream) in a
//! row, from several accounts, with no success between them. And refused tokens: one account's 401 is
//! worth a renewal; when the renewed token is refused as well, or a third account is refused while two
//! are still in doubt, nobody's login is to blame, and walking on would renew a whole pool for nothing
//! (such walks have got whole pools revoked).
//!
//! It only says how long to wait and whom to believe; it marks nobody. Pauses grow while nothing
//! succeeds and are forgotten at the first success. Time and chance come in.

use crate::{
    identity::AccountId,
    time::{Mono, Span},
};

/// Failures in a row that trip a pause, when they are not all of one account.
const TRIPS: u32 = 3;
/// Failures further apart than this have nothing to do with each other.
const WINDOW: Span = Span::from_secs(30);
/// First pause; doubles with each further failure that comes after one.
const FIRST: Span = Span::from_millis(500);
/// A pause is never longer: the host may be well again, and requests give up after two minutes.
const CAP: Span = Span::from_secs(15);
/// A pause is longer by up to this share of it, by chance: not all come back at once.
const JITTER: f64 = 0.25;
/// Accounts remembered; more say nothing more.
const KNOWN: usize = 8;

/// What a refused token means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The account's own affair: renew it once.
    Own,
    /// Its fresh token was refused: another account tells whether it is to blame.
    Suspect,
    /// The host refuses everybody: blame nobody, renew nothing, wait.
    Host,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Outage {
    failed: Vec<AccountId>,
    failures: u32,
    last: Mono,
    refused: Vec<Refused>,
    /// When the host was last found to refuse everybody.
    refuses: Option<Mono>,
    /// Pauses in a row.
    streak: u32,
    until: Option<Mono>,
}

#[derive(Debug)]
struct Refused {
    account: AccountId,
    at: Mono,
    fresh: bool,
}

impl Outage {
    /// A failure of the host's met an account. Returns the pause when it begins one; `chance` is
    /// within 0 and 1.
    pub fn failure(&mut self, now: Mono, account: &AccountId, chance: f64) -> Option<Span> {
        if now.since(self.last) > WINDOW {
            (self.failures, self.streak) = (0, 0);
            self.failed.clear();
        }
        self.last = now;
        self.failures = self.failures.saturating_add(1);
        if !self.failed.contains(account) && self.failed.len() < KNOWN {
            self.failed.push(account.clone());
        }
        if self.waits(now).is_some() {
            // It was sent before the pause began.
            return None;
        }
        let several = self.failed.len() > 1 && self.failures >= TRIPS;
        (several || self.streak > 0).then(|| self.trip(now, chance))
    }

    /// An account's token was refused; `fresh` when it had just been renewed for that.
    pub fn refusal(
        &mut self,
        now: Mono,
        account: &AccountId,
        fresh: bool,
        chance: f64,
    ) -> (Refusal, Option<Span>) {
        self.refused.retain(|one| now.since(one.at) <= WINDOW);
        let others = || self.refused.iter().filter(|one| one.account != *account);
        let still = self.refuses.is_some_and(|last| now.since(last) <= WINDOW);
        let host = still || others().any(|one| one.fresh) || others().count() > 1;
        let fresh = fresh || self.refused.iter().any(|one| one.account == *account && one.fresh);
        self.refused.retain(|one| one.account != *account);
        if self.refused.len() < KNOWN {
            self.refused.push(Refused { account: account.clone(), at: now, fresh });
        }
        if host {
            if !still && now.since(self.last) > WINDOW {
                self.streak = 0;
            }
            (self.refuses, self.last) = (Some(now), now);
            let pause = self.waits(now).is_none().then(|| self.trip(now, chance));
            return (Refusal::Host, pause);
        }
        (if fresh { Refusal::Suspect } else { Refusal::Own }, None)
    }

    /// An account was served. Returns those whose fresh tokens were refused meanwhile: the host is
    /// well, so they are to blame.
    pub fn success(&mut self, now: Mono, account: &AccountId) -> Vec<AccountId> {
        let refused = std::mem::take(&mut self.refused);
        let host = self.until.is_some();
        *self = Self::default();
        refused
            .into_iter()
            .filter(|one| one.fresh && one.account != *account && now.since(one.at) <= WINDOW)
            .filter(|_one| !host)
            .map(|one| one.account)
            .collect()
    }

    /// An account's refusal was its own affair after all: its renewal failed.
    pub fn settled(&mut self, account: &AccountId) {
        self.refused.retain(|one| one.account != *account || one.fresh);
    }

    /// Nobody is left who could tell whether a suspect is to blame: it is.
    pub fn blame(&mut self, account: &AccountId) -> bool {
        let before = self.refused.len();
        self.refused.retain(|one| one.account != *account || !one.fresh);
        self.refused.len() < before
    }

    /// What is left of the pause.
    pub fn waits(&self, now: Mono) -> Option<Span> {
        self.until.map(|until| until.since(now)).filter(|left| *left > Span::ZERO)
    }

    /// Whether there is nothing that a success would have to forget.
    pub const fn is_quiet(&self) -> bool {
        self.failures == 0 && self.refused.is_empty() && self.until.is_none()
    }

    fn trip(&mut self, now: Mono, chance: f64) -> Span {
        let pause = FIRST.times(1 << self.streak.min(16)).min(CAP);
        self.streak = self.streak.saturating_add(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "fifteen seconds at most, and chance is clamped"
        )]
        let more = (pause.millis() as f64 * JITTER * chance.clamp(0.0, 1.0)) as u64;
        let pause = Span::from_millis(pause.millis() + more);
        self.until = Some(now.plus(pause));
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn account(n: u8) -> AccountId {
        AccountId::of("u", &n.to_string())
    }

    const fn at(ms: u64) -> Mono {
        Mono::from_millis(ms)
    }

    #[test]
    fn failures_of_several_accounts_in_a_row_pause_everybody_and_pauses_grow() {
        let (a, b) = (account(1), account(2));
        let mut outage = Outage::default();
        assert_eq!(outage.failure(at(0), &a, 0.0), None);
        assert_eq!(outage.failure(at(1), &b, 0.0), None);
        assert_eq!(outage.failure(at(2), &a, 0.0), Some(FIRST));
        assert_eq!(outage.failure(at(3), &b, 0.0), None, "sent before the pause");
        assert_eq!(outage.waits(at(102)), Some(Span::from_millis(400)));
        assert_eq!(outage.waits(at(502)), None);
        assert_eq!(outage.failure(at(503), &b, 0.0), Some(FIRST.times(2)));
        assert_eq!(outage.failure(at(2_000), &b, 1.0), Some(Span::from_millis(2_500)));
        assert!(outage.success(at(2_100), &a).is_empty());
        assert!(outage.waits(at(2_100)).is_none() && outage.is_quiet());
        assert_eq!(outage.failure(at(2_200), &a, 0.0), None, "forgotten at a success");
    }

    #[test]
    fn one_account_alone_or_long_ago_pauses_nobody() {
        let mut outage = Outage::default();
        for n in 0..20 {
            assert_eq!(outage.failure(at(n), &account(1), 0.5), None);
        }
        let mut outage = Outage::default();
        for n in 0..20_u8 {
            let apart = at(u64::from(n) * 31_000);
            assert_eq!(outage.failure(apart, &account(n % 3), 0.5), None);
        }
    }

    #[test]
    fn a_refused_token_is_renewed_and_then_another_account_tells() {
        let (a, b) = (account(1), account(2));
        let mut outage = Outage::default();
        assert_eq!(outage.refusal(at(0), &a, false, 0.0), (Refusal::Own, None));
        assert_eq!(outage.refusal(at(1), &a, true, 0.0), (Refusal::Suspect, None));
        assert_eq!(outage.success(at(2), &b), std::slice::from_ref(&a));
        assert!(outage.is_quiet());
        assert_eq!(outage.refusal(at(3), &a, true, 0.0), (Refusal::Suspect, None));
        assert!(outage.success(at(4), &a).is_empty(), "it was served itself");
        assert_eq!(outage.refusal(at(5), &a, true, 0.0), (Refusal::Suspect, None));
        assert!(outage.blame(&a) && !outage.blame(&a));
    }

    #[test]
    fn refusals_of_several_accounts_are_the_hosts_and_nobody_is_blamed() {
        let mut outage = Outage::default();
        assert_eq!(outage.refusal(at(0), &account(1), true, 0.0), (Refusal::Suspect, None));
        let (said, pause) = outage.refusal(at(1), &account(2), false, 0.0);
        assert_eq!((said, pause), (Refusal::Host, Some(FIRST)));
        assert_eq!(outage.refusal(at(2), &account(1), true, 0.0), (Refusal::Host, None));
        assert!(outage.success(at(900), &account(3)).is_empty(), "the host was to blame");
        for n in 1..=2 {
            assert_eq!(outage.refusal(at(1_000), &account(n), false, 0.0).0, Refusal::Own);
        }
        assert_eq!(outage.refusal(at(1_001), &account(3), false, 0.0).0, Refusal::Host);
    }

    #[test]
    fn logins_that_the_issuer_ended_are_no_outage() {
        let mut outage = Outage::default();
        for n in 0..5 {
            assert_eq!(outage.refusal(at(n.into()), &account(n), false, 0.0).0, Refusal::Own);
            outage.settled(&account(n));
        }
        assert!(outage.waits(at(9)).is_none() && outage.is_quiet());
    }

    proptest! {
        #[test]
        fn a_pause_is_short_and_ends(ops in proptest::collection::vec((0..4_u8, 0..5_u8, 0..2_000_u64), 0..200)) {
            let (mut outage, mut now) = (Outage::default(), at(0));
            for (what, who, wait) in ops {
                now = now.plus(Span::from_millis(wait));
                let pause = match what {
                    0 => outage.failure(now, &account(who), 1.0),
                    1 => outage.refusal(now, &account(who), false, 1.0).1,
                    2 => outage.refusal(now, &account(who), true, 1.0).1,
                    _ => {
                        outage.success(now, &account(who));
                        prop_assert!(outage.is_quiet());
                        None
                    },
                };
                prop_assert!(pause.is_none_or(|pause| pause <= CAP.times(2)));
                prop_assert!(outage.waits(now).is_none_or(|left| left <= CAP.times(2)));
            }
        }
    }
}

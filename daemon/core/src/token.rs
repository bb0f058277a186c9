//! When a credential is renewed: generation and expiry arithmetic, never the secret.

use crate::time::{Now, Span, Wall};

/// The n-th credential of one account, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// The longest time before expiry at which a token is renewed. The official CLI uses 5 minutes; a
/// daemon that runs all day can be earlier, so that no request ever waits for it.
const AHEAD: Span = Span::from_secs(600);
/// Renewals of several accounts are spread over this much more.
const JITTER: Span = Span::from_secs(300);
/// A token with less life than this is not sent any more.
const LAST: Span = Span::from_secs(5);

/// What is known of the current access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Which credential.
    pub generation: Generation,
    /// When it expires; none when it doesn't say.
    pub expires: Option<Wall>,
    /// When to renew it; none when only a refusal tells.
    renew: Option<Wall>,
}

impl Token {
    /// A token learned now. `chance` in 0..1 spreads renewals.
    pub fn learned(now: Now, generation: Generation, expires: Option<Wall>, chance: f64) -> Self {
        let renew = expires.map(|expires| {
            let life = expires.since(now.wall);
            // A fifth of its life at most, so that a short-lived token isn't renewed at once again.
            let ahead = AHEAD.millis().saturating_add(share(JITTER.millis(), chance));
            expires.minus(Span::from_millis(ahead.min(life.millis() / 5)))
        });
        Self { generation, expires, renew }
    }

    /// The same token once upstream has refused it: it is over and its renewal is due.
    #[must_use]
    pub const fn refused(self, now: Now) -> Self {
        Self { expires: Some(now.wall), renew: Some(now.wall), ..self }
    }

    /// Whether it may be sent.
    pub fn usable(self, now: Now) -> bool {
        self.expires.is_none_or(|expires| expires.since(now.wall) > LAST)
    }

    /// Whether it should be renewed.
    pub fn renewal_due(self, now: Now) -> bool {
        self.renew.is_some_and(|renew| now.wall >= renew)
    }

    /// When it should be renewed.
    pub const fn renew_at(self) -> Option<Wall> {
        self.renew
    }
}

/// `chance` of `whole`, for a chance in 0..1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of minutes in milliseconds is exact enough"
)]
pub(crate) fn share(whole: u64, chance: f64) -> u64 {
    (whole as f64 * chance.clamp(0.0, 1.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Mono;

    #[test]
    fn long_tokens_are_renewed_minutes_ahead_and_short_ones_late_in_their_life() {
        let now = Now { mono: Mono::default(), wall: Wall::from_secs(1_000_000) };
        let long = Token::learned(now, Generation(1), Some(Wall::from_secs(1_864_000)), 0.5);
        assert_eq!(long.renew_at(), Some(Wall::from_secs(1_864_000 - 750)));
        let short = Token::learned(now, Generation(1), Some(Wall::from_secs(1_000_100)), 1.0);
        assert_eq!(short.renew_at(), Some(Wall::from_secs(1_000_080)));
        let past = Token::learned(now, Generation(1), Some(Wall::from_secs(5)), 0.0);
        assert!(!past.usable(now) && past.renewal_due(now));
        let silent = Token::learned(now, Generation(1), None, 0.0);
        assert!(silent.usable(now) && !silent.renewal_due(now));
    }
}

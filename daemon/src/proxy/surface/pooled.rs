//! One quota out of many: what the pool can still do, in the shape of one account's.
//!
//! Every account is one equal share. What is left of a window is the mean of what is left of the
//! accounts' windows, where an account that is out of a longer window has nothing left in the shorter
//! one either. Accounts that can't serve for another reason than quota add nothing while others can, and
//! windows of another length are other windows. Plans differ in size by factors that upstream doesn't
//! tell, so no better weight is known; each account's own windows stand beside the pool's.
//!
//! A percentage is a whole number, rounded up: the CLI (0.169.0) reads no other, and a spent percent
//! is spent. 100 is said only when nobody can serve.

use cma_core::{
    quota::{MAIN_LIMIT, Place, Window},
    time::Wall,
};
use serde_json::{Value, json};
use std::borrow::Borrow;

/// One account's part.
#[derive(Debug, Clone, Default)]
pub(super) struct Share {
    /// Its windows, those past their reset empty.
    pub(super) windows: Vec<Window>,
    /// Set while a limit keeps it from serving: when that ends.
    pub(super) limited: Option<Wall>,
    /// Whether it could serve now but for its quota.
    pub(super) fit: bool,
}

/// A window of the pool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pooled {
    pub(super) used: u64,
    pub(super) seconds: u64,
    pub(super) resets: Option<Wall>,
}

impl Share {
    /// With what its account just told.
    pub(super) fn with(&self, told: &[Window]) -> Self {
        let same = |known: &&Window| {
            told.iter().any(|new| new.limit == known.limit && new.place == known.place)
        };
        let known = self.windows.iter().filter(|known| !same(known));
        Self { windows: known.chain(told).cloned().collect(), ..*self }
    }

    fn window(&self, limit: &str, place: Place) -> Option<&Window> {
        self.windows.iter().find(|window| *window.limit == *limit && window.place == place)
    }

    /// Percent left of a window that can be used, and when there is more of it.
    fn left(&self, limit: &str, place: Place) -> Option<(f64, Option<Wall>)> {
        let window = self.window(limit, place)?;
        let own = (100.0 - window.used_percent).clamp(0.0, 100.0);
        if limit == MAIN_LIMIT
            && let Some(until) = self.limited
        {
            return Some((0.0, Some(until)));
        }
        let longer =
            (place == Place::Primary).then(|| self.window(limit, Place::Secondary)).flatten();
        match longer.filter(|longer| longer.used_percent >= 100.0) {
            Some(longer) => Some((0.0, longer.resets.max(window.resets))),
            None => Some((own, window.resets.filter(|_at| own < 100.0))),
        }
    }

    /// Whether its quota lets it serve.
    fn has_quota(&self) -> bool {
        let main = self.windows.iter().filter(|window| *window.limit == *MAIN_LIMIT);
        self.limited.is_none() && main.into_iter().all(|window| window.used_percent < 100.0)
    }
}

fn each(shares: &[impl Borrow<Share>]) -> impl DoubleEndedIterator<Item = &Share> {
    shares.iter().map(Borrow::borrow)
}

/// Whether any account can serve now.
pub(super) fn allowed(shares: &[impl Borrow<Share>]) -> bool {
    each(shares).any(|share| share.fit && share.has_quota())
}

/// Whether quota is what keeps the pool from serving.
pub(super) fn dry(shares: &[impl Borrow<Share>]) -> bool {
    !allowed(shares) && each(shares).any(|share| share.fit && !share.has_quota())
}

/// Whether a limit beside the main one is used up wherever an account could serve.
pub(super) fn spent(shares: &[impl Borrow<Share>], limit: &str) -> bool {
    let full = |share: &Share| {
        share.windows.iter().any(|window| *window.limit == *limit && window.used_percent >= 100.0)
    };
    let mut fit = each(shares).filter(|share| share.fit).peekable();
    fit.peek().is_some() && fit.all(full)
}

/// The pool's window of a limit, where any account has one. `like` is the window that it stands for,
/// else one of the length that most have.
pub(super) fn pooled(
    shares: &[impl Borrow<Share>],
    limit: &str,
    place: Place,
    like: Option<&Window>,
) -> Option<Pooled> {
    let fit = each(shares).any(|share| share.fit);
    let serving = || each(shares).filter(|share| share.fit || !fit);
    let windows = || serving().filter_map(|share| share.window(limit, place));
    let of = |length: Option<u64>| windows().filter(|window| window.minutes == length).count();
    // Of lengths that are as frequent the first.
    let usual =
        || windows().rev().max_by_key(|window| (window.minutes.is_some(), of(window.minutes)));
    let minutes = like.or_else(usual)?.minutes;
    // Five hours of one plan and a week of another are no mean of anything.
    let alike = |share: &&Share| {
        let own = share.window(limit, place).and_then(|own| own.minutes);
        own.zip(minutes).is_none_or(|(own, told)| own == told)
    };
    let parts: Vec<_> =
        serving().filter(alike).filter_map(|share| share.left(limit, place)).collect();
    if parts.is_empty() {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a pool is no larger")]
    let left = parts.iter().map(|(left, _resets)| left).sum::<f64>() / parts.len() as f64;
    let dried = if limit == MAIN_LIMIT { dry(shares) } else { spent(shares, limit) };
    let full = if dried { 100 } else { 99 };
    let minutes = minutes.unwrap_or(0);
    Some(Pooled {
        used: if dried { 100 } else { whole(100.0 - left).min(full) },
        seconds: minutes * 60,
        resets: parts.iter().filter_map(|(_left, resets)| *resets).min(),
    })
}

/// A window as the usage endpoint shows it. One that nobody has used yet resets a whole length from
/// now, as upstream says it.
pub(super) fn shown(window: Option<Pooled>, now: Wall) -> Value {
    let Some(window) = window else { return Value::Null };
    let after = window.resets.map_or(window.seconds, |at| at.since(now).millis() / 1000);
    json!({
        "used_percent": window.used,
        "limit_window_seconds": window.seconds,
        "reset_after_seconds": after,
        "reset_at": window.resets.map_or_else(|| now.secs() + window.seconds, Wall::secs),
    })
}

/// One account's own window in the same shape.
pub(super) fn own(windows: &[Window], place: Place, now: Wall) -> Value {
    let share = Share { windows: windows.to_vec(), limited: None, fit: true };
    let Some(window) = share.window(MAIN_LIMIT, place) else { return Value::Null };
    json!({
        "used_percent": whole(window.used_percent),
        "limit_window_seconds": window.minutes.unwrap_or(0) * 60,
        "reset_after_seconds": window.resets.map(|at| at.since(now).millis() / 1000),
        "reset_at": window.resets.map(Wall::secs),
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
pub(super) fn whole(percent: f64) -> u64 {
    // A float's dust is no percent.
    (percent - 1e-6).ceil().clamp(0.0, 100_000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(primary: f64, secondary: f64, resets: u64) -> Share {
        let window = |place, used_percent, minutes, resets| Window {
            limit: MAIN_LIMIT.into(),
            model: None,
            place,
            used_percent,
            minutes: Some(minutes),
            resets: Some(Wall::from_secs(resets)),
            seen: Wall::from_secs(1),
        };
        Share {
            windows: vec![
                window(Place::Primary, primary, 300, resets),
                window(Place::Secondary, secondary, 10_080, resets + 1_000),
            ],
            limited: None,
            fit: true,
        }
    }

    fn used(shares: &[Share]) -> (u64, u64, u64) {
        let primary = pooled(shares, MAIN_LIMIT, Place::Primary, None).unwrap();
        let secondary = pooled(shares, MAIN_LIMIT, Place::Secondary, None).unwrap();
        (primary.used, secondary.used, primary.resets.unwrap().secs())
    }

    #[test]
    fn one_account_is_shown_as_it_is() {
        assert_eq!(used(&[share(12.0, 34.0, 50)]), (12, 34, 50));
        assert_eq!(used(&[share(12.2, 34.0, 50)]).0, 13);
        let none: [Share; 0] = [];
        assert_eq!(pooled(&none, MAIN_LIMIT, Place::Primary, None), None);
    }

    #[test]
    fn shares_are_equal_and_the_next_reset_counts() {
        assert_eq!(used(&[share(100.0, 10.0, 70), share(0.0, 20.0, 60)]), (50, 15, 70));
        // Out of the long window: nothing left in the short one, until both are back.
        assert_eq!(used(&[share(20.0, 100.0, 70), share(10.0, 0.0, 90)]), (55, 50, 90));
        // Limited by what upstream said, whatever its windows were seen to be.
        let mut limited = share(5.0, 5.0, 90);
        limited.limited = Some(Wall::from_secs(65));
        assert_eq!(used(&[limited, share(0.0, 0.0, 95)]), (50, 50, 65));
    }

    #[test]
    fn full_is_said_only_when_nobody_can_serve() {
        let nearly = [share(100.0, 0.0, 70), share(99.9, 0.0, 60)];
        assert!(allowed(&nearly) && !dry(&nearly));
        assert_eq!(used(&nearly).0, 99);
        let dried = [share(100.0, 0.0, 70), share(3.0, 100.0, 60)];
        assert!(!allowed(&dried) && dry(&dried));
        assert_eq!(used(&dried), (100, 100, 70));
        // Out of order is not out of quota.
        let broken = [Share { fit: false, ..share(1.0, 1.0, 60) }];
        assert!(!allowed(&broken) && !dry(&broken));
    }

    #[test]
    fn who_cant_take_over_and_what_is_no_such_window_add_nothing() {
        let broken = Share { fit: false, ..share(0.0, 0.0, 60) };
        assert_eq!(used(&[share(95.0, 40.0, 70), broken.clone()]), (95, 40, 70));
        // Where nobody can serve, what is known is told.
        assert_eq!(used(&[Share { fit: false, ..share(50.0, 40.0, 70) }, broken]).0, 25);
        let mut weekly = share(0.0, 0.0, 60);
        for window in &mut weekly.windows {
            window.minutes = Some(10_080);
        }
        assert_eq!(used(&[share(90.0, 40.0, 70), weekly.clone()]), (90, 20, 70));
        let pool = [weekly.clone(), share(90.0, 40.0, 70)];
        let like = pool[1].windows.first();
        let told = pooled(&pool, MAIN_LIMIT, Place::Primary, like).unwrap();
        assert_eq!((told.used, told.seconds), (90, 18_000));
        assert_eq!(pooled(&pool, MAIN_LIMIT, Place::Primary, None).unwrap().used, 0);
        // Most of the pool speak for it, whoever is first.
        let three = [weekly, share(90.0, 40.0, 70), share(10.0, 40.0, 70)];
        assert_eq!(used(&three).0, 50);
    }

    #[test]
    fn another_limit_is_spent_when_all_who_could_serve_have_spent_it() {
        let own = |primary: f64| {
            let mut share = share(primary, 0.0, 70);
            for window in &mut share.windows {
                window.limit = "codex_other".into();
            }
            share
        };
        let used =
            |shares: &[Share]| pooled(shares, "codex_other", Place::Primary, None).unwrap().used;
        let both = [own(100.0), own(100.0)];
        assert!(spent(&both, "codex_other") && !dry(&both));
        assert_eq!(used(&both), 100);
        let one = [own(100.0), own(99.9)];
        assert!(!spent(&one, "codex_other"));
        assert_eq!(used(&one), 99);
        // One of which nothing is known may serve it, and nobody is no pool.
        assert!(!spent(&[own(100.0), Share { fit: true, ..Share::default() }], "codex_other"));
        assert!(!spent(&[Share { fit: false, ..own(100.0) }], "codex_other"));
    }

    #[test]
    fn a_window_is_integers_all_over() {
        let now = Wall::from_secs(40);
        let primary = shown(pooled(&[share(0.0, 0.0, 50)], MAIN_LIMIT, Place::Primary, None), now);
        assert_eq!(
            primary,
            json!({"used_percent": 0, "limit_window_seconds": 18_000, "reset_after_seconds": 18_000, "reset_at": 18_040})
        );
        let own = own(&share(12.5, 0.0, 50).windows, Place::Primary, now);
        assert_eq!((&own["used_percent"], &own["reset_after_seconds"]), (&json!(13), &json!(10)));
    }
}

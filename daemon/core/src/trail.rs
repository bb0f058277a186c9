//! How far long windows were used before: what a pace is told by.
//!
//! One point an hour for a day and a little more, of windows that last longer than a day. A shorter
//! window needs none: since it began is not long ago. Points are of one period: with another reset
//! they are of the past and go.

use crate::{
    quota::{Place, Window},
    time::{Span, Wall},
};
use std::{collections::VecDeque, sync::Arc};

/// Windows up to this length have no trail.
const DAY: u64 = 24 * 60;
/// Between two points.
const STEP: Span = Span::from_secs(3600);
/// The farthest point that a pace is taken from: a day, which has its busy hours and its night.
const FARTHEST: Span = Span::from_secs(25 * 3600);
/// Less than this is no day, and says nothing of one.
const LEAST: Span = Span::from_secs(20 * 3600);
/// Points of a window: those of [`FARTHEST`].
const POINTS: usize = 26;
/// Resets of one period are told to the second, now and then rounded.
const SAME: Span = Span::from_secs(3600);
/// Percent by which one source may tell less than another.
const ODD: f64 = 2.0;
/// Windows with a trail; an account has one or two.
const WINDOWS: usize = 8;

/// How far one window was used, and when.
#[derive(Debug, Clone, PartialEq)]
struct Past {
    limit: Arc<str>,
    place: Place,
    resets: Wall,
    points: VecDeque<(Wall, f64)>,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trail(Vec<Past>);

impl Trail {
    /// Takes in how far a window is used.
    pub(crate) fn note(&mut self, window: &Window) {
        let (Some(minutes), Some(resets)) = (window.minutes, window.resets) else { return };
        if minutes <= DAY {
            return;
        }
        if !self.0.iter().any(|past| past.is_of(window)) {
            if self.0.len() >= WINDOWS {
                return;
            }
            let (limit, place) = (Arc::clone(&window.limit), window.place);
            self.0.push(Past { limit, place, resets, points: VecDeque::new() });
        }
        let Some(past) = self.0.iter_mut().find(|past| past.is_of(window)) else { return };
        let moved = resets.since(past.resets).max(past.resets.since(resets));
        // Its sources round; what was reset early is empty.
        let less = past.points.back().is_some_and(|(_at, used)| window.used_percent + ODD < *used);
        if moved > SAME || less {
            past.points.clear();
        }
        past.resets = resets;
        if past.points.back().is_none_or(|(at, _used)| window.seen.since(*at) >= STEP) {
            if past.points.len() >= POINTS {
                past.points.pop_front();
            }
            past.points.push_back((window.seen, window.used_percent));
        }
    }

    /// Percent of a window that were used over the day before it was seen, and over how long that
    /// was told; none where that is not known for about a day.
    pub fn day(&self, window: &Window) -> Option<(f64, Span)> {
        let past = self.0.iter().find(|past| past.is_of(window))?;
        let within = |(at, _used): &&(Wall, f64)| window.seen.since(*at) <= FARTHEST;
        let (at, used) = past.points.iter().find(within)?;
        let over = window.seen.since(*at);
        (over >= LEAST).then(|| ((window.used_percent - used).max(0.0), over))
    }

    /// The points as windows, as they were seen: taken in again in this order, they are this trail.
    pub fn windows<'a>(&'a self, now: &'a [Window]) -> impl Iterator<Item = Window> + 'a {
        self.0.iter().flat_map(move |past| {
            let known = now.iter().find(|window| past.is_of(window));
            let points = known.map(|_known| past.points.iter()).into_iter().flatten();
            points.filter_map(move |(seen, used_percent)| {
                let resets = Some(past.resets);
                Some(Window { used_percent: *used_percent, seen: *seen, resets, ..known?.clone() })
            })
        })
    }
}

impl Past {
    fn is_of(&self, window: &Window) -> bool {
        self.limit == window.limit && self.place == window.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::{MAIN_LIMIT, Quota};

    const WEEK: u64 = 7 * DAY;

    fn window(hour: u64, used: f64) -> Window {
        Window {
            limit: MAIN_LIMIT.into(),
            model: None,
            place: Place::Secondary,
            used_percent: used,
            minutes: Some(WEEK),
            resets: Some(Wall::from_secs(WEEK * 60)),
            seen: Wall::from_secs(hour * 3600),
        }
    }

    #[test]
    fn a_pace_is_that_of_the_last_day_and_of_this_period() {
        let mut quota = Quota::default();
        let mut used = 0.0;
        for hour in 0..72 {
            // Nothing on the first two days, a percent an hour on the third.
            used += if hour >= 48 { 1.0 } else { 0.0 };
            for minutes in [0, 20, 40] {
                let seen = Wall::from_secs(hour * 3600 + minutes * 60);
                quota.merge(&[Window { seen, ..window(hour, used) }]);
            }
        }
        let now = quota.windows()[0].clone();
        let (spent, over) = quota.trail().day(&now).unwrap();
        assert!((23.0..=24.0).contains(&spent), "{spent}");
        assert!(over >= LEAST && over <= FARTHEST, "{over:?}");
        assert!(quota.trail().windows(quota.windows()).count() <= POINTS);
        // Another period begins: nothing is known of its days.
        let resets = Some(Wall::from_secs(2 * WEEK * 60));
        let fresh = Window { resets, ..window(73, 1.0) };
        quota.merge(std::slice::from_ref(&fresh));
        assert_eq!(quota.trail().day(&fresh), None);
    }

    #[test]
    fn what_was_kept_is_the_same_trail_again() {
        let mut quota = Quota::default();
        for hour in 0..40 {
            quota.merge(&[window(hour, 1.5 * f64::from(u32::try_from(hour).unwrap()))]);
        }
        let mut again = Quota::default();
        for kept in quota.trail().windows(quota.windows()).collect::<Vec<_>>() {
            again.merge(&[kept]);
        }
        again.merge(quota.windows());
        assert_eq!(again, quota);
    }

    #[test]
    fn short_windows_and_a_day_half_known_have_no_pace() {
        let mut trail = Trail::default();
        let short = Window { minutes: Some(300), ..window(1, 5.0) };
        trail.note(&short);
        assert_eq!((trail.day(&short), trail.0.len()), (None, 0));
        for hour in 0..10 {
            trail.note(&window(hour, 5.0));
        }
        assert_eq!(trail.day(&window(10, 6.0)), None);
    }
}

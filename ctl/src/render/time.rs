//! Times for people: relative where that is what a person wants to know, the local clock where
//! lines are compared. The time zone is read once, and only by whoever shows a clock.

use jiff::{Timestamp, tz::TimeZone};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    now_ms() / 1000
}

/// A span in its two largest units: `45 s`, `12 min`, `2 h 13 min`, `3 d 4 h`.
pub(crate) fn span(seconds: u64) -> String {
    let two = |large: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {part}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => two(days, "d", hours % 24, "h"),
        () if hours > 0 => two(hours, "h", minutes % 60, "min"),
        () if minutes > 0 => format!("{minutes} min"),
        () => format!("{seconds} s"),
    }
}

/// A moment as seen from `now`: `in 2 h 13 min`, `12 min ago`, `now`. A moment is told rounded up to a
/// second, so what is one ahead may just have been.
pub(crate) fn relative(at: u64, now: u64) -> String {
    match (at.checked_sub(now), now.checked_sub(at)) {
        (Some(0 | 1), _) => "now".to_owned(),
        (Some(ahead), _) => format!("in {}", span(ahead)),
        (None, behind) => format!("{} ago", span(behind.unwrap_or_default())),
    }
}

/// The local wall clock.
pub(crate) struct Clock(TimeZone);

impl Clock {
    pub(crate) fn local() -> Self {
        Self(TimeZone::system())
    }

    #[cfg(test)]
    pub(crate) const fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// `14:03:27.123` of a moment in milliseconds.
    pub(crate) fn time_ms(&self, at_ms: u64) -> String {
        i64::try_from(at_ms)
            .ok()
            .and_then(|at| Timestamp::from_millisecond(at).ok())
            .map_or_else(|| "?".to_owned(), |at| self.show(at, "%H:%M:%S%.3f"))
    }

    /// `2026-02-13 14:03:27.123` of a moment in RFC 3339; what is none comes back as it is.
    pub(crate) fn date_time(&self, text: &str) -> String {
        text.parse().map_or_else(|_no_time| text.to_owned(), |at| self.show(at, "%F %H:%M:%S%.3f"))
    }

    /// `2026-02-13 14:03` of a moment in seconds.
    pub(crate) fn date(&self, at: u64) -> String {
        i64::try_from(at)
            .ok()
            .and_then(|at| Timestamp::from_second(at).ok())
            .map_or_else(|| "?".to_owned(), |at| self.show(at, "%F %H:%M"))
    }

    fn show(&self, at: Timestamp, format: &str) -> String {
        at.to_zoned(self.0.clone()).strftime(format).to_string()
    }
}

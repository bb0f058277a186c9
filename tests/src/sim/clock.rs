//! Reads the real clock for the simulated upstream, and writes dates.
//!
//! The upstream lives in real time on purpose: windows and tokens must agree
//! with the clock of the process under test.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UnixMs(pub(super) u64);

impl UnixMs {
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(millis(since))
    }

    pub(super) fn secs(self) -> u64 {
        self.0 / 1000
    }

    pub(super) fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }

    pub(super) fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis(span)))
    }

    /// The next whole second, as the protocol says times in seconds.
    pub(super) fn whole(self) -> Self {
        Self(self.0.div_ceil(1000).saturating_mul(1000))
    }

    pub(super) fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-11-21T02:37:22Z`.
pub(super) fn rfc3339(at: UnixMs) -> String {
    let secs = at.secs();
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `Sat, 21 Nov 2026 02:37:22 GMT`, as HTTP says dates.
pub(super) fn http_date(at: UnixMs) -> String {
    let secs = at.secs();
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let (year, month, day) = civil(days);
    // 1970 began on a Thursday.
    let weekday = "ThuFriSatSunMonTueWed".split_at(usize::try_from(days % 7).unwrap_or(0) * 3).1;
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = months.split_at(usize::try_from(month - 1).unwrap_or(0) * 3).1;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let short = |text: &str| text.chars().take(3).collect::<String>();
    let (weekday, month) = (short(weekday), short(month));
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Days since 1970 to a date, by Hinnant's `civil_from_days` for later dates.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

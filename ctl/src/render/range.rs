//! Times as people type them, and the days between them.

use cma_proto::error::{ErrorCode, Refusal};
use jiff::{Timestamp, ToSpan as _, Zoned, civil::Date, tz::TimeZone};

/// Days that a question may span.
const MAX_DAYS: usize = 4_000;

/// A moment in milliseconds since 1970: a span before now (`90m`, `24h`, `7d`, `2w`), `today`,
/// `yesterday`, a local date, a local or RFC 3339 time, or milliseconds.
pub(crate) fn moment(text: &str, now_ms: u64, zone: &TimeZone) -> Result<u64, Refusal> {
    read(text.trim(), now_ms, zone).ok_or_else(|| {
        Refusal::new(
            ErrorCode::BadRequest,
            format!("`{text}` is no time that can be looked back to"),
            "say it like `24h`, `7d`, `today`, `2026-07-15` or `2026-07-15T14:00`",
        )
    })
}

fn read(text: &str, now_ms: u64, zone: &TimeZone) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    if let (Ok(number), unit) = (digits.parse::<u64>(), text.get(digits.len()..)?) {
        let unit: u64 = match unit {
            // Seconds since 1970 have ten digits, milliseconds thirteen.
            "" if number >= 100_000_000_000 => return Some(number),
            "" if number >= 1_000_000_000 => return Some(number * 1000),
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            _ => return None,
        };
        return now_ms.checked_sub(number.checked_mul(unit)?);
    }
    let now = zoned(now_ms, zone)?;
    let at = match text {
        "today" => now.start_of_day().ok()?,
        "yesterday" => now.yesterday().ok()?.start_of_day().ok()?,
        _ => {
            if let Ok(at) = text.parse::<Timestamp>() {
                return u64::try_from(at.as_millisecond()).ok();
            }
            match text.parse::<jiff::civil::DateTime>() {
                Ok(at) => at.to_zoned(zone.clone()).ok()?,
                Err(_no_time) => text.parse::<Date>().ok()?.to_zoned(zone.clone()).ok()?,
            }
        },
    };
    u64::try_from(at.timestamp().as_millisecond()).ok()
}

/// Where the days between two moments begin, the one that has the first of them included.
pub(crate) fn days(since_ms: u64, until_ms: u64, zone: &TimeZone) -> Vec<u64> {
    let mut found = Vec::new();
    let mut day = zoned(since_ms, zone).and_then(|at| at.start_of_day().ok());
    while let Some(begin) = day {
        let Ok(ms) = u64::try_from(begin.timestamp().as_millisecond()) else { break };
        if ms >= until_ms || found.len() >= MAX_DAYS {
            break;
        }
        found.push(ms);
        day = begin.checked_add(1.day()).ok().and_then(|next| next.start_of_day().ok());
    }
    found
}

fn zoned(ms: u64, zone: &TimeZone) -> Option<Zoned> {
    let at = Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?;
    Some(at.to_zoned(zone.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> u64 {
        text.parse::<Timestamp>().unwrap().as_millisecond().try_into().unwrap()
    }

    #[test]
    fn moments_are_read_as_people_type_them() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let now = ms("2026-07-15T10:00:00Z");
        for (typed, wanted) in [
            ("24h", "2026-07-14T10:00:00Z"),
            ("90m", "2026-07-15T08:30:00Z"),
            ("2w", "2026-07-01T10:00:00Z"),
            ("today", "2026-07-14T22:00:00Z"),
            ("yesterday", "2026-07-13T22:00:00Z"),
            ("2026-07-01", "2026-06-30T22:00:00Z"),
            ("2026-07-01T14:00", "2026-07-01T12:00:00Z"),
            ("2026-07-01T14:00:00Z", "2026-07-01T14:00:00Z"),
            ("1784000000", "2026-07-14T03:33:20Z"),
        ] {
            assert_eq!(moment(typed, now, &zone), Ok(ms(wanted)), "{typed}");
        }
        for bad in ["", "soon", "5", "3y", "-1h", "99999999999999w", "2026-13-01"] {
            assert!(moment(bad, now, &zone).is_err(), "{bad}");
        }
    }

    #[test]
    fn days_begin_at_the_persons_midnight() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let found = days(ms("2026-03-28T12:00:00Z"), ms("2026-03-30T12:00:00Z"), &zone);
        let wanted =
            ["2026-03-27T23:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"].map(ms);
        assert_eq!(found, wanted);
        assert!(days(10, 10, &TimeZone::UTC).len() <= 1);
        assert_eq!(days(0, u64::MAX, &TimeZone::UTC).len(), MAX_DAYS);
    }
}

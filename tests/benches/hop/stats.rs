//! Medians, percentiles and rates.

use std::time::Duration;

/// The value below which `share` (0..1) of the values lie.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let at = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The middle value.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// `median (min..max)` of some rounds.
pub(crate) fn spread(values: &[f64]) -> String {
    format!(
        "{:.2} [{:.2}..{:.2}]",
        median(values),
        percentile(values, 0.0),
        percentile(values, 1.0)
    )
}

/// How many of them were done a second.
pub(crate) fn a_second(done: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let done = done as f64;
    done / took.as_secs_f64()
}

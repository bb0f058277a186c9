//! Waits that upstream states with a failure of its own (`Retry-After` on a 5xx).
//!
//! Another account is asked at once; the one that was told to wait only after that time. The CLI alone
//! waits for it as well (0.169.0, observed on 503).

use cma_core::identity::AccountId;
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use std::time::Duration;
use tokio::time::Instant;

/// A longer wait is not worth a request's while; the CLI honours 30 s (0.169.0, observed).
const LONGEST: Duration = Duration::from_secs(30);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Stated(Vec<(AccountId, Instant)>);

impl Stated {
    /// None so far.
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes in what an account was answered.
    pub(super) fn heard(&mut self, account: &AccountId, status: StatusCode, headers: &HeaderMap) {
        if !status.is_server_error() {
            return;
        }
        let text = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let Some(seconds) = text.and_then(|text| text.trim().parse::<u64>().ok()) else { return };
        let until = Instant::now() + Duration::from_secs(seconds).min(LONGEST);
        self.0.retain(|(of, _until)| of != account);
        self.0.push((account.clone(), until));
    }

    /// Waits until that account may be asked again.
    pub(super) async fn over(&self, account: &AccountId) {
        if let Some((_of, until)) = self.0.iter().find(|(of, _until)| of == account) {
            tokio::time::sleep_until(*until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_account_that_was_told_waits_and_within_bounds() {
        let (mut stated, begun) = (Stated::new(), Instant::now());
        let [a, b, c] = ["a", "b", "c"].map(AccountId::from_written);
        let told = [
            (&a, 503, "9"),
            (&a, 503, "4"),
            (&b, 429, "7"),
            (&b, 503, "soon"),
            (&c, 500, "9999999999"),
        ];
        for (account, status, after) in told {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, after.parse().unwrap())]);
            stated.heard(account, StatusCode::from_u16(status).unwrap(), &headers);
        }
        stated.over(&b).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        stated.over(&a).await;
        assert_eq!(begun.elapsed().as_secs(), 4);
        stated.over(&c).await;
        assert_eq!(begun.elapsed().as_secs(), 30);
    }
}

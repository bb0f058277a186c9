//! What a turn over upstream's WebSockets met that HTTP may not: a connection that opens and carries
//! nothing (something on the way passes a handshake and no frames), a host that fails frames only, an
//! account that is refused there only. The CLI alone begins again over HTTP in each of these (0.169.0,
//! observed), so a turn behind its socket does as well.
//!
//! A turn's own: what others learn of it is the breaker's (a host) and [`super::refusal::Bridged`]'s (an
//! account), once HTTP has served where a frame did not.

use super::flow::Ended;
use cma_core::{
    cooldown::Cause,
    identity::AccountId,
    verdict::{Act, Mark, Verdict},
};
use tokio::time::Instant;

/// Messages lost in one turn, for whatever reason of the host's, after which it goes over HTTP. One may
/// be chance, and so may two.
const LOST: u32 = 3;

/// A silence on a connection that nothing has come of yet counts for so many: each takes half a minute.
const SILENT: u32 = 2;

/// What makes one turn doubt upstream's WebSockets.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubts {
    lost: u32,
    /// When the first one was.
    since: Option<Instant>,
    /// Accounts that a frame refused.
    refused: Vec<AccountId>,
}

impl Doubts {
    /// Whether an attempt with that account goes over HTTP.
    pub(super) fn of(&self, account: &AccountId) -> bool {
        self.of_host().is_some() || self.of_account(account)
    }

    /// Since when the host is doubted, if it is.
    pub(super) fn of_host(&self) -> Option<Instant> {
        self.since.filter(|_since| self.lost >= LOST)
    }

    /// Whether that account was refused by a frame.
    pub(super) fn of_account(&self, account: &AccountId) -> bool {
        self.refused.contains(account)
    }

    /// Takes an attempt's end in: whether its message was lost, by the connection or by a failure of the
    /// host's on which the CLI wouldn't stop. `unproved` says that nothing has come of the connection.
    pub(super) fn note(&mut self, ended: &Ended, unproved: bool) {
        let lost = match ended {
            Ended::Silent if unproved => SILENT,
            Ended::Silent => 1,
            Ended::Hidden(verdict, None) => u32::from(verdict.mark == Mark::Shaky),
            Ended::Hidden(_, Some((_, fault))) => {
                u32::from(fault.is_hosts() && !fault.stops_the_cli())
            },
            _ => return,
        };
        if lost > 0 {
            self.lost += lost;
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// A refusal of an account in the light of what HTTP may say of it: that is asked first, with the
    /// same account.
    pub(super) fn weigh(&mut self, account: &AccountId, verdict: Verdict) -> Verdict {
        let refused = matches!(verdict.mark, Mark::Cool(Cause::Forbidden | Cause::PaymentRequired));
        if !refused || self.of(account) {
            return verdict;
        }
        self.refused.push(account.clone());
        let reason = format!("{} in a frame", verdict.reason);
        Verdict { act: Act::RetrySame, mark: Mark::Fine, reason }
    }
}

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
    verdict::{Mark, Verdict},
};
use http::HeaderValue;
use tokio::time::Instant;

/// Messages lost at one host in one turn, for whatever reason of the host's, after which it goes over
/// HTTP. One may be chance, and so may two.
const LOST: u32 = 3;
/// A silence on a connection that nothing has come of yet counts for so many: each takes half a minute.
const SILENT: u32 = 2;

/// What makes one turn doubt upstream's WebSockets.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubts {
    /// By host, as accounts name it: messages lost there, and when the first one was.
    lost: Vec<(Option<HeaderValue>, u32, Instant)>,
    /// Accounts that a frame refused.
    refused: Vec<AccountId>,
}

impl Doubts {
    /// Whether an attempt with that account goes over HTTP.
    pub(super) fn of(&self, account: &AccountId, host: Option<&HeaderValue>) -> bool {
        self.of_host(host).is_some() || self.of_account(account)
    }

    /// Since when a host is doubted, if it is.
    pub(super) fn of_host(&self, host: Option<&HeaderValue>) -> Option<Instant> {
        let of = |(known, lost, _): &&(Option<HeaderValue>, u32, Instant)| {
            known.as_ref() == host && *lost >= LOST
        };
        self.lost.iter().find(of).map(|(_host, _lost, since)| *since)
    }

    /// Whether that account was refused by a frame.
    pub(super) fn of_account(&self, account: &AccountId) -> bool {
        self.refused.contains(account)
    }

    /// Takes the end of an attempt at a host in. Returns whether its message was lost: by the connection, or
    /// by a failure of the host's on which the CLI wouldn't stop. `unproved` says that nothing has come of
    /// the connection.
    pub(super) fn note(
        &mut self,
        ended: &Ended,
        unproved: bool,
        host: Option<&HeaderValue>,
    ) -> bool {
        let lost = match ended {
            Ended::Silent if unproved => SILENT,
            Ended::Silent => 1,
            Ended::Hidden(verdict, None) => u32::from(verdict.mark == Mark::Shaky),
            Ended::Hidden(_, Some((_, fault))) => {
                u32::from(fault.is_hosts() && !fault.stops_the_cli())
            },
            _ => 0,
        };
        if lost > 0 {
            match self.lost.iter_mut().find(|(known, ..)| known.as_ref() == host) {
                Some((_host, known, _since)) => *known += lost,
                None => self.lost.push((host.cloned(), lost, Instant::now())),
            }
        }
        lost > 0
    }

    /// Whether a frame refused an account in a way on which HTTP is asked first, with the same account.
    pub(super) fn refuses(&mut self, account: &AccountId, verdict: &Verdict) -> bool {
        let refused = matches!(verdict.mark, Mark::Cool(Cause::Forbidden | Cause::PaymentRequired))
            && !self.of_account(account);
        if refused {
            self.refused.push(account.clone());
        }
        refused
    }

    /// With what else was met before.
    pub(super) fn and(&mut self, before: Self) {
        for (host, lost, since) in before.lost {
            match self.lost.iter_mut().find(|(known, ..)| *known == host) {
                Some((_host, known, first)) => {
                    *known += lost;
                    *first = since.min(*first);
                },
                None => self.lost.push((host, lost, since)),
            }
        }
        self.refused.extend(before.refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_doubted_after_three_and_no_other_is() {
        let (mut doubts, eu) = (Doubts::default(), HeaderValue::from_static("eu.example"));
        let account = AccountId::from_written("a");
        for unproved in [true, false] {
            assert_eq!(doubts.of_host(Some(&eu)), None);
            assert!(doubts.note(&Ended::Silent, unproved, Some(&eu)));
        }
        assert!(doubts.of(&account, Some(&eu)) && !doubts.of(&account, None));
        assert!(!doubts.note(&Ended::Final(None), true, None));
        let mut more = Doubts::default();
        more.note(&Ended::Silent, true, None);
        more.refused.push(account.clone());
        doubts.and(more);
        assert!(doubts.of_host(None).is_none() && doubts.of_account(&account));
        assert!(doubts.note(&Ended::Silent, false, None));
        assert!(doubts.of_host(None).is_some());
    }
}

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
    lost: Vec<Lost>,
    /// Accounts that a frame refused.
    refused: Vec<AccountId>,
}

/// What one turn lost at a host.
#[derive(Debug, Clone)]
struct Lost {
    /// As accounts name it.
    host: Option<HeaderValue>,
    /// Messages.
    messages: u32,
    /// Answers that began and fell silent: the model may have been thinking.
    answers: u32,
    /// When the first one was.
    since: Instant,
}

impl Lost {
    const fn is_enough(&self) -> bool {
        self.messages + self.answers >= LOST
    }
}

impl Doubts {
    /// Whether an attempt with that account goes over HTTP.
    pub(super) fn of(&self, account: &AccountId, host: Option<&HeaderValue>) -> bool {
        self.at(host).is_some_and(Lost::is_enough) || self.of_account(account)
    }

    /// Since when a host loses messages, if it does.
    pub(super) fn of_host(&self, host: Option<&HeaderValue>) -> Option<Instant> {
        self.at(host).filter(|lost| lost.messages >= LOST).map(|lost| lost.since)
    }

    /// Whether that account was refused by a frame.
    pub(super) fn of_account(&self, account: &AccountId) -> bool {
        self.refused.contains(account)
    }

    /// There is time for one attempt more at a host: where a message was lost, not for another one.
    pub(super) fn last_chance(&mut self, host: Option<&HeaderValue>) {
        if let Some(lost) = self.at_mut(host).filter(|lost| lost.messages > 0) {
            lost.messages = lost.messages.max(LOST);
        }
    }

    /// Takes the end of an attempt at a host in, of which something had come or not (`begun`). Returns
    /// whether its message was lost: by the connection, or by a failure of the host's on which the CLI
    /// wouldn't stop. `unproved` says that nothing had come of the connection before.
    pub(super) fn note(
        &mut self,
        (ended, begun): (&Ended, bool),
        unproved: bool,
        host: Option<&HeaderValue>,
    ) -> bool {
        let (messages, answers) = match ended {
            Ended::Silent if begun => (0, 1),
            Ended::Silent => (if unproved { SILENT } else { 1 }, 0),
            Ended::Hidden(verdict, None) => (u32::from(verdict.mark == Mark::Shaky), 0),
            Ended::Hidden(_, Some((_, fault))) => {
                (u32::from(fault.is_hosts() && !fault.stops_the_cli()), 0)
            },
            _ => (0, 0),
        };
        if messages + answers > 0 {
            self.add(Lost { host: host.cloned(), messages, answers, since: Instant::now() });
        }
        messages > 0
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
        for lost in before.lost {
            self.add(lost);
        }
        self.refused.extend(before.refused);
    }

    fn at(&self, host: Option<&HeaderValue>) -> Option<&Lost> {
        self.lost.iter().find(|lost| lost.host.as_ref() == host)
    }

    fn at_mut(&mut self, host: Option<&HeaderValue>) -> Option<&mut Lost> {
        self.lost.iter_mut().find(|lost| lost.host.as_ref() == host)
    }

    fn add(&mut self, more: Lost) {
        match self.at_mut(more.host.as_ref()) {
            Some(lost) => {
                lost.messages += more.messages;
                lost.answers += more.answers;
                lost.since = lost.since.min(more.since);
            },
            None => self.lost.push(more),
        }
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
            assert!(doubts.note((&Ended::Silent, false), unproved, Some(&eu)));
        }
        assert!(doubts.of(&account, Some(&eu)) && !doubts.of(&account, None));
        assert!(!doubts.note((&Ended::Final(None), true), true, None));
        let mut more = Doubts::default();
        more.note((&Ended::Silent, false), true, None);
        more.refused.push(account.clone());
        doubts.and(more);
        assert!(doubts.of_host(None).is_none() && doubts.of_account(&account));
        assert!(doubts.note((&Ended::Silent, false), false, None));
        assert!(doubts.of_host(None).is_some());
    }

    /// A model that thinks for long is no host that swallows messages: the turn may go over HTTP in the end,
    /// nobody else's does.
    #[test]
    fn an_answer_that_began_says_nothing_of_its_host() {
        let (mut doubts, account) = (Doubts::default(), AccountId::from_written("a"));
        for _ in 0..LOST {
            assert!(!doubts.of(&account, None));
            assert!(!doubts.note((&Ended::Silent, true), true, None));
            doubts.last_chance(None);
        }
        assert!(doubts.of(&account, None) && doubts.of_host(None).is_none());
        let mut doubts = Doubts::default();
        doubts.note((&Ended::Silent, false), true, None);
        doubts.last_chance(None);
        assert!(doubts.of_host(None).is_some(), "a message was lost, and there is one chance more");
    }
}

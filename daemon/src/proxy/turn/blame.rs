//! Whose fault a failure is, in the light of how other accounts fare: the account's or the host's.

use super::Turn;
use cma_core::{
    identity::AccountId,
    outage::Refusal,
    pool::Input,
    verdict::{Act, Mark, Verdict},
};

impl Turn {
    /// A verdict in the light of how other accounts fare. `hosts` says that the failure is one of the
    /// host's.
    pub(super) fn weighed(
        &mut self,
        account: &AccountId,
        verdict: Verdict,
        hosts: bool,
    ) -> Verdict {
        let (health, troubles) = (&self.proxy.health, self.proxy.roster.troubles());
        if hosts {
            health.failed(account, &verdict.reason, troubles);
        }
        if verdict.mark != Mark::Unauthorized {
            return verdict;
        }
        if !self.refused_by.contains(account) {
            self.refused_by.push(account.clone());
        }
        let fresh = self.renewed.as_ref() == Some(account);
        match health.refused(account, fresh, troubles) {
            Refusal::Own => verdict,
            Refusal::Suspect => Verdict {
                act: Act::RetryOther,
                mark: Mark::Shaky,
                reason: "its renewed token was refused (401); another account tells whether it is \
                         to blame"
                    .to_owned(),
            },
            Refusal::Host => {
                self.refused_rounds += 1;
                Verdict {
                    act: Act::Wait,
                    mark: Mark::Fine,
                    reason: "the host refuses the tokens of several accounts (401)".to_owned(),
                }
            },
        }
    }

    /// Whether an account was to blame after all: its fresh token was refused, and there is no other
    /// that could tell whether the host refuses everybody.
    pub(super) fn blamed(&self) -> bool {
        let Some(account) = self.refused_by.last() else { return false };
        let alone = self.refused_by.len() == 1 && self.proxy.health.blame(account);
        if alone {
            self.proxy.actor.tell(Input::Learn(account.clone(), Mark::Unauthorized));
        }
        alone
    }
}

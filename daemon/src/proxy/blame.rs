//! Whose fault a failure is, in the light of how other accounts fare: the account's or the host's.
//!
//! The same for a turn over HTTP and one over a WebSocket.

use super::Proxy;
use cma_core::{
    identity::AccountId,
    outage::Refusal,
    pool::Input,
    verdict::{Act, Mark, Verdict},
};

/// A verdict in the light of how other accounts fare.
///
/// `by` are the accounts that were refused in this request, `rounds` how often the host was found to
/// refuse everybody, `renewed` the account whose token was renewed for this request. `hosts` says that
/// the failure is one of the host's.
pub(super) fn weighed(
    proxy: &Proxy,
    (by, rounds): (&mut Vec<AccountId>, &mut u32),
    renewed: Option<&AccountId>,
    account: &AccountId,
    verdict: Verdict,
    hosts: bool,
) -> Verdict {
    let (health, troubles) = (&proxy.health, proxy.roster.troubles());
    if hosts {
        health.failed(account, &verdict.reason, troubles);
    }
    if verdict.mark != Mark::Unauthorized {
        return verdict;
    }
    if !by.contains(account) {
        by.push(account.clone());
    }
    match health.refused(account, renewed == Some(account), troubles) {
        Refusal::Own => verdict,
        Refusal::Suspect => Verdict {
            act: Act::RetryOther,
            mark: Mark::Shaky,
            reason: "its renewed token was refused (401); another account tells whether it is \
                     to blame"
                .to_owned(),
        },
        Refusal::Host => {
            *rounds += 1;
            Verdict {
                act: Act::Wait,
                mark: Mark::Fine,
                reason: "the host refuses the tokens of several accounts (401)".to_owned(),
            }
        },
    }
}

/// Whether an account was to blame after all: its fresh token was refused, and there is no other
/// that could tell whether the host refuses everybody. `by` as for [`weighed`].
pub(super) fn blamed(proxy: &Proxy, by: &[AccountId]) -> bool {
    let Some(account) = by.last() else { return false };
    let alone = by.len() == 1 && proxy.health.blame(account);
    if alone {
        proxy.actor.tell(Input::Learn(account.clone(), Mark::Unauthorized));
    }
    alone
}

/// An account's answer is shown: who was refused before it was to blame for that.
pub(super) fn served(proxy: &Proxy, account: &AccountId) {
    for blamed in proxy.health.served(account) {
        proxy.actor.tell(Input::Learn(blamed, Mark::Unauthorized));
    }
}

//! Whose fault a failure of this turn is ([`crate::proxy::blame`]).

use super::Turn;
use crate::proxy::blame;
use cma_core::{identity::AccountId, verdict::Verdict};

impl Turn {
    /// A verdict in the light of how other accounts fare. `hosts` says that the failure is one of the
    /// host's.
    pub(super) fn weighed(
        &mut self,
        account: &AccountId,
        verdict: Verdict,
        hosts: bool,
    ) -> Verdict {
        let refused = (&mut self.refused_by, &mut self.refused_rounds);
        blame::weighed(&self.proxy, refused, self.renewed.as_ref(), account, verdict, hosts)
    }

    /// Whether an account was to blame after all.
    pub(super) fn blamed(&self) -> bool {
        blame::blamed(&self.proxy, &self.refused_by)
    }
}

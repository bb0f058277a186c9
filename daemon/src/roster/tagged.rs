//! Accounts by their tags: where one may be named by a word that it shares with others.

use super::{Record, Roster, name};
use crate::fault::Fault;
use cma_core::account::Terms;
use cma_core::strategy::WEIGHT_ONE;
use cma_proto::error::ErrorCode;
use std::sync::Arc;

impl Roster {
    /// All accounts with a tag, in order of their place.
    pub(crate) fn tagged(&self, tag: &str) -> Vec<Arc<Record>> {
        let tag = tag.trim().to_lowercase();
        let mut all = self.all();
        all.retain(|record| record.tags.contains(&tag));
        all
    }

    /// The one account with a tag, where nothing else is called like this.
    pub(super) fn by_tag(&self, selector: &str) -> Result<Arc<Record>, Fault> {
        match self.tagged(word(selector)).as_slice() {
            [one] => Ok(Arc::clone(one)),
            [] => Err(Fault::new(
                ErrorCode::NotFound,
                format!("there is no account `{selector}`"),
                "run `cmactl list` to see them",
            )),
            several => Err(Fault::new(
                ErrorCode::Ambiguous,
                format!(
                    "the tag `{selector}` is on {}",
                    several
                        .iter()
                        .map(|record| format!("`{}` ({})", name(record), record.id))
                        .collect::<Vec<_>>()
                        .join(" and ")
                ),
                "name one by its id",
            )),
        }
    }

    /// Those meant by a name, or by a tag that any number of them may have: `tag:work`, or `work`
    /// where no account is called so.
    pub(crate) fn select_all(&self, selector: &str) -> Result<Vec<Arc<Record>>, Fault> {
        let found = self.tagged(word(selector));
        match self.select(selector) {
            Ok(one) if !selector.starts_with(TAG) => Ok(vec![one]),
            _ if !found.is_empty() => Ok(found),
            Ok(one) => Ok(vec![one]),
            Err(fault) => Err(fault),
        }
    }
}

const TAG: &str = "tag:";

fn word(selector: &str) -> &str {
    selector.strip_prefix(TAG).unwrap_or(selector)
}

/// What the pool hears of an account's terms.
pub(super) fn terms(record: &Record) -> Terms {
    Terms {
        paused: record.terms.paused,
        drained: record.terms.drained,
        weight: record.terms.weight.unwrap_or(WEIGHT_ONE),
        cap: record.terms.cap,
        tags: record.tags.iter().map(|tag| tag.as_str().into()).collect(),
    }
}

//! Which pools an account is in, and what a person writes on it.
//!
//! An account that is in no pool would be a login that nobody sees any more: leaving the last pool
//! is refused. Removing an account is another thing, and says so.

use super::{Record, Roster, name};
use crate::{fault::Fault, store::State};
use cma_core::{identity::AccountId, scope::GLOBAL};
use cma_proto::error::ErrorCode;
use std::sync::Arc;

/// A tag is a word in a table.
const MAX_TAG: usize = 32;
/// More tags than anybody reads.
const MAX_TAGS: usize = 16;
/// A note is a remark, not a document.
const MAX_NOTE: usize = 500;

/// The pools of an account that is in one alone, as they are written.
pub(super) fn only(pool: &str) -> Vec<String> {
    if pool == GLOBAL { Vec::new() } else { vec![pool.to_owned()] }
}

/// The pools of an account (none: it is new) after it came to `pool`, and what is to be said.
pub(super) fn joined(known: Option<&[String]>, pool: &str) -> (Vec<String>, Vec<String>) {
    let Some(known) = known else { return (only(pool), Vec::new()) };
    let mut pools = written(known);
    if pools.iter().any(|one| one == pool) {
        return (known.to_vec(), Vec::new());
    }
    let others = pools.join("`, `");
    pools.push(pool.to_owned());
    let note =
        format!("it is in the pool `{others}` too: one login, renewed once for all its pools");
    (pools, vec![note])
}

/// The pools of an account by name.
pub(crate) fn written(pools: &[String]) -> Vec<String> {
    if pools.is_empty() { vec![GLOBAL.to_owned()] } else { pools.to_vec() }
}

/// Whether an account is in a pool.
pub(crate) fn members_of(record: &Record, pool: &str) -> bool {
    written(&record.pools).iter().any(|one| one == pool)
}

impl Roster {
    /// Lets an account serve a pool too, or no other any more. Blocks on the disk.
    pub(crate) fn join(
        &self,
        id: &AccountId,
        pool: &str,
        alone: bool,
    ) -> Result<Arc<Record>, Fault> {
        self.edit(id, |record| {
            record.pools = if alone { only(pool) } else { joined(Some(&record.pools), pool).0 };
        })
    }

    /// Takes an account out of a pool. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] when it isn't in it, [`ErrorCode::BadRequest`] when it is in no other.
    pub(crate) fn leave(&self, id: &AccountId, pool: &str) -> Result<Arc<Record>, Fault> {
        self.try_edit(id, |record| {
            let mut pools = written(&record.pools);
            if !pools.iter().any(|one| one == pool) {
                return Err(Fault::new(
                    ErrorCode::NotFound,
                    format!("`{}` is not in the pool `{pool}`", name(record)),
                    "run `cmactl list --project` to see who is",
                ));
            }
            pools.retain(|one| one != pool);
            if pools.is_empty() {
                return Err(Fault::new(
                    ErrorCode::BadRequest,
                    format!("`{}` is in no other pool", name(record)),
                    format!("run `cmactl remove {}` to take it out altogether", record.id),
                ));
            }
            record.pools = pools;
            Ok(())
        })
    }

    /// As [`Roster::edit`], for a change that may turn out to be impossible.
    fn try_edit(
        &self,
        id: &AccountId,
        edit: impl FnOnce(&mut Record) -> Result<(), Fault>,
    ) -> Result<Arc<Record>, Fault> {
        let _writer = self.writer.lock();
        let known = self.get(id).ok_or_else(|| super::gone(id))?;
        let mut record = (*known).clone();
        edit(&mut record)?;
        self.save(record)
    }

    /// The accounts of a pool, in order of their place.
    pub(crate) fn members(&self, pool: &str) -> Vec<Arc<Record>> {
        let mut all = self.all();
        all.retain(|record| members_of(record, pool));
        all
    }

    /// Adds and takes away tags. Blocks on the disk.
    pub(crate) fn tag(
        &self,
        id: &AccountId,
        add: &[String],
        remove: &[String],
    ) -> Result<Arc<Record>, Fault> {
        let add = add.iter().map(|tag| checked_tag(tag)).collect::<Result<Vec<_>, _>>()?;
        let remove = remove.iter().map(|tag| checked_tag(tag)).collect::<Result<Vec<_>, _>>()?;
        self.try_edit(id, |record| {
            record.tags.retain(|tag| !remove.contains(tag));
            record.tags.extend(add);
            record.tags.sort();
            record.tags.dedup();
            let count = record.tags.len();
            if count <= MAX_TAGS {
                return Ok(());
            }
            Err(Fault::new(
                ErrorCode::BadRequest,
                format!("`{}` would have {count} tags, {MAX_TAGS} at most", name(record)),
                format!("take one away first: `cmactl tag {} -TAG`", record.id),
            ))
        })
    }

    /// Writes a note on an account; an empty one takes it away. Blocks on the disk.
    pub(crate) fn annotate(&self, id: &AccountId, text: &str) -> Result<Arc<Record>, Fault> {
        let text = text.trim();
        if text.chars().count() > MAX_NOTE || text.chars().any(char::is_control) {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                format!("a note has at most {MAX_NOTE} printable characters, in one line"),
                "write a shorter one",
            ));
        }
        self.edit(id, |record| record.notes = Some(text.to_owned()).filter(|note| !note.is_empty()))
    }

    /// Limits new launches everywhere to workspaces; none lifts the limit. Blocks on the disk.
    pub(crate) fn save_limit(&self, workspaces: Vec<String>) -> Result<(), Fault> {
        let mut state = self.writer.lock();
        let new = State { workspaces, ..state.clone() };
        self.store.save_state(&new)?;
        *state = new;
        Ok(())
    }
}

fn checked_tag(tag: &str) -> Result<String, Fault> {
    let tag = tag.trim().to_lowercase();
    let fits = |c: char| c.is_alphanumeric() || "._:/-".contains(c);
    let good = !tag.is_empty()
        && tag.chars().count() <= MAX_TAG
        && tag.chars().all(fits)
        && !tag.starts_with('-');
    if good {
        return Ok(tag);
    }
    Err(Fault::new(
        ErrorCode::BadRequest,
        format!("`{tag}` is no tag: up to {MAX_TAG} letters, digits and `.` `_` `:` `/` `-`"),
        "choose another word",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_keeps_the_pools_it_has() {
        let key = "x-0123456789ab";
        assert_eq!(joined(None, GLOBAL), (vec![], vec![]));
        assert_eq!(joined(None, key), (vec![key.to_owned()], vec![]));
        assert_eq!(joined(Some(&[]), GLOBAL), (vec![], vec![]));
        let (pools, notes) = joined(Some(&[]), key);
        assert_eq!(
            (pools.as_slice(), notes.len()),
            (&["global".to_owned(), key.to_owned()][..], 1)
        );
        assert_eq!(joined(Some(&pools), key), (pools.clone(), vec![]));
        let (pools, notes) = joined(Some(&[key.to_owned()]), GLOBAL);
        assert_eq!((pools.len(), notes.len()), (2, 1));
    }

    #[test]
    fn tags_are_words() {
        assert_eq!(checked_tag(" Work "), Ok("work".to_owned()));
        for bad in ["", "  ", "a b", "-x", "a\u{1b}[0m", &"x".repeat(33)] {
            assert!(checked_tag(bad).is_err(), "{bad:?}");
        }
    }
}

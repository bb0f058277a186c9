//! What stands in everybody's way right now: the backend, the issuer, the disk.
//!
//! No account is to blame for these, so no account's state can tell them; `status` does, from here.
//! A trouble is noted where it is met and forgotten at the next success there.

use crate::clock;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a trouble is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host that serves turns.
    Backend,
    /// The host that renews credentials.
    Issuer,
    /// The root's disk.
    Disk,
}

/// One trouble. Times are seconds since 1970.
#[derive(Debug, Clone)]
struct Known {
    since: u64,
    last: u64,
    why: String,
}

#[derive(Debug, Default)]
struct Slot {
    /// Whether anything is noted: a success then costs one read and no lock.
    any: AtomicBool,
    known: Mutex<Option<Known>>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    backend: Slot,
    issuer: Slot,
    disk: Slot,
}

impl Troubles {
    const fn slot(&self, place: Place) -> &Slot {
        match place {
            Place::Backend => &self.backend,
            Place::Issuer => &self.issuer,
            Place::Disk => &self.disk,
        }
    }

    /// Notes a trouble; a known one stays known since when.
    pub(crate) fn met(&self, place: Place, why: &str) {
        let (slot, now) = (self.slot(place), clock::unix());
        let mut known = slot.known.lock();
        let since = known.as_ref().map_or(now, |known| known.since);
        *known = Some(Known { since, last: now, why: why.to_owned() });
        slot.any.store(true, Ordering::Release);
    }

    /// It works (again).
    pub(crate) fn gone(&self, place: Place) {
        let slot = self.slot(place);
        if slot.any.load(Ordering::Relaxed) {
            *slot.known.lock() = None;
            slot.any.store(false, Ordering::Release);
        }
    }

    /// One line for each, for a person; the hosts by their names.
    pub(crate) fn shown(&self, backend: &str, issuer: &str) -> Vec<String> {
        let now = clock::unix();
        let line = |slot: &Slot, text: &dyn Fn(&str) -> String| {
            let known = slot.known.lock().clone()?;
            let (ago, length) =
                (now.saturating_sub(known.last), known.last.saturating_sub(known.since));
            let lasting = if length > 0 { format!(", for {length} s then") } else { String::new() };
            Some(format!("{} (seen {ago} s ago{lasting})", text(&known.why)))
        };
        [
            line(&self.backend, &|why| {
                format!(
                    "`{backend}` can't be used: {why}; no account is to blame, turns wait for it"
                )
            }),
            line(&self.issuer, &|why| {
                format!("`{issuer}` can't renew logins now: {why}; it is asked again by itself")
            }),
            line(&self.disk, &|why| format!("{why}; it is tried again by itself")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_until_it_is_over() {
        let troubles = Troubles::default();
        troubles.gone(Place::Backend);
        assert!(troubles.shown("b", "i").is_empty());
        troubles.met(Place::Issuer, "no such host");
        troubles.met(Place::Disk, "disk full");
        let shown = troubles.shown("b", "i");
        assert!(shown[0].contains("`i`") && shown[0].contains("no such host"), "{shown:?}");
        assert!(shown[1].starts_with("disk full"), "{shown:?}");
        troubles.gone(Place::Issuer);
        troubles.gone(Place::Disk);
        assert!(troubles.shown("b", "i").is_empty());
    }
}

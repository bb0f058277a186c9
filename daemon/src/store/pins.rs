//! The threads that their person moved by hand: `threads/pins.json`.
//!
//! A choice of a person, so it is durable before it is acknowledged. All in one small file, bounded.

use super::{Store, atomic};
use crate::fault::Fault;
use cma_core::{affinity::MAX_PINS, identity::AccountId, thread::ByHand, time::Wall};
use cma_proto::{endpoint::Root, error::ErrorCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// One entry of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    /// The thread, as the pool names it.
    thread: String,
    account: String,
    /// Seconds since 1970.
    since: u64,
    #[serde(default)]
    without_summary: bool,
}

/// The file. The member's name keeps another file's content from being taken for it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    moved_threads: Vec<Entry>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Pins {
    store: Store,
    path: PathBuf,
    /// Held for the whole of a change, disk included.
    known: Mutex<BTreeMap<Arc<str>, ByHand>>,
}

impl Pins {
    /// What the root holds of them.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when the file is damaged or can't be read.
    pub(crate) fn load(root: &Root, store: Store) -> Result<Self, Fault> {
        let path = root.path().join("threads").join("pins.json");
        let pins = Self { store, path, known: Mutex::default() };
        pins.read_in()?;
        Ok(pins)
    }

    /// Reads them, unless the root is locked: then it is called again once that is open.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn read_in(&self) -> Result<(), Fault> {
        let mut known = self.known.lock();
        if self.store.is_locked() || !self.path.exists() {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            atomic::sweep(folder)?;
        }
        let file: File = self.store.get(&self.path)?.unwrap_or_default();
        *known = file.moved_threads.into_iter().map(entry).collect();
        Ok(())
    }

    /// # Errors
    /// [`ErrorCode::Denied`] while the root is locked: what it holds isn't known then.
    pub(crate) fn writable(&self) -> Result<(), Fault> {
        self.store.disk.writable()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, ByHand)> {
        self.known.lock().iter().map(|(thread, pin)| (Arc::clone(thread), pin.clone())).collect()
    }

    /// Keeps that a thread was moved, or that it no longer is. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::TooLarge`] when too many are moved already.
    pub(crate) fn set(&self, thread: &Arc<str>, to: Option<ByHand>) -> Result<(), Fault> {
        self.change(|known| {
            match to {
                Some(to) => drop(known.insert(Arc::clone(thread), to)),
                None => drop(known.remove(thread)),
            }
            if known.len() > MAX_PINS {
                return Err(Fault::new(
                    ErrorCode::TooLarge,
                    format!("{MAX_PINS} threads are moved by hand already"),
                    "run `cmactl session list`, then `cmactl session unpin ID` for one that is over",
                ));
            }
            Ok(())
        })
    }

    /// Forgets an account that leaves the pool. Blocks on the disk.
    pub(crate) fn forget(&self, account: &AccountId) -> Result<(), Fault> {
        if !self.known.lock().values().any(|pin| pin.account == *account) {
            return Ok(());
        }
        self.change(|known| {
            known.retain(|_thread, pin| pin.account != *account);
            Ok(())
        })
    }

    /// Disk first, then memory.
    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<Arc<str>, ByHand>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut held = self.known.lock();
        let mut known = held.clone();
        change(&mut known)?;
        if let Some(folder) = self.path.parent() {
            crate::dirs::private_dir(folder)?;
        }
        let moved_threads = known.iter().map(|(thread, pin)| written(thread, pin)).collect();
        self.store.put(&self.path, &File { moved_threads })?;
        *held = known;
        Ok(())
    }
}

fn entry(entry: Entry) -> (Arc<str>, ByHand) {
    let by_hand = ByHand {
        account: AccountId::from_written(&entry.account),
        since: Wall::from_secs(entry.since),
        without_summary: entry.without_summary,
    };
    (entry.thread.into(), by_hand)
}

fn written(thread: &str, pin: &ByHand) -> Entry {
    Entry {
        thread: thread.to_owned(),
        account: pin.account.to_string(),
        since: pin.since.secs(),
        without_summary: pin.without_summary,
    }
}

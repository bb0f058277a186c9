//! What its person said about choosing: strategy, thresholds, waiting, a force, projects' profiles.
//!
//! One file, `choosing.json`, replaced whole; what it says is told to the pool at the start and at
//! every change, disk first. Names of accounts are ids here: a label may change, a force must not.

use crate::{clock, fault::Fault, store::Store};
use cma_core::{
    identity::AccountId,
    pool::Input,
    strategy::{Preset, Profile, Reserve, Rules, Strategy, Wait},
    time::{Span, Wall},
};
use cma_proto::{endpoint::Root, error::ErrorCode};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What stands in the file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Name of the strategy; required, so that another file's content is not taken for this.
    pub(crate) strategy: String,
    /// Name of the preset.
    pub(crate) preset: String,
    /// Thresholds that differ from the preset's, in percent.
    #[serde(default)]
    pub(crate) low: Option<f64>,
    #[serde(default)]
    pub(crate) critical: Option<f64>,
    /// `off`, `until-reset` or a time.
    #[serde(default)]
    pub(crate) wait: String,
    /// Whether all answers carry `x-cma-…` headers.
    #[serde(default)]
    pub(crate) headers: bool,
    /// Ids of the forced accounts, and until when (seconds since 1970).
    #[serde(default)]
    pub(crate) force: Option<(Vec<String>, u64)>,
    /// By project key.
    #[serde(default)]
    pub(crate) profiles: BTreeMap<String, SavedProfile>,
}

/// What a project wants.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedProfile {
    pub(crate) strategy: Option<String>,
    pub(crate) prefer: Vec<String>,
    pub(crate) avoid: Vec<String>,
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
    /// Account id → thousandths.
    pub(crate) weights: BTreeMap<String, u32>,
}

impl Saved {
    /// The strategy; a name that this version doesn't know is the default one.
    pub(crate) fn strategy(&self) -> Strategy {
        Strategy::of(&self.strategy).unwrap_or_default()
    }

    pub(crate) fn preset(&self) -> Preset {
        Preset::of(&self.preset).unwrap_or_default()
    }

    pub(crate) fn reserve(&self) -> Reserve {
        let preset = self.preset().reserve();
        Reserve {
            low: self.low.unwrap_or(preset.low),
            critical: self.critical.unwrap_or(preset.critical),
        }
    }

    pub(crate) fn wait(&self) -> Wait {
        wait(&self.wait).unwrap_or_default()
    }

    /// As the pool hears it.
    pub(crate) fn rules(&self) -> Rules {
        Rules { strategy: self.strategy(), reserve: self.reserve(), wait: self.wait() }
    }

    /// The force, unless it has ended.
    pub(crate) fn forced(&self) -> Option<(Arc<[AccountId]>, Wall)> {
        let (ids, until) = self.force.as_ref().filter(|(_ids, until)| *until > clock::unix())?;
        let ids = ids.iter().map(|id| AccountId::from_written(id)).collect();
        Some((ids, Wall::from_secs(*until)))
    }
}

impl SavedProfile {
    /// As the pool hears it; none when it says nothing.
    pub(crate) fn profile(&self) -> Option<Profile> {
        let list = |words: &[String]| words.iter().map(|word| word.as_str().into()).collect();
        let weights =
            self.weights.iter().map(|(id, weight)| (AccountId::from_written(id), *weight));
        (*self != Self::default()).then(|| Profile {
            strategy: self.strategy.as_deref().and_then(Strategy::of),
            prefer: list(&self.prefer),
            avoid: list(&self.avoid),
            allow: list(&self.allow),
            deny: list(&self.deny),
            weights: weights.collect(),
        })
    }
}

/// `off`, `until-reset`, or a time of at most an hour like `30s`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn wait(text: &str) -> Result<Wait, Fault> {
    let bad = || {
        Fault::new(
            ErrorCode::BadRequest,
            format!("`{text}` is no time to wait"),
            "say `off`, `until-reset`, or a time from 1s to 1h, like `30s`",
        )
    };
    match text {
        "" | "off" => return Ok(Wait::Off),
        "until-reset" => return Ok(Wait::UntilReset),
        _ => {},
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_no_number| bad())?;
    let secs = match text.get(digits.len()..).unwrap_or_default() {
        "s" => number,
        "m" | "min" => number.saturating_mul(60),
        "h" => number.saturating_mul(3600),
        _ => return Err(bad()),
    };
    if (1..=3600).contains(&secs) { Ok(Wait::UpTo(Span::from_secs(secs))) } else { Err(bad()) }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Choosing {
    path: PathBuf,
    store: Store,
    saved: RwLock<Arc<Saved>>,
    /// Held for the whole of a change, disk included.
    writer: Mutex<()>,
    /// Beside `saved`, because every answer asks for it.
    headers: AtomicBool,
}

impl Choosing {
    /// Reads what the root holds.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when the file is damaged: a force must not be lost silently.
    pub(crate) fn load(root: &Root, store: Store) -> Result<Self, Fault> {
        let choosing = Self {
            path: root.path().join("choosing.json"),
            store,
            saved: RwLock::default(),
            writer: Mutex::new(()),
            headers: AtomicBool::new(false),
        };
        choosing.read_in()?;
        Ok(choosing)
    }

    /// Reads the file, unless the root is locked; called again when it is open.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn read_in(&self) -> Result<(), Fault> {
        if self.store.is_locked() {
            return Ok(());
        }
        let _writer = self.writer.lock();
        if let Some(saved) = self.store.get::<Saved>(&self.path)? {
            self.take(saved);
        }
        Ok(())
    }

    fn take(&self, saved: Saved) {
        self.headers.store(saved.headers, Ordering::Relaxed);
        *self.saved.write() = Arc::new(saved);
    }

    /// What is said now.
    pub(crate) fn saved(&self) -> Arc<Saved> {
        Arc::clone(&self.saved.read())
    }

    /// Whether all answers carry `x-cma-…` headers.
    pub(crate) fn headers(&self) -> bool {
        self.headers.load(Ordering::Relaxed)
    }

    /// Everything, as the pool has to hear it. A force on accounts that have left is over.
    pub(crate) fn inputs(&self) -> Vec<Input> {
        let saved = self.saved();
        let mut inputs = vec![Input::Rules(saved.rules()), Input::Force(saved.forced())];
        inputs.extend(
            saved
                .profiles
                .iter()
                .map(|(key, said)| Input::Profile(key.as_str().into(), said.profile())),
        );
        inputs
    }

    /// Changes it. Blocks on the disk.
    ///
    /// # Errors
    /// Those of `edit`, and of the store.
    pub(crate) fn edit(
        &self,
        edit: impl FnOnce(&mut Saved) -> Result<(), Fault>,
    ) -> Result<Arc<Saved>, Fault> {
        let _writer = self.writer.lock();
        let mut saved = (*self.saved()).clone();
        edit(&mut saved)?;
        if saved.strategy.is_empty() {
            Strategy::default().name().clone_into(&mut saved.strategy);
        }
        self.store.put(&self.path, &saved)?;
        self.take(saved);
        Ok(self.saved())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_have_units_and_ends() {
        assert_eq!(wait("off"), Ok(Wait::Off));
        assert_eq!(wait("until-reset"), Ok(Wait::UntilReset));
        assert_eq!(wait("30s"), Ok(Wait::UpTo(Span::from_secs(30))));
        assert_eq!(wait("2m"), Ok(Wait::UpTo(Span::from_secs(120))));
        for bad in ["30", "s", "0s", "2h", "1d", "-1s", "soon", "99999999999999999999s"] {
            assert!(wait(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_newer_name_is_the_default_and_a_force_ends_by_itself() {
        let saved = Saved { strategy: "fastest".to_owned(), ..Saved::default() };
        assert_eq!(saved.strategy(), Strategy::Balanced);
        assert_eq!(saved.rules(), Rules::default());
        let forced =
            |until| Saved { force: Some((vec!["a".to_owned()], until)), ..Saved::default() };
        assert!(forced(clock::unix() + 60).forced().is_some());
        assert!(forced(clock::unix()).forced().is_none());
        let custom = Saved { low: Some(9.0), ..Saved::default() };
        assert_eq!((custom.reserve().low, custom.reserve().critical), (9.0, 1.0));
    }

    #[test]
    fn what_is_said_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let choosing = Choosing::load(&root, Store::new(&root)).unwrap();
        choosing
            .edit(|saved| {
                "random".clone_into(&mut saved.strategy);
                saved.headers = true;
                saved.profiles.insert("p-0123456789ab".to_owned(), SavedProfile::default());
                Ok(())
            })
            .unwrap();
        let again = Choosing::load(&root, Store::new(&root)).unwrap();
        assert_eq!(again.saved(), choosing.saved());
        assert!(again.headers());
        assert_eq!(again.inputs().len(), 3);
    }
}

//! Which pool a request belongs to, and which accounts are in it.
//!
//! There is one set of accounts: each has one record, one credential and one renewal, whatever
//! number of pools it is in. A pool is nothing but the accounts that name it: the global one, and
//! one for each project that has accounts of its own. So two pools can share an account without two
//! owners of its refresh token, and can't mix otherwise: an account that is not in a request's pool
//! is not seen by that request at all.

use std::sync::Arc;

/// How the global pool is written beside project keys. Never a key: those end in a hash.
pub const GLOBAL: &str = "global";

/// The pools an account is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pools {
    global: bool,
    projects: Arc<[Arc<str>]>,
}

impl Default for Pools {
    /// The global pool alone.
    fn default() -> Self {
        Self { global: true, projects: [].into() }
    }
}

impl Pools {
    /// Pools as they are written with an account: project keys and [`GLOBAL`]. Nothing written is
    /// the global pool.
    pub fn of<T: AsRef<str>>(written: &[T]) -> Self {
        let names = written.iter().map(AsRef::as_ref);
        Self {
            global: written.is_empty() || names.clone().any(|name| name == GLOBAL),
            projects: names.filter(|name| *name != GLOBAL).map(Arc::from).collect(),
        }
    }

    /// Whether it is in the global pool.
    pub const fn global(&self) -> bool {
        self.global
    }

    /// The projects it is in.
    pub fn projects(&self) -> &[Arc<str>] {
        &self.projects
    }

    /// Whether it is in that project's pool.
    pub fn project(&self, key: &str) -> bool {
        self.projects.iter().any(|known| **known == *key)
    }
}

/// The pool a request may be served from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scope {
    /// The global pool.
    #[default]
    Global,
    /// A project's own.
    Project {
        /// Which project.
        key: Arc<str>,
        /// Whether the global pool serves when the project's own accounts can't.
        fallback: bool,
    },
}

impl Scope {
    /// 0 for an account of the pool itself, 1 for one that only serves when no such can, none for
    /// one that never does.
    pub fn place(&self, pools: &Pools) -> Option<u8> {
        match self {
            Self::Global => pools.global.then_some(0),
            Self::Project { key, .. } if pools.project(key) => Some(0),
            Self::Project { fallback, .. } => (*fallback && pools.global).then_some(1),
        }
    }

    /// The project's key.
    pub const fn key(&self) -> Option<&Arc<str>> {
        match self {
            Self::Global => None,
            Self::Project { key, .. } => Some(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(key: &str, fallback: bool) -> Scope {
        Scope::Project { key: key.into(), fallback }
    }

    #[test]
    fn pools_are_read_as_they_are_written() {
        assert_eq!(Pools::of::<&str>(&[]), Pools::default());
        assert_eq!(Pools::of(&["global"]), Pools::default());
        let own = Pools::of(&["a-1"]);
        assert!(!own.global() && own.project("a-1") && !own.project("b-1"));
        assert!(Pools::of(&["a-1", "global"]).global());
    }

    #[test]
    fn an_account_is_seen_in_its_pools_and_nowhere_else() {
        let (global, own, both) =
            (Pools::default(), Pools::of(&["a-1"]), Pools::of(&["a-1", "global"]));
        assert_eq!(Scope::Global.place(&global), Some(0));
        assert_eq!(Scope::Global.place(&own), None);
        assert_eq!(Scope::Global.place(&both), Some(0));
        assert_eq!(project("a-1", false).place(&global), None);
        assert_eq!(project("a-1", true).place(&global), Some(1));
        assert_eq!(project("a-1", true).place(&own), Some(0));
        assert_eq!(project("b-1", true).place(&own), None);
        assert_eq!(project("b-1", true).place(&both), Some(1));
    }
}

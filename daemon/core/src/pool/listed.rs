//! What the accounts list: nobody is chosen for a model that others list and it doesn't.
//!
//! A model that no list names is nobody's lack: lists hide some, and people try others.

use super::Pool;
use crate::{
    identity::AccountId,
    time::{Due, Now, Span},
};
use std::{collections::BTreeSet, sync::Arc};

/// How long a list is believed that isn't heard again. Plans change, and a list is heard again every
/// few minutes while anybody uses one.
const BELIEVED: Span = Span::from_secs(3600);

impl Pool {
    pub(super) fn models(&mut self, now: Now, id: &AccountId, models: Arc<[Arc<str>]>) {
        let Some(account) = self.find_mut(id) else { return };
        account.lists = Some((models, Due::after(now, BELIEVED)));
        let all: BTreeSet<Arc<str>> = self
            .accounts
            .iter()
            .filter_map(|account| account.lists.as_ref().filter(|(_all, due)| !due.reached(now)))
            .flat_map(|(models, _due)| models.iter().cloned())
            .collect();
        for account in &mut self.accounts {
            let Some((models, _due)) = &account.lists else { continue };
            account.unlisted =
                all.iter().filter(|model| !models.contains(*model)).cloned().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pool::{Input, Seed},
        scope::Pools,
        select::Need,
        time::{Mono, Wall},
        token::Generation,
    };

    fn now(seconds: u64) -> Now {
        Now { mono: Mono::from_millis(seconds * 1000), wall: Wall::from_secs(1_000_000 + seconds) }
    }

    fn pool(names: &[&str]) -> Pool {
        let mut pool = Pool::new(1);
        for (order, name) in (0..).zip(names) {
            let seed = Seed {
                id: AccountId::from_written(name),
                order,
                workspace: "w".into(),
                pools: Pools::default(),
                plan: None,
                name: (*name).into(),
                enabled: true,
                at_home: true,
                generation: Generation(1),
                expires: None,
                gone: None,
                terms: crate::account::Terms::default(),
            };
            pool.handle(now(0), Input::Upsert(seed));
        }
        pool
    }

    fn serves(pool: &Pool, model: &str, at: u64) -> Option<String> {
        let need = Need { model: Some(model.into()), ..Need::default() };
        pool.next_for(&need, now(at)).map(|account| account.id.to_string())
    }

    fn list(pool: &mut Pool, name: &str, models: &[&str], at: u64) {
        let models = models.iter().map(|model| Arc::from(*model)).collect();
        pool.handle(now(at), Input::Models(AccountId::from_written(name), models));
    }

    #[test]
    fn a_model_goes_to_those_who_list_it() {
        let mut pool = pool(&["a", "b", "c"]);
        list(&mut pool, "a", &["small"], 0);
        list(&mut pool, "b", &["small", "large"], 0);
        assert_eq!(serves(&pool, "small", 1).as_deref(), Some("a"));
        assert_eq!(serves(&pool, "large", 1).as_deref(), Some("b"));
        // Nobody lists it: everybody may try.
        assert_eq!(serves(&pool, "unheard-of", 1).as_deref(), Some("a"));
        // One whose list is not known may have it.
        pool.handle(now(1), Input::Remove(AccountId::from_written("b")));
        list(&mut pool, "a", &["small"], 2);
        assert_eq!(serves(&pool, "large", 2).as_deref(), Some("a"));
        // A list that nobody heard again is not believed for ever.
        let mut pool = self::pool(&["a", "b"]);
        list(&mut pool, "a", &["small"], 0);
        list(&mut pool, "b", &["large"], 0);
        assert_eq!(serves(&pool, "large", 3599).as_deref(), Some("b"));
        assert_eq!(serves(&pool, "large", 3601).as_deref(), Some("a"));
    }
}

//! Which account a thread ran on last, so that its prompt cache is found again, and which one its
//! person moved it to.
//!
//! A thread is named by its own id; subagents are threads of their own within the session of the
//! thread that started them, and share its prompt cache (Codex CLI 0.169.0, observed: same
//! `session-id`, other `thread-id`, `prompt_cache_key` is the session's). So a thread that ran
//! nowhere yet goes where its session's first thread ran.
//!
//! A turn is several requests (a tool loop). It stays with its account while that can serve; only
//! what its person says after it began moves it.
//!
//! Bounded in number and age. Losing an entry costs a cold cache, nothing else.

use crate::{
    identity::AccountId,
    select::Need,
    time::{Mono, Now, Span},
};
use std::{collections::BTreeMap, sync::Arc};

/// A prompt cache is long gone after this time without a request.
const TTL: Span = Span::from_secs(24 * 3600);
/// More threads than a person has open; the oldest go first.
const CAPACITY: usize = 4096;
/// Threads moved by hand at once: more than a person keeps in mind.
pub const MAX_PINS: usize = 256;

/// What the pool is told about threads outside of their requests.
#[derive(Debug, Clone)]
pub enum Told {
    /// A person moved a thread to an account, or lets the pool choose for it again.
    Pin(Arc<str>, Option<AccountId>),
    /// Where threads ran before the daemon started.
    Recall(Vec<(Arc<str>, AccountId)>),
}

/// What is remembered of one thread.
#[derive(Debug, Clone)]
struct Ran {
    account: AccountId,
    used: Mono,
    /// Its last turn, and since when that runs on the account.
    turn: Option<(Arc<str>, Mono)>,
}

/// Where a thread is at home.
#[derive(Debug, Clone, Copy, Default)]
pub struct Home<'a> {
    /// Its person moved it there.
    pub pinned: Option<&'a AccountId>,
    /// Its turn runs there.
    pub held: Option<&'a AccountId>,
    /// It ran there last.
    pub ran: Option<&'a AccountId>,
    /// Its session did.
    pub session: Option<&'a AccountId>,
}

impl Home<'_> {
    /// How an account stands to the thread, smaller is closer. First what outranks the pool's choices:
    /// 0 for the account that its person moved it to, 1 for the one its turn runs on, 2 for any other.
    /// Then what comes among them: 0 for the one the thread ran on, 1 for its session's, 2 for any
    /// other.
    pub fn place(&self, account: &AccountId) -> (u8, u8) {
        let is = |it: Option<&AccountId>| it == Some(account);
        let held = if is(self.pinned) { 0 } else { 2 - u8::from(is(self.held)) };
        let warm = if is(self.ran) { 0 } else { 2 - u8::from(is(self.session)) };
        (held, warm)
    }
}

/// Thread → account.
#[derive(Debug, Clone, Default)]
pub struct Affinity {
    threads: BTreeMap<Arc<str>, Ran>,
    pins: BTreeMap<Arc<str>, AccountId>,
    /// When a person last chose an account for a pool.
    chosen: Option<Mono>,
}

impl Affinity {
    /// The account a thread ran on.
    pub fn get(&self, thread: &str, now: Mono) -> Option<&AccountId> {
        Some(&self.ran(thread, now)?.account)
    }

    /// The account a person moved a thread to.
    pub fn pinned(&self, thread: &str) -> Option<&AccountId> {
        self.pins.get(thread)
    }

    /// Where the thread of a request is at home, to be asked for each account.
    pub fn home(&self, need: &Need, now: Mono) -> Home<'_> {
        let Some(thread) = need.thread() else { return Home::default() };
        let ran = self.ran(thread, now);
        let session = need.session.as_ref().filter(|session| *session != thread);
        Home {
            pinned: self.pinned(thread),
            held: ran.filter(|ran| self.holds(ran, need)).map(|ran| &ran.account),
            ran: ran.map(|ran| &ran.account),
            session: session.and_then(|session| self.get(session, now)),
        }
    }

    /// Whether the turn asked for runs there, and nobody has chosen since it does.
    fn holds(&self, ran: &Ran, need: &Need) -> bool {
        let Some((turn, since)) = &ran.turn else { return false };
        need.turn.as_ref() == Some(turn) && self.chosen.is_none_or(|chosen| *since > chosen)
    }

    fn ran(&self, thread: &str, now: Mono) -> Option<&Ran> {
        self.threads.get(thread).filter(|ran| now.since(ran.used) <= TTL)
    }

    /// A request of a thread goes to an account.
    pub fn runs(&mut self, need: &Need, account: &AccountId, now: Mono) {
        let Some(thread) = need.thread().filter(|_thread| !need.guest) else { return };
        let turn = || need.turn.clone().map(|turn| (turn, now));
        if let Some(ran) = self.threads.get_mut(thread) {
            let same_turn = match (&ran.turn, &need.turn) {
                (Some((known, _since)), Some(turn)) => known == turn,
                (known, turn) => known.is_none() && turn.is_none(),
            };
            // Within a turn its beginning counts: what was chosen since then moves it, once.
            if ran.account != *account || !same_turn {
                ran.turn = turn();
            }
            ran.used = now;
            if ran.account != *account {
                ran.account = account.clone();
            }
        } else {
            self.insert(
                Arc::clone(thread),
                Ran { account: account.clone(), used: now, turn: turn() },
            );
        }
        // A subagent's first request may be the first that is seen of its session.
        if let Some(session) = need.session.as_ref().filter(|session| *session != thread)
            && self.ran(session, now).is_none()
        {
            let ran = Ran { account: account.clone(), used: now, turn: None };
            self.insert(Arc::clone(session), ran);
        }
    }

    /// Takes in what it is told.
    pub fn told(&mut self, now: Now, told: Told) {
        match told {
            Told::Pin(thread, Some(account)) => {
                if self.pins.len() < MAX_PINS || self.pins.contains_key(&thread) {
                    self.pins.insert(thread, account);
                }
            },
            Told::Pin(thread, None) => drop(self.pins.remove(&thread)),
            Told::Recall(threads) => {
                for (thread, account) in threads {
                    // A request that came first knows better.
                    if !self.threads.contains_key(&thread) {
                        self.insert(thread, Ran { account, used: now.mono, turn: None });
                    }
                }
            },
        }
    }

    /// A person chose an account for a pool: turns that run don't hold theirs any more.
    pub fn chosen(&mut self, now: Mono) {
        self.chosen = Some(now);
    }

    /// Remembers where a thread ran, without its turn.
    pub fn set(&mut self, thread: &str, account: &AccountId, now: Mono) {
        let need = Need { session: Some(thread.into()), ..Need::default() };
        self.runs(&need, account, now);
    }

    /// Forgets an account that left the pool.
    pub fn forget(&mut self, account: &AccountId) {
        self.threads.retain(|_thread, ran| ran.account != *account);
        self.pins.retain(|_thread, pin| pin != account);
    }

    /// Number of threads remembered.
    pub fn len(&self) -> usize {
        self.threads.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    fn insert(&mut self, thread: Arc<str>, ran: Ran) {
        if self.threads.len() >= CAPACITY {
            self.shrink();
        }
        self.threads.insert(thread, ran);
    }

    /// Drops the older half: one pass now and then instead of an ordered index on every request.
    fn shrink(&mut self) {
        let mut ages: Vec<Mono> = self.threads.values().map(|ran| ran.used).collect();
        ages.sort_unstable();
        let median = ages.get(ages.len() / 2).copied().unwrap_or_default();
        let mut spare = CAPACITY / 2;
        self.threads.retain(|_thread, ran| {
            let keep = ran.used >= median && spare > 0;
            spare -= usize::from(keep);
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Wall;

    fn id(name: &str) -> AccountId {
        AccountId::of(name, "w")
    }

    fn at(ms: u64) -> Mono {
        Mono::from_millis(ms)
    }

    fn need(session: &str, thread: &str, turn: &str) -> Need {
        Need {
            session: Some(session.into()),
            thread: Some(thread.into()),
            turn: Some(turn.into()),
            ..Need::default()
        }
    }

    #[test]
    fn it_stays_bounded_and_keeps_the_newest() {
        let mut affinity = Affinity::default();
        let account = id("u");
        for n in 0..3 * CAPACITY {
            affinity.set(&format!("s{n}"), &account, at(n as u64));
            assert!(affinity.len() <= CAPACITY);
        }
        let now = at(3 * CAPACITY as u64);
        assert!(affinity.get(&format!("s{}", 3 * CAPACITY - 1), now).is_some());
        assert!(affinity.get("s0", now).is_none());
        assert!(affinity.get(&format!("s{}", 3 * CAPACITY - 1), now.plus(TTL.times(2))).is_none());
    }

    #[test]
    fn a_subagent_goes_where_its_session_runs_and_stays_where_it_ran() {
        let mut affinity = Affinity::default();
        affinity.runs(&need("s", "s", "1"), &id("a"), at(1));
        let child = need("s", "child", "2");
        assert_eq!(affinity.home(&child, at(2)).place(&id("a")), (2, 1));
        assert_eq!(affinity.home(&child, at(2)).place(&id("b")), (2, 2));
        affinity.runs(&child, &id("b"), at(3));
        assert_eq!(affinity.home(&child, at(4)).place(&id("b")).1, 0);
        assert_eq!(affinity.home(&child, at(4)).place(&id("a")).1, 1);
        assert_eq!(affinity.get("s", at(4)), Some(&id("a")), "the session stays where it was");
        // One whose session is unknown speaks for it.
        affinity.runs(&need("t", "t-child", "3"), &id("b"), at(5));
        assert_eq!(affinity.get("t", at(6)), Some(&id("b")));
    }

    #[test]
    fn a_guest_goes_where_the_thread_is_and_moves_nothing() {
        let mut affinity = Affinity::default();
        let guest = Need { turn: None, guest: true, ..need("s", "s", "") };
        affinity.runs(&guest, &id("b"), at(1));
        assert!(affinity.is_empty());
        affinity.runs(&need("s", "s", "1"), &id("a"), at(2));
        affinity.runs(&guest, &id("b"), at(3));
        assert_eq!(affinity.home(&guest, at(4)).place(&id("a")).1, 0);
        assert_eq!(affinity.home(&need("s", "s", "1"), at(4)).place(&id("a")), (1, 0));
    }

    #[test]
    fn a_turn_holds_its_account_until_its_person_chooses() {
        let mut affinity = Affinity::default();
        let turn = need("s", "s", "1");
        affinity.runs(&turn, &id("a"), at(1));
        assert_eq!(affinity.home(&turn, at(2)).place(&id("a")), (1, 0));
        assert_eq!(
            affinity.home(&need("s", "s", "2"), at(2)).place(&id("a")),
            (2, 0),
            "the next turn"
        );
        affinity.chosen(at(3));
        assert_eq!(affinity.home(&turn, at(4)).place(&id("a")), (2, 0));
        // The choice moved it: from then on it stays again.
        affinity.runs(&turn, &id("b"), at(5));
        affinity.runs(&turn, &id("b"), at(6));
        assert_eq!(affinity.home(&turn, at(7)).place(&id("b")), (1, 0));
    }

    #[test]
    fn a_thread_moved_by_hand_outranks_its_turn_until_the_account_goes() {
        let mut affinity = Affinity::default();
        let now = Now { mono: at(9), wall: Wall::default() };
        let turn = need("s", "s", "1");
        affinity.runs(&turn, &id("a"), at(1));
        affinity.told(now, Told::Pin("s".into(), Some(id("b"))));
        assert_eq!(affinity.home(&turn, at(2)).place(&id("b")).0, 0);
        assert_eq!(affinity.home(&turn, at(2)).place(&id("a")).0, 1);
        affinity.forget(&id("b"));
        assert_eq!(affinity.pinned("s"), None);
        for n in 0..2 * MAX_PINS {
            affinity.told(now, Told::Pin(format!("t{n}").into(), Some(id("b"))));
        }
        assert_eq!(affinity.pins.len(), MAX_PINS);
    }

    #[test]
    fn what_is_recalled_never_overrules_what_runs() {
        let mut affinity = Affinity::default();
        affinity.set("s", &id("a"), at(1));
        let now = Now { mono: at(2), wall: Wall::default() };
        let many = (0..3 * CAPACITY).map(|n| (format!("r{n}").into(), id("b")));
        let known = [("s".into(), id("b")), ("t".into(), id("b"))].into_iter();
        affinity.told(now, Told::Recall(known.chain(many).collect()));
        assert!(affinity.len() <= CAPACITY);
        let mut affinity = Affinity::default();
        affinity.set("s", &id("a"), at(1));
        affinity.told(now, Told::Recall(vec![("s".into(), id("b")), ("t".into(), id("b"))]));
        assert_eq!(affinity.get("s", at(3)), Some(&id("a")));
        assert_eq!(affinity.get("t", at(3)), Some(&id("b")));
    }
}

//! What is known of each thread: where it ran, what it costs, and what of it is bound to an account.
//!
//! A request of a thread that goes to another account than the one before is a move. What the other
//! account's workspace sealed is then sent as it is, once: a refusal costs one attempt and says for
//! sure, leaving reasoning out without need costs answers. What a refusal taught holds for the
//! thread (its items up to the last one refused are left out from then on) and for the pair of
//! workspaces (the next move between them leaves them out at once), for a day.
//!
//! A turn state goes only to the account that gave it. The official CLI keeps the first one of a
//! turn to its end (0.169.0, observed), so an account that took over within a turn gets its own.
//!
//! Bounded in number. Losing an entry costs one refused attempt at the next request, nothing else.

use crate::{
    bound::{Dropped, Leave, Mark, Without},
    identity::AccountId,
    scope::Scope,
    time::{Span, Wall},
};
use http::HeaderValue;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// As many as the pool remembers ([`crate::affinity`]).
pub const CAPACITY: usize = 4096;
/// Moves told of one thread; the oldest go first.
const MOVES: usize = 8;
/// Names of models, and words of moves, of which there is one copy for all threads: more than are in use
/// at a time.
const COPIES: usize = 32;
/// Accounts that gave turn states within one turn.
const STATES: usize = 4;
/// A turn state is a few hundred bytes; what is longer than this is not kept.
const MAX_STATE: usize = 4096;
/// Workspaces a person has, squared, and some.
const PAIRS: usize = 256;
/// What a refusal between two workspaces taught is asked again after this time.
const BELIEVED: Span = Span::from_secs(24 * 3600);

/// A thread that went to another account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// When.
    pub at: Wall,
    /// From which account.
    pub from: AccountId,
    /// To which account.
    pub to: AccountId,
    /// Why, for a person.
    pub reason: Arc<str>,
    /// What was left out of the request, for a person.
    pub dropped: Arc<str>,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Thread {
    /// Its id, as the client says it.
    pub id: Arc<str>,
    /// The session it belongs to; a subagent's is that of the thread that started it.
    pub session: Option<Arc<str>>,
    /// The pool it is served from.
    pub scope: Scope,
    /// The account that served it last.
    pub account: Option<AccountId>,
    /// That account's workspace.
    pub workspace: Option<Arc<str>>,
    /// The model it asked for last.
    pub model: Option<Arc<str>>,
    /// Requests so far.
    pub requests: u64,
    /// Requests under way.
    pub live: u32,
    /// When it was seen first.
    pub first: Wall,
    /// When it was seen last.
    pub last: Wall,
    /// Tokens sent.
    pub input: u64,
    /// Those of them that a prompt cache had.
    pub cached: u64,
    /// Its last moves.
    pub moves: VecDeque<Move>,
    /// Reasoning up to this one is another workspace's.
    pub foreign: Option<Mark>,
    /// The compaction that its person let go.
    pub lost: Option<Mark>,
    /// Workspaces that can't read its compaction.
    pub unread: Vec<Arc<str>>,
    /// Who gave which turn state in its last turn.
    pub states: States,
}

/// The turn states of one turn. Never written down: a turn doesn't outlive a daemon for long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct States {
    turn: Option<Arc<str>>,
    given: Vec<(AccountId, Vec<u8>)>,
    /// The memory of one that was forgotten, for the next: a piece that a thread had taken anew at
    /// each of its requests would end up on a page of its own.
    spare: Vec<u8>,
}

impl States {
    /// Forgets those of the turn before, or of one account.
    fn forget(&mut self, whose: Option<&AccountId>) {
        let spare = &mut self.spare;
        self.given.retain_mut(|(account, state)| {
            let stays = whose.is_some_and(|whose| whose != account);
            if !stays {
                *spare = std::mem::take(state);
            }
            stays
        });
    }

    /// Notes which one an account gave; the first one of a turn holds.
    fn note(&mut self, account: &AccountId, state: &HeaderValue) {
        if self.given.len() < STATES && !self.given.iter().any(|(whose, _state)| whose == account) {
            let mut bytes = std::mem::take(&mut self.spare);
            bytes.clear();
            bytes.reserve_exact(state.len());
            bytes.extend_from_slice(state.as_bytes());
            // Nearly always one.
            self.given.reserve_exact(1);
            self.given.push((account.clone(), bytes));
        }
    }
}

/// A thread that its person moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByHand {
    /// To which account.
    pub account: AccountId,
    /// When.
    pub since: Wall,
    /// It may go on without what was compacted, where that can't be read.
    pub without_summary: bool,
}

/// What a request is of, when it begins.
#[derive(Debug)]
pub struct Begun<'a> {
    /// The thread's id.
    pub id: &'a Arc<str>,
    /// Its session.
    pub session: Option<&'a Arc<str>>,
    /// Its pool.
    pub scope: &'a Scope,
    /// The model.
    pub model: Option<&'a Arc<str>>,
}

/// A thread's names as they are kept, for whoever else remembers its requests: one copy of each.
#[derive(Debug, Clone)]
pub struct Names {
    /// What it is kept under.
    pub key: Arc<str>,
    /// Its session.
    pub session: Option<Arc<str>>,
    /// The model it asked for last.
    pub model: Option<Arc<str>>,
}

/// Who an attempt goes to.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// The account.
    pub account: &'a AccountId,
    /// Its workspace.
    pub workspace: &'a Arc<str>,
}

/// Which turn state to send.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TurnState {
    /// What the client shows, if anything.
    #[default]
    Shown,
    /// None.
    Drop,
    /// The account's own.
    Own(HeaderValue),
}

/// What an attempt on an account means for a thread.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meeting {
    /// The account that served it last, when it is another.
    pub from: Option<AccountId>,
    /// What is known to be refused there.
    pub without: Without,
    /// Which turn state it gets.
    pub state: TurnState,
    /// The account's workspace is known not to read the thread's compaction.
    pub unread: bool,
}

/// An answer that began well.
#[derive(Debug)]
pub struct Served<'a> {
    /// Whose.
    pub host: Host<'a>,
    /// The turn.
    pub turn: Option<&'a Arc<str>>,
    /// The turn state it came with.
    pub state: Option<&'a HeaderValue>,
    /// The last item of reasoning that was left out.
    pub foreign: Option<Mark>,
    /// The compaction that was left out.
    pub lost: Option<Mark>,
    /// Why it moved, if it did.
    pub reason: String,
    /// What was left out.
    pub dropped: Dropped,
}

/// All of them, by the name under which the pool remembers them.
#[derive(Debug, Clone, Default)]
pub struct Threads {
    all: BTreeMap<Arc<str>, Thread>,
    /// Workspaces that refuse each other's sealed items, and since when that is known.
    refuses: BTreeMap<(Arc<str>, Arc<str>), Wall>,
    by_hand: BTreeMap<Arc<str>, ByHand>,
    changes: u64,
    /// Names of models, one copy of each.
    models: Vec<Arc<str>>,
    /// What moves say, one copy of each.
    words: Vec<Arc<str>>,
}

impl Threads {
    /// A person moved a thread, or lets the pool choose for it again. What is known of who can't
    /// read it is asked again.
    pub fn hand(&mut self, key: &Arc<str>, to: Option<ByHand>) {
        self.changes += 1;
        if let Some(thread) = self.all.get_mut(key) {
            thread.unread.clear();
        }
        match to {
            Some(to) => drop(self.by_hand.insert(Arc::clone(key), to)),
            None => drop(self.by_hand.remove(key)),
        }
    }

    /// The threads that their person moved.
    pub const fn by_hand(&self) -> &BTreeMap<Arc<str>, ByHand> {
        &self.by_hand
    }

    /// A request begins. Gives the thread's names as they are kept.
    pub fn begin(&mut self, key: &Arc<str>, begun: &Begun<'_>, now: Wall) -> Names {
        self.changes += 1;
        let model = begun.model.map(|model| one_copy(&mut self.models, Arc::clone(model)));
        if self.all.len() >= CAPACITY && !self.all.contains_key(key) {
            self.shrink();
        }
        let entry = self.all.entry(Arc::clone(key));
        // The map's own key, and not the caller's equal one.
        let own = Arc::clone(entry.key());
        let thread = entry.or_insert_with(|| Thread {
            id: Arc::clone(begun.id),
            first: now,
            ..Thread::default()
        });
        thread.requests += 1;
        thread.live += 1;
        thread.last = now;
        if thread.session.as_ref() != begun.session {
            thread.session = begun.session.cloned();
        }
        if thread.scope != *begun.scope {
            thread.scope = begun.scope.clone();
        }
        if model.is_some() {
            thread.model = model;
        }
        let (session, model) = (thread.session.clone(), thread.model.clone());
        Names { key: own, session, model }
    }

    /// A request has ended, whichever way.
    pub fn end(&mut self, key: &str, now: Wall) {
        self.changes += 1;
        if let Some(thread) = self.all.get_mut(key) {
            thread.live = thread.live.saturating_sub(1);
            thread.last = now;
        }
    }

    /// What an answer said it used.
    pub fn used(&mut self, key: &str, input: u64, cached: u64) {
        if let Some(thread) = self.all.get_mut(key) {
            thread.input = thread.input.saturating_add(input);
            thread.cached = thread.cached.saturating_add(cached.min(input));
        }
    }

    /// What an attempt on an account means. `shown` is the turn state that the client shows.
    pub fn meet(
        &self,
        key: &str,
        host: Host<'_>,
        turn: Option<&Arc<str>>,
        shown: Option<&HeaderValue>,
        now: Wall,
    ) -> Meeting {
        let Some(thread) = self.all.get(key) else { return Meeting::default() };
        let Host { account, workspace } = host;
        let from = thread.account.clone().filter(|from| from != account);
        let refused = thread
            .workspace
            .as_ref()
            .is_some_and(|from| from != workspace && self.refuse(from, workspace, now));
        let upto = |mark: Option<Mark>| mark.map_or(Leave::None, Leave::Upto);
        let reasoning = if refused { Leave::All } else { upto(thread.foreign) };
        let without = Without { reasoning, compaction: upto(thread.lost), ..Without::default() };
        Meeting {
            without,
            state: shown.map_or(TurnState::Shown, |shown| thread.state(account, turn, shown)),
            unread: thread.unread.contains(workspace),
            from,
        }
    }

    /// An answer began well on an account.
    pub fn served(&mut self, key: &str, served: Served<'_>, now: Wall) {
        self.changes += 1;
        let Some(thread) = self.all.get_mut(key) else { return };
        let Host { account, workspace } = served.host;
        if let Some(from) = thread.account.as_ref().filter(|from| *from != account).cloned() {
            let to = account.clone();
            let Served { reason, dropped, .. } = served;
            if thread.moves.len() >= MOVES {
                thread.moves.pop_front();
            }
            let (reason, dropped) =
                (one_copy(&mut self.words, reason), one_copy(&mut self.words, dropped.to_string()));
            thread.moves.push_back(Move { at: now, from, to, reason, dropped });
        }
        if thread.account.as_ref() != Some(account) {
            thread.account = Some(account.clone());
        }
        if thread.workspace.as_ref() != Some(workspace) {
            thread.workspace = Some(Arc::clone(workspace));
        }
        thread.foreign = served.foreign;
        thread.lost = served.lost.or(thread.lost);
        if thread.states.turn.as_ref() != served.turn {
            thread.states.turn = served.turn.cloned();
            thread.states.forget(None);
        }
        if let Some(state) = served.state.filter(|state| state.len() <= MAX_STATE) {
            if served.turn.is_none() {
                thread.states.forget(Some(account));
            }
            thread.states.note(account, state);
        }
    }

    /// An account's workspace refused what the thread carries.
    pub fn refused(&mut self, key: &str, workspace: &Arc<str>, now: Wall) {
        self.changes += 1;
        let Some(from) = self.all.get(key).and_then(|thread| thread.workspace.clone()) else {
            return;
        };
        if from == *workspace {
            return;
        }
        if self.refuses.len() >= PAIRS {
            self.refuses.retain(|_pair, since| now.since(*since) <= BELIEVED);
        }
        if self.refuses.len() < PAIRS {
            self.refuses.insert(pair(&from, workspace), now);
        }
    }

    /// An account's workspace can't read the thread's compaction.
    pub fn unread(&mut self, key: &str, workspace: &Arc<str>) {
        self.changes += 1;
        if let Some(thread) = self.all.get_mut(key)
            && !thread.unread.contains(workspace)
            && thread.unread.len() < MOVES
        {
            thread.unread.push(Arc::clone(workspace));
        }
    }

    /// One thread.
    pub fn get(&self, key: &str) -> Option<&Thread> {
        self.all.get(key)
    }

    /// All threads.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Thread)> {
        self.all.iter()
    }

    /// The pairs of workspaces that refuse each other, and since when that is known.
    pub fn refusals(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, Wall)> {
        self.refuses.iter().map(|((a, b), since)| (a, b, *since))
    }

    /// The n-th state of this.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes in what was known before the daemon started. Requests that came first know better.
    pub fn recall(
        &mut self,
        threads: impl IntoIterator<Item = (Arc<str>, Thread)>,
        refusals: impl IntoIterator<Item = ((Arc<str>, Arc<str>), Wall)>,
    ) {
        for (key, thread) in threads {
            if self.all.len() < CAPACITY {
                self.all.entry(key).or_insert(Thread { live: 0, ..thread });
            }
        }
        for ((a, b), since) in refusals {
            if self.refuses.len() < PAIRS {
                self.refuses.entry(pair(&a, &b)).or_insert(since);
            }
        }
    }

    fn refuse(&self, a: &Arc<str>, b: &Arc<str>, now: Wall) -> bool {
        self.refuses.get(&pair(a, b)).is_some_and(|since| now.since(*since) <= BELIEVED)
    }

    /// Drops the older half of those that rest.
    fn shrink(&mut self) {
        let mut ages: Vec<Wall> = self.all.values().map(|thread| thread.last).collect();
        ages.sort_unstable();
        let median = ages.get(ages.len() / 2).copied().unwrap_or_default();
        let mut spare = CAPACITY / 2;
        self.all.retain(|_key, thread| {
            let keep = thread.last >= median && spare > 0;
            spare -= usize::from(keep);
            keep
        });
    }
}

impl Thread {
    fn state(
        &self,
        account: &AccountId,
        turn: Option<&Arc<str>>,
        shown: &HeaderValue,
    ) -> TurnState {
        let States { turn: known, given, .. } = &self.states;
        if turn.is_none() && known.is_none() {
            // A client that names no turn keeps a state as long as it likes.
            match given.iter().find(|(_whose, state)| state == shown.as_bytes()) {
                Some((whose, _state)) if whose == account => return TurnState::Shown,
                Some(_another) => return TurnState::Drop,
                None => {},
            }
        } else if known.as_ref() == turn {
            if let Some((_whose, own)) = given.iter().find(|(whose, _own)| whose == account) {
                return HeaderValue::from_bytes(own).map_or(TurnState::Drop, TurnState::Own);
            }
            if given.iter().any(|(_whose, state)| state == shown.as_bytes()) {
                return TurnState::Drop;
            }
        }
        // Given before anything is remembered of it: it is the last account's, if anybody's here.
        if self.account.as_ref().is_none_or(|last| last == account) {
            TurnState::Shown
        } else {
            TurnState::Drop
        }
    }
}

/// A name or a word as it is kept already, or kept from now on.
fn one_copy(known: &mut Vec<Arc<str>>, text: impl AsRef<str> + Into<Arc<str>>) -> Arc<str> {
    if let Some(same) = known.iter().find(|known| ***known == *text.as_ref()) {
        return Arc::clone(same);
    }
    if known.len() >= COPIES {
        known.remove(0);
    }
    let text = text.into();
    known.push(Arc::clone(&text));
    text
}

/// What one can't read of the other, the other can't read of the one.
fn pair(a: &Arc<str>, b: &Arc<str>) -> (Arc<str>, Arc<str>) {
    if a <= b { (Arc::clone(a), Arc::clone(b)) } else { (Arc::clone(b), Arc::clone(a)) }
}

#[cfg(test)]
mod tests;

//! The model list: a union over the accounts that may serve a launch.
//!
//! Each account's list is asked for when a client first needs it, kept by the client's version, and
//! asked for again in the background when it is old; the last known one stays when that fails. The
//! union goes down under a tag of its own, and a turn's answer carries that tag in place of its
//! account's: the CLI (0.169.0) fetches the list again when the two differ, and a pool would make
//! them differ at every change of account.
//!
//! What the accounts list is told to the pool, so that nobody is chosen for a model it doesn't have.

use super::{
    super::{
        Proxy, aux,
        keys::Launch,
        relay::{Answer, Out},
        respond,
    },
    desk::{self, What},
    members::{self, Member},
};
use bytes::Bytes;
use cma_core::{
    identity::AccountId,
    models::{self, Written},
    pool::Input,
    select::Need,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use ring::digest;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

const ETAG: HeaderName = HeaderName::from_static("x-models-etag");
/// Older than this, a list is asked for again: as long as the CLI keeps its own (0.169.0).
const FRESH: Duration = Duration::from_secs(300);
/// Between two questions to one account, whatever came of the first.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client waits for the first list; it gives up itself after five seconds (0.169.0).
const FIRST: Duration = Duration::from_secs(4);
/// Accounts that are renewed, one after another, for a client that would have no list otherwise.
const RENEWED: usize = 4;
/// Between two renewals of an account whose list is refused. The CLI never renews for it (0.169.0,
/// observed); a token that works for turns must not be spent at each start of a CLI.
const RENEWAL: Duration = Duration::from_secs(3600);
/// Client versions whose lists are kept.
const VERSIONS: usize = 4;
/// Lists kept in all, and launches remembered.
const KEPT: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Models(Mutex<Shelf>);

#[derive(Debug, Default)]
struct Shelf {
    lists: BTreeMap<(Arc<str>, AccountId), Entry>,
    /// When each version was last asked for.
    used: BTreeMap<Arc<str>, Instant>,
    /// The tag that each launch was given, and the change after which it was.
    given: BTreeMap<u64, (u64, HeaderValue)>,
    /// Counts changes of any list.
    change: u64,
    /// When a turn's tag last started a look at all lists.
    looked: Option<Instant>,
    /// When those were last looked for that nobody has asked yet.
    counted: Option<Instant>,
    /// Accounts that were renewed because their list was refused, and when.
    renewed: BTreeMap<AccountId, Instant>,
}

/// What is known of one account's list.
#[derive(Debug)]
struct Entry {
    list: Option<Arc<List>>,
    etag: Option<HeaderValue>,
    /// When it was last heard to be so.
    at: Option<Instant>,
    tried: Instant,
}

/// One list as upstream wrote it.
#[derive(Debug)]
struct List {
    written: Written,
    print: String,
}

impl List {
    fn read(bytes: &[u8]) -> Option<Self> {
        let written = Written::read(bytes)?;
        let print = print(written.texts());
        Some(Self { written, print })
    }
}

/// 32 hex digits that say whether texts are the same.
fn print<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut sum = digest::Context::new(&digest::SHA256);
    for text in texts {
        sum.update(&text.len().to_le_bytes());
        sum.update(text.as_bytes());
    }
    sum.finish().as_ref().iter().take(16).fold(String::new(), |mut hex, byte| {
        // Writing to a `String` can't fail.
        let _fine = write!(hex, "{byte:02x}");
        hex
    })
}

/// The lists as one: an account's own entry counts by the person's order of accounts, so that the
/// same lists always make the same union.
fn union(lists: &[Arc<List>]) -> (HeaderValue, Bytes) {
    let models = models::union(lists.iter().map(|list| &list.written));
    let tag = format!("\"cma-{}\"", print(models.iter().copied()));
    let body = format!("{{\"models\":[{}]}}", models.join(","));
    (HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"cma\"")), body.into())
}

/// `GET models`.
pub(super) async fn serve(
    proxy: &Arc<Proxy>,
    launch: &Launch,
    request: &Request<Incoming>,
) -> Answer {
    let version = version(request.uri().query());
    let need = launch.bounds.need();
    let mut members = members::of(proxy, need.clone()).await;
    members.retain(Member::counts);
    let models = &proxy.surface.models;
    models.use_version(&version);
    if models.lists(&version, &members).is_empty() {
        first(proxy, &need, &version, &members).await;
    } else {
        for member in members.iter().filter(|member| member.sendable) {
            if models.is_due(&version, &member.id) {
                ask(proxy, &need, &version, member, false);
            }
        }
        // An account that was never heard of this: its first answer is on its way.
        let new = members.iter().filter(|it| it.sendable && models.is_new(&version, &it.id));
        let jobs: Vec<_> = new.map(|member| job(&version, &member.id)).collect();
        proxy.surface.desk.done(&jobs, Instant::now() + FIRST).await;
    }
    let lists = models.lists(&version, &members);
    if lists.is_empty() {
        return respond::not_here();
    }
    let (tag, body) = union(&lists);
    models.give(launch.id, tag.clone());
    let known = request.headers().get(header::IF_NONE_MATCH) == Some(&tag);
    let mut answer = Response::new(Out::Whole(if known { Bytes::new() } else { body }));
    if known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        let kind = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    answer.headers_mut().insert(header::ETAG, tag);
    answer
}

/// The client's version as it stands in the query, where it is one.
fn version(query: Option<&str>) -> Arc<str> {
    let pairs = query.unwrap_or_default().split('&');
    let value = pairs.filter_map(|pair| pair.strip_prefix("client_version=")).next();
    let plain = |text: &&str| {
        text.len() <= 32 && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
    };
    value.filter(plain).unwrap_or_default().into()
}

/// Nothing is known yet: all who can be asked are, and as long as that brings nothing one more is
/// renewed for it. A CLI without a list takes its built-in one, and with it another model than the
/// person's accounts offer.
async fn first(proxy: &Arc<Proxy>, need: &Need, version: &Arc<str>, members: &[Member]) {
    let until = Instant::now() + FIRST;
    let mut order: Vec<&Member> = members.iter().collect();
    order.sort_by_key(|member| !member.next);
    let mut asked = false;
    for renewed in order.iter().take(RENEWED) {
        for member in members {
            let this = member.id == renewed.id;
            if this || (!asked && member.sendable) {
                ask(proxy, need, version, member, this);
            }
        }
        asked = true;
        let jobs: Vec<_> = members.iter().map(|member| job(version, &member.id)).collect();
        proxy.surface.desk.done(&jobs, until).await;
        let known = !proxy.surface.models.lists(version, members).is_empty();
        if known || Instant::now() >= until {
            return;
        }
    }
}

fn job(version: &Arc<str>, id: &AccountId) -> desk::Job {
    (What::Models(Arc::clone(version)), id.clone())
}

/// Asks one account for its list in the background. `renew` says that its token is worth renewing
/// for this.
fn ask(proxy: &Arc<Proxy>, need: &Need, version: &Arc<str>, member: &Member, renew: bool) {
    let (worker, need) = (Arc::clone(proxy), need.clone());
    let (version, member) = (Arc::clone(version), member.clone());
    proxy.surface.desk.start(proxy, job(&version, &member.id), Duration::ZERO, async move {
        let proxy = worker;
        let mut answer = None;
        if member.sendable {
            answer = fetch(&proxy, &version, &member.id).await;
        }
        let refused = answer == Some(StatusCode::UNAUTHORIZED);
        let worth = !refused || proxy.surface.models.may_renew(&member.id);
        if renew && (refused || !member.sendable) && worth {
            let generation = refused.then_some(member.generation);
            aux::renew(&proxy, &need, &member.id, generation).await;
            fetch(&proxy, &version, &member.id).await;
        }
    });
}

async fn fetch(proxy: &Arc<Proxy>, version: &Arc<str>, id: &AccountId) -> Option<StatusCode> {
    let models = &proxy.surface.models;
    let query =
        if version.is_empty() { String::new() } else { format!("?client_version={version}") };
    let known = models.etag(version, id).map(|etag| (header::IF_NONE_MATCH, etag));
    let answer = desk::get(proxy, id, &format!("/codex/models{query}"), known).await;
    let status = answer.as_ref().map(|(head, _bytes)| head.status);
    if let Some(slugs) = models.learn(version, id, answer) {
        proxy.actor.tell(Input::Models(id.clone(), slugs));
    }
    status
}

/// Puts the launch's own tag in place of the account's.
pub(super) fn after_turn(proxy: &Arc<Proxy>, launch: &Launch, headers: &mut HeaderMap) {
    let Some(told) = headers.remove(&ETAG) else { return };
    let mut shelf = proxy.surface.models.0.lock();
    let Some((change, tag)) = shelf.given.get(&launch.id) else { return };
    let tag = if *change == shelf.change {
        tag.clone()
    } else {
        // A list has changed since: any other tag makes the CLI ask.
        HeaderValue::try_from(format!("\"cma-changed-{}\"", shelf.change)).unwrap_or(told.clone())
    };
    headers.insert(ETAG, tag);
    // Else an account has another list than we know of; which one is not worth knowing.
    let known = shelf.lists.values().any(|entry| entry.etag.as_ref() == Some(&told));
    // One that is new in the pool may serve nobody for long, and no running CLI asks by itself.
    let Shelf { looked, counted, .. } = &mut *shelf;
    let (last, patience) = if known { (counted, FRESH) } else { (looked, PATIENCE) };
    if last.is_some_and(|at| at.elapsed() < patience) {
        return;
    }
    *last = Some(Instant::now());
    let versions: Vec<Arc<str>> = shelf.used.keys().cloned().collect();
    drop(shelf);
    let (worker, need) = (Arc::clone(proxy), launch.bounds.need());
    let all = (What::Models("*".into()), AccountId::from_written("*"));
    proxy.surface.desk.start(proxy, all, Duration::ZERO, async move {
        for member in members::of(&worker, need.clone()).await {
            for version in versions.iter().filter(|_version| member.counts() && member.sendable) {
                if !known || worker.surface.models.has_none(version, &member.id) {
                    ask(&worker, &need, version, &member, false);
                }
            }
        }
    });
}

impl Models {
    /// Marks a version as in use; lists of one that nobody asks for any more go.
    fn use_version(&self, version: &Arc<str>) {
        let mut shelf = self.0.lock();
        shelf.used.insert(Arc::clone(version), Instant::now());
        if shelf.used.len() > VERSIONS {
            let oldest = shelf.used.iter().min_by_key(|(_version, at)| **at);
            if let Some(oldest) = oldest.map(|(version, _at)| Arc::clone(version)) {
                shelf.used.remove(&oldest);
                shelf.lists.retain(|(version, _id), _entry| *version != oldest);
            }
        }
    }

    fn lists(&self, version: &Arc<str>, members: &[Member]) -> Vec<Arc<List>> {
        let shelf = self.0.lock();
        let list = |member: &Member| {
            shelf.lists.get(&(Arc::clone(version), member.id.clone()))?.list.clone()
        };
        members.iter().filter_map(list).collect()
    }

    fn is_new(&self, version: &Arc<str>, id: &AccountId) -> bool {
        !self.0.lock().lists.contains_key(&(Arc::clone(version), id.clone()))
    }

    /// Whether an account was never heard of this, and may be asked.
    fn has_none(&self, version: &Arc<str>, id: &AccountId) -> bool {
        let shelf = self.0.lock();
        let entry = shelf.lists.get(&(Arc::clone(version), id.clone()));
        entry.is_none_or(|entry| entry.list.is_none() && entry.tried.elapsed() > PATIENCE)
    }

    fn is_due(&self, version: &Arc<str>, id: &AccountId) -> bool {
        let shelf = self.0.lock();
        shelf.lists.get(&(Arc::clone(version), id.clone())).is_none_or(|entry| {
            entry.tried.elapsed() > PATIENCE && entry.at.is_none_or(|at| at.elapsed() > FRESH)
        })
    }

    fn etag(&self, version: &Arc<str>, id: &AccountId) -> Option<HeaderValue> {
        let shelf = self.0.lock();
        let entry = shelf.lists.get(&(Arc::clone(version), id.clone()))?;
        entry.list.as_ref().and(entry.etag.clone())
    }

    /// Whether a refused list is worth a renewal of its account now; that is noted.
    fn may_renew(&self, id: &AccountId) -> bool {
        let mut shelf = self.0.lock();
        shelf.renewed.retain(|_id, at| at.elapsed() < RENEWAL);
        if shelf.renewed.contains_key(id) {
            return false;
        }
        shelf.renewed.insert(id.clone(), Instant::now());
        true
    }

    fn give(&self, launch: u64, tag: HeaderValue) {
        let mut shelf = self.0.lock();
        let change = shelf.change;
        if shelf.given.len() >= KEPT {
            shelf.given.pop_first();
        }
        shelf.given.insert(launch, (change, tag));
    }

    /// Takes an account's answer in; gives all that it lists for any version, when it answered.
    fn learn(
        &self,
        version: &Arc<str>,
        id: &AccountId,
        answer: Option<(http::response::Parts, Bytes)>,
    ) -> Option<Arc<[Arc<str>]>> {
        let now = Instant::now();
        let heard = answer.and_then(|(head, bytes)| match head.status {
            StatusCode::OK => {
                Some(Some((List::read(&bytes)?, head.headers.get(header::ETAG).cloned())))
            },
            StatusCode::NOT_MODIFIED => Some(None),
            _ => None,
        });
        let shelf = &mut *self.0.lock();
        let key = (Arc::clone(version), id.clone());
        if shelf.lists.len() >= KEPT && !shelf.lists.contains_key(&key) {
            shelf.lists.pop_first();
        }
        let mut list = None;
        if let Some(Some((read, _etag))) = &heard {
            // Accounts of one plan have the same list: it is kept once.
            let known = shelf.lists.values().filter_map(|entry| entry.list.as_ref());
            list = known.into_iter().find(|known| known.print == read.print).cloned();
        }
        let others = shelf.lists.iter().filter(|((of, who), _entry)| of == version && who != id);
        let others: Vec<_> = others.filter_map(|(_key, entry)| entry.list.clone()).collect();
        // A first list changes the union where it has a model that no other has.
        let lacks = |slug: &&Arc<str>| {
            !others.iter().any(|list| list.written.slugs().any(|it| it == *slug))
        };
        let adds =
            |read: &List| !others.is_empty() && read.written.slugs().any(|slug| lacks(&slug));
        let empty = || Entry { list: None, etag: None, at: None, tried: now };
        let entry = shelf.lists.entry(key).or_insert_with(empty);
        entry.tried = now;
        match heard? {
            None => {},
            Some((read, etag)) => {
                let before = entry.list.as_ref().map(|list| list.print.clone());
                if before.as_ref() != Some(&read.print) {
                    shelf.change += u64::from(before.is_some() || adds(&read));
                }
                entry.list = Some(list.unwrap_or_else(|| Arc::new(read)));
                entry.etag = etag;
            },
        }
        entry.at = Some(now);
        let theirs = shelf.lists.iter().filter(|((_version, of), _entry)| of == id);
        let slugs: BTreeSet<&Arc<str>> = theirs
            .filter_map(|(_key, entry)| entry.list.as_ref())
            .flat_map(|list| list.written.slugs())
            .collect();
        Some(slugs.into_iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Arc<List> {
        Arc::new(List::read(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_union_has_each_model_once_as_the_first_account_has_it() {
        let a = list(r#"{"models":[{"slug":"m","x":1.50},{"slug":"n"}]}"#);
        let b = list(r#"{"models":[{"slug":"m","x":2},{"slug":"o"}],"more":1}"#);
        let (tag, body) = union(&[Arc::clone(&a), Arc::clone(&b)]);
        assert_eq!(body, r#"{"models":[{"slug":"m","x":1.50},{"slug":"n"},{"slug":"o"}]}"#);
        assert_eq!(union(&[Arc::clone(&a), Arc::clone(&b)]).0, tag);
        assert_ne!(union(&[Arc::clone(&b), Arc::clone(&a)]).0, tag);
        // An account that adds nothing changes nothing.
        assert_eq!(union(&[Arc::clone(&a), b, a]).0, tag);
        assert!(List::read(br#"{"data":[]}"#).is_none() && List::read(b"<html>").is_none());
    }

    #[test]
    fn a_version_is_taken_only_as_one() {
        assert_eq!(&*version(Some("a=b&client_version=0.169.0")), "0.169.0");
        assert_eq!(&*version(Some("client_version=0.169.0-alpha.1")), "0.169.0-alpha.1");
        for none in [None, Some(""), Some("client_version=a/b"), Some("client_version=a%20b")] {
            assert_eq!(&*version(none), "");
        }
    }

    #[test]
    fn the_last_known_list_stays_and_every_version_counts_for_the_pool() {
        let models = Models::default();
        let id = AccountId::from_written("x");
        let answer = |status: u16, body: &'static str| {
            let response = Response::builder().status(status).header("etag", "\"e\"").body(());
            Some((response.unwrap().into_parts().0, Bytes::from_static(body.as_bytes())))
        };
        let (old, new): (Arc<str>, Arc<str>) = ("1".into(), "2".into());
        models.learn(&old, &id, answer(200, r#"{"models":[{"slug":"m"}]}"#));
        let both = models.learn(&new, &id, answer(200, r#"{"models":[{"slug":"n"}]}"#)).unwrap();
        assert_eq!(both.iter().map(|slug| &**slug).collect::<Vec<_>>(), ["m", "n"]);
        let change = models.0.lock().change;
        for bad in [None, answer(500, ""), answer(200, "<html>"), answer(401, "{}")] {
            assert_eq!(models.learn(&old, &id, bad), None);
        }
        assert!(models.learn(&old, &id, answer(304, "")).is_some());
        assert_eq!(models.0.lock().change, change);
        assert_eq!(models.etag(&old, &id).unwrap(), "\"e\"");
        models.learn(&old, &id, answer(200, r#"{"models":[{"slug":"o"}]}"#));
        assert_eq!(models.0.lock().change, change + 1);
        assert!(!models.is_due(&old, &id) && models.is_due(&"3".into(), &id));
        // One that comes later changes what there is only where it has more.
        let later = |id: &str, body| {
            models.learn(&old, &AccountId::from_written(id), answer(200, body));
            models.0.lock().change
        };
        assert_eq!(later("y", r#"{"models":[{"slug":"o","x":1}]}"#), change + 1);
        assert_eq!(later("z", r#"{"models":[{"slug":"o"},{"slug":"p"}]}"#), change + 2);
    }
}

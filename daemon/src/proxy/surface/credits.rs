//! Reset credits: those of all accounts in one list, and the use of one at the account that has it.
//!
//! Nothing is ever used by itself: a credit goes when the CLI or a person says so, once, and at no
//! other account than the one that it belongs to. Then that account is asked for its windows, and
//! what they say ends its rest.

use super::{
    super::{Proxy, aux, keys::Launch, relay::Answer, respond},
    desk::{self, What},
    members::{self, Member},
    usage,
};
use bytes::Bytes;
use cma_core::{identity::AccountId, select::Need};
use cma_proto::error::ErrorCode;
use http::{Request, StatusCode, response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

const LIST: &str = "/backend-api/wham/rate-limit-reset-credits";
const CONSUME: &str = "/backend-api/wham/rate-limit-reset-credits/consume";
/// Older than this, a list is asked for again when somebody wants to see it.
const FRESH: Duration = Duration::from_secs(300);
/// How long an answer waits for accounts of which nothing is known.
const FIRST: Duration = Duration::from_secs(3);
/// The same where a person asked.
const ASKED: Duration = Duration::from_secs(12);
/// How long an answer to a use waits for the windows after it.
const AFTER: Duration = Duration::from_secs(3);
/// Credits of one account, and accounts remembered.
const MAX_CREDITS: usize = 64;
const KEPT: usize = 1024;
/// The request that uses one is a hundred bytes.
const MAX_BODY: usize = 64 * 1024;

/// Each account's list as last heard.
#[derive(Debug, Default)]
pub(super) struct Credits(Mutex<BTreeMap<AccountId, Known>>);

#[derive(Debug, Clone)]
struct Known {
    at: Instant,
    /// None when the last question brought nothing and there was none before.
    credits: Option<Vec<Value>>,
    available: u64,
}

/// One account's credits for a person.
#[derive(Debug)]
pub(crate) struct Purse {
    pub(crate) account: AccountId,
    /// None when the account could not be asked.
    pub(crate) credits: Option<Vec<Credit>>,
    pub(crate) available: u64,
}

/// One credit.
#[derive(Debug)]
pub(crate) struct Credit {
    pub(crate) id: String,
    /// All that upstream says of it, JSON.
    pub(crate) detail: String,
}

impl Credits {
    fn known(&self, id: &AccountId) -> Option<Known> {
        self.0.lock().get(id).cloned()
    }

    fn learn(&self, id: &AccountId, list: Option<&Value>) {
        let mut all = self.0.lock();
        if all.len() >= KEPT && !all.contains_key(id) {
            all.pop_first();
        }
        let empty = || Known { at: Instant::now(), credits: None, available: 0 };
        let known = all.entry(id.clone()).or_insert_with(empty);
        known.at = Instant::now();
        let Some(list) = list else { return };
        let credits = list.get("credits").and_then(Value::as_array);
        let credits: Vec<_> = credits.into_iter().flatten().take(MAX_CREDITS).cloned().collect();
        let count = u64::try_from(credits.len()).unwrap_or_default();
        known.available = list.get("available_count").and_then(Value::as_u64).unwrap_or(count);
        known.credits = Some(credits);
    }

    /// Whose credit that is.
    fn owner(&self, members: &[Member], credit: &str) -> Option<AccountId> {
        let all = self.0.lock();
        let has = |member: &&Member| {
            let known = all.get(&member.id).and_then(|known| known.credits.as_ref());
            known.is_some_and(|credits| credits.iter().any(|one| name(one) == Some(credit)))
        };
        members.iter().find(has).map(|member| member.id.clone())
    }
}

fn name(credit: &Value) -> Option<&str> {
    credit.get("id").or_else(|| credit.get("credit_id"))?.as_str()
}

/// `GET rate-limit-reset-credits`.
pub(super) async fn list(proxy: &Arc<Proxy>, launch: &Launch) -> Answer {
    let members = members::of(proxy, launch.bounds.need()).await;
    refresh(proxy, &members, FRESH, FIRST).await;
    let (mut available, mut credits) = (0, Vec::new());
    for member in &members {
        let Some(known) = proxy.surface.credits.known(&member.id) else { continue };
        available += known.available;
        credits.extend(known.credits.unwrap_or_default().into_iter().map(|mut credit| {
            if let Some(fields) = credit.as_object_mut() {
                fields.insert("cma_account".to_owned(), json!(&*member.name));
            }
            credit
        }));
    }
    respond::json(StatusCode::OK, &json!({ "available_count": available, "credits": credits }))
}

/// Asks for lists older than `fresh`; waits for those that are not known at all, or, with no age
/// allowed, for all.
async fn refresh(proxy: &Arc<Proxy>, members: &[Member], fresh: Duration, patience: Duration) {
    let mut awaited = Vec::new();
    for member in members.iter().filter(|member| member.sendable && member.counts()) {
        let known = proxy.surface.credits.known(&member.id);
        if known.as_ref().is_some_and(|known| known.at.elapsed() < fresh) {
            continue;
        }
        let job = (What::Credits, member.id.clone());
        if known.is_none() || fresh.is_zero() {
            awaited.push(job.clone());
        }
        let (worker, id) = (Arc::clone(proxy), member.id.clone());
        proxy.surface.desk.start(proxy, job, Duration::ZERO, async move {
            let list = document(desk::get(&worker, &id, LIST, None).await);
            worker.surface.credits.learn(&id, list.as_ref());
        });
    }
    proxy.surface.desk.done(&awaited, Instant::now() + patience).await;
}

fn document(answer: Option<(response::Parts, Bytes)>) -> Option<Value> {
    let (head, bytes) = answer?;
    (head.status == StatusCode::OK).then(|| serde_json::from_slice(&bytes).ok()).flatten()
}

/// `POST rate-limit-reset-credits/consume`.
pub(super) async fn consume(
    proxy: &Arc<Proxy>,
    launch: &Launch,
    request: Request<Incoming>,
) -> Answer {
    let body = http_body_util::Limited::new(request.into_body(), MAX_BODY).collect().await;
    let sent = body.ok().and_then(|body| serde_json::from_slice::<Value>(&body.to_bytes()).ok());
    let credit = sent.as_ref().and_then(|sent| sent.get("credit_id")).and_then(Value::as_str);
    let (Some(sent), Some(credit)) = (&sent, credit) else {
        return respond::error(
            StatusCode::BAD_REQUEST,
            ErrorCode::BadRequest,
            "this names no reset credit; `cmactl reset-credits list` shows those there are",
        );
    };
    let members = members::of(proxy, launch.bounds.need()).await;
    let mut owner = proxy.surface.credits.owner(&members, credit);
    if owner.is_none() {
        refresh(proxy, &members, Duration::ZERO, FIRST).await;
        owner = proxy.surface.credits.owner(&members, credit);
    }
    let Some(owner) = owner else {
        return respond::error(
            StatusCode::NOT_FOUND,
            ErrorCode::NotFound,
            "no account of the pool has that reset credit; `cmactl reset-credits list` shows those there are",
        );
    };
    aux::passed(spend(proxy, &owner, sent).await)
}

/// Uses a credit, once: again only after a refusal that comes before any use.
async fn spend(
    proxy: &Arc<Proxy>,
    owner: &AccountId,
    body: &Value,
) -> Option<(response::Parts, Bytes)> {
    let mut answer = desk::post(proxy, owner, CONSUME, body).await;
    let refused = |answer: &Option<(response::Parts, Bytes)>| {
        answer.as_ref().is_some_and(|(head, _bytes)| head.status == StatusCode::UNAUTHORIZED)
    };
    if refused(&answer) {
        aux::renew_resting(proxy, owner).await;
        answer = desk::post(proxy, owner, CONSUME, body).await;
    }
    if refused(&answer) {
        return None;
    }
    let done = answer.as_ref().is_some_and(|(head, _bytes)| head.status.is_success());
    tracing::info!(account = %owner, done, "a reset credit was to be used");
    if done {
        let learned = async {
            usage::learn(proxy, owner).await;
            let list = document(desk::get(proxy, owner, LIST, None).await);
            proxy.surface.credits.learn(owner, list.as_ref());
        };
        // What isn't known by then is learned with the next turn.
        let _late = tokio::time::timeout(AFTER, learned).await;
    }
    answer
}

/// All accounts' credits as they are now, for a person.
pub(crate) async fn purses(proxy: &Arc<Proxy>) -> Vec<Purse> {
    let members = everybody(proxy).await;
    refresh(proxy, &members, Duration::ZERO, ASKED).await;
    let purse = |member: Member| {
        let known = proxy.surface.credits.known(&member.id);
        let asked = member.sendable && member.counts();
        let credits = known.as_ref().and_then(|known| known.credits.as_ref()).filter(|_all| asked);
        Purse {
            credits: credits.map(|credits| {
                let credit = |one: &Value| {
                    Some(Credit { id: name(one)?.to_owned(), detail: one.to_string() })
                };
                credits.iter().filter_map(credit).collect()
            }),
            available: known.map_or(0, |known| known.available),
            account: member.id,
        }
    };
    members.into_iter().map(purse).collect()
}

/// Uses one credit of an account at a person's word. Gives what upstream answered, none without an
/// answer.
pub(crate) async fn use_one(
    proxy: &Arc<Proxy>,
    owner: &AccountId,
    credit: &str,
) -> Option<(StatusCode, String)> {
    let body = json!({ "redeem_request_id": random_id()?, "credit_id": credit });
    let (head, bytes) = spend(proxy, owner, &body).await?;
    Some((head.status, String::from_utf8_lossy(&bytes).chars().take(500).collect()))
}

/// Accounts of all pools.
async fn everybody(proxy: &Arc<Proxy>) -> Vec<Member> {
    let records = proxy.roster.all();
    let mut all: Vec<Member> = Vec::new();
    for need in std::iter::once(Need::default()).chain(scopes(&records)) {
        for member in members::of(proxy, need).await {
            if !all.iter().any(|known| known.id == member.id) {
                all.push(member);
            }
        }
    }
    all
}

/// A need for each project that an account is in.
fn scopes(records: &[Arc<crate::store::record::Record>]) -> Vec<Need> {
    let keys = records.iter().flat_map(|record| &record.pools);
    let keys: std::collections::BTreeSet<&String> =
        keys.filter(|key| *key != cma_core::scope::GLOBAL).collect();
    let scope = |key: &String| cma_core::scope::Scope::Project {
        key: key.as_str().into(),
        fallback: false,
    };
    keys.into_iter().map(|key| Need { scope: scope(key), ..Need::default() }).collect()
}

/// A random UUID: upstream does the same request once only.
fn random_id() -> Option<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).ok()?;
    let value = u128::from_be_bytes(bytes);
    let value = (value & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{value:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    Some(format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_random_uuid() {
        let (one, two) = (random_id().unwrap(), random_id().unwrap());
        assert_ne!(one, two);
        let parts: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert!(one.split('-').nth(2).unwrap().starts_with('4'), "{one}");
        assert!("89ab".contains(one.split('-').nth(3).unwrap().chars().next().unwrap()), "{one}");
    }

    #[test]
    fn a_list_is_kept_when_the_next_question_brings_none() {
        let credits = Credits::default();
        let id = AccountId::from_written("a");
        credits.learn(&id, None);
        assert_eq!(credits.known(&id).unwrap().credits, None);
        credits.learn(&id, Some(&json!({"credits": [{"id": "c"}]})));
        credits.learn(&id, None);
        let known = credits.known(&id).unwrap();
        assert_eq!((known.available, known.credits.unwrap().len()), (1, 1));
        assert_eq!(name(&json!({"credit_id": "d"})), Some("d"));
    }
}

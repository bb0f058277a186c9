//! What is left: the pool's quota in the shape of one account's, from memory.
//!
//! The CLI shows it as its own (`/status`, its start, after turns), so it says what the pool can do
//! (`pooled`), with each account's part under `cma_accounts`. Windows come from the answers of turns;
//! an account that served none lately is asked in the background, at a moment of chance, once at a
//! time. Only an account of which nothing is known is waited for, and not for long.

use super::{
    super::{Proxy, keys::Launch, relay::Answer, respond},
    desk::{self, What},
    members::{self, Member},
    pooled::{self, Share},
};
use crate::{actor, clock};
use cma_core::{
    account::State,
    identity::AccountId,
    pool::Input,
    quota::{self, MAIN_LIMIT, Place},
    time::{Span, Wall},
};
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Quota older than this is asked for again when somebody wants to see it.
const FRESH: Span = Span::from_secs(120);
/// Between two questions to one account, whatever came of the first.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause before a question that nobody waits for.
const SPREAD: u64 = 3_000;
/// How long an answer waits for accounts of which nothing is known.
const FIRST: Duration = Duration::from_secs(2);
/// Accounts remembered here, and limits of one.
const KEPT: usize = 1024;
const MAX_LIMITS: usize = 32;

/// What the usage endpoint tells beside windows, by account.
#[derive(Debug, Default)]
pub(super) struct Usage(Mutex<BTreeMap<AccountId, Told>>);

#[derive(Debug, Clone)]
struct Told {
    tried: Instant,
    credits: Value,
    /// Reset credits.
    resets: Option<u64>,
    /// The names of limits, by their ids.
    names: BTreeMap<String, String>,
}

impl Default for Told {
    fn default() -> Self {
        Self { tried: Instant::now(), credits: Value::Null, resets: None, names: BTreeMap::new() }
    }
}

impl Usage {
    fn tried(&self, id: &AccountId) -> bool {
        self.0.lock().get(id).is_some_and(|told| told.tried.elapsed() < PATIENCE)
    }

    fn told(&self, id: &AccountId) -> Told {
        self.0.lock().get(id).cloned().unwrap_or_default()
    }

    fn learn(&self, id: &AccountId, usage: Option<&Value>) {
        let mut known = self.0.lock();
        if known.len() >= KEPT && !known.contains_key(id) {
            known.pop_first();
        }
        let told = known.entry(id.clone()).or_default();
        told.tried = Instant::now();
        let Some(usage) = usage else { return };
        told.credits = usage.get("credits").cloned().unwrap_or_default();
        told.resets =
            usage.pointer("/rate_limit_reset_credits/available_count").and_then(Value::as_u64);
        let more = usage.get("additional_rate_limits").and_then(Value::as_array);
        told.names = more
            .into_iter()
            .flatten()
            .take(MAX_LIMITS)
            .filter_map(|limit| {
                let text = |name: &str| limit.get(name).and_then(Value::as_str);
                let id = text("metered_feature").or_else(|| text("limit_name"))?;
                Some((id.to_lowercase(), text("limit_name").unwrap_or(id).to_owned()))
            })
            .collect();
    }
}

/// `GET usage`.
pub(super) async fn serve(proxy: &Arc<Proxy>, launch: &Launch) -> Answer {
    let Some(face) = proxy.roster.face(launch.face.as_ref(), &launch.bounds) else {
        return respond::not_here();
    };
    let need = launch.bounds.need();
    let members = members::of(proxy, need.clone()).await;
    let members =
        if refresh(proxy, &members).await { members::of(proxy, need).await } else { members };
    let mut answer = document(&proxy.surface.usage, &members, clock::wall());
    // Who the CLI believes to be, as `whoami` says.
    answer["user_id"] = json!(face.user);
    answer["account_id"] = json!(face.workspace);
    answer["email"] = json!(face.email);
    answer["plan_type"] = json!(face.plan.as_deref().unwrap_or("unknown"));
    respond::json(StatusCode::OK, &answer)
}

/// Asks for what is old in the background; waits for what isn't known at all. Returns whether
/// `members` are to be looked at again.
async fn refresh(proxy: &Arc<Proxy>, members: &[Member]) -> bool {
    let now = clock::wall();
    let mut unknown = Vec::new();
    for member in members.iter().filter(|member| member.sendable && member.counts()) {
        let pause = match member.seen() {
            Some(seen) if now.since(seen) <= FRESH => continue,
            Some(_old) => actor::seed() % SPREAD,
            None => {
                // Even one that was asked: its answer may have come since `members` were read, or be
                // on its way to the pool.
                unknown.push((What::Usage, member.id.clone()));
                0
            },
        };
        if !proxy.surface.usage.tried(&member.id) {
            ask(proxy, &member.id, Duration::from_millis(pause));
        }
    }
    if unknown.is_empty() {
        return false;
    }
    proxy.surface.desk.done(&unknown, Instant::now() + FIRST).await;
    true
}

fn ask(proxy: &Arc<Proxy>, id: &AccountId, pause: Duration) {
    let (worker, of) = (Arc::clone(proxy), id.clone());
    proxy.surface.desk.start(proxy, (What::Usage, id.clone()), pause, async move {
        learn(&worker, &of).await;
    });
}

/// Asks an account for its windows now and gives them to the pool.
pub(super) async fn learn(proxy: &Arc<Proxy>, id: &AccountId) {
    let answer = desk::get(proxy, id, "/backend-api/wham/usage", None).await;
    let usage = answer
        .filter(|(head, _bytes)| head.status == StatusCode::OK)
        .and_then(|(_head, bytes)| serde_json::from_slice::<Value>(&bytes).ok());
    proxy.surface.usage.learn(id, usage.as_ref());
    let windows = usage.map(|usage| quota::from_usage(&usage, clock::wall())).unwrap_or_default();
    if !windows.is_empty() {
        // A command, not news: who waits for this looks at the pool next.
        let _stopping = proxy.actor.command(Input::QuotaSeen(id.clone(), windows)).await;
    }
}

/// The answer, but for whom it names.
fn document(usage: &Usage, members: &[Member], now: Wall) -> Value {
    let all: Vec<&Member> = members.iter().filter(|member| member.counts()).collect();
    // Whom a person keeps from taking over, turns don't go to.
    let mut serving: Vec<&Member> =
        all.iter().copied().filter(|member| !member.held_back).collect();
    if serving.is_empty() {
        serving.clone_from(&all);
    }
    let shares: Vec<Share> = serving.iter().map(|member| share(member)).collect();
    let told: Vec<Told> = all.iter().map(|member| usage.told(&member.id)).collect();
    let resets: u64 = told.iter().filter_map(|told| told.resets).sum();
    let mut answer = json!({
        "rate_limit": limits(&shares, MAIN_LIMIT, now),
        "code_review_rate_limit": null,
        "additional_rate_limits": additional(&shares, &told, now),
        "credits": credits(&told),
        "promo": null,
        "cma_accounts": members.iter().map(|member| part(member, now)).collect::<Vec<_>>(),
    });
    if resets > 0 {
        answer["rate_limit_reset_credits"] = json!({ "available_count": resets });
    }
    answer
}

pub(super) fn share(member: &Member) -> Share {
    // A throttle of seconds or a renewal under way doesn't keep it from serving.
    let rests = matches!(&member.state, State::Cooling(cause, _) if !cause.is_quota());
    Share {
        windows: member.windows.clone(),
        limited: member.limited,
        fit: member.counts() && member.state != State::Paused && !rests,
    }
}

fn limits(shares: &[Share], limit: &str, now: Wall) -> Value {
    let window = |place| pooled::shown(pooled::pooled(shares, limit, place, None), now);
    json!({
        "allowed": pooled::allowed(shares),
        "limit_reached": pooled::dry(shares),
        "primary_window": window(Place::Primary),
        "secondary_window": window(Place::Secondary),
    })
}

/// Limits beside the main one, where any account has them.
fn additional(shares: &[Share], told: &[Told], now: Wall) -> Vec<Value> {
    let windows = shares.iter().flat_map(|share| &share.windows);
    let ids: BTreeSet<Arc<str>> = windows
        .map(|window| Arc::clone(&window.limit))
        .filter(|limit| **limit != *MAIN_LIMIT)
        .collect();
    ids.iter()
        .take(MAX_LIMITS)
        .map(|id| {
            let name = told.iter().find_map(|told| told.names.get(&**id));
            let mut limits = limits(shares, id, now);
            // Of these: the main limit says whether another model may be asked for.
            let spent = pooled::spent(shares, id);
            limits["allowed"] = json!(!spent);
            limits["limit_reached"] = json!(spent);
            json!({
                "limit_name": name.map_or(&**id, String::as_str),
                "metered_feature": &**id,
                "rate_limit": limits,
            })
        })
        .collect()
}

/// Credits of all accounts together.
fn credits(told: &[Told]) -> Value {
    let any = |name: &str| {
        told.iter().any(|told| told.credits.get(name).and_then(Value::as_bool) == Some(true))
    };
    let balance: f64 = told
        .iter()
        .filter_map(|told| match told.credits.get("balance")? {
            Value::String(text) => text.parse().ok(),
            number => number.as_f64(),
        })
        .filter(|balance: &f64| balance.is_finite())
        .sum();
    json!({
        "has_credits": any("has_credits"),
        "unlimited": any("unlimited"),
        "balance": format!("{balance}"),
        "approx_local_messages": null,
        "approx_cloud_messages": null,
    })
}

/// One account's part, for a person or a script.
fn part(member: &Member, now: Wall) -> Value {
    json!({
        "id": member.id.as_str(),
        "name": &*member.name,
        "plan_type": member.plan.as_deref(),
        "state": member.state.word(),
        "reason": member.state.reason(),
        "until": member.state.until().map(Wall::secs),
        "next": member.next,
        "seen_at": member.seen().map(|seen| seen.millis() / 1000),
        "primary_window": pooled::own(&member.windows, Place::Primary, now),
        "secondary_window": pooled::own(&member.windows, Place::Secondary, now),
    })
}

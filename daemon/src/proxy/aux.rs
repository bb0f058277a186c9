//! The auxiliary calls of the CLI: who it is, what it may use, how much is left.
//!
//! None of them may hurt. An upstream 401 never reaches the CLI from here (it would try to renew a
//! login that isn't its own, and reopen its connections): it gets a 404, with which it goes on. The
//! identity comes from memory and in every phase, because a CLI that can't learn it runs without
//! any for its whole life.

use super::{
    Proxy,
    body::UpBody,
    headers,
    keys::Launch,
    relay::{Answer, Out},
    respond,
};
use crate::{clock, store::record::Record, vault::Pass};
use bytes::{Bytes, BytesMut};
use cma_core::{
    identity::AccountId,
    pool::{Input, Release},
    quota,
    select::{self, Need},
    token::Generation,
    verdict::{self, Mark},
};
use http::{HeaderValue, Request, Response, StatusCode, header, request, response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Looks for an account with a model list; a refused token and its renewal are one.
const MODEL_TRIES: u32 = 4;
/// Bodies of these calls, both ways.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// `whoami`: the account that speaks for the pool, from memory.
pub(crate) fn whoami(proxy: &Proxy, launch: &Launch) -> Answer {
    let Some(face) = proxy.roster.face(launch.face.as_ref(), &launch.bounds) else {
        return respond::not_here();
    };
    respond::json(
        StatusCode::OK,
        &json!({
            "email": face.email,
            "chatgpt_user_id": face.user,
            "chatgpt_account_id": face.workspace,
            "chatgpt_plan_type": face.plan.as_deref().unwrap_or("unknown"),
            "chatgpt_account_is_fedramp": face.fedramp,
        }),
    )
}

/// `accounts/check`: one workspace, without constraints on where it is served; those of the real
/// account are the proxy's business.
pub(crate) fn accounts_check(proxy: &Proxy, launch: &Launch) -> Answer {
    let Some(face) = proxy.roster.face(launch.face.as_ref(), &launch.bounds) else {
        return respond::not_here();
    };
    let entry = json!({
        "id": face.workspace,
        "name": face.email,
        "structure": "personal",
        "profile_picture_url": null,
        "workspace_backend_origin": "NO_CONSTRAINT",
        "account_routing_override": "NO_CONSTRAINT",
    });
    respond::json(
        StatusCode::OK,
        &json!({
            "accounts": [entry],
            "account_ordering": [face.workspace],
            "default_account_id": face.workspace,
        }),
    )
}

/// The model list of an account that can serve. A refused token is renewed first: a CLI without a
/// list takes its built-in one, and with it another model than the person's account offers.
pub(crate) async fn models(
    proxy: Arc<Proxy>,
    launch: &Launch,
    request: Request<Incoming>,
) -> Answer {
    let need = launch.bounds.need();
    let (parts, _empty) = request.into_parts();
    for _try in 0..MODEL_TRIES {
        let look = need.clone();
        let best = proxy.actor.look(move |pool, now| {
            let id = best(&pool.explain(&look, now))?;
            let account = pool.accounts().iter().find(|account| account.id == id)?;
            Some((id, account.token.generation, account.sendable(now)))
        });
        let Some((id, generation, sendable)) = best.await.ok().flatten() else { break };
        if sendable {
            match ask(&proxy, &id, &parts, Bytes::new()).await {
                Some((head, _bytes)) if head.status == StatusCode::UNAUTHORIZED => {},
                answer => return passed(answer),
            }
        }
        renew(&proxy, &need, &id, sendable.then_some(generation)).await;
    }
    respond::not_here()
}

/// Waits for an account's renewal, after telling that this generation was refused.
async fn renew(proxy: &Proxy, need: &Need, id: &AccountId, refused: Option<Generation>) {
    let need = Need { only: Some(id.clone()), ..need.clone() };
    if let Ok(Ok(lease)) = proxy.actor.select(need.clone()).await
        && refused == Some(lease.generation)
    {
        lease.finish(Release { mark: Mark::Unauthorized, served: false, model: None });
        drop(proxy.actor.select(need).await);
    }
}

/// The workspace's managed policies, from the account that speaks for the pool. Plans that are not
/// managed have none. A managed plan's bundle that can't be had is an error, never an empty one:
/// that would lift the policies.
pub(crate) async fn bundle(
    proxy: Arc<Proxy>,
    launch: &Launch,
    request: Request<Incoming>,
) -> Answer {
    let Some(face) = proxy.roster.face(launch.face.as_ref(), &launch.bounds) else {
        return respond::not_here();
    };
    if !managed(face.plan.as_deref()) {
        return respond::json(StatusCode::OK, &json!({}));
    }
    pass_on(&proxy, &id_of(&face), request).await
}

/// Plans for which the CLI insists on the bundle (0.169.0): those of organisations.
fn managed(plan: Option<&str>) -> bool {
    const UNMANAGED: [&str; 7] = ["free", "go", "plus", "pro", "prolite", "team", "unknown"];
    plan.is_some_and(|plan| !UNMANAGED.contains(&plan))
}

/// Anything else, for the account that speaks for the pool.
pub(crate) async fn pass(proxy: Arc<Proxy>, launch: &Launch, request: Request<Incoming>) -> Answer {
    match proxy.roster.face(launch.face.as_ref(), &launch.bounds) {
        Some(face) => pass_on(&proxy, &id_of(&face), request).await,
        None => respond::not_here(),
    }
}

/// The quota of the account that would serve next: asked upstream, which is also how the pool
/// learns it; from memory when that fails. `used_percent` is an integer, the CLI reads no other.
pub(crate) async fn usage(
    proxy: Arc<Proxy>,
    launch: &Launch,
    request: Request<Incoming>,
) -> Answer {
    let need = launch.bounds.need();
    let first =
        proxy.actor.look(move |pool, now| pool.explain(&need, now).into_iter().next()).await;
    let Some(first) = first.ok().flatten() else { return respond::not_here() };
    let Some(record) = proxy.roster.get(&first.id) else { return respond::not_here() };
    let (parts, _body) = request.into_parts();
    if let Some((head, bytes)) = ask(&proxy, &first.id, &parts, Bytes::new()).await
        && head.status == StatusCode::OK
        && let Ok(mut usage) = serde_json::from_slice::<Value>(&bytes)
    {
        let windows = quota::from_usage(&usage, clock::wall());
        if !windows.is_empty() {
            proxy.actor.tell(Input::QuotaSeen(first.id.clone(), windows));
        }
        whole_percents(&mut usage);
        return respond::json(StatusCode::OK, &usage);
    }
    let id = first.id;
    let known = proxy.actor.look(move |pool, _now| {
        pool.accounts().iter().find(|account| account.id == id).map(|account| account.quota.clone())
    });
    let known = known.await.ok().flatten().unwrap_or_default();
    respond::json(StatusCode::OK, &from_memory(&record, &known))
}

fn from_memory(record: &Record, known: &quota::Quota) -> Value {
    let now = clock::wall();
    let window = |place: quota::Place| {
        let window = known
            .windows()
            .iter()
            .find(|window| &*window.limit == quota::MAIN_LIMIT && window.place == place)?;
        let resets = window.resets?;
        Some(json!({
            "used_percent": whole(window.used_percent),
            "limit_window_seconds": window.minutes.unwrap_or(0) * 60,
            "reset_after_seconds": resets.since(now).millis() / 1000,
            "reset_at": resets.secs(),
        }))
    };
    let full = known.windows().iter().any(|window| window.used_percent >= 100.0);
    json!({
        "user_id": record.user,
        "account_id": record.workspace,
        "email": record.email,
        "plan_type": record.plan.as_deref().unwrap_or("unknown"),
        "rate_limit": {
            "allowed": !full,
            "limit_reached": full,
            "primary_window": window(quota::Place::Primary),
            "secondary_window": window(quota::Place::Secondary),
        },
        "additional_rate_limits": [],
    })
}

fn best(candidates: &[select::Candidate]) -> Option<AccountId> {
    candidates.first().filter(|first| first.excluded.is_none()).map(|first| first.id.clone())
}

fn id_of(record: &Record) -> AccountId {
    AccountId::from_written(&record.id)
}

/// Makes every `used_percent` an integer, rounded up: a spent percent is spent.
fn whole_percents(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value.as_f64() {
                    Some(percent) if name.ends_with("_percent") => *value = whole(percent).into(),
                    _ => whole_percents(value),
                }
            }
        },
        Value::Array(items) => items.iter_mut().for_each(whole_percents),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {},
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn whole(percent: f64) -> u64 {
    percent.ceil().clamp(0.0, 100_000.0) as u64
}

/// What upstream says to an account's access token; nothing is spent by asking. None without an
/// answer.
pub(crate) async fn probe(proxy: &Arc<Proxy>, id: &AccountId) -> Option<StatusCode> {
    let request = Request::builder().uri("/backend-api/wham/usage").body(()).ok()?;
    let (parts, ()) = request.into_parts();
    ask(proxy, id, &parts, Bytes::new()).await.map(|(head, _bytes)| head.status)
}

/// Sends a call with an account's credential and answers with what comes, or 404.
async fn pass_on(proxy: &Arc<Proxy>, id: &AccountId, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let Ok(body) = http_body_util::Limited::new(body, MAX_BODY).collect().await else {
        return respond::error(
            StatusCode::PAYLOAD_TOO_LARGE,
            cma_proto::error::ErrorCode::TooLarge,
            "the request is too large",
        );
    };
    match ask(proxy, id, &parts, body.to_bytes()).await {
        Some((head, _bytes)) if head.status == StatusCode::UNAUTHORIZED => {
            tracing::debug!(account = %id, path = parts.uri.path(), "auxiliary call refused with 401");
            respond::not_here()
        },
        answer => passed(answer),
    }
}

/// Upstream's answer, or 404.
fn passed(answer: Option<(response::Parts, Bytes)>) -> Answer {
    let Some((mut head, bytes)) = answer else { return respond::not_here() };
    headers::downwards(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Out::Whole(bytes))
}

impl Proxy {
    /// The windows of an account as the usage endpoint tells them; asking spends nothing.
    pub(crate) async fn windows_of(self: &Arc<Self>, id: &AccountId) -> Option<Vec<quota::Window>> {
        let request = Request::get("/backend-api/wham/usage").body(()).ok()?;
        let (head, bytes) = ask(self, id, &request.into_parts().0, Bytes::new()).await?;
        let usage = (head.status == StatusCode::OK).then(|| serde_json::from_slice(&bytes).ok());
        Some(quota::from_usage(&usage.flatten()?, clock::wall()))
    }

    /// The workspaces that upstream knows for an account's user, as `accounts/check` answers.
    pub(crate) async fn workspaces_of(self: &Arc<Self>, id: &AccountId) -> Option<Value> {
        let request = Request::get("/backend-api/wham/accounts/check").body(()).ok()?;
        let (head, bytes) = ask(self, id, &request.into_parts().0, Bytes::new()).await?;
        (head.status == StatusCode::OK).then(|| serde_json::from_slice(&bytes).ok()).flatten()
    }
}

async fn ask(
    proxy: &Arc<Proxy>,
    id: &AccountId,
    parts: &request::Parts,
    body: Bytes,
) -> Option<(response::Parts, Bytes)> {
    let pass = proxy.vault.current(id)?;
    let again = body.clone();
    let request = build(proxy, parts, &pass, body);
    let exchange = async {
        let repeat = || Some(build(proxy, parts, &pass, again));
        let response = proxy.upstream.send(id, request, repeat).await.ok()?;
        let (head, mut incoming) = response.into_parts();
        if verdict::is_page(head.status, &head.headers) {
            // A page of the network's, or a way to one: nothing for the CLI.
            return None;
        }
        let mut bytes = BytesMut::new();
        while let Some(frame) = incoming.frame().await {
            if let Some(data) = frame.ok()?.data_ref() {
                if bytes.len() + data.len() > MAX_BODY {
                    return None;
                }
                bytes.extend_from_slice(data);
            }
        }
        proxy.upstream.give_back(incoming.into_connection());
        Some((head, bytes.freeze()))
    };
    tokio::time::timeout(TIMEOUT, exchange).await.ok().flatten()
}

fn build(proxy: &Proxy, parts: &request::Parts, pass: &Pass, body: Bytes) -> Request<UpBody> {
    let length = body.len();
    let mut request = Request::new(UpBody::Whole(body));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = proxy.upstream_uri(&parts.uri);
    *request.headers_mut() = headers::upwards(parts.headers.clone(), &proxy.host);
    if length > 0 {
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers::sign(request.headers_mut(), pass);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_become_integers_wherever_they_stand() {
        let mut usage = json!({"a": {"used_percent": 12.2, "x": 1.5}, "b": [{"used_percent": 7}]});
        whole_percents(&mut usage);
        assert_eq!(usage, json!({"a": {"used_percent": 13, "x": 1.5}, "b": [{"used_percent": 7}]}));
    }

    #[test]
    fn organisations_are_managed_and_persons_are_not() {
        assert!(managed(Some("business")) && managed(Some("enterprise")) && managed(Some("edu")));
        assert!(!managed(Some("plus")) && !managed(Some("team")) && !managed(None));
    }
}

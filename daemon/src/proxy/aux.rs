//! The auxiliary calls that one account answers for the pool: who the CLI is, what is passed on for it.
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
use crate::{clock, store::record::Record, upstream::Outbound, vault::Pass};
use bytes::{Bytes, BytesMut};
use cma_core::{
    account::Login,
    identity::AccountId,
    pool::{Input, Release},
    quota,
    select::Need,
    token::Generation,
    verdict::{self, Mark},
};
use http::{HeaderValue, Request, Response, StatusCode, header, request, response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The origin of the official backend, where the configured one has no https.
const OFFICIAL: &str = "https://chatgpt.com";
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at a renewal under way.
const LOOK: Duration = Duration::from_millis(20);
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

/// `accounts/check`: one workspace, where the backend is; the constraints of the real account are the
/// proxy's business. An origin is named because the CLI's server wants an https one, or an IDE's
/// `account/read` fails; with our base addresses it changes no route (0.169.0, observed).
pub(crate) fn accounts_check(proxy: &Proxy, launch: &Launch) -> Answer {
    let Some(face) = proxy.roster.face(launch.face.as_ref(), &launch.bounds) else {
        return respond::not_here();
    };
    let backend = &proxy.config.backend;
    let origin =
        if backend.tls { format!("https://{}", backend.authority) } else { OFFICIAL.to_owned() };
    let entry = json!({
        "id": face.workspace,
        "name": face.email,
        "structure": "personal",
        "profile_picture_url": null,
        "workspace_backend_origin": origin,
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

/// Waits for an account's renewal, after telling that this generation was refused. One that is fresh
/// already isn't blamed for being refused here: the CLI alone goes on without what these calls bring
/// (0.169.0, observed), and whether the login is over is for a turn to tell.
pub(super) async fn renew(proxy: &Proxy, need: &Need, id: &AccountId, refused: Option<Generation>) {
    if refused.is_some() && was_just_renewed(proxy, id).await {
        return;
    }
    let need = Need { only: Some(id.clone()), ..need.clone() };
    if let Ok(Ok(lease)) = proxy.actor.select(need.clone()).await
        && refused == Some(lease.generation)
    {
        lease.finish(Release { mark: Mark::Unauthorized, served: false, model: None });
        drop(proxy.actor.select(need).await);
    }
}

/// Whether an account's token was just renewed because it was refused.
pub(super) async fn was_just_renewed(proxy: &Proxy, id: &AccountId) -> bool {
    let of = id.clone();
    let renewed = proxy.actor.look(move |pool, _now| {
        pool.accounts().iter().any(|account| account.id == of && account.refused_fresh)
    });
    renewed.await == Ok(true)
}

/// Waits for the renewal of a token that was just refused, of an account that may rest: it isn't
/// wanted for a turn. A fresh one isn't blamed, as by [`renew`].
pub(super) async fn renew_resting(proxy: &Proxy, id: &AccountId) {
    if was_just_renewed(proxy, id).await {
        return;
    }
    let refused = proxy.vault.generation(id);
    let learned = Input::Learn(id.clone(), Mark::Unauthorized);
    let until = Instant::now() + TIMEOUT;
    if proxy.actor.command(learned).await.is_ok() {
        while proxy.vault.generation(id) == refused && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Renews a token that is known to be over; what was asked for would only be refused.
pub(super) async fn renew_expired(proxy: &Proxy, need: &Need, id: &AccountId) {
    let of = id.clone();
    let over = proxy.actor.look(move |pool, now| {
        let account = pool.accounts().iter().find(|account| account.id == of);
        account.is_some_and(|account| account.login == Login::Good && !account.sendable(now))
    });
    if over.await == Ok(true) {
        renew(proxy, need, id, None).await;
    }
}

/// Anything else, for the account that speaks for the pool.
pub(crate) async fn pass(proxy: Arc<Proxy>, launch: &Launch, request: Request<Incoming>) -> Answer {
    let Some(face) = proxy.roster.face(launch.face.as_ref(), &launch.bounds) else {
        return respond::not_here();
    };
    let id = id_of(&face);
    renew_expired(&proxy, &launch.bounds.need(), &id).await;
    pass_on(&proxy, &id, request).await
}

pub(super) fn id_of(record: &Record) -> AccountId {
    AccountId::from_written(&record.id)
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
pub(super) fn passed(answer: Option<(response::Parts, Bytes)>) -> Answer {
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

/// Sends a call with an account's credential and reads the whole answer; none without one.
pub(super) async fn ask(
    proxy: &Arc<Proxy>,
    id: &AccountId,
    parts: &request::Parts,
    body: Bytes,
) -> Option<(response::Parts, Bytes)> {
    let pass = proxy.vault.current(id)?;
    let again = body.clone();
    let request = build(proxy, parts, &pass, body);
    let exchange = async {
        // A kept connection that broke may have delivered it: only what reads is sent again.
        let reads = parts.method.is_safe();
        let repeat = |undone| (undone || reads).then(|| build(proxy, parts, &pass, again));
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

fn build(proxy: &Proxy, parts: &request::Parts, pass: &Pass, body: Bytes) -> Outbound {
    let length = body.len();
    let headers = headers::upwards(parts.headers.clone(), &proxy.host);
    let mut request = proxy.outbound(parts, headers, UpBody::Whole(body));
    if length > 0 {
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    // The model list lives below the same base as Responses.
    if parts.uri.path().starts_with("/codex/models") {
        headers::sign(request.headers_mut(), pass);
    } else {
        headers::identify(request.headers_mut(), pass);
    }
    request
}

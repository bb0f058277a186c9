//! Own-auth mode: a CLI that runs on its own `auth.json` through the proxy.
//!
//! Its addresses carry a ticket that names its launch; its requests carry the person's own bearer.
//! Both are needed: a bearer of the pool is accepted only from a launch that chose this mode, and a
//! ticket, which others may see among the arguments, opens nothing by itself. The bearer is only
//! compared, never passed on; what goes up is the pool's, as in every launch.
//!
//! Nothing here answers 401: at one the CLI (0.169.0) spends its refresh token. It renews and revokes
//! at the two endpoints below, which a secret in its environment opens. They hand out the pool's
//! current access token and never a refresh token: where the CLI's own one is of a chain that the
//! pool renews, it gets [`OPAQUE`] instead, so that no later `codex` on that file can spend the chain
//! a second time. A revocation is acknowledged and goes no further.

use super::{
    Proxy, dispatch,
    gate::{self, Route},
    keys::Launch,
    relay::Answer,
    respond,
};
use crate::{
    app::Phase,
    blocking,
    fault::Fault,
    roster::Roster,
    store::{
        import::OPAQUE,
        record::{Record, sum},
    },
};
use cma_core::{account::Login, identity::AccountId, select::Need};
use cma_proto::error::ErrorCode;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

const PREFIX: &str = "/own/";
/// A refresh request is a few hundred bytes and one token.
const MAX_BODY: usize = 64 * 1024;
/// How long a CLI waits here for a renewal under way; its own limit is not known to be shorter.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a renewal under way.
const LOOK: Duration = Duration::from_millis(50);

/// Whether a path belongs to this mode.
pub(crate) fn is_own(path: &str) -> bool {
    path.starts_with(PREFIX)
}

/// Access tokens that were handed to CLIs, by fingerprint: one may be shown again long after the
/// pool has renewed it. On disk beside the account, in memory once asked for.
#[derive(Debug, Default)]
pub(crate) struct Lent(Mutex<BTreeMap<AccountId, Arc<[String]>>>);

impl Lent {
    /// What was lent of an account. Blocks on the disk at the first asking.
    fn of(&self, roster: &Roster, id: &AccountId) -> Arc<[String]> {
        if let Some(known) = self.0.lock().get(id) {
            return Arc::clone(known);
        }
        let read: Arc<[String]> = roster.store().lent(id).unwrap_or_default().into();
        Arc::clone(self.0.lock().entry(id.clone()).or_insert(read))
    }

    /// Makes durable that this access token is lent. Blocks on the disk.
    fn add(&self, roster: &Roster, id: &AccountId, token: &SecretString) -> Result<(), Fault> {
        let print = sum(token.expose_secret());
        let known = self.of(roster, id);
        if known.contains(&print) {
            return Ok(());
        }
        let all: Vec<String> = known.iter().cloned().chain([print]).collect();
        let kept = roster.store().save_lent(id, all)?;
        self.0.lock().insert(id.clone(), kept.into());
        Ok(())
    }
}

/// Serves a request below `/own/`.
pub(crate) async fn serve(proxy: Arc<Proxy>, mut request: Request<Incoming>) -> Answer {
    let Some((name, path)) = split(request.uri()) else { return respond::not_here() };
    let post = *request.method() == Method::POST;
    match path.as_str() {
        "/oauth/token" if post => return renew(&proxy, &name, request).await,
        "/oauth/revoke" if post => return revoke(&proxy, &name),
        _ => {},
    }
    let Ok(uri) = Uri::try_from(path) else { return respond::not_here() };
    let route = gate::route(request.method(), uri.path(), request.headers());
    if route == Route::Mcp {
        return respond::not_here();
    }
    let Some(launch) = admit(&proxy, &name, request.headers()).await else {
        proxy.traces.counters.refused.fetch_add(1, Ordering::Relaxed);
        return refused(route);
    };
    *request.uri_mut() = uri;
    let answer = dispatch(&proxy, &launch, route, request).await;
    if answer.status() == StatusCode::UNAUTHORIZED {
        return respond::stop(ErrorCode::Upstream, "cma: upstream refused the pool's credential");
    }
    answer
}

/// The ticket or secret, and what follows it with its query.
fn split(uri: &Uri) -> Option<(String, String)> {
    let rest = uri.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    let (name, _rest) = rest.split_once('/')?;
    Some((name.to_owned(), rest.get(name.len()..)?.to_owned()))
}

/// The launch of a ticket, if the bearer beside it is the one it was made for or one that came of
/// it.
async fn admit(proxy: &Arc<Proxy>, ticket: &str, headers: &HeaderMap) -> Option<Launch> {
    let launch = proxy.keys.check_ticket(ticket)?;
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let print = sum(value.to_str().ok()?.strip_prefix("Bearer ")?);
    if launch.bearer.as_deref() == Some(print.as_str()) {
        return Some(launch);
    }
    let id = launch.face.clone()?;
    let record = proxy.roster.get(&id)?;
    if sum(record.tokens.access_token.expose_secret()) == print {
        return Some(launch);
    }
    let known = Arc::clone(proxy);
    let lent = blocking::run(move || known.lent.of(&known.roster, &id)).await.ok()?;
    lent.contains(&print).then_some(launch)
}

/// What a request that may not come in is answered: never 401.
fn refused(route: Route) -> Answer {
    match route {
        Route::Responses => respond::stop(
            ErrorCode::Denied,
            "cma: this codex shows a login that its launch was not started with. Start codex again; \
             after a new `codex login`, run `cmactl import` first.",
        ),
        // The same over HTTP, where the CLI prints it.
        Route::Upgrade => super::upgrade_required(),
        Route::Whoami | Route::AccountsCheck | Route::Surface(_) | Route::Mcp | Route::Unknown => {
            respond::not_here()
        },
    }
}

#[derive(Deserialize)]
struct Ask {
    refresh_token: Option<SecretString>,
}

/// Where the account of a launch stands with its credential.
enum Standing {
    Fresh,
    Underway,
    Stale,
    Gone,
}

/// The refresh endpoint: the pool's current tokens, after a renewal if one is due.
async fn renew(proxy: &Arc<Proxy>, secret: &str, request: Request<Incoming>) -> Answer {
    let Some(launch) = proxy.keys.check_renewal(secret) else { return respond::not_here() };
    let Some(id) = launch.face.clone() else { return respond::not_here() };
    if proxy.phases.now() >= Phase::Draining {
        return respond::draining();
    }
    let body = http_body_util::Limited::new(request.into_body(), MAX_BODY).collect().await;
    let sent = body.ok().and_then(|body| serde_json::from_slice::<Ask>(&body.to_bytes()).ok());
    let Some(Ask { refresh_token }) = sent else {
        return respond::error(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, "not a refresh");
    };
    let until = Instant::now() + PATIENCE;
    let mut asked = false;
    loop {
        match standing(proxy, &id).await {
            Some(Standing::Fresh) => return lend(proxy, &id, refresh_token).await,
            Some(Standing::Underway) if Instant::now() < until => tokio::time::sleep(LOOK).await,
            Some(Standing::Stale) if !asked => {
                asked = true;
                let need = Need { only: Some(id.clone()), ..Need::default() };
                // The grant is of no interest, only that a stale credential is renewed for it.
                drop(proxy.actor.select(need).await);
            },
            // Final for this CLI too: it says so and goes on with the token it has, which still
            // opens the gate (observed, 0.169.0).
            Some(Standing::Gone) | None => {
                return respond::json(
                    StatusCode::BAD_REQUEST,
                    &json!({"error": "invalid_grant", "error_description": "the pool's login of this account is gone; see `cmactl status`"}),
                );
            },
            Some(Standing::Underway | Standing::Stale) => return respond::draining(),
        }
    }
}

async fn standing(proxy: &Proxy, id: &AccountId) -> Option<Standing> {
    let id = id.clone();
    let look = move |pool: &cma_core::pool::Pool, now| {
        let account = pool.accounts().iter().find(|account| account.id == id)?;
        Some(match account.login {
            Login::Gone { .. } => Standing::Gone,
            Login::Renewing { .. } => Standing::Underway,
            Login::Good if account.token.usable(now) => Standing::Fresh,
            Login::Good => Standing::Stale,
        })
    };
    proxy.actor.look(look).await.ok().flatten()
}

/// Hands out the current tokens, once it is durable that they are lent.
async fn lend(proxy: &Arc<Proxy>, id: &AccountId, sent: Option<SecretString>) -> Answer {
    let Some(record) = proxy.roster.get(id) else { return respond::not_here() };
    let (lender, account, kept) = (Arc::clone(proxy), id.clone(), Arc::clone(&record));
    let saved =
        blocking::run(move || lender.lent.add(&lender.roster, &account, &kept.tokens.access_token));
    if !matches!(saved.await, Ok(Ok(()))) {
        tracing::warn!(account = %id, "can't note a lent token");
        return respond::draining();
    }
    tracing::info!(account = %id, generation = record.generation, "a CLI was given the current token");
    let mut answer = json!({
        "id_token": record.tokens.id_token.expose_secret(),
        "access_token": record.tokens.access_token.expose_secret(),
    });
    if let Some(fields) = answer.as_object_mut()
        && owned(&record, sent)
    {
        fields.insert("refresh_token".to_owned(), OPAQUE.into());
    }
    respond::json(StatusCode::OK, &answer)
}

/// Whether a CLI's refresh token is of the chain that the pool renews. One of another login stays
/// where it is: it is the only copy.
fn owned(record: &Record, sent: Option<SecretString>) -> bool {
    record.knows(sent.filter(|token| !token.expose_secret().is_empty()).as_ref())
}

/// The revoke endpoint: yes, and no further. The pool's login outlives a CLI's.
fn revoke(proxy: &Proxy, secret: &str) -> Answer {
    let Some(launch) = proxy.keys.check_renewal(secret) else { return respond::not_here() };
    let account = launch.face.as_ref().map(AccountId::as_str).unwrap_or_default();
    tracing::warn!(account, launch = launch.name(), "a CLI logged out; its login is kept");
    respond::json(StatusCode::OK, &json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_name_and_what_follows() {
        let parts = |path: &'static str| split(&Uri::from_static(path));
        let two = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(parts("/own/t/codex/models?a=b/c"), two("t", "/codex/models?a=b/c"));
        assert_eq!(parts("/own/t/"), two("t", "/"));
        assert_eq!(parts("/own/t"), None);
        assert_eq!(parts("/other/t/x"), None);
    }
}

//! Where an account's workspace lives: its own `accounts/check`, honoured towards upstream.
//!
//! The CLI is told that nothing constrains it (it would leave loopback otherwise); the constraint is
//! kept here. Upstream may name another origin for a workspace's Responses and a routing override
//! (0.169.0 sends it as `x-openai-account-routing-override`). Both are learned in the background and
//! used from then on.
//!
//! A credential must not follow an answer anywhere: an origin counts only when it is https and its
//! host is the configured backend's or below it. A pool whose upstream is on loopback (tests) takes
//! loopback origins. What is not trusted is ignored, and `status` says so.

use super::{
    super::Proxy,
    desk::What,
    members::{self, Member},
};
use crate::{
    config::{Config, Endpoint},
    vault::Way,
};
use cma_core::{identity::AccountId, select::Need};
use http::{HeaderValue, Uri};
use parking_lot::Mutex;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// After the turn that makes all be looked at: what comes of that turn comes first.
pub(super) const AFTER_TURN: Duration = Duration::from_secs(5);
/// Older than this, a workspace is asked again.
const FRESH: Duration = Duration::from_secs(3600);
/// Between two questions, whatever came of the first.
const PATIENCE: Duration = Duration::from_secs(60);
/// What upstream writes where nothing is wanted.
const NONE: &str = "NO_CONSTRAINT";
/// The overrides that the CLI passes on (0.169.0).
const ROUTINGS: [&str; 2] = ["us", "us_cr"];
const KEPT: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Checks {
    known: Mutex<BTreeMap<AccountId, Checked>>,
    /// When a turn last made all be looked at.
    looked: Mutex<Option<Instant>>,
}

#[derive(Debug, Clone)]
struct Checked {
    tried: Instant,
    at: Option<Instant>,
    /// What could not be followed, for a person.
    note: Option<String>,
}

impl Checks {
    fn is_due(&self, id: &AccountId) -> bool {
        self.known.lock().get(id).is_none_or(|known| {
            known.tried.elapsed() > PATIENCE && known.at.is_none_or(|at| at.elapsed() > FRESH)
        })
    }

    /// Whether a turn should make all be looked at; then it is time again in an hour.
    pub(super) fn is_time(&self) -> bool {
        let mut looked = self.looked.lock();
        let due = looked.is_none_or(|at| at.elapsed() > FRESH);
        if due {
            *looked = Some(Instant::now());
        }
        due
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.known.lock().values().filter_map(|known| known.note.clone()).collect()
    }

    fn keep(&self, id: &AccountId, heard: bool, note: Option<String>) {
        let mut known = self.known.lock();
        if known.len() >= KEPT && !known.contains_key(id) {
            known.pop_first();
        }
        let now = Instant::now();
        let before = known.get(id).and_then(|known| known.at);
        let at = if heard { Some(now) } else { before };
        known.insert(id.clone(), Checked { tried: now, at, note });
    }
}

/// Learns where a launch's accounts live, in the background, as far as that isn't known.
pub(super) fn learn(proxy: &Arc<Proxy>, need: Need, pause: Duration) {
    // One that waits is not in the way of one that doesn't.
    let all = AccountId::from_written(if pause.is_zero() { "*" } else { "**" });
    let worker = Arc::clone(proxy);
    proxy.surface.desk.start(proxy, (What::Check, all), pause, async move {
        for member in members::of(&worker, need).await {
            if member.sendable && member.counts() && worker.surface.checks.is_due(&member.id) {
                one(&worker, &member);
            }
        }
    });
}

fn one(proxy: &Arc<Proxy>, member: &Member) {
    let (worker, member) = (Arc::clone(proxy), member.clone());
    let job = (What::Check, member.id.clone());
    proxy.surface.desk.start(proxy, job, Duration::ZERO, async move {
        let Some(record) = worker.roster.get(&member.id) else { return };
        let document = worker.workspaces_of(&member.id).await;
        let entry = document.as_ref().and_then(|document| entry(document, &record.workspace));
        let Some(entry) = entry else {
            worker.surface.checks.keep(&member.id, false, None);
            return;
        };
        let (way, endpoint, note) = way(&worker.config, entry);
        if let Some(endpoint) = endpoint {
            worker.upstream.admit(endpoint);
        }
        if worker.vault.set_way(&member.id, &way) {
            tracing::info!(account = %member.id, ?way, "its workspace says where its turns go");
        }
        let note = note.map(|note| format!("{}: {note}", member.name));
        worker.surface.checks.keep(&member.id, true, note);
    });
}

fn entry<'a>(document: &'a Value, workspace: &str) -> Option<&'a Value> {
    let entries = document.get("accounts")?.as_array()?;
    entries.iter().find(|entry| entry.get("id").and_then(Value::as_str) == Some(workspace))
}

/// What an entry asks for: the way, the host to be let in for it, and what can't be followed.
fn way(config: &Config, entry: &Value) -> (Way, Option<Endpoint>, Option<String>) {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| *text != NONE);
    let mut notes = Vec::new();
    let mut way = Way::default();
    let mut endpoint = None;
    if let Some(origin) = text("workspace_backend_origin") {
        match self::origin(config, origin) {
            Ok(at) if at.authority == config.backend.authority => {},
            Ok(at) => {
                way.host = HeaderValue::try_from(at.authority.as_str()).ok();
                endpoint = way.host.is_some().then_some(at);
            },
            Err(why) => notes.push(format!(
                "its workspace asks to be served from `{}`, which {why}; its turns stay at `{}`",
                origin.chars().take(100).collect::<String>(),
                config.backend.authority
            )),
        }
    }
    if let Some(routing) = text("account_routing_override") {
        way.routing =
            ROUTINGS.into_iter().find(|known| *known == routing).map(HeaderValue::from_static);
        if way.routing.is_none() {
            notes.push(
                "its workspace asks for a routing that is not known; it is not sent".to_owned(),
            );
        }
    }
    (way, endpoint, (!notes.is_empty()).then(|| notes.join("; ")))
}

/// An origin as an endpoint of the backend, when it may get a credential.
fn origin(config: &Config, origin: &str) -> Result<Endpoint, &'static str> {
    let uri: Uri = origin.parse().map_err(|_invalid| "is no address")?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err("is no address");
    };
    if authority.as_str().contains('@') || uri.path().len() > 1 || uri.query().is_some() {
        return Err("is no origin");
    }
    let tls = scheme == "https";
    let (host, backend) = (authority.host().to_lowercase(), config.backend.host.to_lowercase());
    let simulated = config.loopback() && crate::config::is_loopback(&host);
    let allowed = tls || (scheme == "http" && simulated);
    if !allowed {
        return Err("is not https");
    }
    let below = host.strip_suffix(&backend).is_some_and(|rest| rest.ends_with('.'));
    if host != backend && !below && !simulated {
        return Err("is not below the configured backend's host");
    }
    let name = authority.as_str().to_lowercase();
    Ok(Endpoint {
        base: format!("{scheme}://{name}{}", config.backend.path),
        tls,
        host,
        port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        authority: name,
        path: config.backend.path.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cma_proto::endpoint::Root;
    use serde_json::json;

    fn config(backend: Option<&str>) -> Config {
        let dir = tempfile::tempdir().unwrap();
        Config::load(&Root::at(dir.path()), |name| {
            (name == "CMA_UPSTREAM_BACKEND").then(|| backend.map(str::to_owned)).flatten()
        })
        .unwrap()
    }

    #[test]
    fn a_credential_follows_only_to_hosts_of_the_backend() {
        let config = config(None);
        for good in ["https://chatgpt.com", "https://eu.chatgpt.com", "https://EU.ChatGPT.com/"] {
            assert!(origin(&config, good).is_ok(), "{good}");
        }
        for bad in [
            "http://chatgpt.com",
            "https://chatgpt.com.evil.test",
            "https://evilchatgpt.com",
            "https://evil.test",
            "https://u@eu.chatgpt.com",
            "https://eu.chatgpt.com/path",
            "https://127.0.0.1",
            "ftp://chatgpt.com",
            "eu.chatgpt.com",
            "",
        ] {
            assert!(origin(&config, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_is_followed_as_far_as_it_is_known() {
        let config = config(None);
        let ask = |origin: &str, routing: &str| {
            let entry = json!({
                "id": "w", "workspace_backend_origin": origin, "account_routing_override": routing,
            });
            let (way, endpoint, note) = way(&config, &entry);
            (way.host.is_some(), way.routing.is_some(), endpoint.is_some(), note.is_some())
        };
        assert_eq!(ask(NONE, NONE), (false, false, false, false));
        assert_eq!(ask("https://chatgpt.com", "us"), (false, true, false, false));
        assert_eq!(ask("https://eu.chatgpt.com", "us_cr"), (true, true, true, false));
        assert_eq!(ask("https://evil.test", "moon"), (false, false, false, true));
        let document = json!({"accounts": [{"id": "v"}, {"id": "w", "x": 1}]});
        assert_eq!(entry(&document, "w").unwrap()["x"], 1);
        assert_eq!(entry(&document, "u"), None);
    }
}

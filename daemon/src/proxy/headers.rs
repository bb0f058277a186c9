//! Which headers pass, and whose credential they carry.
//!
//! Upwards: everything the CLI says of itself passes as it is; hop-by-hop headers, the client key,
//! the account it believes it is and anything of ours do not. Downwards: everything passes but
//! hop-by-hop headers and cookies, which belong to an account's connection and not to the client.

use crate::vault::Pass;
use cma_core::models;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::sync::Arc;

const ACCOUNT: HeaderName = HeaderName::from_static("chatgpt-account-id");
const FEDRAMP: HeaderName = HeaderName::from_static("x-openai-fedramp");
const ROUTING: HeaderName = HeaderName::from_static("x-openai-account-routing-override");
/// A thread within a session (0.169.0, observed). Made once: a name that is looked up as text is parsed each
/// time.
pub(crate) const THREAD: HeaderName = HeaderName::from_static("thread-id");
/// What a turn says of itself, as JSON (0.169.0, observed).
pub(crate) const METADATA: HeaderName = HeaderName::from_static("x-codex-turn-metadata");

/// Header values taken as names are bounded.
pub(crate) const MAX_NAME: usize = 256;

/// Headers of one connection, not of the message; named by the protocol.
fn hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Not passed up: none of upstream's business, or set anew where a workspace wants it.
fn stays_here(name: &str) -> bool {
    matches!(
        name,
        "cookie"
            | "expect"
            | "forwarded"
            | "via"
            | "x-forwarded-for"
            | "x-openai-account-routing-override"
            | "x-openai-fedramp"
    ) || name.starts_with("x-cma-")
}

/// A header's value as a name; none when it is empty or too long for one.
pub(crate) fn name(headers: &HeaderMap, header: &HeaderName) -> Option<Arc<str>> {
    headers.get(header).and_then(as_name)
}

fn as_name(value: &HeaderValue) -> Option<Arc<str>> {
    let said = value.to_str().ok()?;
    is_name(said).then(|| said.into())
}

/// Whether what is said is such a name: of what stands elsewhere for a header, only what a header
/// could say.
pub(crate) fn is_name(said: &str) -> bool {
    (1..=MAX_NAME).contains(&said.len())
        && said.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'))
}

/// What the head of a turn says of it, as far as it is read. Found in one look along its names: looking one
/// up costs as much as passing six.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told<'a> {
    /// Its session (0.169.0, observed).
    session: Option<&'a HeaderValue>,
    /// What older CLIs call it (0.98.0 and 0.128.0, observed).
    old_session: Option<&'a HeaderValue>,
    thread: Option<&'a HeaderValue>,
    hint: Option<&'a HeaderValue>,
    pub(crate) metadata: Option<&'a HeaderValue>,
    pub(crate) state: Option<&'a HeaderValue>,
    pub(crate) encoding: Option<&'a HeaderValue>,
    pub(crate) accept: Option<&'a HeaderValue>,
    pub(crate) explain: Option<&'a HeaderValue>,
}

impl<'a> Told<'a> {
    /// By these headers; of one that is there twice the first counts.
    pub(crate) fn by(headers: &'a HeaderMap) -> Self {
        let mut told = Self::default();
        for (name, value) in headers {
            let place = match name.as_str() {
                "session-id" => &mut told.session,
                "session_id" => &mut told.old_session,
                "thread-id" => &mut told.thread,
                "x-codex-routing-hint" => &mut told.hint,
                "x-codex-turn-metadata" => &mut told.metadata,
                "x-codex-turn-state" => &mut told.state,
                "content-encoding" => &mut told.encoding,
                "accept" => &mut told.accept,
                "x-cma-explain" => &mut told.explain,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        told
    }

    /// Its session, by whichever name its client has for it.
    pub(crate) fn session(&self) -> Option<Arc<str>> {
        self.session.and_then(as_name).or_else(|| self.old_session.and_then(as_name))
    }

    /// Its thread.
    pub(crate) fn thread(&self) -> Option<Arc<str>> {
        self.thread.and_then(as_name)
    }

    /// The model that its routing hint names, so that its body needn't be read.
    pub(crate) fn model(&self) -> Option<Arc<str>> {
        let hint = self.hint?.to_str().ok()?;
        let model = hint.split(';').find_map(|part| part.trim_ascii().strip_prefix("model="))?;
        (model.len() <= models::MAX_NAME).then(|| model.into())
    }

    /// Whether its client asks for a stream.
    pub(crate) fn wants_stream(&self) -> bool {
        self.accept.is_some_and(|kind| kind == "text/event-stream")
    }
}

/// A request's session, by whichever name its client has for it.
pub(crate) fn session(headers: &HeaderMap) -> Option<Arc<str>> {
    Told::by(headers).session()
}

/// A client's headers made ready to be sent; [`sign`] or [`identify`] adds whose they are, into places
/// that are kept for it here: a map that is copied for an attempt has room for nothing more.
pub(crate) fn upwards(mut headers: HeaderMap, host: &HeaderValue) -> HeaderMap {
    strip_named_hops(&mut headers);
    strip(&mut headers, |name| hop_by_hop(name) || stays_here(name));
    headers.insert(header::HOST, host.clone());
    headers.insert(header::AUTHORIZATION, HeaderValue::from_static(""));
    headers.insert(ACCOUNT, HeaderValue::from_static(""));
    headers
}

/// Puts an account's credential in, and the way its workspace wants its Responses to go.
pub(crate) fn sign(headers: &mut HeaderMap, pass: &Pass) {
    identify(headers, pass);
    if let Some(host) = &pass.way.host {
        headers.insert(header::HOST, host.clone());
    }
    if let Some(routing) = &pass.way.routing {
        headers.insert(ROUTING, routing.clone());
    }
}

/// Puts an account's credential in, for calls that go to the backend itself.
pub(crate) fn identify(headers: &mut HeaderMap, pass: &Pass) {
    headers.insert(header::AUTHORIZATION, pass.authorization.clone());
    headers.insert(ACCOUNT, pass.workspace.clone());
    if pass.fedramp {
        headers.insert(FEDRAMP, HeaderValue::from_static("true"));
    }
}

/// Upstream's headers made ready for the client.
pub(crate) fn downwards(headers: &mut HeaderMap) {
    strip_named_hops(headers);
    strip(headers, |name| hop_by_hop(name) || name == "set-cookie");
}

/// What `Connection` names belongs to the connection too.
fn strip_named_hops(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()) {
        let named: Vec<HeaderName> =
            named.split(',').filter_map(|name| name.trim().parse().ok()).collect();
        for name in named {
            headers.remove(name);
        }
    }
}

/// A look along a dozen names is cheaper than looking a score of names up.
fn strip(headers: &mut HeaderMap, stays: impl Fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|name| stays(name.as_str())).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::Way;

    #[test]
    fn the_client_key_and_hops_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer at-cma-x"),
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("x-cma-trace", "1"),
            ("cookie", "a=b"),
            ("chatgpt-account-id", "theirs"),
            ("x-openai-account-routing-override", "us_cr"),
            ("session-id", "s"),
            ("content-encoding", "zstd"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let mut up = upwards(headers, &HeaderValue::from_static("up.test"));
        let mut left: Vec<_> = up.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            ["authorization", "chatgpt-account-id", "content-encoding", "host", "session-id"]
        );
        assert!(up["authorization"].is_empty() && up["chatgpt-account-id"].is_empty());
        let pass = Pass {
            authorization: HeaderValue::from_static("Bearer real"),
            workspace: HeaderValue::from_static("w"),
            workspace_id: "w".into(),
            fedramp: false,
            way: Way {
                host: Some(HeaderValue::from_static("eu.up.test")),
                routing: Some(HeaderValue::from_static("us")),
            },
        };
        identify(&mut up, &pass);
        assert_eq!((&up["host"], up.get(ROUTING)), (&"up.test".parse().unwrap(), None));
        sign(&mut up, &pass);
        assert_eq!(
            (&up["host"], &up[ROUTING]),
            (&"eu.up.test".parse().unwrap(), &"us".parse().unwrap())
        );
        assert_eq!(
            (&up["authorization"], &up["chatgpt-account-id"]),
            (&"Bearer real".parse().unwrap(), &"w".parse().unwrap())
        );
        downwards(&mut up);
        assert!(up.contains_key("session-id"));
    }
}

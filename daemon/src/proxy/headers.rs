//! Which headers pass, and whose credential they carry.
//!
//! Upwards: everything the CLI says of itself passes as it is; hop-by-hop headers, the client key,
//! the account it believes it is and anything of ours do not. Downwards: everything passes but
//! hop-by-hop headers and cookies, which belong to an account's connection and not to the client.

use crate::vault::Pass;
use http::{HeaderMap, HeaderName, HeaderValue, header};

const ACCOUNT: HeaderName = HeaderName::from_static("chatgpt-account-id");
const FEDRAMP: HeaderName = HeaderName::from_static("x-openai-fedramp");
/// Headers of one connection, not of the message; named by the protocol.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
/// Not passed up: set anew, or none of upstream's business.
const NOT_UP: [HeaderName; 9] = [
    header::HOST,
    header::AUTHORIZATION,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    ACCOUNT,
    FEDRAMP,
];

/// A client's headers made ready to be sent; [`sign`] adds whose they are.
pub(crate) fn upwards(mut headers: HeaderMap, host: &HeaderValue) -> HeaderMap {
    strip_hops(&mut headers);
    for name in &NOT_UP {
        headers.remove(name);
    }
    if headers.keys().any(|name| name.as_str().starts_with("x-cma-")) {
        let ours: Vec<_> =
            headers.keys().filter(|name| name.as_str().starts_with("x-cma-")).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
    }
    headers.insert(header::HOST, host.clone());
    headers
}

/// Puts an account's credential in.
pub(crate) fn sign(headers: &mut HeaderMap, pass: &Pass) {
    headers.insert(header::AUTHORIZATION, pass.authorization.clone());
    headers.insert(ACCOUNT, pass.workspace.clone());
    if pass.fedramp {
        headers.insert(FEDRAMP, HeaderValue::from_static("true"));
    }
}

/// Upstream's headers made ready for the client.
pub(crate) fn downwards(headers: &mut HeaderMap) {
    strip_hops(headers);
    headers.remove(header::SET_COOKIE);
}

fn strip_hops(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()) {
        let named: Vec<HeaderName> =
            named.split(',').filter_map(|name| name.trim().parse().ok()).collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("session-id", "s"),
            ("content-encoding", "zstd"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let mut up = upwards(headers, &HeaderValue::from_static("up.test"));
        let mut left: Vec<_> = up.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-encoding", "host", "session-id"]);
        let pass = Pass {
            authorization: HeaderValue::from_static("Bearer real"),
            workspace: HeaderValue::from_static("w"),
            fedramp: false,
        };
        sign(&mut up, &pass);
        assert_eq!(
            (&up["authorization"], &up["chatgpt-account-id"]),
            (&"Bearer real".parse().unwrap(), &"w".parse().unwrap())
        );
        downwards(&mut up);
        assert!(up.contains_key("session-id"));
    }
}

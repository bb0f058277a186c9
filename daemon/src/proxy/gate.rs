//! Who may come in: decided from the head alone, before a byte of the body.
//!
//! The proxy listens on loopback, where web pages reach too. So: the `Host` must be ours (DNS
//! rebinding), an `Origin` is never ours (a page in a browser), and the client key must be good.
//! `ps/mcp` is answered 404 without a look at a key: the CLI sends none there on a loopback host.

use super::{
    keys::{Keys, Launch, Shown},
    surface::{self, Call},
};
use http::{HeaderMap, Method, StatusCode, header};
use std::sync::Arc;

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// A turn.
    Responses,
    /// Turns over a WebSocket.
    Upgrade,
    /// Which account the client key stands for.
    Whoami,
    /// The workspaces of the account.
    AccountsCheck,
    /// One of the calls around turns.
    Surface(Call),
    /// Tool servers: never.
    Mcp,
    /// Nothing of ours.
    Unknown,
}

/// Why somebody may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: &'static str,
}

/// What a request's method and path mean.
pub(crate) fn route(method: &Method, path: &str, headers: &HeaderMap) -> Route {
    let get = *method == Method::GET;
    match path {
        "/codex/responses" if *method == Method::POST => return Route::Responses,
        "/codex/responses" if get && headers.contains_key(header::UPGRADE) => {
            return Route::Upgrade;
        },
        "/api/accounts/v1/user-auth-credential/whoami" if get => return Route::Whoami,
        _ => {},
    }
    let Some(place) = surface::place(path) else { return Route::Unknown };
    match place.as_ref() {
        "/ps/mcp" => Route::Mcp,
        "/wham/accounts/check" if get => Route::AccountsCheck,
        place => surface::find(method, place).map_or(Route::Unknown, Route::Surface),
    }
}

/// Whether a request may come in at all, whatever it wants.
pub(crate) fn origin(headers: &HeaderMap, port: u16) -> Result<(), Refusal> {
    if headers.contains_key(header::ORIGIN) {
        return Err(Refusal {
            status: StatusCode::FORBIDDEN,
            message: "requests of web pages are refused",
        });
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let ours = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok_and(|host| is_ours(host, port)),
        _ => false,
    };
    if ours {
        Ok(())
    } else {
        Err(Refusal { status: StatusCode::FORBIDDEN, message: "the Host header is not this proxy" })
    }
}

fn is_ours(host: &str, port: u16) -> bool {
    host.rsplit_once(':').is_some_and(|(name, written)| {
        matches!(name, "127.0.0.1" | "localhost" | "[::1]") && written.parse() == Ok(port)
    })
}

/// The one bearer that a request carries.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok()?.strip_prefix("Bearer "),
        _ => None,
    }
}

/// The launch whose key a request carries.
pub(crate) fn key(headers: &HeaderMap, keys: &Keys, shown: &Shown) -> Result<Arc<Launch>, Refusal> {
    let launch = bearer(headers).and_then(|key| keys.check_again(key, shown));
    launch.ok_or(Refusal {
        status: StatusCode::UNAUTHORIZED,
        message: "this needs the client key of a running launch; start codex through cma, or see \
                  `cmactl launch --print`",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_our_own_host_and_no_web_page() {
        for good in ["127.0.0.1:80", "localhost:80", "[::1]:80"] {
            assert!(origin(&headers(&[("host", good)]), 80).is_ok(), "{good}");
        }
        for bad in ["127.0.0.1", "127.0.0.1:81", "evil.test:80", "127.0.0.1.evil.test:80", "", "x"]
        {
            assert!(origin(&headers(&[("host", bad)]), 80).is_err(), "{bad}");
        }
        assert!(origin(&headers(&[]), 80).is_err());
        let twice = [("host", "localhost:80"), ("host", "evil.test:80")];
        assert!(origin(&headers(&twice), 80).is_err());
        let page = [("host", "localhost:80"), ("origin", "http://localhost:80")];
        assert_eq!(origin(&headers(&page), 80).unwrap_err().status, StatusCode::FORBIDDEN);
    }

    #[test]
    fn paths_are_routes() {
        let none = headers(&[]);
        let up = headers(&[("upgrade", "websocket")]);
        let (get, post) = (Method::GET, Method::POST);
        assert_eq!(route(&post, "/codex/responses", &none), Route::Responses);
        assert_eq!(route(&get, "/codex/responses", &up), Route::Upgrade);
        assert_eq!(route(&get, "/codex/responses", &none), Route::Unknown);
        assert_eq!(route(&post, "/backend-api/ps/mcp", &none), Route::Mcp);
        assert_eq!(route(&post, "/api/codex/ps/mcp", &none), Route::Mcp);
        for path in ["/backend-api/wham/accounts/check", "/api/codex/accounts/check"] {
            assert_eq!(route(&get, path, &none), Route::AccountsCheck);
        }
        let passed = Route::Surface(Call::Face);
        assert_eq!(route(&get, "/backend-api/ps/plugins/installed", &none), passed);
        assert_eq!(route(&get, "/backend-api/ps/plugins/../../x", &none), Route::Unknown);
        assert_eq!(route(&get, "/backend-api/ps/plugins/%2E%2e/x", &none), Route::Unknown);
        assert_eq!(route(&get, "/backend-api/wham/tasks/1", &none), passed);
        assert_eq!(route(&get, "/backend-api/wham/tasksx", &none), Route::Unknown);
        // A turn below the other base is the CLI's workspace routing gone wrong, not a turn.
        assert_eq!(route(&post, "/backend-api/codex/responses", &none), Route::Unknown);
        assert_eq!(route(&post, "/v1/chat/completions", &none), Route::Unknown);
    }
}

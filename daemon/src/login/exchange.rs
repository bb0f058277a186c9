//! Talking to the issuer: the authorize address, a code for tokens, and what the answer is worth.
//!
//! A code is sent once. It is repeated only when nothing can have been sent. Nothing of an answer
//! but a checked error word ever stands in a message: answers hold tokens.

use crate::{
    clock,
    config::Endpoint,
    fault,
    network::Network,
    store::{import, record::Tokens},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use cma_core::identity::Claims;
use cma_proto::{
    error::{ErrorCode, Refusal},
    login::LoginEnd,
};
use http::StatusCode;
use oauth2::{
    AccessToken, AuthUrl, AuthorizationCode, ClientId, CsrfToken, ExtraTokenFields,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope,
    StandardRevocableToken, StandardTokenResponse, TokenResponse as _, TokenUrl,
    basic::{
        BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
        BasicTokenType,
    },
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{pin::Pin, sync::Arc, time::Duration};

/// The official CLI's public client id (Codex CLI 0.169.0); redirect addresses are registered to it.
pub(super) const CLIENT_ID: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
/// What the official CLI asks for (Codex CLI 0.169.0).
const SCOPES: [&str; 6] = [
    "openid",
    "profile",
    "email",
    "offline_access",
    "api.connectors.read",
    "api.connectors.invoke",
];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// An answer is a few kilobytes.
const MAX_ANSWER: usize = 256 * 1024;
/// How often a connection is tried before the issuer counts as unreachable.
const TRIES: u32 = 3;
const TRY_AGAIN: Duration = Duration::from_millis(300);
/// A clock that is off by more than the time ahead of expiry at which tokens are renewed (ten
/// minutes) makes renewals come too late.
const CLOCK_TOLERANCE: u64 = 600;

/// How a sign-in ends badly: which end, and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) end: LoginEnd,
    pub(super) refusal: Refusal,
}

impl Ending {
    pub(super) fn new(
        end: LoginEnd,
        code: ErrorCode,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { end, refusal: Refusal::new(code, message, hint) }
    }
}

/// What a sign-in brought, read and checked.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) user: String,
    pub(super) workspace: String,
    pub(super) claims: Claims,
    pub(super) tokens: Tokens,
}

/// What is needed to redeem a code; used up by it.
pub(super) struct Redeemer {
    pub(super) verifier: PkceCodeVerifier,
    pub(super) redirect: String,
}

impl std::fmt::Debug for Redeemer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redeemer").field("redirect", &self.redirect).finish_non_exhaustive()
    }
}

/// The address a person is sent to, and what proves that the answer belongs to it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) url: String,
    pub(super) state: CsrfToken,
    pub(super) redeemer: Redeemer,
}

/// An answer of the issuer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    /// Seconds since 1970, of the `Date` header.
    date: Option<u64>,
    /// `Retry-After` in seconds.
    pub(super) retry_after: Option<u64>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Nothing was sent.
    #[error("{0}")]
    Unreached(String),
    /// It was sent, and nothing whole came back.
    #[error("{0}")]
    Cut(&'static str),
}

/// One issuer.
#[derive(Debug, Clone)]
pub(super) struct Issuer {
    pub(super) endpoint: Endpoint,
    client: reqwest::Client,
}

/// What the token endpoint answers besides the standard's fields. The token type hides its text.
#[derive(Debug, Serialize, Deserialize)]
struct Extra {
    id_token: Option<AccessToken>,
}

impl ExtraTokenFields for Extra {}

type Client = oauth2::Client<
    BasicErrorResponse,
    StandardTokenResponse<Extra, BasicTokenType>,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
>;

/// Carries the requests that `oauth2` makes.
struct Carrier {
    issuer: Issuer,
    seen: Arc<Mutex<Seen>>,
}

impl<'c> oauth2::AsyncHttpClient<'c> for Carrier {
    type Error = Trouble;
    type Future = Pin<Box<dyn Future<Output = Result<oauth2::HttpResponse, Trouble>> + Send + 'c>>;

    fn call(&'c self, request: oauth2::HttpRequest) -> Self::Future {
        Box::pin(async move {
            let answer = self.issuer.carry(request).await?;
            *self.seen.lock() = Seen {
                status: answer.status.as_u16(),
                date: answer.date,
                word: error_word(&answer.body),
            };
            let mut response = http::Response::new(with_type(&answer));
            *response.status_mut() = answer.status;
            Ok(response)
        })
    }
}

/// What is kept of the answer to an exchange.
#[derive(Debug, Clone, Default)]
struct Seen {
    status: u16,
    date: Option<u64>,
    word: String,
}

impl Issuer {
    /// Of that address. TLS is set up here, not at the daemon's start.
    pub(super) fn new(endpoint: Endpoint, network: &Network) -> Result<Self, String> {
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("cma/", env!("CARGO_PKG_VERSION")));
        let client = network.client(builder, &endpoint)?;
        Ok(Self { endpoint, client })
    }

    /// The address to send a person to. `again` asks the issuer to let them choose who they are
    /// instead of taking the browser's last sign-in.
    pub(super) fn ask(
        &self,
        redirect: String,
        org: Option<&str>,
        again: bool,
    ) -> Result<Asked, String> {
        let wrong = |error: oauth2::url::ParseError| format!("the issuer's address: {error}");
        let auth =
            AuthUrl::new(format!("{}/oauth/authorize", self.endpoint.base)).map_err(wrong)?;
        let back = RedirectUrl::new(redirect.clone()).map_err(wrong)?;
        let client = Client::new(ClientId::new(CLIENT_ID.to_owned()))
            .set_auth_uri(auth)
            .set_redirect_uri(back);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let mut request = client
            .authorize_url(|| CsrfToken::new_random_len(32))
            .set_pkce_challenge(challenge)
            .add_scopes(SCOPES.iter().map(|scope| Scope::new((*scope).to_owned())))
            // As the official CLI asks (0.169.0); `originator` says honestly who asks.
            .add_extra_param("id_token_add_organizations", "true")
            .add_extra_param("codex_cli_simplified_flow", "true")
            .add_extra_param("originator", "cma");
        if let Some(org) = org {
            request = request.add_extra_param("allowed_workspace_id", org.to_owned());
        }
        if again {
            request = request.add_extra_param("prompt", "login");
        }
        let (url, state) = request.url();
        // Both spell a space; the official CLI writes it this way.
        let url = String::from(url).replace('+', "%20");
        Ok(Asked { url, state, redeemer: Redeemer { verifier, redirect } })
    }

    /// Posts JSON to a path of the issuer.
    pub(super) async fn post_json(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<Answer, Trouble> {
        let request = self
            .client
            .post(format!("{}{path}", self.endpoint.base))
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json")
            .body(body.to_string());
        self.send(request).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, Trouble> {
        let mut answer = request.send().await.map_err(|error| {
            if error.is_connect() || error.is_builder() {
                let (host, why) = (&self.endpoint.authority, fault::deepest(&error));
                Trouble::Unreached(format!("could not connect to {host}: {why}"))
            } else {
                Trouble::Cut(fault::without_url(&error))
            }
        })?;
        let status = answer.status();
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let date = header(http::header::DATE)
            .and_then(|text| httpdate::parse_http_date(text).ok())
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
            .map(|since| since.as_secs());
        let retry_after = header(http::header::RETRY_AFTER).and_then(|text| text.parse().ok());
        let mut body = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|error| Trouble::Cut(fault::without_url(&error)))?
        {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Trouble::Cut("an endless answer came"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body, date, retry_after })
    }

    /// A code for tokens, checked.
    pub(super) async fn redeem(&self, code: String, with: Redeemer) -> Result<Grant, Ending> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let answer = self.exchange(code, with, Arc::clone(&seen)).await;
        let seen = seen.lock().clone();
        let answer = answer.map_err(|trouble| match trouble {
            RequestTokenError::Request(trouble) => self.unreachable(&trouble),
            RequestTokenError::ServerResponse(_)
            | RequestTokenError::Parse(..)
            | RequestTokenError::Other(_) => refused(&seen),
        })?;
        let id_token = answer.extra_fields().id_token.as_ref().map(AccessToken::secret);
        let refresh_token = answer.refresh_token().map(oauth2::RefreshToken::secret);
        let (Some(id_token), Some(refresh_token)) = (id_token, refresh_token) else {
            return Err(senseless("its answer lacks a token"));
        };
        let access = answer.access_token().secret();
        check_clock(seen.date, access)?;
        grant(id_token, access, refresh_token)
    }

    async fn exchange(
        &self,
        code: String,
        with: Redeemer,
        seen: Arc<Mutex<Seen>>,
    ) -> Result<
        StandardTokenResponse<Extra, BasicTokenType>,
        RequestTokenError<Trouble, BasicErrorResponse>,
    > {
        let wrong = |error: oauth2::url::ParseError| RequestTokenError::Other(error.to_string());
        let token = TokenUrl::new(format!("{}/oauth/token", self.endpoint.base)).map_err(wrong)?;
        let back = RedirectUrl::new(with.redirect).map_err(wrong)?;
        let client = Client::new(ClientId::new(CLIENT_ID.to_owned()))
            .set_auth_type(oauth2::AuthType::RequestBody)
            .set_token_uri(token)
            .set_redirect_uri(back);
        let http = Carrier { issuer: self.clone(), seen };
        client
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(with.verifier)
            .request_async(&http)
            .await
    }

    /// Sends what `oauth2` made; again only when nothing can have been sent.
    async fn carry(&self, request: oauth2::HttpRequest) -> Result<Answer, Trouble> {
        let (head, body) = request.into_parts();
        let mut tried = 1;
        loop {
            let again = self
                .client
                .request(head.method.clone(), head.uri.to_string())
                .headers(head.headers.clone())
                .body(body.clone());
            match self.send(again).await {
                Err(Trouble::Unreached(_)) if tried < TRIES => tried += 1,
                ended => return ended,
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    pub(super) fn unreachable(&self, trouble: &Trouble) -> Ending {
        let message = match trouble {
            Trouble::Unreached(why) => format!("the issuer is out of reach: {why}"),
            Trouble::Cut(why) => {
                format!("the issuer at {} didn't answer: {why}", self.endpoint.authority)
            },
        };
        let hint = "check the network (proxy, DNS, captive portal), then run `cmactl login` again";
        Ending::new(LoginEnd::IssuerFailed, ErrorCode::Upstream, message, hint)
    }

    /// Compares the clocks by an answer's date alone.
    pub(super) fn check_date(answer: &Answer) -> Result<(), Ending> {
        match answer.date {
            Some(date) => compare(date, clock::unix()),
            None => Ok(()),
        }
    }
}

/// The answer's body with a token type: the official CLI doesn't ask for one, the standard does.
fn with_type(answer: &Answer) -> Vec<u8> {
    if !answer.status.is_success() {
        return answer.body.clone();
    }
    match serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&answer.body) {
        Ok(mut object) if !object.contains_key("token_type") => {
            object.insert("token_type".to_owned(), "Bearer".into());
            serde_json::to_vec(&object).unwrap_or_default()
        },
        Ok(_) | Err(_) => answer.body.clone(),
    }
}

/// The issuer's word for an error, or nothing.
pub(super) fn error_word(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let error = body.get("error");
    let word = error
        .and_then(|error| error.get("code"))
        .or(error)
        .or_else(|| body.get("code"))
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    word.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(64).collect()
}

fn refused(seen: &Seen) -> Ending {
    match (seen.status, seen.word.as_str()) {
        (200..300, _) => senseless("its answer is unreadable"),
        (400 | 401 | 403, "invalid_grant" | "invalid_code" | "expired_code") => Ending::new(
            LoginEnd::CodeSpent,
            ErrorCode::Denied,
            "the issuer says that this sign-in was redeemed before or is too old",
            "run `cmactl login` again; use each link once",
        ),
        (_, "access_denied") => denied("access_denied"),
        (status, "") => senseless(&format!("it answered {status}")),
        (_, word) => senseless(&format!("it answered `{word}`")),
    }
}

/// The issuer, or the person there, said no.
pub(super) fn denied(word: &str) -> Ending {
    let message = match word {
        "access_denied" | "" => "the sign-in was refused at the issuer".to_owned(),
        word => format!("the issuer refused the sign-in: `{word}`"),
    };
    let hint = "run `cmactl login` again and allow it, or ask who administers the workspace";
    Ending::new(LoginEnd::Denied, ErrorCode::Denied, message, hint)
}

pub(super) fn senseless(what: &str) -> Ending {
    let message = format!("the issuer could not complete the sign-in: {what}");
    Ending::new(LoginEnd::IssuerFailed, ErrorCode::Upstream, message, "run `cmactl login` again")
}

fn grant(id_token: &str, access: &str, refresh_token: &str) -> Result<Grant, Ending> {
    let of_id = import::claims(id_token).ok_or_else(|| senseless("its id token is unreadable"))?;
    let of_access = import::claims(access).unwrap_or_default();
    if !access.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(senseless("its access token has impossible characters"));
    }
    if !of_access.same_identity(&of_id) {
        return Err(senseless("its two tokens belong to different accounts"));
    }
    let expires_at = of_access.expires_at;
    let claims = Claims { expires_at, ..of_id.or(of_access) };
    let user = claims.user.clone().ok_or_else(|| senseless("its tokens name no user"))?;
    let workspace =
        claims.workspace.clone().ok_or_else(|| senseless("its tokens name no workspace"))?;
    let tokens = Tokens {
        id_token: id_token.into(),
        access_token: access.into(),
        refresh_token: Some(refresh_token.into()),
    };
    Ok(Grant { user, workspace, claims, tokens })
}

/// Compares this machine's clock with the issuer's: by the answer's date, else by when the token
/// says it was made.
fn check_clock(date: Option<u64>, access: &str) -> Result<(), Ending> {
    let now = clock::unix();
    match date.or_else(|| number(access, "iat")) {
        Some(theirs) => compare(theirs, now),
        // Without either, a token that is already over tells the same.
        None => match number(access, "exp") {
            Some(exp) if exp <= now => compare(exp.saturating_sub(CLOCK_TOLERANCE), now),
            Some(_) | None => Ok(()),
        },
    }
}

fn compare(theirs: u64, ours: u64) -> Result<(), Ending> {
    let off = theirs.abs_diff(ours);
    if off <= CLOCK_TOLERANCE {
        return Ok(());
    }
    let way = if ours > theirs { "ahead of" } else { "behind" };
    Err(Ending::new(
        LoginEnd::ClockOff,
        ErrorCode::Config,
        format!("this machine's clock is {} {way} the issuer's; nothing was kept", span(off)),
        "set the clock right (`timedatectl set-ntp true`), then run `cmactl login` again",
    ))
}

fn span(seconds: u64) -> String {
    match seconds {
        0..7_200 => format!("{} minutes", seconds / 60),
        7_200..129_600 => format!("{} hours", (seconds + 1_800) / 3_600),
        _ => format!("{} days", (seconds + 43_200) / 86_400),
    }
}

/// A number out of a JWT's payload.
fn number(token: &str, name: &str) -> Option<u64> {
    let payload = token.split('.').nth(1)?;
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<serde_json::Value>(&bytes).ok()?.get(name)?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_beyond_ten_minutes_either_way() {
        for (theirs, ours) in [(1_000, 1_600), (1_600, 1_000), (5, 5)] {
            assert_eq!(compare(theirs, ours), Ok(()));
        }
        for (theirs, ours, said) in [
            (100_000, 100_000 + 86_400, "24 hours ahead of"),
            (100_000 + 86_400, 100_000, "24 hours behind"),
            (100_000, 100_601, "10 minutes ahead of"),
            (1_000_000, 100_000, "10 days behind"),
        ] {
            let ending = compare(theirs, ours).unwrap_err();
            assert_eq!(ending.end, LoginEnd::ClockOff);
            assert!(ending.refusal.message.contains(said), "{}", ending.refusal.message);
        }
    }

    #[test]
    fn refusals_of_a_code_are_told_apart() {
        let end =
            |status, word: &str| refused(&Seen { status, date: None, word: word.to_owned() }).end;
        assert_eq!(end(400, "invalid_grant"), LoginEnd::CodeSpent);
        assert_eq!(end(403, "access_denied"), LoginEnd::Denied);
        assert_eq!(end(500, ""), LoginEnd::IssuerFailed);
        assert_eq!(end(200, ""), LoginEnd::IssuerFailed);
        assert_eq!(error_word(br#"{"error":{"code":"a<b>_c"}}"#), "ab_c");
        assert_eq!(error_word(br#"{"error":"invalid_grant"}"#), "invalid_grant");
        assert_eq!(error_word(b"<html>"), "");
    }
}

//! Ending a login at the issuer, when a person asks for exactly that.

use super::{CLIENT_ID, ELSEWHERE, Renewer};
use crate::{fault, store::record::Record};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use std::time::Duration;

/// The official CLI gives up after as long (0.169.0).
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Ask<'a> {
    token: &'a str,
    token_type_hint: &'static str,
    client_id: &'static str,
}

impl Renewer {
    /// Revokes a login: its refresh token, or its access token when it has none.
    ///
    /// # Errors
    /// Why it may still be valid, for a person.
    pub(crate) async fn revoke(&self, record: &Record) -> Result<(), String> {
        if !self.roster.is_home(record) {
            return Err(ELSEWHERE.to_owned());
        }
        let tokens = &record.tokens;
        let (token, token_type_hint) = match &tokens.refresh_token {
            Some(token) => (token, "refresh_token"),
            None => (&tokens.access_token, "access_token"),
        };
        let ask = Ask { token: token.expose_secret(), token_type_hint, client_id: CLIENT_ID };
        let body = serde_json::to_vec(&ask).map_err(|_error| "it can't be asked".to_owned())?;
        let sent = self
            .client()?
            .post(format!("{}/oauth/revoke", self.config.issuer.base))
            .header(http::header::CONTENT_TYPE, "application/json")
            .timeout(TIMEOUT)
            .body(body)
            .send()
            .await
            .map_err(|error| fault::without_url(&error).to_owned())?;
        match sent.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("the issuer answered {}", status.as_u16())),
        }
    }
}

//! Renewing a credential: a single-use refresh token is sent once.
//!
//! Single flight is by construction: the pool asks for one renewal per account and generation, and
//! the actor starts one task for each asking. The task is never cancelled; a stop waits for it.
//! Order of events: note durable → request → answer → credential durable → known to anybody.
//!
//! What the issuer may answer (observed with the official CLI 0.169.0): tokens; a permanent refusal
//! (any 401, 400 `invalid_grant`, or the codes below at any status); anything else passes. When the
//! request was sent and no answer came, nobody can know whether the token is spent. The same token
//! is then sent once more, because an issuer may grant a short grace, and again later when that has no
//! answer either; a refusal of one of these means that an earlier one was processed and its answer lost,
//! and only the person can mend that. No answer is no refusal: an issuer that swallows requests for
//! hours ends no login.

mod revoke;

use crate::{
    blocking, clock,
    config::Config,
    crash::{self, Moment},
    fault::{self, Fault},
    handover,
    roster::{Renewed, Roster},
    store::{
        aside::{Evidence, redacted},
        import,
        record::{RenewalNote, Tokens},
    },
    trouble::Place,
    vault::Vault,
};
use cma_core::{
    identity::{AccountId, Claims},
    pool::RenewalFailure,
    token::Generation,
    verdict,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

/// The official CLI's public client id: the login was made with it.
const CLIENT_ID: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
/// Refusals that are final at any status.
pub(crate) const PERMANENT: [&str; 3] =
    ["refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated"];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the one repetition of a request that got no answer.
const REPEAT_AFTER: Duration = Duration::from_millis(500);
/// How often one token is sent at most while no answer comes: neither a crash in the middle nor a host
/// that swallows requests says that it is spent. With the pauses between (five minutes in the end, two
/// sends after each), eight hours.
const MAX_SENT: u32 = 200;
/// An answer is a few kilobytes.
const MAX_ANSWER: usize = 256 * 1024;
/// Cause of a login whose last renewal got no answer.
pub(crate) const UNKNOWN: &str = "refresh outcome unknown";
/// Why a credential that was made for another issuer or backend is sent to none.
const ELSEWHERE: &str = "it was imported for another upstream";

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Renewer {
    roster: Arc<Roster>,
    vault: Arc<Vault>,
    config: Arc<Config>,
    client: OnceLock<reqwest::Client>,
}

/// A credential made durable.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) generation: Generation,
    pub(crate) expires_at: Option<u64>,
}

#[derive(Serialize)]
struct Ask<'a> {
    client_id: &'static str,
    grant_type: &'static str,
    refresh_token: &'a str,
    refresh_reason: &'static str,
}

#[derive(Deserialize)]
struct Answer {
    id_token: Option<SecretString>,
    access_token: Option<SecretString>,
    refresh_token: Option<SecretString>,
}

impl Answer {
    /// Without what is there and says nothing.
    fn said(self) -> Self {
        let some = |token: Option<SecretString>| {
            token.filter(|token| !token.expose_secret().trim().is_empty())
        };
        Self {
            id_token: some(self.id_token),
            access_token: some(self.access_token),
            refresh_token: some(self.refresh_token),
        }
    }

    const fn says_something(&self) -> bool {
        self.id_token.is_some() || self.access_token.is_some() || self.refresh_token.is_some()
    }
}

/// How one request to the issuer ended.
enum Sent {
    Answered(Box<Answer>),
    Refused(String),
    /// The issuer answered that it can't now; the token is not spent.
    NotNow(String),
    /// Nothing was sent, or something on the way there answered in the issuer's place.
    Unreached(String),
    /// Nothing was sent, and nothing will be until a person does something: no trust in who answers, a
    /// proxy that refuses.
    Barred(String),
    /// It was sent and no answer came.
    Unknown(String),
}

impl Renewer {
    pub(crate) const fn new(roster: Arc<Roster>, vault: Arc<Vault>, config: Arc<Config>) -> Self {
        Self { roster, vault, config, client: OnceLock::new() }
    }

    /// Renews the credential of that generation and makes the new one durable.
    ///
    /// Not cancellation-safe: run it in a task of its own that is awaited at a stop.
    pub(crate) async fn renew(
        self: Arc<Self>,
        id: AccountId,
        generation: Generation,
    ) -> Result<Fresh, RenewalFailure> {
        let Some(_permit) = self.roster.truth().to_renew().await else {
            return handover::for_newer(Arc::clone(&self.roster), id, generation).await;
        };
        let _alone = self.roster.flights.alone(&id).await;
        if let Some(outcome) = self.done_before(&id, generation) {
            return outcome;
        }
        let outcome = Arc::clone(&self).attempt(&id, generation).await;
        match &outcome {
            Ok(fresh) => {
                tracing::info!(account = %id, generation = fresh.generation.0, "credential renewed");
            },
            Err(
                RenewalFailure::Transient(why)
                | RenewalFailure::Unreached(why)
                | RenewalFailure::Held(why),
            ) => {
                tracing::warn!(account = %id, generation = generation.0, why = &**why, "renewal failed for now");
            },
            Err(RenewalFailure::Permanent(why)) => {
                tracing::error!(account = %id, generation = generation.0, why = &**why, "login is gone");
            },
        }
        outcome
    }

    /// What another renewal of the same generation came to, or the account's removal, while this
    /// one waited for its turn. An account that left the pool and came back is a new one there and
    /// asks again; its refresh token was sent all the same.
    fn done_before(
        &self,
        id: &AccountId,
        generation: Generation,
    ) -> Option<Result<Fresh, RenewalFailure>> {
        let Some(record) = self.roster.get(id) else {
            return Some(Err(RenewalFailure::Permanent("it left the pool meanwhile".into())));
        };
        if record.generation > generation.0 {
            let (generation, expires_at) = (Generation(record.generation), record.expires_at);
            return Some(Ok(Fresh { generation, expires_at }));
        }
        if !self.roster.is_home(&record) {
            return Some(Err(RenewalFailure::Transient(ELSEWHERE.into())));
        }
        let gone = record.gone.as_ref()?;
        Some(Err(RenewalFailure::Permanent(gone.cause.as_str().into())))
    }

    async fn attempt(
        self: Arc<Self>,
        id: &AccountId,
        generation: Generation,
    ) -> Result<Fresh, RenewalFailure> {
        crash::moment(Moment::RenewalBegun);
        let Some(token) = self.vault.refresh_token(id, generation) else {
            return self.gone(id, generation, "it has no refresh token", clock::unix()).await;
        };
        let mut repeated = false;
        loop {
            let before = self.read_note(id, generation).await?;
            let note = RenewalNote {
                generation: generation.0,
                sent_at: before.as_ref().map_or_else(clock::unix, |note| note.sent_at),
                attempts: before.as_ref().map_or(1, |note| note.attempts.saturating_add(1)),
            };
            if note.attempts > MAX_SENT {
                return self.gone(id, generation, UNKNOWN, note.sent_at).await;
            }
            self.write_note(id, Some(note.clone())).await?;
            crash::moment(Moment::RenewalBeforePost);
            match self.send(id, generation, &token).await {
                Sent::Answered(answer) => return self.keep(id, generation, *answer).await,
                Sent::Refused(code) if before.is_some() => {
                    let cause = format!("{UNKNOWN} ({code})");
                    return self.gone(id, generation, &cause, note.sent_at).await;
                },
                Sent::Refused(code) => {
                    let cause = format!("the issuer refused its refresh token ({code})");
                    return self.gone(id, generation, &cause, clock::unix()).await;
                },
                Sent::Unreached(why) => {
                    self.roster.troubles().met(Place::Issuer, &why);
                    self.write_note(id, before).await?;
                    return Err(RenewalFailure::Unreached(why.into()));
                },
                Sent::Barred(why) => {
                    self.roster.troubles().met(Place::Issuer, &why);
                    self.write_note(id, before).await?;
                    return Err(RenewalFailure::Held(why.into()));
                },
                Sent::NotNow(why) => {
                    self.roster.troubles().met(Place::Issuer, &why);
                    self.write_note(id, before).await?;
                    return Err(RenewalFailure::Transient(why.into()));
                },
                Sent::Unknown(why) if !repeated => {
                    tracing::warn!(account = %id, why, "no answer to a renewal; asking once more");
                    repeated = true;
                    tokio::time::sleep(REPEAT_AFTER).await;
                },
                Sent::Unknown(why) => {
                    let why = format!("no answer to a renewal: {why}");
                    self.roster.troubles().met(Place::Issuer, &why);
                    return Err(RenewalFailure::Transient(why.into()));
                },
            }
        }
    }

    async fn send(&self, id: &AccountId, generation: Generation, token: &SecretString) -> Sent {
        let sent = self.ask(id, generation, token).await;
        if matches!(sent, Sent::Answered(_) | Sent::Refused(_)) {
            self.roster.troubles().gone(Place::Issuer);
        }
        sent
    }

    async fn ask(&self, id: &AccountId, generation: Generation, token: &SecretString) -> Sent {
        let client = match self.client() {
            Ok(client) => client,
            Err(why) => return Sent::Barred(why),
        };
        let ask = Ask {
            client_id: CLIENT_ID,
            grant_type: "refresh_token",
            refresh_token: token.expose_secret(),
            refresh_reason: "proactive_expiry",
        };
        let Ok(body) = serde_json::to_vec(&ask) else {
            return Sent::Barred("the request can't be written".to_owned());
        };
        let request = client
            .post(format!("{}/oauth/token", self.config.issuer.base))
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json")
            .body(body);
        let sent = tokio::select! {
            sent = request.send() => sent,
            never = crash::posted() => match never {},
        };
        let mut answer = match sent {
            Ok(answer) => answer,
            Err(error) if error.is_connect() || error.is_builder() => {
                let host = &self.config.issuer.authority;
                let why = format!("could not connect to {host}: {}", fault::deepest(&error));
                let barred = error.is_builder() || fault::is_barred_inside(&error);
                return if barred { Sent::Barred(why) } else { Sent::Unreached(why) };
            },
            Err(error) => return Sent::Unknown(fault::without_url(&error).to_owned()),
        };
        let status = answer.status();
        if verdict::is_page(status, answer.headers()) {
            return Sent::Unreached(format!(
                "a web page came instead of an answer (status {}): this network wants a sign-in, \
                 or something on the way answers for the host",
                status.as_u16()
            ));
        }
        let mut bytes = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= MAX_ANSWER => {
                    bytes.extend_from_slice(&chunk);
                },
                Ok(None) => break,
                Ok(Some(_too_much)) => return Sent::Unknown("an endless answer".to_owned()),
                Err(error) => return Sent::Unknown(fault::without_url(&error).to_owned()),
            }
        }
        crash::moment(Moment::RenewalAnswered);
        let judged = judge(status, &bytes);
        if let Sent::Refused(code) = &judged {
            let evidence = Evidence {
                generation: generation.0,
                at: clock::unix(),
                status: status.as_u16(),
                code: code.clone(),
                excerpt: redacted(&bytes),
            };
            let account = id.clone();
            let kept = blocking::with(&self.roster, move |roster| {
                roster.store().save_evidence(&account, &evidence)
            })
            .await;
            if let Err(fault) = kept {
                tracing::warn!(account = %id, %fault, "can't keep why a login was refused");
            }
        }
        judged
    }

    /// Makes the new credential durable. It exists nowhere else: a full disk is waited for.
    async fn keep(
        self: Arc<Self>,
        id: &AccountId,
        from: Generation,
        answer: Answer,
    ) -> Result<Fresh, RenewalFailure> {
        let Some(known) = self.roster.get_or_removed(id) else {
            return Err(RenewalFailure::Permanent("it left the pool meanwhile".into()));
        };
        let claims = |token: Option<&SecretString>| {
            token.and_then(|token| import::claims(token.expose_secret())).unwrap_or_default()
        };
        let (of_id, of_access) =
            (claims(answer.id_token.as_ref()), claims(answer.access_token.as_ref()));
        let own = Claims {
            user: Some(known.user.clone()),
            workspace: Some(known.workspace.clone()),
            ..Claims::default()
        };
        if !own.same_identity(&of_id) || !own.same_identity(&of_access) {
            let cause = "the issuer answered for another account";
            return self.gone(id, from, cause, clock::unix()).await;
        }
        let expires_at =
            if answer.access_token.is_some() { of_access.expires_at } else { known.expires_at };
        let email = of_id.email.clone();
        let plan = of_access.plan.or(of_id.plan);
        let tokens = Tokens {
            id_token: answer.id_token.unwrap_or_else(|| known.tokens.id_token.clone()),
            access_token: answer.access_token.unwrap_or_else(|| known.tokens.access_token.clone()),
            refresh_token: answer.refresh_token.or_else(|| known.tokens.refresh_token.clone()),
        };
        let mut pause = Duration::from_millis(100);
        crash::moment(Moment::RenewalBeforeSave);
        loop {
            let new = Renewed {
                tokens: tokens.clone(),
                expires_at,
                plan: plan.clone(),
                email: email.clone(),
            };
            let account = id.clone();
            match blocking::with(&self.roster, move |roster| roster.renewed(&account, from, new))
                .await
            {
                Ok(record) => {
                    self.roster.troubles().gone(Place::Disk);
                    return Ok(Fresh {
                        generation: Generation(record.generation),
                        expires_at: record.expires_at,
                    });
                },
                Err(fault) if fault.code() == cma_proto::error::ErrorCode::Store => {
                    tracing::error!(account = %id, %fault, "a new credential can't be saved yet");
                    self.roster
                        .troubles()
                        .met(Place::Disk, &format!("a renewed login can't be saved: {fault}"));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                },
                Err(fault) => return Err(RenewalFailure::Transient(fault.to_string().into())),
            }
        }
    }

    async fn gone(
        self: Arc<Self>,
        id: &AccountId,
        generation: Generation,
        cause: &str,
        since: u64,
    ) -> Result<Fresh, RenewalFailure> {
        let (account, text) = (id.clone(), cause.to_owned());
        if let Err(fault) = blocking::with(&self.roster, move |roster| {
            roster.set_gone(&account, generation, &text, since)
        })
        .await
        {
            tracing::error!(account = %id, %fault, "can't save that a login is gone");
        }
        Err(RenewalFailure::Permanent(cause.into()))
    }

    async fn read_note(
        self: &Arc<Self>,
        id: &AccountId,
        generation: Generation,
    ) -> Result<Option<RenewalNote>, RenewalFailure> {
        let account = id.clone();
        let note =
            blocking::with(&self.roster, move |roster| roster.store().renewal_note(&account)).await;
        // A note of an older generation was answered: its credential is the current one.
        note.map(|note| note.filter(|note| note.generation == generation.0)).map_err(transient)
    }

    async fn write_note(
        self: &Arc<Self>,
        id: &AccountId,
        note: Option<RenewalNote>,
    ) -> Result<(), RenewalFailure> {
        let account = id.clone();
        blocking::with(&self.roster, move |roster| match note {
            Some(note) => roster.store().note_renewal(&account, &note),
            None => roster.store().clear_renewal_note(&account),
        })
        .await
        .inspect(|()| self.roster.troubles().gone(Place::Disk))
        .map_err(|fault| {
            let why = format!("renewals wait for the disk: {fault}");
            self.roster.troubles().met(Place::Disk, &why);
            // Nothing was sent, or what came of it needs no note any more.
            RenewalFailure::Held(why.into())
        })
    }

    fn client(&self) -> Result<&reqwest::Client, String> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // TLS is set up at the first renewal, not at the start: it costs memory and milliseconds.
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("cma/", env!("CARGO_PKG_VERSION")));
        let client = self.config.network.client(builder, &self.config.issuer)?;
        Ok(self.client.get_or_init(|| client))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "reads better at `map_err`")]
fn transient(fault: Fault) -> RenewalFailure {
    RenewalFailure::Transient(fault.to_string().into())
}

fn judge(status: reqwest::StatusCode, bytes: &[u8]) -> Sent {
    let body: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    if status.is_success() {
        // All fields are optional; those that are there replace what was (0.169.0, observed).
        let said = serde_json::from_slice::<Answer>(bytes).map(Answer::said);
        return match said {
            Ok(answer) if answer.says_something() => Sent::Answered(Box::new(answer)),
            // It may have rotated the token and told it in a shape we can't read.
            Ok(_) | Err(_) => Sent::Unknown("an unreadable answer".to_owned()),
        };
    }
    let error = body.get("error");
    let code = error
        .and_then(|error| error.get("code"))
        .or(error)
        .or_else(|| body.get("code"))
        .and_then(serde_json::Value::as_str)
        .filter(|code| {
            code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        })
        .unwrap_or_default();
    let permanent = PERMANENT.contains(&code)
        || status == reqwest::StatusCode::UNAUTHORIZED
        || (status == reqwest::StatusCode::BAD_REQUEST && code == "invalid_grant");
    let shown = if code.is_empty() { status.as_u16().to_string() } else { code.to_owned() };
    if permanent {
        Sent::Refused(shown)
    } else {
        Sent::NotNow(format!("the issuer answered {shown}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::StatusCode;

    #[test]
    fn refusals_are_permanent_where_the_official_cli_holds_them_so() {
        let judged = |status: StatusCode, body: &str| match judge(status, body.as_bytes()) {
            Sent::Refused(code) => format!("refused {code}"),
            Sent::NotNow(_) => "later".to_owned(),
            Sent::Unknown(_) => "unknown".to_owned(),
            Sent::Answered(_) => "answered".to_owned(),
            Sent::Unreached(_) | Sent::Barred(_) => "not sent".to_owned(),
        };
        let reused = r#"{"error":{"code":"refresh_token_reused"}}"#;
        assert_eq!(judged(StatusCode::UNAUTHORIZED, reused), "refused refresh_token_reused");
        assert_eq!(
            judged(StatusCode::INTERNAL_SERVER_ERROR, reused),
            "refused refresh_token_reused"
        );
        assert_eq!(judged(StatusCode::UNAUTHORIZED, "x"), "refused 401");
        let grant = r#"{"error":"invalid_grant"}"#;
        assert_eq!(judged(StatusCode::BAD_REQUEST, grant), "refused invalid_grant");
        assert_eq!(judged(StatusCode::BAD_REQUEST, "{}"), "later");
        assert_eq!(judged(StatusCode::TOO_MANY_REQUESTS, "{}"), "later");
        assert_eq!(judged(StatusCode::OK, "{}"), "unknown");
        assert_eq!(judged(StatusCode::OK, r#"{"access_token":"x"}"#), "answered");
        // A token that was rotated is kept whatever else is missing; an empty one is none.
        assert_eq!(judged(StatusCode::OK, r#"{"refresh_token":"x"}"#), "answered");
        assert_eq!(judged(StatusCode::OK, r#"{"id_token":"x","access_token":null}"#), "answered");
        let empty = r#"{"access_token":"","refresh_token":" "}"#;
        assert_eq!(judged(StatusCode::OK, empty), "unknown");
        let half: Answer =
            serde_json::from_str(r#"{"access_token":"x","refresh_token":""}"#).unwrap();
        assert!(half.said().refresh_token.is_none(), "the one before stays");
    }
}

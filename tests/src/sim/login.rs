//! The issuer's sign-in: the authorize page, the codes for other devices, and codes for tokens.
//!
//! A code is redeemed once, within ten minutes, by whoever holds the verifier of its challenge and
//! names the redirect it was made for; a second redeeming ends what the first one bought. The person
//! at the page is a [`Consent`]: one who agrees at once, one who refuses, or nobody, in which case
//! the page has a form for a real browser. What the official CLI sends is asked for strictly.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::Sim;
use super::clock::{UnixMs, http_date};
use super::config::CLIENT_ID;
use super::issuer::{fields, granted, unescape};
use super::state::{AccountNo, State};
use super::wire::{Answer, Call, Gone, Reply, text};

/// How long a code may wait.
const CODE_LIFE: Duration = Duration::from_secs(600);

/// What the official CLI asks for, in any order (0.169.0).
const SCOPES: [&str; 6] = [
    "openid",
    "profile",
    "email",
    "offline_access",
    "api.connectors.read",
    "api.connectors.invoke",
];

/// Where browsers may be sent back to.
const REDIRECTS: [&str; 4] = [
    "http://127.0.0.1:1455/auth/callback",
    "http://127.0.0.1:1457/auth/callback",
    "http://localhost:1455/auth/callback",
    "http://localhost:1457/auth/callback",
];

/// What the person at the issuer's page does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Consent {
    /// Agrees at once as that account.
    Agree(String),
    /// Refuses at once.
    Refuse,
    /// Somebody has to: the page shows a form, a device waits.
    #[default]
    Ask,
}

/// What the issuer knows of sign-ins under way.
#[derive(Debug, Default)]
pub(super) struct Logins {
    consent: Consent,
    codes: BTreeMap<String, Code>,
    devices: BTreeMap<String, Device>,
    no_devices: bool,
    interval: u64,
    clock_off: i64,
    exchanged: u64,
    replayed: u64,
    serial: u64,
}

#[derive(Debug)]
struct Code {
    owner: AccountNo,
    challenge: String,
    redirect: String,
    made: UnixMs,
    /// The refresh token it bought.
    bought: Option<String>,
}

#[derive(Debug)]
struct Device {
    id: String,
    verdict: Consent,
}

impl Logins {
    fn fresh(&mut self, kind: &str) -> String {
        self.serial += 1;
        format!("{kind}-{}-{:016x}", self.serial, fastrand::u64(..))
    }

    fn code(&mut self, owner: AccountNo, challenge: &str, redirect: &str) -> String {
        let name = self.fresh("ac");
        let code = Code {
            owner,
            challenge: challenge.to_owned(),
            redirect: redirect.to_owned(),
            made: UnixMs::now(),
            bought: None,
        };
        self.codes.insert(name.clone(), code);
        name
    }
}

impl Sim {
    /// Sets what the person at the issuer's page does.
    pub fn consent(&self, consent: Consent) {
        self.shared.state.lock().logins.consent = consent;
    }

    /// Sets whether there are codes for other devices, and how often to ask about one.
    pub fn device_codes(&self, enabled: bool, interval_secs: u64) {
        let logins = &mut self.shared.state.lock().logins;
        logins.no_devices = !enabled;
        logins.interval = interval_secs;
    }

    /// Decides about a code that a device shows, as its person does on the page.
    pub fn decide_device(&self, user_code: &str, consent: Consent) {
        if let Some(device) = self.shared.state.lock().logins.devices.get_mut(user_code) {
            device.verdict = consent;
        }
    }

    /// The codes that devices show now.
    pub fn user_codes(&self) -> Vec<String> {
        self.shared.state.lock().logins.devices.keys().cloned().collect()
    }

    /// Puts the issuer's clock that many seconds ahead (or behind, when negative): dates of its
    /// answers and times in the tokens of sign-ins.
    pub fn set_login_clock(&self, ahead_secs: i64) {
        self.shared.state.lock().logins.clock_off = ahead_secs;
    }

    /// Codes redeemed, and codes that were presented again.
    pub fn codes_redeemed(&self) -> (u64, u64) {
        let logins = &self.shared.state.lock().logins;
        (logins.exchanged, logins.replayed)
    }

    /// A code as an authorize page would give it out, for a forged callback.
    #[track_caller]
    pub fn stray_code(&self, account: &str, redirect: &str) -> String {
        self.known(account, |state, no| state.logins.code(no, "another-challenge", redirect))
    }
}

/// Whether a path is served here.
pub(super) fn serves(path: &str) -> bool {
    path == "/oauth/authorize"
        || path == "/codex/device"
        || path.starts_with("/api/accounts/deviceauth/")
}

/// Serves a request to one of those paths.
pub(super) async fn serve(mut call: Call) -> Answer {
    let fault = call.shared.state.lock().take_fault(None, super::faults::Route::Login);
    let reply = match call.early(fault).await? {
        super::wire::Early::Instead(reply) => reply,
        super::wire::Early::Pass(_) => route(&call),
    };
    let reply = dated(&call, reply);
    Ok(reply.send(&mut call.open))
}

fn route(call: &Call) -> Reply {
    match (call.head.method.as_str(), call.head.uri.path()) {
        ("GET", "/oauth/authorize") => authorize(call, &query(call)),
        ("POST", "/oauth/authorize") => decided(call, &fields(call)),
        ("GET", "/codex/device") => device_page(""),
        ("POST", "/codex/device") => device_decided(call, &fields(call)),
        ("POST", "/api/accounts/deviceauth/usercode") => user_code(call),
        ("POST", "/api/accounts/deviceauth/token") => device_token(call),
        _ => Reply::json(404, &json!({ "detail": "Not Found" })),
    }
}

type Fields = BTreeMap<String, String>;

fn query(call: &Call) -> Fields {
    let pairs = call.head.uri.query().unwrap_or_default().split('&');
    pairs.filter_map(|it| it.split_once('=')).map(|(n, v)| (unescape(n), unescape(v))).collect()
}

fn field<'f>(fields: &'f Fields, name: &str) -> &'f str {
    fields.get(name).map_or("", String::as_str)
}

/// What is wrong with what a client asks for.
fn faults(asked: &Fields) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, wanted) in [
        ("response_type", "code"),
        ("client_id", CLIENT_ID),
        ("code_challenge_method", "S256"),
        ("id_token_add_organizations", "true"),
        ("codex_cli_simplified_flow", "true"),
    ] {
        if field(asked, name) != wanted {
            wrong.push(format!("`{name}` is not `{wanted}`"));
        }
    }
    let scopes: BTreeSet<_> = field(asked, "scope").split(' ').collect();
    if scopes != BTreeSet::from(SCOPES) {
        wrong.push("`scope` is not what the CLI asks for".to_owned());
    }
    for name in ["code_challenge", "state"] {
        if field(asked, name).len() != 43 {
            wrong.push(format!("`{name}` is not 32 bytes of base64url"));
        }
    }
    if !REDIRECTS.contains(&field(asked, "redirect_uri")) {
        wrong.push("`redirect_uri` is not registered".to_owned());
    }
    if field(asked, "originator").is_empty() {
        wrong.push("no `originator`".to_owned());
    }
    wrong
}

fn authorize(call: &Call, asked: &Fields) -> Reply {
    let wrong = faults(asked);
    for what in &wrong {
        call.breach(what);
    }
    if !wrong.is_empty() {
        return page(400, "Not possible", &escape(&wrong.join("; ")));
    }
    let consent = call.shared.state.lock().logins.consent.clone();
    match consent {
        Consent::Agree(name) => agreed(call, asked, &name),
        Consent::Refuse => back(asked, "error=access_denied&error_description=no"),
        Consent::Ask => form(call, asked),
    }
}

/// A page as a person sees it: who they want to be, yes or no.
fn form(call: &Call, asked: &Fields) -> Reply {
    let names: Vec<String> =
        call.shared.state.lock().accounts.iter().map(|it| it.spec.name.clone()).collect();
    let hidden: String = asked
        .iter()
        .map(|(n, v)| format!("<input type=hidden name=\"{}\" value=\"{}\">", escape(n), escape(v)))
        .collect();
    let choices: String =
        names.iter().map(|name| format!("<option>{}</option>", escape(name))).collect();
    let body = format!(
        "<form method=post action=\"/oauth/authorize\">{hidden}\
         <label>Account <select name=account>{choices}</select></label> \
         <button name=decision value=allow>Allow</button> \
         <button name=decision value=deny>Deny</button></form>"
    );
    page(200, "Sign in to the simulated issuer", &body)
}

fn decided(call: &Call, sent: &Fields) -> Reply {
    if field(sent, "decision") != "allow" {
        return back(sent, "error=access_denied");
    }
    agreed(call, sent, field(sent, "account"))
}

fn agreed(call: &Call, asked: &Fields, name: &str) -> Reply {
    let mut state = call.shared.state.lock();
    let Some(no) = state.find(name) else {
        return page(400, "Nobody", "no such account");
    };
    let (challenge, redirect) = (field(asked, "code_challenge"), field(asked, "redirect_uri"));
    let code = state.logins.code(no, challenge, redirect);
    back(asked, &format!("code={code}&scope=openid"))
}

fn back(asked: &Fields, with: &str) -> Reply {
    let (to, state) = (field(asked, "redirect_uri"), field(asked, "state"));
    if !REDIRECTS.contains(&to) {
        return page(400, "Not possible", "no such redirect");
    }
    let location = format!("{to}?{with}&state={state}");
    Reply { code: 302, headers: vec![("location".to_owned(), location)], body: String::new() }
}

fn user_code(call: &Call) -> Reply {
    if !is_json(call) || field(&fields(call), "client_id") != CLIENT_ID {
        call.breach("a device sign-in that is not JSON with the CLI's client id");
    }
    let mut state = call.shared.state.lock();
    if state.logins.no_devices {
        return Reply::json(404, &json!({ "detail": "Not Found" }));
    }
    let id = state.logins.fresh("da");
    let letters: String = (0..4).map(|_| fastrand::uppercase()).collect();
    let user_code = format!("{letters}-{:05}", fastrand::u32(0..100_000));
    let verdict = state.logins.consent.clone();
    state.logins.devices.insert(user_code.clone(), Device { id: id.clone(), verdict });
    let interval = state.logins.interval.max(1).to_string();
    let body = json!({ "device_auth_id": id, "user_code": user_code, "interval": interval });
    Reply::json(200, &body)
}

fn device_token(call: &Call) -> Reply {
    let sent = fields(call);
    if !is_json(call) {
        call.breach("a device's question that is not JSON");
    }
    let redirect = format!("http://{}/deviceauth/callback", call.shared.addr);
    let state = &mut *call.shared.state.lock();
    let asked = state.logins.devices.get(field(&sent, "user_code"));
    let Some(device) = asked.filter(|it| it.id == field(&sent, "device_auth_id")) else {
        return Reply::json(400, &json!({ "error": { "code": "deviceauth_unknown" } }));
    };
    match device.verdict.clone() {
        Consent::Ask => Reply::json(403, &json!({ "error": { "code": "deviceauth_pending" } })),
        Consent::Refuse => Reply::json(400, &json!({ "error": { "code": "access_denied" } })),
        Consent::Agree(name) => {
            let Some(no) = state.find(&name) else {
                return Reply::json(500, &json!({ "error": { "code": "no_such_account" } }));
            };
            state.logins.devices.remove(field(&sent, "user_code"));
            let verifier = state.logins.fresh("verifier-of-the-issuer-forty-three-letters");
            let challenge = challenge(&verifier);
            let code = state.logins.code(no, &challenge, &redirect);
            let body = json!({
                "authorization_code": code, "code_challenge": challenge, "code_verifier": verifier,
            });
            Reply::json(200, &body)
        },
    }
}

fn device_page(said: &str) -> Reply {
    let body = format!(
        "<p>{}</p><form method=post action=\"/codex/device\"><label>Code <input name=user_code></label> \
         <label>Account <input name=account></label> <button>Allow</button></form>",
        escape(said)
    );
    page(200, "Sign in on another device", &body)
}

fn device_decided(call: &Call, sent: &Fields) -> Reply {
    let mut state = call.shared.state.lock();
    match state.logins.devices.get_mut(field(sent, "user_code").trim()) {
        Some(device) => {
            device.verdict = Consent::Agree(field(sent, "account").to_owned());
            drop(state);
            device_page("You can close this page.")
        },
        None => {
            drop(state);
            device_page("There is no such code.")
        },
    }
}

/// A code for tokens.
pub(super) async fn exchange(call: &mut Call, form: &Fields) -> Result<Reply, Gone> {
    let fault = call.shared.state.lock().take_fault(None, super::faults::Route::Login);
    let after = match call.early(fault).await? {
        super::wire::Early::Instead(reply) => return Ok(dated(call, reply)),
        super::wire::Early::Pass(after) => after,
    };
    if !text(&call.head.headers, "content-type")
        .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"))
    {
        call.breach("a code that is not sent as a form");
    }
    if field(form, "client_id") != CLIENT_ID {
        call.breach("a code redeemed with another client id");
    }
    for name in form.keys() {
        let known = ["grant_type", "client_id", "code", "redirect_uri", "code_verifier"];
        if !known.contains(&name.as_str()) {
            call.breach(&format!("`{name}` is nothing the CLI sends with a code"));
        }
    }
    let reply = redeem(&mut call.shared.state.lock(), form);
    call.late(after).await?;
    Ok(dated(call, reply))
}

fn redeem(state: &mut State, form: &Fields) -> Reply {
    let refused = || Reply::json(400, &json!({ "error": "invalid_grant" }));
    let Some(code) = state.logins.codes.get(field(form, "code")) else { return refused() };
    if let Some(bought) = code.bought.clone() {
        state.logins.replayed += 1;
        state.tokens.revoke(&bought);
        return refused();
    }
    let fresh = code.made.until(UnixMs::now()) < CODE_LIFE;
    let proven = challenge(field(form, "code_verifier")) == code.challenge;
    if !fresh || !proven || code.redirect != field(form, "redirect_uri") {
        return refused();
    }
    let owner = code.owner;
    let Some(account) = state.accounts.get(owner.0) else { return refused() };
    let off = state.logins.clock_off;
    let issued = state.tokens.login_at(&state.config, (owner, &account.spec), off);
    if let Some(code) = state.logins.codes.get_mut(field(form, "code")) {
        code.bought = Some(issued.refresh_token.clone());
    }
    state.logins.exchanged += 1;
    granted(&issued)
}

fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, verifier.as_bytes()))
}

fn is_json(call: &Call) -> bool {
    text(&call.head.headers, "content-type").is_some_and(|t| t.starts_with("application/json"))
}

/// The date by the issuer's own clock.
fn dated(call: &Call, reply: Reply) -> Reply {
    let off = call.shared.state.lock().logins.clock_off;
    if off == 0 {
        return reply;
    }
    let date = http_date(shifted(UnixMs::now(), off));
    reply.with(vec![("date".to_owned(), date)])
}

/// A time on a clock that is off by seconds.
pub(super) fn shifted(at: UnixMs, off: i64) -> UnixMs {
    let span = Duration::from_secs(off.unsigned_abs());
    if off < 0 { at.before(span) } else { at.after(span) }
}

fn page(code: u16, title: &str, body: &str) -> Reply {
    let body = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>\
         <h1>{title}</h1>{body}</html>\n"
    );
    let kind = ("content-type".to_owned(), "text/html; charset=utf-8".to_owned());
    Reply { code, headers: vec![kind], body }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

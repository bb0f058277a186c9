//! Signing in: the daemon owns it from the first address to the stored account.
//!
//! A client begins a sign-in and polls; it never sees a token, a verifier or, with the browser, a
//! code. Three ways lead to a code: the listener for the browser's way back ([`browser`]), the
//! issuer's own codes for other devices ([`device`]), a pasted address ([`callback`]). From there on
//! all are one: redeem ([`exchange`]), compare with what was asked for, make durable, tell the pool.
//!
//! A sign-in ends exactly once, in one of the ways of [`LoginEnd`] or with an account. It takes one
//! code: what comes after that is told so. When its client is gone for a minute, it ends as well.
//! The redeeming itself is never cancelled, and a stop of the daemon waits for it: a code that was
//! sent has become a credential.

mod browser;
mod callback;
mod device;
mod exchange;
mod page;

use crate::{
    actor,
    app::Tasks,
    blocking, clock,
    config::{self, Config},
    fault::Fault,
    roster::{self, Roster, SignIn},
};
use callback::Callback;
use cma_core::{identity::AccountId, pool::Input};
use cma_proto::{
    error::{ErrorCode, Refusal},
    login::{
        LoginBegin, LoginDone, LoginEnd, LoginMethod, LoginReply, LoginRequest, LoginStarted,
        LoginWaiting,
    },
};
use exchange::{Ending, Grant, Issuer, Redeemer};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How long a person may take: codes for devices live as long (Codex CLI 0.169.0).
const TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// A sign-in that nobody has asked about for so long has lost its client.
const ABANDONED: Duration = Duration::from_secs(60);
/// How long an ended one can still be asked about.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long a poll waits for news.
const POLL: Duration = Duration::from_millis(500);
/// Sign-ins at once.
const MAX_OPEN: usize = 16;
/// Notes kept of one sign-in.
const MAX_NOTES: usize = 8;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Logins {
    config: Arc<Config>,
    roster: Arc<Roster>,
    actor: actor::Handle,
    /// Redeeming runs here: a stop waits for it.
    tasks: Tasks,
    open: Mutex<BTreeMap<String, Arc<Session>>>,
}

/// Who it must turn out to be.
#[derive(Debug, Default)]
struct Expected {
    org: Option<String>,
    account: Option<(AccountId, String)>,
    email: Option<String>,
}

/// What becomes of a new account.
#[derive(Debug)]
struct Wish {
    label: Option<String>,
    tags: Vec<String>,
    enabled: bool,
}

/// One sign-in.
#[derive(Debug)]
struct Session {
    id: String,
    issuer: Issuer,
    expected: Expected,
    wish: Wish,
    /// What the callback's `state` must be; none for a device, which has no callback.
    state: Option<oauth2::CsrfToken>,
    redeemer: Mutex<Option<Redeemer>>,
    stage: watch::Sender<Stage>,
    notes: Mutex<Vec<String>>,
    polled: Mutex<Instant>,
    deadline: Instant,
    timeout: Duration,
}

/// Where it is. Goes forward only.
#[derive(Debug, Clone)]
enum Stage {
    Person,
    Exchange,
    Done(Box<LoginDone>),
    Ended(Box<Ending>),
}

impl Stage {
    const fn is_final(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Ended(_))
    }
}

impl Session {
    /// Takes the person's turn away, once: true for the one caller that may redeem.
    fn begin_exchange(&self) -> bool {
        self.stage.send_if_modified(|stage| {
            let first = matches!(stage, Stage::Person);
            if first {
                *stage = Stage::Exchange;
            }
            first
        })
    }

    /// Ends it while it is the person's turn; what is being redeemed is not stopped.
    fn end(&self, ending: Ending) {
        let ended = self.stage.send_if_modified(|stage| {
            let waiting = matches!(stage, Stage::Person);
            if waiting {
                *stage = Stage::Ended(Box::new(ending));
            }
            waiting
        });
        if ended {
            self.log_end();
        }
    }

    /// The end of a redeeming.
    fn finish(&self, stage: Stage) {
        drop(self.stage.send_replace(stage));
        self.log_end();
    }

    fn log_end(&self) {
        match &*self.stage.borrow() {
            Stage::Done(done) => {
                tracing::info!(
                    login = self.id,
                    account = done.account,
                    created = done.created,
                    "signed in"
                );
            },
            Stage::Ended(ending) => {
                let why = &*ending.refusal.message;
                tracing::info!(login = self.id, end = ending.end.name(), why, "sign-in ended");
            },
            Stage::Person | Stage::Exchange => {},
        }
    }

    fn note(&self, text: &str) {
        let mut notes = self.notes.lock();
        if notes.len() < MAX_NOTES && !notes.iter().any(|note| note == text) {
            notes.push(text.to_owned());
            drop(notes);
            // Whoever polls is told now.
            self.stage.send_modify(|_same| {});
        }
    }

    /// Resolves when it has ended.
    async fn ended(&self) {
        let mut stage = self.stage.subscribe();
        // The sender lives as long as `self`.
        drop(stage.wait_for(Stage::is_final).await);
    }

    /// Whether a callback's state is ours. In constant time it needn't be: a wrong guess is answered
    /// the same way for ever, and right ones have 256 bits.
    fn owns(&self, state: &str) -> bool {
        self.state.as_ref().is_some_and(|own| own.secret() == state)
    }
}

/// Why none begins.
enum Closed {
    /// This way is closed; another may be open.
    Way(Box<Ending>),
    Fault(Fault),
}

impl From<Fault> for Closed {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Box<Ending>> for Closed {
    fn from(ending: Box<Ending>) -> Self {
        Self::Way(ending)
    }
}

impl Logins {
    pub(crate) const fn new(
        config: Arc<Config>,
        roster: Arc<Roster>,
        actor: actor::Handle,
        tasks: Tasks,
    ) -> Self {
        Self { config, roster, actor, tasks, open: Mutex::new(BTreeMap::new()) }
    }

    /// Ends those that wait for a person: another daemon has their ports from here on.
    pub(crate) fn end_all(&self) {
        for session in self.open.lock().values() {
            session.end(cancelled("another daemon has taken over"));
        }
    }

    /// One step of a sign-in.
    ///
    /// # Errors
    /// What is wrong with the step; an end of the sign-in is a reply.
    pub(crate) async fn step(self: &Arc<Self>, step: LoginRequest) -> Result<LoginReply, Fault> {
        match step {
            LoginRequest::Begin(begin) => match self.begin(begin).await {
                Ok(started) => Ok(LoginReply::Started(started)),
                Err(Closed::Way(ending)) => {
                    Ok(LoginReply::Ended { end: ending.end, refusal: ending.refusal })
                },
                Err(Closed::Fault(fault)) => Err(fault),
            },
            LoginRequest::Poll { id } => {
                let session = self.find(&id)?;
                Ok(look(&session).await)
            },
            LoginRequest::Paste { id, url } => {
                let session = self.find(&id)?;
                let callback = callback::pasted(&url).map_err(not_it)?;
                self.called_back(&session, callback).map_err(not_it)?;
                Ok(look(&session).await)
            },
            LoginRequest::Cancel { id } => {
                let session = self.find(&id)?;
                session.end(cancelled("it was cancelled"));
                Ok(look(&session).await)
            },
        }
    }

    async fn begin(self: &Arc<Self>, begin: LoginBegin) -> Result<LoginStarted, Closed> {
        let issuer = self.issuer(begin.issuer.as_deref())?;
        let issuer = Issuer::new(issuer, &self.config.network).map_err(Fault::internal)?;
        let expected = self.expected(&begin)?;
        if self.open.lock().values().filter(|it| !it.stage.borrow().is_final()).count() >= MAX_OPEN
        {
            let fault = Fault::new(
                ErrorCode::TooLarge,
                format!("{MAX_OPEN} sign-ins are under way"),
                "finish or cancel one of them first",
            );
            return Err(fault.into());
        }
        let timeout = begin.timeout_secs.map_or(TIMEOUT, Duration::from_secs);
        let timeout = timeout.clamp(Duration::from_secs(1), TIMEOUT);
        let again = !self.roster.all().is_empty();
        let org = expected.org.as_deref();
        let (mut listener, mut code) = (None, None);
        let (url, state, redeemer) = match begin.method {
            LoginMethod::Device => {
                let (asked, url) = device::ask(&issuer).await?;
                let shown = asked.user_code.clone();
                code = Some(asked);
                (url, None, (None, Some(shown)))
            },
            LoginMethod::Browser | LoginMethod::Manual => {
                let port = if begin.method == LoginMethod::Browser {
                    let bound = browser::bind()?;
                    let port = bound.port;
                    listener = Some(bound);
                    port
                } else {
                    browser::PORTS[0]
                };
                let redirect = format!("http://127.0.0.1:{port}{}", callback::PATH);
                let asked = issuer.ask(redirect, org, again).map_err(Fault::internal)?;
                (asked.url, Some(asked.state), (Some(asked.redeemer), None))
            },
        };
        let (redeemer, user_code) = redeemer;
        let roster = Arc::clone(&self.roster);
        let first = blocking::disk(move || roster.take_notice()).await?;
        let session = Arc::new(Session {
            id: fresh_id()?,
            issuer,
            expected,
            wish: Wish { label: begin.label, tags: begin.tags, enabled: begin.enabled },
            state,
            redeemer: Mutex::new(redeemer),
            stage: watch::Sender::new(Stage::Person),
            notes: Mutex::default(),
            polled: Mutex::new(Instant::now()),
            deadline: Instant::now() + timeout,
            timeout,
        });
        tracing::info!(login = session.id, method = ?begin.method, "sign-in begun");
        self.open.lock().insert(session.id.clone(), Arc::clone(&session));
        self.tasks
            .spawn_idle("sign-in clock", Self::watch(Arc::downgrade(self), Arc::clone(&session)));
        if let Some(bound) = listener {
            let serving = browser::serve(bound, Arc::clone(self), Arc::clone(&session));
            self.tasks.spawn_idle("sign-in listener", serving);
        }
        if let Some(asked) = code {
            let polling = device::poll(asked, Arc::clone(self), Arc::clone(&session));
            self.tasks.spawn_idle("sign-in by code", polling);
        }
        Ok(LoginStarted {
            id: session.id.clone(),
            method: begin.method,
            url,
            user_code,
            expires_at: clock::unix() + timeout.as_secs(),
            first,
        })
    }

    /// The issuer meant, by the rule for addresses that aren't in `config.toml`.
    fn issuer(&self, named: Option<&str>) -> Result<config::Endpoint, Fault> {
        let own = &self.config.issuer;
        let Some(named) = named.filter(|named| named.trim_end_matches('/') != own.base) else {
            return Ok(own.clone());
        };
        config::named_issuer(named).map_err(|why| {
            Fault::new(
                ErrorCode::Config,
                format!("`--issuer`: {why}"),
                "set `upstream.issuer` in the root's config.toml and restart the daemon",
            )
        })
    }

    fn expected(&self, begin: &LoginBegin) -> Result<Expected, Fault> {
        let mut expected = Expected {
            org: begin.org.clone().filter(|org| !org.is_empty()),
            account: None,
            email: begin.email.clone().filter(|email| !email.is_empty()),
        };
        if let Some(selector) = &begin.account {
            let record = self.roster.select(selector)?;
            if expected.org.as_ref().is_some_and(|org| *org != record.workspace) {
                return Err(Fault::new(
                    ErrorCode::BadRequest,
                    format!("`{}` is in workspace `{}`", roster::name(&record), record.workspace),
                    "leave out `--org`, or the account",
                ));
            }
            expected.org.get_or_insert_with(|| record.workspace.clone());
            let name = roster::name(&record).to_owned();
            expected.account = Some((AccountId::from_written(&record.id), name));
        }
        Ok(expected)
    }

    fn find(&self, id: &str) -> Result<Arc<Session>, Fault> {
        let session = self.open.lock().get(id).cloned().ok_or_else(|| {
            Fault::new(
                ErrorCode::NotFound,
                "this sign-in is not under way any more",
                "run `cmactl login` again",
            )
        })?;
        *session.polled.lock() = Instant::now();
        Ok(session)
    }

    /// Ends a sign-in whose time is over or whose client is gone, and forgets it a while later.
    async fn watch(logins: Weak<Self>, session: Arc<Session>) {
        loop {
            let abandoned = *session.polled.lock() + ABANDONED;
            tokio::select! {
                () = session.ended() => break,
                () = tokio::time::sleep_until(abandoned.min(session.deadline)) => {},
            }
            let now = Instant::now();
            if now >= session.deadline {
                session.end(timed_out(session.timeout));
            } else if now >= *session.polled.lock() + ABANDONED {
                session.end(cancelled("the program that began it is gone"));
            }
            if matches!(*session.stage.borrow(), Stage::Exchange) {
                // It has an end of its own.
                session.ended().await;
            }
        }
        tokio::time::sleep(REMEMBERED).await;
        if let Some(logins) = logins.upgrade() {
            logins.open.lock().remove(&session.id);
        }
    }

    /// What the issuer sent back through a browser or a person.
    ///
    /// # Errors
    /// Why it is not accepted; the sign-in goes on.
    fn called_back(
        self: &Arc<Self>,
        session: &Arc<Session>,
        callback: Callback,
    ) -> Result<(), &'static str> {
        let (Callback::Code { state, .. } | Callback::Refused { state, .. }) = &callback;
        if !session.owns(state) {
            session.note(
                "an answer to another sign-in came and was refused (its `state` is not ours)",
            );
            return Err("its `state` belongs to another sign-in");
        }
        match callback {
            Callback::Refused { error, .. } => {
                session.end(exchange::denied(&error));
                Ok(())
            },
            Callback::Code { code, .. } => {
                let redeemer = session.redeemer.lock().take();
                let begun = redeemer.is_some_and(|with| self.redeem(session, code, with));
                begun.then_some(()).ok_or("this sign-in has had its answer already")
            },
        }
    }

    /// Starts redeeming a code; false when the sign-in has ended or has had one.
    fn redeem(self: &Arc<Self>, session: &Arc<Session>, code: String, with: Redeemer) -> bool {
        if !session.begin_exchange() {
            return false;
        }
        let (logins, session) = (Arc::clone(self), Arc::clone(session));
        self.tasks.spawn("sign-in", async move {
            let Some(_permit) = logins.roster.truth().to_renew().await else {
                if let Err(fault) = logins.roster.truth().given().check() {
                    session.finish(Stage::Ended(Box::new(not_stored(fault))));
                }
                return;
            };
            let granted = session.issuer.redeem(code, with).await;
            let stage = match granted {
                Ok(grant) => match logins.keep(&session, grant).await {
                    Ok(done) => Stage::Done(Box::new(done)),
                    Err(ending) => Stage::Ended(Box::new(ending)),
                },
                Err(ending) => Stage::Ended(Box::new(ending)),
            };
            session.finish(stage);
        });
        true
    }

    /// Compares with what was asked for; then disk, memory, pool.
    async fn keep(&self, session: &Session, grant: Grant) -> Result<LoginDone, Ending> {
        wrong_account(&session.expected, &grant).map_or(Ok(()), Err)?;
        let login = SignIn {
            user: grant.user,
            workspace: grant.workspace,
            claims: grant.claims,
            tokens: grant.tokens,
            issuer: session.issuer.endpoint.base.clone(),
            label: session.wish.label.clone(),
            tags: session.wish.tags.clone(),
            enabled: session.wish.enabled,
        };
        let roster = Arc::clone(&self.roster);
        let kept = blocking::disk(move || roster.sign_in(login)).await.map_err(not_stored)?;
        let seed = self.roster.seed(&kept.record);
        self.actor.command(Input::Upsert(seed)).await.map_err(|_gone| {
            not_stored(Fault::internal("the pool is gone; the account is on disk"))
        })?;
        let record = kept.record;
        let mut notes = session.notes.lock().clone();
        notes.extend(kept.notes);
        Ok(LoginDone {
            account: record.id.clone(),
            name: roster::name(&record).to_owned(),
            email: record.email.clone(),
            plan: record.plan.clone(),
            workspace: record.workspace.clone(),
            created: kept.created,
            accounts: u32::try_from(kept.accounts).unwrap_or(u32::MAX),
            notes,
        })
    }
}

/// How it stands, once there is news or a moment has passed.
async fn look(session: &Session) -> LoginReply {
    let mut news = session.stage.subscribe();
    if !news.borrow().is_final() {
        drop(tokio::time::timeout(POLL, news.changed()).await);
    }
    let stage = session.stage.borrow().clone();
    let stage = match stage {
        Stage::Done(done) => return LoginReply::Done(*done),
        Stage::Ended(ending) => {
            return LoginReply::Ended { end: ending.end, refusal: ending.refusal };
        },
        Stage::Person => "person",
        Stage::Exchange => "exchange",
    };
    LoginReply::Waiting(LoginWaiting {
        stage: stage.to_owned(),
        seconds_left: session.deadline.saturating_duration_since(Instant::now()).as_secs(),
        notes: session.notes.lock().clone(),
    })
}

/// What is wrong with who signed in; `None` when it is who was asked for.
fn wrong_account(expected: &Expected, grant: &Grant) -> Option<Ending> {
    let id = AccountId::of(&grant.user, &grant.workspace);
    let email = grant.claims.email.as_deref().unwrap_or("an account without an e-mail");
    let wanted = if let Some((_, name)) = expected.account.as_ref().filter(|(own, _)| *own != id) {
        format!("`{name}`")
    } else if let Some(org) = expected.org.as_ref().filter(|org| **org != grant.workspace) {
        format!("workspace `{org}`")
    } else {
        let other = |wanted: &&String| !wanted.eq_ignore_ascii_case(email);
        format!("`{}`", expected.email.as_ref().filter(other)?)
    };
    Some(Ending::new(
        LoginEnd::WrongAccount,
        ErrorCode::Negative,
        format!(
            "{email} in workspace `{}` signed in, and {wanted} was asked for; nothing was kept",
            grant.workspace
        ),
        "run the command again and choose the other account or workspace in the browser",
    ))
}

fn timed_out(after: Duration) -> Ending {
    let shown = match after.as_secs() {
        seconds if seconds >= 120 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} s"),
    };
    let message = format!("nobody signed in within {shown}; nothing was changed");
    Ending::new(LoginEnd::TimedOut, ErrorCode::Negative, message, "run `cmactl login` again")
}

fn cancelled(why: &str) -> Ending {
    let message = format!("the sign-in was ended: {why}; nothing was changed");
    Ending::new(LoginEnd::Cancelled, ErrorCode::Negative, message, "run `cmactl login` again")
}

fn not_stored(fault: Fault) -> Ending {
    let Refusal { code, message, hint } = fault.refusal;
    Ending::new(LoginEnd::NotStored, code, format!("the account was not stored: {message}"), hint)
}

fn not_it(why: &str) -> Fault {
    let code =
        if why.contains("`state` belongs") { ErrorCode::Denied } else { ErrorCode::BadRequest };
    Fault::new(
        code,
        format!("what was pasted is refused: {why}"),
        "copy the whole address from the browser's address bar after signing in",
    )
}

fn fresh_id() -> Result<String, Fault> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| Fault::internal(format!("no randomness: {error}")))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests;

//! Backups and the seal, as clients ask for them.

use super::convert::stopping;
use crate::{
    app::App,
    blocking, cache,
    fault::Fault,
    roster::keep::{Outcome, Unlocked},
    store::{
        backup::{KEPT, Listed},
        keyring::Keyring,
        record::Record,
        seal::{Method, SealReport},
    },
};
use cma_core::{identity::AccountId, pool::Input};
use cma_proto::{
    error::ErrorCode,
    message::Reply,
    survive::{BackupInfo, Restored, RestoredAccount, SealBy, SealInfo, Secret, Survive, Survived},
};
use secrecy::{ExposeSecret as _, SecretString};
use std::sync::Arc;

/// A derivation takes a good part of a second; somebody who guesses gets no more than these.
const MAX_PASSPHRASE: usize = 1024;

/// Answers one request of this family.
pub(super) async fn handle(app: &Arc<App>, asked: Survive) -> Result<Reply, Fault> {
    let survived = match asked {
        Survive::BackupCreate { name } => {
            let made =
                blocking::with(&app.roster, move |roster| roster.back_up(name.as_deref())).await?;
            tracing::info!(name = made.name, accounts = made.accounts, "backup made");
            Survived::Backup(info(made))
        },
        Survive::BackupList => {
            let all = blocking::with(&app.roster, |roster| roster.store().backups()).await?;
            Survived::Backups(all.into_iter().map(info).collect())
        },
        Survive::BackupRestore { name, preview } => restore(app, name, preview).await?,
        Survive::BackupPrune { keep } => {
            let keep = usize::try_from(keep).unwrap_or(KEPT);
            Survived::Pruned(blocking::with(&app.roster, move |roster| roster.prune(keep)).await?)
        },
        Survive::SealOn { by } => {
            let (by, keyring) = (method(by)?, keyring(app));
            let report =
                blocking::with(&app.roster, move |roster| roster.seal_on(&by, &keyring)).await?;
            tracing::info!(files = report.sealed, "the root is sealed");
            Survived::Seal(seal(report))
        },
        Survive::SealOff => {
            let keyring = keyring(app);
            let report =
                blocking::with(&app.roster, move |roster| roster.seal_off(&keyring)).await?;
            tracing::warn!(files = report.plain, "the root is not sealed any more");
            Survived::Seal(seal(report))
        },
        Survive::SealStatus => Survived::Seal(seal(
            blocking::with(&app.roster, |roster| roster.store().seal_report()).await?,
        )),
        Survive::SealRekey { by } => {
            let (by, keyring) = (method(by)?, keyring(app));
            let report =
                blocking::with(&app.roster, move |roster| roster.rekey(&by, &keyring)).await?;
            tracing::info!(files = report.sealed, "the root is sealed under a new key");
            Survived::Seal(seal(report))
        },
        Survive::Unlock { passphrase } => unlock(app, passphrase).await?,
    };
    Ok(Reply::Survived(survived))
}

async fn restore(app: &Arc<App>, name: String, preview: bool) -> Result<Survived, Fault> {
    let wanted = name.clone();
    let outcome =
        blocking::with(&app.roster, move |roster| roster.restore(&wanted, preview)).await?;
    let Outcome { lines, before, changed, pin } = outcome;
    upsert(app, &changed).await?;
    let mut notes = Vec::new();
    if let Some(pin) = pin {
        notes.push("the pin came back; `cmactl unpin` takes it away".to_owned());
        app.actor.command(Input::Pin(Some(pin))).await.map_err(stopping)?;
    }
    if !preview {
        tracing::info!(name, accounts = changed.len(), "backup restored");
    }
    let accounts = lines
        .into_iter()
        .map(|line| RestoredAccount {
            id: line.id,
            name: line.name,
            what: line.what.to_owned(),
            why: line.why,
        })
        .collect();
    Ok(Survived::Restored(Restored { name, preview, accounts, before, notes }))
}

async fn unlock(app: &Arc<App>, passphrase: Option<Secret>) -> Result<Survived, Fault> {
    let passphrase = passphrase.map(bounded).transpose()?;
    let keyring = keyring(app);
    let reading = Arc::clone(app);
    let (unlocked, beside) = blocking::with(&app.roster, move |roster| {
        let unlocked = roster.unlock(passphrase.as_ref(), &keyring)?;
        let beside = match unlocked {
            Unlocked::Nothing => Ok(()),
            Unlocked::Accounts | Unlocked::Beside => read_beside(&reading),
        };
        Ok((unlocked, beside))
    })
    .await?;
    if unlocked == Unlocked::Accounts {
        upsert(app, &app.roster.all()).await?;
        if let Some((pin, _since)) = app.roster.state().pin {
            let pin = Some(AccountId::from_written(&pin));
            app.actor.command(Input::Pin(pin)).await.map_err(stopping)?;
        }
        tracing::info!("the root is open");
    }
    let opened = unlocked != Unlocked::Nothing;
    if opened {
        super::sessions::tell_pins(app).await?;
        super::choose::tell(app).await?;
        // Another process may have it open; what it would tell is learned anew then.
        let recalled = cache::recall(&app.root, &app.actor);
        let _late = tokio::time::timeout(cache::AT_UNLOCK, recalled).await;
    }
    beside.map_err(|Fault { refusal }| {
        let message = format!("the root is open and its accounts serve, but {}", refusal.message);
        let hint = format!("{}; then run `cmactl unlock` again", refusal.hint);
        Fault::new(refusal.code, message, hint)
    })?;
    let mut seal = seal(blocking::with(&app.roster, |roster| roster.store().seal_report()).await?);
    match unlocked {
        Unlocked::Nothing => seal.notes.push("the root was not locked".to_owned()),
        Unlocked::Beside => seal.notes.push("what could not be read before is read now".to_owned()),
        Unlocked::Accounts => {},
    }
    Ok(Survived::Seal(seal))
}

/// Reads all that lies beside the accounts, what can be; one that can't is no reason to go without the
/// others. Until all is read none of it is written: it would be as if nothing had been there.
fn read_beside(app: &App) -> Result<(), Fault> {
    let read = [
        app.projects.read_in(),
        app.pins.read_in(),
        app.proxy.traces.books.budgets.read_in(),
        app.proxy.keys.tokens().and_then(|tokens| tokens.read_in()),
        app.choosing.read_in(),
        app.mirror.read_in(),
    ];
    read.into_iter().collect::<Result<(), Fault>>()?;
    app.roster.store().set_unread(false);
    Ok(())
}

/// Things of this family that a person should know, one line each.
pub(super) fn notes(app: &App) -> Vec<String> {
    if app.roster.is_locked() {
        let locked =
            "the root is sealed and locked: run `cmactl unlock`; until then no account serves";
        return app.roster.store().why_locked().into_iter().chain([locked.to_owned()]).collect();
    }
    let mut notes = app.roster.store().repairs();
    if app.roster.store().is_unread() {
        notes.push(
            "not all of the root could be read when it was opened: run `cmactl unlock` to see what is in the way"
                .to_owned(),
        );
    }
    if app.roster.all().is_empty() {
        let backups = app.roster.store().backups().unwrap_or_default();
        if let Some(newest) = backups.iter().find(|backup| backup.accounts > 0) {
            notes.push(format!(
                "the backup `{0}` has {1} account(s): `cmactl backup restore {0} --preview` shows them",
                newest.name, newest.accounts
            ));
        }
    }
    notes
}

async fn upsert(app: &App, records: &[Arc<Record>]) -> Result<(), Fault> {
    for record in records {
        let seed = app.roster.seed(record);
        app.actor.command(Input::Upsert(seed)).await.map_err(stopping)?;
    }
    Ok(())
}

fn keyring(app: &App) -> Result<Keyring, String> {
    Keyring::find(&app.config).map(Keyring::patient)
}

fn method(by: SealBy) -> Result<Method, Fault> {
    Ok(match by {
        SealBy::Passphrase(passphrase) => Method::Passphrase(bounded(passphrase)?),
        SealBy::Keyring => Method::Keyring,
    })
}

fn bounded(secret: Secret) -> Result<SecretString, Fault> {
    if secret.0.len() > MAX_PASSPHRASE {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            format!("a passphrase has at most {MAX_PASSPHRASE} bytes"),
            "choose a shorter one",
        ));
    }
    Ok(secret.0.into())
}

fn info(listed: Listed) -> BackupInfo {
    BackupInfo {
        name: listed.name,
        made_at: listed.made_at,
        before: listed.before,
        accounts: u32::try_from(listed.accounts).unwrap_or(u32::MAX),
        bytes: listed.bytes,
        damaged: listed.damaged,
    }
}

fn seal(report: SealReport) -> SealInfo {
    SealInfo {
        state: report.state.to_owned(),
        by: report.by.into_iter().map(ToOwned::to_owned).collect(),
        since: report.since,
        sealed: report.sealed,
        plain: report.plain,
        recovery: report.recovery.map(|code| Secret(code.expose_secret().to_owned())),
        notes: Vec::new(),
    }
}

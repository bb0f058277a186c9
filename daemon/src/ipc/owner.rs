//! Who owns a login: own-auth launches, the mirror, accounts set aside, revoking on purpose.

use super::{
    convert::stopping,
    handlers::{plan, remove, upsert},
};
use crate::{
    app::App,
    blocking,
    fault::Fault,
    mirror,
    proxy::aux,
    renewal::{PERMANENT, UNKNOWN},
    roster,
    store::aside::Evidence,
};
use cma_core::{
    account::{Login, State},
    identity::AccountId,
    pool::{Input, Pool},
    select::Need,
    verdict::Mark,
};
use cma_proto::{
    error::ErrorCode,
    message::Reply,
    owner::{FlaggedInfo, OwnerReply, OwnerRequest, Verified},
};
use http::StatusCode;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long the renewal of an account under trial is waited for: twice its own limits.
const PATIENCE: Duration = Duration::from_secs(70);

/// Answers one request of this family.
pub(super) async fn handle(
    app: &Arc<App>,
    request: OwnerRequest,
    pid: Option<u32>,
) -> Result<Reply, Fault> {
    Ok(Reply::Owner(match request {
        OwnerRequest::Launch(request) => return plan(app, request, pid, true).await,
        OwnerRequest::Revoke { selector } => return revoke(app, &selector).await,
        OwnerRequest::MirrorOn { selector, path, with_refresh } => {
            let path = PathBuf::from(path);
            if !path.is_absolute() {
                return Err(Fault::new(
                    ErrorCode::BadRequest,
                    format!("`{}` is not an absolute path", path.display()),
                    "name the file by its full path",
                ));
            }
            OwnerReply::Mirror(mirror::on(app, selector.as_deref(), path, with_refresh).await?)
        },
        OwnerRequest::MirrorOff => {
            let app = Arc::clone(app);
            OwnerReply::Mirror(blocking::disk(move || app.mirror.turn_off()).await?)
        },
        OwnerRequest::MirrorStatus => OwnerReply::Mirror(app.mirror.info()),
        OwnerRequest::Flagged => {
            let flagged = flagged(app).await?;
            OwnerReply::Flagged(flagged.into_iter().map(|flagged| flagged.info()).collect())
        },
        OwnerRequest::VerifyFlagged { dry_run, restore } => {
            let mut all = Vec::new();
            for one in flagged(app).await? {
                all.push(verify(app, &one, dry_run, restore).await?);
            }
            OwnerReply::Verified(all)
        },
    }))
}

/// Takes an account out, then ends its login at the issuer.
async fn revoke(app: &Arc<App>, selector: &str) -> Result<Reply, Fault> {
    let id = AccountId::from_written(&app.roster.select(selector)?.id);
    let removed = remove(app, selector, move |roster| roster.get(&id)).await?;
    let (Reply::Changed(mut changed), Some(record)) = removed else {
        return Err(Fault::internal("a removal answered something else"));
    };
    // Its renewals have ended: this is the last credential there is of it.
    changed.notes = vec![match app.renewer.revoke(&record).await {
        Ok(()) => {
            tracing::warn!(account = record.id, "login revoked at the issuer");
            "its login was revoked at the issuer".to_owned()
        },
        Err(why) => {
            format!(
                "its login could not be revoked ({why}); it is kept in the root's `removed/` folder"
            )
        },
    }];
    Ok(Reply::Changed(changed))
}

/// An account that only a person, or a trial, can bring back.
struct Flagged {
    id: AccountId,
    name: String,
    cause: String,
    since: u64,
    evidence: Option<Evidence>,
    /// Whether its access token could still be sent.
    usable: bool,
    /// Whether its refresh token may be sent: it is there and was not refused for good.
    renewable: bool,
}

impl Flagged {
    fn info(&self) -> FlaggedInfo {
        let tryable = self.usable || self.renewable;
        FlaggedInfo {
            account: self.id.to_string(),
            name: self.name.clone(),
            cause: self.cause.clone(),
            since: self.since,
            status: self.evidence.as_ref().map(|seen| seen.status),
            code: self.evidence.as_ref().map(|seen| seen.code.clone()),
            excerpt: self.evidence.as_ref().map(|seen| seen.excerpt.clone()),
            next: if tryable {
                "run `cmactl verify-flagged` to try it again".to_owned()
            } else {
                "run `cmactl login` to sign in again".to_owned()
            },
        }
    }
}

/// All accounts set aside, in order.
async fn flagged(app: &Arc<App>) -> Result<Vec<Flagged>, Fault> {
    let look = |pool: &Pool, now| {
        let gone = |(account, state): (&cma_core::account::Account, State)| match state {
            State::NeedsLogin(cause, since) => Some((
                account.id.clone(),
                cause.to_string(),
                since.millis() / 1000,
                account.token.usable(now),
            )),
            State::Ready
            | State::Cooling(..)
            | State::Full(_)
            | State::Refreshing
            | State::Waiting(..)
            | State::Disabled
            | State::Paused
            | State::Draining
            | State::Elsewhere => None,
        };
        pool.states(now).filter_map(gone).collect::<Vec<_>>()
    };
    let gone = app.actor.look(look).await.map_err(stopping)?;
    blocking::with(&app.roster, move |roster| {
        let kept = gone.into_iter().filter_map(|(id, cause, since, usable)| {
            let record = roster.get(&id)?;
            let evidence =
                roster.store().evidence(&id).filter(|seen| seen.generation == record.generation);
            let last = cause.starts_with(UNKNOWN)
                || evidence.as_ref().is_some_and(|seen| PERMANENT.contains(&seen.code.as_str()));
            Some(Flagged {
                name: roster::name(&record).to_owned(),
                renewable: record.tokens.refresh_token.is_some() && !last,
                // Upstream may have refused it, but asking costs nothing.
                usable: usable && !last,
                id,
                cause,
                since,
                evidence,
            })
        });
        Ok(kept.collect())
    })
    .await
}

/// Tries one account set aside. Its access token is asked about first, which spends nothing; its
/// refresh token is sent only where it was never refused for good, by the daemon's own renewal.
async fn verify(
    app: &Arc<App>,
    one: &Flagged,
    dry_run: bool,
    restore: bool,
) -> Result<Verified, Fault> {
    let said = |outcome: &str, message: String| Verified {
        account: one.id.to_string(),
        name: one.name.clone(),
        outcome: outcome.to_owned(),
        message,
    };
    if app.roster.get(&one.id).is_some_and(|record| !app.roster.is_home(&record)) {
        return Ok(said("still_flagged", "it was imported for another upstream".to_owned()));
    }
    let sign_in = "run `cmactl login` to sign in again";
    if !one.usable && !one.renewable {
        return Ok(said(
            "still_flagged",
            format!("nothing is left to try ({}); {sign_in}", one.cause),
        ));
    }
    if dry_run {
        let mut steps = Vec::new();
        if one.usable {
            steps.push("ask upstream with its access token, which spends nothing");
        }
        if one.renewable && restore {
            steps.push("send its refresh token to the issuer once");
        }
        let steps = if steps.is_empty() { vec!["try nothing: --no-restore"] } else { steps };
        return Ok(said("would_try", format!("would {}", steps.join(", else "))));
    }
    if one.usable && aux::probe(&app.proxy, &one.id).await == Some(StatusCode::OK) {
        if !restore {
            return Ok(said(
                "healthy",
                "upstream takes its access token; left set aside".to_owned(),
            ));
        }
        bring_back(app, &one.id).await?;
        return Ok(said("restored", "upstream takes its access token; it serves again".to_owned()));
    }
    if !one.renewable {
        return Ok(said("still_flagged", format!("upstream refuses its access token; {sign_in}")));
    }
    if !restore {
        // A renewal changes the credential: that is no mere look.
        return Ok(said(
            "still_flagged",
            "not tried further: a renewal spends its refresh token".to_owned(),
        ));
    }
    bring_back(app, &one.id).await?;
    if one.usable {
        // Alive by its date and refused a moment ago: it is renewed before it serves.
        let refused = Input::Learn(one.id.clone(), Mark::Unauthorized);
        app.actor.command(refused).await.map_err(stopping)?;
    }
    renewed(app, &one.id).await.map(|why| match why {
        None => said("restored", "its login was renewed; it serves again".to_owned()),
        Some(why) => said("still_flagged", format!("{why}; {sign_in}")),
    })
}

/// Lets an account try again: a generation of its own, with the same tokens.
async fn bring_back(app: &Arc<App>, id: &AccountId) -> Result<(), Fault> {
    // For this alone: a renewal that is waited for may itself wait for who takes the root over.
    let _permit =
        app.roster.truth().to_change().await.ok_or_else(|| stopping(crate::actor::Gone))?;
    let account = id.clone();
    let record = blocking::with(&app.roster, move |roster| {
        roster.edit(&account, |record| {
            record.generation += 1;
            record.gone = None;
        })
    })
    .await?;
    upsert(app, &record).await?;
    Ok(())
}

/// Waits for the renewal of an account that was brought back; why it failed, if it did.
async fn renewed(app: &Arc<App>, id: &AccountId) -> Result<Option<String>, Fault> {
    let until = Instant::now() + PATIENCE;
    loop {
        // A grant is of no interest, only that a stale credential is renewed for it.
        let need = Need { only: Some(id.clone()), ..Need::default() };
        drop(app.actor.select(need).await.map_err(stopping)?);
        let wanted = id.clone();
        let look = move |pool: &Pool, now| {
            let account = pool.accounts().iter().find(|account| account.id == wanted)?;
            Some((account.login.clone(), account.sendable(now)))
        };
        match app.actor.look(look).await.map_err(stopping)? {
            Some((Login::Good, true)) => return Ok(None),
            Some((Login::Gone { cause, .. }, _)) => return Ok(Some(cause.to_string())),
            None => return Ok(Some("it left the pool".to_owned())),
            Some((Login::Good | Login::Renewing { .. }, _)) if Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            },
            Some(_) => {
                return Ok(Some(
                    "the issuer could not be asked; it is tried again by itself".to_owned(),
                ));
            },
        }
    }
}

//! What each request does: disk first, then memory, then the answer.

use super::convert::{self, stopping};
use crate::{
    app::{App, Phase},
    blocking,
    fault::Fault,
    handover,
    launch::{self, Wanted},
    roster::{self, Roster},
    store::record::Record,
};
use cma_core::{identity::AccountId, pool::Input};
use cma_proto::{
    error::ErrorCode,
    message::{Changed, LaunchRequest, Reply, Request, Switched},
    owner::OwnerRequest,
};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

/// Answers one request. `pid` is the peer's, as the kernel says.
pub(crate) async fn handle(
    app: &Arc<App>,
    request: Request,
    pid: Option<u32>,
) -> Result<Reply, Fault> {
    let looking = match &request {
        Request::Status | Request::Why { .. } | Request::Shutdown { .. } => true,
        Request::Pools(request) => super::pools::looks(request),
        Request::Sessions(request) => super::sessions::looks(request),
        Request::Usage(request) => super::usage::looks(request),
        Request::Handover(_) => true,
        // `status` and `list` ask for it beside what they show.
        Request::Owner(OwnerRequest::Flagged | OwnerRequest::MirrorStatus) => true,
        Request::Choose(request) => super::choose::looks(request),
        _ => false,
    };
    // A launch writes nothing, and what it is told holds for the next daemon as well.
    let launching = matches!(&request, Request::Launch(_));
    let refused = if launching { app.phases.refuses() } else { !looking };
    if refused && app.phases.now() >= Phase::Draining {
        return Err(stopping(crate::actor::Gone));
    }
    // A sign-in waits for people and a trial for renewals; both save with a permit of their own.
    let alone =
        matches!(&request, Request::Login(_) | Request::Owner(OwnerRequest::VerifyFlagged { .. }));
    let free = looking || launching || alone;
    let _permit = match free {
        true => None,
        false => {
            let permit = app.roster.truth().to_change().await;
            Some(permit.ok_or_else(|| stopping(crate::actor::Gone))?)
        },
    };
    match request {
        // A subscription is a stream, which the session serves itself.
        Request::Status | Request::Subscribe => {
            Ok(Reply::Status(Box::new(convert::status(app).await?)))
        },
        Request::Import { path, label } => import(app, path.into(), label).await,
        Request::Switch { selector, expected_epoch } => {
            switch(app, &selector, expected_epoch).await
        },
        Request::Unpin => unpin(app).await,
        Request::SetEnabled { selector, enabled } => {
            change(app, &selector, move |roster, id| {
                roster.edit(id, |record| record.enabled = enabled)
            })
            .await
        },
        Request::SetLabel { selector, label } => {
            change(app, &selector, move |roster, id| roster.set_label(id, &label)).await
        },
        Request::Remove { selector } => {
            remove(app, &selector, |_roster| ()).await.map(|(reply, ())| reply)
        },
        Request::Why { request } => {
            Ok(Reply::Why(Box::new(super::forecast::why(app, request, None).await?.why)))
        },
        Request::Launch(request) => plan(app, request, pid, app.config.own_auth).await,
        Request::Login(step) => {
            app.logins.step(step).await.map(|reply| Reply::Login(Box::new(reply)))
        },
        Request::Owner(request) => super::owner::handle(app, request, pid).await,
        Request::Pools(request) => super::pools::handle(app, request).await,
        Request::Sessions(request) => super::sessions::handle(app, request).await,
        Request::Shutdown { now } => {
            let active = app.proxy.traces.counters.active.load(Ordering::Relaxed);
            if now {
                app.cut();
            } else {
                app.stop.drain();
            }
            Ok(Reply::ShuttingDown { active })
        },
        Request::Handover(request) => handover::serve(app, request).await,
        Request::Survive(asked) => super::survive::handle(app, asked).await,
        Request::Takeover(request) => super::takeover::handle(app, request).await,
        Request::Usage(request) => super::usage::handle(app, request).await,
        Request::Credits(asked) => super::credits::handle(app, asked).await,
        Request::Choose(request) => super::choose::handle(app, request, pid).await,
    }
}

async fn import(app: &Arc<App>, path: PathBuf, label: Option<String>) -> Result<Reply, Fault> {
    if !path.is_absolute() {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            format!("`{}` is not an absolute path", path.display()),
            "name the file by its full path",
        ));
    }
    let (imported, record) =
        blocking::with(&app.roster, move |roster| roster.import(&path, label.as_deref())).await?;
    upsert(app, &record).await?;
    tracing::info!(account = imported.id, created = imported.created, "login imported");
    Ok(Reply::Imported(vec![imported]))
}

async fn switch(app: &Arc<App>, selector: &str, expected: Option<u64>) -> Result<Reply, Fault> {
    let record = app.roster.select(selector)?;
    let id = AccountId::from_written(&record.id);
    let (epoch, from) = pin_now(app).await?;
    if let Some(expected) = expected.filter(|expected| *expected != epoch) {
        return Err(Fault::new(
            ErrorCode::Negative,
            format!("the pool is in epoch {epoch}, not {expected}"),
            "look at `cmactl status` and decide again",
        ));
    }
    let pinned = id.clone();
    blocking::with(&app.roster, move |roster| {
        roster.save_pin(Some((&pinned, crate::clock::unix())))
    })
    .await?;
    let epoch = app.actor.command(Input::Pin(Some(id))).await.map_err(stopping)?;
    let yields = app.actor.look(|pool, now| pool.pin_yields(now)).await.map_err(stopping)?;
    let notes = yields
        .map(|why| format!("it can't serve now ({why}); others do until it can"))
        .into_iter()
        .collect();
    Ok(Reply::Switched(Switched {
        from,
        to: Some(record.id.clone()),
        name: Some(roster::name(&record).to_owned()),
        epoch,
        notes,
    }))
}

async fn unpin(app: &Arc<App>) -> Result<Reply, Fault> {
    let (_epoch, from) = pin_now(app).await?;
    blocking::with(&app.roster, |roster| roster.save_pin(None)).await?;
    let epoch = app.actor.command(Input::Pin(None)).await.map_err(stopping)?;
    let notes = from.is_none().then(|| "nothing was pinned".to_owned()).into_iter().collect();
    Ok(Reply::Switched(Switched { from, to: None, name: None, epoch, notes }))
}

pub(super) async fn pin_now(app: &App) -> Result<(u64, Option<String>), Fault> {
    app.actor
        .look(|pool, _now| (pool.epoch(), pool.pin().map(|(id, _since)| id.to_string())))
        .await
        .map_err(stopping)
}

pub(super) async fn change(
    app: &Arc<App>,
    selector: &str,
    edit: impl FnOnce(&Roster, &AccountId) -> Result<Arc<Record>, Fault> + Send + 'static,
) -> Result<Reply, Fault> {
    let id = AccountId::from_written(&app.roster.select(selector)?.id);
    let record = blocking::with(&app.roster, move |roster| edit(roster, &id)).await?;
    let epoch = upsert(app, &record).await?;
    Ok(Reply::Changed(Changed {
        account: record.id.clone(),
        name: roster::name(&record).to_owned(),
        epoch,
        notes: Vec::new(),
    }))
}

/// `last` looks at the roster when nothing changes the account any more, right before it goes.
pub(super) async fn remove<T: Send + 'static>(
    app: &Arc<App>,
    selector: &str,
    last: impl FnOnce(&Roster) -> T + Send + 'static,
) -> Result<(Reply, T), Fault> {
    let record = app.roster.select(selector)?;
    let id = AccountId::from_written(&record.id);
    let pinned = pin_now(app).await?.1.is_some_and(|pin| pin == record.id);
    let (kept, epoch, seen) = take_out(app, id, pinned, last).await?;
    let changed = Changed {
        account: record.id.clone(),
        name: roster::name(&record).to_owned(),
        epoch,
        notes: vec![format!("its login is kept in `{}` and was not revoked", kept.display())],
    };
    Ok((Reply::Changed(changed), seen))
}

/// Takes an account out of the roster, then out of the pool. `last` as for [`remove`].
pub(super) async fn take_out<T: Send + 'static>(
    app: &App,
    id: AccountId,
    pinned: bool,
    last: impl FnOnce(&Roster) -> T + Send + 'static,
) -> Result<(PathBuf, u64, T), Fault> {
    // A renewal under way spends the login: what is kept has to be what comes of it. And none may
    // begin before the login is gone from where renewals take it.
    let alone = app.roster.flights.alone(&id).await;
    let (gone, projects) = (id.clone(), Arc::clone(&app.projects));
    let pins = Arc::clone(&app.pins);
    let (kept, seen) = blocking::with(&app.roster, move |roster| {
        if pinned {
            roster.save_pin(None)?;
        }
        projects.unpin(&gone)?;
        pins.forget(&gone)?;
        let seen = last(roster);
        Ok((roster.remove(&gone)?, seen))
    })
    .await?;
    drop(alone);
    let mut epoch = app.actor.command(Input::Remove(id.clone())).await.map_err(stopping)?;
    super::sessions::forget(app, &id);
    // Somebody may have imported it again in between.
    if let Some(back) = app.roster.get(&id) {
        epoch = upsert(app, &back).await?;
    }
    Ok((kept, epoch, seen))
}

pub(super) async fn upsert(app: &App, record: &Record) -> Result<u64, Fault> {
    app.actor.command(Input::Upsert(app.roster.seed(record))).await.map_err(stopping)
}

pub(super) async fn plan(
    app: &Arc<App>,
    request: LaunchRequest,
    pid: Option<u32>,
    own: bool,
) -> Result<Reply, Fault> {
    start(app, request, pid, Wanted { own, only: None }).await
}

pub(super) async fn start(
    app: &Arc<App>,
    request: LaunchRequest,
    pid: Option<u32>,
    wanted: Wanted,
) -> Result<Reply, Fault> {
    let app = Arc::clone(app);
    let launch = blocking::disk(move || {
        let (keys, roster) = (&app.proxy.keys, &app.roster);
        launch::plan(&request, pid, &app.url, keys, roster, &app.projects, &wanted)
    })
    .await?;
    Ok(Reply::Launch(Box::new(launch)))
}

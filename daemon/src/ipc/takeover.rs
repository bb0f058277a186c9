//! `takeover`: other programs' logins looked at or taken, and the pool written down.
//!
//! Looking and taking are one way: the same files are read, the same comparison made; taking does
//! what the last column said. Each account is durable before the next; a fault in one is its line.

use super::{convert::stopping, handlers};
use crate::{
    app::App,
    blocking, clock,
    fault::Fault,
    store::record::Record,
    takeover::{
        self, Found, Harvest, export,
        plan::{self, Choices, Line},
    },
};
use cma_core::pool::Input;
use cma_proto::{
    error::ErrorCode,
    message::Reply,
    takeover::{FoundInfo, Report, Scan, TakeoverReply, TakeoverRequest},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub(super) async fn handle(app: &Arc<App>, request: TakeoverRequest) -> Result<Reply, Fault> {
    let answer = match request {
        TakeoverRequest::Scan(scan) => TakeoverReply::Report(scanned(app, scan).await?),
        TakeoverRequest::Export { secrets_to } => exported(app, secrets_to).await?,
    };
    Ok(Reply::Takeover(Box::new(answer)))
}

async fn scanned(app: &Arc<App>, scan: Scan) -> Result<Report, Fault> {
    let paths = [Some(&scan.home), Some(&scan.codex_home), scan.from.as_ref()];
    if let Some(path) = paths.into_iter().flatten().find(|path| !Path::new(path).is_absolute()) {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            format!("`{path}` is not an absolute path"),
            "name it by its full path",
        ));
    }
    let apply = scan.apply;
    let harvest = blocking::disk(move || Ok(takeover::gather(&scan, clock::unix()))).await?;
    let lines = plan::plan(&harvest.found, |id| app.roster.known(id));
    let mut report = Report {
        applied: apply,
        sources: harvest.sources.clone(),
        kept: harvest.kept.iter().map(takeover::Kept::info).collect(),
        notes: harvest.notes.clone(),
        ..Report::default()
    };
    let harvest = Arc::new(harvest);
    if apply && !harvest.found.is_empty() {
        blocking::with(&app.roster, |roster| roster.store().auto_backup("takeover").map(drop))
            .await?;
    }
    for (at, line) in lines.into_iter().enumerate() {
        let Some(one) = harvest.found.get(at) else { continue };
        let choices = plan::choices(&harvest.found, &one.login.id());
        let info = info(one, &line, &choices);
        let info = if apply { take(app, &harvest, at, line, choices, info).await? } else { info };
        report.accounts.push(info);
    }
    report.accounts.extend(unusable(&harvest));
    if apply {
        finish(app, &harvest, &mut report).await?;
    }
    Ok(report)
}

/// What is told of a login; names and reasons only.
fn info(one: &Found, line: &Line, choices: &Choices) -> FoundInfo {
    FoundInfo {
        account: Some(one.login.id().to_string()),
        name: one.name.clone(),
        email: one.login.claims.email.clone(),
        plan: one.login.claims.plan.clone(),
        workspace: Some(one.login.workspace.clone()),
        format: one.format.to_owned(),
        path: one.path.display().to_string(),
        state: line.state.name().to_owned(),
        reason: line.reason.clone(),
        taken: line.state.takes(),
        label: choices.label.clone(),
        tags: choices.tags.clone(),
        enabled: choices.enabled.unwrap_or(true),
        flagged: one.gone.is_some(),
        pool: one.pool.clone(),
        notes: one.notes.clone(),
    }
}

fn unusable(harvest: &Harvest) -> impl Iterator<Item = FoundInfo> {
    harvest.unusable.iter().map(|one| FoundInfo {
        account: None,
        name: one.name.clone(),
        email: one.email.clone(),
        plan: None,
        workspace: None,
        format: one.format.to_owned(),
        path: one.path.display().to_string(),
        state: "unusable".to_owned(),
        reason: one.reason.clone(),
        taken: false,
        label: None,
        tags: Vec::new(),
        enabled: false,
        flagged: false,
        pool: None,
        notes: Vec::new(),
    })
}

/// Takes one login, or its names alone where the pool keeps its own credential.
async fn take(
    app: &Arc<App>,
    harvest: &Arc<Harvest>,
    at: usize,
    line: Line,
    choices: Choices,
    mut info: FoundInfo,
) -> Result<FoundInfo, Fault> {
    let Some(id) = harvest.found.get(at).map(|one| one.login.id()) else { return Ok(info) };
    // A copy that lost against another file has nothing to give.
    if !line.state.takes() && app.roster.known(&id).is_none() {
        return Ok(info);
    }
    // A renewal under way makes the pool's login the newer one: its outcome decides.
    let _alone = app.roster.flights.alone(&id).await;
    let found = Arc::clone(harvest);
    let planned = line.state;
    let adopted = blocking::with(&app.roster, move |roster| match found.found.get(at) {
        Some(one) if planned.takes() => roster.adopt(one, &choices).map(Some),
        Some(one) => roster.fill(&one.login.id(), &choices).map(|()| None),
        None => Ok(None),
    })
    .await;
    match adopted {
        Ok(Some(adopted)) => {
            settle(app, &adopted.record).await?;
            info.state = adopted.line.state.name().to_owned();
            info.reason = adopted.line.reason;
            info.taken = adopted.line.state.takes();
            info.notes.extend(adopted.notes);
            told(&adopted.record, &mut info);
            tracing::info!(account = adopted.record.id, state = info.state, "login taken over");
        },
        Ok(None) => {
            if let Some(record) = app.roster.known(&id) {
                settle(app, &record).await?;
                told(&record, &mut info);
            }
        },
        Err(fault) => {
            info.taken = false;
            info.notes.push(format!("it was not taken: {fault}"));
        },
    }
    Ok(info)
}

/// What the account is called and whether it may serve, now.
fn told(record: &Record, info: &mut FoundInfo) {
    info.label.clone_from(&record.label);
    info.tags.clone_from(&record.tags);
    info.enabled = record.enabled;
}

async fn settle(app: &Arc<App>, record: &Record) -> Result<(), Fault> {
    handlers::upsert(app, record).await.map(drop)
}

/// The pin and what is no login.
async fn finish(app: &Arc<App>, harvest: &Arc<Harvest>, report: &mut Report) -> Result<(), Fault> {
    let pinned = export::pinned(&harvest.found).map(|one| one.login.id());
    if let Some(id) = pinned.filter(|id| app.roster.known(id).is_some()) {
        if app.roster.state().pin.is_none() {
            let to = id.clone();
            blocking::with(&app.roster, move |roster| roster.save_pin(Some((&to, clock::unix()))))
                .await?;
            app.actor.command(Input::Pin(Some(id.clone()))).await.map_err(stopping)?;
            report.notes.push(format!(
                "the pin on account {id} was taken over; `cmactl unpin` lets the pool choose"
            ));
        } else {
            report.notes.push("the pool has a pin of its own, which stays".to_owned());
        }
    }
    let (root, kept) = (app.root.path().to_path_buf(), Arc::clone(harvest));
    blocking::with(&app.roster, move |roster| {
        takeover::save(roster.store(), &root, &kept.kept, clock::unix())
    })
    .await
}

async fn exported(app: &Arc<App>, secrets_to: Option<String>) -> Result<TakeoverReply, Fault> {
    let records = app.roster.all();
    let pin = app.roster.state().pin.map(|(id, _since)| id);
    let mut exported = export::metadata(&records, pin, clock::unix());
    if let Some(path) = secrets_to {
        let to = PathBuf::from(&path);
        if !to.is_absolute() {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                format!("`{path}` is not an absolute path"),
                "name the file by its full path",
            ));
        }
        let inner = exported.clone();
        blocking::disk(move || export::with_secrets(&to, &inner, &records)).await?;
        tracing::warn!(path, "the pool's logins were exported");
        exported.secrets_in = Some(path);
    }
    Ok(TakeoverReply::Exported(exported))
}

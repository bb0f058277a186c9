//! What the requests about projects, policies, workspaces and tags do: disk first, then the pool,
//! then the answer.

use super::{
    convert::{self, stopping},
    handlers::{change, take_out, upsert},
};
use crate::{
    app::App,
    blocking,
    fault::Fault,
    project::{Found, Place, Project, Standing, own_scope},
    roster::{self, members_of, written},
    store::{import, record::Record},
};
use cma_core::{identity::AccountId, pool::Input, scope::Scope};
use cma_proto::{
    error::ErrorCode,
    message::{Changed, Reply, Switched},
    pools::{
        AccountDetail, Forgotten, Limit, PolicyInfo, PoolsReply, PoolsRequest, ProjectInfo,
        ProjectPool, WorkspaceInfo, Workspaces,
    },
};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Answers one request.
pub(super) async fn handle(app: &Arc<App>, request: PoolsRequest) -> Result<Reply, Fault> {
    match request {
        PoolsRequest::Import { path, label, dir } => import(app, path, label, dir).await,
        PoolsRequest::Show { project } => show(app, project).await,
        PoolsRequest::List => Ok(reply(PoolsReply::Projects(list(app)))),
        PoolsRequest::Switch { selector, expected_epoch, dir } => {
            switch(app, selector, expected_epoch, dir).await
        },
        PoolsRequest::Join { selector, dir, only } => join(app, &selector, dir, only).await,
        PoolsRequest::Leave { selector, dir } => leave(app, &selector, dir).await,
        PoolsRequest::Judge { dir, allowed } => judge(app, dir, allowed).await,
        PoolsRequest::Forget { project } => forget(app, project).await,
        PoolsRequest::Tag { selector, add, remove } => {
            change(app, &selector, move |roster, id| roster.tag(id, &add, &remove)).await
        },
        PoolsRequest::Note { selector, text } => {
            change(app, &selector, move |roster, id| roster.annotate(id, &text)).await
        },
        PoolsRequest::Details => {
            let details = app.roster.all().iter().map(|record| detail(record)).collect();
            Ok(reply(PoolsReply::Details(details)))
        },
        PoolsRequest::Workspaces { live, dir } => workspaces(app, live, dir).await,
        PoolsRequest::Limit { workspaces, dir } => limit(app, workspaces, dir).await,
    }
}

/// Whether a request changes nothing, so that it is answered while the daemon goes down.
pub(super) const fn looks(request: &PoolsRequest) -> bool {
    matches!(
        request,
        PoolsRequest::Details
            | PoolsRequest::List
            | PoolsRequest::Show { .. }
            | PoolsRequest::Workspaces { live: false, .. }
    )
}

const fn reply(reply: PoolsReply) -> Reply {
    Reply::Pools(reply)
}

/// The project of a folder.
async fn place(app: &Arc<App>, dir: String) -> Result<Place, Fault> {
    let app = Arc::clone(app);
    blocking::disk(move || app.projects.place(&dir)).await
}

/// Changes what is kept of a project.
async fn edit(
    app: &Arc<App>,
    place: Place,
    edit: impl FnOnce(&mut Project) + Send + 'static,
) -> Result<Arc<Project>, Fault> {
    let app = Arc::clone(app);
    blocking::disk(move || app.projects.edit(&place, edit)).await
}

async fn import(
    app: &Arc<App>,
    path: String,
    label: Option<String>,
    dir: String,
) -> Result<Reply, Fault> {
    let path = std::path::PathBuf::from(path);
    if !path.is_absolute() {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            format!("`{}` is not an absolute path", path.display()),
            "name the file by its full path",
        ));
    }
    let place = place(app, dir).await?;
    let forged = place.forged;
    // The project is known before an account says that it is in it.
    let key = edit(app, place.clone(), |_project| {}).await?.key.clone();
    let (mut imported, record) = blocking::with(&app.roster, move |roster| {
        roster.import_into(&key, &path, label.as_deref())
    })
    .await?;
    upsert(app, &record).await?;
    imported.notes.extend(forged.map(|why| place.apart(why)));
    tracing::info!(
        account = imported.id,
        project = place.key,
        created = imported.created,
        "login imported"
    );
    Ok(Reply::Imported(vec![imported]))
}

async fn show(app: &Arc<App>, project: String) -> Result<Reply, Fault> {
    let from = Arc::clone(app);
    let (place, policy, serves) = blocking::disk(move || {
        let place = from.projects.named(&project)?;
        let policy = from.projects.policy(&place);
        let tree = place.tree.to_string_lossy().into_owned();
        let serves = from.projects.choose(&tree, &from.roster);
        Ok((place, policy, serves))
    })
    .await?;
    let mut notes = Vec::new();
    let serves = match serves {
        Ok(choice) => {
            notes.extend(choice.notes);
            match choice.bounds.scope {
                Scope::Global => "global",
                Scope::Project { fallback: false, .. } => "project",
                Scope::Project { fallback: true, .. } => "project_then_global",
            }
        },
        Err(fault) => {
            notes.push(format!("{}; {}", fault.refusal.message, fault.refusal.hint));
            "project"
        },
    };
    if let Some(said) = place.forged.map(|why| place.apart(why))
        && !notes.contains(&said)
    {
        notes.push(said);
    }
    let pool = convert::pool(app, own_scope(&place.key)).await?;
    notes.extend(pool.notes);
    let project = info(app, &place.key, &place.main.display().to_string());
    Ok(reply(PoolsReply::Project(Box::new(ProjectPool {
        project,
        epoch: pool.epoch,
        serves: serves.to_owned(),
        policy: policy.map(|(found, standing)| policy_info(&found, standing)),
        pin: pool.pin,
        next: pool.next,
        accounts: pool.accounts,
        notes,
    }))))
}

/// Every project that is kept, and every one that an account names.
fn list(app: &App) -> Vec<ProjectInfo> {
    let mut paths: BTreeMap<String, String> = BTreeMap::new();
    for record in app.roster.all() {
        for key in record.pools.iter().filter(|key| *key != cma_core::scope::GLOBAL) {
            paths.entry(key.clone()).or_default();
        }
    }
    for project in app.projects.all() {
        paths.insert(project.key.clone(), project.path.clone());
    }
    paths.iter().map(|(key, path)| info(app, key, path)).collect()
}

fn info(app: &App, key: &str, path: &str) -> ProjectInfo {
    let project = app.projects.get(key);
    ProjectInfo {
        key: key.to_owned(),
        path: path.to_owned(),
        accounts: u32::try_from(app.roster.members(key).len()).unwrap_or(u32::MAX),
        pin: project.as_ref().and_then(|project| project.pin.as_ref().map(|(id, _)| id.clone())),
        workspaces: project.map(|project| project.workspaces.clone()).unwrap_or_default(),
    }
}

fn policy_info(found: &Found, standing: Standing) -> PolicyInfo {
    PolicyInfo {
        path: found.path.display().to_string(),
        state: standing.word().to_owned(),
        says: found.policy.as_ref().map(crate::project::Policy::says).unwrap_or_default(),
        broken: found.policy.as_ref().err().cloned(),
    }
}

async fn switch(
    app: &Arc<App>,
    selector: Option<String>,
    expected: Option<u64>,
    dir: String,
) -> Result<Reply, Fault> {
    let place = place(app, dir).await?;
    let record = selector.map(|selector| app.roster.select(&selector)).transpose()?;
    if let Some(record) = &record
        && !members_of(record, &place.key)
    {
        return Err(Fault::new(
            ErrorCode::NotFound,
            format!("`{}` is not in the pool of `{}`", roster::name(record), place.main.display()),
            format!("run `cmactl project add {}` there first", record.id),
        ));
    }
    let scope = own_scope(&place.key);
    let asked = scope.clone();
    let (epoch, from) = app
        .actor
        .look(move |pool, _now| {
            (pool.epoch(), pool.pin_of(&asked).map(|(id, _since)| id.to_string()))
        })
        .await
        .map_err(stopping)?;
    if let Some(expected) = expected.filter(|expected| *expected != epoch) {
        return Err(Fault::new(
            ErrorCode::Negative,
            format!("the pool is in epoch {epoch}, not {expected}"),
            "look at `cmactl status` and decide again",
        ));
    }
    let to = record.as_ref().map(|record| record.id.clone());
    let pin = to.clone().map(|id| (id, crate::clock::unix()));
    let project = edit(app, place, move |project| project.pin = pin).await?;
    let input =
        Input::PinIn(project.key.as_str().into(), to.as_deref().map(AccountId::from_written));
    let epoch = app.actor.command(input).await.map_err(stopping)?;
    let yields =
        app.actor.look(move |pool, now| pool.pin_yields_in(&scope, now)).await.map_err(stopping)?;
    let mut notes: Vec<String> = yields
        .map(|why| format!("it can't serve now ({why}); others do until it can"))
        .into_iter()
        .collect();
    if to.is_none() && from.is_none() {
        notes.push("nothing was pinned".to_owned());
    }
    let name = record.map(|record| roster::name(&record).to_owned());
    Ok(Reply::Switched(Switched { from, to, name, epoch, notes }))
}

async fn join(app: &Arc<App>, selector: &str, dir: String, only: bool) -> Result<Reply, Fault> {
    let id = AccountId::from_written(&app.roster.select(selector)?.id);
    let place = place(app, dir).await?;
    let key = edit(app, place, |_project| {}).await?.key.clone();
    let joined = id.clone();
    let record =
        blocking::with(&app.roster, move |roster| roster.join(&joined, &key, only)).await?;
    changed(app, &record, id).await
}

async fn leave(app: &Arc<App>, selector: &str, dir: String) -> Result<Reply, Fault> {
    let id = AccountId::from_written(&app.roster.select(selector)?.id);
    let place = place(app, dir).await?;
    let (left, key) = (id.clone(), place.key);
    let record = blocking::with(&app.roster, move |roster| roster.leave(&left, &key)).await?;
    changed(app, &record, id).await
}

/// Tells the pool, and takes away the pins of pools that the account is in no more.
async fn changed(app: &Arc<App>, record: &Record, id: AccountId) -> Result<Reply, Fault> {
    let mut epoch = upsert(app, record).await?;
    for project in app.projects.all() {
        let pinned = project.pin.as_ref().is_some_and(|(pin, _since)| pin == id.as_str());
        if pinned && !members_of(record, &project.key) {
            let place = Place {
                key: project.key.clone(),
                main: project.path.clone().into(),
                tree: project.path.clone().into(),
                forged: None,
            };
            edit(app, place, |project| project.pin = None).await?;
            let input = Input::PinIn(project.key.as_str().into(), None);
            epoch = app.actor.command(input).await.map_err(stopping)?;
        }
    }
    Ok(Reply::Changed(Changed {
        account: record.id.clone(),
        name: roster::name(record).to_owned(),
        epoch,
        notes: vec![format!("its pools: `{}`", written(&record.pools).join("`, `"))],
    }))
}

async fn judge(app: &Arc<App>, dir: String, allowed: bool) -> Result<Reply, Fault> {
    let app = Arc::clone(app);
    let (found, standing) = blocking::disk(move || {
        let place = app.projects.place(&dir)?;
        app.projects.judge(&place, allowed)
    })
    .await?;
    Ok(reply(PoolsReply::Policy(policy_info(&found, standing))))
}

async fn forget(app: &Arc<App>, project: String) -> Result<Reply, Fault> {
    let from = Arc::clone(app);
    let orphans = app.roster.all().iter().any(|record| record.pools.contains(&project));
    let named = blocking::disk(move || {
        from.projects.named(&project).or_else(|fault| {
            // Its file is gone, its accounts are not.
            let place =
                Place { key: project.clone(), main: "".into(), tree: "".into(), forged: None };
            if orphans { Ok(place) } else { Err(fault) }
        })
    })
    .await?;
    let members = app.roster.members(&named.key);
    if members.is_empty() && app.projects.get(&named.key).is_none() {
        return Err(Fault::new(
            ErrorCode::NotFound,
            format!("nothing is known of the project `{}`", named.main.display()),
            "run `cmactl project list` to see them",
        ));
    }
    let (mut removed, mut stayed) = (Vec::new(), Vec::new());
    for record in members {
        let id = AccountId::from_written(&record.id);
        let called = roster::name(&record).to_owned();
        if record.pools.len() > 1 {
            let (left, key) = (id.clone(), named.key.clone());
            let record =
                blocking::with(&app.roster, move |roster| roster.leave(&left, &key)).await?;
            upsert(app, &record).await?;
            stayed.push(called);
        } else {
            take_out(app, id, false, |_roster| ()).await?;
            removed.push(called);
        }
    }
    let input = Input::PinIn(named.key.as_str().into(), None);
    app.actor.command(input).await.map_err(stopping)?;
    let (from, key) = (Arc::clone(app), named.key.clone());
    blocking::disk(move || from.projects.forget(&key)).await?;
    tracing::info!(project = named.key, removed = removed.len(), "project forgotten");
    super::choose::forget(app, &named.key).await?;
    let path = named.main.display().to_string();
    Ok(reply(PoolsReply::Forgotten(Forgotten { key: named.key, path, removed, stayed })))
}

fn detail(record: &Record) -> AccountDetail {
    AccountDetail {
        id: record.id.clone(),
        user: record.user.clone(),
        tags: record.tags.clone(),
        note: record.notes.clone(),
        pools: written(&record.pools),
    }
}

/// Every workspace that a login or upstream names, once for each user.
async fn workspaces(app: &Arc<App>, live: bool, dir: String) -> Result<Reply, Fault> {
    let from = Arc::clone(app);
    let here = blocking::disk(move || {
        let place = from.projects.place(&dir).ok();
        let project = place.and_then(|place| from.projects.get(&place.key));
        Ok(project.map(|project| project.workspaces.clone()).unwrap_or_default())
    })
    .await?;
    let limit = app.roster.state().workspaces;
    let records = app.roster.all();
    let mut names: BTreeMap<(String, String), Option<String>> = BTreeMap::new();
    let mut notes = Vec::new();
    let mut asked = BTreeSet::new();
    for record in &records {
        names.entry((record.user.clone(), record.workspace.clone())).or_default();
        for (id, name) in import::workspaces(record.tokens.id_token.expose_secret()) {
            merge(&mut names, &record.user, id, name);
        }
        if live && asked.insert(record.user.clone()) {
            let id = AccountId::from_written(&record.id);
            match app.proxy.workspaces_of(&id).await {
                Some(answer) => {
                    for (id, name) in from_check(&answer) {
                        merge(&mut names, &record.user, id, name);
                    }
                },
                None => {
                    asked.remove(&record.user);
                    notes.push(format!("upstream didn't tell for `{}`", roster::name(record)));
                },
            }
        }
    }
    let limits = if here.is_empty() { &limit } else { &here };
    let known = names
        .into_iter()
        .map(|((user, id), name)| {
            let serves = records.iter().find(|one| one.user == user && one.workspace == id);
            let of_user = records.iter().find(|one| one.user == user && one.email.is_some());
            WorkspaceInfo {
                allowed: limits.is_empty() || limits.contains(&id),
                name,
                email: serves.or(of_user).and_then(|one| one.email.clone()),
                account: serves.map(|one| one.id.clone()),
                account_name: serves.map(|one| roster::name(one).to_owned()),
                id,
                user,
            }
        })
        .collect();
    Ok(reply(PoolsReply::Workspaces(Workspaces { known, limit, here, notes })))
}

fn merge(
    names: &mut BTreeMap<(String, String), Option<String>>,
    user: &str,
    id: String,
    name: Option<String>,
) {
    let known = names.entry((user.to_owned(), id)).or_default();
    *known = name.or_else(|| known.take());
}

/// The entries of upstream's `accounts/check`: a list, or (older) a map by id.
fn from_check(answer: &Value) -> Vec<(String, Option<String>)> {
    let text = |value: &Value, name: &str| {
        value.get(name).and_then(Value::as_str).filter(|text| text.len() <= 256).map(str::to_owned)
    };
    let entries: Vec<&Value> = match answer.get("accounts") {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(Value::Object(map)) => map.values().collect(),
        Some(_) | None => Vec::new(),
    };
    let entry = |entry: &&Value| {
        let inner = entry.get("account").unwrap_or(entry);
        let id = text(inner, "id").or_else(|| text(inner, "account_id"))?;
        Some((id, text(inner, "name")))
    };
    entries.iter().filter_map(entry).collect()
}

async fn limit(app: &Arc<App>, wanted: Vec<String>, dir: Option<String>) -> Result<Reply, Fault> {
    let records = app.roster.all();
    let known: BTreeSet<&str> = records.iter().map(|record| record.workspace.as_str()).collect();
    let mut workspaces = Vec::new();
    for name in &wanted {
        // By id, by a unique beginning of one, or by the account that serves it.
        let starts: Vec<&&str> = known.iter().filter(|id| id.starts_with(name.as_str())).collect();
        let found = match (known.get(name.as_str()), starts.as_slice()) {
            (Some(id), _) => (*id).to_owned(),
            (None, [one]) if !name.is_empty() => (**one).to_owned(),
            (None, _) => app.roster.select(name).map_err(|_none| unknown(name))?.workspace.clone(),
        };
        if !workspaces.contains(&found) {
            workspaces.push(found);
        }
    }
    let project = match dir {
        Some(dir) => {
            let place = place(app, dir).await?;
            let limit = workspaces.clone();
            let project = edit(app, place, move |project| project.workspaces = limit).await?;
            Some(project.key.clone())
        },
        None => {
            let limit = workspaces.clone();
            blocking::with(&app.roster, move |roster| roster.save_limit(limit)).await?;
            None
        },
    };
    let notes = vec!["a codex that runs already keeps the limit it was started with".to_owned()];
    Ok(reply(PoolsReply::Limit(Limit { workspaces, project, notes })))
}

fn unknown(name: &str) -> Fault {
    Fault::new(
        ErrorCode::NotFound,
        format!("no account is in a workspace `{name}`"),
        "run `cmactl workspace list` to see them",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn workspaces_are_read_from_either_form_of_the_answer() {
        let list = json!({"accounts": [{"id": "w1", "name": "One"}, {"id": 5}, {"name": "x"}]});
        assert_eq!(from_check(&list), [("w1".to_owned(), Some("One".to_owned()))]);
        let map = json!({"accounts": {"w1": {"account": {"account_id": "w1", "name": null}}}});
        assert_eq!(from_check(&map), [("w1".to_owned(), None)]);
        assert!(from_check(&json!([1])).is_empty());
    }
}

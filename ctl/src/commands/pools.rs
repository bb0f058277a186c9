//! Projects with accounts of their own, folders' policies, workspaces, tags and notes.

use super::{Context, absolute, accounts::change, status};
use crate::{
    cli::{ProjectCommand, WorkspaceCommand},
    error::{Failure, unexpected},
    render::{Column, Screen, Tone, clean, put, table},
};
use cma_proto::{
    client::Client,
    error::{ErrorCode, Refusal},
    message::{AccountInfo, Changed, Reply, Request},
    pools::{
        AccountDetail, Forgotten, Limit, PolicyInfo, PoolsReply, PoolsRequest, ProjectInfo,
        ProjectPool, WorkspaceInfo, Workspaces,
    },
};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, process::ExitCode};

/// An account with what a person wrote on it.
#[derive(Debug, Serialize)]
pub(super) struct Detailed {
    #[serde(flatten)]
    pub(super) account: AccountInfo,
    user: String,
    tags: Vec<String>,
    note: Option<String>,
    pools: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Listed {
    projects: Vec<ProjectInfo>,
}

/// Accounts with what a person wrote on them.
pub(super) fn detailed(
    client: &mut Client,
    accounts: Vec<AccountInfo>,
) -> Result<Vec<Detailed>, Failure> {
    let details = match pools(client, PoolsRequest::Details)? {
        PoolsReply::Details(details) => details,
        other => return Err(unexpected(other).into()),
    };
    let mut details: BTreeMap<String, AccountDetail> =
        details.into_iter().map(|detail| (detail.id.clone(), detail)).collect();
    let with = |account: AccountInfo| {
        // It may have gone between the two answers; then nothing more is known of it.
        let known = details.remove(&account.id);
        let (user, tags, note, pools) = known.map_or_else(Default::default, |known| {
            (known.user, known.tags, known.note, known.pools)
        });
        Detailed { account, user, tags, note, pools }
    };
    Ok(accounts.into_iter().map(with).collect())
}

/// Under the table of `list`: what a person wrote, an account a line.
pub(super) fn written(accounts: &[Detailed]) -> String {
    let mut text = String::new();
    for one in accounts.iter().filter(|one| !one.tags.is_empty() || one.note.is_some()) {
        let tags = one.tags.iter().map(|tag| format!("+{}", clean(tag)));
        let all: Vec<String> = tags.chain(one.note.as_deref().map(clean)).collect();
        put!(text, "{} {}\n", Tone::Dim.paint(format!("{}:", one.account.index)), all.join(" "));
    }
    text
}

fn pools(client: &mut Client, request: PoolsRequest) -> Result<PoolsReply, Failure> {
    match client.call(&Request::Pools(request))? {
        Reply::Pools(reply) => Ok(reply),
        other => Err(unexpected(other).into()),
    }
}

/// A folder as the daemon can be told it; the working directory when left out.
pub(super) fn dir(given: Option<&Path>) -> Result<String, Refusal> {
    let path = absolute(given.unwrap_or_else(|| Path::new(".")))?;
    path.to_str().map(ToOwned::to_owned).ok_or_else(|| {
        Refusal::new(
            ErrorCode::BadRequest,
            format!("`{}` is not UTF-8, which the daemon can't be told", path.display()),
            "go into a folder with a path in plain letters",
        )
    })
}

/// A project as it was typed: a folder that is there, else a key.
fn project(given: Option<String>) -> Result<String, Refusal> {
    match given {
        Some(key) if !Path::new(&key).exists() && !key.contains(['/', '\\']) => Ok(key),
        given => dir(given.as_deref().map(Path::new)),
    }
}

/// `status --project` and `list --project`, `project show`.
pub(super) fn show(
    context: &Context,
    given: Option<String>,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let request = PoolsRequest::Show { project: project(given)? };
    let pool = match pools(&mut context.connect()?, request)? {
        PoolsReply::Project(pool) => *pool,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&pool, pool_text)?;
    if !screen.json() {
        screen.notes(&pool.notes)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn pool_text(pool: &ProjectPool) -> String {
    let mut text = String::new();
    let mut line = |word: &str, said: &str| {
        put!(text, "{} {said}\n", Tone::Dim.paint(format!("{word:<9}")));
    };
    line("project", &format!("{} · {}", clean(&pool.project.key), clean(&pool.project.path)));
    line(
        "serves",
        match pool.serves.as_str() {
            "global" => "the global pool serves here",
            "project" => "only the project's own accounts serve here",
            "project_then_global" => "the project's accounts serve here, then the global pool",
            other => other,
        },
    );
    if let Some(policy) = &pool.policy {
        line("policy", &policy_line(policy));
    }
    if !pool.project.workspaces.is_empty() {
        line("limit", &clean(&pool.project.workspaces.join(", ")));
    }
    let name = |id: &str| {
        let account = pool.accounts.iter().find(|account| account.id == id);
        clean(account.map_or(id, super::name_of))
    };
    if let Some(pin) = &pool.pin {
        line("pinned", &name(&pin.account));
    }
    if let Some(next) = &pool.next {
        line("next", &Tone::Strong.paint(name(next)));
    }
    text.push('\n');
    if pool.accounts.is_empty() {
        text += "The project has no account of its own; `cmactl import --project` adds one.\n";
    } else {
        text += &status::rows(&pool.accounts);
    }
    text
}

fn policy_line(policy: &PolicyInfo) -> String {
    let tone = match policy.state.as_str() {
        "allowed" => Tone::Good,
        "denied" => Tone::Dim,
        _ => Tone::Warn,
    };
    let said: Vec<String> =
        policy.says.iter().map(|(name, value)| clean(&format!("{name} = {value}"))).collect();
    let said = policy.broken.as_deref().map_or_else(|| said.join("; "), clean);
    format!("{} · {} · {said}", clean(&policy.path), tone.paint(clean(&policy.state)))
}

/// `cmactl project …`
pub(super) fn command(
    context: &Context,
    command: ProjectCommand,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    match command {
        ProjectCommand::List => list(context, screen),
        ProjectCommand::Show { project } => show(context, project, screen),
        ProjectCommand::Add { account, only } => {
            let request = PoolsRequest::Join { selector: account, dir: dir(None)?, only };
            let said = |_changed: &Changed| "serves this project".to_owned();
            change(context, &Request::Pools(request), said, screen)
        },
        ProjectCommand::Drop { account } => {
            let request = PoolsRequest::Leave { selector: account, dir: dir(None)? };
            let said = |_changed: &Changed| "serves this project no more".to_owned();
            change(context, &Request::Pools(request), said, screen)
        },
        ProjectCommand::Allow { dir } => judge(context, dir.as_deref(), true, screen),
        ProjectCommand::Deny { dir } => judge(context, dir.as_deref(), false, screen),
        ProjectCommand::Forget { project, yes } => forget(context, project, yes, screen),
    }
}

fn list(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let projects = match pools(&mut context.connect()?, PoolsRequest::List)? {
        PoolsReply::Projects(projects) => projects,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&Listed { projects }, |listed| {
        if listed.projects.is_empty() {
            return "No project has accounts of its own; `cmactl import --project` in a repository \
                    adds one.\n"
                .to_owned();
        }
        let columns = [Column::Left("key"), Column::Right("accounts"), Column::Left("folder")];
        let row =
            |one: &ProjectInfo| vec![clean(&one.key), one.accounts.to_string(), clean(&one.path)];
        table(&columns, listed.projects.iter().map(row).collect())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `allow` and `deny`.
pub(super) fn judge(
    context: &Context,
    given: Option<&Path>,
    allowed: bool,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let request = PoolsRequest::Judge { dir: dir(given)?, allowed };
    let policy = match pools(&mut context.connect()?, request)? {
        PoolsReply::Policy(policy) => policy,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&policy, |policy| {
        let path = clean(&policy.path);
        if !allowed {
            return format!("{path} doesn't count, and nothing more is said of it as it is now.\n");
        }
        let mut text =
            format!("{path} counts as it is now, for every codex started from here on:\n");
        for (name, value) in &policy.says {
            put!(text, "  {} = {}\n", clean(name), clean(value));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

fn forget(
    context: &Context,
    given: Option<String>,
    yes: bool,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let project = project(given)?;
    if !yes {
        if !screen.can_ask() {
            return Err(Refusal::new(
                ErrorCode::BadRequest,
                "nobody can be asked here whether the project is really meant to be forgotten",
                format!("run `cmactl project forget {project} --yes`"),
            )
            .into());
        }
        let question = format!(
            "Forget the project `{}`? Accounts of its own leave the pool; their logins are kept in `{}`.",
            clean(&project),
            context.root.path().join("removed").display()
        );
        if !screen.ask(&question)? {
            let said = "nothing was forgotten: the answer was no";
            return Err(Refusal::new(ErrorCode::Negative, said, "").into());
        }
    }
    let forgotten = match pools(&mut context.connect()?, PoolsRequest::Forget { project })? {
        PoolsReply::Forgotten(forgotten) => forgotten,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&forgotten, forgotten_text)?;
    Ok(ExitCode::SUCCESS)
}

fn forgotten_text(forgotten: &Forgotten) -> String {
    let mut text = format!("{} is forgotten.\n", clean(&forgotten.key));
    for (names, what) in [
        (
            &forgotten.removed,
            "out of the pool; the login is kept in `removed/` and was not revoked",
        ),
        (&forgotten.stayed, "stays in its other pools"),
    ] {
        for name in names {
            put!(text, "{}: {what}\n", clean(name));
        }
    }
    text
}

/// `tag ACCOUNT +a -b`
pub(super) fn tag(
    context: &Context,
    selector: String,
    changes: &[String],
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for change in changes {
        match change.strip_prefix('+') {
            Some(tag) => add.push(tag.to_owned()),
            None if change.starts_with("--") => {
                return Err(Refusal::new(
                    ErrorCode::BadRequest,
                    format!("`{change}` is a flag, not a tag"),
                    "put flags in front of the account: `cmactl tag --json ACCOUNT +a`",
                )
                .into());
            },
            None => match change.strip_prefix('-') {
                Some(tag) => remove.push(tag.to_owned()),
                None => add.push(change.clone()),
            },
        }
    }
    let request = PoolsRequest::Tag { selector, add, remove };
    let said = |_changed: &Changed| "has the tags you gave it".to_owned();
    change(context, &Request::Pools(request), said, screen)
}

/// `note ACCOUNT TEXT`
pub(super) fn note(
    context: &Context,
    selector: String,
    words: &[String],
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let text = words.join(" ");
    let done = if text.trim().is_empty() { "has no note now" } else { "has your note" };
    let request = PoolsRequest::Note { selector, text };
    let said = |_changed: &Changed| done.to_owned();
    change(context, &Request::Pools(request), said, screen)
}

/// `cmactl workspace …`
pub(super) fn workspace(
    context: &Context,
    command: Option<WorkspaceCommand>,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    match command.unwrap_or(WorkspaceCommand::List { live: false }) {
        WorkspaceCommand::List { live } => {
            let known = ask_workspaces(context, live)?;
            screen.answer(&known, |known| workspaces(known, true))?;
            if !screen.json() {
                screen.notes(&known.notes)?;
            }
            Ok(ExitCode::SUCCESS)
        },
        WorkspaceCommand::Show => {
            let known = ask_workspaces(context, false)?;
            screen.answer(&known, |known| workspaces(known, false))?;
            Ok(ExitCode::SUCCESS)
        },
        WorkspaceCommand::Use { workspaces, any: _, project } => {
            let dir = if project { Some(dir(None)?) } else { None };
            let request = PoolsRequest::Limit { workspaces, dir };
            let limit = match pools(&mut context.connect()?, request)? {
                PoolsReply::Limit(limit) => limit,
                other => return Err(unexpected(other).into()),
            };
            screen.answer(&limit, limited)?;
            screen.notes(&limit.notes)?;
            Ok(ExitCode::SUCCESS)
        },
    }
}

fn ask_workspaces(context: &Context, live: bool) -> Result<Workspaces, Failure> {
    let request = PoolsRequest::Workspaces { live, dir: dir(None)? };
    match pools(&mut context.connect()?, request)? {
        PoolsReply::Workspaces(known) => Ok(known),
        other => Err(unexpected(other).into()),
    }
}

fn limited(limit: &Limit) -> String {
    let place = match &limit.project {
        Some(key) => format!("the project {}", clean(key)),
        None => "every folder without a limit of its own".to_owned(),
    };
    if limit.workspaces.is_empty() {
        return format!("No limit for {place}.\n");
    }
    format!("New launches in {place} use only: {}.\n", clean(&limit.workspaces.join(", ")))
}

/// The limits, and with `all` the table of workspaces.
fn workspaces(known: &Workspaces, all: bool) -> String {
    let mut text = String::new();
    for (word, limit) in [("everywhere", &known.limit), ("this folder", &known.here)] {
        let limit = if limit.is_empty() { "no limit".to_owned() } else { clean(&limit.join(", ")) };
        put!(text, "{} {limit}\n", Tone::Dim.paint(format!("{word:<11}")));
    }
    if !all {
        return text;
    }
    let columns = [
        Column::Left("workspace"),
        Column::Left("name"),
        Column::Left("e-mail"),
        Column::Left("served by"),
        Column::Left("allowed"),
    ];
    let shown = |text: &Option<String>| clean(text.as_deref().unwrap_or("-"));
    let row = |one: &WorkspaceInfo| {
        let served = match &one.account_name {
            Some(name) => clean(name),
            None => Tone::Dim.paint("no login of it"),
        };
        let allowed = if one.allowed { "yes" } else { "no" };
        vec![clean(&one.id), shown(&one.name), shown(&one.email), served, allowed.to_owned()]
    };
    text.push('\n');
    text + &table(&columns, known.known.iter().map(row).collect())
}

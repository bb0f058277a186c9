//! From an invocation to the command that runs: through the daemon, or plain.
//!
//! Plain means the environment as it was, minus what an outer launch of cma put there: those keys
//! belong to another process. The person's own keys, provider and addresses are theirs: where one is
//! set, cma stands aside without a word.

use crate::{
    Failure, Lookup,
    args::{self, Invocation, Through},
    guard::Guard,
    login, say, set, version,
};
use cma_proto::{
    choose::ChooseRequest,
    client::Client,
    codec::Codec,
    endpoint::{Root, codex_home},
    error::{ErrorCode, Refusal},
    message::{Launch, LaunchPlan, LaunchRequest, Reply, Request},
    owner::OwnerRequest,
};
use std::{
    env,
    ffi::{OsStr, OsString},
    path::{self, Path},
    process::Command,
};

/// Names the account that alone may serve, for one invocation.
const FORCED: &str = "CODEX_MULTI_AUTH_FORCE_ACCOUNT";
const TOKEN: &str = "CODEX_ACCESS_TOKEN";
const ISSUER: &str = "CODEX_AUTHAPI_BASE_URL";
/// Where the CLI renews and revokes a login of its own. An empty one is no address to it, and none to
/// fall back from (0.169.0, observed).
const ENDPOINTS: [&str; 2] =
    ["CODEX_REFRESH_TOKEN_URL_OVERRIDE", "CODEX_REVOKE_TOKEN_URL_OVERRIDE"];
/// Where CLIs of before 0.128 find their upstream.
const BASE_URL: &str = "OPENAI_BASE_URL";
/// How a key of ours begins.
const KEY_PREFIX: &[u8] = b"at-cma-";

/// Gives the command its arguments and its environment.
///
/// # Errors
/// Only when the daemon can't help and the person wants no CLI without it.
pub(crate) fn prepare(
    command: &mut Command,
    codex: &Path,
    args: &[OsString],
    guard: &Guard,
    lookup: Lookup<'_>,
) -> Result<(), Failure> {
    if !is_printed(args, lookup) {
        forget_outer(command, lookup);
    }
    let (flag, args) = args::account(args)?;
    let args = args.as_slice();
    let account = flag
        .clone()
        .or_else(|| set(lookup, FORCED).map(|value| value.to_string_lossy().into_owned()));
    let plan = match args::read(args) {
        Invocation::Through(through) if !has_own_key(lookup) => {
            let answer = ask(codex, &through, account.as_deref(), guard, lookup);
            let plan = match &account {
                // Whoever names an account means no other, and not plain codex either.
                Some(account) => Some(insisted(answer, account)?),
                None => decide(answer, lookup)?,
            };
            plan.map(|plan| (plan, through))
        },
        Invocation::Through(_) if account.is_some() => {
            return Err(Failure::new(
                ErrorCode::BadRequest.exit_code(),
                "a key of your own is in the environment, so no account of the pool would serve; \
                 codex was not started (unset `CODEX_API_KEY` and `CODEX_ACCESS_TOKEN`)",
            ));
        },
        Invocation::Plain if flag.is_some() => {
            return Err(Failure::new(
                ErrorCode::BadRequest.exit_code(),
                "`--account` says nothing here: this command runs without cma; leave the flag away",
            ));
        },
        Invocation::Through(_) | Invocation::Plain => {
            login::explain(args, lookup);
            None
        },
    };
    // Where the CLI reads its address from the environment, the person's own is theirs.
    let own = set(lookup, BASE_URL).filter(|url| !is_outer_endpoint(url, lookup));
    let taken =
        |plan: &LaunchPlan| plan.env.iter().any(|(name, _)| name == BASE_URL) && own.is_some();
    if account.is_some() && plan.as_ref().is_some_and(|(plan, _)| taken(plan)) {
        return Err(Failure::new(
            ErrorCode::BadRequest.exit_code(),
            "`OPENAI_BASE_URL` is set, so no account of the pool would serve; codex was not started",
        ));
    }
    match plan.filter(|(plan, _)| !taken(plan)) {
        Some((plan, through)) => {
            command.args(merge(&plan.args, args, &through)).envs(plan.env);
        },
        None => {
            command.args(args);
        },
    }
    Ok(())
}

/// Whether the invocation is a printed plan (`cmactl launch --print`): its key in the environment, its
/// addresses in the arguments, and no launch around it.
fn is_printed(args: &[OsString], lookup: Lookup<'_>) -> bool {
    let key = set(lookup, TOKEN).is_some_and(|token| is_ours(&token));
    let outside = set(lookup, "CMA_SHIM_PID").is_none();
    let ours =
        |arg: &OsString| arg.as_encoded_bytes().starts_with(b"openai_base_url=\"http://127.0.0.1:");
    key && outside && args.iter().any(ours)
}

/// Removes what an outer launch left in the environment.
pub(crate) fn forget_outer(command: &mut Command, lookup: Lookup<'_>) {
    for name in outer(lookup) {
        command.env_remove(name);
    }
    for name in ENDPOINTS.into_iter().chain([BASE_URL]) {
        if lookup(name).is_some_and(|url| is_outer_endpoint(&url, lookup)) {
            command.env_remove(name);
        }
    }
}

/// The variables of an outer launch: its key with its issuer, or what is left of them where a tool
/// of the CLI has them blanked. A person's own token keeps its issuer.
fn outer(lookup: Lookup<'_>) -> &'static [&'static str] {
    let inside = set(lookup, "CMA_SHIM_PID").is_some();
    match (set(lookup, TOKEN), lookup(ISSUER)) {
        (Some(token), _) if is_ours(&token) => &[TOKEN, ISSUER],
        (Some(_), _) => &[],
        (None, Some(issuer)) if inside && is_loopback(&issuer) => &[TOKEN, ISSUER],
        (None, _) if inside => &[TOKEN],
        (None, _) => &[],
    }
}

/// Whether an endpoint is that of an outer launch, or what is left of it where a tool of the CLI has it
/// blanked.
fn is_outer_endpoint(url: &OsStr, lookup: Lookup<'_>) -> bool {
    let inside = set(lookup, "CMA_SHIM_PID").is_some();
    let path = url.to_string_lossy();
    inside && is_loopback(url) && (path.is_empty() || path.contains("/own/"))
}

/// Whether the person's own credential stands in the environment.
fn has_own_key(lookup: Lookup<'_>) -> bool {
    set(lookup, "CODEX_API_KEY").is_some() || set(lookup, TOKEN).is_some_and(|own| !is_ours(&own))
}

fn is_ours(token: &OsStr) -> bool {
    token.as_encoded_bytes().starts_with(KEY_PREFIX)
}

fn is_loopback(url: &OsStr) -> bool {
    url.is_empty() || url.as_encoded_bytes().starts_with(b"http://127.0.0.1:")
}

/// Asks the daemon how to start this CLI.
fn ask(
    codex: &Path,
    through: &Through,
    account: Option<&str>,
    guard: &Guard,
    lookup: Lookup<'_>,
) -> Result<Launch, Refusal> {
    let root = Root::from_env()?;
    let request = request(version::of(codex, guard, lookup), through, lookup)?;
    let mut daemon = Client::connect_or_start(&root, "codex", Codec::Bincode)?;
    let own = stays_own(lookup);
    let request = match account {
        Some(account) => {
            let selector = account.to_owned();
            Request::Choose(ChooseRequest::Launch { launch: request, selector, own })
        },
        None if own => Request::Owner(OwnerRequest::Launch(request)),
        None => Request::Launch(request),
    };
    match daemon.call(&request)? {
        Reply::Launch(launch) => Ok(*launch),
        _ => Err(Refusal::new(
            ErrorCode::Internal,
            "the daemon answered something else than a launch",
            "run `cmactl version` and report it",
        )),
    }
}

/// Whether the person wants the CLI on its own login.
fn stays_own(lookup: Lookup<'_>) -> bool {
    let mode = set(lookup, "CMA_AUTH_MODE").unwrap_or_default();
    match mode.to_str() {
        Some("own") => return true,
        Some("" | "pool") => {},
        _ => say(format_args!(
            "`CMA_AUTH_MODE` is `{}`, neither `own` nor `pool`; taken as `pool`",
            mode.display()
        )),
    }
    false
}

fn request(
    codex_version: String,
    through: &Through,
    lookup: Lookup<'_>,
) -> Result<LaunchRequest, Refusal> {
    let text = |path: &Path| {
        // Without a working directory a relative path stays one.
        let path = path::absolute(path).unwrap_or_else(|_unknown| path.to_path_buf());
        // Another path would be looked at than the CLI's own, and what stands there be missed.
        path.to_str().map(str::to_owned).ok_or_else(|| {
            Refusal::new(
                ErrorCode::BadRequest,
                format!("`{}` is not UTF-8, so the daemon can't be told of it", path.display()),
                "use a path in UTF-8",
            )
        })
    };
    let cwd = env::current_dir().unwrap_or_default();
    let no_proxy: Vec<String> = ["NO_PROXY", "no_proxy"]
        .iter()
        .filter_map(|name| Some(set(lookup, name)?.to_string_lossy().into_owned()))
        .collect();
    Ok(LaunchRequest {
        printed: false,
        codex_version,
        codex_home: text(&codex_home()?)?,
        cwd: text(&through.dir.as_ref().map_or_else(|| cwd.clone(), |dir| cwd.join(dir)))?,
        overrides: through.overrides.clone(),
        profile: through.profile.clone(),
        interactive: through.interactive,
        no_proxy: no_proxy.join(","),
        ignore_user_config: through.ignore_user_config,
    })
}

/// The plan of a launch that only one account may serve, or why there is none.
fn insisted(answer: Result<Launch, Refusal>, account: &str) -> Result<LaunchPlan, Failure> {
    let (code, why, hint) = match answer {
        Ok(Launch::Through(plan)) => return Ok(plan),
        Ok(Launch::Noted { plan, notes }) => {
            for note in &notes {
                say(format_args!("{note}"));
            }
            return Ok(plan);
        },
        Ok(Launch::Aside { reason, .. }) => (ErrorCode::Negative, reason, String::new()),
        Err(refusal) => (refusal.code, refusal.message, refusal.hint),
    };
    let hint = if hint.is_empty() { hint } else { format!(" ({hint})") };
    let line = format!("{why}; only `{account}` may serve, so codex was not started{hint}");
    Err(Failure::new(code.exit_code(), line))
}

/// What the answer comes to: a plan, plain codex with or without a word, or no codex.
fn decide(
    answer: Result<Launch, Refusal>,
    lookup: Lookup<'_>,
) -> Result<Option<LaunchPlan>, Failure> {
    let refusal = match answer {
        Ok(Launch::Through(plan)) => return Ok(Some(plan)),
        Ok(Launch::Noted { plan, notes }) => {
            for note in &notes {
                say(format_args!("{note}"));
            }
            return Ok(Some(plan));
        },
        Ok(Launch::Aside { reason, tell }) => {
            if tell {
                say(format_args!("{reason}; running codex without cma"));
            }
            return Ok(None);
        },
        Err(refusal) => refusal,
    };
    let hint = match refusal.hint.as_str() {
        "" => String::new(),
        hint => format!(" ({hint})"),
    };
    let policy = set(lookup, "CMA_ON_UNAVAILABLE").unwrap_or_default();
    match policy.to_str() {
        Some("error") => {
            return Err(Failure::new(
                refusal.code.exit_code(),
                format!("{}; codex was not started{hint}", refusal.message),
            ));
        },
        Some("" | "direct") => {},
        _ => say(format_args!(
            "`CMA_ON_UNAVAILABLE` is `{}`, neither `direct` nor `error`; taken as `direct`",
            policy.display()
        )),
    }
    say(format_args!("{}; running codex without cma{hint}", refusal.message));
    Ok(None)
}

/// The plan's arguments among the person's: switches first, overrides where they hold.
fn merge(plan: &[String], own: &[OsString], through: &Through) -> Vec<OsString> {
    let (mut switches, mut overrides) = (Vec::new(), Vec::new());
    let mut plan = plan.iter();
    while let Some(arg) = plan.next() {
        if arg == "-c" || arg == "--config" {
            overrides.push(OsString::from(arg));
            overrides.extend(plan.next().map(OsString::from));
        } else if arg != "--no-daemon" || !through.no_daemon {
            switches.push(OsString::from(arg));
        }
    }
    let (before, after) = own.split_at(through.insert_at.min(own.len()));
    [&switches, before, &overrides, after].concat()
}

#[cfg(test)]
mod tests;

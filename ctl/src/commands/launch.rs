//! `launch --print`: what starts any client against the daemon, for trying by hand.

use super::Context;
use crate::{
    cli::LaunchArgs,
    error::{Failure, unexpected},
    render::{Screen, put},
};
use cma_proto::{
    endpoint::codex_home,
    error::{ErrorCode, Refusal},
    message::{Launch, LaunchPlan, LaunchRequest, Reply, Request},
    owner::OwnerRequest,
};
use serde::Serialize;
use std::{collections::BTreeMap, process::ExitCode};

#[derive(Debug, Serialize)]
struct Printed<'a> {
    env: BTreeMap<&'a str, &'a str>,
    args: &'a [String],
    base_url: &'a str,
    client_key: &'a str,
    key_expires_at: u64,
}

pub(super) fn launch(
    context: &Context,
    args: &LaunchArgs,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let here = std::env::current_dir().map_err(|error| {
        Refusal::new(
            ErrorCode::BadRequest,
            format!("the working directory is gone: {error}"),
            "change to a folder that exists",
        )
    })?;
    let request = LaunchRequest {
        printed: true,
        codex_version: args.codex_version.clone(),
        codex_home: super::absolute(&codex_home()?)?.to_string_lossy().into_owned(),
        cwd: here.to_string_lossy().into_owned(),
        overrides: Vec::new(),
        profile: args.profile.clone(),
        interactive: false,
        no_proxy: no_proxy(|name| std::env::var(name).ok()),
        ignore_user_config: false,
    };
    let request = if args.own_auth {
        Request::Owner(OwnerRequest::Launch(request))
    } else {
        Request::Launch(request)
    };
    match context.connect()?.call(&request)? {
        Reply::Launch(launch) => match *launch {
            Launch::Noted { plan, notes } => {
                screen.answer(&printed(&plan), |_json| shell(&plan))?;
                screen.notes(&notes)?;
                Ok(ExitCode::SUCCESS)
            },
            Launch::Through(plan) => {
                screen.answer(&printed(&plan), |_json| shell(&plan))?;
                Ok(ExitCode::SUCCESS)
            },
            Launch::Aside { reason, .. } => Err(aside(&reason).into()),
        },
        other => Err(unexpected(other).into()),
    }
}

/// The daemon would rather have this CLI run plain.
pub(super) fn aside(reason: &str) -> Refusal {
    Refusal::new(
        ErrorCode::Negative,
        format!("here `codex` would run plain, without the daemon: {reason}"),
        "run `cmactl status` to see the pool",
    )
}

/// Both spellings of the variable, joined: programs read one or the other.
pub(super) fn no_proxy(var: impl Fn(&str) -> Option<String>) -> String {
    let both = ["NO_PROXY", "no_proxy"].into_iter().filter_map(var);
    let both: Vec<String> = both.filter(|value| !value.is_empty()).collect();
    both.join(",")
}

fn printed(plan: &LaunchPlan) -> Printed<'_> {
    Printed {
        env: plan.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        args: &plan.args,
        base_url: &plan.base_url,
        client_key: &plan.client_key,
        key_expires_at: plan.key_expires_at,
    }
}

/// Lines for a POSIX shell: variables to set, and the command.
fn shell(plan: &LaunchPlan) -> String {
    let mut text = String::new();
    for (name, value) in &plan.env {
        put!(text, "export {name}={}\n", quote(value));
    }
    text += "codex";
    for arg in &plan.args {
        text.push(' ');
        text += &quote(arg);
    }
    text.push('\n');
    text
}

/// A word as a POSIX shell reads it back.
fn quote(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(safe) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;

//! `token`: keys with a name, for programs on this machine.

use super::{Context, pools, usage::ask};
use crate::{
    cli::TokenCommand,
    error::{Failure, unexpected},
    render::{Column, Screen, Tone, clean, table, time},
};
use cma_proto::usage::{MadeToken, TokenInfo, UsageReply, UsageRequest};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Serialize)]
struct Made<'a> {
    name: &'a str,
    base_url: &'a str,
    token: &'a str,
    expires_at: u64,
}

#[derive(Debug, Serialize)]
struct Listed {
    tokens: Vec<TokenInfo>,
}

/// `token …`.
pub(super) fn token(
    context: &Context,
    command: TokenCommand,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let request = match command {
        TokenCommand::Create { name, time, project } => {
            let dir = if project { Some(pools::dir(None)?) } else { None };
            UsageRequest::TokenCreate { name, seconds: time, dir }
        },
        TokenCommand::List => UsageRequest::Tokens,
        TokenCommand::Revoke { name } => UsageRequest::TokenRevoke { name },
    };
    match ask(&mut context.connect()?, request)? {
        UsageReply::Made(made) => {
            let MadeToken { name, base_url, token, expires_at } = &made;
            let (expires_at, token) = (*expires_at, token.0.as_str());
            screen.answer(&Made { name, base_url, token, expires_at }, |made| {
                format!("{}\n", made.token)
            })?;
            let left = time::relative(expires_at, time::now());
            screen.notes(&[format!(
                "it is shown this once and ends {left}; send it as the bearer to {}",
                clean(base_url)
            )])?;
        },
        UsageReply::Tokens(tokens) => {
            screen.answer(&Listed { tokens }, |listed| rows(&listed.tokens, time::now()))?;
        },
        other => return Err(unexpected(other).into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(tokens: &[TokenInfo], now: u64) -> String {
    if tokens.is_empty() {
        return "There is no token. `cmactl token create NAME` makes one.\n".to_owned();
    }
    let columns =
        [Column::Left("token"), Column::Left("for"), Column::Left("made"), Column::Left("ends")];
    let row = |one: &TokenInfo| {
        let over = one.expires_at <= now;
        let ends = time::relative(one.expires_at, now);
        vec![
            clean(&one.name),
            clean(one.project.as_deref().unwrap_or("the global pool")),
            time::relative(one.created_at, now),
            if over { Tone::Bad.paint(ends) } else { ends },
        ]
    };
    table(&columns, tokens.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::plain;

    #[test]
    fn tokens_show_whose_they_are_and_when_they_end() {
        let one = TokenInfo {
            name: "editor".to_owned(),
            created_at: 1_000,
            expires_at: 8_200,
            project: None,
        };
        let text = plain(&rows(&[one], 1_000));
        for part in ["editor", "the global pool", "in 2 h"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(rows(&[], 0).contains("cmactl token create"));
    }
}

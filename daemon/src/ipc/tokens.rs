//! Named tokens as people make, see and revoke them.

use crate::{
    app::App,
    blocking, clock,
    fault::Fault,
    project::Bounds,
    tokens::{Token, Tokens},
};
use cma_proto::{
    survive::Secret,
    usage::{MadeToken, TokenInfo, UsageReply},
};
use std::sync::Arc;

/// Makes a token: what it opens is fixed here, like that of a launch.
pub(super) async fn create(
    app: &Arc<App>,
    name: String,
    seconds: u64,
    dir: Option<String>,
) -> Result<UsageReply, Fault> {
    let app = Arc::clone(app);
    blocking::disk(move || {
        let bounds = match dir {
            Some(dir) => app.projects.choose(&dir, &app.roster)?.bounds,
            None => {
                let workspaces = app.roster.state().workspaces;
                let workspaces = workspaces.iter().map(|one| Arc::from(one.as_str())).collect();
                Bounds { workspaces, ..Bounds::default() }
            },
        };
        let project = bounds.books().map(ToString::to_string);
        let (token, launch) = app.proxy.keys.mint_token(&name, seconds, bounds)?;
        let expires_at = launch.expires_at;
        let (id, created_at) = (launch.id, clock::unix());
        let kept = Token { id, name: name.clone(), created_at, expires_at, project };
        app.proxy.keys.tokens()?.add(kept)?;
        tracing::info!(token = name, expires_at, "token made");
        let base_url = format!("{}/codex", app.url);
        Ok(UsageReply::Made(MadeToken { name, base_url, token: Secret(token), expires_at }))
    })
    .await
}

/// Takes one away; tells those that are left.
pub(super) async fn revoke(app: &Arc<App>, name: String) -> Result<UsageReply, Fault> {
    let app = Arc::clone(app);
    blocking::disk(move || {
        let tokens = app.proxy.keys.tokens()?;
        tokens.revoke(&name)?;
        tracing::info!(token = name, "token revoked");
        Ok(listed(tokens))
    })
    .await
}

/// All of them, by name.
pub(super) fn list(app: &App) -> Result<UsageReply, Fault> {
    Ok(listed(app.proxy.keys.tokens()?))
}

fn listed(tokens: &Tokens) -> UsageReply {
    let info = |token: Token| {
        let Token { id: _, name, created_at, expires_at, project } = token;
        TokenInfo { name, created_at, expires_at, project }
    };
    UsageReply::Tokens(tokens.all().into_iter().map(info).collect())
}

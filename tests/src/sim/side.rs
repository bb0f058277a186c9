//! The small documents of the backend: models, usage, accounts, settings.
//!
//! Each is the least a client was seen to accept. It decides which paths exist;
//! all others are answered 404, as the CLI takes that without harm (while a
//! 401 would make it spend its refresh token).

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use serde_json::{Value, json};

use super::around;
use super::config::AccountSpec;
use super::quota::Own;
use super::state::{AccountNo, State};
use super::wire::{Call, Reply, text};

/// Whether an auxiliary path exists.
pub(super) fn is_known(method: &str, path: &str) -> bool {
    match method {
        "GET" => {
            path.starts_with("/ps/plugins/")
                || matches!(
                    path,
                    "/wham/config/bundle"
                        | "/wham/settings/user"
                        | "/wham/security-setup"
                        | "/wham/rate-limit-reset-credits"
                        | "/wham/profiles/me"
                        | "/wham/workspace-messages"
                )
        },
        "POST" => path == "/codex/analytics-events/events",
        _ => false,
    }
}

/// Answers an authorized request to any route but turns.
pub(super) fn answer(call: &Call, no: AccountNo, path: &str) -> Reply {
    let state = &mut *call.shared.state.lock();
    let Some(account) = state.accounts.get_mut(no.0) else {
        return Reply::json(404, &json!({ "detail": "Not Found" }));
    };
    let body = match path {
        "/codex/models" => {
            let etag = models_etag(&account.spec);
            let fresh = text(&call.head.headers, "if-none-match") == Some(etag.as_str());
            let headers = vec![("etag".to_owned(), etag)];
            return if fresh {
                Reply { code: 304, headers, body: String::new() }
            } else {
                let models: Vec<_> = account.spec.models.iter().map(|slug| model(slug)).collect();
                Reply::json(200, &json!({ "models": models })).with(headers)
            };
        },
        "/wham/usage" => {
            account.quota.roll();
            let mut usage = account.quota.usage(&account.spec);
            let own = account.own.as_mut().map(Own::usage);
            usage["additional_rate_limits"] = own.into_iter().collect();
            usage
        },
        "/wham/accounts/check" => accounts(state, no),
        "/wham/rate-limit-reset-credits" => around::credits(&account.spec.reset_credits),
        "/wham/workspace-messages" => json!({ "messages": [] }),
        path if path.starts_with("/ps/plugins/") => json!({ "plugins": [] }),
        _ => json!({}),
    };
    Reply::json(200, &body)
}

/// The workspaces of the user, the asking one as the default.
fn accounts(state: &State, no: AccountNo) -> Value {
    let Some(asking) = state.account(no).map(|account| &account.spec) else { return json!({}) };
    let theirs = state.accounts.iter().map(|a| &a.spec).filter(|s| s.user_id == asking.user_id);
    let list: Vec<_> = theirs
        .clone()
        .map(|spec| {
            json!({
                "id": spec.workspace_id,
                "name": spec.name,
                "structure": "personal",
                "profile_picture_url": null,
                "workspace_backend_origin": spec.origin.as_deref().unwrap_or("NO_CONSTRAINT"),
                "account_routing_override": spec.routing.as_deref().unwrap_or("NO_CONSTRAINT"),
            })
        })
        .collect();
    let order: Vec<_> = theirs.map(|spec| spec.workspace_id.clone()).collect();
    json!({
        "accounts": list,
        "account_ordering": order,
        "default_account_id": asking.workspace_id,
    })
}

/// Differs whenever the list of models does.
pub(super) fn models_etag(spec: &AccountSpec) -> String {
    let mut hasher = DefaultHasher::new();
    spec.models.hash(&mut hasher);
    format!("W/\"{:016x}\"", hasher.finish())
}

fn model(slug: &str) -> Value {
    let levels: Vec<_> = ["low", "medium", "high"]
        .into_iter()
        .map(|effort| json!({ "effort": effort, "description": effort }))
        .collect();
    json!({
        "slug": slug,
        "display_name": slug,
        "description": "A simulated model",
        "default_reasoning_level": "medium",
        "supported_reasoning_levels": levels,
        "shell_type": "shell_command",
        "visibility": "list",
        "minimal_client_version": "0.1.0",
        "supported_in_api": true,
        "priority": 1,
        "availability_nux": null,
        "upgrade": null,
        "base_instructions": "You are a simulated agent.",
        "supports_reasoning_summaries": true,
        "default_reasoning_summary": "auto",
        "support_verbosity": true,
        "default_verbosity": "low",
        "apply_patch_tool_type": "freeform",
        "truncation_policy": { "mode": "tokens", "limit": 10_000 },
        "supports_parallel_tool_calls": true,
        "supports_image_detail_original": false,
        "context_window": 272_000,
        "max_context_window": 272_000,
        "auto_compact_token_limit": null,
        "effective_context_window_percent": 95,
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"],
        "prefer_websockets": true,
        "supports_search_tool": false,
    })
}

//! The pool written down, and such a writing read in again.
//!
//! Without credentials it is an inventory; with them it is a second copy of every login, so it goes
//! only into a new file that nobody else may read, and says so.

use super::{Draft, Found, Harvest, Into, json, token::Raw};
use crate::{
    fault::Fault,
    store::record::{Gone, Record},
};
use cma_proto::{
    error::ErrorCode,
    takeover::{EXPORT_FORMAT, Exported, ExportedAccount},
};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use std::{io::Write as _, path::Path, sync::Arc};
use zeroize::Zeroizing;

pub(super) const FORMAT: &str = EXPORT_FORMAT;
const LAYOUT: u32 = 1;

/// The pool without its credentials.
pub(crate) fn metadata(records: &[Arc<Record>], pin: Option<String>, now: u64) -> Exported {
    let account = |record: &Arc<Record>| ExportedAccount {
        id: record.id.clone(),
        user: record.user.clone(),
        workspace: record.workspace.clone(),
        email: record.email.clone(),
        plan: record.plan.clone(),
        label: record.label.clone(),
        enabled: record.enabled,
        tags: record.tags.clone(),
        notes: record.notes.clone(),
        pools: record.pools.clone(),
        issuer: record.issuer.clone(),
        backend: record.backend.clone(),
        expires_at: record.expires_at,
        gone: record.gone.as_ref().map(|gone| gone.cause.clone()),
    };
    Exported {
        format: EXPORT_FORMAT.to_owned(),
        layout: LAYOUT,
        exported_at: now,
        secrets_in: None,
        pin,
        accounts: records.iter().map(account).collect(),
    }
}

/// Writes the same with the credentials to a new file, mode 0600, durably. Blocks on the disk.
///
/// # Errors
/// [`ErrorCode::BadRequest`] when something is there already, [`ErrorCode::Store`].
pub(crate) fn with_secrets(
    path: &Path,
    exported: &Exported,
    records: &[Arc<Record>],
) -> Result<(), Fault> {
    let broken =
        |error: serde_json::Error| Fault::internal(format!("can't write an export: {error}"));
    let mut value = serde_json::to_value(exported).map_err(broken)?;
    if let Some(accounts) = value.get_mut("accounts").and_then(Value::as_array_mut) {
        for (account, record) in accounts.iter_mut().zip(records) {
            let tokens = json!({
                "id_token": record.tokens.id_token.expose_secret(),
                "access_token": record.tokens.access_token.expose_secret(),
                "refresh_token": record.tokens.refresh_token.as_ref().map(|t| t.expose_secret()),
            });
            if let Some(account) = account.as_object_mut() {
                account.insert("tokens".to_owned(), tokens);
            }
        }
    }
    let bytes = Zeroizing::new(serde_json::to_vec_pretty(&value).map_err(broken)?);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Fault::new(
            ErrorCode::BadRequest,
            format!("`{}` is there already, and an export overwrites nothing", path.display()),
            "name a new file: `cmactl export --secrets --to FILE`",
        ),
        _ => Fault::file(path, "write", &error),
    })?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // Half of the logins is worse than none.
        drop(std::fs::remove_file(path));
        Fault::file(path, "write", &error)
    })
}

/// Reads an export in again.
pub(super) fn read(path: &Path, value: &Value, harvest: &mut Harvest) {
    let mut into = Into::new(harvest, FORMAT, path);
    if json::number(value, "layout").is_none_or(|layout| layout > u64::from(LAYOUT)) {
        return into.failed("refused", "its layout is a newer one: upgrade cma");
    }
    let pin = json::text(value, "pin");
    for account in value.get("accounts").and_then(Value::as_array).into_iter().flatten() {
        let id = json::text(account, "id");
        let label = json::name(account, "label");
        let email = json::line(account, "email");
        let name = label.clone().or_else(|| email.clone()).unwrap_or_default();
        let Some(tokens) = account.get("tokens").filter(|tokens| tokens.is_object()) else {
            into.accounts += 1;
            into.refuse(name, email, "it was exported without its login (`--secrets` adds it)");
            continue;
        };
        let gone = json::line(account, "gone").map(|cause| Gone {
            cause,
            since: json::number(value, "exported_at").unwrap_or_default(),
        });
        let pools = json::words(account, "pools");
        into.add(Draft {
            name,
            label,
            tags: json::words(account, "tags"),
            remark: json::line(account, "notes"),
            enabled: json::flag(account, "enabled"),
            gone,
            pool: pools.into_iter().find(|pool| pool != "global"),
            pinned: pin.is_some() && pin == id,
            touched_at: None,
            notes: vec![
                "the exported pool has the same login: one of the two must not be used".to_owned(),
            ],
            raw: Raw {
                access: json::text(tokens, "access_token"),
                refresh: json::text(tokens, "refresh_token"),
                id_token: json::text(tokens, "id_token"),
                workspace: json::text(account, "workspace"),
                email,
            },
        });
    }
    into.read();
}

/// Whether a pinned account is among those found; the first counts.
pub(crate) fn pinned(found: &[Found]) -> Option<&Found> {
    found.iter().find(|one| one.pinned)
}

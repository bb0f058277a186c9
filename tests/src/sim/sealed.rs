//! What belongs to a workspace or an account: sealed items and turn states.
//!
//! `encrypted_content`, of an item or of a part of its output or content, names the workspace it was made in, under a sum that only this upstream can
//! make. What another workspace made is refused as the real one refuses it (openai/codex issues
//! 8145, 13724, 35334: 400 `invalid_encrypted_content`, a compaction by its item's id; some answers
//! lack the code). A turn state belongs to the account and the turn that it was given in (Codex CLI
//! 0.169.0, observed: it is shown for the rest of that turn only); showing it elsewhere is a mistake
//! of whoever stands in between.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::clock::UnixMs;
use super::state::{AccountNo, Shared};
use super::wire::{Call, text};

/// What happens to an item that another workspace sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encrypted {
    /// It is refused with a code.
    #[default]
    Strict,
    /// It is refused with words alone.
    Wordy,
    /// It is read.
    Lenient,
}

/// Every real one begins so.
const PREFIX: &str = "gAAAAAB";

/// Something sealed for a workspace.
pub(super) fn seal(workspace: &str, serial: u64) -> String {
    let plain = format!("{workspace}\n{serial}\n{:016x}", sum(workspace, serial));
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(plain))
}

/// The workspace that something was sealed for.
fn open(sealed: &str) -> Option<String> {
    let plain = BASE64_URL_SAFE_NO_PAD.decode(sealed.strip_prefix(PREFIX)?).ok()?;
    let plain = String::from_utf8(plain).ok()?;
    let (rest, shown) = plain.rsplit_once('\n')?;
    let (workspace, serial) = rest.rsplit_once('\n')?;
    let right = format!("{:016x}", sum(workspace, serial.parse().ok()?));
    (shown == right).then(|| workspace.to_owned())
}

fn sum(workspace: &str, serial: u64) -> u64 {
    let text = format!("only the upstream knows\n{workspace}\n{serial}");
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Why a turn with this body is refused for what it holds, if it is: 400 with this error.
pub(super) fn refusal(shared: &Shared, no: AccountNo, body: &Value) -> Option<Value> {
    let (rule, own) = {
        let state = shared.state.lock();
        (state.config.encrypted, state.account(no)?.spec.workspace_id.clone())
    };
    let items = body.get("input")?.as_array()?;
    for item in items.iter().flat_map(|item| std::iter::once(item).chain(parts(item))) {
        let Some(sealed) = item.get("encrypted_content").and_then(Value::as_str) else { continue };
        let why = match open(sealed) {
            None => "Encrypted content could not be decrypted or parsed.",
            Some(made_in) if made_in != own && rule != Encrypted::Lenient => {
                "Encrypted content organization_id did not match the target organization."
            },
            Some(_) => continue,
        };
        let code = (rule != Encrypted::Wordy).then_some("invalid_encrypted_content");
        let what = named(item, sealed);
        return Some(json!({
            "message": format!("The encrypted content {what} could not be verified. Reason: {why}"),
            "type": "invalid_request_error",
            "param": null,
            "code": code,
        }));
    }
    None
}

/// The parts of an item.
fn parts(item: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["output", "content"].into_iter().filter_map(|name| item.get(name)?.as_array());
    lists.flatten()
}

/// As the real one names it: by its ends, a compaction by its id.
fn named(item: &Value, sealed: &str) -> String {
    let id = item.get("id").and_then(Value::as_str).filter(|id| id.starts_with("cmp_"));
    match (id, sealed.get(..4), sealed.get(sealed.len().saturating_sub(4)..)) {
        (Some(id), _, _) => format!("for item {id}"),
        (None, Some(head), Some(tail)) => format!("{head}...{tail}"),
        _ => sealed.to_owned(),
    }
}

/// A turn state of an account for the turn of a request.
pub(super) fn turn_state(call: &Call, no: AccountNo) -> String {
    format!("ts-{}-{}-{}", no.0, UnixMs::now().0, turn_of(call))
}

/// Notes a turn state that is another account's or another turn's.
pub(super) fn check_turn_state(call: &Call, no: AccountNo) {
    let Some(shown) = text(&call.head.headers, "x-codex-turn-state") else { return };
    let mut parts = shown.splitn(4, '-').skip(1);
    let (owner, turn) = (parts.next(), parts.nth(1));
    if owner != Some(no.0.to_string().as_str()) {
        call.breach("a turn state of another account");
    } else if turn != Some(turn_of(call).as_str()) {
        call.breach("a turn state of another turn");
    }
}

fn turn_of(call: &Call) -> String {
    text(&call.head.headers, "x-codex-turn-metadata")
        .and_then(|metadata| serde_json::from_str::<Value>(metadata).ok())
        .and_then(|metadata| Some(metadata.get("turn_id")?.as_str()?.to_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_here_opens() {
        let sealed = seal("acct-a", 7);
        assert_eq!(open(&sealed).as_deref(), Some("acct-a"));
        for forged in ["gAAAAAB", "Y29tcGFjdGVk", "", &sealed[1..], &sealed[..sealed.len() - 2]] {
            assert_eq!(open(forged), None, "{forged}");
        }
        let forged = BASE64_URL_SAFE_NO_PAD.encode("acct-b\n7\n0000000000000000");
        assert_eq!(open(&format!("{PREFIX}{forged}")), None);
    }
}

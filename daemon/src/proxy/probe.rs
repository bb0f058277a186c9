//! How far an account is used, as the usage endpoint tells it; asking spends nothing.

use super::{Proxy, aux};
use crate::clock;
use bytes::Bytes;
use cma_core::{
    identity::AccountId,
    quota::{self, Window},
};
use http::{Request, StatusCode};
use serde_json::Value;
use std::sync::Arc;

/// An account's windows, or why they can't be told.
pub(crate) async fn windows(proxy: &Arc<Proxy>, id: &AccountId) -> Result<Vec<Window>, String> {
    if proxy.vault.current(id).is_none() {
        return Err("it has no token; run `cmactl status`".to_owned());
    }
    let request = Request::get("/backend-api/wham/usage").body(());
    let (parts, ()) = request.map_err(|error| error.to_string())?.into_parts();
    let answer = aux::ask(proxy, id, &parts, Bytes::new()).await;
    let Some((head, bytes)) = answer else { return Err("no answer from upstream".to_owned()) };
    match head.status {
        StatusCode::OK => {},
        StatusCode::UNAUTHORIZED => return Err("its token was refused".to_owned()),
        status => return Err(format!("upstream answered {status}")),
    }
    let usage: Value = serde_json::from_slice(&bytes)
        .map_err(|_no_json| "upstream's answer can't be read".to_owned())?;
    let windows = quota::from_usage(&usage, clock::wall());
    // No number is no knowledge: it is never taken for nothing used.
    if windows.is_empty() {
        return Err("upstream's answer names no window".to_owned());
    }
    Ok(windows)
}

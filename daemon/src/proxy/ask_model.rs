//! A real request to a model, the smallest there is, to learn an account's windows.
//!
//! Only for a person who asks for just that: it spends quota and begins windows. It comes in at our
//! own door with a key for that one account, like any client's: so it has its row in the ledger, its
//! part of the budgets, and what it teaches about the account is learned as from any other.

use super::Proxy;
use crate::project::Bounds;
use bytes::{Bytes, BytesMut};
use cma_core::{
    identity::AccountId,
    quota::Window,
    scope::{Pools, Scope},
};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// A short answer of a model that thinks a little.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long it is looked whether the pool has learned something, and how often.
const LEARNED: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(10);
/// Of the answer, which is a few events.
const MAX_ANSWER: usize = 1024 * 1024;
/// Of a refusal's text for a person.
const MAX_SAID: usize = 300;

/// An account's windows as they are known after it answered, or why it didn't.
pub(crate) async fn windows(
    proxy: &Arc<Proxy>,
    id: &AccountId,
    model: &str,
) -> Result<Vec<Window>, String> {
    let before = known(proxy, id).await?;
    let asked = tokio::time::timeout(TIMEOUT, ask(proxy, id, model));
    let answer = asked.await.map_err(|_late| "no answer in a minute".to_owned())?;
    // What an answer teaches reaches the pool behind the answer.
    let until = Instant::now() + LEARNED;
    let mut after = known(proxy, id).await?;
    while after == before && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
        after = known(proxy, id).await?;
    }
    match answer {
        // A limit is an answer too, where it says how far the account is used.
        Ok(()) | Err(_) if after != before => Ok(after),
        Ok(()) => Err("upstream's answer names no window".to_owned()),
        Err(why) => Err(why),
    }
}

async fn known(proxy: &Proxy, id: &AccountId) -> Result<Vec<Window>, String> {
    let of = id.clone();
    let windows = proxy.actor.look(move |pool, _now| {
        let account = pool.accounts().iter().find(|account| account.id == of);
        account.map(|account| account.quota.windows().to_vec())
    });
    windows.await.ok().flatten().ok_or_else(|| "it is not in the pool any more".to_owned())
}

async fn ask(proxy: &Arc<Proxy>, id: &AccountId, model: &str) -> Result<(), String> {
    let record = proxy.roster.get(id).ok_or("it is not in the pool any more")?;
    let pools = Pools::of(&record.pools);
    let scope = match pools.projects().first() {
        Some(key) if !pools.global() => Scope::Project { key: Arc::clone(key), fallback: false },
        _ => Scope::Global,
    };
    let bounds = Bounds { scope, accounts: Some([id.clone()].into()), ..Bounds::default() };
    let (key, launch) = proxy.keys.mint(None, None, bounds).map_err(|fault| fault.to_string())?;
    let text = request(proxy, model, (&key, &launch.name())).map_err(|error| error.to_string())?;
    let failed = |what: &str| format!("the daemon's own port {what}");
    let stream = match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port))).await
    {
        Ok(stream) => stream,
        Err(_none) => TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, proxy.port)))
            .await
            .map_err(|error| failed(&error.to_string()))?,
    };
    let (mut sender, driver) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(text).await.map_err(|error| failed(&error.to_string()))?;
        let (head, mut body) = answer.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_cut| "the answer broke off".to_owned())?;
            let data = frame.data_ref().map_or(&[][..], AsRef::as_ref);
            if bytes.len() + data.len() > MAX_ANSWER {
                return Err("the answer is far too long".to_owned());
            }
            bytes.extend_from_slice(data);
        }
        judge(head.status, &head.headers, &bytes)
    };
    // Nobody else drives the connection; it ends with the exchange.
    tokio::pin!(driver);
    tokio::select! {
        judged = exchange => judged,
        _ended = &mut driver => Err(failed("closed the connection")),
    }
}

fn request(
    proxy: &Proxy,
    model: &str,
    (key, name): (&str, &str),
) -> http::Result<Request<Full<Bytes>>> {
    let body = json!({
        "model": model,
        "instructions": "Answer with the word OK and nothing else.",
        "input": [{
            "type": "message", "role": "user",
            "content": [{ "type": "input_text", "text": "OK?" }],
        }],
        "tools": [],
        "reasoning": { "effort": "low" },
        "store": false,
        "stream": true,
    });
    Request::post("/codex/responses")
        .header(header::HOST, format!("127.0.0.1:{}", proxy.port))
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::ACCEPT, "text/event-stream")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("cma/", env!("CARGO_PKG_VERSION")))
        .header("originator", "cma")
        .header("session-id", format!("cma-probe-{name}"))
        .header("x-codex-routing-hint", format!("model={model}"))
        .body(Full::new(Bytes::from(body.to_string())))
}

/// What an answer that isn't a good one says.
fn judge(status: StatusCode, headers: &HeaderMap, bytes: &[u8]) -> Result<(), String> {
    if status == StatusCode::OK {
        let text = String::from_utf8_lossy(bytes);
        let whole =
            text.contains("\"response.completed\"") || text.contains("\"response.incomplete\"");
        return if whole { Ok(()) } else { Err("the answer failed on its way".to_owned()) };
    }
    let said = match serde_json::from_slice::<Value>(bytes) {
        Ok(json) => {
            let message = json.pointer("/error/message").or_else(|| json.get("detail"));
            message.and_then(Value::as_str).map(str::to_owned)
        },
        Err(_text) if headers.contains_key("x-cma-error") => {
            String::from_utf8_lossy(bytes).lines().next().map(str::to_owned)
        },
        Err(_page) => None,
    };
    let said = said.map(|said| said.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect());
    Err(said.unwrap_or_else(|| format!("the answer was {status}")))
}

/// A model's name as it can be asked for.
pub(crate) fn is_a_name(model: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    (1..=128).contains(&model.len()) && model.chars().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_says_why_not() {
        let none = HeaderMap::new();
        let ok = br#"data: {"type":"response.completed","response":{}}"#;
        assert_eq!(judge(StatusCode::OK, &none, ok), Ok(()));
        assert!(judge(StatusCode::OK, &none, b"data: {}").is_err());
        let limit = br#"{"error":{"type":"usage_limit_reached","message":"The limit\nis here"}}"#;
        let said = judge(StatusCode::TOO_MANY_REQUESTS, &none, limit).unwrap_err();
        assert_eq!(said, "The limitis here");
        let detail = br#"{"detail":"The model is not supported"}"#;
        let said = judge(StatusCode::BAD_REQUEST, &none, detail).unwrap_err();
        assert_eq!(said, "The model is not supported");
        let page = judge(StatusCode::BAD_GATEWAY, &none, b"<html>").unwrap_err();
        assert_eq!(page, "the answer was 502 Bad Gateway");
        assert!(is_a_name("gpt-5.5") && !is_a_name("") && !is_a_name("a b\r\n"));
    }
}

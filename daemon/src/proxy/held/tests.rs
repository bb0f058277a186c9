//! What is decided about a stream's beginning, and what leaves of it, however it was cut.

use super::*;
use crate::{
    app::Tasks,
    config::Endpoint,
    network::Network,
    proxy::{body::UpBody, fixtures},
    upstream::Upstream,
};
use cma_core::{identity::AccountId, sniff::Said, time::Wall, verdict::Act};
use http::Request;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const SEEN: Wall = Wall::from_secs(1_000);

/// What became of one answer.
#[derive(Debug, PartialEq)]
struct Became {
    /// How it failed before it showed anything.
    fault: Option<Fault>,
    /// It is not delivered: another account is asked.
    hidden: bool,
    /// What leaves of it; of one that is hidden, what is kept as the word that may be the last.
    down: Vec<u8>,
    /// What is learned from it.
    said: Said,
}

/// Reads a request's next answer as a turn does.
async fn became(upstream: &Arc<Upstream>, account: &AccountId) -> Became {
    let request = Request::builder().uri("/x").body(UpBody::Whole(Bytes::new())).unwrap();
    let answer = upstream.send(account, Box::new(request), |_undone| None).await.unwrap();
    let mut ready = Ready::new(answer);
    assert!(ready.can_be_held());
    // By a clock that stands: what is learned carries its time.
    ready.sniffer = Some(Sniffer::new(SEEN));
    let fault = match ready.hold(Bounds::of(&Streams::default(), false, 0)).await {
        End::Shows => None,
        End::Fault(fault) => Some(fault),
        other => panic!("{other:?}"),
    };
    assert!(ready.broken.is_none());
    let hidden = fault.as_ref().is_some_and(|fault| fault.verdict(SEEN).act != Act::Deliver);
    let (mut down, mut sniffer) = (ready.bytes().to_vec(), ready.sniffer.take().unwrap());
    while let Some(frame) = ready.body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        if !hidden {
            sniffer.feed(&data);
            down.extend_from_slice(&data);
        }
    }
    upstream.give_back(ready.body.into_connection());
    Became { fault, hidden, down, said: sniffer.said() }
}

/// An answer in these pieces. Each is a chunk of its own, which HTTP tells apart even when they arrive
/// in one read: so every run is cut where it should be.
fn answer(pieces: &[&[u8]]) -> Vec<u8> {
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                       transfer-encoding: chunked\r\n\r\n"
        .to_vec();
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        answer.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        answer.extend_from_slice(piece);
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"0\r\n\r\n");
    answer
}

/// A host that answers each request with what lies there for it.
async fn host(tasks: &Tasks) -> (Endpoint, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let next = Arc::new(Mutex::new(Vec::new()));
    let (lies_there, connections) = (Arc::clone(&next), tasks.clone());
    tasks.spawn_idle("host", async move {
        while let Ok((stream, _peer)) = listener.accept().await {
            connections.spawn_idle("connection", serve(stream, Arc::clone(&lies_there)));
        }
    });
    let authority = format!("127.0.0.1:{port}");
    let endpoint = Endpoint {
        base: format!("http://{authority}"),
        tls: false,
        host: "127.0.0.1".to_owned(),
        port,
        authority,
        path: String::new(),
    };
    (endpoint, next)
}

async fn serve(mut stream: TcpStream, next: Arc<Mutex<Vec<u8>>>) {
    let (mut asked, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        asked.extend_from_slice(&buffer[..n]);
        if asked.ends_with(b"\r\n\r\n") {
            asked.clear();
            let answer = next.lock().clone();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn every_split_of_every_stream_of_the_corpus_is_judged_and_leaves_alike() {
    let tasks = Tasks::default();
    let (endpoint, next) = host(&tasks).await;
    let upstream = Upstream::new(endpoint, Network::default(), tasks);
    let account = AccountId::of("u", "w");
    for (name, bytes) in fixtures::streams() {
        *next.lock() = answer(&[&bytes]);
        let whole = became(&upstream, &account).await;
        assert_eq!(whole.down, bytes, "{name}: {whole:?}");
        assert_eq!(whole.hidden, name.starts_with("failed_"), "{name}: {whole:?}");
        let own = name.starts_with("own_");
        assert_eq!(whole.fault.is_some(), whole.hidden || own, "{name}: {whole:?}");
        for (at, halves) in fixtures::halves(&bytes).enumerate() {
            *next.lock() = answer(&halves);
            assert_eq!(became(&upstream, &account).await, whole, "{name} at {at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        *next.lock() = answer(&single);
        assert_eq!(became(&upstream, &account).await, whole, "{name} byte by byte");
    }
}

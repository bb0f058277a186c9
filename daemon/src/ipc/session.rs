//! One connection: hello, then requests, each answered once; at most a few at a time.

use super::{convert, handlers};
use crate::{
    app::{App, Phase},
    fault::Fault,
    proxy::trace::News,
};
use cma_proto::{
    PROTOCOL, PROTOCOL_MIN, VERSION,
    codec::Codec,
    error::{ErrorCode, Refusal},
    frame::{Frame, Kind},
    hello::{self, ClientHello, ServerHello},
    message::{Change, Event, Reply, Request},
};
use interprocess::local_socket::tokio::Stream;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::broadcast::error::RecvError,
};

/// A peer that doesn't take its answer for this long is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// What ends a session: nothing worth more than a debug line.
type Ended = Result<(), String>;

struct Session {
    app: Arc<App>,
    stream: Stream,
    buffer: Vec<u8>,
    codec: Codec,
    pid: Option<u32>,
}

/// Speaks with a peer until it leaves.
pub(crate) async fn run(app: Arc<App>, stream: Stream, pid: Option<u32>) {
    let mut session = Session { app, stream, buffer: Vec::new(), codec: Codec::Json, pid };
    if let Err(why) = session.converse().await {
        tracing::debug!(why, "control session ended");
    }
}

/// Tells a peer why it may not speak.
pub(crate) async fn deny(mut stream: Stream, fault: &Fault) {
    tracing::warn!(%fault, "control connection refused");
    let refused = ServerHello::Refused {
        code: fault.code(),
        message: fault.refusal.message.clone(),
        hint: fault.refusal.hint.clone(),
        min: PROTOCOL_MIN,
        max: PROTOCOL,
    };
    let mut bytes = Vec::new();
    let payload = serde_json::to_vec(&refused).unwrap_or_default();
    if Frame::new(Kind::Hello, 0, payload).encode(&mut bytes).is_ok() {
        drop(tokio::time::timeout(hello::DEADLINE, stream.write_all(&bytes)).await);
    }
}

impl Session {
    async fn converse(&mut self) -> Ended {
        let first = tokio::time::timeout(hello::DEADLINE, self.receive())
            .await
            .map_err(|_elapsed| "no hello in time".to_owned())??;
        if first.kind != Kind::Hello {
            return Err("no hello".to_owned());
        }
        let client: ClientHello = serde_json::from_slice(&first.payload)
            .map_err(|error| format!("unreadable hello: {error}"))?;
        let (protocol, codec) = match hello::negotiate(&client) {
            Ok(chosen) => chosen,
            Err(refused) => return self.hello(&refused).await,
        };
        self.hello(&ServerHello::Welcome {
            protocol,
            codec: codec.name().to_owned(),
            version: VERSION.to_owned(),
            instance: self.app.instance.clone(),
            root: self.app.root.path().to_string_lossy().into_owned(),
            pid: std::process::id(),
            features: Vec::new(),
        })
        .await?;
        self.codec = codec;
        loop {
            let frame = self.receive().await?;
            match frame.kind {
                Kind::Request => self.answer(&frame).await?,
                Kind::Ping => self.send(Kind::Pong, frame.stream, frame.payload).await?,
                Kind::Cancel => self.send(Kind::End, frame.stream, Vec::new()).await?,
                Kind::Hello | Kind::Reply | Kind::Error | Kind::Event | Kind::End | Kind::Pong => {
                    return Err(format!("unexpected {:?} frame", frame.kind));
                },
            }
        }
    }

    async fn answer(&mut self, frame: &Frame) -> Ended {
        let request: Request = match self.codec.decode(&frame.payload) {
            Ok(request) => request,
            Err(error) => {
                let refusal = Refusal::new(
                    ErrorCode::BadRequest,
                    format!("the request is unreadable: {error}"),
                    "use the client that came with this daemon",
                );
                return self.refuse(frame.stream, &refusal).await;
            },
        };
        if request == Request::Subscribe {
            return self.subscribe(frame.stream).await;
        }
        match handlers::handle(&self.app, request, self.pid).await {
            Ok(reply) => self.reply(frame.stream, &reply).await,
            Err(fault) => self.refuse(frame.stream, &fault.refusal).await,
        }
    }

    /// A snapshot, then every change until the peer leaves or the daemon goes.
    async fn subscribe(&mut self, stream: u32) -> Ended {
        // Listening starts before the snapshot is taken: nothing falls between the two.
        let mut changes = self.app.actor.changes();
        let mut news = self.app.proxy.traces.news();
        let mut phases = self.app.phases.watch();
        let status = self.status().await?;
        let mut epoch = status.epoch;
        self.reply(stream, &Reply::Status(Box::new(status))).await?;
        loop {
            let mut byte = [0];
            let change = tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) => {
                        epoch = epoch.max(change.epoch);
                        convert::change(&self.app, &change.topic).await
                    },
                    Err(RecvError::Lagged(_)) => Some(Change::Snapshot { status: Box::new(self.status().await?) }),
                    Err(RecvError::Closed) => None,
                },
                told = news.recv() => match told {
                    Ok(News::Retry { request, account, reason }) => Some(Change::Retry {
                        request: request.to_string(),
                        account: account.to_string(),
                        reason: reason.to_string(),
                    }),
                    Ok(News::Served(trace)) => Some(convert::served(&trace)),
                    Err(RecvError::Lagged(_)) => Some(Change::Snapshot { status: Box::new(self.status().await?) }),
                    Err(RecvError::Closed) => None,
                },
                phase = phases.changed() => {
                    let now = *phases.borrow();
                    if phase.is_err() || now >= Phase::Flushing || self.app.phases.handed_over() {
                        return self.send(Kind::End, stream, Vec::new()).await;
                    }
                    Some(Change::Phase { phase: now.word().to_owned() })
                },
                // A peer on a subscription only ever leaves (or cancels, which ends it as well).
                gone = self.stream.read(&mut byte) => {
                    return match gone {
                        Ok(0) | Err(_) => Ok(()),
                        Ok(_) => self.send(Kind::End, stream, Vec::new()).await,
                    };
                },
            };
            if let Some(change) = change {
                let event = Event { epoch, at_ms: crate::clock::wall().millis(), change };
                let payload = self.codec.encode(&event).map_err(|error| error.to_string())?;
                self.send(Kind::Event, stream, payload).await?;
            }
        }
    }

    async fn status(&self) -> Result<cma_proto::message::Status, String> {
        convert::status(&self.app).await.map_err(|fault| fault.to_string())
    }

    async fn reply(&mut self, stream: u32, reply: &Reply) -> Ended {
        let payload = self.codec.encode(reply).map_err(|error| error.to_string())?;
        self.send(Kind::Reply, stream, payload).await
    }

    async fn refuse(&mut self, stream: u32, refusal: &Refusal) -> Ended {
        let payload = self.codec.encode(refusal).map_err(|error| error.to_string())?;
        self.send(Kind::Error, stream, payload).await
    }

    async fn hello(&mut self, hello: &ServerHello) -> Ended {
        let payload = serde_json::to_vec(hello).map_err(|error| error.to_string())?;
        self.send(Kind::Hello, 0, payload).await
    }

    async fn send(&mut self, kind: Kind, stream: u32, payload: Vec<u8>) -> Ended {
        let mut bytes = Vec::new();
        Frame::new(kind, stream, payload).encode(&mut bytes).map_err(|error| error.to_string())?;
        tokio::time::timeout(WRITE_DEADLINE, self.stream.write_all(&bytes))
            .await
            .map_err(|_elapsed| "the peer doesn't read".to_owned())?
            .map_err(|error| error.to_string())
    }

    async fn receive(&mut self) -> Result<Frame, String> {
        loop {
            if let Ok(frame) = Frame::decode(&mut self.buffer).map_err(|error| error.to_string())? {
                return Ok(frame);
            }
            let mut chunk = [0; 4096];
            let n = self.stream.read(&mut chunk).await.map_err(|error| error.to_string())?;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).to_string());
            }
            self.buffer.extend_from_slice(chunk.get(..n).unwrap_or_default());
        }
    }
}

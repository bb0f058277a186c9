//! A hop of tokio and hyper alone: one thread, `Authorization` replaced, connections upstream kept. No
//! routing, no state: what a daemon on these libraries starts from.

use http::{HeaderValue, header};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1::{self as client, SendRequest},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{
    cell::RefCell,
    io::Write as _,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

type Idle = Rc<RefCell<Vec<SendRequest<Incoming>>>>;

/// Serves until it is killed; its port is its first line. `token` is how long the token is that it writes:
/// one itself would be seen in the arguments of its process.
pub(crate) fn serve(upstream: u16, token: usize) {
    let signed = HeaderValue::from_str(&format!("Bearer {}", "x".repeat(token))).expect("a header");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listening");
        println!("{}", listener.local_addr().expect("an address").port());
        std::io::stdout().flush().expect("told");
        let idle = Idle::default();
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("a socket");
            let (idle, signed) = (Rc::clone(&idle), signed.clone());
            let service = service_fn(move |mut request: Request<Incoming>| {
                let idle = Rc::clone(&idle);
                let headers = request.headers_mut();
                headers.insert(header::AUTHORIZATION, signed.clone());
                headers.insert("chatgpt-account-id", HeaderValue::from_static("acct-a"));
                forward(request, idle, upstream)
            });
            drop(spawn_local(async move {
                let stream = TokioIo::new(stream);
                let _client_gone = server::Builder::new().serve_connection(stream, service).await;
            }));
        }
    });
}

async fn forward(
    request: Request<Incoming>,
    idle: Idle,
    upstream: u16,
) -> hyper::Result<Response<Back>> {
    let kept = idle.borrow_mut().pop().filter(|sender| !sender.is_closed());
    let mut sender = match kept {
        Some(sender) => sender,
        None => connect(upstream).await?,
    };
    sender.ready().await?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, Back { body, kept: Some((sender, idle)) }))
}

async fn connect(upstream: u16) -> hyper::Result<SendRequest<Incoming>> {
    let stream = TcpStream::connect(("127.0.0.1", upstream)).await.expect("the upstream");
    stream.set_nodelay(true).expect("a socket");
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    drop(spawn_local(async move {
        let _upstream_gone = connection.await;
    }));
    Ok(sender)
}

/// An answer's body; at its end the connection is there for the next request.
struct Back {
    body: Incoming,
    kept: Option<(SendRequest<Incoming>, Idle)>,
}

impl Body for Back {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none()
            && let Some((sender, idle)) = self.kept.take()
        {
            idle.borrow_mut().push(sender);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! A hop of tokio and hyper alone: one thread, `Authorization` replaced, connections upstream kept. No
//! routing, no state: what a daemon on these libraries starts from.
//!
//! It uses them as the daemon does: a connection upstream is driven by the task that uses it, so that an
//! answer that comes in one read leaves in one write, and small pieces are written in one.

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
    task::{Context, Poll, Waker, ready},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

type Idle = Rc<RefCell<Vec<Kept>>>;

/// A connection upstream, driven by whoever has it.
struct Kept {
    sender: SendRequest<Incoming>,
    driver: Pin<Box<dyn Future<Output = hyper::Result<()>>>>,
    ended: bool,
}

impl Kept {
    fn drive(&mut self, context: &mut Context<'_>) {
        self.ended = self.ended || self.driver.as_mut().poll(context).is_ready();
    }
}

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
                let served = server::Builder::new().writev(false).serve_connection(stream, service);
                let _client_gone = served.await;
            }));
        }
    });
}

async fn forward(
    request: Request<Incoming>,
    idle: Idle,
    upstream: u16,
) -> hyper::Result<Response<Back>> {
    let kept = idle.borrow_mut().pop().and_then(|mut kept| {
        // It reads that the answer before has ended, or that the upstream has closed.
        kept.drive(&mut Context::from_waker(Waker::noop()));
        (!kept.ended).then_some(kept)
    });
    let mut kept = match kept {
        Some(kept) => kept,
        None => connect(upstream).await?,
    };
    let mut answer = std::pin::pin!(kept.sender.send_request(request));
    let answered = std::future::poll_fn(|context| {
        if let Poll::Ready(answered) = answer.as_mut().poll(context) {
            return Poll::Ready(answered);
        }
        kept.drive(context);
        answer.as_mut().poll(context)
    });
    let (head, body) = answered.await?.into_parts();
    Ok(Response::from_parts(head, Back { body, kept: Some((kept, idle)) }))
}

async fn connect(upstream: u16) -> hyper::Result<Kept> {
    let stream = TcpStream::connect(("127.0.0.1", upstream)).await.expect("the upstream");
    stream.set_nodelay(true).expect("a socket");
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    Ok(Kept { sender, driver: Box::pin(connection), ended: false })
}

/// An answer's body; at its end the connection is there for the next request.
struct Back {
    body: Incoming,
    kept: Option<(Kept, Idle)>,
}

impl Body for Back {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Self { body, kept } = &mut *self;
        let mut frame = Pin::new(&mut *body).poll_frame(cx);
        if frame.is_pending()
            && let Some((kept, _)) = kept
        {
            kept.drive(cx);
            frame = Pin::new(&mut *body).poll_frame(cx);
        }
        let frame = ready!(frame);
        if (frame.is_none() || body.is_end_stream())
            && let Some((kept, idle)) = kept.take()
        {
            idle.borrow_mut().push(kept);
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

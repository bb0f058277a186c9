use super::*;
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::atomic::AtomicUsize,
    task::{Context, Poll, Wake, Waker},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn upstream() -> Arc<Upstream> {
    let endpoint = Endpoint {
        base: "https://backend.test".to_owned(),
        tls: true,
        host: "backend.test".to_owned(),
        port: 443,
        authority: "backend.test".to_owned(),
        path: String::new(),
    };
    Upstream::new(endpoint, Network::default(), Tasks::default())
}

/// A connection of HTTP/2 whose host allows that many streams at once.
async fn shared(upstream: &Upstream, streams: u32) -> Arc<Shared> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    upstream.tasks.spawn_idle("host", async move {
        let service = service_fn(|_request: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        drop(
            http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(streams)
                .serve_connection(TokioIo::new(theirs), service)
                .await,
        );
    });
    Shared::greet(ours, &upstream.tasks).await.unwrap()
}

fn keep(upstream: &Upstream, account: &AccountId, shared: &Arc<Shared>) {
    let mut pools = upstream.pools.lock();
    pools.entry(account.clone()).or_default().shared.push(Arc::clone(shared));
}

#[tokio::test]
async fn requests_sit_on_one_connection_as_many_as_its_host_allows() {
    let (upstream, account) = (upstream(), AccountId::of("u", "w"));
    let connection = shared(&upstream, 2).await;
    keep(&upstream, &account, &connection);
    let mut first = upstream.kept(&account).unwrap();
    assert!(first.is_shared() && first.is_ready());
    let request = Request::builder().uri("/x").header("host", "backend.test");
    let request = request.body(UpBody::Whole(Bytes::new())).unwrap();
    let answered = first.exchange(Box::new(request), &upstream.endpoint).await;
    let Ok(answer) = answered else { panic!("no answer") };
    // The host's settings have come by now: two seats, one is taken.
    let second = upstream.kept(&account).unwrap();
    assert!(upstream.kept(&account).is_none(), "no third seat");
    assert!(upstream.kept(&AccountId::of("u", "x")).is_none(), "nor one for another account");
    assert_eq!(
        http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes(),
        "hello"
    );
    drop(first);
    let third = upstream.kept(&account).unwrap();
    upstream.give_back(third);
    assert!(upstream.kept(&account).is_some());
    drop(second);
    // A request that was given up without a head makes it suspect only after some time.
    drop(Waiting::on(&upstream.kept(&account).unwrap()));
    assert!(connection.serves(MAX_AGE));
}

#[tokio::test]
async fn what_was_open_before_a_sleep_takes_no_request_after_it() {
    let (upstream, account) = (upstream(), AccountId::of("u", "w"));
    let connection = shared(&upstream, 100).await;
    keep(&upstream, &account, &connection);
    assert!(upstream.kept(&account).is_some());
    // The machine slept for a minute: the wall clock went on, the other one stood still.
    let before = clock::wall().millis() - 60_000;
    upstream.clocks.lock().1 = Wall::from_millis(before);
    assert!(upstream.kept(&account).is_none());
    assert!(!connection.serves(MAX_AGE));
    // A clock that was set back is no sleep.
    keep(&upstream, &account, &shared(&upstream, 100).await);
    upstream.clocks.lock().1 = Wall::from_millis(clock::wall().millis() + 60_000);
    assert!(upstream.kept(&account).is_some());
    // And a way that is gone ends them as well.
    upstream.close_idle();
    assert!(upstream.kept(&account).is_none());
}

/// Counts how often its task would be run.
#[derive(Default)]
struct Runs(AtomicUsize);

impl Wake for Runs {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn who_drives_a_connection_is_woken_by_its_host_alone() {
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let mut connection = Connection::greet(ours, AccountId::of("u", "w")).await.unwrap();
    let runs = Arc::new(Runs::default());
    let waker = Waker::from(Arc::clone(&runs));
    let mut context = Context::from_waker(&waker);
    let endpoint = upstream().endpoint.clone();
    let request = Request::post("/x").header("host", "backend.test");
    let request = request.body(UpBody::Whole(Bytes::from_static(b"asked"))).unwrap();
    let answer = {
        let mut exchange = Box::pin(connection.exchange(Box::new(request), &endpoint));
        assert!(exchange.as_mut().poll(&mut context).is_pending());
        assert_eq!(runs.0.load(Ordering::SeqCst), 0, "sending woke its own task");
        let mut asked = vec![0; 1024];
        let n = theirs.read(&mut asked).await.unwrap();
        assert!(asked[..n].ends_with(b"\r\n\r\nasked"), "{:?}", asked[..n].escape_ascii());
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        theirs.write_all(head).await.unwrap();
        assert_eq!(runs.0.load(Ordering::SeqCst), 1);
        match exchange.as_mut().poll(&mut context) {
            Poll::Ready(Ok(answer)) => answer,
            _ => panic!("no answer"),
        }
    };
    let mut body = connection.answered(answer).into_body();
    let mut next = |context: &mut Context<'_>| {
        let next = Pin::new(&mut body).poll_frame(context);
        next.map(|frame| frame.map(|frame| frame.unwrap().into_data().unwrap()))
    };
    assert_eq!(next(&mut context), Poll::Ready(Some(Bytes::from_static(b"hello"))));
    assert_eq!(next(&mut context), Poll::Pending);
    assert_eq!(runs.0.load(Ordering::SeqCst), 1, "reading woke its own task");
    // Plain chunks are one; one that isn't stays, and so do those behind it.
    let rest = b"3\r\nall\r\n3\r\n of\r\n3;x=y\r\n it\r\n1\r\n!\r\n0\r\n\r\n";
    theirs.write_all(rest).await.unwrap();
    assert_eq!(runs.0.load(Ordering::SeqCst), 2);
    for piece in ["all of", " it", "!"] {
        assert_eq!(next(&mut context), Poll::Ready(Some(Bytes::from_static(piece.as_bytes()))));
    }
    assert_eq!(next(&mut context), Poll::Ready(None));
    assert_eq!(runs.0.load(Ordering::SeqCst), 2);
    assert!(body.into_connection().is_ready(), "it takes the next request");
}

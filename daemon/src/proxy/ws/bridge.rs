//! A turn over HTTP and server-sent events, behind a client's WebSocket, where upstream's WebSockets
//! don't work.

use super::{
    flow::{Ended, Flow, Source},
    frame,
    listen::outlasting,
    refusal::BRIDGED,
    session::{Session, Warm, say},
    socket::Socket,
    sse,
    turn::{Step, Turn},
};
use crate::{
    actor::Lease,
    clock,
    proxy::{
        body::UpBody,
        course::{Missed, of_host, patience},
        error_body, headers,
        held::{first_word, is_json},
        surface::standing,
    },
    trouble::Place,
    upstream::Driven,
    vault::Pass,
};
use cma_core::{
    quota,
    verdict::{self, Verdict},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use std::sync::{Arc, atomic::Ordering};

impl Session {
    /// Sends a turn's frame as an HTTP request and passes the answer on as frames.
    pub(super) async fn over_http(
        &mut self,
        local: &mut Socket,
        turn: &mut Turn,
        lease: Lease,
        pass: &Pass,
    ) -> Step {
        if turn.prewarm() {
            return self.warmed(local, turn).await;
        }
        let signed = self.signed(turn, &lease.account);
        let Some((body, inside)) = signed.and_then(|frame| frame::to_http(&frame)) else {
            return Step::Say(frame::unreadable());
        };
        turn.sent();
        let head = self.http_head(&inside);
        let request = || {
            let mut request = Box::new(Request::new(UpBody::Whole(body.clone())));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = self.proxy.responses.clone();
            request.headers_mut().clone_from(&head);
            headers::sign(request.headers_mut(), pass);
            request
        };
        let limit = first_word(self.proxy.config.head_timeout, turn.silences);
        let upstream = Arc::clone(&self.proxy.upstream);
        let mut repeats = 0;
        let again = |_undone| {
            repeats += 1;
            Some(request())
        };
        let send = upstream.send(&lease.account, request(), again);
        let sent = tokio::time::timeout(patience(limit, body.len()), send);
        let sent = outlasting(local, &mut self.next, &mut turn.heard, sent).await;
        turn.course.trace.tried += repeats;
        let Some(sent) = sent else {
            return Step::Over(self.abandoned(turn));
        };
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(failure)) => return self.missed(turn, (lease, pass), &Missed::Failed(failure)),
            Err(_elapsed) => {
                turn.silences += 1;
                return self.missed(turn, (lease, pass), &Missed::TimedOut);
            },
        };
        drop(body);
        let (status, fields) = (response.status(), response.headers());
        if !status.is_success() || verdict::is_page(status, fields) {
            let (parts, mut body) = response.into_parts();
            let (bytes, whole) = error_body::read(&mut body).await;
            if whole {
                upstream.give_back(body.into_connection());
            }
            let own = pass.way.host.is_some();
            return self.refused(turn, (lease, own), &parts, &bytes).await;
        }
        self.stream(local, turn, (lease, pass), response).await
    }

    /// Judges an attempt that no head came of.
    fn missed(&self, turn: &mut Turn, (lease, pass): (Lease, &Pass), missed: &Missed) -> Step {
        let verdict = verdict::classify(&missed.outcome(), clock::wall());
        let verdict = of_host(verdict, pass.way.host.is_some());
        let reason = missed.told(&self.proxy, &verdict.reason);
        self.judged(turn, lease, Verdict { reason, ..verdict }, false)
    }

    /// Passes an HTTP answer's events on.
    async fn stream(
        &mut self,
        local: &mut Socket,
        turn: &mut Turn,
        (lease, pass): (Lease, &Pass),
        response: Response<Driven>,
    ) -> Step {
        let proxy = Arc::clone(&self.proxy);
        proxy.roster.troubles().gone(Place::Backend);
        let (parts, mut body) = response.into_parts();
        lease.quota_seen(quota::from_headers(&parts.headers, clock::wall()));
        let account = lease.account.clone();
        // JSON where a stream was asked for: the error that it is, or nothing that can be told.
        let json = if is_json(&parts.headers) {
            let (bytes, _whole) = error_body::read(&mut body).await;
            frame::error_of(&bytes)
        } else {
            None
        };
        let mut stream = sse::Stream::new(body);
        if let Some(error) = json {
            stream.begin_with(error);
        }
        // What the headers say to the CLI is an event here.
        for event in frame::of_headers(&parts.headers) {
            stream.begin_with(event);
        }
        let patience = turn.patience(&proxy.config);
        let to = (&proxy, &self.launch);
        let standing = standing::of(&proxy, &self.launch).await;
        let mut flow = Flow::new(to, &account, turn.told(), patience, self.wake.as_mut());
        flow.standing = standing;
        let ended = flow.run(local, Source::Http(&mut stream), &mut self.next).await;
        let heard = flow.heard;
        if matches!(ended, Ended::Final(_)) {
            stream.finish(&proxy.upstream);
        }
        if matches!(ended, Ended::Final(None)) {
            // HTTP does what frames did not.
            let host = pass.way.host.as_ref();
            if let Some(since) = turn.doubts.of_host(host) {
                proxy.sockets.breakers.useless(host, since);
            } else if turn.doubts.of_account(&account) {
                proxy.sockets.bridged.add(&account, BRIDGED);
            }
        }
        self.settle(turn, lease, ended, heard).await
    }

    /// Answers a prewarm that would only cost a request over HTTP: its turn brings its input along.
    pub(super) async fn warmed(&mut self, local: &mut Socket, turn: &Turn) -> Step {
        let number = self.proxy.sockets.serial.fetch_add(1, Ordering::Relaxed);
        let id = format!("resp_cma_{number}");
        let Some(input) = frame::input(&turn.frame) else {
            let body = b"the frame has no input";
            return Step::Say(frame::wrap(400, &HeaderMap::new(), body));
        };
        let [created, completed] = frame::warmed(&id);
        self.warm = Some(Warm { id, input, doubts: turn.doubts.clone() });
        match say(local, created).await {
            Ok(()) => Step::Say(completed),
            Err(gone) => Step::Over(Err(gone)),
        }
    }

    /// The head of the HTTP request that stands for a frame.
    fn http_head(&self, inside: &HeaderMap) -> HeaderMap {
        let mut head = self.head.clone();
        // Only the handshake has it (observed, 0.169.0).
        head.remove("openai-beta");
        for (name, value) in inside {
            head.insert(name, value.clone());
        }
        head.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        head.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        head
    }
}

//! What a scripted fault looks like from outside.

use super::*;

#[test]
fn faults_apply_to_their_account_and_route_and_end() {
    let accounts = vec![AccountSpec::new("a"), AccountSpec::new("b")];
    let sim = Sim::start(SimConfig { accounts, ..SimConfig::default() }).unwrap();
    let (a, b) = (login(&sim, "a"), login(&sim, "b"));
    let (a, b) = (token(&a, "access_token"), token(&b, "access_token"));
    sim.fault(Some("a"), Route::Responses, Fault::overloaded(), Some(2));
    assert_eq!(turn(&sim, b).unwrap().status, 200);
    assert_eq!(get(&sim, a, "/wham/usage").status, 200);
    let got = turn(&sim, a).unwrap();
    assert_eq!(got.status, 503);
    assert_eq!(got.json()["error"]["code"], "server_is_overloaded");
    assert_eq!(turn(&sim, a).unwrap().status, 503);
    assert_eq!(turn(&sim, a).unwrap().status, 200);
    sim.fault(None, Route::Any, Fault::rate_limited(Some(7)), None);
    let got = turn(&sim, b).unwrap();
    assert_eq!((got.status, got.header("retry-after")), (429, Some("7")));
    assert_eq!(get(&sim, a, "/wham/usage").status, 429);
    sim.clear_faults();
    let limit = Fault::UsageLimitReached { resets_in: Duration::from_secs(60) };
    sim.fault(Some("a"), Route::Responses, limit, Some(1));
    let got = turn(&sim, a).unwrap();
    assert_eq!(got.header("x-codex-primary-used-percent"), Some("100.0"));
    assert_eq!(got.json()["error"]["plan_type"], "plus");
    assert_eq!(turn(&sim, a).unwrap().status, 200);
    assert_eq!(sim.stats().accounts["a"].faults, 4);
}

#[test]
fn faults_of_the_connection() {
    let sim = start();
    let login = login(&sim, "a");
    let access = token(&login, "access_token");
    for fault in [Fault::ResetBeforeHead, Fault::CloseBeforeHead, Fault::GarbageHead] {
        sim.fault(Some("a"), Route::Responses, fault.clone(), Some(1));
        assert!(turn(&sim, access).is_none(), "{fault:?}");
        assert_eq!(sim.seen().last().unwrap().outcome, Outcome::Dropped);
    }
    assert_eq!(sim.stats().accounts["a"].served, 0);
    sim.fault(Some("a"), Route::Responses, Fault::HangHead, Some(1));
    let mut stream = TcpStream::connect(sim.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let head = format!(
        "POST /backend-api/codex/responses HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {access}\
         \r\ncontent-length: 0\r\n\r\n",
        sim.addr()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(stream);
    eventually(|| sim.seen().last().unwrap().outcome == Outcome::ClientGone);
}

#[test]
fn a_reset_is_a_reset() {
    let sim = start();
    let login = login(&sim, "a");
    let mut kinds = Vec::new();
    for fault in [Fault::ResetBeforeHead, Fault::CloseBeforeHead] {
        sim.fault(None, Route::Usage, fault, Some(1));
        let mut stream = TcpStream::connect(sim.addr()).unwrap();
        let access = token(&login, "access_token");
        let head = format!(
            "GET /backend-api/wham/usage HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {access}\
             \r\n\r\n",
            sim.addr()
        );
        stream.write_all(head.as_bytes()).unwrap();
        kinds.push(stream.read(&mut [0; 16]).map_err(|error| error.kind()));
    }
    assert_eq!(kinds, [Err(std::io::ErrorKind::ConnectionReset), Ok(0)]);
}

#[test]
fn faults_of_the_stream() {
    let sim = start();
    let login = login(&sim, "a");
    let run = |fault: Fault| {
        sim.fault(Some("a"), Route::Responses, fault, Some(1));
        turn(&sim, token(&login, "access_token")).unwrap().body
    };
    for by in [Cut::Reset, Cut::Close, Cut::CleanEnd] {
        let body = run(Fault::CutMidStream { after: 3, by });
        assert_eq!(body.matches("event: ").count(), 3, "{by:?}");
        assert_eq!(body.ends_with("0\r\n\r\n"), by == Cut::CleanEnd, "{by:?}");
        assert_eq!(sim.seen().last().unwrap().outcome, Outcome::Cut);
    }
    let failed = Fault::SseFailed { code: "slow_down".to_owned(), message: "m".to_owned() };
    assert!(run(failed).contains("response.failed"));
    assert_eq!(sim.seen().last().unwrap().outcome, Outcome::Answered);
    let body = run(Fault::Incomplete { reason: "max_output_tokens".to_owned() });
    assert!(body.contains("max_output_tokens"));
    let stall = Fault::StallMidStream { after: 2, pause: Duration::from_millis(50) };
    assert!(run(stall).contains("response.completed"));
    assert_clean(&sim);
}

#[test]
fn nonsense_is_survived() {
    let sim = start();
    for bytes in [&b"\0\x01\x02\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"POST /oauth/token HT"] {
        let mut stream = TcpStream::connect(sim.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(bytes).unwrap();
        read(&mut stream);
    }
    for body in [&b"[]"[..], b"%", b"grant_type=%ff%0", b"{\"grant_type\":1}"] {
        assert_eq!(send(&sim, "POST /oauth/token", &[], body).unwrap().status, 400);
    }
    let login = login(&sim, "a");
    assert_eq!(turn(&sim, token(&login, "access_token")).unwrap().status, 200);
}

#[test]
fn a_closed_door_refuses_and_opens_on_the_same_port() {
    let sim = start();
    let addr = sim.addr();
    let mut open = TcpStream::connect(addr).unwrap();
    sim.stop_listening().unwrap();
    assert!(TcpStream::connect(addr).is_err());
    assert!(matches!(open.read(&mut [0; 1]), Ok(0) | Err(_)));
    sim.stop_listening().unwrap();
    sim.resume_listening().unwrap();
    sim.resume_listening().unwrap();
    let login = login(&sim, "a");
    assert_eq!(turn(&sim, token(&login, "access_token")).unwrap().status, 200);
}

//! Bodies as they are packed, and what headers say.

use super::*;
use crate::proxy::headers::Told;
use serde_json::json;

const REASONING: Without = Without {
    reasoning: Leave::All,
    compaction: Leave::None,
    turn_state: false,
    previous_response: false,
};

fn body() -> Vec<u8> {
    let sealed = json!({"type": "reasoning", "encrypted_content": "gAAAx", "summary": []});
    let message = json!({"type": "message", "role": "user", "content": "hi"});
    json!({"model": "m", "input": [sealed, message]}).to_string().into_bytes()
}

#[test]
fn a_body_is_packed_again_as_it_came() {
    let plain = edit(&body(), Packing::Plain, REASONING).unwrap();
    assert_eq!(plain.dropped.reasoning, 1);
    let packed = zstd::encode_all(body().as_slice(), 1).unwrap();
    let edited = edit(&packed, Packing::Zstd, REASONING).unwrap();
    assert_eq!(zstd::decode_all(&*edited.bytes).unwrap(), plain.bytes);
    assert_eq!((edited.foreign, edited.compactions_left), (plain.foreign, 0));
    assert!(edited.foreign.is_some());
}

#[test]
fn what_cant_be_unpacked_is_left_alone() {
    assert!(edit(&body(), Packing::Other, REASONING).is_none());
    assert!(edit(&body(), Packing::Zstd, REASONING).is_none());
    assert!(edit(b"not JSON", Packing::Plain, REASONING).is_none());
    let packed = zstd::encode_all(body().as_slice(), 1).unwrap();
    assert!(edit(&packed[..packed.len() - 3], Packing::Zstd, REASONING).is_none());
    // A few kilobytes that want to become hundreds of megabytes.
    let bomb = zstd::encode_all(std::io::repeat(b' ').take(MAX_UNPACKED as u64 + 2), 1).unwrap();
    assert!(bomb.len() < 64 * 1024);
    assert!(edit(&bomb, Packing::Zstd, REASONING).is_none());
}

#[test]
fn the_turn_is_read_from_its_metadata() {
    let of = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(headers::METADATA, text.parse().unwrap());
        name(Metadata::of(Said::of(&Told::by(&headers)).metadata).turn_id.as_deref())
    };
    let text = r#"{"root_turn_id":"r","turn_id":"t-1","thread_id":"x","n":{"turn_id":"no"}}"#;
    assert_eq!(of(text).as_deref(), Some("t-1"));
    for none in [r#"{"turn_id":""}"#, r#"{"turn_id":7}"#, "{", "[]", r#"{"turn_id":null}"#] {
        assert_eq!(of(none), None, "{none}");
    }
    assert_eq!(of(""), None);
    assert_eq!(Metadata::of(Said::of(&Told::default()).metadata).turn_id, None);
}

#[test]
fn a_frame_says_its_thread_and_turn_where_the_handshake_is_older() {
    let mut handshake = HeaderMap::new();
    for name in ["session-id", "thread-id", "x-codex-turn-metadata", "version"] {
        handshake.insert(name, HeaderValue::from_static("handshake"));
    }
    let read = |metadata: serde_json::Value| {
        let frame = serde_json::json!({"type": "response.create", "client_metadata": metadata});
        Create::read(&frame.to_string()).unwrap()
    };
    let create = read(serde_json::json!({
        "thread_id": "t-2",
        "x-codex-turn-metadata": "{\"a\": \"é\"}",
        "x-codex-turn-state": "state",
    }));
    let said = Said::in_frame(&create, &handshake);
    assert_eq!(said.thread.as_deref(), Some("t-2"));
    assert_eq!(said.metadata, "{\"a\": \"é\"}".as_bytes());
    assert_eq!(said.state, Some(HeaderValue::from_static("state")));
    // What no header could say is no name and no turn state.
    for wrong in ["", "a\nb", "é"] {
        let create = read(serde_json::json!({
            "thread_id": wrong,
            "x-codex-turn-state": format!("{wrong}\n"),
        }));
        let said = Said::in_frame(&create, &handshake);
        assert_eq!(said.thread.as_deref(), None, "{wrong:?}: it is of another thread than before");
        assert_eq!((said.metadata, said.state), (b"handshake".as_slice(), None));
    }
    let quiet = read(serde_json::json!(null));
    assert_eq!(Said::in_frame(&quiet, &handshake).thread.as_deref(), Some("handshake"));
    assert_eq!(Said::in_frame(&quiet, &HeaderMap::new()).thread, None);
}

#[test]
fn a_wait_is_spoken_as_a_person_would() {
    let spoken = |secs| spoken(Span::from_secs(secs));
    assert_eq!(
        [spoken(1), spoken(59 * 60), spoken(3600), spoken(2 * 3600 + 61)],
        ["1 min", "59 min", "1 h", "2 h 2 min"]
    );
}

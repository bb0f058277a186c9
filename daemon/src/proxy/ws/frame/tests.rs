use super::*;
use http::HeaderName;
use proptest::prelude::*;
use serde_json::json;

const FRAME: &str = concat!(
    r#"{"type":"response.create","model":"gpt-5.5","stream":true,"previous_response_id":"resp_1","#,
    r#""input":[ {"type":"message","text":"a \"quoted\" one"} ],"tools":[],"store":false,"#,
    r#""client_metadata":{"turn_id":"t","x-codex-turn-state":"state","x-codex-window-id":"w:0","#,
    r#""x-codex-ws-stream-request-start-ms":"1","#,
    r#""ws_request_header_x_openai_internal_codex_responses_lite":"true","#,
    r#""ws_request_header_authorization":"Bearer x","x-codex-turn-metadata":"{\"a\": 1}"},"#,
    r#""text":{"verbosity":"low"}}"#,
);

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_frame_is_read_for_what_a_turn_needs() {
    let create = Create::read(FRAME).unwrap();
    assert!(create.is_turn() && !create.is_prewarm());
    assert_eq!(create.previous_response_id.as_deref(), Some("resp_1"));
    assert_eq!((create.model.as_deref(), create.turn_state()), (Some("gpt-5.5"), Some("state")));
    let prewarm = r#"{"type":"response.create","generate":false}"#;
    assert!(Create::read(prewarm).unwrap().is_prewarm());
    assert!(!Create::read(r#"{"type":"response.cancel"}"#).unwrap().is_turn());
    let named = |length: usize| {
        let model = "m".repeat(length);
        Create::read(&format!(r#"{{"type":"response.create","model":"{model}"}}"#)).unwrap().model
    };
    assert!(named(256).is_some() && named(257).is_none(), "what is kept of a frame is bounded");
    for bad in ["", "[]", "{}", r#"{"type":1}"#, "null"] {
        assert!(Create::read(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_turn_state_leaves_and_nothing_else() {
    let edited = with_turn_state(FRAME, None).unwrap();
    let wanted = FRAME.replace(r#""x-codex-turn-state":"state","#, "");
    assert_eq!(&*edited, wanted, "every other byte and its place");
    let edited = with_turn_state(FRAME, Some("another")).unwrap();
    assert_eq!(&*edited, FRAME.replace(r#":"state""#, r#":"another""#));
}

#[test]
fn a_header_of_metadata_is_another_or_leaves_and_nothing_else() {
    let event = r#"{"type":"response.metadata","headers":{"a":"1","X-Models-Etag":"e","b":[2]}}"#;
    let edited = with_header(event, MODELS, Some("\"own\"")).unwrap();
    assert_eq!(&*edited, event.replace(r#""e""#, r#""\"own\"""#));
    let edited = with_header(event, MODELS, None).unwrap();
    assert_eq!(&*edited, event.replace(r#""X-Models-Etag":"e","#, ""));
    assert!(with_header("{}", MODELS, None).is_none());
}

#[test]
fn a_frame_becomes_a_request() {
    let (body, headers) = to_http(FRAME).unwrap();
    let body = value(std::str::from_utf8(&body).unwrap());
    let mut wanted = value(FRAME);
    for name in ["type", "previous_response_id"] {
        wanted.as_object_mut().unwrap().remove(name);
    }
    wanted["client_metadata"] = json!({
        "turn_id": "t", "x-codex-window-id": "w:0", "x-codex-turn-metadata": "{\"a\": 1}",
    });
    assert_eq!(body, wanted);
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "x-codex-turn-metadata",
            "x-codex-turn-state",
            "x-codex-window-id",
            "x-openai-internal-codex-responses-lite",
        ]
    );
}

#[test]
fn a_prewarm_s_input_comes_in_front() {
    let all = whole(FRAME, r#"[{"type":"message","text":"first"}]"#).unwrap();
    let all = value(&all);
    assert_eq!(all["input"].as_array().map(Vec::len), Some(2));
    assert_eq!(all["input"][0]["text"], "first");
    assert_eq!(all.get("previous_response_id"), None);
    assert_eq!(value(&whole(FRAME, "[]").unwrap())["input"], value(FRAME)["input"]);
    assert!(whole(FRAME, "{}").is_none());
}

proptest! {
    #[test]
    fn any_text_does_no_harm(text in "\\PC{0,200}") {
        drop((Create::read(&text), with_turn_state(&text, None), to_http(&text), input(&text)));
        drop((whole(&text, &text), wrap(400, &HeaderMap::new(), text.as_bytes())));
    }

    #[test]
    fn any_damage_to_a_frame_does_no_harm(at in 0..FRAME.len(), with in "[\\x20-\\x7e]{0,4}", cut in 0..40_usize) {
        let end = (at + cut).min(FRAME.len());
        let text = format!("{}{with}{}", &FRAME[..at], &FRAME[end..]);
        if let Some(edited) = with_turn_state(&text, None) {
            prop_assert!(value(&edited)["client_metadata"].get(TURN_STATE).is_none());
        }
        if let Some((body, _headers)) = to_http(&text) {
            prop_assert!(serde_json::from_slice::<Value>(&body).unwrap().get("type").is_none());
        }
    }
}

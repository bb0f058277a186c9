//! What an edit takes out, and that it leaves all else alone.

use super::*;
use proptest::prelude::*;
use serde_json::json;

const ALL: Without = Without {
    reasoning: Leave::All,
    compaction: Leave::All,
    turn_state: true,
    previous_response: true,
};

fn sealed(kind: &str, content: &str) -> Value {
    json!({"type": kind, "id": format!("x_{content}"), "summary": [], "encrypted_content": content})
}

fn message(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

fn read(json: &[u8]) -> Value {
    serde_json::from_slice(json).expect("still JSON")
}

#[test]
fn reasoning_goes_and_every_other_byte_stays() {
    let text = concat!(
        r#"{"model":"m", "input":[{"type":"message","content":"a \"reasoning\" \\"},"#,
        r#"{"type":"reasoning","encrypted_content":"gAAA1"},{"type":"function_call","n":1.50},"#,
        r#"{"type":"reasoning","encrypted_content":null},"reasoning",{"encrypted_content":"x"},"#,
        r#"{"type":"reasoning","encrypted_content":"gAAA2"}],  "z":{"input":[1]}}"#
    );
    let want = concat!(
        r#"{"model":"m", "input":[{"type":"message","content":"a \"reasoning\" \\"},"#,
        r#"{"type":"function_call","n":1.50},{"type":"reasoning","encrypted_content":null},"#,
        r#""reasoning",{"encrypted_content":"x"}],  "z":{"input":[1]}}"#
    );
    let out = strip(text.as_bytes(), &Without { reasoning: Leave::All, ..Without::default() });
    let out = out.unwrap();
    assert_eq!(String::from_utf8(out.json).unwrap(), want);
    assert_eq!(out.dropped.to_string(), "2 reasoning items");
    assert_eq!(out.reasoning, Some(Mark::of(b"gAAA2")));
    let same = strip(text.as_bytes(), &Without::default()).unwrap();
    assert_eq!((same.json, same.dropped.to_string()), (text.as_bytes().to_vec(), "nothing".into()));
}

#[test]
fn only_what_was_foreign_before_goes_again() {
    let body = |items: &[Value]| json!({"input": items}).to_string();
    let upto = |mark: &str| Without {
        reasoning: Leave::Upto(Mark::of(mark.as_bytes())),
        ..Without::default()
    };
    let text =
        body(&[sealed("reasoning", "a"), sealed("reasoning", "b"), sealed("reasoning", "c")]);
    let out = strip(text.as_bytes(), &upto("b")).unwrap();
    assert_eq!(read(&out.json), json!({"input": [sealed("reasoning", "c")]}));
    assert_eq!((out.dropped.reasoning, out.reasoning), (2, Some(Mark::of(b"b"))));
    // After a compaction they are gone from the thread.
    let out = strip(text.as_bytes(), &upto("gone")).unwrap();
    assert_eq!(
        (out.json, out.dropped, out.reasoning),
        (text.into_bytes(), Dropped::default(), None)
    );
}

#[test]
fn a_word_stands_where_a_part_was_sealed() {
    let part = |sealed: &str| json!({"type": "encrypted_content", "encrypted_content": sealed});
    let said = json!({"type": "input_text", "text": "found"});
    let result =
        |parts: &[Value]| json!({"type": "function_call_output", "call_id": "c", "output": parts});
    let from = |parts: &[Value]| json!({"type": "agent_message", "author": "x", "content": parts});
    let odd = json!({"type": "function_call_output", "output": [part("x"), {"type": "encrypted_content", "encrypted_content": null}, 1]});
    let items = [
        result(&[said.clone(), part("a")]),
        message("u"),
        from(&[part("b"), part("c")]),
        json!({"type": "function_call_output", "output": "encrypted_content"}),
        odd.clone(),
    ];
    let text = json!({"model": "m", "input": items}).to_string();
    // A message between agents is a task: left out by name alone.
    let some = Without { reasoning: Leave::All, ..Without::default() };
    let out = strip(text.as_bytes(), &some).unwrap();
    assert_eq!((out.dropped.parts, out.compactions_left), (2, 1));
    assert_eq!(read(&out.json)["input"][2], items[2]);
    let all = Without { reasoning: Leave::All, compaction: Leave::All, ..Without::default() };
    let out = strip(text.as_bytes(), &all).unwrap();
    let word: Value = serde_json::from_slice(LEFT_OUT).unwrap();
    let mut left = odd;
    left["output"][0] = word.clone();
    let want = [
        result(&[said.clone(), word.clone()]),
        message("u"),
        from(&[word.clone(), word.clone()]),
        items[3].clone(),
        left,
    ];
    assert_eq!(read(&out.json), json!({"model": "m", "input": want}));
    assert_eq!((out.dropped.to_string(), out.dropped.sealed()), ("4 sealed parts".into(), 4));
    let upto = Without { reasoning: Leave::Upto(Mark::of(b"a")), ..Without::default() };
    let out = strip(text.as_bytes(), &upto).unwrap();
    assert_eq!((out.dropped.parts, out.reasoning), (1, Some(Mark::of(b"a"))));
    assert_eq!(read(&out.json)["input"][4], items[4]);
}

#[test]
fn a_compaction_goes_only_by_name() {
    let text =
        json!({"input": [message("u"), sealed("compaction", "s"), sealed("reasoning", "r")]});
    let text = text.to_string();
    let only = Without { reasoning: Leave::All, ..Without::default() };
    let out = strip(text.as_bytes(), &only).unwrap();
    assert_eq!((out.compactions_left, out.dropped.compactions, out.compaction), (1, 0, None));
    let out = strip(text.as_bytes(), &ALL).unwrap();
    assert_eq!(read(&out.json), json!({"input": [message("u")]}));
    assert_eq!(out.dropped.to_string(), "1 reasoning item, 1 compaction item");
    assert_eq!((out.compactions_left, out.compaction), (0, Some(Mark::of(b"s"))));
}

#[test]
fn ids_of_the_connection_go_from_wherever_they_stand() {
    let state = r#""x-codex-turn-state":"TS""#;
    for (metadata, left) in [
        (format!(r#"{{{state},"a":"1"}}"#), r#"{"a":"1"}"#),
        (format!(r#"{{"a":"1", {state}}}"#), r#"{"a":"1"}"#),
        (format!(r#"{{"a":"1",{state} ,"b":"2"}}"#), r#"{"a":"1" ,"b":"2"}"#),
        (format!("{{{state}}}"), "{}"),
    ] {
        let text = format!(
            r#"{{"previous_response_id":"resp_1","type":"response.create","input":[],"client_metadata":{metadata}}}"#
        );
        let out = strip(text.as_bytes(), &ALL).unwrap();
        let want = format!(r#"{{"type":"response.create","input":[],"client_metadata":{left}}}"#);
        assert_eq!(String::from_utf8(out.json).unwrap(), want);
        assert_eq!(out.dropped.to_string(), "turn state, previous response id");
    }
}

#[test]
fn what_is_no_request_is_not_edited() {
    for text in [
        "",
        "[]",
        "{",
        r#"{"input":"text"}"#,
        r#"{"input":[],"input":[]}"#,
        r#"{"input":[}"#,
        "\u{0}",
        r#"{"input":[{"type":"reasoning","type":"message","encrypted_content":"x"}]}"#,
        r#"{"input":[{"type":"reasoning""#,
        r#"{"a":"\"#,
    ] {
        assert_eq!(strip(text.as_bytes(), &ALL), Err(Unreadable), "{text}");
    }
    // Depth costs nothing.
    let deep = format!(r#"{{"input":[{}{}]}}"#, "[".repeat(200_000), "]".repeat(200_000));
    assert_eq!(strip(deep.as_bytes(), &ALL).unwrap().json, deep.into_bytes());
}

#[test]
fn the_refusal_is_known_in_its_shapes() {
    let words = "The encrypted content gAAA...RQ== could not be verified. Reason: Encrypted content \
                 organization_id did not match the target organization.";
    let kind = "invalid_request_error";
    for foreign in [
        json!({"error": {"message": words, "type": kind, "param": null, "code": CODE}}),
        json!({"error": {"message": words, "type": kind, "code": null}}),
        json!({"type": "error", "status": 400, "error": {"code": CODE}}),
        json!({"type": "response.failed", "response": {"error": {"code": CODE, "message": ""}}}),
        json!({"detail": words}),
    ] {
        assert!(is_foreign(&foreign), "{foreign}");
    }
    for other in [
        json!({"error": {"message": words, "type": kind, "code": "other"}}),
        json!({"error": {"message": "Missing required parameter: 'input'.", "code": null}}),
        json!({"detail": "Unsupported"}),
        json!("invalid_encrypted_content"),
        Value::Null,
    ] {
        assert!(!is_foreign(&other), "{other}");
    }
}

fn item() -> impl Strategy<Value = Value> {
    let text = "[ -~äß\\\\\"\n\u{1f600}]{0,12}";
    prop_oneof![
        text.prop_map(|text| message(&text)),
        text.prop_map(|text| sealed("reasoning", &text)),
        text.prop_map(|text| sealed("compaction", &text)),
        text.prop_map(
            |text| json!({"type": "function_call_output", "output": {"a": [text, null]}})
        ),
        text.prop_map(Value::String),
    ]
}

fn is(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |item| item.get("type").is_some_and(|known| known == kind)
}

proptest! {
    /// The same as reading it all, taking the items out and writing it again.
    #[test]
    fn an_edit_is_what_a_reader_would_do(
        items in prop::collection::vec(item(), 0..12),
        pretty in any::<bool>(),
        compactions in any::<bool>(),
        (state, previous) in any::<(bool, bool)>(),
    ) {
        let mut whole = json!({"model": "m", "input": items, "client_metadata": {"a": "b"}, "n": 1});
        if state {
            whole["client_metadata"]["x-codex-turn-state"] = json!("TS");
        }
        if previous {
            whole["previous_response_id"] = json!("resp_1");
        }
        let text = if pretty { format!("{whole:#}") } else { whole.to_string() };
        let compaction = if compactions { Leave::All } else { Leave::None };
        let out = strip(text.as_bytes(), &Without { compaction, ..ALL }).unwrap();
        let mut want = json!({"model": "m", "input": items, "client_metadata": {"a": "b"}, "n": 1});
        want["input"].as_array_mut().unwrap().retain(|item| {
            !(is("reasoning")(item) || compactions && is("compaction")(item))
        });
        prop_assert_eq!(read(&out.json), want);
        prop_assert_eq!(out.dropped.reasoning as usize, items.iter().filter(|i| is("reasoning")(i)).count());
        prop_assert_eq!(out.dropped.turn_state, state);
        prop_assert_eq!(out.dropped.previous_response, previous);
        // What was taken out isn't found again, and what stays isn't touched again.
        let again = strip(&out.json, &Without { compaction, ..ALL }).unwrap();
        prop_assert_eq!(again.json, out.json);
        prop_assert!(again.dropped.is_nothing());
    }

    /// Whatever bytes come, nothing panics.
    #[test]
    fn bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        shaped in "[\\[\\]{}\",:\\\\ a]{0,40}",
    ) {
        drop(strip(&bytes, &ALL));
        drop(strip(shaped.as_bytes(), &ALL));
        drop(strip(format!("{{\"input\":[{shaped}]}}").as_bytes(), &ALL));
    }
}

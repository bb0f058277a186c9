//! Frames of the Responses WebSocket: what a turn's frame says, and the few edits it can need.
//!
//! A frame is passed on as its bytes came. It is only written anew where it has to say something else:
//! without a turn state that another account gave, or as the body of an HTTP request. Edits keep every
//! other field as it stands, and its place. Pure; a frame comes from a client, and may be anything.

use crate::{bound, models, skim::Skim};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use std::{borrow::Cow, fmt, sync::Arc};

/// Where a turn's frame carries the sticky token that an earlier answer gave (observed, 0.169.0).
pub const TURN_STATE: &str = "x-codex-turn-state";
/// Where metadata carries the tag of the model list.
pub const MODELS: &str = "x-models-etag";
/// Fields of a frame that an HTTP body doesn't have.
const ONLY_HERE: [&str; 3] = ["type", "generate", "previous_response_id"];
/// Headers that a frame carries inside its metadata, by this prefix and with underscores.
const HEADER_FIELD: &str = "ws_request_header_";
/// What most frames are.
const CREATE: &str = "response.create";
/// Metadata that is a header over HTTP, by the same name.
const ALSO_HEADERS: [&str; 3] = [TURN_STATE, "x-codex-turn-metadata", "x-codex-window-id"];
/// Metadata that only means something on a WebSocket.
const STAYS: [&str; 3] = [TURN_STATE, "x-codex-ws-stream-request-start-ms", "traceparent"];

/// What is looked at in a client's frame. The rest is passed over.
#[derive(Debug)]
pub struct Create {
    /// What it asks for.
    pub kind: Cow<'static, str>,
    /// The model.
    pub model: Option<Arc<str>>,
    /// The response that it goes on from.
    pub previous_response_id: Option<String>,
    /// False for a prewarm.
    pub generate: Option<bool>,
    turn_state: Option<String>,
    thread: Option<Arc<str>>,
    metadata: Option<String>,
}

impl Create {
    /// Reads a frame; `None` when it is no object with a type. What isn't looked at may be anything:
    /// upstream is who reads it.
    pub fn read(text: &str) -> Option<Self> {
        let (mut kind, mut model, mut previous, mut generate) = (None, None, None, None);
        let (mut state, mut thread, mut turn) = (None, None, None);
        let mut said = false;
        Skim::whole(text.as_bytes(), |frame, name| match name {
            b"type" => frame.text(&mut kind),
            b"model" => frame.text(&mut model),
            b"previous_response_id" => frame.text(&mut previous),
            b"generate" => frame.truth(&mut generate),
            b"client_metadata" if !std::mem::replace(&mut said, true) => {
                frame.optional(|metadata, name| match name {
                    b"x-codex-turn-state" => metadata.text(&mut state),
                    b"x-codex-turn-metadata" => metadata.text(&mut turn),
                    b"thread_id" => metadata.text(&mut thread),
                    _ => metadata.pass(),
                })
            },
            b"client_metadata" => None,
            _ => frame.pass(),
        })?;
        let kind = kind?;
        Some(Self {
            kind: if kind == CREATE { CREATE.into() } else { kind.into_owned().into() },
            model: model.filter(|model| model.len() <= models::MAX_NAME).map(Arc::from),
            previous_response_id: previous.map(Cow::into_owned),
            generate,
            turn_state: state.map(Cow::into_owned),
            thread: thread.map(Arc::from),
            metadata: turn.map(Cow::into_owned),
        })
    }

    /// Whether the frame begins a turn.
    pub fn is_turn(&self) -> bool {
        self.kind == CREATE
    }

    /// Whether it only warms the prompt up.
    pub fn is_prewarm(&self) -> bool {
        self.generate == Some(false)
    }

    /// The sticky token it carries.
    pub fn turn_state(&self) -> Option<&str> {
        self.turn_state.as_deref()
    }

    /// The thread that it is of, where it says so.
    pub const fn thread(&self) -> Option<&Arc<str>> {
        self.thread.as_ref()
    }

    /// What it says of its turn, as JSON.
    pub fn metadata(&self) -> Option<&str> {
        self.metadata.as_deref()
    }
}

/// An object's fields in their order, values untouched.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(InOrder).map(Fields)
    }
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.get())
    }

    /// The object without the fields that `leave` names, and with other values for those that
    /// `change` gives one for.
    fn write(
        &self,
        leave: impl Fn(&str) -> bool,
        change: impl Fn(&str) -> Option<String>,
    ) -> String {
        let size = self.0.iter().map(|(name, value)| name.len() + value.get().len() + 4).sum();
        let mut text = String::with_capacity(size);
        text.push('{');
        for (name, value) in self.0.iter().filter(|(name, _)| !leave(name)) {
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&Value::from(name.as_str()).to_string());
            text.push(':');
            match change(name) {
                Some(changed) => text.push_str(&changed),
                None => text.push_str(value.get()),
            }
        }
        text.push('}');
        text
    }
}

/// The frame with another turn state, or without its own. `None` when it can't be read, which the
/// caller has ruled out.
pub fn with_turn_state(text: &str, state: Option<&str>) -> Option<String> {
    let fields = Fields::read(text)?;
    let metadata = Fields::read(fields.get("client_metadata")?)?;
    let metadata = metadata.write(
        |name| name == TURN_STATE && state.is_none(),
        |name| {
            state.filter(|_state| name == TURN_STATE).map(|state| Value::from(state).to_string())
        },
    );
    let edited =
        fields.write(|_| false, |name| (name == "client_metadata").then(|| metadata.clone()));
    Some(edited)
}

/// An event of metadata with another value of one of its headers, or without it. `None` when it can't
/// be read.
pub fn with_header(text: &str, header: &str, value: Option<&str>) -> Option<String> {
    let fields = Fields::read(text)?;
    let headers = Fields::read(fields.get("headers")?)?;
    let is_it = |name: &str| name.eq_ignore_ascii_case(header);
    let headers = headers.write(
        |name| value.is_none() && is_it(name),
        |name| value.filter(|_value| is_it(name)).map(|value| Value::from(value).to_string()),
    );
    let edited = fields.write(|_| false, |name| (name == "headers").then(|| headers.clone()));
    Some(edited)
}

/// Whether an error, as a frame or a body, says that upstream can't read something sealed.
pub fn is_foreign(error: &[u8]) -> bool {
    serde_json::from_slice(error).is_ok_and(|error| bound::is_foreign(&error))
}

/// A frame as an HTTP request: its body, and the headers that it carries inside.
pub fn to_http(text: &str) -> Option<(String, HeaderMap)> {
    let fields = Fields::read(text)?;
    let mut headers = HeaderMap::new();
    let metadata = fields.get("client_metadata").and_then(Fields::read).map(|metadata| {
        let all = metadata.0.iter();
        headers.extend(all.filter_map(|(name, value)| header(name, value.get())));
        let stays = |name: &str| STAYS.contains(&name) || name.starts_with(HEADER_FIELD);
        metadata.write(stays, |_| None)
    });
    let change = |name: &str| metadata.clone().filter(|_| name == "client_metadata");
    let body = fields.write(|name| ONLY_HERE.contains(&name), change);
    Some((body, headers))
}

/// The frame with its whole input, where it goes on from one that was never sent and had this input.
pub fn whole(text: &str, before: &str) -> Option<String> {
    let fields = Fields::read(text)?;
    let input = joined(before, fields.get("input")?)?;
    let change = |name: &str| (name == "input").then(|| input.clone());
    Some(fields.write(|name| name == "previous_response_id", change))
}

/// A frame's input, as it stands.
pub fn input(text: &str) -> Option<String> {
    Fields::read(text)?.get("input").map(str::to_owned)
}

/// Two arrays as one.
fn joined(first: &str, second: &str) -> Option<String> {
    let inner = |text: &str| {
        let text = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim().to_owned();
        Some(text)
    };
    let (first, second) = (inner(first)?, inner(second)?);
    let comma = if first.is_empty() || second.is_empty() { "" } else { "," };
    Some(format!("[{first}{comma}{second}]"))
}

/// The header that a field of the metadata stands for.
fn header(field: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = match field.strip_prefix(HEADER_FIELD) {
        Some(name) => name.replace('_', "-"),
        None if ALSO_HEADERS.contains(&field) => field.to_owned(),
        None => return None,
    };
    // What says who is asking is ours to say.
    if !name.starts_with("x-codex-") && !name.starts_with("x-openai-internal-") {
        return None;
    }
    let value: String = serde_json::from_str(value).ok()?;
    Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
}

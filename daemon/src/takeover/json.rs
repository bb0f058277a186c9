//! Fields of foreign JSON, each taken only when it is of its type; what isn't is as good as missing.

use serde_json::Value;

/// A line shown to people: longer ones are nobody's name or remark.
const MAX_LINE: usize = 500;
/// As many as a label may have.
const MAX_NAME: usize = 64;

/// A string that isn't empty.
pub(super) fn text(value: &Value, name: &str) -> Option<String> {
    let text = value.get(name)?.as_str()?;
    (!text.trim().is_empty()).then(|| text.to_owned())
}

/// The first of several spellings.
pub(super) fn any(value: &Value, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| text(value, name))
}

/// A string for people: no control characters, at most 500.
pub(super) fn line(value: &Value, name: &str) -> Option<String> {
    text(value, name).map(|text| shown(&text, MAX_LINE)).filter(|text| !text.is_empty())
}

/// A string that can be a label.
pub(super) fn name(value: &Value, name: &str) -> Option<String> {
    text(value, name).and_then(|text| label(&text))
}

/// Text as a label.
pub(super) fn label(text: &str) -> Option<String> {
    Some(shown(text, MAX_NAME)).filter(|text| !text.is_empty())
}

fn shown(text: &str, most: usize) -> String {
    let clean: String = text.chars().filter(|c| !c.is_control()).take(most).collect();
    // A token in a place for words is nobody's word.
    if clean.contains("eyJ") { String::new() } else { clean.trim().to_owned() }
}

/// A list of words.
pub(super) fn words(value: &Value, name: &str) -> Vec<String> {
    let list = value.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).filter_map(label).take(64).collect()
}

/// A whole number that isn't negative.
pub(super) fn number(value: &Value, name: &str) -> Option<u64> {
    value.get(name)?.as_u64()
}

/// A yes or no.
pub(super) fn flag(value: &Value, name: &str) -> Option<bool> {
    value.get(name)?.as_bool()
}

/// Milliseconds since 1970, as seconds; fractions are cut.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be in range, and fractions are to be cut"
)]
pub(super) fn millis(value: &Value, name: &str) -> Option<u64> {
    let ms = value.get(name)?.as_f64()?;
    // Beyond the year 5000 it is no time.
    (0.0..1e14).contains(&ms).then(|| (ms / 1000.0) as u64)
}

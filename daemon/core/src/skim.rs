//! Walks through a JSON text and stops at the few fields that are asked for.
//!
//! A turn's frame carries a whole thread and a final event a whole answer; of either some short fields
//! are looked at, before anything is sent on. A parser that reads each byte takes five instructions for
//! it, here a string is one search for its end.
//!
//! What is taken is read as strictly as serde_json reads it. What is passed over is only looked at for
//! its strings and its nesting: whoever the text is for parses it. Pure; a text may be anything, and
//! what can't be walked through is `None`.

use std::borrow::Cow;

/// Of a string, as much is looked at by words before it is searched: nearly all are names, for which a
/// call would cost more than the look.
const SHORT: usize = 32;

/// A place in a text.
#[derive(Debug, Clone)]
pub struct Skim<'a> {
    rest: &'a [u8],
}

impl<'a> Skim<'a> {
    /// At a text's beginning.
    pub const fn new(text: &'a [u8]) -> Self {
        Self { rest: text }
    }

    /// Reads a text that is one object, as [`Self::object`].
    pub fn whole(text: &'a [u8], field: impl FnMut(&mut Self, &[u8]) -> Option<()>) -> Option<()> {
        let mut skim = Self::new(text);
        skim.object(field)?;
        skim.space();
        skim.rest.is_empty().then_some(())
    }

    /// Walks through the object that comes next. `field` gets each name, and takes or passes its value.
    pub fn object(&mut self, mut field: impl FnMut(&mut Self, &[u8]) -> Option<()>) -> Option<()> {
        self.space();
        self.eat(b'{')?;
        self.space();
        if self.eat(b'}').is_some() {
            return Some(());
        }
        loop {
            self.space();
            let (name, escapes) = self.quoted()?;
            self.space();
            self.eat(b':')?;
            if escapes {
                let name: String = serde_json::from_slice(name).ok()?;
                field(self, name.as_bytes())?;
            } else {
                field(self, inner(name))?;
            }
            self.space();
            match self.next()? {
                b',' => {},
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// The same, or nothing where there is `null`.
    pub fn optional(&mut self, field: impl FnMut(&mut Self, &[u8]) -> Option<()>) -> Option<()> {
        if self.null() { Some(()) } else { self.object(field) }
    }

    /// Takes a text, or nothing where there is `null`, into a field that wasn't there before.
    pub fn text(&mut self, into: &mut Option<Cow<'a, str>>) -> Option<()> {
        let read = if self.null() { None } else { Some(self.string()?) };
        once(into, read)
    }

    /// Takes a truth, or nothing where there is `null`, into a field that wasn't there before.
    pub fn truth(&mut self, into: &mut Option<bool>) -> Option<()> {
        self.space();
        let read = match self.scalar()? {
            b"null" => None,
            b"true" => Some(true),
            b"false" => Some(false),
            _ => return None,
        };
        once(into, read)
    }

    /// Takes a number that counts something into a field that wasn't there before.
    pub fn count(&mut self, into: &mut Option<u64>) -> Option<()> {
        self.space();
        let digits = self.scalar()?;
        if digits.len() > 1 && digits.starts_with(b"0") {
            return None;
        }
        let read = digits.iter().try_fold(0_u64, |sum, digit| {
            let digit = char::from(*digit).to_digit(10)?;
            sum.checked_mul(10)?.checked_add(digit.into())
        })?;
        once(into, Some(read))
    }

    /// Passes the value that comes next.
    pub fn pass(&mut self) -> Option<()> {
        self.space();
        match self.rest.first()? {
            b'"' => self.quoted().map(|_passed| ()),
            b'{' | b'[' => self.nested(),
            _ => self.scalar().map(|_passed| ()),
        }
    }

    /// Passes an object or an array, with all that is in it, however deep.
    fn nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.rest.first()? {
                b'"' => {
                    self.quoted()?;
                    continue;
                },
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {},
            }
            self.next()?;
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// The string that comes next.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        self.space();
        let (quoted, escapes) = self.quoted()?;
        if escapes {
            return serde_json::from_slice::<String>(quoted).ok().map(Cow::Owned);
        }
        let text = inner(quoted);
        let allowed = text.iter().all(|byte| *byte >= 0x20);
        str::from_utf8(text).ok().filter(|_text| allowed).map(Cow::Borrowed)
    }

    /// The string that comes next, with its quotes, and whether anything is escaped in it.
    fn quoted(&mut self) -> Option<(&'a [u8], bool)> {
        let all = self.rest;
        let (mut at, mut escapes) = (1, false);
        self.eat(b'"')?;
        loop {
            at += ends(all.get(at..)?)?;
            if all.get(at) == Some(&b'"') {
                let (quoted, rest) = all.split_at_checked(at + 1)?;
                self.rest = rest;
                return Some((quoted, escapes));
            }
            escapes = true;
            at += 2;
        }
    }

    /// What stands next without quotes.
    fn scalar(&mut self) -> Option<&'a [u8]> {
        let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t');
        let end = self.rest.iter().position(ends).unwrap_or(self.rest.len());
        let (scalar, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        let begins = scalar.first()?;
        matches!(begins, b'-' | b'0'..=b'9' | b't' | b'f' | b'n').then_some(scalar)
    }

    /// Passes `null`, if that comes next; whether it did.
    pub fn null(&mut self) -> bool {
        self.space();
        let rest = self.rest.strip_prefix(b"null");
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn space(&mut self) {
        // Programs write no space: one comparison is nearly always all there is to it.
        while let [byte @ ..=b' ', rest @ ..] = self.rest {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return;
            }
            self.rest = rest;
        }
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        self.rest = self.rest.strip_prefix(&[byte])?;
        Some(())
    }

    fn next(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }
}

/// What is between a string's quotes.
fn inner(quoted: &[u8]) -> &[u8] {
    quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default()
}

/// Where a string ends, or something is escaped in it.
fn ends(text: &[u8]) -> Option<usize> {
    let mut rest = text;
    while text.len() - rest.len() < SHORT {
        let at = text.len() - rest.len();
        let Some((word, after)) = rest.split_first_chunk() else {
            let tail = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
            return Some(at + tail);
        };
        let word = u64::from_le_bytes(*word);
        let marks = zeros(word ^ each(b'"')) | zeros(word ^ each(b'\\'));
        if marks != 0 {
            return Some(at + marks.trailing_zeros() as usize / 8);
        }
        rest = after;
    }
    Some(text.len() - rest.len() + memchr::memchr2(b'"', b'\\', rest)?)
}

/// A byte in each byte of a word.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The highest bit of each byte that is zero, up to the lowest such byte; above it there may be more.
const fn zeros(word: u64) -> u64 {
    word.wrapping_sub(each(1)) & !word & each(0x80)
}

/// Fills a field; one that is there twice says two things.
fn once<T>(field: &mut Option<T>, read: Option<T>) -> Option<()> {
    if field.is_some() {
        return None;
    }
    *field = read;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// The names and the texts of an object's fields, everything else passed.
    fn texts(text: &str) -> Option<Vec<(String, Option<String>)>> {
        let mut out = Vec::new();
        Skim::whole(text.as_bytes(), |skim, name| {
            let mut value = None;
            if matches!(skim.rest.trim_ascii_start().first(), Some(b'"')) {
                skim.text(&mut value)?;
            } else {
                skim.pass()?;
            }
            out.push((str::from_utf8(name).ok()?.to_owned(), value.map(Cow::into_owned)));
            Some(())
        })?;
        Some(out)
    }

    #[test]
    fn what_is_not_asked_for_is_passed_whatever_is_in_it() {
        let text = r#" { "a" : "x\"]}", "b":[{"c":"}\\"},[1,-2e3,null,true]] ,"d": {}, "e":0,
            "\u0066":"\u00e9\n" } "#;
        let all = texts(text).unwrap();
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "d", "e", "f"]);
        assert_eq!(all[0].1.as_deref(), Some("x\"]}"));
        assert_eq!(all[4].1.as_deref(), Some("é\n"));
    }

    #[test]
    fn what_is_no_object_is_none() {
        let texts = [
            "",
            "{",
            "{}x",
            "[]",
            "null",
            "\"a\"",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":"}"#,
            r#"{"a":1,}"#,
            r#"{"a":[}"#,
            r#"{"a":["}"#,
            r#"{a:1}"#,
            r#"{"a":1]"#,
            r#"{"a":"\"#,
            r#"{"\x":1}"#,
            r#"{"a":?}"#,
            r#"{"a":1}}"#,
        ];
        for text in texts {
            assert_eq!(Skim::whole(text.as_bytes(), |skim, _| skim.pass()), None, "{text}");
        }
        // Depth costs nothing.
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(9_000), "]".repeat(9_000));
        assert_eq!(Skim::whole(deep.as_bytes(), |skim, _| skim.pass()), Some(()));
    }

    #[test]
    fn fields_are_of_their_kind_and_there_once() {
        let read = |text: &str| {
            let (mut word, mut yes, mut n) = (None, None, None);
            let walked = Skim::whole(text.as_bytes(), |skim, name| match name {
                b"word" => skim.text(&mut word),
                b"yes" => skim.truth(&mut yes),
                b"n" => skim.count(&mut n),
                _ => skim.pass(),
            });
            walked.map(|()| (word.map(Cow::into_owned), yes, n))
        };
        assert_eq!(
            read(r#"{"word":"a","yes":false,"n":7,"more":[]}"#),
            Some((Some("a".to_owned()), Some(false), Some(7)))
        );
        assert_eq!(read(r#"{"word":null,"yes": null}"#), Some((None, None, None)));
        for wrong in [
            r#"{"word":1}"#,
            r#"{"yes":"true"}"#,
            r#"{"yes":nope}"#,
            r#"{"n":-1}"#,
            r#"{"n":1.5}"#,
            r#"{"n":null}"#,
            r#"{"n":99999999999999999999}"#,
            r#"{"n":01}"#,
            r#"{"n":}"#,
            r#"{"word":"a","word":"b"}"#,
            r#"{"n":1,"n":1}"#,
            "{\"word\":\"a\nb\"}",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_string_ends_at_its_first_mark_wherever_that_is() {
        for length in 0..80 {
            for around in [b'!', b'#', b'[', b']', 0x00, 0x21 | 0x80, b'"' | 0x80, 0xDC, 0xFF] {
                let mut text = vec![around; length];
                assert_eq!(ends(&text), None, "{length} of {around}");
                for at in 0..length {
                    for (first, second) in [(b'"', b'\\'), (b'\\', b'"')] {
                        text[at] = first;
                        if let Some(next) = text.get_mut(at + 1) {
                            *next = second;
                        }
                        assert_eq!(ends(&text), Some(at), "{length} of {around}");
                        text.fill(around);
                    }
                }
            }
        }
    }

    /// Any JSON value.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            r#"[\\"\]\[{},:a ]{0,12}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_object_has_the_fields_that_serde_finds(fields in prop::collection::btree_map(any::<String>(), value(), 0..6), pretty: bool) {
            let object = json!(fields);
            let text = if pretty { format!("{object:#}") } else { object.to_string() };
            let expected: Vec<_> = object.as_object().unwrap().iter()
                .map(|(name, value)| (name.clone(), value.as_str().map(str::to_owned))).collect();
            prop_assert_eq!(texts(&text), Some(expected));
        }

        #[test]
        fn what_serde_reads_is_walked_through_and_nothing_panics(text in r#"[\\"\]\[{},:a10 tnul]{0,24}"#) {
            let text = format!("{{\"a\":{text}}}");
            let walked = Skim::whole(text.as_bytes(), |skim, _| skim.pass());
            if serde_json::from_str::<serde_json::Map<String, Value>>(&text).is_ok() {
                prop_assert_eq!(walked, Some(()));
            }
        }
    }
}

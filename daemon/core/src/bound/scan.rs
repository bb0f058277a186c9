//! Where the parts of a JSON text begin and end, without reading what they hold.
//!
//! Only as much of the grammar as an edit needs: strings, nesting, commas. A text that is not JSON
//! gives no parts or wrong ones, never a panic; whoever edits sends the result to somebody who reads
//! JSON in earnest. Not recursive, so depth costs nothing.

use std::ops::Range;

/// A member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Between the quotes.
    pub(super) key: Range<usize>,
    pub(super) value: Range<usize>,
}

/// The members of the object that begins at `at`.
pub(super) fn members(text: &[u8], at: usize) -> Option<Vec<Member>> {
    let mut found = Vec::new();
    each(text, at, (b'{', b'}'), |from| {
        let end = string_end(text, from)?;
        let key = from + 1..end.checked_sub(1)?;
        let colon = skip(text, end);
        if *text.get(colon)? != b':' {
            return None;
        }
        let value = skip(text, colon + 1);
        let end = value_end(text, value)?;
        found.push(Member { key, value: value..end });
        Some(end)
    })?;
    Some(found)
}

/// The elements of the array that begins at `at`.
pub(super) fn elements(text: &[u8], at: usize) -> Option<Vec<Range<usize>>> {
    let mut found = Vec::new();
    each(text, at, (b'[', b']'), |from| {
        let end = value_end(text, from)?;
        found.push(from..end);
        Some(end)
    })?;
    Some(found)
}

/// The first place at or after `at` that is no white space.
pub(super) fn skip(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')).count()
}

/// Walks over what stands between two brackets, divided by commas. `part` gets where one begins and
/// says where it ends.
fn each(
    text: &[u8],
    at: usize,
    (open, close): (u8, u8),
    mut part: impl FnMut(usize) -> Option<usize>,
) -> Option<()> {
    if *text.get(at)? != open {
        return None;
    }
    let mut at = skip(text, at + 1);
    if *text.get(at)? == close {
        return Some(());
    }
    loop {
        at = skip(text, part(at)?);
        match *text.get(at)? {
            b',' => at = skip(text, at + 1),
            byte => return (byte == close).then_some(()),
        }
    }
}

/// Where the value that begins at `at` has ended.
fn value_end(text: &[u8], at: usize) -> Option<usize> {
    match *text.get(at)? {
        b'"' => string_end(text, at),
        b'{' | b'[' => {
            let (mut at, mut depth) = (at, 0_usize);
            loop {
                match *text.get(at)? {
                    b'"' => at = string_end(text, at)?,
                    b'{' | b'[' => {
                        depth += 1;
                        at += 1;
                    },
                    b'}' | b']' => {
                        depth -= 1;
                        at += 1;
                        if depth == 0 {
                            return Some(at);
                        }
                    },
                    _ => at += 1,
                }
            }
        },
        _ => {
            let rest = text.get(at..)?;
            let ends =
                |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t');
            let length = rest.iter().position(ends)?;
            (length > 0).then_some(at + length)
        },
    }
}

/// Where the string that begins at `at` has ended, its quotes included.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    if *text.get(at)? != b'"' {
        return None;
    }
    let mut at = at + 1;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

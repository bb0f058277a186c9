//! Chunks of an HTTP/1.1 answer that arrive together become one.
//!
//! An upstream writes each event as a chunk of its own, and what reads them costs per chunk, not per byte:
//! eight events that arrived in one read were a sixth of a request's work (docs/performance.md). Where a chunk ends means
//! nothing (RFC 9112, section 7.1). So whole chunks that stand side by side in what was read are written as one,
//! in place, before an HTTP library reads it.
//!
//! Decides nothing about what an answer is, and never judges it: whatever isn't plainly a 200 in chunks is left as it
//! came, and so is an answer from the first byte that isn't as expected. What is left out is framing between chunks;
//! what an HTTP parser makes of the bytes is the same. Pure.

use std::ops::Range;

/// How an answer begins that is looked into.
const BEGINS: &[u8] = b"HTTP/1.1 200 ";
/// How upstreams say that it comes in chunks. Other spellings are left to the library.
const CHUNKED: [&[u8]; 2] =
    [b"\r\nTransfer-Encoding: chunked\r\n", b"\r\ntransfer-encoding: chunked\r\n"];
const LINE: &[u8] = b"\r\n";
/// Digits of a chunk's size: more than is ever read at once.
const MAX_DIGITS: usize = 7;
/// Chunks that become one at most.
const AT_ONCE: usize = 32;

/// What comes next of one connection's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Joiner {
    /// An answer's head.
    Head,
    /// A chunk's size.
    Size,
    /// So many bytes of a chunk, with the line's end behind it.
    Data(usize),
    /// Nothing that is looked into, until the next answer.
    #[default]
    Rest,
}

impl Joiner {
    /// An answer begins with the next byte.
    pub fn begins(&mut self) {
        *self = Self::Head;
    }

    /// Joins what is there of an answer's bytes, in place. Returns how many they are now, from the first on: as many or
    /// fewer, and none only of none.
    pub fn join(&mut self, bytes: &mut [u8]) -> usize {
        let mut from = 0;
        if *self == Self::Head {
            let head = chunked_head(bytes);
            *self = if head.is_some() { Self::Size } else { Self::Rest };
            from = head.unwrap_or_default();
        }
        let mut to = from;
        while from < bytes.len() {
            let part = match *self {
                Self::Data(left) => {
                    let part = from..bytes.len().min(from + left);
                    let left = left - part.len();
                    *self = if left == 0 { Self::Size } else { Self::Data(left) };
                    part
                },
                Self::Size => {
                    if let Some(one) = one(bytes, from, to) {
                        (from, to) = one;
                        continue;
                    }
                    if let Some(only) = chunk(bytes, from) {
                        from..only.end + LINE.len()
                    } else {
                        // What is there of the next one goes as it is.
                        *self = begun(bytes, from).map_or(Self::Rest, Self::Data);
                        from..bytes.len()
                    }
                },
                Self::Head | Self::Rest => from..bytes.len(),
            };
            from = part.end;
            to = moved(bytes, part, to);
        }
        to
    }
}

/// Makes one of the whole chunks from `from` on, at `to`, and says where they ended and it does; `None` when there
/// are fewer than two, or the first has no room for a longer size.
fn one(bytes: &mut [u8], from: usize, to: usize) -> Option<(usize, usize)> {
    let first = chunk(bytes, from)?;
    let (mut last, mut length, mut count) = (first.clone(), first.len(), 1);
    let mut second = None;
    while count < AT_ONCE
        && let Some(next) = chunk(bytes, last.end + LINE.len())
    {
        second.get_or_insert(next.start);
        length += next.len();
        count += 1;
        last = next;
    }
    let line = format!("{length:x}\r\n");
    let data = to + line.len();
    if data + first.len() > second? {
        return None;
    }
    let mut at = data;
    let mut next = Some(first);
    while let Some(data) = next {
        count -= 1;
        // Before what it is read from may be written over.
        next = if count > 0 { chunk(bytes, data.end + LINE.len()) } else { None };
        at = moved(bytes, data, at);
    }
    bytes.get_mut(to..data)?.copy_from_slice(line.as_bytes());
    bytes.get_mut(at..at + LINE.len())?.copy_from_slice(LINE);
    Some((last.end + LINE.len(), at + LINE.len()))
}

/// Moves a part to where it belongs; where that ends.
fn moved(bytes: &mut [u8], part: Range<usize>, to: usize) -> usize {
    let end = to + part.len();
    if part.start != to {
        bytes.copy_within(part, to);
    }
    end
}

/// Where an answer's head ends that is plainly one in chunks.
fn chunked_head(bytes: &[u8]) -> Option<usize> {
    if !bytes.starts_with(BEGINS) {
        return None;
    }
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    // With the end of its last line.
    let head = bytes.get(..end + LINE.len())?;
    let chunked = CHUNKED.iter().any(|name| memchr::memmem::find(head, name).is_some());
    chunked.then_some(end + 2 * LINE.len())
}

/// The data of a chunk that is all there, and not the last one's.
fn chunk(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let (start, size) = size(bytes, from)?;
    let end = start + size;
    (bytes.get(end..end + LINE.len())? == LINE).then_some(start..end)
}

/// How much of a chunk isn't there yet, the end of its line with it.
fn begun(bytes: &[u8], from: usize) -> Option<usize> {
    let (start, size) = size(bytes, from)?;
    (start + size + LINE.len()).checked_sub(bytes.len()).filter(|left| *left > 0)
}

/// Where a chunk's data begins and how long it is; `None` of the last one and of whatever is no plain size.
fn size(bytes: &[u8], from: usize) -> Option<(usize, usize)> {
    let mut size = 0;
    for (at, byte) in bytes.get(from..)?.iter().enumerate().take(MAX_DIGITS + 1) {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if size > 0 => {
                let start = from + at + LINE.len();
                return (bytes.get(from + at..start)? == LINE).then_some((start, size));
            },
            _ => return None,
        };
        size = size * 16 + usize::from(digit);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx: 0\r\n\r\n";

    fn joined(joiner: &mut Joiner, bytes: impl AsRef<[u8]>) -> String {
        let mut bytes = bytes.as_ref().to_vec();
        let length = joiner.join(&mut bytes);
        bytes.truncate(length);
        String::from_utf8(bytes).unwrap()
    }

    /// Of a new answer, in these reads.
    fn all(reads: &[&str]) -> Vec<String> {
        let mut joiner = Joiner::default();
        joiner.begins();
        reads.iter().map(|read| joined(&mut joiner, read)).collect()
    }

    #[test]
    fn whole_chunks_side_by_side_are_one() {
        let body = "3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n";
        let one = "b\r\nonetwothree\r\n0\r\n\r\n";
        assert_eq!(all(&[&format!("{HEAD}{body}")]), [format!("{HEAD}{one}")]);
        assert_eq!(all(&[HEAD, body]), [HEAD, one]);
        // A longer size than the first's.
        let (long, sixteen) = ("x".repeat(255), "y".repeat(16));
        let two = format!("1\r\na\r\nff\r\n{long}\r\n10\r\n{sixteen}\r\n");
        assert_eq!(all(&[HEAD, &two]), [HEAD, &format!("110\r\na{long}{sixteen}\r\n")]);
    }

    #[test]
    fn one_that_is_not_all_there_goes_as_it_is() {
        let reads = [HEAD, "2\r\nab\r\n2\r\ncd\r\n6\r\nef", "gh", "ij\r", "\n1\r\nk\r\n1\r\nl\r\n"];
        let written = [HEAD, "4\r\nabcd\r\n6\r\nef", "gh", "ij\r", "\n2\r\nkl\r\n"];
        assert_eq!(all(&reads), written);
        // A size that is not all there is the last that is looked at.
        let reads = [HEAD, "1\r\na\r\n1\r\nb\r\n1\r", "\nc\r\n1\r\nd\r\n1\r\ne\r\n"];
        let written = [HEAD, "2\r\nab\r\n1\r", "\nc\r\n1\r\nd\r\n1\r\ne\r\n"];
        assert_eq!(all(&reads), written);
    }

    #[test]
    fn what_is_not_plain_stays_as_it_came() {
        let body = "1\r\na\r\n1\r\nb\r\n";
        for head in [
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let read = format!("{head}{body}");
            assert_eq!(all(&[&read, body]), [&read, body], "{head}");
        }
        for odd in [
            "1;a=b\r\na\r\n",
            " 1\r\na\r\n",
            "1\na\n",
            "1\r\nab\r\n",
            "\r\n",
            "g\r\n",
            "00000001\r\na\r\n",
            "0\r\n\r\n",
            "0\r\nx: y\r\n\r\n",
        ] {
            let read = format!("{odd}{body}");
            assert_eq!(all(&[HEAD, &read, body]), [HEAD, &read, body], "{odd}");
            let read = format!("{body}{odd}");
            assert_eq!(all(&[HEAD, &read])[1], format!("2\r\nab\r\n{odd}"), "{odd}");
        }
        let mut joiner = Joiner::default();
        assert_eq!(joined(&mut joiner, format!("{HEAD}{body}")), format!("{HEAD}{body}"));
    }

    #[test]
    fn the_next_answer_is_one_anew() {
        let mut joiner = Joiner::default();
        for _ in 0..2 {
            joiner.begins();
            let read = format!("{HEAD}1\r\na\r\n1\r\nb\r\n0\r\n\r\n");
            assert_eq!(joined(&mut joiner, read), format!("{HEAD}2\r\nab\r\n0\r\n\r\n"));
        }
    }

    proptest! {
        #[test]
        fn the_body_is_the_same_however_it_is_read(
            chunks in proptest::collection::vec(("[a-z]{1,40}", 1_usize..9), 0..60),
            cuts in proptest::collection::vec(0_usize..4000, 0..12),
        ) {
            let chunks: Vec<String> = chunks.iter().map(|(text, n)| text.repeat(*n)).collect();
            let body: String = chunks.iter().map(|one| format!("{:x}\r\n{one}\r\n", one.len())).collect();
            let wire = format!("{HEAD}{body}0\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(wire.len())).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            cuts.dedup();
            let reads: Vec<&str> = cuts.windows(2).map(|two| &wire[two[0]..two[1]]).collect();
            let written = all(&reads);
            prop_assert!(written.iter().zip(&reads).all(|(one, read)| !one.is_empty() && one.len() <= read.len()));
            let written = written.concat();
            let mut rest = written.strip_prefix(HEAD).unwrap();
            let mut whole = String::new();
            while let Some((size, after)) = rest.split_once("\r\n") {
                let size = usize::from_str_radix(size, 16).unwrap();
                let (data, after) = after.split_at(size);
                whole.push_str(data);
                rest = after.strip_prefix("\r\n").unwrap();
                if size == 0 {
                    break;
                }
            }
            prop_assert_eq!(rest, "");
            prop_assert_eq!(whole, chunks.concat());
        }
    }
}

//! Messages of a WebSocket that can be passed on as the bytes they came in.
//!
//! Upstream's frames are not masked, and neither are ours to a client: a text message in one frame is
//! the same bytes on both legs. So an answer's deltas, nearly all that ever comes, go from one buffer to
//! the other without being taken apart. Only what is beyond doubt is plain: whole, final, unmasked,
//! no extension, its length written as it has to be, valid UTF-8 (RFC 6455, section 5.2). Everything else
//! is the library's, which knows the whole protocol. Pure; upstream may send anything.

/// The first byte of a text message in one frame without extensions.
const TEXT: u8 = 0x81;
/// In the first byte: the message ends with this frame.
const FINAL: u8 = 0x80;
/// In the second byte: the payload is masked.
const MASKED: u8 = 0x80;

/// What a frame's head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head itself.
    pub head: usize,
    /// Bytes of the frame, its head among them; as large as can be where it says more than that.
    pub whole: usize,
    /// Whether it is a text message in one frame, told as it has to be.
    pub is_plain: bool,
    /// Whether its message goes on in another frame; `None` for a frame that is of no message.
    pub goes_on: Option<bool>,
}

impl Head {
    /// Reads the head that the bytes begin with; `None` while it isn't there as a whole.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let [first, second, rest @ ..] = bytes else { return None };
        let (payload, mut head, is_short) = match second & !MASKED {
            126 => {
                let length = u16::from_be_bytes(*rest.first_chunk()?);
                (u64::from(length), 4, length > 125)
            },
            127 => {
                let length = u64::from_be_bytes(*rest.first_chunk()?);
                (length, 10, length > u64::from(u16::MAX))
            },
            length => (u64::from(length), 2, true),
        };
        let is_masked = second & MASKED != 0;
        if is_masked {
            head += 4;
        }
        let payload = usize::try_from(payload).unwrap_or(usize::MAX);
        let is_plain = *first == TEXT && !is_masked && is_short;
        // Control frames may come in the middle of a message.
        let goes_on = (first & 0x08 == 0).then_some(first & FINAL == 0);
        Some(Self { head, whole: payload.saturating_add(head), is_plain, goes_on })
    }
}

/// The text of the plain message that the bytes begin with, and how many bytes its frame has.
pub fn first(bytes: &[u8]) -> Option<(&str, usize)> {
    let head = Head::read(bytes).filter(|head| head.is_plain)?;
    let text = simdutf8::basic::from_utf8(bytes.get(head.head..head.whole)?).ok()?;
    Some((text, head.whole))
}

/// How many bytes at the beginning are plain messages of which `is_one` holds.
pub fn run(bytes: &[u8], is_one: impl Fn(&str) -> bool) -> usize {
    let mut run = 0;
    while let Some((text, whole)) = first(bytes.get(run..).unwrap_or_default()) {
        if !is_one(text) {
            break;
        }
        run += whole;
    }
    run
}

/// Writes a text message as a plain frame.
pub fn write(text: &str, to: &mut Vec<u8>) {
    let length = text.len();
    to.push(TEXT);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => to.push(short),
        (_, Ok(length)) => {
            to.push(126);
            to.extend_from_slice(&length.to_be_bytes());
        },
        _ => {
            to.push(127);
            // A length in memory has 64 bits at most.
            to.extend_from_slice(&(length as u64).to_be_bytes());
        },
    }
    to.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        write(text, &mut out);
        out
    }

    #[test]
    fn a_message_is_read_as_it_was_written_at_each_size_of_a_length() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let text = "x".repeat(length);
            let bytes = frame(&text);
            let head = if length < 126 {
                2
            } else if length < 65_536 {
                4
            } else {
                10
            };
            assert_eq!(bytes.len(), length + head);
            assert_eq!(first(&bytes), Some((text.as_str(), bytes.len())));
            let known = Head { head, whole: bytes.len(), is_plain: true, goes_on: Some(false) };
            assert_eq!(Head::read(&bytes), Some(known));
            for short in [0, 1, head - 1, bytes.len() - 1] {
                assert_eq!(first(&bytes[..short]), None, "{length}: {short}");
            }
        }
    }

    #[test]
    fn whatever_else_is_the_librarys() {
        let odd: [(&str, &[u8]); 11] = [
            ("binary", &[0x82, 1, b'x']),
            ("a first part", &[0x01, 1, b'x']),
            ("a last part", &[0x80, 1, b'x']),
            ("a ping", &[0x89, 1, b'x']),
            ("a close", &[0x88, 0]),
            ("compressed", &[0xC1, 1, b'x']),
            ("masked", &[0x81, 0x81, 0, 0, 0, 0, b'x']),
            ("long words for a short length", &[0x81, 126, 0, 1, b'x']),
            ("longer ones", &[0x81, 127, 0, 0, 0, 0, 0, 0, 0, 1, b'x']),
            ("no text", &[0x81, 1, 0xFF]),
            ("an unknown opcode", &[0x83, 1, b'x']),
        ];
        for (what, bytes) in odd {
            assert_eq!(first(bytes), None, "{what}");
            assert_eq!(Head::read(bytes).map(|head| head.whole), Some(bytes.len()), "{what}");
        }
        let endless = [&[0x81, 127][..], &[0xFF; 8]].concat();
        assert_eq!(Head::read(&endless).map(|head| head.whole), Some(usize::MAX));
    }

    #[test]
    fn parts_of_a_message_are_known_and_what_comes_between_them() {
        let goes_on = |first| Head::read(&[first, 0]).and_then(|head| head.goes_on);
        assert_eq!([0x01, 0x00, 0x02].map(goes_on), [Some(true); 3]);
        assert_eq!([0x81, 0x80, 0x82].map(goes_on), [Some(false); 3]);
        assert_eq!([0x88, 0x89, 0x8A].map(goes_on), [None; 3]);
    }

    proptest! {
        #[test]
        fn a_run_ends_before_what_is_not_wanted_or_not_whole(
            texts in prop::collection::vec("[a-zé]{0,200}", 0..8), cut in 0_usize..2_000,
        ) {
            let frames: Vec<_> = texts.iter().map(|text| frame(text)).collect();
            let all = frames.concat();
            let bytes = &all[..cut.min(all.len())];
            let wanted = |text: &str| !text.starts_with('z');
            let mut expected = 0;
            for (text, frame) in texts.iter().zip(&frames) {
                if !wanted(text) || expected + frame.len() > bytes.len() {
                    break;
                }
                expected += frame.len();
            }
            prop_assert_eq!(run(bytes, wanted), expected);
        }

        #[test]
        fn nothing_that_comes_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let run = run(&bytes, |_| true);
            prop_assert!(run <= bytes.len());
            if let Some(head) = Head::read(&bytes) {
                prop_assert!(head.whole >= head.head);
            }
        }
    }
}

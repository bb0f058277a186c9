//! What a client asked with, and how upstream is asked the same once more.
//!
//! hyper takes a request's headers along. Most requests go up once: a second map of them would be made for
//! nothing, with a piece of memory for each name that isn't a standard one. What is kept for another
//! attempt is their bytes, in one piece.

use http::{HeaderMap, HeaderName, HeaderValue, request};

/// A request's head, made ready to go up.
#[derive(Debug)]
pub(super) struct Asked {
    /// Without its headers once they have gone up.
    parts: request::Parts,
    /// For each header a line: its name, a colon, its value. Neither can hold a line's end, no name a colon.
    kept: Vec<u8>,
}

impl Asked {
    pub(super) fn new(parts: request::Parts) -> Self {
        let all = &parts.headers;
        let bytes = all.iter().map(|(name, value)| name.as_str().len() + value.len() + 2);
        let mut kept = Vec::with_capacity(bytes.sum());
        for (name, value) in all {
            kept.extend_from_slice(name.as_str().as_bytes());
            kept.push(b':');
            kept.extend_from_slice(value.as_bytes());
            kept.push(b'\n');
        }
        Self { parts, kept }
    }

    /// Method and path; its headers are elsewhere.
    pub(super) const fn parts(&self) -> &request::Parts {
        &self.parts
    }

    /// The headers for an attempt: the client's own the first time.
    pub(super) fn headers(&mut self) -> HeaderMap {
        let own = std::mem::take(&mut self.parts.headers);
        if own.is_empty() { self.once_more() } else { own }
    }

    /// The headers for another attempt.
    pub(super) fn once_more(&self) -> HeaderMap {
        self.kept.split(|byte| *byte == b'\n').filter_map(header).collect()
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_at_checked(memchr::memchr(b':', line)?)?;
    HeaderName::from_bytes(name).ok().zip(HeaderValue::from_bytes(value.get(1..)?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn every_attempt_has_the_same_headers() {
        let long = "v".repeat(70_000);
        let request = Request::post("/codex/responses")
            .header("accept", "text/event-stream")
            .header("x-codex-own", "1")
            .header("x-codex-own", "2")
            .header("x-empty", "")
            .header("x-colons", "a: b:c:")
            .header("x-long", &long)
            .header("x-bytes", HeaderValue::from_bytes(b"caf\xc3\xa9 \xff").unwrap())
            .body(())
            .unwrap();
        let parts = request.into_parts().0;
        let expected = parts.headers.clone();
        let mut asked = Asked::new(parts);
        assert_eq!(asked.once_more(), expected);
        assert_eq!(asked.headers(), expected);
        assert!(asked.parts().headers.is_empty());
        assert_eq!(asked.parts().uri, "/codex/responses");
        assert_eq!((asked.headers(), asked.once_more()), (expected.clone(), expected));
    }
}

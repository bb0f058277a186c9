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
    /// For each header: how long its name and its value are, the name, the value.
    kept: Vec<u8>,
    count: usize,
}

impl Asked {
    pub(super) fn new(parts: request::Parts) -> Self {
        let all = &parts.headers;
        let bytes = all.iter().map(|(name, value)| 6 + name.as_str().len() + value.len());
        let mut kept = Vec::with_capacity(bytes.sum());
        for (name, value) in all {
            let name = name.as_str().as_bytes();
            // hyper's bounds of a head are far below either.
            let [name_len, value_len] = [name.len(), value.len()];
            kept.extend_from_slice(&u16::try_from(name_len).unwrap_or(u16::MAX).to_le_bytes());
            kept.extend_from_slice(&u32::try_from(value_len).unwrap_or(u32::MAX).to_le_bytes());
            kept.extend_from_slice(name);
            kept.extend_from_slice(value.as_bytes());
        }
        let count = all.len();
        Self { parts, kept, count }
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
        let mut headers = HeaderMap::with_capacity(self.count);
        let mut rest = self.kept.as_slice();
        while let Some((name, value)) = next(&mut rest) {
            headers.append(name, value);
        }
        headers
    }
}

/// Reads one header; none at the end.
fn next(rest: &mut &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let (name_len, behind) = rest.split_first_chunk()?;
    let (value_len, behind) = behind.split_first_chunk()?;
    let (name, behind) = behind.split_at_checked(u16::from_le_bytes(*name_len).into())?;
    let value_len = usize::try_from(u32::from_le_bytes(*value_len)).ok()?;
    let (value, behind) = behind.split_at_checked(value_len)?;
    *rest = behind;
    HeaderName::from_bytes(name).ok().zip(HeaderValue::from_bytes(value).ok())
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

//! Length-prefixed frames: bytes in, frames out, no IO.
//!
//! Layout: `u32` big-endian length of what follows, one byte kind, `u32` big-endian stream id,
//! payload. Limits are checked from the first five bytes, before anything is allocated, so a peer
//! can't make us reserve memory it never sends.

use std::fmt;

/// Bytes of a header: length, kind, stream.
pub const HEADER: usize = 9;
/// Largest hello payload, both ways.
pub const MAX_HELLO: usize = 4 * 1024;
/// Largest request payload.
pub const MAX_REQUEST: usize = 1024 * 1024;
/// Largest reply, event or error payload.
pub const MAX_REPLY: usize = 4 * 1024 * 1024;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The frozen JSON greeting, first frame in each direction.
    Hello = 1,
    /// Client asks.
    Request = 2,
    /// The one answer to a request.
    Reply = 3,
    /// The one refusal of a request.
    Error = 4,
    /// A change, on a subscribed stream.
    Event = 5,
    /// No more events on this stream.
    End = 6,
    /// Client gives up on a stream.
    Cancel = 7,
    /// Are you there.
    Ping = 8,
    /// Yes.
    Pong = 9,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Reply,
            4 => Self::Error,
            5 => Self::Event,
            6 => Self::End,
            7 => Self::Cancel,
            8 => Self::Ping,
            9 => Self::Pong,
            _ => return None,
        })
    }

    /// Largest payload of this kind, in bytes.
    pub const fn limit(self) -> usize {
        match self {
            Self::Hello => MAX_HELLO,
            Self::Request => MAX_REQUEST,
            Self::Reply | Self::Error | Self::Event => MAX_REPLY,
            Self::End | Self::Cancel | Self::Ping | Self::Pong => 64,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Which request it belongs to; chosen by the client, 0 for the hello and pings.
    pub stream: u32,
    /// The encoded body.
    pub payload: Vec<u8>,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The kind byte is none of ours.
    UnknownKind(u8),
    /// The length is over the limit of its kind, or under the header's own share.
    BadLength {
        /// What the prefix said.
        length: usize,
        /// What would have been allowed.
        limit: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind(byte) => write!(f, "unknown frame kind {byte}"),
            Self::BadLength { length, limit } => {
                write!(f, "frame of {length} bytes, {limit} allowed")
            },
        }
    }
}

impl std::error::Error for FrameError {}

impl Frame {
    /// A frame ready to be encoded.
    pub const fn new(kind: Kind, stream: u32, payload: Vec<u8>) -> Self {
        Self { kind, stream, payload }
    }

    /// Appends the frame's bytes to `out`.
    ///
    /// # Errors
    /// [`FrameError::BadLength`] when the payload is over its kind's limit; `out` is unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let limit = self.kind.limit();
        let over = FrameError::BadLength { length: self.payload.len(), limit };
        if self.payload.len() > limit {
            return Err(over);
        }
        let length = u32::try_from(self.payload.len() + HEADER - 4).map_err(|_ignored| over)?;
        out.reserve(HEADER + self.payload.len());
        out.extend_from_slice(&length.to_be_bytes());
        out.push(self.kind as u8);
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.payload);
        Ok(())
    }

    /// Takes one whole frame off the front of `buf`, or says how many bytes it would take.
    ///
    /// `Ok(Err(n))` means: come back when `buf` holds at least `n` bytes. `buf` is unchanged then.
    ///
    /// # Errors
    /// [`FrameError`] when no continuation can make this a frame; the connection is beyond repair.
    pub fn decode(buf: &mut Vec<u8>) -> Result<Result<Self, usize>, FrameError> {
        let Some((length, rest)) = buf.split_first_chunk::<4>() else { return Ok(Err(HEADER)) };
        let Some((&kind, rest)) = rest.split_first() else { return Ok(Err(HEADER)) };
        let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
        let length = u32::from_be_bytes(*length) as usize;
        let limit = kind.limit() + HEADER - 4;
        if length < HEADER - 4 || length > limit {
            return Err(FrameError::BadLength { length, limit });
        }
        let whole = 4 + length;
        let Some((stream, _)) = rest.split_first_chunk::<4>() else { return Ok(Err(HEADER)) };
        if buf.len() < whole {
            return Ok(Err(whole));
        }
        let stream = u32::from_be_bytes(*stream);
        let tail = buf.split_off(whole);
        let payload = std::mem::replace(buf, tail).split_off(HEADER);
        Ok(Ok(Self { kind, stream, payload }))
    }
}

#[cfg(test)]
mod tests;

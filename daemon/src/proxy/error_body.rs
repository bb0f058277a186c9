//! The bodies of errors: read to be judged, within bounds of size and time, and never waited for
//! longer than that.

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use std::time::Duration;

/// Enough of an error to judge it.
pub(super) const MAX_ERROR: usize = 64 * 1024;
/// An error that doesn't come is judged without its body.
pub(super) const ERROR_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads an error's body; whether that was all of it, so that its connection can be used again.
pub(super) async fn read<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> (Bytes, bool) {
    let mut bytes = BytesMut::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > MAX_ERROR {
                    return false;
                }
                bytes.extend_from_slice(data);
            }
        }
        true
    };
    let whole = tokio::time::timeout(ERROR_TIMEOUT, read).await.unwrap_or(false);
    (bytes.freeze(), whole)
}

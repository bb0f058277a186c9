//! The official `auth.json` as bytes: read whole, written as the official CLI writes it.

use crate::{fault::Fault, store::record::Record};
use cma_proto::error::ErrorCode;
use ring::digest;
use secrecy::ExposeSecret as _;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Anything larger is no `auth.json`.
const MAX_FILE: u64 = 1024 * 1024;

/// The file itself where `path` is a link; its folder must be there.
pub(super) fn resolved(path: &Path) -> Result<PathBuf, Fault> {
    let missing = |error: &io::Error| Fault::file(path, "find", error);
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(path).canonicalize();
            Ok(folder.map_err(|error| missing(&error))?.join(path.file_name().unwrap_or_default()))
        },
        Err(error) => Err(missing(&error)),
    }
}

/// What is there now; none when there is no file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Fault> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_FILE => {},
        Ok(_) => {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                format!("`{}` is no login file", path.display()),
                "name the `auth.json` of a Codex home folder",
            ));
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Fault::file(path, "read", &error)),
    }
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::file(path, "read", &error)),
    }
}

/// Tells one content from another.
pub(super) fn print(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        use std::fmt::Write as _;
        let _infallible = write!(hex, "{byte:02x}");
        hex
    })
}

/// A record as the official CLI keeps a login (0.169.0: pretty JSON, these fields).
pub(super) fn rendered(record: &Record, with_refresh: bool) -> Result<Vec<u8>, Fault> {
    let tokens = &record.tokens;
    let refresh = tokens.refresh_token.as_ref().filter(|_| with_refresh);
    let auth = serde_json::json!({
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": null,
        "tokens": {
            "id_token": tokens.id_token.expose_secret(),
            "access_token": tokens.access_token.expose_secret(),
            "refresh_token": refresh.map_or("", |token| token.expose_secret()),
            "account_id": record.workspace,
        },
        "last_refresh": rfc3339(record.renewed_at.unwrap_or(record.imported_at)),
    });
    serde_json::to_vec_pretty(&auth).map_err(|_error| Fault::internal("auth.json can't be written"))
}

/// Seconds since 1970 as `YYYY-MM-DDTHH:MM:SSZ` (the calendar of Howard Hinnant's
/// `civil_from_days`).
fn rfc3339(at: u64) -> String {
    let (days, second) = (at / 86_400, at % 86_400);
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::sum;

    #[test]
    fn times_are_written_as_the_official_cli_writes_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn contents_are_told_apart() {
        assert_eq!(print(b"a"), sum("a"));
        assert_ne!(print(b"a"), print(b"b"));
    }
}

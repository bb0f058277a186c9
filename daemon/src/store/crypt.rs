//! Bytes that only a key opens: the form of a sealed file, and keys made from passphrases.
//!
//! A sealed file is one line and then ciphertext:
//! `cma-sealed 1 xchacha20-poly1305 KEY NONCE KIND/ID⏎…`. The whole line is associated data, so a
//! file that is moved under another account's name, or whose version is edited, doesn't open. Every
//! write draws its own 192-bit nonce; chance can't repeat one of that length.
//!
//! A current file, its previous generation and its copy in `removed/` share one kind and id: a link
//! or a move is no new secret. Which of them is newer is the record's generation, inside.
//!
//! A passphrase becomes a key by Argon2id with RFC 9106's second recommended choice (64 MiB, three
//! passes, four lanes). The parameters stand beside the salt, so that they can grow; what a file
//! asks for is bounded, because that file may be anybody's.

use crate::fault::Fault;
use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{
    Key as CipherKey, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, KeyInit as _, Payload},
};
use cma_proto::error::ErrorCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use std::path::Path;
use zeroize::Zeroizing;

/// How every sealed file begins.
const MAGIC: &str = "cma-sealed ";
const FORM: &str = "1 xchacha20-poly1305";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// A header is one short line; what has none within this is not sealed.
const MAX_HEADER: usize = 512;
/// Bounds of what a seal file may ask of us: a gigabyte, 16 passes, 16 lanes.
const MAX_KDF: (u32, u32, u32) = (1024 * 1024, 16, 16);

/// A key, wiped when it goes. `Debug` shows nothing of it.
#[derive(Clone)]
pub(crate) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// How a passphrase becomes a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kdf {
    /// Memory in KiB.
    memory: u32,
    passes: u32,
    lanes: u32,
    /// Hex.
    salt: String,
}

/// What a sealed file says of itself, in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Which key opens it.
    pub(crate) key: String,
    /// `kind/id`.
    pub(crate) label: String,
    nonce: [u8; NONCE_BYTES],
    length: usize,
}

impl Key {
    /// A new one, by chance.
    pub(crate) fn random() -> Result<Self, Fault> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        fill(bytes.as_mut_slice())?;
        Ok(Self(bytes))
    }

    /// From hex, as a keyring keeps it.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(unhex(text.trim())?);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if bytes.len() != KEY_BYTES {
            return None;
        }
        key.copy_from_slice(&bytes);
        Some(Self(key))
    }

    /// As hex, for a keyring.
    pub(crate) fn to_hex(&self) -> SecretString {
        hex(self.0.as_slice()).into()
    }

    /// Its raw bytes, to be sealed under another key.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// From what another key sealed.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if bytes.len() != KEY_BYTES {
            return None;
        }
        key.copy_from_slice(bytes);
        Some(Self(key))
    }
}

impl Kdf {
    /// Today's parameters and a new salt.
    pub(crate) fn fresh() -> Result<Self, Fault> {
        let mut salt = [0; 16];
        fill(&mut salt)?;
        Ok(Self { memory: 64 * 1024, passes: 3, lanes: 4, salt: hex(&salt) })
    }

    /// The key of a passphrase. Takes a good part of a second and 64 MiB: call it off the loop.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when the parameters are out of bounds.
    pub(crate) fn key(&self, passphrase: &SecretString) -> Result<Key, Fault> {
        let bad = |why: &str| {
            Fault::new(
                ErrorCode::Store,
                format!("the key derivation of the seal can't be used: {why}"),
                "restore `seal.json` from a backup of the root",
            )
        };
        let (memory, passes, lanes) = MAX_KDF;
        if self.memory > memory || self.passes > passes || self.lanes > lanes {
            return Err(bad("its parameters are out of bounds"));
        }
        let salt = unhex(&self.salt).ok_or_else(|| bad("its salt is unreadable"))?;
        let params = Params::new(self.memory, self.passes, self.lanes, Some(KEY_BYTES))
            .map_err(|error| bad(&error.to_string()))?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.expose_secret().as_bytes(), &salt, bytes.as_mut_slice())
            .map_err(|error| bad(&error.to_string()))?;
        Ok(Key(bytes))
    }
}

/// Seals bytes under a key.
///
/// # Errors
/// [`ErrorCode::Internal`] without randomness.
pub(crate) fn seal(key: &Key, key_id: &str, label: &str, plain: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut nonce = [0; NONCE_BYTES];
    fill(&mut nonce)?;
    let head = format!("{MAGIC}{FORM} {key_id} {} {label}\n", hex(&nonce));
    let body = cipher(key)
        .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: head.as_bytes() })
        .map_err(|_too_long| Fault::internal("a file is too long to be sealed"))?;
    let mut sealed = head.into_bytes();
    sealed.extend_from_slice(&body);
    Ok(sealed)
}

/// Whether a file is sealed, however damaged it may be otherwise.
pub(crate) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC.as_bytes())
}

/// What a sealed file says of itself; `None` when it isn't one.
pub(crate) fn header(bytes: &[u8]) -> Option<Header> {
    let line = bytes.get(..bytes.len().min(MAX_HEADER))?;
    let end = line.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(line.get(..end)?).ok()?;
    let mut words = line.strip_prefix(MAGIC)?.strip_prefix(FORM)?.strip_prefix(' ')?.split(' ');
    let (key, nonce, label) = (words.next()?, words.next()?, words.next()?);
    let nonce = unhex(nonce)?.try_into().ok()?;
    words.next().is_none().then(|| Header {
        key: key.to_owned(),
        label: label.to_owned(),
        nonce,
        length: end + 1,
    })
}

/// Opens what [`seal`] made; `None` when the key is another or a bit has changed.
pub(crate) fn open(key: &Key, header: &Header, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (head, body) = sealed.split_at_checked(header.length)?;
    let payload = Payload { msg: body, aad: head };
    cipher(key).decrypt(&XNonce::from(header.nonce), payload).ok().map(Zeroizing::new)
}

/// What a file is, by its place: the same for all generations of one thing.
pub(crate) fn label(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let stem = name.split('.').next().unwrap_or_default();
    let (kind, id) = match &*folder {
        "accounts" if name.contains(".renewal.") => ("renewal", stem),
        "accounts" if name.contains(".flag.") => ("flag", stem),
        "accounts" if name.contains(".lent.") => ("lent", stem),
        _ if name == "project.json" => ("project", &*folder),
        "mirror" => ("mirror", stem),
        "threads" => ("threads", stem),
        "accounts" => ("account", stem),
        "removed" => ("account", stem.rsplit_once('-').map_or(stem, |(id, _at)| id)),
        "backups" => ("backup", stem),
        "damaged" => ("evidence", &*name),
        _ => (stem, "-"),
    };
    format!("{kind}/{id}")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._/-".contains(c) { c } else { '_' })
        .take(200)
        .collect()
}

fn cipher(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&CipherKey::from(*key.0))
}

/// Fills with randomness.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Fault> {
    getrandom::fill(bytes).map_err(|error| Fault::internal(format!("no randomness: {error}")))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String can't fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// The bytes of hex; `None` when it isn't any.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_opens_and_any_changed_bit_is_noticed() {
        let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
        let sealed = seal(&key, "k1", "account/a", b"canary").unwrap();
        let head = header(&sealed).unwrap();
        assert_eq!((head.key.as_str(), head.label.as_str()), ("k1", "account/a"));
        assert_eq!(open(&key, &head, &sealed).unwrap().as_slice(), b"canary");
        assert!(open(&other, &head, &sealed).is_none());
        assert!(!sealed.windows(6).any(|part| part == b"canary"));
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            let opened = header(&bent).and_then(|head| open(&key, &head, &bent));
            assert!(opened.is_none(), "byte {at}");
        }
        let again = seal(&key, "k1", "account/a", b"canary").unwrap();
        assert_ne!(again, sealed, "a nonce of its own for each write");
    }

    #[test]
    fn a_label_is_the_same_for_all_generations_of_one_thing() {
        for (path, wanted) in [
            ("/r/accounts/ab.json", "account/ab"),
            ("/r/accounts/ab.previous.json", "account/ab"),
            ("/r/removed/ab-17.json", "account/ab"),
            ("/r/projects/k/accounts/ab.json", "account/ab"),
            ("/r/accounts/ab.renewal.json", "renewal/ab"),
            ("/r/backups/before.json", "backup/before"),
            ("/r/state.previous.json", "state/-"),
            ("/r/threads/pins.json", "threads/pins"),
            ("/r/damaged/ab json", "evidence/ab_json"),
        ] {
            assert_eq!(label(Path::new(path)), wanted);
        }
    }

    #[test]
    fn a_passphrase_makes_the_same_key_again_and_hostile_parameters_are_refused() {
        let kdf = Kdf { memory: 64, passes: 1, lanes: 1, salt: "00".repeat(16) };
        let key = |text: &str| kdf.key(&text.to_owned().into()).unwrap().to_hex();
        assert_eq!(key("a").expose_secret(), key("a").expose_secret());
        assert_ne!(key("a").expose_secret(), key("b").expose_secret());
        let greedy = Kdf { memory: u32::MAX, ..kdf };
        assert_eq!(greedy.key(&"a".to_owned().into()).unwrap_err().code(), ErrorCode::Store);
    }
}

//! The OpenCode plugin's sealed store, opened.
//!
//! scrypt (N 16384, r 8, p 1: Node's defaults, the envelope names none) makes 32 bytes from the
//! passphrase as typed and a 16-byte salt; AES-256-GCM with a 12-byte nonce and a 16-byte tag, no
//! associated data. Observed with opencode-multi-auth 1.4.3.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::aead;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use zeroize::Zeroizing;

/// log2 of Node's default N.
const LOG_N: u8 = 14;

/// Why a store stays shut.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// Nobody gave a passphrase.
    NoPassphrase,
    /// It doesn't open: a wrong passphrase, or a changed byte.
    Wrong,
    /// The envelope is not whole.
    Broken(&'static str),
}

/// The clear text of a sealed store.
pub(super) fn open(
    envelope: &Value,
    passphrase: Option<&SecretString>,
) -> Result<Zeroizing<Vec<u8>>, Shut> {
    let part = |name: &str, what: &'static str| {
        let text = envelope.get(name).and_then(Value::as_str).ok_or(Shut::Broken(what))?;
        BASE64_STANDARD.decode(text).map_err(|_invalid| Shut::Broken(what))
    };
    let salt = part("salt", "its salt is damaged")?;
    let nonce = part("iv", "its nonce is damaged")?;
    let tag = part("tag", "its tag is damaged")?;
    let mut data = Zeroizing::new(part("data", "its data is damaged")?);
    let nonce = aead::Nonce::try_assume_unique_for_key(&nonce)
        .map_err(|_length| Shut::Broken("its nonce is damaged"))?;
    if tag.len() != aead::AES_256_GCM.tag_len() {
        return Err(Shut::Broken("its tag is damaged"));
    }
    let passphrase = passphrase.ok_or(Shut::NoPassphrase)?;
    let mut key = Zeroizing::new([0_u8; 32]);
    let params = scrypt::Params::new(LOG_N, 8, 1)
        .map_err(|_invalid| Shut::Broken("its key can't be made"))?;
    scrypt::scrypt(passphrase.expose_secret().as_bytes(), &salt, &params, key.as_mut_slice())
        .map_err(|_length| Shut::Broken("its key can't be made"))?;
    let key = aead::UnboundKey::new(&aead::AES_256_GCM, key.as_slice())
        .map_err(|_length| Shut::Broken("its key can't be made"))?;
    data.extend_from_slice(&tag);
    let length = aead::LessSafeKey::new(key)
        .open_in_place(nonce, aead::Aad::empty(), &mut data)
        .map_err(|_wrong| Shut::Wrong)?
        .len();
    data.truncate(length);
    Ok(data)
}

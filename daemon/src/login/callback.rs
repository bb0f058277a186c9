//! What comes back from the issuer by the browser: code and state, or a refusal.
//!
//! The same reading serves the listener and what a person pastes. It decides whether something is
//! a callback at all; whether its state is ours is the session's question.

use oauth2::url::form_urlencoded;

/// Path that the issuer sends the browser back to.
pub(super) const PATH: &str = "/auth/callback";
/// Longer is nothing that an issuer sent.
const MAX: usize = 8 * 1024;

/// What a callback says.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Callback {
    /// The person agreed.
    Code {
        /// To be redeemed once.
        code: String,
        /// Whose answer it is.
        state: String,
    },
    /// Somebody refused.
    Refused {
        /// The issuer's word for it, letters and underscores only.
        error: String,
        /// Whose answer it is.
        state: String,
    },
}

/// Reads the query of a callback.
///
/// # Errors
/// What is missing, for a person.
pub(super) fn query(text: &str) -> Result<Callback, &'static str> {
    if text.len() > MAX {
        return Err("it is too long");
    }
    let mut found = [None, None, None];
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let slot = match &*name {
            "code" => 0,
            "state" => 1,
            "error" => 2,
            _ => continue,
        };
        if let Some(slot) = found.get_mut(slot) {
            // Given twice it is nobody's honest answer.
            if slot.replace(value.into_owned()).is_some() {
                return Err("it says something twice");
            }
        }
    }
    let [code, state, error] = found.map(|value| value.filter(|value| !value.is_empty()));
    let state = state.ok_or("it has no `state`")?;
    match (code, error) {
        (_, Some(error)) => {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let error = error.chars().filter(|c| word(*c)).take(64).collect();
            Ok(Callback::Refused { error, state })
        },
        (Some(code), None) => Ok(Callback::Code { code, state }),
        (None, None) => Err("it has no `code`"),
    }
}

/// Reads what a person pasted: the whole address, its query, or `code#state`.
///
/// # Errors
/// What is wrong with it, for a person.
pub(super) fn pasted(text: &str) -> Result<Callback, &'static str> {
    let text = text.trim().trim_matches(['"', '\'', '<', '>']);
    if text.len() > MAX {
        return Err("it is too long");
    }
    if let Some((_scheme, rest)) = text.split_once("://") {
        let (place, tail) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let host = authority.split(':').next().unwrap_or_default();
        if !matches!(host, "127.0.0.1" | "localhost") || path != PATH {
            return Err(
                "it is not the address the browser ended at (http://127.0.0.1:…/auth/callback?…)",
            );
        }
        let query_or_fragment = tail.trim_start_matches(['?', '#']);
        return query(query_or_fragment.split('#').next().unwrap_or_default());
    }
    match text.trim_start_matches(['?', '#']) {
        text if text.contains('=') => query(text),
        text => match text.split_once('#') {
            Some((code, state)) if !code.is_empty() && !state.is_empty() => {
                Ok(Callback::Code { code: code.to_owned(), state: state.to_owned() })
            },
            _ => Err("it has no `code` and `state`"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(code: &str, state: &str) -> Callback {
        Callback::Code { code: code.to_owned(), state: state.to_owned() }
    }

    #[test]
    fn every_way_of_pasting_gives_the_same() {
        for text in [
            "http://127.0.0.1:1455/auth/callback?code=c%2Fd&state=s",
            " http://localhost:1457/auth/callback?state=s&code=c%2Fd#top\n",
            "http://127.0.0.1:1455/auth/callback#code=c%2Fd&state=s",
            "?code=c/d&state=s",
            "state=s&code=c/d&scope=x",
            "c/d#s",
        ] {
            assert!(pasted(text) == Ok(code("c/d", "s")), "{text}");
        }
    }

    #[test]
    fn what_is_no_callback_is_refused_with_its_reason() {
        for (text, why) in [
            ("", "`code` and `state`"),
            ("hello", "`code` and `state`"),
            ("code=c", "no `state`"),
            ("state=s", "no `code`"),
            ("code=c&state=s&state=t", "twice"),
            ("http://evil.test/auth/callback?code=c&state=s", "not the address"),
            ("http://127.0.0.1:1455/other?code=c&state=s", "not the address"),
        ] {
            let said = pasted(text).err().unwrap_or_default();
            assert!(said.contains(why), "{text}: {said}");
        }
        assert!(pasted(&"x".repeat(9000)).is_err());
    }

    #[test]
    fn a_refusal_is_a_word_and_never_markup() {
        let Ok(Callback::Refused { error, state }) =
            query("error=access_denied%3Cscript%3E&state=s")
        else {
            panic!("a refusal")
        };
        assert_eq!((error.as_str(), state.as_str()), ("access_deniedscript", "s"));
    }
}

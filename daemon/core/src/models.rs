//! Model lists as accounts are told them, and their union.
//!
//! An entry is kept as upstream wrote it, whatever fields it has: only its slug is read. An entry
//! without one is left out. Pure.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::{collections::BTreeSet, sync::Arc};

/// Entries of one list; more are left out. Upstream has a dozen.
const MAX_MODELS: usize = 512;
/// A model's name is a word, in bytes: what is longer is none, and isn't kept.
pub const MAX_NAME: usize = 256;

/// One list as upstream wrote it.
#[derive(Debug)]
pub struct Written {
    models: Vec<(Arc<str>, Box<RawValue>)>,
}

#[derive(Deserialize)]
struct Body {
    models: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Slug {
    slug: String,
}

impl Written {
    /// Reads the body of an answer to `GET models`; `None` where there is no list.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let body: Body = serde_json::from_slice(bytes).ok()?;
        let entry = |model: Box<RawValue>| {
            let Slug { slug } = serde_json::from_str(model.get()).ok()?;
            Some((slug.into(), model))
        };
        Some(Self { models: body.models.into_iter().take(MAX_MODELS).filter_map(entry).collect() })
    }

    /// Its entries, each as it was written.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(|(_slug, model)| model.get())
    }

    /// The slugs of its entries.
    pub fn slugs(&self) -> impl Iterator<Item = &Arc<str>> {
        self.models.iter().map(|(slug, _model)| slug)
    }
}

/// The lists as one: of the entries of a slug the first counts, in the order of the lists.
pub fn union<'a>(lists: impl IntoIterator<Item = &'a Written>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    let all = lists.into_iter().flat_map(|list| &list.models);
    all.filter(|(slug, _model)| seen.insert(slug)).map(|(_slug, model)| model.get()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Written {
        Written::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn of_a_slug_the_first_entry_counts_as_it_was_written() {
        let a = list(r#"{"models":[{"slug":"m","x":1.50},{"slug":"n"},{"no":"slug"},7]}"#);
        let b = list(r#"{"models":[{"slug":"m","x":2},{"slug":"o"}],"more":1}"#);
        assert_eq!(
            union([&a, &b]),
            [r#"{"slug":"m","x":1.50}"#, r#"{"slug":"n"}"#, r#"{"slug":"o"}"#]
        );
        assert_eq!(union([&b, &a]).first(), Some(&r#"{"slug":"m","x":2}"#));
        assert_eq!(a.slugs().map(|slug| &**slug).collect::<Vec<_>>(), ["m", "n"]);
    }

    #[test]
    fn a_list_is_bounded_and_what_is_none_is_none() {
        let many = vec![r#"{"slug":"m"}"#; MAX_MODELS + 1].join(",");
        assert_eq!(list(&format!("{{\"models\":[{many}]}}")).texts().count(), MAX_MODELS);
        for bad in ["", "[]", "{}", r#"{"models":{}}"#, r#"{"models":null}"#] {
            assert!(Written::read(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}

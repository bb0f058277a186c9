//! What tokens would cost at the API: an estimate with bounds, never a bill.
//!
//! The table is data with a date (`daemon/data/prices.toml`). A model that isn't in it gets two
//! bounds, the cheapest and the dearest price of the table, and says so.

use cma_core::usage::Usage;
use serde::Deserialize;
use std::sync::LazyLock;

const TABLE: &str = include_str!("../../data/prices.toml");
/// Nanodollars for a token are thousands of dollars for a million of them.
const NANO: f64 = 1000.0;

static PRICES: LazyLock<Prices> = LazyLock::new(|| Prices::read(TABLE).unwrap_or_default());

/// What a request would have cost, in nanodollars: between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cost {
    pub(crate) low: u64,
    pub(crate) high: u64,
    /// Whether the model's own price is known; the bounds are equal then.
    pub(crate) priced: bool,
}

/// Nanodollars for one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Price {
    input: u64,
    cached: u64,
    output: u64,
}

/// A table of prices.
#[derive(Debug, Default)]
pub(crate) struct Prices {
    dated: String,
    models: Vec<(String, Price)>,
    cheapest: Price,
    dearest: Price,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    dated: String,
    price: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    model: String,
    input: f64,
    cached: f64,
    output: f64,
}

/// The table of this program.
pub(crate) fn table() -> &'static Prices {
    &PRICES
}

impl Prices {
    fn read(text: &str) -> Result<Self, toml::de::Error> {
        let file: File = toml::from_str(text)?;
        let models: Vec<_> = file.price.into_iter().map(Line::price).collect();
        let all = |pick: fn(&Price) -> u64| models.iter().map(move |(_name, price)| pick(price));
        let bound = |end: fn(u64, u64) -> u64| Price {
            input: all(|price| price.input).reduce(end).unwrap_or_default(),
            cached: all(|price| price.cached).reduce(end).unwrap_or_default(),
            output: all(|price| price.output).reduce(end).unwrap_or_default(),
        };
        let (cheapest, dearest) = (bound(u64::min), bound(u64::max));
        Ok(Self { dated: file.dated, models, cheapest, dearest })
    }

    /// The day of its figures, `YYYY-MM-DD`.
    pub(crate) fn dated(&self) -> &str {
        &self.dated
    }

    /// What tokens of a model would cost.
    pub(crate) fn cost(&self, model: Option<&str>, usage: Usage) -> Cost {
        let known = model.and_then(|model| self.price(model));
        let (low, high) = known.map_or((self.cheapest, self.dearest), |price| (price, price));
        Cost { low: low.of(usage), high: high.of(usage), priced: known.is_some() }
    }

    /// The price of the longest name that is the model's, or that it goes on from.
    fn price(&self, model: &str) -> Option<Price> {
        let fits = |name: &str| {
            model.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let named = self.models.iter().filter(|(name, _price)| fits(name));
        named.max_by_key(|(name, _price)| name.len()).map(|(_name, price)| *price)
    }
}

impl Line {
    fn price(self) -> (String, Price) {
        let price =
            Price { input: nano(self.input), cached: nano(self.cached), output: nano(self.output) };
        (self.model, price)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what a price can be"
)]
fn nano(dollars: f64) -> u64 {
    (dollars * NANO).round().clamp(0.0, 1e12) as u64
}

impl Price {
    /// Cached tokens are part of the input, reasoning tokens of the output.
    fn of(self, usage: Usage) -> u64 {
        let fresh = usage.input.saturating_sub(usage.cached);
        let part = |tokens: u64, price: u64| tokens.saturating_mul(price);
        part(fresh, self.input)
            .saturating_add(part(usage.cached.min(usage.input), self.cached))
            .saturating_add(part(usage.output, self.output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage { input: 1000, cached: 400, output: 100, reasoning: 60 };

    #[test]
    fn the_table_of_this_program_is_read_and_dated() {
        assert!(table().models.len() > 5);
        let day: Vec<_> = table().dated().split('-').map(str::len).collect();
        assert_eq!(day, [4, 2, 2], "{}", table().dated());
    }

    #[test]
    fn cached_tokens_cost_less_and_reasoning_is_counted_once() {
        let prices = Prices::read(
            "dated = '2026-01-01'\n[[price]]\nmodel = 'm'\ninput = 2\ncached = 0.2\noutput = 12",
        )
        .unwrap();
        let cost = prices.cost(Some("m"), USAGE);
        // 600 · 2000 + 400 · 200 + 100 · 12000 nanodollars.
        assert_eq!(cost, Cost { low: 2_480_000, high: 2_480_000, priced: true });
        assert_eq!(prices.cost(Some("m-2026-02-01"), USAGE), cost, "a dated name is the model's");
    }

    #[test]
    fn an_unknown_model_has_bounds_and_the_longest_name_wins() {
        let cost = table().cost(Some("nobody-knows-it"), USAGE);
        assert!(!cost.priced && cost.low < cost.high, "{cost:?}");
        for known in ["gpt-5.5", "gpt-5.6-sol", "gpt-5-codex"] {
            let one = table().cost(Some(known), USAGE);
            assert!(one.priced && one.low == one.high && cost.low <= one.low, "{known}");
            assert!(one.high <= cost.high, "{known}");
        }
        assert_eq!(table().cost(None, USAGE), cost);
        assert!(!table().cost(Some("gpt-5.55"), USAGE).priced, "a name is no prefix of another");
        assert!(table().price("gpt-5.6-sol") != table().price("gpt-5.6-luna"));
        assert_eq!(table().cost(Some("x"), Usage::default()), Cost::default());
    }
}

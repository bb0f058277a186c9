//! Quota windows as data: how many, how long and how full is what upstream says, never assumed.
//!
//! A window is known by its limit id (`codex`, …) and its place (`primary`, `secondary`). What is
//! learned later replaces what was learned earlier; older knowledge never does. A window whose
//! reset has passed counts as empty.
//!
//! Where the shapes come from: response headers `x-<limit>-<place>-used-percent`, `-window-minutes`,
//! `-reset-at`; the stream event `codex.rate_limits`; the usage endpoint's `rate_limit` objects.
//! All observed with the official CLI 0.169.0.

use crate::{
    cooldown,
    time::{Now, Span, Wall},
    trail::Trail,
};
use http::HeaderMap;
use serde_json::Value;
use std::sync::Arc;

/// The limit id of ordinary requests.
pub const MAIN_LIMIT: &str = "codex";
/// More windows than this in one answer are ignored: no upstream has them, garbage might.
const MAX_WINDOWS: usize = 32;
/// A clock that is being corrected may go back by this much without making knowledge doubtful.
const SLEW: Span = Span::from_secs(60);

/// One quota window as upstream last reported it.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Limit id.
    pub limit: Arc<str>,
    /// The model that the limit is for, where upstream names it after one.
    pub model: Option<Arc<str>>,
    /// Which of the limit's windows.
    pub place: Place,
    /// 0 to 100, more when overdrawn.
    pub used_percent: f64,
    /// Its length.
    pub minutes: Option<u64>,
    /// When it empties.
    pub resets: Option<Wall>,
    /// When this was learned.
    pub seen: Wall,
}

/// Which of a limit's windows: the short one or the long one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Usually the shorter.
    Primary,
    /// Usually the longer.
    Secondary,
}

impl Place {
    /// The name upstream uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

impl Window {
    /// Percent used at `now`: nothing once the reset has passed.
    pub fn used_at(&self, now: Now) -> f64 {
        if self.resets.is_some_and(|resets| resets <= now.wall) { 0.0 } else { self.used_percent }
    }
}

/// All windows known of one account.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Quota {
    windows: Vec<Window>,
    trail: Trail,
}

impl Quota {
    /// The windows, ordered by limit and place.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// How far its long windows were used before.
    pub const fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Takes in what was just learned. Returns whether anything changed.
    pub fn merge(&mut self, learned: &[Window]) -> bool {
        let mut changed = false;
        for window in learned.iter().take(MAX_WINDOWS) {
            let key = (&*window.limit, window.place);
            match self.windows.binary_search_by(|known| (&*known.limit, known.place).cmp(&key)) {
                Ok(at) => {
                    if let Some(known) = self.windows.get_mut(at)
                        && known.seen <= window.seen
                        && known != window
                    {
                        // An answer that doesn't say the limit's name doesn't take it away.
                        let model = window.model.clone().or_else(|| known.model.take());
                        *known = Window { model, ..window.clone() };
                        self.trail.note(window);
                        changed = true;
                    }
                },
                Err(at) if self.windows.len() < MAX_WINDOWS => {
                    self.windows.insert(at, window.clone());
                    self.trail.note(window);
                    changed = true;
                },
                Err(_full) => {},
            }
        }
        changed
    }

    /// Percent left for a model in the fullest window that counts it; 100 when nothing is known.
    pub fn headroom(&self, model: Option<&str>, now: Now) -> f64 {
        let left = self.of(model).map(|window| 100.0 - window.used_at(now));
        left.fold(100.0, f64::min).max(0.0)
    }

    /// The window that lasts longest and still runs, of those that count a model: what is unused
    /// when it resets is lost.
    pub fn longest<'a>(&'a self, model: Option<&'a str>, now: Now) -> Option<&'a Window> {
        self.running(model, now).max_by_key(|window| (window.minutes, window.resets))
    }

    /// The windows that count a model and still run.
    pub fn running<'a>(
        &'a self,
        model: Option<&'a str>,
        now: Now,
    ) -> impl Iterator<Item = &'a Window> {
        self.of(model).filter(move |window| window.resets.is_some_and(|resets| resets > now.wall))
    }

    /// Forgets windows seen in the future: the clock was ahead then and has been set back, so what
    /// they say of their reset is off by as much.
    pub(crate) fn doubt(&mut self, now: Now) {
        let known = self.windows.len();
        self.windows.retain(|window| window.seen.since(now.wall) <= SLEW);
        if self.windows.len() < known {
            self.trail = Trail::default();
        }
    }

    /// When the last of the windows that count a model and are full at `now` resets. A reset beyond
    /// any window's length is garbage and keeps nobody out.
    pub fn full_until(&self, model: Option<&str>, now: Now) -> Option<Wall> {
        self.of(model)
            .filter(|window| window.used_at(now) >= 100.0)
            .filter_map(|window| window.resets)
            .filter(|resets| resets.since(now.wall) <= cooldown::LONGEST)
            .max()
    }

    /// The windows that count a model: those of the main limit, and of the model's own.
    pub fn of<'a>(&'a self, model: Option<&'a str>) -> impl Iterator<Item = &'a Window> {
        self.windows.iter().filter(move |window| {
            &*window.limit == MAIN_LIMIT
                || (window.model.is_some() && window.model.as_deref() == model)
        })
    }
}

/// Windows from response headers.
pub fn from_headers(headers: &HeaderMap, seen: Wall) -> Vec<Window> {
    let mut windows = Vec::new();
    for (name, value) in headers {
        let Some(rest) = name.as_str().strip_prefix("x-") else { continue };
        let Some(family) = rest.strip_suffix("-used-percent") else { continue };
        let (limit, place) = if let Some(limit) = family.strip_suffix("-primary") {
            (limit, Place::Primary)
        } else if let Some(limit) = family.strip_suffix("-secondary") {
            (limit, Place::Secondary)
        } else {
            continue;
        };
        let Some(used_percent) = value.to_str().ok().and_then(percent) else { continue };
        // This is on every answer's way: a look along the names is cheaper than names made to ask.
        let window = name.as_str().strip_suffix("used-percent").unwrap_or_default();
        let number = |what: &str| {
            let of = |name: &http::HeaderName| name.as_str().strip_prefix(window) == Some(what);
            let value = headers.iter().find(|(name, _value)| of(name))?.1;
            value.to_str().ok()?.trim_ascii().parse::<u64>().ok()
        };
        let (minutes, resets) = (number("window-minutes"), number("reset-at").map(Wall::from_secs));
        let title = || headers.get(format!("x-{limit}-limit-name"))?.to_str().ok().map(slug);
        let model = if limit == MAIN_LIMIT { None } else { title() };
        // An empty window with no other data says nothing: the CLI ignores it too.
        if used_percent == 0.0 && minutes.is_none() && resets.is_none() {
            continue;
        }
        let limit = limit_id(limit);
        windows.push(Window { limit, model, place, used_percent, minutes, resets, seen });
        if windows.len() >= MAX_WINDOWS {
            break;
        }
    }
    windows
}

/// Windows from a `codex.rate_limits` stream event.
pub fn from_event(event: &Value, seen: Wall) -> Vec<Window> {
    let limit = ["metered_limit_name", "limit_name"]
        .into_iter()
        .find_map(|name| event.get(name).and_then(Value::as_str));
    let title = event.get("limit_name").and_then(Value::as_str);
    let limits = event.get("rate_limits");
    limits.map(|limits| pair(limits, (limit, title), seen, "")).unwrap_or_default()
}

/// Windows from an answer of the usage endpoint.
pub fn from_usage(usage: &Value, seen: Wall) -> Vec<Window> {
    let mut windows = usage
        .get("rate_limit")
        .map(|limits| pair(limits, (None, None), seen, "_window"))
        .unwrap_or_default();
    let more = usage.get("additional_rate_limits").and_then(Value::as_array);
    for extra in more.into_iter().flatten().take(MAX_WINDOWS) {
        let name = extra.get("metered_feature").or_else(|| extra.get("limit_name"));
        if let Some((name, limits)) = name.and_then(Value::as_str).zip(extra.get("rate_limit")) {
            let title = extra.get("limit_name").and_then(Value::as_str);
            windows.extend(pair(limits, (Some(name), title), seen, "_window"));
        }
    }
    windows
}

/// The reset that a 429 body names, if any.
pub fn reset_in_error(body: &Value, now: Wall) -> Option<Wall> {
    let error = body.get("error")?;
    let at = error.get("resets_at").and_then(Value::as_u64).map(Wall::from_secs);
    let after = error
        .get("resets_in_seconds")
        .and_then(Value::as_u64)
        .map(|s| now.plus(Span::from_secs(s)));
    at.or(after)
}

fn pair(
    limits: &Value,
    (limit, title): (Option<&str>, Option<&str>),
    seen: Wall,
    suffix: &str,
) -> Vec<Window> {
    [Place::Primary, Place::Secondary]
        .into_iter()
        .filter_map(|place| {
            let window = limits.get(format!("{}{suffix}", place.name()))?;
            let used_percent = window.get("used_percent").and_then(Value::as_f64).and_then(sane)?;
            let seconds = window.get("limit_window_seconds").and_then(Value::as_u64);
            Some(Window {
                limit: limit_id(limit.unwrap_or(MAIN_LIMIT)),
                model: title.map(slug),
                place,
                used_percent,
                minutes: window
                    .get("window_minutes")
                    .and_then(Value::as_u64)
                    .or_else(|| seconds.map(|seconds| seconds.div_ceil(60))),
                resets: window.get("reset_at").and_then(Value::as_u64).map(Wall::from_secs),
                seen,
            })
        })
        .collect()
}

/// The model that a limit is called after: names are those of models as people read them
/// (`GPT-5.3-Codex-Spark`), requests name them in small letters. One that is called otherwise is no
/// model's, and counts for none.
fn slug(title: &str) -> Arc<str> {
    let letter = |c: char| if c == ' ' { '-' } else { c.to_ascii_lowercase() };
    title.trim().chars().take(64).map(letter).collect::<String>().into()
}

/// The limit that a refusal is about, where that is one beside the main one: its header says which
/// family of headers that is (Codex CLI 0.169.0), so without such a family it says nothing.
pub fn refused_limit(headers: &HeaderMap) -> Option<Arc<str>> {
    let limit = limit_id(headers.get("x-codex-active-limit")?.to_str().ok()?.trim());
    let family = format!("x-{}-", limit.replace('_', "-"));
    let told = headers.keys().any(|name| name.as_str().starts_with(&family));
    (&*limit != MAIN_LIMIT && told).then_some(limit)
}

/// Header names write `-` where ids have `_`.
fn limit_id(name: &str) -> Arc<str> {
    if name.len() <= 64 && !name.contains('-') {
        return name.into();
    }
    name.chars().take(64).map(|c| if c == '-' { '_' } else { c }).collect::<String>().into()
}

fn percent(text: &str) -> Option<f64> {
    text.trim_ascii().parse::<f64>().ok().and_then(sane)
}

fn sane(percent: f64) -> Option<f64> {
    (percent.is_finite() && (0.0..=100_000.0).contains(&percent)).then_some(percent)
}

#[cfg(test)]
mod tests;

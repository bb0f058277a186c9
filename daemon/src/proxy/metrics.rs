//! `GET /metrics`: the pool and the sums since the start, in the text format of Prometheus.
//!
//! It opens with a token made for it (`cmactl metrics token`) that opens nothing else. Accounts are
//! named by their ids; what people call them, which may be an e-mail, comes only when asked for
//! (`?names=1`).

use super::{
    Proxy,
    books::{BOUNDS, Histogram, Totals},
    gate,
    relay::{Answer, Out},
    respond,
};
use crate::{budgets::whose_words, roster};
use bytes::Bytes;
use cma_core::{account::State, budget::Standing, identity::AccountId};
use cma_proto::{VERSION, error::ErrorCode};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use std::{
    fmt::{self, Write as _},
    sync::atomic::Ordering,
};

/// What the answer is.
const TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// One account as it is shown.
struct Seen {
    id: AccountId,
    state: State,
    in_flight: u32,
    windows: Vec<(String, &'static str, f64, Option<u64>)>,
}

/// Answers a scrape, or refuses it.
pub(crate) async fn serve(proxy: &Proxy, headers: &HeaderMap, query: Option<&str>) -> Answer {
    let opens = gate::bearer(headers).is_some_and(|token| proxy.keys.check_metrics(token));
    if !opens {
        proxy.traces.counters.refused.fetch_add(1, Ordering::Relaxed);
        return respond::error(
            StatusCode::UNAUTHORIZED,
            ErrorCode::Denied,
            "this needs a token of `cmactl metrics token`",
        );
    }
    let seen = proxy.actor.look(|pool, now| {
        let seen = pool.states(now).map(|(account, state)| Seen {
            id: account.id.clone(),
            state,
            in_flight: account.in_flight,
            windows: account
                .quota
                .windows()
                .iter()
                .map(|window| {
                    let resets = window.resets.map(cma_core::time::Wall::secs);
                    let used = window.used_at(now) / 100.0;
                    (window.limit.to_string(), window.place.name(), used, resets)
                })
                .collect(),
        });
        seen.collect::<Vec<_>>()
    });
    let Ok(seen) = seen.await else { return respond::draining() };
    let names = query.is_some_and(|query| query.split('&').any(|part| part == "names=1"));
    let mut page = Page(String::with_capacity(16 * 1024));
    page.daemon(proxy);
    page.accounts(&seen);
    if names {
        page.names(proxy);
    }
    page.totals(&proxy.traces.books.totals());
    page.budgets(&proxy.traces.books.budgets.standings());
    let mut answer = Response::new(Out::Whole(Bytes::from(page.0)));
    answer.headers_mut().insert(header::CONTENT_TYPE, TYPE);
    answer
}

/// The text as it grows.
struct Page(String);

/// A label's value, as the format wants it.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.put(format_args!("{name}"));
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            self.put(format_args!("{before}{label}={}", Quoted(text)));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        self.put(format_args!("{end} {value}\n"));
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        let _infallible = self.0.write_fmt(text);
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl fmt::Display) {
        self.family(name, kind, help);
        self.line(name, &[], value);
    }

    fn daemon(&mut self, proxy: &Proxy) {
        let counters = &proxy.traces.counters;
        self.family("cma_build_info", "gauge", "The program's version.");
        self.line("cma_build_info", &[("version", VERSION)], 1);
        let active = counters.active.load(Ordering::Relaxed);
        self.one("cma_requests_active", "gauge", "Answers that are streaming.", active);
        let open = counters.connections.load(Ordering::Relaxed);
        self.one("cma_connections", "gauge", "Open client connections.", open);
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        self.one("cma_tasks", "gauge", "Tasks that live in the daemon.", tasks);
        let retried = counters.retried.load(Ordering::Relaxed);
        self.one("cma_retries_total", "counter", "Attempts that another replaced.", retried);
        let refused = counters.refused.load(Ordering::Relaxed);
        self.one("cma_refused_total", "counter", "Requests refused at the gate.", refused);
        let health = proxy.traces.books.ledger.health();
        self.family("cma_ledger_rows_total", "counter", "What became of the ledger's rows.");
        for (what, count) in
            [("written", health.written), ("dropped", health.dropped), ("lost", health.lost)]
        {
            self.line("cma_ledger_rows_total", &[("outcome", what)], count);
        }
    }

    fn accounts(&mut self, seen: &[Seen]) {
        self.family("cma_account_state", "gauge", "1 for the state that an account is in.");
        for one in seen {
            let labels = [("account", one.id.as_str()), ("state", one.state.word())];
            self.line("cma_account_state", &labels, 1);
        }
        self.family("cma_account_in_flight", "gauge", "Requests that an account is serving.");
        for one in seen {
            self.line("cma_account_in_flight", &[("account", one.id.as_str())], one.in_flight);
        }
        self.family("cma_window_used_ratio", "gauge", "Used part of a quota window.");
        for one in seen {
            for (limit, place, used, _resets) in &one.windows {
                let labels =
                    [("account", one.id.as_str()), ("limit", limit.as_str()), ("window", *place)];
                self.line("cma_window_used_ratio", &labels, used);
            }
        }
        self.family("cma_window_reset_timestamp_seconds", "gauge", "When a quota window resets.");
        for one in seen {
            for (limit, place, _used, resets) in &one.windows {
                let labels =
                    [("account", one.id.as_str()), ("limit", limit.as_str()), ("window", *place)];
                if let Some(resets) = resets {
                    self.line("cma_window_reset_timestamp_seconds", &labels, resets);
                }
            }
        }
    }

    fn names(&mut self, proxy: &Proxy) {
        self.family("cma_account_info", "gauge", "What a person calls an account.");
        for record in &proxy.roster.all() {
            let labels = [("account", record.id.as_str()), ("name", roster::name(record))];
            self.line("cma_account_info", &labels, 1);
        }
    }

    fn totals(&mut self, totals: &Totals) {
        let id =
            |account: &Option<AccountId>| account.as_ref().map_or("", AccountId::as_str).to_owned();
        self.family("cma_requests_total", "counter", "Requests that ended, by how.");
        for (((account, model), ended), count) in &totals.requests {
            let (account, model) = (id(account), model.as_deref().unwrap_or_default());
            let labels =
                [("account", account.as_str()), ("model", model), ("outcome", ended.word())];
            self.line("cma_requests_total", &labels, count);
        }
        self.family(
            "cma_tokens_total",
            "counter",
            "Tokens that streams told; cached are part of input, reasoning of output.",
        );
        for ((account, model), usage) in &totals.tokens {
            let (account, model) = (id(account), model.as_deref().unwrap_or_default());
            for (kind, tokens) in [
                ("input", usage.input),
                ("cached", usage.cached),
                ("output", usage.output),
                ("reasoning", usage.reasoning),
            ] {
                let labels = [("account", account.as_str()), ("model", model), ("kind", kind)];
                self.line("cma_tokens_total", &labels, tokens);
            }
        }
        self.family(
            "cma_api_cost_estimate_nanodollars_total",
            "counter",
            "What the tokens would cost at the API, in billionths of a dollar: no bill.",
        );
        for (account, (low, high)) in &totals.cost {
            let account = id(account);
            for (bound, cost) in [("low", low), ("high", high)] {
                let labels = [("account", account.as_str()), ("bound", bound)];
                self.line("cma_api_cost_estimate_nanodollars_total", &labels, cost);
            }
        }
        let (first, total) = ("cma_first_byte_seconds", "cma_request_seconds");
        self.histogram(first, "Time to the first byte of an answer.", &totals.first);
        self.histogram(total, "Time of a request in all.", &totals.total);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        let bounds = BOUNDS.iter().map(|ms| seconds(*ms)).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(histogram.counts) {
            sum += count;
            self.line(&bucket, &[("le", &bound)], sum);
        }
        self.line(&format!("{name}_sum"), &[], seconds(histogram.sum_ms));
        self.line(&format!("{name}_count"), &[], sum);
    }

    fn budgets(&mut self, standings: &[Standing]) {
        self.family(
            "cma_budget_limit",
            "gauge",
            "A budget's limit; cost is in billionths of a dollar.",
        );
        let labels = |one: &Standing| {
            let (whose, of) = whose_words(&one.budget.whose);
            let span = one.budget.span.word();
            [one.budget.name.to_string(), whose.to_owned(), of.to_owned(), span.to_owned()]
        };
        let names = ["budget", "whose", "of", "window"];
        for one in standings {
            let values = labels(one);
            let limits = [one.budget.requests, one.budget.tokens, one.budget.cost];
            for (measure, limit) in ["requests", "tokens", "cost"].iter().zip(limits) {
                let Some(limit) = limit else { continue };
                let mut all: Vec<_> =
                    names.into_iter().zip(values.iter().map(String::as_str)).collect();
                all.push(("measure", measure));
                self.line("cma_budget_limit", &all, limit);
            }
        }
        self.family("cma_budget_spent", "gauge", "What is spent of a budget in its window.");
        for one in standings {
            let values = labels(one);
            let spent = [one.spent.requests, one.spent.tokens, one.spent.cost];
            for (measure, spent) in ["requests", "tokens", "cost"].iter().zip(spent) {
                let mut all: Vec<_> =
                    names.into_iter().zip(values.iter().map(String::as_str)).collect();
                all.push(("measure", measure));
                self.line("cma_budget_spent", &all, spent);
            }
        }
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted_and_buckets_add_up() {
        let mut page = Page(String::new());
        page.line("m", &[("a", "x\"y\\z\n"), ("b", "")], 7);
        assert_eq!(page.0, "m{a=\"x\\\"y\\\\z\\n\",b=\"\"} 7\n");
        let mut page = Page(String::new());
        let mut counts = [0; BOUNDS.len() + 1];
        (counts[0], counts[3], counts[BOUNDS.len()]) = (2, 3, 1);
        page.histogram("h", "help", &Histogram { counts, sum_ms: 12_345 });
        assert!(page.0.contains("h_bucket{le=\"0.050\"} 2\n"), "{}", page.0);
        assert!(page.0.contains("h_bucket{le=\"0.500\"} 5\n"), "{}", page.0);
        assert!(
            page.0.ends_with("h_bucket{le=\"+Inf\"} 6\nh_sum 12.345\nh_count 6\n"),
            "{}",
            page.0
        );
    }
}

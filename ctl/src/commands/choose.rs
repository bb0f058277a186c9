//! Who serves: strategies, forces, an account's terms, forecasts, profiles, the simulator.

use super::{Context, accounts::change, daemon, pools};
use crate::{
    cli::choosing::{
        AccountCommand, Choosing, ForecastArgs, PolicyCommand, ProfileArgs, ProfileCommand,
        SimulateArgs, StrategyArgs,
    },
    error::{Failure, unexpected},
    render::{Column, Screen, Tone, clean, pressure, put, table, time},
};
use cma_proto::{
    choose::{
        ChooseReply, ChooseRequest, Forecast, ForecastInfo, ProfileEdit, ProfileInfo, RulesChange,
        RulesInfo, TermsChange, TermsInfo, WindowForecast,
    },
    error::{ErrorCode, Refusal},
    message::{Changed, Reply, Request},
    pools::PoolsRequest,
    usage::UsageRequest,
};
use serde::Serialize;
use std::process::ExitCode;

/// Does what was typed.
pub(super) fn command(
    context: &Context,
    command: Choosing,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    match command {
        Choosing::Strategy(args) => strategy(context, args, screen),
        Choosing::Force { account, time } => {
            rules(context, ChooseRequest::Force { selector: account, secs: time }, screen)
        },
        Choosing::Unforce => rules(context, ChooseRequest::Unforce, screen),
        Choosing::Account(command) => account(context, command, screen),
        Choosing::Forecast { of, explain } => forecast(context, of, explain, screen),
        Choosing::Best(of) => best(context, of, screen),
        Choosing::Why(args) => super::why::why(context, args, screen),
        Choosing::Profile { command } => profile(context, command, screen),
        Choosing::Simulate(args) => simulate(context, &args, screen),
    }
}

/// Asks what belongs to this family.
pub(super) fn ask(context: &Context, request: ChooseRequest) -> Result<ChooseReply, Failure> {
    match context.connect()?.call(&Request::Choose(request))? {
        Reply::Choose(reply) => Ok(reply),
        other => Err(unexpected(other).into()),
    }
}

/// This folder, where a flag asks for it.
pub(super) fn here(project: bool) -> Result<Option<String>, Refusal> {
    project.then(|| pools::dir(None)).transpose()
}

fn strategy(
    context: &Context,
    args: StrategyArgs,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let StrategyArgs { name, preset, low, critical, wait, headers } = args;
    let change = RulesChange { strategy: name, preset, low, critical, wait, headers };
    let looks = change == RulesChange::default();
    let request = if looks { ChooseRequest::Rules } else { ChooseRequest::SetRules(change) };
    rules(context, request, screen)
}

fn rules(
    context: &Context,
    request: ChooseRequest,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let rules = match ask(context, request)? {
        ChooseReply::Rules(rules) => rules,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&rules, |rules| rules_text(rules, time::now()))?;
    screen.notes(&rules.notes)?;
    Ok(ExitCode::SUCCESS)
}

fn rules_text(rules: &RulesInfo, now: u64) -> String {
    let mut text = String::new();
    let mut line = |word: &str, said: &str| {
        put!(text, "{} {said}\n", Tone::Dim.paint(format!("{word:<9}")));
    };
    let waits = if rules.force.is_some() { " · waits for the force to end" } else { "" };
    line("strategy", &format!("{}{waits}", Tone::Strong.paint(clean(&rules.strategy))));
    let others: Vec<String> = rules
        .strategies
        .iter()
        .filter(|one| **one != rules.strategy)
        .map(|one| clean(one))
        .collect();
    line("others", &others.join(", "));
    line(
        "preset",
        &format!(
            "{} · no new thread below {} % left · threads leave below {} %",
            clean(&rules.preset),
            rules.low,
            rules.critical
        ),
    );
    line("wait", &clean(&rules.wait));
    line("headers", if rules.headers { "on all answers" } else { "on answers to who asks" });
    if let Some(force) = &rules.force {
        let names = clean(&force.names.join(", "));
        let left = time::span(force.until.saturating_sub(now));
        let mut said =
            format!("{} for {left} more, {}", Tone::Warn.paint(names), clean(&force.scope));
        if let Some(out) = &force.out {
            put!(said, " · {}", Tone::Bad.paint(format!("can't serve: {}", clean(out))));
        }
        line("forced", &said);
    }
    if rules.waiting > 0 {
        let due = rules
            .waiting_until
            .map(|at| format!(" · the next one goes on {}", time::relative(at, now)));
        line("waiting", &format!("{} requests{}", rules.waiting, due.unwrap_or_default()));
    }
    text
}

fn account(
    context: &Context,
    command: AccountCommand,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let (selector, to, done) = match command {
        AccountCommand::Tag { account, tags } => {
            return tag(context, account, tags, Vec::new(), screen);
        },
        AccountCommand::Untag { account, tags } => {
            return tag(context, account, Vec::new(), tags, screen);
        },
        AccountCommand::Note { account, words } => {
            return pools::note(context, account, &words, screen);
        },
        AccountCommand::Alias { account, name } => {
            return super::accounts::label(context, account, name, screen);
        },
        AccountCommand::Policy(PolicyCommand::List) => return terms(context, screen),
        AccountCommand::Weight { account, weight } => {
            let done = format!("weighs {} now", f64::from(weight) / 1000.0);
            (account, TermsChange::Weight(weight), done)
        },
        AccountCommand::Pause { account } => (
            account,
            TermsChange::Pause(true),
            "serves nothing new; its login stays fresh".to_owned(),
        ),
        AccountCommand::Unpause { account } => {
            (account, TermsChange::Pause(false), "may serve again".to_owned())
        },
        AccountCommand::Drain { account } => {
            let done = "finishes its threads and takes no new one".to_owned();
            (account, TermsChange::Drain(true), done)
        },
        AccountCommand::Undrain { account } => {
            (account, TermsChange::Drain(false), "takes new threads again".to_owned())
        },
        AccountCommand::Cap { account, requests } => {
            let done = match requests.0 {
                Some(cap) => format!("serves {cap} requests at once at most"),
                None => "serves any number of requests at once".to_owned(),
            };
            (account, TermsChange::Cap(requests.0), done)
        },
    };
    let request = ChooseRequest::SetTerms { selector, change: to };
    change(context, &Request::Choose(request), |_changed: &Changed| done, screen)
}

fn tag(
    context: &Context,
    selector: String,
    add: Vec<String>,
    remove: Vec<String>,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let request = PoolsRequest::Tag { selector, add, remove };
    let said = |_changed: &Changed| "has the tags you gave it".to_owned();
    change(context, &Request::Pools(request), said, screen)
}

#[derive(Debug, Serialize)]
struct Policies {
    accounts: Vec<TermsInfo>,
}

fn terms(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let accounts = match ask(context, ChooseRequest::Terms)? {
        ChooseReply::Terms(terms) => terms,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&Policies { accounts }, |listed| terms_text(&listed.accounts, time::now()))?;
    Ok(ExitCode::SUCCESS)
}

fn terms_text(accounts: &[TermsInfo], now: u64) -> String {
    let columns = [
        Column::Right("#"),
        Column::Left("account"),
        Column::Left("state"),
        Column::Right("weight"),
        Column::Right("share"),
        Column::Left("now / cap"),
        Column::Left("may"),
        Column::Left("tags"),
    ];
    let row = |one: &TermsInfo| {
        let may = match (one.enabled, one.paused, one.drained) {
            (false, ..) => "nothing: disabled",
            (_, true, _) => "nothing new: paused",
            (_, _, true) => "finish its threads: drained",
            _ => "serve",
        };
        vec![
            one.index.to_string(),
            clean(&one.name),
            clean(&one.state),
            one.weight.to_string(),
            format!("{:.0} %", one.share_percent),
            format!(
                "{} / {}",
                one.in_flight,
                one.cap.map_or("-".to_owned(), |cap| cap.to_string())
            ),
            may.to_owned(),
            clean(&one.tags.join(", ")),
        ]
    };
    let mut text = table(&columns, accounts.iter().map(row).collect());
    for one in accounts {
        for rest in &one.rests {
            let until = time::relative(rest.until, now);
            let (cause, scope) = (clean(&rest.cause), clean(&rest.scope));
            put!(
                text,
                "{}: {cause} ({scope}) until {until}; known from {}\n",
                clean(&one.name),
                clean(&rest.source)
            );
        }
        if let Some(note) = &one.note {
            put!(text, "{}: {}\n", clean(&one.name), clean(note));
        }
    }
    text
}

fn asked(context: &Context, of: ForecastArgs, screen: &mut Screen) -> Result<Forecast, Failure> {
    let ForecastArgs { live, probe_model, model, project } = of;
    let request = ChooseRequest::Forecast { model, dir: here(project)?, live };
    let told = |reply| match reply {
        ChooseReply::Forecast(forecast) => Ok(*forecast),
        other => Err(Failure::from(unexpected(other))),
    };
    let forecast = told(ask(context, request.clone())?)?;
    if probe_model.is_none() {
        return Ok(forecast);
    }
    // Who may serve is known by now; they are asked, and what they said counts.
    let accounts = forecast.accounts.iter().map(|one| one.account.clone()).collect();
    let start = UsageRequest::ProbeStart { accounts, stale_s: 0, model: probe_model };
    let shown = super::probe::run(context, start, screen)?;
    let mut forecast = told(ask(context, request)?)?;
    forecast.notes.extend(shown.probes.iter().filter_map(|one| {
        let name = clean(one.name.as_deref().unwrap_or(&one.account));
        Some(format!("`{name}` didn't tell: {}", clean(one.error.as_deref()?)))
    }));
    Ok(forecast)
}

fn forecast(
    context: &Context,
    of: ForecastArgs,
    explain: bool,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let forecast = asked(context, of, screen)?;
    screen.answer(&forecast, |forecast| forecast_text(forecast, explain, time::now()))?;
    screen.notes(&forecast.notes)?;
    Ok(ExitCode::SUCCESS)
}

/// `best`: what it recommends, and what to type to have it so.
fn best(context: &Context, of: ForecastArgs, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let forecast = asked(context, of, screen)?;
    let chosen =
        forecast.accounts.iter().find(|one| Some(&one.account) == forecast.recommended.as_ref());
    let Some(chosen) = chosen else {
        let back = forecast
            .retry_at
            .map(|at| format!("; the first is back {}", time::relative(at, time::now())));
        return Err(Refusal::new(
            ErrorCode::Exhausted,
            format!("no account can serve now{}", back.unwrap_or_default()),
            "run `cmactl forecast` to see them",
        )
        .into());
    };
    #[derive(Debug, Serialize)]
    struct Best<'a> {
        account: &'a ForecastInfo,
        reason: &'a str,
        strategy: &'a str,
    }
    let shown = Best { account: chosen, reason: &forecast.reason, strategy: &forecast.strategy };
    screen.answer(&shown, |shown| {
        let name = Tone::Strong.paint(clean(&shown.account.name));
        format!(
            "{name}: {}.\nThe pool takes it by itself; `cmactl switch {}` pins it.\n",
            clean(shown.reason),
            clean(&shown.account.account)
        )
    })?;
    screen.notes(&forecast.notes)?;
    Ok(ExitCode::SUCCESS)
}

fn forecast_text(forecast: &Forecast, explain: bool, now: u64) -> String {
    let mut text = String::new();
    let named =
        forecast.accounts.iter().find(|one| Some(&one.account) == forecast.recommended.as_ref());
    match named {
        Some(one) => {
            let name = Tone::Strong.paint(clean(&one.name));
            put!(
                text,
                "Next is {name}: {} ({}).\n\n",
                clean(&forecast.reason),
                clean(&forecast.strategy)
            );
        },
        None => {
            let back = forecast.retry_at.map(|at| time::relative(at, now));
            let back = back.map(|back| format!("; the first is back {back}")).unwrap_or_default();
            put!(text, "No account can serve now{back}.\n\n");
        },
    }
    let columns = [
        Column::Left("account"),
        Column::Left("readiness"),
        Column::Left("wait"),
        Column::Left("risk"),
        Column::Left("windows: left, renewed, empty at this pace"),
    ];
    let row = |one: &ForecastInfo| {
        let tone = match one.readiness.as_str() {
            "ready" => Tone::Good,
            "waiting" => Tone::Warn,
            _ => Tone::Bad,
        };
        let mut ready = tone.paint(clean(&one.readiness));
        if let Some(reason) = &one.reason {
            put!(ready, "\n{}", Tone::Dim.paint(clean(reason)));
        }
        let windows: Vec<String> =
            one.windows.iter().map(|window| window_text(window, now)).collect();
        vec![
            clean(&one.name),
            ready,
            one.wait_secs.map_or("-".to_owned(), time::span),
            clean(&one.risk),
            if windows.is_empty() { Tone::Dim.paint("not known yet") } else { windows.join("\n") },
        ]
    };
    text += &table(&columns, forecast.accounts.iter().map(row).collect());
    if explain {
        for one in &forecast.accounts {
            let keys: Vec<String> = one
                .keys
                .iter()
                .map(|(name, value)| format!("{} {}", clean(name), clean(value)))
                .collect();
            put!(text, "{}: {}\n", clean(&one.name), keys.join(" · "));
        }
    }
    text
}

fn window_text(window: &WindowForecast, now: u64) -> String {
    let length = window.minutes.map_or("window".to_owned(), |minutes| time::span(minutes * 60));
    let left = pressure(100.0 - window.left_percent).paint(format!("{:.0} %", window.left_percent));
    let resets = window.resets_at.map_or("renewed".to_owned(), |at| time::relative(at, now));
    let empty = match window.empty_at {
        Some(at) if at <= now => Tone::Bad.paint("empty now"),
        Some(at) => Tone::Warn.paint(format!("empty {}", time::relative(at, now))),
        None => "lasts".to_owned(),
    };
    let limit =
        if window.limit == "codex" { String::new() } else { format!(" {}", clean(&window.limit)) };
    let age = Tone::Dim.paint(format!("seen {} ago", time::span(window.age_secs)));
    format!("{length}{limit}: {left}, {resets}, {empty}, {age}")
}

fn profile(
    context: &Context,
    command: Option<ProfileCommand>,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let list = |text: Option<String>| {
        let words = |text: String| {
            text.split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        text.map(words)
    };
    let edit = match command.unwrap_or(ProfileCommand::Show) {
        ProfileCommand::Show => None,
        ProfileCommand::Clear => Some(ProfileEdit { clear: true, ..ProfileEdit::default() }),
        ProfileCommand::Set(ProfileArgs { strategy, prefer, avoid, allow, deny, weight }) => {
            Some(ProfileEdit {
                clear: false,
                strategy,
                prefer: list(prefer),
                avoid: list(avoid),
                allow: list(allow),
                deny: list(deny),
                weights: weight,
            })
        },
    };
    let request = ChooseRequest::Profile { dir: pools::dir(None)?, edit };
    let profile = match ask(context, request)? {
        ChooseReply::Profile(profile) => profile,
        other => return Err(unexpected(other).into()),
    };
    screen.answer(&profile, profile_text)?;
    screen.notes(&profile.notes)?;
    Ok(ExitCode::SUCCESS)
}

fn profile_text(profile: &ProfileInfo) -> String {
    let mut text = String::new();
    let mut line = |word: &str, said: String| {
        put!(text, "{} {}\n", Tone::Dim.paint(format!("{word:<9}")), clean(&said));
    };
    line("project", format!("{} · {}", profile.project, profile.path));
    line("strategy", profile.strategy.clone().unwrap_or_else(|| "the pool's".to_owned()));
    for (word, list) in [
        ("prefer", &profile.prefer),
        ("avoid", &profile.avoid),
        ("allow", &profile.allow),
        ("deny", &profile.deny),
    ] {
        if !list.is_empty() {
            line(word, list.join(", "));
        }
    }
    for (account, weight) in &profile.weights {
        line("weight", format!("{account} = {weight}"));
    }
    text
}

/// Becomes the simulator, which lives where the pool does.
fn simulate(context: &Context, args: &SimulateArgs, screen: &Screen) -> Result<ExitCode, Failure> {
    let program = cma_proto::client::daemon_program()?;
    let mut command = std::process::Command::new(&program);
    command.arg("simulate");
    for name in &args.strategy {
        command.args(["--strategy", name]);
    }
    command.args(["--accounts", &args.accounts.to_string(), "--seed", &args.seed.to_string()]);
    match &args.trace {
        Some(trace) => command.arg("--trace").arg(trace),
        None if args.from_ledger => command.arg("--from-ledger").arg(context.root.path()),
        None => command.args(["--workload", &args.workload]),
    };
    if screen.json() {
        command.arg("--json");
    }
    daemon::become_it(command).map_err(|error| {
        let said = format!("`{}` could not be run: {error}", program.display());
        let hint = "install `cmad` in the same folder as `cmactl`";
        Refusal::new(ErrorCode::Unreachable, said, hint).into()
    })
}

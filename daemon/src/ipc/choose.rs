//! What the requests about choosing do: disk first, then the pool, then the answer.

use super::{convert::stopping, forecast, handlers::change};
use crate::{
    app::App,
    blocking,
    choosing::{self, Saved, SavedProfile},
    clock,
    fault::Fault,
    launch::Wanted,
    project::Place,
    roster,
    store::record::Record,
};
use cma_core::{
    account::Account,
    cooldown::Cause,
    identity::AccountId,
    pool::Input,
    select::Need,
    strategy::{Preset, Strategy, WEIGHT_MOST, WEIGHT_ONE},
    time::{Now, Wall},
};
use cma_proto::{
    choose::{
        ChooseReply, ChooseRequest, ForceInfo, ProfileEdit, ProfileInfo, RestInfo, RulesChange,
        RulesInfo, TermsChange, TermsInfo,
    },
    error::ErrorCode,
    message::{LaunchRequest, Reply},
};
use std::{collections::BTreeMap, sync::Arc};

/// The longest force; who means for ever takes the others out of the pool.
const LONGEST_FORCE: u64 = 30 * 24 * 3600;
/// Names in one list of a profile.
const MAX_NAMES: usize = 32;
/// Requests that an account may be capped at; more is no cap.
const MAX_CAP: u32 = 1000;

/// Answers one request. `pid` is the peer's.
pub(super) async fn handle(
    app: &Arc<App>,
    request: ChooseRequest,
    pid: Option<u32>,
) -> Result<Reply, Fault> {
    match request {
        ChooseRequest::Rules => rules(app, Vec::new()).await,
        ChooseRequest::SetRules(change) => set_rules(app, change).await,
        ChooseRequest::Force { selector, secs } => force(app, &selector, secs).await,
        ChooseRequest::Unforce => unforce(app).await,
        ChooseRequest::SetTerms { selector, change: to } => set_terms(app, &selector, to).await,
        ChooseRequest::Terms => terms(app).await,
        ChooseRequest::Forecast { model, dir, live } => {
            let forecast = forecast::forecast(app, model, dir, live).await?;
            Ok(reply(ChooseReply::Forecast(Box::new(forecast))))
        },
        ChooseRequest::Why { request, dir } => {
            let explained = forecast::why(app, request, dir).await?;
            Ok(reply(ChooseReply::Why(Box::new(explained))))
        },
        ChooseRequest::Profile { dir, edit } => profile(app, dir, edit).await,
        ChooseRequest::Launch { launch, selector, own } => {
            start(app, launch, &selector, own, pid).await
        },
    }
}

/// Whether a request changes nothing, so that it is answered while the daemon goes down.
pub(super) const fn looks(request: &ChooseRequest) -> bool {
    matches!(
        request,
        ChooseRequest::Rules
            | ChooseRequest::Terms
            | ChooseRequest::Forecast { live: false, .. }
            | ChooseRequest::Why { .. }
            | ChooseRequest::Profile { edit: None, .. }
    )
}

const fn reply(reply: ChooseReply) -> Reply {
    Reply::Choose(reply)
}

/// Tells the pool everything that is kept, after a root was opened.
pub(super) async fn tell(app: &App) -> Result<(), Fault> {
    for input in app.choosing.inputs() {
        app.actor.command(input).await.map_err(stopping)?;
    }
    Ok(())
}

/// Things of this family that a person should know, one line each.
pub(super) async fn notes(app: &App) -> Vec<String> {
    let Ok(Reply::Choose(ChooseReply::Rules(rules))) = rules(app, Vec::new()).await else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    if let Some(force) = &rules.force {
        let left = force.until.saturating_sub(clock::unix()).div_ceil(60);
        let out = force.out.as_ref().map(|why| format!("; it can't serve now: {why}"));
        notes.push(format!(
            "`{}` is forced for {} h {} min more, {}{}; `cmactl unforce` ends it",
            force.names.join("`, `"),
            left / 60,
            left % 60,
            force.scope,
            out.unwrap_or_default()
        ));
    }
    if rules.strategy != Strategy::default().name() {
        let waits = if rules.force.is_some() { ", waiting for the force to end" } else { "" };
        notes.push(format!("strategy: {}{waits}", rules.strategy));
    }
    if rules.waiting > 0 {
        let verb = if rules.waiting == 1 { "request waits" } else { "requests wait" };
        let due = rules.waiting_until.map(|at| at.saturating_sub(clock::unix()));
        let due = due.map(|secs| format!("; the next can serve in {secs} s")).unwrap_or_default();
        notes.push(format!("{} {verb} for an account{due}", rules.waiting));
    }
    notes
}

async fn rules(app: &App, mut notes: Vec<String>) -> Result<Reply, Fault> {
    let (forced, waiting) = app
        .actor
        .look(|pool, now| {
            let forced = pool.forced(now).map(|forced| {
                let all = pool.explain(&Need::default(), now);
                let theirs = all.iter().filter(|one| forced.accounts.contains(&one.id));
                let mut said = theirs.map(|one| one.said.clone());
                let out = said.clone().all(|said| said.is_some());
                let out = if out { said.next().flatten() } else { None };
                (forced.accounts.clone(), forced.due.shown(now), out)
            });
            (forced, pool.waiting(now))
        })
        .await
        .map_err(stopping)?;
    let saved = app.choosing.saved();
    let force = forced.map(|(ids, until, out)| ForceInfo {
        names: ids.iter().map(|id| called(app, id)).collect(),
        accounts: ids.iter().map(ToString::to_string).collect(),
        until: until.secs(),
        scope: "for all launches that may use it".to_owned(),
        out,
    });
    if force.is_some() && notes.is_empty() {
        notes.push(
            "while the force is on, the strategy has no say; it is kept for after".to_owned(),
        );
    }
    let reserve = saved.reserve();
    Ok(reply(ChooseReply::Rules(RulesInfo {
        strategy: saved.strategy().name().to_owned(),
        strategies: Strategy::ALL.iter().map(|one| one.name().to_owned()).collect(),
        preset: saved.preset().name().to_owned(),
        low: reserve.low,
        critical: reserve.critical,
        wait: if saved.wait.is_empty() { "off".to_owned() } else { saved.wait.clone() },
        headers: saved.headers,
        force,
        waiting: u32::try_from(waiting.0).unwrap_or(u32::MAX),
        waiting_until: waiting.1.map(Wall::secs),
        notes,
    })))
}

/// What an account is called, while it is in the pool.
pub(super) fn called(app: &App, id: &AccountId) -> String {
    app.roster.get(id).map_or_else(|| id.to_string(), |record| roster::name(&record).to_owned())
}

async fn save(
    app: &Arc<App>,
    edit: impl FnOnce(&mut Saved) -> Result<(), Fault> + Send + 'static,
) -> Result<Arc<Saved>, Fault> {
    let choosing = Arc::clone(&app.choosing);
    blocking::disk(move || choosing.edit(edit)).await
}

fn unknown(what: &str, name: &str, all: &[&str]) -> Fault {
    Fault::new(
        ErrorCode::BadRequest,
        format!("there is no {what} `{name}`"),
        format!("choose one of {}", all.join(", ")),
    )
}

fn strategy(name: &str) -> Result<Strategy, Fault> {
    let all = Strategy::ALL.map(Strategy::name);
    Strategy::of(name).ok_or_else(|| unknown("strategy", name, &all))
}

async fn set_rules(app: &Arc<App>, change: RulesChange) -> Result<Reply, Fault> {
    let saved = save(app, move |saved| apply(saved, change)).await?;
    app.actor.command(Input::Rules(saved.rules())).await.map_err(stopping)?;
    tracing::info!(strategy = saved.strategy, preset = saved.preset, "rules changed");
    let forced = app.actor.look(|pool, now| pool.forced(now).is_some()).await.map_err(stopping)?;
    let note = if forced {
        "saved; it waits for the force to end (`cmactl unforce`)"
    } else {
        "it counts from the next choice on; threads stay where they are"
    };
    rules(app, vec![note.to_owned()]).await
}

fn apply(saved: &mut Saved, change: RulesChange) -> Result<(), Fault> {
    if let Some(name) = change.strategy {
        strategy(&name)?.name().clone_into(&mut saved.strategy);
    }
    if let Some(name) = change.preset {
        let all = Preset::ALL.map(Preset::name);
        let preset = Preset::of(&name).ok_or_else(|| unknown("preset", &name, &all))?;
        preset.name().clone_into(&mut saved.preset);
        (saved.low, saved.critical) = (None, None);
    }
    saved.low = change.low.or(saved.low);
    saved.critical = change.critical.or(saved.critical);
    let reserve = saved.reserve();
    let fits = |percent: f64| (0.0..=100.0).contains(&percent);
    if !fits(reserve.low) || !fits(reserve.critical) || reserve.critical > reserve.low {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            format!(
                "the thresholds {} % (low) and {} % (critical) make no sense",
                reserve.low, reserve.critical
            ),
            "both are from 0 to 100, and critical is not above low",
        ));
    }
    if let Some(text) = change.wait {
        choosing::wait(&text)?;
        saved.wait = text;
    }
    saved.headers = change.headers.unwrap_or(saved.headers);
    Ok(())
}

async fn force(app: &Arc<App>, selector: &str, secs: u64) -> Result<Reply, Fault> {
    if !(1..=LONGEST_FORCE).contains(&secs) {
        return Err(Fault::new(
            ErrorCode::BadRequest,
            "a force lasts from a second to 30 days",
            "say for example `--for 24h`",
        ));
    }
    let records = app.roster.select_all(selector)?;
    let ids: Vec<String> = records.iter().map(|record| record.id.clone()).collect();
    let until = clock::unix() + secs;
    let saved = save(app, move |saved| {
        saved.force = Some((ids, until));
        Ok(())
    })
    .await?;
    app.actor.command(Input::Force(saved.forced())).await.map_err(stopping)?;
    tracing::info!(accounts = records.len(), secs, "accounts forced");
    let note = "nobody else steps in: when it can't serve, requests are refused and say so";
    rules(app, vec![note.to_owned()]).await
}

async fn unforce(app: &Arc<App>) -> Result<Reply, Fault> {
    let was = app.choosing.saved().forced().is_some();
    save(app, |saved| {
        saved.force = None;
        Ok(())
    })
    .await?;
    app.actor.command(Input::Force(None)).await.map_err(stopping)?;
    let note = if was { "the pool chooses again" } else { "nothing was forced" };
    rules(app, vec![note.to_owned()]).await
}

async fn set_terms(app: &Arc<App>, selector: &str, to: TermsChange) -> Result<Reply, Fault> {
    let bad = |what: String| Fault::new(ErrorCode::BadRequest, what, "choose another number");
    match to {
        TermsChange::Weight(weight) if weight > WEIGHT_MOST => {
            return Err(bad(format!("a weight is from 0 to {}", WEIGHT_MOST / WEIGHT_ONE)));
        },
        TermsChange::Cap(Some(cap)) if !(1..=MAX_CAP).contains(&cap) => {
            return Err(bad(format!("a cap is from 1 to {MAX_CAP} requests at once")));
        },
        TermsChange::Pause(_)
        | TermsChange::Drain(_)
        | TermsChange::Weight(_)
        | TermsChange::Cap(_) => {},
    }
    change(app, selector, move |roster, id| {
        roster.edit(id, |record| match to {
            TermsChange::Pause(paused) => record.terms.paused = paused,
            TermsChange::Drain(drained) => record.terms.drained = drained,
            TermsChange::Weight(weight) => record.terms.weight = Some(weight),
            TermsChange::Cap(cap) => record.terms.cap = cap,
        })
    })
    .await
}

/// What the pool knows of an account, for [`terms`].
struct Seen {
    state: &'static str,
    in_flight: u32,
    rests: Vec<RestInfo>,
}

async fn terms(app: &App) -> Result<Reply, Fault> {
    let mut seen: BTreeMap<AccountId, Seen> = app
        .actor
        .look(|pool, now| {
            let of = |account: &Account| Seen {
                state: account.state(now).word(),
                in_flight: account.in_flight,
                rests: rests(account, now),
            };
            pool.accounts().iter().map(|account| (account.id.clone(), of(account))).collect()
        })
        .await
        .map_err(stopping)?;
    let records = app.roster.all();
    let weight = |record: &Record| record.terms.weight.unwrap_or(WEIGHT_ONE);
    let total: u64 = records.iter().map(|record| u64::from(weight(record))).sum();
    #[expect(clippy::cast_precision_loss, reason = "thousandths of small weights")]
    let share = |weight: u32| f64::from(weight) * 100.0 / total.max(1) as f64;
    let row = |(record, index): (&Arc<Record>, u32)| {
        let known = seen.remove(&AccountId::from_written(&record.id));
        let (state, in_flight, rests) = known.map_or(("unknown", 0, Vec::new()), |known| {
            (known.state, known.in_flight, known.rests)
        });
        TermsInfo {
            index,
            id: record.id.clone(),
            name: roster::name(record).to_owned(),
            state: state.to_owned(),
            enabled: record.enabled,
            paused: record.terms.paused,
            drained: record.terms.drained,
            weight: f64::from(weight(record)) / f64::from(WEIGHT_ONE),
            share_percent: share(weight(record)),
            cap: record.terms.cap,
            in_flight,
            tags: record.tags.clone(),
            note: record.notes.clone(),
            rests,
        }
    };
    Ok(reply(ChooseReply::Terms(records.iter().zip(1..).map(row).collect())))
}

/// An account's rests, with the evidence for each.
fn rests(account: &Account, now: Now) -> Vec<RestInfo> {
    let mut rests = Vec::new();
    if let Some(rest) = account.rest(now) {
        let source = match rest.cause {
            Cause::UsageLimit(Some(_)) => "upstream's answer, which names the reset",
            Cause::UsageLimit(None) => {
                "upstream's answer; the reset is from its windows or a guess"
            },
            Cause::Throttled(Some(_)) => "upstream's answer, which names the wait",
            Cause::RenewalFailed => "the issuer",
            Cause::Throttled(None)
            | Cause::NotEntitled
            | Cause::PaymentRequired
            | Cause::Forbidden
            | Cause::Unauthorized => "upstream's answer",
        };
        rests.push(RestInfo {
            scope: "account".to_owned(),
            cause: rest.cause.text().to_owned(),
            source: source.to_owned(),
            until: rest.due.shown(now).secs(),
        });
    }
    if let Some(full) = account.quota.full_until(None, now) {
        rests.push(RestInfo {
            scope: "account".to_owned(),
            cause: "its quota window is full".to_owned(),
            source: "the windows as upstream last told them".to_owned(),
            until: full.secs(),
        });
    }
    let models = account.without.iter().filter(|(_model, due)| !due.reached(now));
    rests.extend(models.map(|(model, due)| RestInfo {
        scope: model.to_string(),
        cause: Cause::NotEntitled.text().to_owned(),
        source: "upstream's answer".to_owned(),
        until: due.shown(now).secs(),
    }));
    let own = account.limited.iter().filter(|(_model, (_limit, due))| !due.reached(now));
    rests.extend(own.map(|(model, (limit, due))| RestInfo {
        scope: model.to_string(),
        cause: format!("its own limit `{limit}` is used up"),
        source: "upstream's answer".to_owned(),
        until: due.shown(now).secs(),
    }));
    rests
}

async fn profile(app: &Arc<App>, dir: String, edit: Option<ProfileEdit>) -> Result<Reply, Fault> {
    let from = Arc::clone(app);
    let place = blocking::disk(move || from.projects.named(&dir)).await?;
    let mut notes = Vec::new();
    if let Some(edit) = edit {
        let weights = edit
            .weights
            .iter()
            .map(|(selector, weight)| Ok((app.roster.select(selector)?.id.clone(), *weight)))
            .collect::<Result<Vec<_>, Fault>>()?;
        let key = place.key.clone();
        let saved = save(app, move |saved| {
            let mut profile = saved.profiles.remove(&key).unwrap_or_default();
            wish(&mut profile, edit, weights)?;
            if profile.profile().is_some() {
                saved.profiles.insert(key, profile);
            }
            Ok(())
        })
        .await?;
        let said = saved.profiles.get(&place.key).and_then(SavedProfile::profile);
        let input = Input::Profile(place.key.as_str().into(), said);
        app.actor.command(input).await.map_err(stopping)?;
        // The project is known from here on, so that it can be listed and forgotten.
        let (from, known) = (Arc::clone(app), place.clone());
        blocking::disk(move || from.projects.edit(&known, |_project| {})).await?;
        notes.push("it counts from the next request on".to_owned());
    }
    Ok(reply(ChooseReply::Profile(profile_info(app, &place, notes))))
}

fn profile_info(app: &App, place: &Place, notes: Vec<String>) -> ProfileInfo {
    let saved = app.choosing.saved().profiles.get(&place.key).cloned().unwrap_or_default();
    let weight = |(id, weight): (String, u32)| (id, f64::from(weight) / f64::from(WEIGHT_ONE));
    ProfileInfo {
        project: place.key.clone(),
        path: place.main.display().to_string(),
        strategy: saved.strategy,
        prefer: saved.prefer,
        avoid: saved.avoid,
        allow: saved.allow,
        deny: saved.deny,
        weights: saved.weights.into_iter().map(weight).collect(),
        notes,
    }
}

fn wish(
    profile: &mut SavedProfile,
    edit: ProfileEdit,
    weights: Vec<(String, Option<u32>)>,
) -> Result<(), Fault> {
    if edit.clear {
        *profile = SavedProfile::default();
    }
    if let Some(name) = edit.strategy {
        profile.strategy =
            if name.is_empty() { None } else { Some(strategy(&name)?.name().to_owned()) };
    }
    let lists = [
        (&mut profile.prefer, edit.prefer),
        (&mut profile.avoid, edit.avoid),
        (&mut profile.allow, edit.allow),
        (&mut profile.deny, edit.deny),
    ];
    for (list, new) in lists {
        let Some(new) = new else { continue };
        let bad = |word: &String| {
            word.is_empty() || word.len() > 64 || word.chars().any(|c| c.is_control() || c == ' ')
        };
        if new.len() > MAX_NAMES || new.iter().any(bad) {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                format!("a list has at most {MAX_NAMES} words of up to 64 letters"),
                "name tags as `cmactl list` shows them, models as the CLI names them",
            ));
        }
        *list = new.iter().map(|word| word.to_lowercase()).collect();
    }
    for (id, weight) in weights {
        match weight {
            Some(weight) if weight > WEIGHT_MOST => {
                return Err(Fault::new(
                    ErrorCode::BadRequest,
                    format!("a weight is from 0 to {}", WEIGHT_MOST / WEIGHT_ONE),
                    "choose another number",
                ));
            },
            Some(weight) => drop(profile.weights.insert(id, weight)),
            None => drop(profile.weights.remove(&id)),
        }
    }
    Ok(())
}

/// A launch that only some accounts may serve: whoever can't be meant stops it.
async fn start(
    app: &Arc<App>,
    request: LaunchRequest,
    selector: &str,
    own: bool,
    pid: Option<u32>,
) -> Result<Reply, Fault> {
    let records = app.roster.select_all(selector)?;
    let only = records.iter().map(|record| AccountId::from_written(&record.id)).collect();
    let own = own || app.config.own_auth;
    super::handlers::start(app, request, pid, Wanted { own, only: Some(only) }).await
}

/// Forgets what a project wanted, with the project.
pub(super) async fn forget(app: &Arc<App>, key: &str) -> Result<(), Fault> {
    if !app.choosing.saved().profiles.contains_key(key) {
        return Ok(());
    }
    let gone = key.to_owned();
    save(app, move |saved| {
        saved.profiles.remove(&gone);
        Ok(())
    })
    .await?;
    app.actor.command(Input::Profile(key.into(), None)).await.map_err(stopping)?;
    Ok(())
}

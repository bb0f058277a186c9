//! `demo`: the main job on a stage, with nothing installed and no network.
//!
//! A simulated upstream with three accounts of small quotas, a real daemon on a temporary root, and
//! a client that sends one request after another. The demo pins the account with the smallest
//! quota, lets it run dry, pins the next, and lets that run dry too; the third lasts. What is shown
//! comes from the daemon's events alone, what is counted as an error from the client alone. The
//! stage takes everything away with it, on Ctrl-C and on errors too.

mod show;
mod stage;
mod traffic;

use super::launch;
use crate::{
    cli::DemoArgs,
    error::{Failure, unexpected},
    render::{Picture, Screen, Tone, clean},
};
use cma_proto::{
    client::Client,
    codec::Codec,
    error::{ErrorCode, Refusal},
    message::{Event, Imported, Launch, LaunchPlan, LaunchRequest, Reply, Request},
};
use show::{News, Seat, Show};
use stage::Stage;
use std::{
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};
use traffic::Traffic;

/// How often the picture is drawn at most, and the client looked at at least.
const TICK: Duration = Duration::from_millis(50);
/// When the demo gives up: nothing was answered for so long. That a machine is slow is no reason.
const SILENCE: Duration = Duration::from_secs(20);
/// How long the last events may come after the last answer; a busy machine takes its time.
const TRAIL: Duration = Duration::from_secs(2);
/// Requests served by another account before the demo pins the next one.
const PAUSE: u64 = 3;
/// As a shell would report it.
const INTERRUPTED: u8 = 130;

pub(super) fn demo(
    args: &DemoArgs,
    codec: Codec,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let interrupted = on_interrupt();
    let sender = traffic::choose(args.client)?;
    let script = sender.script();
    let ended = Stage::set(script.quotas, codec, &interrupted)
        .and_then(|stage| play(&stage, sender, args.plain, &interrupted, screen));
    if interrupted.load(Ordering::Relaxed) {
        // Children that got the same signal may have failed in many ways: none is worth a word.
        screen.notes(&["interrupted; nothing is left behind".to_owned()])?;
        return Ok(ExitCode::from(INTERRUPTED));
    }
    ended
}

/// A flag that says somebody wants us to end.
fn on_interrupt() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    let signals =
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP];
    #[cfg(not(unix))]
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
    for signal in signals {
        // Where no handler can be installed, the signal ends us the hard way.
        drop(signal_hook::flag::register(signal, Arc::clone(&flag)));
    }
    flag
}

fn play(
    stage: &Stage,
    sender: traffic::Sender,
    plain: bool,
    interrupted: &AtomicBool,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let mut client = stage.connect()?;
    let seats = fill(&mut client, stage)?;
    let plan = plan(&mut client, &sender, stage)?;
    let events = listen(stage.connect()?)?;
    let mut out = Out::new(plain, screen);
    let mut show = Show::new(seats, sender.script().requests);
    out.news(
        &show,
        &[News::Started {
            client: sender.describe(),
            requests: sender.script().requests,
            url: plan.base_url.clone(),
        }],
    )?;
    let mut director = Director::default();
    director.direct(&mut client, &show, &mut out)?;
    let mut traffic = Traffic::start(sender, &plan, stage.folder())?;
    let mut over: Option<Instant> = None;
    let mut heard = Instant::now();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(ExitCode::from(INTERRUPTED));
        }
        let mut news = Vec::new();
        match events.recv_timeout(TICK) {
            Ok(event) => news.extend(show.hear(&event)),
            Err(RecvTimeoutError::Timeout) => {},
            Err(RecvTimeoutError::Disconnected) => return Err(stage.daemon_is_gone().into()),
        }
        news.extend(events.try_iter().flat_map(|event| show.hear(&event)));
        news.extend(traffic.poll()?.into_iter().filter_map(|answer| show.count(&answer)));
        out.news(&show, &news)?;
        director.direct(&mut client, &show, &mut out)?;
        if traffic.is_over() {
            let since = over.get_or_insert_with(Instant::now).elapsed();
            if show.is_told() || since > TRAIL {
                break;
            }
        }
        if !news.is_empty() {
            heard = Instant::now();
        }
        if heard.elapsed() > SILENCE {
            let said = format!("nothing was answered for {} s", SILENCE.as_secs());
            let hint = "run `cmactl demo --client builtin --plain`";
            return Err(Refusal::new(ErrorCode::Negative, said, hint).into());
        }
    }
    let ended = show.verdict(traffic.sent());
    drop(traffic);
    out.end(&show)?;
    ended.map(|()| ExitCode::SUCCESS).map_err(Failure::Refused)
}

/// Imports the three logins and returns them in order of quota.
fn fill(client: &mut Client, stage: &Stage) -> Result<Vec<Seat>, Failure> {
    let import = |account: &stage::SimAccount| {
        let (path, label) = (account.auth_file.clone(), account.name.to_uppercase());
        let request = Request::Import { path, label: Some(label.clone()) };
        match client.call(&request)? {
            Reply::Imported(made) => match made.as_slice() {
                [Imported { id, .. }] => Ok(Seat::new(id, &label)),
                other => Err(unexpected(other).into()),
            },
            other => Err(unexpected(other).into()),
        }
    };
    stage.accounts().iter().map(import).collect()
}

fn plan(
    client: &mut Client,
    sender: &traffic::Sender,
    stage: &Stage,
) -> Result<LaunchPlan, Failure> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let request = LaunchRequest {
        printed: true,
        codex_version: sender.codex_version().to_owned(),
        codex_home: text(&stage.folder().codex_home()),
        cwd: text(&stage.folder().work()),
        overrides: Vec::new(),
        profile: None,
        interactive: false,
        no_proxy: launch::no_proxy(|name| std::env::var(name).ok()),
        ignore_user_config: false,
    };
    match client.call(&Request::Launch(request))? {
        Reply::Launch(launch) => match *launch {
            Launch::Through(plan) | Launch::Noted { plan, .. } => Ok(plan),
            Launch::Aside { reason, .. } => Err(launch::aside(&reason).into()),
        },
        other => Err(unexpected(other).into()),
    }
}

/// Events from a connection of their own, by a thread that ends with the daemon.
fn listen(mut client: Client) -> Result<Receiver<Event>, Failure> {
    client.subscribe()?;
    let (sender, receiver) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        while let Ok(Some(event)) = client.next_event() {
            if sender.send(event).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

/// Who pins what, when: first the smallest account, and when that is dry, the next.
#[derive(Debug, Default)]
struct Director {
    /// How many accounts were pinned so far.
    pinned: usize,
    /// Requests served in all when the last pinned account was found dry.
    dry_at: Option<u64>,
}

impl Director {
    fn direct(
        &mut self,
        client: &mut Client,
        show: &Show,
        out: &mut Out<'_>,
    ) -> Result<(), Failure> {
        let seats = show.seats();
        // The last one has room enough for the rest.
        if self.pinned + 1 >= seats.len() {
            return Ok(());
        }
        if let Some(last) = self.pinned.checked_sub(1) {
            if !seats.get(last).is_some_and(Seat::ran_dry) {
                return Ok(());
            }
            let since = *self.dry_at.get_or_insert(show.served());
            if show.served() < since + PAUSE {
                return Ok(());
            }
        }
        let Some(next) = seats.get(self.pinned) else { return Ok(()) };
        self.pinned += 1;
        self.dry_at = None;
        let request = Request::Switch { selector: next.id().to_owned(), expected_epoch: None };
        client.call(&request)?;
        out.news(show, &[News::Command { line: format!("cmactl switch {}", next.name()) }])
    }
}

/// Where the show is seen: a picture drawn in place, plain lines, or JSON lines.
struct Out<'a> {
    screen: &'a mut Screen,
    picture: Option<Picture>,
}

impl<'a> Out<'a> {
    fn new(plain: bool, screen: &'a mut Screen) -> Self {
        let picture = (!plain && screen.can_redraw()).then(Picture::new);
        Self { screen, picture }
    }

    fn news(&mut self, show: &Show, news: &[News]) -> Result<(), Failure> {
        if self.screen.json() {
            return news.iter().try_for_each(|news| self.screen.object(news));
        }
        if let Some(picture) = &mut self.picture {
            let above: String = news
                .iter()
                .filter(|news| news.is_prominent())
                .map(|news| show.line(news))
                .collect();
            return picture.draw(&above, &show.frame());
        }
        if news.is_empty() {
            return Ok(());
        }
        let lines: String = news.iter().map(|news| show.line(news)).collect();
        self.screen.text(&lines)
    }

    fn end(mut self, show: &Show) -> Result<(), Failure> {
        self.news(show, &[])?;
        self.picture = None;
        if self.screen.json() {
            return self.screen.object(&show.summary());
        }
        self.screen.text(&(show.closing() + &next_commands()))
    }
}

/// What to type after the demo.
fn next_commands() -> String {
    let own = std::env::current_exe().and_then(std::fs::canonicalize).ok();
    let folder = own.as_deref().and_then(Path::parent);
    // Built without the optimiser: for a first look, not to work with.
    let quick = folder.filter(|folder| cfg!(debug_assertions) && folder.ends_with("target/debug"));
    let folder =
        quick.map(|folder| folder.with_file_name("release")).or(folder.map(Path::to_owned));
    let folder = folder.map_or_else(
        || "the folder of `cmactl`".to_owned(),
        |folder| clean(&folder.to_string_lossy()),
    );
    let build =
        quick.map(|_| ("cargo build --release".to_owned(), "what ran here is not optimised"));
    let lines = [
        (format!("export PATH=\"{folder}:$PATH\""), "`codex` is the shim from now on"),
        ("cmactl login".to_owned(), "once for each account; `cmactl import` reads an auth.json"),
        ("codex exec \"say hello\"".to_owned(), "the real CLI, on the account that should serve"),
        ("cmactl status".to_owned(), "who serves, and what is left"),
    ];
    let lines: Vec<(String, &str)> = build.into_iter().chain(lines).collect();
    let width = lines.iter().map(|(command, _)| command.chars().count()).max().unwrap_or(0);
    let line = |(command, why): &(String, &str)| {
        let pad = " ".repeat(width.saturating_sub(command.chars().count()));
        format!("  {}{pad}  {}\n", Tone::Strong.paint(command), Tone::Dim.paint(format!("# {why}")))
    };
    format!("\nNext, with your own accounts:\n{}", lines.iter().map(line).collect::<String>())
}

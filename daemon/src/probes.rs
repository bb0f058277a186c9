//! Asks upstream how far accounts are used, when somebody wants to know.
//!
//! Only the usage endpoint is asked, which spends nothing, unless the asker names a model; and only
//! for accounts whose knowledge is older than the asker wants. One run at a time, one account after
//! another with a pause of chance between, so that twenty accounts are no storm. What a probe learns is
//! merged like what any answer tells; one that fails says why and changes nothing of what is known.

use crate::{
    app::{Phase, Phases, Tasks},
    clock,
    fault::Fault,
    proxy::{Proxy, ask_model, probe},
};
use cma_core::{identity::AccountId, pool::Input, quota::Window};
use cma_proto::error::ErrorCode;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The pause between two accounts, in milliseconds: at least, and how much more by chance.
const PAUSE: (u64, u64) = (50, 300);
/// Outcomes kept of one account: what a person looks back on.
const KEPT: usize = 32;

/// What became of one account in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its turn comes.
    Queued,
    /// Upstream is asked.
    Running,
    /// Upstream told.
    Done,
    /// It didn't.
    Failed,
    /// What is known is new enough: nothing was asked.
    Fresh,
    /// The run was stopped before.
    Stopped,
}

impl Step {
    /// As it is shown.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Fresh => "fresh",
            Self::Stopped => "stopped",
        }
    }
}

/// One account of a run.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) id: AccountId,
    pub(crate) step: Step,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// How long upstream took.
    pub(crate) took_ms: Option<u64>,
}

/// What came of a probe.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    /// Seconds since 1970.
    pub(crate) at: u64,
    pub(crate) error: Option<String>,
    /// Percent used of the fullest window.
    pub(crate) used_percent: Option<f64>,
}

/// A run, and the one before it is over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    pub(crate) items: Vec<Item>,
    pub(crate) running: bool,
    stopping: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Probes {
    run: Mutex<Run>,
    history: Mutex<BTreeMap<AccountId, VecDeque<Past>>>,
    tasks: Tasks,
    phases: Phases,
}

impl Probes {
    pub(crate) fn new(tasks: Tasks, phases: Phases) -> Self {
        Self { run: Mutex::default(), history: Mutex::default(), tasks, phases }
    }

    /// The run at hand, or the last one.
    pub(crate) fn run(&self) -> Run {
        self.run.lock().clone()
    }

    /// What came of an account's last probes, oldest first.
    pub(crate) fn history(&self, id: &AccountId) -> Vec<Past> {
        self.history.lock().get(id).map(|past| past.iter().cloned().collect()).unwrap_or_default()
    }

    /// Lets the account that is being asked end, and no other begin.
    pub(crate) fn stop(&self) {
        let mut run = self.run.lock();
        run.stopping = true;
        for item in run.items.iter_mut().filter(|item| item.step == Step::Queued) {
            item.step = Step::Stopped;
        }
    }

    /// Begins a run over accounts, of which `fresh` are known well enough. With a model each gets a
    /// real request to it.
    ///
    /// # Errors
    /// [`ErrorCode::Negative`] while one runs; [`ErrorCode::BadRequest`] for what is no model.
    pub(crate) fn begin(
        self: &Arc<Self>,
        proxy: &Arc<Proxy>,
        wanted: Vec<(AccountId, bool)>,
        model: Option<String>,
    ) -> Result<(), Fault> {
        if let Some(model) = model.as_ref().filter(|model| !ask_model::is_a_name(model)) {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                format!("`{model}` is no model's name"),
                "say it like `--probe-model gpt-5.5`",
            ));
        }
        let mut run = self.run.lock();
        if run.running {
            return Err(Fault::new(
                ErrorCode::Negative,
                "a probe runs already",
                "look at it with `cmactl probe --show`, or end it with `cmactl probe --stop`",
            ));
        }
        let item = |(id, fresh)| {
            let step = if fresh { Step::Fresh } else { Step::Queued };
            Item { id, step, error: None, took_ms: None }
        };
        *run =
            Run { items: wanted.into_iter().map(item).collect(), running: true, stopping: false };
        drop(run);
        let (own, proxy) = (Arc::clone(self), Arc::clone(proxy));
        self.tasks.spawn("probes", async move { own.work(&proxy, model.as_deref()).await });
        Ok(())
    }

    async fn work(&self, proxy: &Arc<Proxy>, model: Option<&str>) {
        let mut first = true;
        while let Some(id) = self.next() {
            if !std::mem::take(&mut first) {
                tokio::time::sleep(pause()).await;
            }
            // The pause is a good moment to be stopped in.
            if !self.mark(&id, Step::Running) {
                continue;
            }
            let begun = Instant::now();
            let told = match model {
                Some(model) => ask_model::windows(proxy, &id, model).await,
                None => probe::windows(proxy, &id).await,
            };
            let took = u64::try_from(begun.elapsed().as_millis()).ok();
            self.end(proxy, &id, told, took);
        }
        self.run.lock().running = false;
    }

    /// The next account, unless the run is stopped or the daemon stops.
    fn next(&self) -> Option<AccountId> {
        if self.phases.now() >= Phase::Draining {
            self.stop();
        }
        let run = self.run.lock();
        let next = run.items.iter().find(|item| item.step == Step::Queued);
        next.filter(|_next| !run.stopping).map(|next| next.id.clone())
    }

    /// Notes an account's step; false when it is no longer queued.
    fn mark(&self, id: &AccountId, step: Step) -> bool {
        let mut run = self.run.lock();
        let item = run.items.iter_mut().find(|item| item.id == *id && item.step == Step::Queued);
        item.map(|item| item.step = step).is_some()
    }

    fn end(
        &self,
        proxy: &Proxy,
        id: &AccountId,
        told: Result<Vec<Window>, String>,
        took_ms: Option<u64>,
    ) {
        let used = told.as_ref().ok().and_then(|windows| {
            windows.iter().map(|window| window.used_percent).max_by(f64::total_cmp)
        });
        let error = match told {
            Ok(windows) => {
                proxy.actor.tell(Input::QuotaSeen(id.clone(), windows));
                None
            },
            Err(error) => Some(error),
        };
        {
            let mut history = self.history.lock();
            // Accounts come and go; what is kept of those that went is little.
            if history.len() > 1_000 {
                history.clear();
            }
            let past = history.entry(id.clone()).or_default();
            if past.len() >= KEPT {
                past.pop_front();
            }
            past.push_back(Past { at: clock::unix(), error: error.clone(), used_percent: used });
        }
        let mut run = self.run.lock();
        if let Some(item) = run.items.iter_mut().find(|item| item.id == *id) {
            item.step = if error.is_none() { Step::Done } else { Step::Failed };
            item.error = error;
            item.took_ms = took_ms;
        }
    }
}

fn pause() -> Duration {
    let (least, more) = PAUSE;
    let mut byte = [0];
    // Without chance the pause is the shortest.
    let chance = getrandom::fill(&mut byte).map_or(0, |()| u64::from(byte[0]));
    Duration::from_millis(least + more * chance / 255)
}

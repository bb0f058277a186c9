//! What a case is: what is done, over which transport, what goes wrong, and what is expected.

use cma_tests::sim::{Fault, Route, Seen, SimConfig};
use serde_json::Value;

/// The versions of the official CLI, newest first.
pub(super) const VERSIONS: [&str; 4] = ["0.169.0", "0.149.0", "0.128.0", "0.98.0"];

/// How turns travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// Upgrades are answered 426.
    Http,
    /// WebSockets, as by default.
    Ws,
}

/// One thing that the CLI is told to do. Words may contain `{dir}`, the machine's folder.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A command, to its end.
    Run(Vec<String>),
    /// An app-server that gets these messages, each when the one before has been answered; `{"await":
    /// METHOD}` waits for a notification. It is left after the last one.
    Serve(Vec<Value>),
}

/// A scripted fault.
#[derive(Debug, Clone)]
pub(super) struct Script {
    /// Only of the account that is chosen first, else of all.
    pub(super) first_only: bool,
    /// Whether each run that has it gets as far as to it.
    pub(super) sure: bool,
    pub(super) route: Route,
    pub(super) fault: Fault,
    /// For ever when there is no number.
    pub(super) times: Option<u32>,
}

impl Script {
    /// Whether it applied, by the requests that came since it was scripted; `applied` of all faults.
    pub(super) fn is_met(&self, seen: &[Seen], applied: u64) -> bool {
        applied > 0 && seen.iter().any(|seen| self.is_for(seen))
    }

    fn is_for(&self, seen: &Seen) -> bool {
        let (frame, turn) = (seen.method == "WS", seen.path.ends_with("/codex/responses"));
        let prewarm = frame && seen.body["generate"] == false;
        let here = match self.route {
            Route::Responses => turn && seen.method == "POST",
            Route::Upgrade => turn && seen.method == "GET",
            Route::Frame => frame && !prewarm,
            Route::Prewarm => prewarm,
            Route::Refresh => seen.path == "/oauth/token",
            Route::Models => seen.path.ends_with("/codex/models"),
            Route::Usage => seen.path.ends_with("/wham/usage"),
            Route::AccountsCheck => seen.path.ends_with("/wham/accounts/check"),
            // Of many addresses, and alone in its case: the count of faults is its own.
            Route::Revoke | Route::Login | Route::Errand | Route::Aux | Route::Any => true,
        };
        here && (!self.first_only || seen.account.as_deref() == Some("a"))
    }
}

/// What a run through the daemon is held against.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expect {
    /// The CLI alone with the same faults.
    Same,
    /// The CLI alone without any.
    Hidden,
    /// The CLI alone with the same faults as far as the exit status goes; these words in the output.
    Ours { says: &'static str, why: &'static str },
}

/// One case.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// `TRANSPORT/ROW/EXPECTATION`.
    pub(super) name: String,
    pub(super) wire: Wire,
    pub(super) steps: Vec<Step>,
    /// The command that the upstream calls as a tool, once.
    pub(super) tool: Option<&'static str>,
    pub(super) faults: Vec<Script>,
    /// The step before which the faults are scripted.
    pub(super) faults_at: usize,
    pub(super) accounts: &'static [&'static str],
    pub(super) tune: fn(&mut SimConfig),
    pub(super) expect: Expect,
    /// Whether turns may have to do without WebSockets, whatever upstream says of a handshake.
    pub(super) bridged: bool,
    /// The oldest version that has what the case needs, and what that is.
    pub(super) since: Option<(&'static str, &'static str)>,
    /// A single version that can't do it, and why.
    pub(super) not_with: Option<(&'static str, &'static str)>,
}

/// One turn.
pub(super) fn turn(more: &[&str]) -> Step {
    let words = ["exec", "--skip-git-repo-check"].iter().chain(more).chain(&["say hi"]);
    Step::Run(words.map(|word| (*word).to_owned()).collect())
}

/// A command by words.
pub(super) fn run(words: &[&str]) -> Step {
    Step::Run(words.iter().map(|word| (*word).to_owned()).collect())
}

impl Case {
    /// One plain turn of which nothing goes wrong.
    pub(super) fn new(wire: Wire, row: &str) -> Self {
        let prefix = if wire == Wire::Http { "http" } else { "ws" };
        Self {
            name: format!("{prefix}/{row}"),
            wire,
            steps: vec![turn(&[])],
            tool: None,
            faults: Vec::new(),
            faults_at: 0,
            accounts: &["a"],
            tune: |_| (),
            expect: Expect::Same,
            bridged: false,
            since: (wire == Wire::Ws).then_some(("0.128.0", "it has no WebSocket transport")),
            not_with: None,
        }
    }

    pub(super) fn steps(mut self, steps: Vec<Step>) -> Self {
        self.steps = steps;
        self
    }

    pub(super) fn tool(mut self, command: &'static str) -> Self {
        self.tool = Some(command);
        self
    }

    pub(super) fn tune(mut self, tune: fn(&mut SimConfig)) -> Self {
        self.tune = tune;
        self
    }

    pub(super) fn before_step(mut self, at: usize) -> Self {
        self.faults_at = at;
        self
    }

    pub(super) fn since(mut self, version: &'static str, what: &'static str) -> Self {
        let later = self.since.is_none_or(|(known, _)| numbers(version) > numbers(known));
        if later {
            self.since = Some((version, what));
        }
        self
    }

    pub(super) fn not_with(mut self, version: &'static str, why: &'static str) -> Self {
        self.not_with = Some((version, why));
        self
    }

    pub(super) fn fault(mut self, route: Route, fault: Fault, times: Option<u32>) -> Self {
        self.faults.push(Script { first_only: false, sure: true, route, fault, times });
        self
    }

    /// One more fault, for ever, for a run that gets past those before it.
    pub(super) fn fault_behind(mut self, route: Route, fault: Fault) -> Self {
        self.faults.push(Script { first_only: false, sure: false, route, fault, times: None });
        self
    }

    /// The same faults on both sides, and a pool of one account.
    pub(super) fn same(mut self) -> Self {
        self.name.push_str("/same");
        self
    }

    /// The same faults on both sides, and a pool of two accounts which both have them.
    pub(super) fn same_for_two(mut self) -> Self {
        self.name.push_str("/same_for_two");
        self.accounts = &["a", "b"];
        self
    }

    /// A second account without the faults.
    pub(super) fn hidden(mut self) -> Self {
        self.name.push_str("/hidden");
        self.accounts = &["a", "b"];
        self.expect = Expect::Hidden;
        for script in &mut self.faults {
            script.first_only = true;
        }
        self
    }

    /// One account, which comes to itself without the CLI noticing anything.
    pub(super) fn healed(mut self) -> Self {
        self.name.push_str("/healed");
        self.expect = Expect::Hidden;
        self
    }

    /// As [`Self::healed`], where the CLI alone would go on over HTTP in the end.
    pub(super) fn bridged(self) -> Self {
        self.healed().may_bridge()
    }

    pub(super) fn may_bridge(mut self) -> Self {
        self.bridged = true;
        self
    }

    /// Two accounts which both have the faults, and words of our own.
    pub(super) fn ours(mut self, says: &'static str, why: &'static str) -> Self {
        self.name.push_str("/ours");
        self.accounts = &["a", "b"];
        self.expect = Expect::Ours { says, why };
        self
    }

    /// One account, and words of our own.
    pub(super) fn ours_for_one(mut self, says: &'static str, why: &'static str) -> Self {
        self = self.ours(says, why);
        self.accounts = &["a"];
        self
    }

    /// Why a version can't do this.
    pub(super) fn cannot(&self, version: &str) -> Option<&'static str> {
        let single = self.not_with.filter(|(one, _)| *one == version);
        let older = self.since.filter(|(since, _)| numbers(version) < numbers(since));
        single.or(older).map(|(_, why)| why)
    }

    /// Whether turns may have to do without WebSockets.
    pub(super) fn may_do_without(&self) -> bool {
        self.bridged || self.fails_at_the_handshake()
    }

    fn fails_at_the_handshake(&self) -> bool {
        self.faults.iter().any(|script| script.route == Route::Upgrade)
    }

    /// Whether every account fails for ever.
    pub(super) fn is_hopeless(&self) -> bool {
        self.faults.iter().any(|script| {
            let turns = [Route::Responses, Route::Frame, Route::Any].contains(&script.route);
            turns && !script.first_only && script.times.is_none()
        })
    }
}

/// The numbers of a version, to compare.
pub(super) fn numbers(version: &str) -> Vec<u32> {
    version.split('.').filter_map(|part| part.parse().ok()).collect()
}

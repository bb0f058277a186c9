//! How a CLI is started so that it talks to the daemon, or why it isn't.
//!
//! The plan edits nothing and shadows nothing: the built-in provider stays (so history, `resume`,
//! the model list and remote compaction stay whole), two base addresses are given for this process
//! only, and the key goes by the environment. What a person or their organisation configured wins
//! over us: another provider, own addresses, an API login. A forced workspace limits the launch to
//! accounts in it; a CLI that found itself in another would log out and delete the person's login
//! (observed, 0.169.0), so when in doubt the answer is "plain".

use crate::{
    fault::Fault,
    outside,
    project::{self, Bounds, Choice, Projects},
    proxy::keys::Keys,
    roster::Roster,
    store::{import, record::sum},
};
use cma_core::identity::AccountId;
use cma_proto::{
    error::ErrorCode,
    message::{Launch, LaunchPlan, LaunchRequest},
};
use secrecy::ExposeSecret as _;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use toml::{Table, Value};

/// The first version known to take its login from the environment (0.128 ignores it).
const TAKES_KEY: Version = (0, 149, 0);
/// The first version with `--no-daemon` (0.155 doesn't know it).
const HAS_NO_DAEMON: Version = (0, 156, 0);
/// The first version with `openai_base_url` (0.98 doesn't know it; it reads [`BASE_URL`]).
const TAKES_ADDRESS: Version = (0, 128, 0);
/// Where it finds its upstream instead.
const BASE_URL: &str = "OPENAI_BASE_URL";
/// Where the CLI renews its own login (0.169.0).
const REFRESH: &str = "CODEX_REFRESH_TOKEN_URL_OVERRIDE";
/// Where it revokes it (0.169.0).
const REVOKE: &str = "CODEX_REVOKE_TOKEN_URL_OVERRIDE";
/// A configuration file larger than this is none.
const MAX_FILE: u64 = 1024 * 1024;

type Version = (u32, u32, u32);

/// What is wanted of one launch beside what its folder says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// The CLI stays on its own login.
    pub(crate) own: bool,
    /// Nobody else may serve it.
    pub(crate) only: Option<Arc<[AccountId]>>,
}

impl Wanted {
    /// A folder's choice, narrowed down to the accounts that are wanted.
    fn within(&self, choice: Choice, roster: &Roster) -> Result<Choice, Fault> {
        let Some(only) = &self.only else { return Ok(choice) };
        let may = |id: &&AccountId| {
            roster.get(id).is_some_and(|record| choice.bounds.place(&record).is_some())
        };
        let accounts: Arc<[AccountId]> = only.iter().filter(may).cloned().collect();
        if accounts.is_empty() {
            return Err(Fault::new(
                ErrorCode::NotFound,
                "the account you name is not among those that may serve launches in this folder",
                "run `cmactl project show` there, or go into another folder",
            ));
        }
        let bounds = Bounds { accounts: Some(accounts), ..choice.bounds };
        Ok(Choice { bounds, ..choice })
    }
}

/// Answers a launch. Reads the CLI's configuration files; call it off the event loop.
///
/// # Errors
/// [`cma_proto::error::ErrorCode::Internal`] when no key can be made.
pub(crate) fn plan(
    request: &LaunchRequest,
    pid: Option<u32>,
    base: &str,
    keys: &Keys,
    roster: &Roster,
    projects: &Projects,
    wanted: &Wanted,
) -> Result<Launch, Fault> {
    let aside = |reason: &str, tell| Ok(Launch::Aside { reason: reason.to_owned(), tell });
    let version = version(&request.codex_version);
    // One that stays on its own login needs none from the environment.
    if !wanted.own
        && let Some(why) = too_old(request, version)
    {
        return aside(&why, true);
    }
    let workspaces = match wishes(request) {
        Ok(workspaces) => workspaces,
        Err(reason) => return aside(&reason, false),
    };
    let pool = roster.all();
    if roster.is_locked() {
        return aside("the pool is sealed and locked; `cmactl unlock` opens it", true);
    }
    if pool.is_empty() {
        if offers(&request.codex_home) {
            return aside(
                "the pool is empty; `cmactl import --preview` shows the logins found",
                true,
            );
        }
        return aside(
            "the pool is empty; `cmactl login` signs in, `cmactl import` takes over a login you have",
            true,
        );
    }
    let choice = wanted.within(projects.choose(&request.cwd, roster)?, roster)?;
    let theirs: Vec<String> = workspaces.iter().map(ToString::to_string).collect();
    let ours: Vec<String> = choice.bounds.workspaces.iter().map(ToString::to_string).collect();
    let Some(workspaces) = project::both(&theirs, &ours) else {
        return aside("the workspace that codex is bound to is outside of the limit you set", true);
    };
    let workspaces = workspaces.iter().map(|name| name.as_str().into()).collect();
    let bounds = Bounds { workspaces, ..choice.bounds };
    if !pool.iter().any(|record| bounds.place(record).is_some()) {
        let why = if theirs.is_empty() && ours.is_empty() {
            "the global pool is empty here; `cmactl import` adds the login of `codex login`"
        } else if theirs.is_empty() {
            "no account of the pool is in the workspaces of the limit you set"
        } else {
            "no account of the pool is in the workspace that codex is bound to"
        };
        return aside(why, true);
    }
    if wanted.own {
        return own(request, pid, (base, keys, roster), bounds, choice.notes);
    }
    // The CLI notes who made a thread, and `resume --last` only finds threads of the identity it runs
    // under (observed, 0.169.0): a person's own login, when it is in the pool, stays that identity.
    let own = import::identity(&Path::new(&request.codex_home).join("auth.json"));
    let face = own.filter(|id| {
        pool.iter().any(|record| record.id == id.as_str() && bounds.place(record).is_some())
    });
    // A printed key is for any program of this person; a launch's dies with its process.
    let (key, launch) = keys.mint(pid.filter(|_| !request.printed), face, bounds)?;
    let no_proxy = no_proxy(&request.no_proxy);
    let mut args = addresses(base);
    args.extend([
        // Commands that the CLI runs inherit its environment; the key is not for them.
        "-c".to_owned(),
        "shell_environment_policy.set.CODEX_ACCESS_TOKEN=\"\"".to_owned(),
        "-c".to_owned(),
        "shell_environment_policy.set.CODEX_AUTHAPI_BASE_URL=\"\"".to_owned(),
    ]);
    args.extend(no_daemon(request));
    let plan = LaunchPlan {
        env: vec![
            ("CODEX_ACCESS_TOKEN".to_owned(), key.clone()),
            ("CODEX_AUTHAPI_BASE_URL".to_owned(), format!("{base}/api/accounts")),
            ("NO_PROXY".to_owned(), no_proxy.clone()),
            ("no_proxy".to_owned(), no_proxy),
        ],
        args,
        base_url: format!("{base}/codex"),
        client_key: key,
        key_expires_at: launch.expires_at,
        session: launch.name(),
    };
    Ok(told(plan, choice.notes))
}

/// Why this CLI's version can't be started through the daemon. A printed plan is for any client.
fn too_old(request: &LaunchRequest, version: Option<Version>) -> Option<String> {
    match version {
        None if request.printed => None,
        None => Some("this codex doesn't tell its version".to_owned()),
        Some(version) if version < TAKES_KEY => {
            let (major, minor, patch) = TAKES_KEY;
            Some(format!(
                "codex {} can't take its login from the environment; {major}.{minor}.{patch} can, and with \
                 `CMA_AUTH_MODE=own` this one is served on a login of its own",
                request.codex_version
            ))
        },
        Some(_) => None,
    }
}

/// The plan of a CLI that stays on its own `auth.json`: no key in the environment, but the two
/// addresses at which this CLI renews and revokes, which are ours. The ticket in the addresses is no
/// secret (arguments can be seen); what opens them is the person's own bearer.
fn own(
    request: &LaunchRequest,
    pid: Option<u32>,
    (base, keys, roster): (&str, &Keys, &Roster),
    bounds: Bounds,
    notes: Vec<String>,
) -> Result<Launch, Fault> {
    let aside = |reason: String| Ok(Launch::Aside { reason, tell: true });
    let path = Path::new(&request.codex_home).join("auth.json");
    let Some((face, bearer)) = import::bearer(&path) else {
        return aside(format!(
            "own-auth mode needs a ChatGPT login in `{}`; sign in with `codex login`",
            path.display()
        ));
    };
    if roster.get(&face).is_none_or(|record| bounds.place(&record).is_none()) {
        return aside(format!(
            "own-auth mode: the login in `{}` is not in the pool; `cmactl import` adds it",
            path.display()
        ));
    }
    let print = sum(bearer.expose_secret()).into();
    let (ticket, secret, launch) =
        keys.mint_own(pid.filter(|_| !request.printed), face, print, bounds)?;
    let no_proxy = no_proxy(&request.no_proxy);
    let (opened, renewal) = (format!("{base}/own/{ticket}"), format!("{base}/own/{secret}"));
    let mut args = addresses(&opened);
    for name in [REFRESH, REVOKE] {
        // Commands that the CLI runs inherit its environment; the endpoints are not for them.
        args.extend(["-c".to_owned(), format!("shell_environment_policy.set.{name}=\"\"")]);
    }
    args.extend(no_daemon(request));
    let mut env = vec![
        (REFRESH.to_owned(), format!("{renewal}/oauth/token")),
        (REVOKE.to_owned(), format!("{renewal}/oauth/revoke")),
        ("NO_PROXY".to_owned(), no_proxy.clone()),
        ("no_proxy".to_owned(), no_proxy),
    ];
    if version(&request.codex_version).is_some_and(|version| version < TAKES_ADDRESS) {
        env.push((BASE_URL.to_owned(), format!("{opened}/codex")));
    }
    let plan = LaunchPlan {
        env,
        args,
        base_url: format!("{opened}/codex"),
        // The person's own bearer is the key: none is made.
        client_key: String::new(),
        key_expires_at: launch.expires_at,
        session: launch.name(),
    };
    Ok(told(plan, notes))
}

/// A plan with what its person should hear.
fn told(plan: LaunchPlan, notes: Vec<String>) -> Launch {
    if notes.is_empty() { Launch::Through(plan) } else { Launch::Noted { plan, notes } }
}

fn addresses(base: &str) -> Vec<String> {
    vec![
        "-c".to_owned(),
        format!("openai_base_url=\"{base}/codex\""),
        "-c".to_owned(),
        format!("chatgpt_base_url=\"{base}/backend-api\""),
    ]
}

fn no_daemon(request: &LaunchRequest) -> Option<String> {
    let has = version(&request.codex_version).is_some_and(|version| version >= HAS_NO_DAEMON);
    (request.interactive && has).then(|| "--no-daemon".to_owned())
}

/// `MAJOR.MINOR.PATCH`, with whatever follows a `-` or `+` ignored.
/// Whether other programs' logins lie at the usual places. For an empty pool only.
fn offers(codex_home: &str) -> bool {
    let home = std::env::home_dir().unwrap_or_default();
    cma_proto::takeover::anything_there(&home, Path::new(codex_home), |name| {
        std::env::var(name).ok()
    })
}

fn version(text: &str) -> Option<Version> {
    let numbers = text.split(['-', '+']).next()?;
    let mut parts = numbers.split('.').map(str::parse);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Some((major, minor, patch)),
        _ => None,
    }
}

/// The caller's exceptions and loopback, each once.
fn no_proxy(theirs: &str) -> String {
    let mut all: Vec<&str> = Vec::new();
    for entry in theirs.split(',').chain(["127.0.0.1", "localhost", "::1"]) {
        let entry = entry.trim();
        if !entry.is_empty() && !all.contains(&entry) {
            all.push(entry);
        }
    }
    all.join(",")
}

/// What the CLI's configuration layers want: the workspaces it is bound to, or why we stand aside.
fn wishes(request: &LaunchRequest) -> Result<Arc<[Arc<str>]>, String> {
    let mut provider: Option<String> = None;
    let mut bound: Option<Vec<Arc<str>>> = None;
    for layer in layers(request)? {
        if let Some(id) = layer.get("model_provider").and_then(Value::as_str) {
            provider = Some(id.to_owned());
        }
        for name in ["openai_base_url", "chatgpt_base_url"] {
            if layer.contains_key(name) {
                return Err(format!("`{name}` is configured"));
            }
        }
        if layer.get("forced_login_method").and_then(Value::as_str) == Some("api") {
            return Err("`forced_login_method` is `api`".to_owned());
        }
        if let Some(value) = layer.get("forced_chatgpt_workspace_id") {
            let allowed = names(value);
            // Every layer's restriction has to hold, whichever the CLI ends up with.
            bound = Some(match bound {
                None => allowed,
                Some(known) => known.into_iter().filter(|one| allowed.contains(one)).collect(),
            });
        }
    }
    if let Some(other) = provider.filter(|id| id != "openai") {
        return Err(format!("the configured provider is `{other}`"));
    }
    match bound {
        Some(none) if none.is_empty() => Err("no workspace is allowed".to_owned()),
        bound => Ok(bound.unwrap_or_default().into()),
    }
}

fn names(value: &Value) -> Vec<Arc<str>> {
    match value {
        Value::String(one) => vec![one.trim().into()],
        Value::Array(all) => {
            all.iter().filter_map(Value::as_str).map(|one| one.trim().into()).collect()
        },
        Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Table(_) => Vec::new(),
    }
}

/// What the CLI takes from no project's layer, trusted or not (0.149.0 and 0.169.0, observed): a
/// repository must not say where requests go.
const NOT_A_PROJECTS: [&str; 3] = ["model_provider", "openai_base_url", "chatgpt_base_url"];

/// The CLI's layers, weakest first. One that can't be read as TOML is the CLI's own to complain of.
///
/// A project's are those of all folders above, although the CLI reads those of one repository and of
/// trusted folders: what counts in them is what would make it delete a login, and standing aside for
/// nothing loses none.
fn layers(request: &LaunchRequest) -> Result<Vec<Table>, String> {
    let home = Path::new(&request.codex_home);
    let mut files = vec![PathBuf::from("/etc/codex/config.toml")];
    let own = !request.ignore_user_config;
    files.extend(own.then(|| home.join("config.toml")));
    let mut projects: Vec<_> = Path::new(&request.cwd)
        .ancestors()
        .map(|folder| folder.join(".codex"))
        .filter(|folder| folder != home)
        .map(|folder| folder.join("config.toml"))
        .collect();
    projects.reverse();
    let mut layers = Vec::new();
    for file in files {
        layers.extend(read(&file)?);
    }
    for mut layer in projects.iter().filter_map(|file| read(file).ok().flatten()) {
        layer.retain(|key, _value| !NOT_A_PROJECTS.contains(&key));
        layers.push(layer);
    }
    if let Some(profile) = request.profile.as_ref().filter(|_profile| own) {
        layers.extend(read(&home.join(format!("{profile}.config.toml")))?);
    }
    for text in &request.overrides {
        layers.extend(one(text));
    }
    for file in [
        PathBuf::from("/etc/codex/managed_config.toml"),
        PathBuf::from("/etc/codex/requirements.toml"),
        home.join("managed_config.toml"),
    ] {
        layers.extend(read(&file)?);
    }
    Ok(layers)
}

fn read(path: &Path) -> Result<Option<Table>, String> {
    use std::io::ErrorKind::{FileTooLarge, NotADirectory, NotFound};
    let unread = |why: &dyn std::fmt::Display| format!("`{}` {why}", path.display());
    let bytes = match outside::read(path, MAX_FILE) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
        Err(error) if error.kind() == FileTooLarge => {
            return Err(unread(&"is too large to be looked at"));
        },
        Err(error) => return Err(unread(&format_args!("can't be read: {error}"))),
    };
    let text = String::from_utf8(bytes).map_err(|_error| unread(&"is not UTF-8"))?;
    let broken = |_error| format!("`{}` is not valid TOML", path.display());
    text.parse::<Table>().map(Some).map_err(broken)
}

/// A `-c key=value` as a layer of its own: the value is TOML, else a plain string.
fn one(text: &str) -> Option<Table> {
    let (key, value) = text.split_once('=')?;
    let key = key.trim();
    if key.is_empty() || key.contains('.') {
        return None;
    }
    let parsed = format!("x = {}", value.trim())
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("x"))
        .unwrap_or_else(|| Value::String(value.trim().trim_matches(['"', '\'']).to_owned()));
    Some(Table::from_iter([(key.to_owned(), parsed)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(home: &Path) -> LaunchRequest {
        LaunchRequest {
            printed: false,
            codex_version: "0.169.0".to_owned(),
            codex_home: home.display().to_string(),
            cwd: home.join("work").display().to_string(),
            overrides: Vec::new(),
            profile: None,
            interactive: false,
            no_proxy: String::new(),
            ignore_user_config: false,
        }
    }

    fn with(config: &str, change: impl FnOnce(&mut LaunchRequest)) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let mut request = request(dir.path());
        change(&mut request);
        wishes(&request).map(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_a_person_configured_wins() {
        assert_eq!(with("", |_| {}), Ok(vec![]));
        for config in [
            "model_provider = 'azure'",
            "openai_base_url = 'http://x'",
            "chatgpt_base_url = 'http://x'",
            "forced_login_method = 'api'",
            "not toml at all",
        ] {
            assert!(with(config, |_| {}).is_err(), "{config}");
        }
        let over = |text: &str| {
            let text = text.to_owned();
            with("model_provider = 'azure'", move |request| request.overrides = vec![text])
        };
        assert!(over("model_provider=openai").is_ok());
        assert!(over("model_provider=\"openai\"").is_ok());
        assert!(over("model=x").is_err());
        assert!(
            with("", |request| request.overrides = vec!["forced_login_method=api".to_owned()])
                .is_err()
        );
    }

    #[test]
    fn a_project_says_nothing_of_where_requests_go() {
        let project = |config: &str, project: &str, change: fn(&mut LaunchRequest)| {
            let (config, project) = (config.to_owned(), project.to_owned());
            with(&config, move |request| {
                let folder = Path::new(&request.cwd).join(".codex");
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join("config.toml"), project).unwrap();
                change(request);
            })
        };
        for theirs in ["model_provider = 'x'", "openai_base_url = 'http://x'", "not toml at all"] {
            assert_eq!(project("", theirs, |_| {}), Ok(vec![]), "{theirs}");
        }
        assert!(project("model_provider = 'own'", "model_provider = 'openai'", |_| {}).is_err());
        // What would have the CLI delete a login counts wherever it stands.
        assert!(project("", "forced_login_method = 'api'", |_| {}).is_err());
        let bound = project("", "forced_chatgpt_workspace_id = 'a'", |_| {});
        assert_eq!(bound, Ok(vec!["a".to_owned()]));
    }

    #[test]
    fn a_profile_and_what_is_managed_count_as_the_config_does() {
        let beside = |file: &'static str, text: &'static str| {
            with("", move |request| {
                std::fs::write(Path::new(&request.codex_home).join(file), text).unwrap();
                request.profile = Some("p".to_owned());
            })
        };
        for file in ["p.config.toml", "managed_config.toml"] {
            for text in ["forced_login_method = 'api'", "model_provider = 'x'", "not toml at all"] {
                assert!(beside(file, text).is_err(), "{file}: {text}");
            }
            let bound = beside(file, "forced_chatgpt_workspace_id = 'a'");
            assert_eq!(bound, Ok(vec!["a".to_owned()]), "{file}");
        }
        // A profile that wasn't asked for.
        assert_eq!(beside("q.config.toml", "forced_login_method = 'api'"), Ok(vec![]));
        // What is managed beats what a person says for one launch.
        let managed = |request: &mut LaunchRequest| {
            let file = Path::new(&request.codex_home).join("managed_config.toml");
            std::fs::write(file, "model_provider = 'x'").unwrap();
            request.overrides = vec!["model_provider=openai".to_owned()];
        };
        assert!(with("", managed).is_err());
    }

    /// What can't be looked at may say anything: then the CLI runs plain.
    #[test]
    fn a_config_that_cannot_be_looked_at_is_no_empty_one() {
        let with_large = "#".repeat(usize::try_from(MAX_FILE).unwrap() + 1);
        let why = with(&with_large, |_| {}).unwrap_err();
        assert!(why.contains("too large"), "{why}");
        let folder = |request: &mut LaunchRequest| {
            let file = Path::new(&request.codex_home).join("config.toml");
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir(&file).unwrap();
        };
        assert!(with("", folder).unwrap_err().contains("can't be read"));
        let none = |request: &mut LaunchRequest| {
            std::fs::remove_file(Path::new(&request.codex_home).join("config.toml")).unwrap();
        };
        assert_eq!(with("", none), Ok(vec![]));
    }

    #[test]
    fn a_home_that_is_to_be_ignored_says_nothing() {
        let ignored = |request: &mut LaunchRequest| {
            let profile = Path::new(&request.codex_home).join("p.config.toml");
            std::fs::write(profile, "model_provider = 'x'").unwrap();
            request.profile = Some("p".to_owned());
            request.ignore_user_config = true;
        };
        assert_eq!(with("model_provider = 'azure'", ignored), Ok(vec![]));
    }

    #[test]
    fn every_layer_s_workspace_has_to_hold() {
        let both = |request: &mut LaunchRequest| {
            request.overrides = vec!["forced_chatgpt_workspace_id=[\"b\", \"c\"]".to_owned()];
        };
        assert_eq!(with("forced_chatgpt_workspace_id = 'a'", |_| {}), Ok(vec!["a".to_owned()]));
        assert_eq!(
            with("forced_chatgpt_workspace_id = ['a', 'b']", both),
            Ok(vec!["b".to_owned()])
        );
        assert!(with("forced_chatgpt_workspace_id = 'a'", both).is_err());
    }

    #[test]
    fn versions_and_exceptions_are_read_as_people_write_them() {
        assert_eq!(version("0.170.0-alpha.3"), Some((0, 170, 0)));
        assert_eq!(version(""), None);
        assert_eq!(version("0.169"), None);
        assert!(version("0.149.0") >= Some(TAKES_KEY));
        assert_eq!(no_proxy("corp.test, 127.0.0.1,corp.test"), "corp.test,127.0.0.1,localhost,::1");
    }

    /// Anybody can put a pipe where a project's configuration would be: to open it would never end.
    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_no_configuration_of_a_project_and_none_of_the_home_that_can_be_read() {
        let home = tempfile::tempdir().unwrap();
        let pipe = |folder: &Path| {
            std::fs::create_dir_all(folder).unwrap();
            let (at, mode) = (folder.join("config.toml"), rustix::fs::Mode::RUSR);
            rustix::fs::mkfifoat(rustix::fs::CWD, at, mode).unwrap();
        };
        pipe(&home.path().join("work/.codex"));
        assert!(layers(&request(home.path())).unwrap().is_empty());
        pipe(home.path());
        let why = layers(&request(home.path())).unwrap_err();
        assert!(why.contains("config.toml` can't be read"), "{why}");
    }
}

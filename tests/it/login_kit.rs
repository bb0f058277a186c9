//! What sign-in scenarios need: a running `cmactl login`, a browser made of sockets, a real one.

use cma_tests::{
    http::{Answer, Ask, Line},
    world::{Ran, World, signal, write_script},
};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Output, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The two ports are the machine's: one scenario at a time, of all test runs of this machine.
pub(crate) fn ports() -> File {
    let path = std::env::temp_dir().join("cma-test-login-ports.lock");
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    file.lock().unwrap();
    let begun = Instant::now();
    while [1455, 1457].into_iter().any(|port| TcpListener::bind(("127.0.0.1", port)).is_err()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "ports 1455 and 1457 stay taken");
        std::thread::sleep(Duration::from_millis(50));
    }
    file
}

/// Holds a port.
pub(crate) fn hold(port: u16) -> TcpListener {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return listener,
            Err(error) => {
                assert!(begun.elapsed() < Duration::from_secs(20), "port {port}: {error}");
                std::thread::sleep(Duration::from_millis(20));
            },
        }
    }
}

/// A `cmactl login` that runs.
#[derive(Debug)]
pub(crate) struct Login<'w> {
    world: &'w World,
    what: String,
    begun: Instant,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    read: Vec<u8>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl<'w> Login<'w> {
    pub(crate) fn start(world: &'w World, words: &str) -> Self {
        let mut command = world.command("cmactl");
        command.args(words.split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut errors = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            errors.read_to_end(&mut bytes).ok();
            bytes
        });
        Self {
            world,
            what: words.to_owned(),
            begun: Instant::now(),
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
            read: Vec::new(),
            stderr: Some(stderr),
        }
    }

    /// The next object on stdout; none at its end.
    pub(crate) fn object(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        self.read.extend_from_slice(line.as_bytes());
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    /// What it says when it has begun.
    #[track_caller]
    pub(crate) fn started(&mut self) -> Value {
        match self.object() {
            Some(object) if object["started"].is_object() => object["started"].clone(),
            other => {
                let _ended = self.child.kill();
                let said = self.stderr.take().map(|it| it.join().unwrap()).unwrap_or_default();
                panic!("{other:?}\n{}", String::from_utf8_lossy(&said));
            },
        }
    }

    /// Types a line.
    pub(crate) fn paste(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn signal(&self, what: rustix::process::Signal) {
        signal(self.child.id(), what);
    }

    /// Waits for its end with stdin open.
    pub(crate) fn end(self) -> Ran {
        self.finish(true)
    }

    /// Closes stdin and waits for its end.
    pub(crate) fn close(self) -> Ran {
        self.finish(false)
    }

    fn finish(mut self, open: bool) -> Ran {
        let stdin = self.stdin.take().filter(|_| open);
        self.stdout.read_to_end(&mut self.read).unwrap();
        let status = self.child.wait().unwrap();
        drop(stdin);
        let stderr = self.stderr.take().map(|it| it.join().unwrap()).unwrap_or_default();
        let output = Output { status, stdout: self.read, stderr };
        self.world.keep(&self.what, &output);
        Ran {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: self.begun.elapsed(),
        }
    }
}

/// Fetches one page, as a browser's address bar does.
#[track_caller]
pub(crate) fn visit(url: &str, host: Option<&str>) -> Answer {
    let rest = url.strip_prefix("http://").expect("a plain address");
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let mut line = Line::open(authority.parse().expect("an address")).expect("somebody listens");
    line.write(&Ask::new("GET", path).header("host", host.unwrap_or(authority)).bytes()).unwrap();
    line.answer().expect("an answer")
}

/// Sends a form to the page of an address.
#[track_caller]
pub(crate) fn post(url: &str, form: &str) -> Answer {
    let rest = url.strip_prefix("http://").expect("a plain address");
    let (authority, path) = rest.split_once('/').expect("a path");
    let path = path.split('?').next().unwrap_or_default();
    let ask = Ask::new("POST", &format!("/{path}"))
        .header("host", authority)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form.as_bytes().to_vec());
    let mut line = Line::open(authority.parse().expect("an address")).expect("somebody listens");
    line.write(&ask.bytes()).unwrap();
    line.answer().expect("an answer")
}

/// Fetches a page and all that it leads to, with the address of each.
#[track_caller]
pub(crate) fn visit_all(url: &str) -> Vec<(String, Answer)> {
    let mut pages = Vec::new();
    let mut url = url.to_owned();
    while pages.len() < 8 {
        let page = visit(&url, None);
        let next = page.header("location").map(|to| match to.strip_prefix('/') {
            Some(path) => {
                let origin: Vec<_> = url.splitn(4, '/').take(3).collect();
                format!("{}/{path}", origin.join("/"))
            },
            None => to.to_owned(),
        });
        pages.push((url.clone(), page));
        match next {
            Some(next) => url = next,
            None => break,
        }
    }
    pages
}

/// Where the issuer sends the browser, without going there.
#[track_caller]
pub(crate) fn callback(url: &str) -> String {
    visit(url, None).header("location").expect("sent back").to_owned()
}

/// A parameter of an address.
#[track_caller]
pub(crate) fn parameter(url: &str, name: &str) -> String {
    let query = url.split_once('?').expect("a query").1;
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(n, _)| *n == name).expect("the parameter").1.to_owned()
}

/// A Chromium, where the test set-up has installed one. Without it: a printed reason, or a failure
/// under `CI=true`.
pub(crate) fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("CMA_TEST_CHROMIUM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
    let found = named.filter(|it| it.is_file()).or_else(|| {
        let folders: Vec<_> = std::env::split_paths(&path).collect();
        let all = known.iter().flat_map(|name| folders.iter().map(move |it| it.join(name)));
        all.into_iter().find(|it| it.is_file())
    });
    if found.is_none() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "no Chromium: run tests/run, which installs it"
        );
        eprintln!("skipped: no Chromium is installed (tests/run does that)");
    }
    found
}

/// How long a browser is waited for: it is started three times at most.
pub(crate) const BROWSER: Duration = Duration::from_secs(110);

/// A machine with a display and a program that opens the browser. Says what happened at it when its
/// scenario fails.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) world: World,
    /// The page that the browser came to, once it has ended and writes nothing any more.
    pub(crate) dom: PathBuf,
    /// What that page looks like.
    pub(crate) picture: PathBuf,
    log: PathBuf,
}

impl Desk {
    /// A browser that doesn't end is ended and started again: what hangs in it is none of ours.
    pub(crate) fn new(world: World, chromium: &Path) -> Self {
        let folder = world.path("desk");
        fs::create_dir_all(&folder).unwrap();
        let [dom, picture, log] = ["page.html", "page.png", "log"].map(|name| folder.join(name));
        let script = format!(
            "#!/bin/sh\nfor n in 1 2 3; do\n\
             echo \"browser $n\" >> '{log}'\n\
             timeout -k 5 30 '{chromium}' --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
             --no-first-run --disable-background-networking --no-proxy-server \
             --user-data-dir='{profile}'.$n --window-size=900,700 --screenshot='{picture}' \
             --dump-dom \"$1\" > '{dom}.part' 2>> '{log}' && exec mv '{dom}.part' '{dom}'\n\
             echo \"it ended with $?\" >> '{log}'\ndone\n",
            chromium = chromium.display(),
            profile = folder.join("profile").display(),
            picture = picture.display(),
            log = log.display(),
            dom = dom.display(),
        );
        write_script(&folder.join("xdg-open"), &script);
        let world = world.with_path(&[&folder]).with_env("DISPLAY", ":99");
        Self { world, dom, picture, log }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            let seen = self.world.sim().seen();
            let asked = seen.iter().map(|it| format!("{} {} {:?}", it.method, it.path, it.status));
            let asked: Vec<_> = asked.collect();
            eprintln!("the browser said: {said}\nthe issuer was asked: {asked:?}");
        }
    }
}

//! Starting once, answering when ready, and stopping when told.
//!
//! One daemon for a root: an advisory lock held for life. The start is an answer: whoever starts us
//! reads one line, ready or the typed reason. Signals have one owner, a thread that turns them into
//! the same stop that `cmactl daemon stop` asks for; a second one leaves running turns some seconds, a
//! third cuts them.

use crate::{app::App, config::Config, fault::Fault, roster::Roster, sys};
use cma_proto::{client::StartLine, endpoint::Root, error::ErrorCode};
use std::{
    fs::{File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::net::{TcpListener, TcpSocket};

/// Connections waiting to be accepted: a thousand streams arriving at once must not be refused.
const BACKLOG: u32 = 1024;
/// How long a held lock is asked for again: `cmactl daemon stop` holds it for an instant.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The lock of a root, held for life.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
}

impl Held {
    /// A lock that another process held; it belongs to the open file, which came with it.
    #[cfg(unix)]
    pub(crate) const fn given(file: File) -> Self {
        Self { file }
    }

    /// Writes down who holds it, over what stands there and in one write: whoever reads it meanwhile
    /// finds one name or the other. An empty file would read as somebody else's program.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when that can't be written.
    pub(crate) fn sign(&self) -> Result<(), Fault> {
        let mut file = &self.file;
        // As wide as any process id, so that no name leaves a part of a longer one behind.
        let name = format!("{:<10}\n", std::process::id());
        file.rewind()
            .and_then(|()| file.write_all(name.as_bytes()))
            .and_then(|()| file.set_len(name.len() as u64))
            .map_err(|error| Fault::file(std::path::Path::new("daemon.lock"), "write", &error))
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Held {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes the root's lock.
///
/// # Errors
/// [`ErrorCode::Negative`] when another daemon has it.
pub(crate) fn hold(root: &Root) -> Result<Held, Fault> {
    let path = root.daemon_lock();
    let mut file = open_lock(&path).map_err(|error| Fault::file(&path, "open", &error))?;
    let mut patience = LOCK_PATIENCE;
    let locked = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if !patience.is_zero() => {
                // Somebody may just be looking whether a daemon has gone.
                std::thread::sleep(LOCK_PAUSE);
                patience = patience.saturating_sub(LOCK_PAUSE);
            },
            locked => break locked,
        }
    };
    match locked {
        Ok(()) => {},
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            drop(file.read_to_string(&mut pid));
            let lives = pid.trim().parse().ok().and_then(sys::process_start).is_some();
            if !lives {
                return Err(Fault::new(
                    ErrorCode::Negative,
                    format!("`{}` is held by another program", path.display()),
                    "end the program that holds it (a backup, a scanner), then try again",
                ));
            }
            return Err(Fault::new(
                ErrorCode::Negative,
                format!(
                    "a daemon already runs for `{}` (pid {})",
                    root.path().display(),
                    pid.trim()
                ),
                "run `cmactl daemon status`, or `cmactl daemon restart` to replace it",
            ));
        },
        Err(TryLockError::Error(error)) => return Err(Fault::file(&path, "lock", &error)),
    }
    let held = Held { file };
    held.sign()?;
    Ok(held)
}

/// Waits for the root's start lock: whoever starts a daemon holds it until that one has answered.
pub(crate) fn hold_start(root: &Root) -> Result<Held, Fault> {
    let path = root.start_lock();
    let file = open_lock(&path).map_err(|error| Fault::file(&path, "open", &error))?;
    file.lock().map_err(|error| Fault::file(&path, "lock", &error))?;
    Ok(Held { file })
}

fn open_lock(path: &std::path::Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Binds the proxy's port. Port 0 is picked once for a root and stored, so that a CLI that is
/// running when the daemon dies finds the next one there.
///
/// # Errors
/// [`ErrorCode::Config`] naming the holder of a port that is taken. The port never moves silently.
pub(crate) fn bind(config: &Config, roster: &Roster) -> Result<TcpListener, Fault> {
    let stored = roster.state().port;
    let picked = config.listen.port() == 0;
    let at = match stored {
        Some(port) if picked => SocketAddr::new(config.listen.ip(), port),
        _ => config.listen,
    };
    let listener = listen(at).map_err(|error| taken(at, picked, &error))?;
    if picked && stored.is_none() {
        let port = listener.local_addr().map(|at| at.port());
        let port = port.map_err(|error| Fault::internal(format!("own port unknown: {error}")))?;
        roster.save_port(port)?;
    }
    Ok(listener)
}

/// Goes on with the socket of the daemon before, unless the settings name another address now.
///
/// # Errors
/// As [`bind`].
#[cfg(unix)]
pub(crate) fn take(
    listener: std::net::TcpListener,
    config: &Config,
    roster: &Roster,
) -> Result<TcpListener, Fault> {
    let failed = |error: io::Error| Fault::internal(format!("a socket can't be used: {error}"));
    let at = listener.local_addr().map_err(failed)?;
    let picked = config.listen.port() == 0 && roster.state().port == Some(at.port());
    if at == config.listen || (picked && at.ip() == config.listen.ip()) {
        return TcpListener::from_std(listener).map_err(failed);
    }
    bind(config, roster)
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // On Unix this only lets a port be bound again right after its last owner died; two listeners
    // on one port stay impossible. On Windows it would allow just that, so it stays off there.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    if at.ip().is_loopback() {
        sys::unpaced(&socket);
    }
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

fn taken(at: SocketAddr, picked: bool, error: &io::Error) -> Fault {
    if error.kind() != io::ErrorKind::AddrInUse {
        return Fault::new(
            ErrorCode::Config,
            format!("can't listen on {at}: {error}"),
            "set another `listen` in config.toml, or `CMA_LISTEN`",
        );
    }
    let holder = sys::port_holder(at.port()).unwrap_or_else(|| "another program".to_owned());
    let hint = if picked {
        "end that program, or set `listen` in the root's config.toml; running CLIs keep looking at \
         the old port"
    } else {
        "end that program, or choose another port"
    };
    Fault::new(ErrorCode::Config, format!("port {} is taken by {holder}", at.port()), hint)
}

/// Turns signals into stops, on a thread of its own.
#[cfg(unix)]
pub(crate) fn watch_signals(app: Arc<App>) -> Result<(), Fault> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let failed = |error: io::Error| Fault::internal(format!("signals can't be watched: {error}"));
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || {
            for (asked, signal) in signals.forever().enumerate() {
                tracing::info!(signal, "signal");
                match asked {
                    0 => app.stop.drain(),
                    1 => app.stop.hurry(),
                    _ => app.cut(),
                }
            }
        })
        .map(drop)
        .map_err(failed)
}

/// Windows services and consoles have their own ways; a console's Ctrl-C ends the process, which
/// the store survives by design.
#[cfg(windows)]
pub(crate) fn watch_signals(_app: Arc<App>) -> Result<(), Fault> {
    Ok(())
}

/// Writes the one line that whoever started us waits for.
pub(crate) fn answer(line: &StartLine) {
    let text = serde_json::to_string(line).unwrap_or_default();
    let mut stdout = io::stdout().lock();
    // Nobody may be reading; that is not our failure.
    drop(writeln!(stdout, "{text}").and_then(|()| stdout.flush()));
}

// Elsewhere a lock keeps others from reading the file.
#[cfg(all(test, unix))]
mod tests;

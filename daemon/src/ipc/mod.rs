//! The daemon's side of the protocol: who may speak, one session for each connection.
//!
//! The socket is in a 0700 folder and 0600 itself; on top of that every peer's user id is asked of
//! the kernel before a byte is read. Everything a peer can make us hold is bounded: connections,
//! streams, frames, time to say hello.

mod choose;
mod convert;
mod credits;
mod forecast;
mod handlers;
mod owner;
mod pools;
mod probes;
mod session;
mod sessions;
mod survive;
mod takeover;
mod tokens;
mod usage;

use crate::{
    app::{App, Phase, Tasks},
    dirs,
    fault::Fault,
};
use cma_proto::{endpoint::Root, error::ErrorCode};
use interprocess::local_socket::{
    GenericFilePath, ListenerOptions,
    tokio::{Listener as LocalListener, Stream, prelude::*},
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Clients at once: terminals, dashboards, launches.
const MAX_CONNECTIONS: usize = 32;

/// The bound socket.
#[derive(Debug)]
pub(crate) struct Listener(LocalListener);

impl Listener {
    /// Binds the root's socket. Only the holder of the root's lock calls this, so what stands at the
    /// path is a dead daemon's and may go.
    pub(crate) fn bind(root: &Root) -> Result<Self, Fault> {
        let path = root.socket();
        if let Some(folder) = path.parent().filter(|_| cfg!(unix)) {
            dirs::private_dir(folder)?;
        }
        unlink(root);
        let failed = |error: std::io::Error| Fault::file(&path, "listen on", &error);
        let name = path.as_path().to_fs_name::<GenericFilePath>().map_err(failed)?;
        let listener =
            ListenerOptions::new().name(name).reclaim_name(false).create_tokio().map_err(failed)?;
        private_file(&path).map_err(failed)?;
        Ok(Self(listener))
    }

    /// Goes on with the socket of the daemon before; its name stays where it is.
    #[cfg(unix)]
    pub(crate) fn taken(socket: std::os::fd::OwnedFd) -> Result<Self, Fault> {
        use interprocess::os::unix::uds_local_socket::tokio::Listener as Inner;
        let listener = Inner::try_from(socket)
            .map_err(|error| Fault::internal(format!("a socket can't be used: {error}")))?;
        Ok(Self(listener.into()))
    }

    /// Accepts until the daemon flushes, or until somebody else accepts.
    pub(crate) async fn serve(self, app: Arc<App>, tasks: Tasks) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            if !app.doors.open().await {
                return;
            }
            let accepted = tokio::select! {
                biased;
                () = app.phases.reached(Phase::Flushing) => return,
                () = app.doors.shut() => continue,
                accepted = self.0.accept() => accepted,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the control socket");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                },
            };
            let peer = peer(&stream);
            let app = Arc::clone(&app);
            tasks.spawn_idle("ipc session", async move {
                match peer {
                    Ok(pid) => session::run(app, stream, pid).await,
                    Err(fault) => session::deny(stream, &fault).await,
                }
                drop(permit);
            });
        }
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        let LocalListener::UdSocket(listener) = &self.0;
        listener.as_fd()
    }
}

/// Removes the root's socket file; a missing one is fine.
pub(crate) fn unlink(root: &Root) {
    if cfg!(unix) {
        // Binding tells if it is still there and in the way.
        drop(std::fs::remove_file(root.socket()));
    }
}

#[cfg(unix)]
fn private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

#[cfg(windows)]
fn private_file(_path: &Path) -> std::io::Result<()> {
    Ok(())
}

/// The peer's process id, when its user is ours.
fn peer(stream: &Stream) -> Result<Option<u32>, Fault> {
    #[cfg(unix)]
    {
        let creds = stream
            .peer_creds()
            .map_err(|error| Fault::internal(format!("the peer's user can't be told: {error}")))?;
        may_speak(creds.euid(), rustix::process::geteuid().as_raw())?;
        Ok(creds.pid().and_then(|pid| u32::try_from(pid).ok()))
    }
    #[cfg(windows)]
    {
        // The pipe's access list admits its owner only.
        let creds = stream.peer_creds().map_err(|error| Fault::internal(error.to_string()))?;
        Ok(creds.pid().map(u32::from))
    }
}

/// Only the daemon's own user may speak; root is another user too.
#[cfg(unix)]
fn may_speak(theirs: Option<u32>, ours: u32) -> Result<(), Fault> {
    if theirs == Some(ours) {
        return Ok(());
    }
    Err(Fault::new(
        ErrorCode::Denied,
        "this daemon belongs to another user",
        "run `cmactl` as the user whose accounts these are",
    ))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn another_user_is_denied() {
        assert!(may_speak(Some(1000), 1000).is_ok());
        for (theirs, ours) in [(Some(1001), 1000), (Some(0), 1000), (Some(1000), 0), (None, 1000)] {
            assert_eq!(may_speak(theirs, ours).unwrap_err().code(), ErrorCode::Denied);
        }
    }
}

//! The daemon before this one, while it still serves its last responses.

use parking_lot::Mutex;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Before(Mutex<Option<Link>>);

#[derive(Debug)]
struct Link {
    pid: u32,
    /// Ends with that process. It says nothing any more.
    #[cfg(unix)]
    stream: std::os::unix::net::UnixStream,
}

#[cfg(unix)]
impl Before {
    /// Stays in touch with it.
    pub(super) fn stay(&self, pid: u32, stream: std::os::unix::net::UnixStream) {
        // One that blocks could hold up the loop; without it there is nothing to stay with.
        if stream.set_nonblocking(true).is_ok() {
            *self.0.lock() = Some(Link { pid, stream });
        }
    }

    /// Its process id, while it lives.
    pub(crate) fn pid(&self) -> Option<u32> {
        use std::io::{ErrorKind, Read as _};
        let mut link = self.0.lock();
        let known = link.as_mut()?;
        let lives = match known.stream.read(&mut [0]) {
            Err(error) => error.kind() == ErrorKind::WouldBlock,
            Ok(read) => read > 0,
        };
        if !lives {
            *link = None;
        }
        link.as_ref().map(|link| link.pid)
    }

    /// Tells it not to wait for what runs.
    pub(crate) fn cut(&self) {
        use std::io::Write as _;
        if let Some(link) = &mut *self.0.lock() {
            // Gone is as good as told.
            drop(writeln!(link.stream, "{}", super::word::CUT));
        }
    }
}

#[cfg(windows)]
impl Before {
    pub(crate) fn pid(&self) -> Option<u32> {
        self.0.lock().as_ref().map(|link| link.pid)
    }

    pub(crate) fn cut(&self) {
        *self.0.lock() = None;
    }
}

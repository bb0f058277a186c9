//! The listening sockets' other owner: open, held for a moment, or given away.

use crate::lifecycle::Held;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Whether connections are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// Who connects waits in the kernel.
    #[cfg_attr(windows, expect(dead_code, reason = "sockets can't be handed over there"))]
    Held,
    /// Somebody else accepts.
    #[cfg_attr(windows, expect(dead_code, reason = "sockets can't be handed over there"))]
    Given,
}

/// What belongs to whoever accepts connections for a root.
#[derive(Debug)]
pub(crate) struct Property {
    /// The proxy's socket and the control socket.
    #[cfg(unix)]
    pub(crate) sockets: [std::os::fd::OwnedFd; 2],
    /// The root's lock; let go of last.
    pub(crate) lock: Held,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Doors {
    state: watch::Sender<Door>,
    property: Mutex<Option<Property>>,
}

impl Doors {
    pub(crate) fn new(property: Property) -> Self {
        Self { state: watch::Sender::new(Door::Open), property: Mutex::new(Some(property)) }
    }

    /// Waits while the door is held; false once it was given away.
    pub(crate) async fn open(&self) -> bool {
        let mut state = self.state.subscribe();
        let now = state.wait_for(|now| *now != Door::Held).await;
        now.is_ok_and(|now| *now == Door::Open)
    }

    /// Resolves when nothing more is to be accepted, for now or for ever.
    pub(crate) async fn shut(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        drop(state.wait_for(|now| *now != Door::Open).await);
    }

    /// Lets who connects wait.
    #[cfg(unix)]
    pub(crate) fn hold(&self) {
        self.state.send_replace(Door::Held);
    }

    /// Accepts again.
    #[cfg(unix)]
    pub(crate) fn release(&self) {
        self.state.send_replace(Door::Open);
    }

    /// Lets go of sockets and lock.
    #[cfg(unix)]
    pub(crate) fn give(&self) {
        self.state.send_replace(Door::Given);
        drop(self.take());
    }

    /// Takes out what is left to let go of.
    pub(crate) fn take(&self) -> Option<Property> {
        self.property.lock().take()
    }

    /// Looks at what would be given.
    #[cfg(unix)]
    pub(crate) fn with_property<T>(&self, look: impl FnOnce(&Property) -> T) -> Option<T> {
        self.property.lock().as_ref().map(look)
    }
}

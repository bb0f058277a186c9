//! The side that takes.

use super::word;
use crate::{app::App, fault::Fault, lifecycle::Held, sys};
use cma_proto::{
    client::{Client, ConnectError},
    codec::Codec,
    endpoint::Root,
    error::ErrorCode,
    handover::{HandoverReply, HandoverRequest},
    message::{Reply, Request},
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::{
    io::{self, BufRead as _, BufReader, IoSliceMut, Write as _},
    mem::MaybeUninit,
    net::TcpListener,
    os::fd::{AsFd as _, OwnedFd},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

/// The old one dials at once.
const DIALLED_WITHIN: Duration = Duration::from_secs(5);
/// The old one waits for renewals under way, whose longest takes a minute.
const YOURS_WITHIN: Duration = Duration::from_secs(120);
/// From a process's sockets being closed to its being gone.
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// A word is shorter.
const LOOK: Duration = Duration::from_millis(2);

/// What was taken, before the root is read.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) listener: TcpListener,
    pub(crate) control: OwnedFd,
    pub(crate) held: Held,
    pub(crate) claim: Claim,
}

/// What is left to say to the old one.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The root was open before; a start that can't open it changes nothing for the better.
    pub(crate) was_open: bool,
    pid: u32,
    /// None when the old one has ended.
    talk: Option<BufReader<UnixStream>>,
}

/// Takes over from the daemon that runs; `None` when there is none.
///
/// # Errors
/// When it goes on, for whatever reason.
pub(crate) fn take(root: &Root, now: bool) -> Result<Option<Taken>, Fault> {
    let mut client = match Client::connect(root, "cmad", Codec::Bincode) {
        Ok(client) => client,
        Err(ConnectError::NobodyThere) => return Ok(None),
        Err(ConnectError::Refused(refusal)) => return Err(Fault { refusal }),
    };
    let socket = Socket::bind(root).map_err(|error| stays(&error))?;
    let path = socket.path.to_string_lossy().into_owned();
    let old = client.daemon_pid;
    let born = sys::process_start(old);
    let begin = Request::Handover(HandoverRequest::Begin { socket: path, now });
    let (pid, locked) = match client.call(&begin) {
        Ok(Reply::Handover(HandoverReply::Begun { pid, locked })) => (pid, locked),
        Ok(_other) => return Err(stays(&io::Error::other("it answered something else"))),
        // It died of the question, or of something else at that moment.
        Err(refusal) if refusal.code == ErrorCode::Unreachable && is_gone(old, born) => {
            return Ok(None);
        },
        Err(refusal) => return Err(Fault { refusal }),
    };
    let stream = socket.accept().map_err(|error| stays(&error))?;
    drop(socket);
    let (listener, control, held) = receive(&stream).map_err(|error| stays(&error))?;
    let mut talk = BufReader::new(stream);
    let claim = Claim { was_open: !locked, pid, talk: None };
    let mut taken = Taken { listener, control, held, claim };
    crate::crash::moment(crate::crash::Moment::HandoverTaken);
    match agree(&mut talk) {
        Ok(true) => taken.claim.talk = Some(talk),
        Ok(false) => {
            return Err(Fault::new(
                ErrorCode::Draining,
                "the daemon before was asked to stop and doesn't hand over",
                "run `cmactl daemon start` once it has ended",
            ));
        },
        // It ended, or it thought better of it. Only its end makes the root ours.
        Err(error) if is_gone(pid, born) => {
            tracing::warn!(%error, pid, "the daemon before ended during the hand-over");
        },
        Err(error) => return Err(stays(&error)),
    }
    crate::crash::moment(crate::crash::Moment::HandoverOwned);
    Ok(Some(taken))
}

impl Claim {
    /// Tells the old one that there is no way back.
    ///
    /// # Errors
    /// When the lock can't be written; the old one goes on then.
    pub(crate) fn mine(self, app: &App) -> Result<(), Fault> {
        crate::crash::moment(crate::crash::Moment::HandoverBuilt);
        // Not earlier: one that fails must not have put its name there.
        app.doors.with_property(|property| property.lock.sign()).transpose()?;
        if let Some(talk) = self.talk {
            let mut stream = talk.into_inner();
            // An old one that is gone doesn't need to hear it.
            drop(writeln!(stream, "{}", word::MINE));
            app.before.stay(self.pid, stream);
        }
        crate::crash::moment(crate::crash::Moment::HandoverSaid);
        Ok(())
    }
}

/// Whether the root is this one's now; an error when it may be, since the old one has gone.
fn agree(talk: &mut BufReader<UnixStream>) -> io::Result<bool> {
    writeln!(talk.get_mut(), "{}", word::READY)?;
    talk.get_ref().set_read_timeout(Some(YOURS_WITHIN))?;
    let mut line = String::new();
    if talk.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match line.trim_end() {
        word::YOURS => Ok(true),
        word::NO => Ok(false),
        _ => Err(io::Error::other(line)),
    }
}

fn is_gone(pid: u32, born: Option<u64>) -> bool {
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let now = sys::process_start(pid);
        if now.is_none() || now != born {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

fn stays(error: &io::Error) -> Fault {
    Fault::new(
        ErrorCode::Unreachable,
        format!("the running daemon could not be taken over from ({error}); it goes on"),
        "run `cmactl logs`; `cmactl daemon stop` and `cmactl daemon start` need no hand-over",
    )
}

/// Where the old one dials; goes with its drop.
struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// In the control socket's folder, which is nobody else's.
    fn bind(root: &Root) -> io::Result<Self> {
        let path = root.socket().with_extension("next");
        // Whoever starts a daemon holds the start lock: what stands there is a dead one's.
        drop(std::fs::remove_file(&path));
        let listener = UnixListener::bind(&path)?;
        Ok(Self { path, listener })
    }

    fn accept(&self) -> io::Result<UnixStream> {
        self.listener.set_nonblocking(true)?;
        let until = Instant::now() + DIALLED_WITHIN;
        loop {
            match self.listener.accept() {
                Ok((stream, _peer)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                },
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until =>
                {
                    std::thread::sleep(LOOK);
                },
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

fn receive(stream: &UnixStream) -> io::Result<(TcpListener, OwnedFd, Held)> {
    stream.set_read_timeout(Some(DIALLED_WITHIN))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    // Apple's kernel has no such flag: there they are marked below.
    #[cfg(not(target_vendor = "apple"))]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(target_vendor = "apple")]
    let flags = RecvFlags::empty();
    let read = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        flags,
    )?;
    if read.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut all: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            all.extend(received);
        }
    }
    #[cfg(target_vendor = "apple")]
    for one in &all {
        rustix::io::fcntl_setfd(one, rustix::io::FdFlags::CLOEXEC)?;
    }
    let [proxy, control, lock]: [OwnedFd; 3] =
        all.try_into().map_err(|_some| io::Error::other("it gave something else"))?;
    Ok((TcpListener::from(proxy), control, Held::given(lock.into())))
}

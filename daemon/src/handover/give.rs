//! The side that gives.

use super::word;
use crate::{
    app::{App, Phase},
    cache,
    crash::{self, Moment},
    fault::Fault,
};
use cma_proto::{error::ErrorCode, handover::HandoverReply, message::Reply};
use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
    process::{Pid, Signal},
};
use std::{
    io::{self, IoSlice},
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Interest},
    net::{UnixStream, unix::OwnedReadHalf},
};

/// The new one reads its configuration meanwhile: milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// The new one reads the root meanwhile; a sealed one takes a derivation, which is most of a second.
/// Who neither takes it nor leaves after this is ended: clients wait in the kernel.
const MINE_WITHIN: Duration = Duration::from_secs(15);
/// A new one that failed has told whoever started it before its end is noticed here; the next try
/// may come in between.
const OVER_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);

/// Begins, in a task of its own.
pub(super) async fn begin(app: &Arc<App>, socket: PathBuf, now: bool) -> Result<Reply, Fault> {
    if !is_free(app).await {
        return Err(Fault::new(
            ErrorCode::Draining,
            "this daemon is on its way out already",
            "run `cmactl daemon status` to see which one serves",
        ));
    }
    crash::moment(Moment::HandoverAsked);
    let locked = app.roster.is_locked();
    let giving = Arc::clone(app);
    app.renewals.spawn_idle("hand-over", async move {
        match give(&giving, &socket).await {
            Ok(mut talk) => {
                tracing::info!("another daemon has taken over");
                giving.phases.hand_over();
                giving.logins.end_all();
                if now {
                    giving.cut();
                }
                // It has one thing left to say, if anything.
                if talk.hear().await.is_ok_and(|heard| heard == word::CUT) {
                    giving.cut();
                }
            },
            Err(error) => {
                tracing::warn!(%error, "the other daemon did not take over; this one goes on");
            },
        }
        giving.handing_over.store(false, Ordering::Release);
    });
    Ok(Reply::Handover(HandoverReply::Begun { pid: std::process::id(), locked }))
}

/// Whether there is a root to give, and nobody it is being given to; from then on there is one.
async fn is_free(app: &App) -> bool {
    let until = tokio::time::Instant::now() + OVER_WITHIN;
    while app.phases.now() < Phase::Draining {
        if !app.handing_over.swap(true, Ordering::AcqRel) {
            return true;
        }
        if tokio::time::Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
    false
}

/// The conversation with the new one.
struct Talk {
    read: BufReader<OwnedReadHalf>,
    write: tokio::net::unix::OwnedWriteHalf,
}

impl Talk {
    /// The next word; an error when the other one has gone.
    async fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.read.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    async fn expect(&mut self, word: &str, within: Duration) -> io::Result<()> {
        let heard = tokio::time::timeout(within, self.hear())
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        if heard == word { Ok(()) } else { Err(io::Error::other("it said something else")) }
    }

    async fn say(&mut self, word: &str) -> io::Result<()> {
        self.write.write_all(format!("{word}\n").as_bytes()).await
    }
}

async fn give(app: &Arc<App>, socket: &Path) -> io::Result<Talk> {
    let stream = UnixStream::connect(socket).await?;
    let peer = stream.peer_cred()?;
    if peer.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    send_property(app, &stream).await?;
    crash::moment(Moment::HandoverSent);
    let (read, write) = stream.into_split();
    let mut talk = Talk { read: BufReader::new(read), write };
    talk.expect(word::READY, READY_WITHIN).await?;
    // Renewals under way may take a while. Nothing is said meanwhile: whatever is heard is an end.
    let still = tokio::select! {
        biased;
        // Who was asked to stop meanwhile stops, and nobody goes on in its place.
        () = app.phases.reached(Phase::Draining) => {
            let _gone = talk.say(word::NO).await;
            return Err(io::Error::other("it was asked to stop meanwhile"));
        },
        still = app.roster.truth().hold_still() => still,
        _gone = talk.hear() => return Err(io::ErrorKind::UnexpectedEof.into()),
    };
    cache::write_now(&app.root, &app.actor, &app.roster).await;
    cache::threads::write_now(&app.root, &app.proxy.traces.threads).await;
    app.doors.hold();
    app.roster.truth().given().set(true);
    crash::moment(Moment::HandoverStill);
    let given = yours(&mut talk, peer.pid()).await;
    if given.is_ok() {
        app.doors.give();
    } else {
        app.roster.truth().given().set(false);
        // The other one may have written its own name already.
        if let Some(Err(fault)) = app.doors.with_property(|property| property.lock.sign()) {
            tracing::warn!(%fault, "the lock names another daemon");
        }
        app.doors.release();
    }
    drop(still);
    crash::moment(Moment::HandoverDone);
    given.map(|()| talk)
}

/// From "yours" to "mine", or to the end of the other one.
async fn yours(talk: &mut Talk, pid: Option<i32>) -> io::Result<()> {
    talk.say(word::YOURS).await?;
    crash::moment(Moment::HandoverGiven);
    match talk.expect(word::MINE, MINE_WITHIN).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(error),
        Err(error) => {
            // It may still write. Only its end makes this one the owner again.
            tracing::error!(%error, "the other daemon hangs; it is ended");
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                let _ended_already = rustix::process::kill_process(pid, Signal::KILL);
            }
            // It may have said it at the last moment.
            match talk.hear().await {
                Ok(heard) if heard == word::MINE => Ok(()),
                _ => Err(error),
            }
        },
        Ok(()) => Ok(()),
    }
}

async fn send_property(app: &App, stream: &UnixStream) -> io::Result<()> {
    loop {
        stream.writable().await?;
        let sent = app.doors.with_property(|property| {
            let [proxy, control] = &property.sockets;
            let all = [proxy.as_fd(), control.as_fd(), property.lock.as_fd()];
            stream.try_io(Interest::WRITABLE, || send(stream.as_fd(), &all))
        });
        match sent {
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {},
            Some(sent) => return sent,
            None => return Err(io::Error::other("there is nothing to give")),
        }
    }
}

fn send(stream: BorrowedFd<'_>, all: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(all)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // They travel with a byte.
    rustix::net::sendmsg(stream, &[IoSlice::new(b"+")], &mut control, SendFlags::empty())?;
    Ok(())
}

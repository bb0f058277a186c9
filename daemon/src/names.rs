//! Names to addresses, anew for each connection: a host that moved is found at its next address.
//!
//! A look-up runs on a thread of its own, one at a time for a name, whoever waits for it: a resolver
//! that hangs takes neither the loop nor the threads that write to the disk. What a burst of
//! connections asks for at once is asked once.

use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Mutex as Turn, oneshot},
    time::Instant,
};

/// How long an answer serves those that ask beside each other.
const BURST: Duration = Duration::from_secs(1);

/// See the module's documentation. Bounded by the hosts of the configuration.
#[derive(Debug, Default)]
pub(crate) struct Names {
    hosts_file: Option<PathBuf>,
    known: Mutex<BTreeMap<String, Arc<Turn<Look>>>>,
}

#[derive(Debug, Default)]
struct Look {
    /// Left running by somebody who gave up.
    running: Option<oneshot::Receiver<io::Result<Vec<IpAddr>>>>,
    found: Option<(Instant, Vec<IpAddr>)>,
}

impl Names {
    pub(crate) fn new(hosts_file: Option<PathBuf>) -> Self {
        Self { hosts_file, known: Mutex::default() }
    }

    /// The addresses of a host, as a URL names it; at least one.
    ///
    /// Cancellation-safe.
    ///
    /// # Errors
    /// Of the system's resolver.
    pub(crate) async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let look = Arc::clone(self.known.lock().entry(host.to_owned()).or_default());
        let mut look = look.lock().await;
        if let Some((at, found)) = &look.found
            && at.elapsed() < BURST
        {
            return Ok(found.clone());
        }
        if look.running.is_none() {
            look.running = Some(self.start(host)?);
        }
        let answer = match look.running.as_mut() {
            Some(running) => running.await,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        look.running = None;
        let found = answer.map_err(|_panicked| io::Error::other("the look-up ended early"))??;
        look.found = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    fn start(&self, host: &str) -> io::Result<oneshot::Receiver<io::Result<Vec<IpAddr>>>> {
        let (done, running) = oneshot::channel();
        let (host, file) = (host.to_owned(), self.hosts_file.clone());
        std::thread::Builder::new().name("names".to_owned()).spawn(move || {
            // Whoever asked may have gone.
            let _asker_gone = done.send(look_up(&host, file.as_deref()));
        })?;
        Ok(running)
    }
}

impl reqwest::dns::Resolve for Names {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        // The client's own cache of connections is off, so this is asked for each request.
        let names = Self::new(self.hosts_file.clone());
        Box::pin(async move {
            let found = names.resolve(name.as_str()).await?;
            let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(found) as reqwest::dns::Addrs)
        })
    }
}

fn look_up(host: &str, file: Option<&Path>) -> io::Result<Vec<IpAddr>> {
    let local = file.map(|file| from_file(host, file)).unwrap_or_default();
    if !local.is_empty() {
        return Ok(local);
    }
    let mut found: Vec<IpAddr> = Vec::new();
    for address in (host, 0).to_socket_addrs()?.map(|address| address.ip()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

/// The loopback addresses that the file gives a name; others in it don't count.
fn from_file(host: &str, file: &Path) -> Vec<IpAddr> {
    let Ok(text) = std::fs::read_to_string(file) else { return Vec::new() };
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address: IpAddr = words.next()?.parse().ok()?;
            let named = words.any(|name| name.eq_ignore_ascii_case(host));
            (named && address.is_loopback()).then_some(address)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_looked_up_anew_and_a_file_gives_loopback_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        let names = || Names::new(Some(file.clone()));
        let name = "backend.cma-test.invalid";
        assert!(names().resolve(name).await.is_err());
        let text = format!("# a\n192.0.2.1 {name}\n::1 x {name}\n127.0.0.2 {name} # b\n");
        std::fs::write(&file, text).unwrap();
        let found: Vec<_> =
            names().resolve(name).await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["::1", "127.0.0.2"]);
        assert_eq!(names().resolve("[::1]").await.unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        assert!(!names().resolve("localhost").await.unwrap().is_empty());
        // A look-up that was given up is taken over by the next one.
        let shared = names();
        drop(tokio::time::timeout(Duration::ZERO, shared.resolve("localhost")).await);
        assert!(!shared.resolve("localhost").await.unwrap().is_empty());
    }
}

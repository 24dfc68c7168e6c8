//! Names to addresses, on threads of their own: `getaddrinfo` blocks, and control waits for nothing.
//!
//! Must not know: what an address is for.

use crate::shard::mailbox::{Notice, Resolved};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::ground::queue;
use crate::ground::tick::Tick;

/// Threads that resolve: one slow name does not hold up the others.
const THREADS: usize = 4;

/// Host and port.
pub type Name = (String, u16);

/// A round of names that are being resolved.
#[derive(Debug)]
pub struct Names {
    /// Which round; late answers of others are ignored.
    pub round: u64,
    /// When the round ends, whatever is missing.
    pub deadline: Tick,
    pending: Vec<Name>,
    found: HashMap<Name, Vec<SocketAddr>>,
    failed: Vec<(Name, String)>,
}

impl Names {
    /// A round over `names`. Literal addresses are found at once.
    pub fn new(round: u64, names: Vec<Name>, deadline: Tick) -> Names {
        let mut this = Names { round, deadline, pending: Vec::new(), found: HashMap::new(), failed: Vec::new() };
        for name in names {
            match name.0.parse::<IpAddr>() {
                Ok(ip) => {
                    let address = SocketAddr::new(ip, name.1);
                    this.found.insert(name, vec![address]);
                }
                Err(_) => this.pending.push(name),
            }
        }
        this
    }

    /// Takes an answer of this round.
    pub fn take(&mut self, name: Name, result: Result<Vec<SocketAddr>, String>) {
        self.pending.retain(|pending| *pending != name);
        match result {
            Ok(addresses) if !addresses.is_empty() => {
                self.found.insert(name, addresses);
            }
            Ok(_) => self.failed.push((name, "no address".to_owned())),
            Err(why) => self.failed.push((name, why)),
        }
    }

    /// Whether every name was answered.
    pub fn is_done(&self) -> bool {
        self.pending.is_empty()
    }

    /// What was found.
    pub fn found(&self) -> HashMap<Name, Vec<SocketAddr>> {
        self.found.clone()
    }

    /// What was not found, with a warning each.
    pub fn missing(&self) -> Vec<(Name, String)> {
        let late = self.pending.iter().map(|name| (name, "no answer in time"));
        let failed = self.failed.iter().map(|(name, why)| (name, why.as_str()));
        failed.chain(late).map(|(name, why)| (name.clone(), format!("{} does not resolve: {why}", name.0))).collect()
    }
}

/// The threads that resolve.
#[derive(Debug)]
pub struct Resolver {
    jobs: Sender<(u64, Name)>,
    queue: Arc<Mutex<Receiver<(u64, Name)>>>,
    /// Jobs of rounds before this one are nobody's any more.
    oldest: Arc<AtomicU64>,
    notices: queue::Sender<Notice>,
    threads: usize,
}

impl Resolver {
    /// A resolver that answers with notices. Its threads start with the first name.
    pub fn new(notices: queue::Sender<Notice>) -> Resolver {
        let (jobs, queue) = channel();
        let oldest = Arc::new(AtomicU64::new(0));
        Resolver { jobs, queue: Arc::new(Mutex::new(queue)), oldest, notices, threads: 0 }
    }

    /// Has the pending names of a round resolved. What is still queued of earlier rounds is given up, so that
    /// names that take long do not pile up in front of those that do not.
    pub fn ask(&mut self, names: &mut Names) {
        self.oldest.store(names.round, Ordering::Relaxed);
        for name in names.pending.clone() {
            if self.threads < THREADS {
                match self.spawn() {
                    Ok(()) => self.threads += 1,
                    Err(error) if self.threads == 0 => {
                        names.take(name, Err(format!("no thread to resolve it: {error}")));
                        continue;
                    }
                    Err(_) => {}
                }
            }
            // The receiver lives as long as this struct.
            let _ = self.jobs.send((names.round, name));
        }
    }

    fn spawn(&self) -> std::io::Result<()> {
        let (queue, oldest, notices) = (Arc::clone(&self.queue), Arc::clone(&self.oldest), self.notices.clone());
        std::thread::Builder::new().name("resolver".to_owned()).stack_size(256 << 10).spawn(move || {
            loop {
                let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((round, name)) = job else { return };
                if round < oldest.load(Ordering::Relaxed) {
                    continue;
                }
                let result = (name.0.as_str(), name.1).to_socket_addrs();
                let result = result.map(Iterator::collect).map_err(|error| error.to_string());
                // Without control the process is ending.
                if notices.press(Notice::Resolved(Box::new(Resolved { round, name, result }))).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn literals_need_nobody_and_names_are_answered() {
        let (notices, inbox) = queue::queue(16);
        let mut resolver = Resolver::new(notices);
        let asked = [("127.0.0.1", 1), ("::1", 2), ("localhost", 3), ("no such name.invalid", 4)];
        let asked = asked.map(|(host, port)| (host.to_owned(), port)).to_vec();
        let mut names = Names::new(7, asked, Tick::NEVER);
        resolver.ask(&mut names);
        while !names.is_done() {
            match inbox.recv_timeout(Duration::from_secs(30)).expect("an answer") {
                Notice::Resolved(resolved) if resolved.round == 7 => names.take(resolved.name, resolved.result),
                other => panic!("{other:?}"),
            }
        }
        let found = names.found();
        assert_eq!(found[&("127.0.0.1".to_owned(), 1)], ["127.0.0.1:1".parse().unwrap()]);
        assert!(found[&("localhost".to_owned(), 3)].iter().all(|address| address.ip().is_loopback()));
        assert_eq!(names.missing().len(), 1);
    }
}

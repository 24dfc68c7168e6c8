//! The process: threads, listening sockets, signals, the order of starting and ending, exit codes.
//!
//! The only file that starts threads and reads clocks (those of the resolver, the watcher, the health checks and
//! the demo apart).
//! Must not know: HTTP, what a notice means.

use crate::affinity;
use crate::config::model::{self, AdminAddress};
use crate::control::access::AccessLog;
use crate::control::health::Health;
use crate::control::resolve::{Names, Resolver};
use crate::control::watch::fingerprint;
use crate::control::{Control, Courier, Next, RESOLVE_TIME, Signals, Source, build};
use crate::ground::queue::{Receiver, Sender, queue};
use crate::ground::tick::Tick;
use crate::logging;
use crate::shard::Shard;
use crate::shard::mailbox::{COMMANDS, Command, Mailbox, NOTICES, Notice};
use crate::shard::net::{Door, Event, Listener, MioNet, Subject};
use crate::shared::metrics::Counter;
use crate::shared::process::Process;
use crate::shared::snapshot::Snapshot;
use mio::net::{TcpListener, UnixListener};
use mio::{Poll, Token, Waker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime};

/// An invalid configuration at the start (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;
/// Everything else that ends the process against its will.
pub const EXIT_FAILURE: u8 = 1;
/// Connections that may wait in a listener's queue; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How often a shard looks at the wall clock.
const WALL_EVERY: Duration = Duration::from_secs(1);
const EVENTS: usize = 1024;

/// The one clock of the process: every shard's breaker times must have the same zero.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    fn now(self) -> Tick {
        Tick::from_elapsed(self.start.elapsed())
    }

    /// What the wall clock showed at the start, if it has not been set since.
    fn wall_at_start_us(self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(self.start.elapsed()).as_micros() as u64
    }
}

/// Runs the gateway until it is told to end.
pub fn serve(source: Source) -> ExitCode {
    let read = source.read().and_then(|bytes| Ok((source.understand(&bytes)?, fingerprint(&bytes))));
    let (loaded, fingerprint) = match read {
        Ok(read) => read,
        Err(problems) => {
            eprint_quietly(&problems.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let gateway = &loaded.config.gateway;
    logging::start(gateway.log_level, gateway.log_format == model::LogFormat::Json);
    for warning in &loaded.warnings {
        log::warn!("{warning}");
    }
    let code = match run(source, loaded.config, fingerprint) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) if log::max_level() < log::LevelFilter::Error => {
            // Whoever switched the log off still has to know why nothing runs.
            eprint_quietly(&why);
            ExitCode::from(EXIT_FAILURE)
        }
        Err(why) => {
            log::error!("{why}");
            ExitCode::from(EXIT_FAILURE)
        }
    };
    logging::finish();
    code
}

/// Writes a line to stderr. A closed one must not end the program by a panic, as `eprintln!` would.
pub fn eprint_quietly(text: &str) {
    let _ = io::Write::write_all(&mut io::stderr().lock(), format!("{}\n", text.trim_end()).as_bytes());
}

/// The same for stdout.
pub fn print_quietly(text: &str) {
    let _ = io::Write::write_all(&mut io::stdout().lock(), format!("{text}\n").as_bytes());
}

fn run(source: Source, config: model::Config, fingerprint: u64) -> Result<(), String> {
    let clock = Clock { start: Instant::now() };
    let descriptors = raise_descriptor_limit();
    let shards = affinity::workers(&config.gateway);
    let processors = affinity::plan(&config.gateway.affinity, shards)?;
    let addresses = claim(&config.gateway.listen)?;
    // Until the process ends: then the file of a unix socket goes.
    let listen = &config.gateway.admin.listen;
    let admin_door = listen.as_ref().map(admin_door).transpose()?;
    let (mut admin, administered, _file) = match admin_door {
        Some(AdminDoor { listener, bound, file }) => (Some(listener), Some(bound), file),
        None => (None, None, None),
    };
    let (notices, inbox) = queue(NOTICES);
    watch_signals(notices.clone())?;
    let facts = build::Facts {
        shards,
        descriptors,
        log_dropped: logging::dropped,
        service_slots: Arc::default(),
        upstream_slots: Arc::default(),
    };
    let Some((snapshot, hung_up)) = first_snapshot(&config, &facts, clock, &notices, &inbox) else { return Ok(()) };
    let snapshot = Arc::new(snapshot);
    let process = Arc::new(Process::new(random()?, shards, &config.gateway.buckets));
    let mut couriers = Vec::with_capacity(shards);
    for shard in 0..shards {
        // One shard is enough for what is administered.
        let door = admin.take();
        let place = processors.get(shard).copied();
        let started = start_shard(shard, place, &addresses, door, &snapshot, &process, notices.clone(), clock);
        couriers.push(started.map_err(|error| format!("cannot start shard {shard}: {error}"))?);
    }
    let mut access = AccessLog::new(Arc::clone(&process.access));
    access.set(&config.gateway.access)?;
    process.ready.store(true, Ordering::Relaxed);
    for address in &addresses {
        log::info!("listening on {address}, shards: {shards}, services: {}", snapshot.services.len());
    }
    if let Some(address) = administered {
        log::info!("administration on {address}");
    }
    let signals = Signals { hangup: SIGHUP, reopen: SIGUSR1 };
    let seed = random()?;
    let health = Health::new(notices.clone(), Arc::new(move || clock.now()), random()?);
    let mut control = Control::new(
        source,
        config,
        fingerprint,
        snapshot,
        facts,
        process,
        couriers,
        notices,
        signals,
        seed,
        health,
        access,
    );
    control.watch_names(&[], clock.now());
    control.watch_file();
    if hung_up {
        control.step(Some(Notice::Signal(SIGHUP)), clock.now());
    }
    let end = steer(&mut control, &inbox, clock);
    control.finish();
    end
}

/// The control thread's loop.
fn steer(control: &mut Control<ShardCourier>, inbox: &Receiver<Notice>, clock: Clock) -> Result<(), String> {
    loop {
        let wait = control.wake_at().since(clock.now()).min(Duration::from_secs(3600));
        let notice = match inbox.recv_timeout(wait) {
            Ok(notice) => Some(notice),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err("every shard has ended".to_owned()),
        };
        match control.step(notice, clock.now()) {
            Next::Run => {}
            Next::Exit => return Ok(()),
            Next::Fail => return Err("the gateway cannot go on".to_owned()),
        }
    }
}

/// Resolves the names of the first configuration; what is missing then is out until it resolves. Says also
/// whether a SIGHUP came meanwhile; `None` when it was a signal to end.
fn first_snapshot(
    config: &model::Config,
    facts: &build::Facts,
    clock: Clock,
    notices: &Sender<Notice>,
    inbox: &Receiver<Notice>,
) -> Option<(Snapshot, bool)> {
    let mut hung_up = false;
    let round = 1;
    let mut names = Names::new(round, build::names(config, |_| true), clock.now().after(RESOLVE_TIME));
    let mut resolver = Resolver::new(notices.clone());
    resolver.ask(&mut names);
    while !names.is_done() {
        match inbox.recv_timeout(names.deadline.since(clock.now())) {
            Ok(Notice::Resolved(resolved)) if resolved.round == 1 => names.take(resolved.name, resolved.result),
            Ok(Notice::Signal(SIGHUP)) => hung_up = true,
            Ok(Notice::Signal(SIGUSR1)) => {}
            Ok(Notice::Signal(_)) => return None,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    for (_, missing) in names.missing() {
        log::warn!("{missing}; its upstreams are out until it does");
    }
    Some((build::snapshot(config, None, &names.found(), facts, 1, 1).0, hung_up))
}

fn random() -> Result<u64, String> {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => Ok(u64::from_ne_bytes(bytes)),
        Ok(n) => Err(format!("the system gave {n} of 8 random bytes")),
        Err(error) => Err(format!("the system has no random bytes: {error}")),
    }
}

/// Raises the soft limit of descriptors to the hard one (getrlimit(2)); what it is then.
fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::warn!("the descriptor limit stays at {:?}: {error}", limit.current);
        }
    }
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(1 << 20)
}

/// Makes sure that nobody listens on the addresses: `SO_REUSEPORT` would let two gateways share a port
/// without a word. A port of 0 becomes the one that all shards then share.
fn claim(addresses: &[SocketAddr]) -> Result<Vec<SocketAddr>, String> {
    let mut claimed = Vec::with_capacity(addresses.len());
    for address in addresses {
        let bound = listening_socket(*address, false).and_then(|socket| socket.local_addr());
        let bound = bound.map_err(|error| format!("cannot listen on {address}: {error}"))?;
        claimed.push(bound.as_socket().unwrap_or(*address));
    }
    Ok(claimed)
}

fn listening_socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
        // Accepted sockets inherit it (tcp(7)).
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
    }
    socket.bind(&address.into())?;
    if shared {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

/// The listener of administration, where it listens, and the file that goes with it.
struct AdminDoor {
    listener: Listener,
    bound: AdminAddress,
    file: Option<SocketFile>,
}

/// Listens for administration. Nobody else may do so on the same address.
fn admin_door(address: &AdminAddress) -> Result<AdminDoor, String> {
    let failed = |error: &dyn fmt::Display| format!("cannot listen for administration on {address}: {error}");
    match address {
        AdminAddress::Tcp(address) => {
            let listen = || {
                let socket = listening_socket(*address, false)?;
                socket.set_tcp_nodelay(true)?;
                socket.set_nonblocking(true)?;
                socket.listen(BACKLOG)?;
                let bound = socket.local_addr()?.as_socket().unwrap_or(*address);
                Ok((TcpListener::from_std(socket.into()), bound))
            };
            let (listener, bound) = listen().map_err(|error: io::Error| failed(&error))?;
            let listener = Listener::Tcp(listener, Door::Admin);
            Ok(AdminDoor { listener, bound: AdminAddress::Tcp(bound), file: None })
        }
        AdminAddress::Unix(path) => {
            make_room(path).map_err(|why| failed(&why))?;
            let (listener, file) = socket_file(path).map_err(|error| failed(&error))?;
            Ok(AdminDoor { listener: Listener::Unix(listener), bound: address.clone(), file: Some(file) })
        }
    }
}

/// Removes the file of a unix socket that a process left behind; whatever else stands there stays.
fn make_room(path: &Path) -> Result<(), String> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if !metadata.file_type().is_socket() {
        return Err("what is there is no socket, and stays".to_owned());
    }
    let ask = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match ask() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| format!("the socket left there cannot be removed: {error}"))
        }
        // A full queue is somebody's too.
        Ok(()) => Err("somebody listens there already".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err("somebody listens there already".to_owned()),
        Err(error) => Err(format!("whether somebody listens there cannot be told: {error}")),
    }
}

/// Binds a unix socket for this user alone: until it listens nobody can connect, whatever the umask says.
fn socket_file(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let metadata = path.symlink_metadata()?;
    let file = SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok((UnixListener::from_std(socket.into()), file))
}

/// The file of a unix socket; it goes with this, unless another one has taken its place.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode);
        if self.path.symlink_metadata().is_ok_and(is_ours) {
            // What cannot be removed the next start replaces.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn watch_signals(notices: Sender<Notice>) -> Result<(), String> {
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGTERM, SIGINT, SIGUSR1])
        .map_err(|error| format!("cannot watch signals: {error}"))?;
    let watch = move || {
        let mut ending = false;
        for signal in signals.forever() {
            if !matches!(signal, SIGHUP | SIGUSR1) && std::mem::replace(&mut ending, true) {
                // Whoever asks twice does not want to wait.
                std::process::exit(i32::from(EXIT_FAILURE));
            }
            if notices.press(Notice::Signal(signal)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned()).stack_size(128 << 10).spawn(watch);
    thread.map(|_| ()).map_err(|error| format!("cannot watch signals: {error}"))
}

/// The way to a shard's mailbox.
#[derive(Debug)]
struct ShardCourier {
    commands: Sender<Command>,
    waker: Waker,
}

impl Courier for ShardCourier {
    fn send(&self, command: Command) -> bool {
        self.commands.tell(command).is_ok() && self.waker.wake().is_ok()
    }
}

#[allow(clippy::too_many_arguments)]
fn start_shard(
    shard: usize,
    processor: Option<usize>,
    addresses: &[SocketAddr],
    admin: Option<Listener>,
    snapshot: &Arc<Snapshot>,
    process: &Arc<Process>,
    notices: Sender<Notice>,
    clock: Clock,
) -> io::Result<ShardCourier> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), Token(Subject::Mailbox.token()))?;
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let listener = TcpListener::from_std(listening_socket(*address, true)?.into());
        listeners.push(Listener::Tcp(listener, Door::Data));
    }
    listeners.extend(admin);
    for (position, listener) in listeners.iter_mut().enumerate() {
        listener.register(poll.registry(), Subject::Listener(position).token())?;
    }
    let net = MioNet::new(poll.registry().try_clone()?);
    let (commands, receiver) = queue(COMMANDS);
    let mailbox = Mailbox { shard, commands: receiver, notices: notices.clone() };
    let (snapshot, process, counted) = (Arc::clone(snapshot), Arc::clone(process), Arc::clone(process));
    let seed = random().map_err(io::Error::other)?;
    std::thread::Builder::new().name(format!("shard-{shard}")).spawn(move || {
        let run = || {
            if let Some(processor) = processor {
                settle(shard, processor, &listeners);
            }
            let wall = clock.wall_at_start_us();
            let longest_turn_us = &counted.shards[shard].longest_turn_us;
            let shard = Shard::new(net, listeners, snapshot, process, mailbox, seed, wall);
            run_shard(shard, poll, clock, longest_turn_us)
        };
        let last = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => Notice::Drained { shard },
            Ok(Err(error)) => Notice::Died { shard, why: format!("poll: {error}") },
            Err(_) => Notice::Died { shard, why: "an invariant does not hold".to_owned() },
        };
        // Control is the only reader; without it the process is ending anyway.
        let _ = notices.press(last);
    })?;
    Ok(ShardCourier { commands, waker })
}

/// Binds this thread, a shard's, to a processor, and has the connections come to it that arrive there.
fn settle(shard: usize, processor: usize, listeners: &[Listener]) {
    if let Err(error) = affinity::pin(processor) {
        // A cgroup may take processors away at any time; slower is better than not at all.
        return log::error!("shard {shard} cannot be bound to processor {processor}, and runs anywhere: {error}");
    }
    log::debug!("shard {shard} runs on processor {processor}");
    for listener in listeners {
        // Administration has one listener, whatever processor its connections come to.
        if let Listener::Tcp(listener, Door::Data) = listener
            && let Err(error) = affinity::attract(listener, processor)
        {
            log::warn!("shard {shard} gets connections from any processor: {error}");
        }
    }
}

/// Of this thread (clock_gettime(2)).
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Whether a loop goes on polling although nothing is there (`gateway.busy_poll`): whoever sleeps has to be woken,
/// which takes longer than many a request.
struct Vigil {
    last_event: Tick,
    awake: bool,
}

impl Vigil {
    /// What to do after a turn at `now` in which there were events or none.
    fn turn(&mut self, now: Tick, events: bool, busy_poll: Duration) {
        if events {
            self.last_event = now;
        }
        // Alarms do not prolong it: a loop with nothing but timers falls asleep.
        self.awake = now.since(self.last_event) < busy_poll;
    }

    /// How long the next poll waits. Turns go on meanwhile, so alarms ring in time either way.
    fn patience(&self, shard: &Shard<MioNet>) -> Option<Duration> {
        if self.awake { Some(Duration::ZERO) } else { shard.patience() }
    }
}

/// Turns that take mail are timed: they are what control can hold traffic up by.
fn run_shard(mut shard: Shard<MioNet>, mut poll: Poll, clock: Clock, longest_turn_us: &Counter) -> io::Result<()> {
    let mut events = mio::Events::with_capacity(EVENTS);
    let mut wall_at = clock.now().after(WALL_EVERY);
    let mut vigil = Vigil { last_event: Tick::START, awake: false };
    while !shard.is_drained() {
        match poll.poll(&mut events, vigil.patience(&shard)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let now = clock.now();
        if now >= wall_at {
            wall_at = now.after(WALL_EVERY);
            shard.set_wall(clock.wall_at_start_us());
        }
        let has_mail = events.iter().any(|event| event.token() == Token(Subject::Mailbox.token()));
        let before = has_mail.then(processor_time);
        shard.turn(now, events.iter().map(Event::of_mio));
        if let Some(before) = before {
            longest_turn_us.raise(processor_time().saturating_sub(before).as_micros() as u64);
        }
        vigil.turn(now, !events.is_empty(), shard.busy_poll());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vigil_lasts_as_long_as_it_is_told_and_no_longer() {
        let at = Tick::from_us;
        let mut vigil = Vigil { last_event: Tick::START, awake: false };
        let mut turn = |us, events, busy_us| {
            vigil.turn(at(us), events, Duration::from_micros(busy_us));
            vigil.awake
        };
        assert!(!turn(1_000, true, 0), "it is off");
        assert!(turn(2_000, true, 50));
        assert!(turn(2_049, false, 50));
        assert!(!turn(2_050, false, 50));
        assert!(turn(2_060, false, 100), "a reload has made it longer");
        assert!(turn(2_090, true, 50));
        assert!(!turn(2_091, false, 0), "a reload has switched it off");
    }
}

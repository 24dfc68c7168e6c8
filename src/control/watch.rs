//! The watcher: a thread that tells control when the content of the configuration file is another one than
//! what was loaded last, and has been the same for `gateway.reload.debounce`.
//!
//! It believes what it reads and nothing else. Events of inotify, and the time with `gateway.reload.poll`, only say
//! when to look; so one that is lost, late or about something else does no harm. After it has told, it looks again
//! until the content is what was loaded: nothing depends on the arrival of a single notice.
//!
//! A path leads through directories and links, and each of them can be replaced. So each directory in which a part
//! of it is looked up is watched for that name, and the file itself for writes.
//!
//! Must not know: what a configuration says, what control does about it.

use crate::config;
use crate::config::model::Reload;
use crate::ground::queue::Sender;
use crate::shard::mailbox::Notice;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{OsStr, OsString};
use std::hash::Hasher;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the file is read when inotify does not work.
const WITHOUT_INOTIFY: Duration = Duration::from_secs(2);
/// Between two reads of events, so that a directory in which much happens costs little.
const PAUSE: Duration = Duration::from_millis(20);
/// Links that the system follows within one path.
const MOST_LINKS: usize = 40;
/// Bytes of events that are read at once.
const EVENTS: usize = 16 << 10;

const OF_DIRECTORY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);
const OF_FILE: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    // A path may end, by mistake, at a directory that is watched as such.
    .union(WatchFlags::MASK_ADD);

/// What tells one content from another.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// What control and the watcher know in common.
#[derive(Debug)]
pub struct Known {
    fingerprint: AtomicU64,
    /// A notice is on its way, or waits for the end of a reload.
    told: AtomicBool,
}

impl Known {
    /// The content with this fingerprint is loaded.
    pub fn new(fingerprint: u64) -> Known {
        Known { fingerprint: AtomicU64::new(fingerprint), told: AtomicBool::new(false) }
    }

    /// Control loads the content with this fingerprint, whatever comes of it.
    pub fn set(&self, fingerprint: u64) {
        self.fingerprint.store(fingerprint, Ordering::Release);
    }

    /// Whether this is the content that was loaded last.
    pub fn is(&self, fingerprint: u64) -> bool {
        self.fingerprint.load(Ordering::Acquire) == fingerprint
    }

    /// Control has done with the notice what it wanted.
    pub fn answered(&self) {
        self.told.store(false, Ordering::Release);
    }
}

/// A running watcher. Dropping it ends its thread.
#[derive(Debug)]
pub struct Watcher {
    settings: Reload,
    /// The thread sees the other end of this pipe hang up.
    _alive: OwnedFd,
}

impl Watcher {
    /// Begins to watch the file at `path`.
    pub fn start(path: &Path, settings: Reload, known: Arc<Known>, notices: Sender<Notice>) -> io::Result<Watcher> {
        let (hangup, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let watch = Watch {
            path: path.to_owned(),
            name: path.display().to_string(),
            settings,
            known,
            notices,
            hangup,
            inotify: None,
            watches: HashMap::new(),
            is_blind: false,
            has_warned: false,
            said: None,
        };
        let thread = std::thread::Builder::new().name("watcher".to_owned()).stack_size(256 << 10);
        thread.spawn(move || watch.run())?;
        Ok(Watcher { settings, _alive: alive })
    }

    /// What it was started with.
    pub fn settings(&self) -> Reload {
        self.settings
    }
}

/// What a look at the file shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    /// The content that was loaded last.
    Loaded,
    /// Another one.
    Other(u64),
    /// Nothing but white space. It would be a valid configuration without services; but a file that is being
    /// written begins like this, and so does one whose writer found the disk full.
    Blank,
    /// No content, and why.
    Unreadable(String),
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Time,
    Event,
    Hangup,
}

/// What the thread has.
#[derive(Debug)]
struct Watch {
    path: PathBuf,
    name: String,
    settings: Reload,
    known: Arc<Known>,
    notices: Sender<Notice>,
    hangup: OwnedFd,
    inotify: Option<OwnedFd>,
    /// The names that matter in each watched directory. The file has none: its events carry no name.
    watches: HashMap<i32, Vec<OsString>>,
    /// Not all that should be watched is.
    is_blind: bool,
    has_warned: bool,
    /// What the log was told about a file that cannot be loaded.
    said: Option<Sight>,
}

impl Watch {
    fn run(mut self) {
        // From this line on no change is missed.
        self.watch();
        log::info!("{} is watched", self.name);
        let mut seen: Option<Sight> = None;
        let mut is_restless = true;
        loop {
            // Before the look: what changes after it is an event.
            self.watch();
            let sight = self.look();
            let woken = if !self.is_news(&sight) {
                if std::mem::take(&mut is_restless) {
                    log::debug!("{}: nothing to do until it changes", self.name);
                }
                seen = None;
                self.wait()
            } else {
                is_restless = true;
                if seen.as_ref() == Some(&sight) {
                    seen = None;
                    self.tell(sight);
                } else {
                    log::debug!("{}: a change, if it stays so", self.name);
                    seen = Some(sight);
                }
                self.sleep(self.settings.debounce)
            };
            match woken {
                Woken::Hangup => return,
                Woken::Event => is_restless = true,
                Woken::Time => {}
            }
        }
    }

    fn look(&self) -> Sight {
        match config::read(&self.path) {
            Ok(bytes) => match fingerprint(&bytes) {
                known if self.known.is(known) => Sight::Loaded,
                _ if is_blank(&bytes) => Sight::Blank,
                other => Sight::Other(other),
            },
            Err(problems) => Sight::Unreadable(problems.to_string()),
        }
    }

    fn is_news(&self, sight: &Sight) -> bool {
        match sight {
            Sight::Loaded => self.said.is_some(),
            Sight::Other(_) => true,
            Sight::Blank | Sight::Unreadable(_) => self.said.as_ref() != Some(sight),
        }
    }

    fn tell(&mut self, sight: Sight) {
        match &sight {
            Sight::Loaded => log::info!("{} is there again, with the content that was loaded last", self.name),
            Sight::Other(fingerprint) => {
                let notice = Notice::FileChanged { fingerprint: *fingerprint };
                // Without room for it, it is told after the next look.
                if !self.known.told.swap(true, Ordering::AcqRel) && self.notices.tell(notice).is_err() {
                    self.known.answered();
                }
            }
            Sight::Blank => log::warn!(
                "{} is empty: by itself this is not loaded, the running configuration stays until there is content",
                self.name
            ),
            Sight::Unreadable(why) => log::warn!("{why}; the running configuration stays until there is a file"),
        }
        self.said = Some(sight).filter(|sight| matches!(sight, Sight::Blank | Sight::Unreadable(_)));
    }

    /// Waits for something to look at.
    fn wait(&mut self) -> Woken {
        let blind = self.is_blind.then_some(WITHOUT_INOTIFY);
        let every = [self.settings.poll, blind].into_iter().flatten().min();
        let end = every.map(|every| Instant::now() + every);
        loop {
            match self.wait_until(end, true) {
                Woken::Event if !self.is_concerned() => {
                    if self.sleep(PAUSE) == Woken::Hangup {
                        return Woken::Hangup;
                    }
                }
                woken => return woken,
            }
        }
    }

    /// Waits for the time to pass.
    fn sleep(&self, time: Duration) -> Woken {
        self.wait_until(Some(Instant::now() + time), false)
    }

    fn wait_until(&self, end: Option<Instant>, with_events: bool) -> Woken {
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            // No duration of a configuration is too long for it.
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            // Without events the pipe stands twice.
            let events = self.inotify.as_ref().filter(|_| with_events).unwrap_or(&self.hangup);
            let mut waited = [&self.hangup, events].map(|waited| PollFd::new(waited, PollFlags::IN));
            match poll(&mut waited, left.as_ref()) {
                Ok(0) => return Woken::Time,
                Ok(_) if !waited[0].revents().is_empty() => return Woken::Hangup,
                Ok(_) => return Woken::Event,
                Err(Errno::INTR) => {}
                Err(_) => {
                    // The system is short of memory: looking costs some too, so not at once.
                    std::thread::sleep(PAUSE);
                    return Woken::Time;
                }
            }
        }
    }

    /// Takes events; whether one of them is about the file or the way to it.
    fn is_concerned(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return true };
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        let mut is_concerned = false;
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => is_concerned = true,
                Ok(event) => {
                    let names = self.watches.get(&event.wd());
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                    is_concerned |= names.is_some_and(|names| name.is_none_or(|name| names.iter().any(|n| n == name)));
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return is_concerned,
                Err(_) => {
                    self.inotify = None;
                    return true;
                }
            }
            if events.is_buffer_empty() {
                return is_concerned;
            }
        }
    }

    /// Watches the way to the file as it leads now.
    fn watch(&mut self) {
        if !self.settings.watch {
            return;
        }
        let trouble = self.watch_way().err();
        self.is_blind = trouble.is_some();
        if let Some(error) = trouble
            && !std::mem::replace(&mut self.has_warned, true)
        {
            let limit = match error {
                Errno::NOSPC => " (see fs.inotify.max_user_watches)",
                Errno::MFILE => " (see fs.inotify.max_user_instances)",
                _ => "",
            };
            let every = WITHOUT_INOTIFY.as_secs();
            log::warn!(
                "the system does not tell of changes of {}: {error}{limit}; it is read every {every} s instead",
                self.name
            );
        }
    }

    fn watch_way(&mut self) -> Result<(), Errno> {
        let inotify = match self.inotify.take() {
            Some(inotify) => inotify,
            None => {
                self.watches.clear();
                inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?
            }
        };
        let mut watches = HashMap::new();
        let outcome = watch_way(&inotify, &self.path, &mut watches);
        for old in self.watches.keys().filter(|old| !watches.contains_key(old)) {
            // One whose directory is gone was removed by the system.
            let _ = inotify::remove_watch(&inotify, *old);
        }
        self.watches = watches;
        self.inotify = Some(inotify);
        outcome
    }
}

/// Walks the path as the system does, and watches each directory before it looks into it. A way that ends early is
/// fine: its last directory is watched for the name that is missing.
fn watch_way(inotify: &OwnedFd, path: &Path, watches: &mut HashMap<i32, Vec<OsString>>) -> Result<(), Errno> {
    let mut at = PathBuf::from(".");
    let mut rest = parts(path);
    let mut links = 0;
    let mut outcome = Ok(());
    while let Some(part) = rest.pop() {
        if part == "/" || part == ".." {
            // `at` is free of links, so that `..` means what it says.
            at.push(part);
            continue;
        }
        match inotify::add_watch(inotify, &at, OF_DIRECTORY) {
            Ok(watch) => watches.entry(watch).or_default().push(part.clone()),
            Err(Errno::NOENT | Errno::NOTDIR) => return outcome,
            // Deeper ones may work all the same.
            Err(error) => outcome = Err(error),
        }
        at.push(part);
        match rustix::fs::readlink(&at, Vec::new()) {
            Ok(_) if links == MOST_LINKS => return outcome,
            Ok(target) => {
                links += 1;
                at.pop();
                rest.extend(parts(Path::new(OsStr::from_bytes(target.to_bytes()))));
            }
            // No link.
            Err(Errno::INVAL) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return outcome,
            Err(error) => return Err(error),
        }
    }
    match inotify::add_watch(inotify, &at, OF_FILE) {
        Ok(watch) => {
            watches.entry(watch).or_default();
            outcome
        }
        Err(Errno::NOENT | Errno::NOTDIR) => outcome,
        Err(error) => Err(error),
    }
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let mut parts: Vec<OsString> = parts.map(|part| part.as_os_str().to_owned()).collect();
    parts.reverse();
    parts
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes).iter().all(u8::is_ascii_whitespace)
}

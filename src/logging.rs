//! Log lines on their way to stderr: any thread hands a line to a bounded queue, one thread writes it, as text with
//! simple_logger or as a JSON document. A full pipe or a closed stderr stops that thread, and nothing else.
//!
//! Must not know: what is logged.

use crate::ground::calendar;
use crate::ground::queue::{Receiver, Sender, queue};
use log::{LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use simple_logger::SimpleLogger;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

/// Lines that may wait.
const LINES: usize = 1024;
/// How long the end of the process waits for the last lines.
const FLUSH_TIME: Duration = Duration::from_millis(500);
const THREAD: &str = "log";

enum Line {
    Text { level: log::Level, target: String, text: String },
    Flush(mpsc::Sender<()>),
}

struct Queue {
    lines: Sender<Line>,
    dropped: AtomicU64,
}

static QUEUE: OnceLock<Queue> = OnceLock::new();
/// Lines that are written from now on are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// A line of JSON. Its keys do not change: programs rely on them.
#[derive(Serialize)]
struct Document<'a> {
    time: String,
    level: String,
    target: &'a str,
    message: &'a str,
}

impl Log for Queue {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line =
            Line::Text { level: record.level(), target: record.target().to_owned(), text: record.args().to_string() };
        if self.lines.tell(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// Which lines are taken from now on, and whether they are written as JSON.
pub fn set(level: LevelFilter, json: bool) {
    log::set_max_level(level);
    JSON.store(json, Ordering::Relaxed);
}

/// Begins to take lines of at least this level. Later calls only [`set`].
pub fn start(level: LevelFilter, json: bool) {
    let (lines, inbox) = queue(LINES);
    let mut fresh = false;
    let queue = QUEUE.get_or_init(|| {
        fresh = true;
        Queue { lines, dropped: AtomicU64::new(0) }
    });
    set(level, json);
    if !fresh || log::set_logger(queue).is_err() {
        return;
    }
    // Without the thread lines pile up in the queue and are dropped: the gateway works all the same.
    let thread = std::thread::Builder::new().name(THREAD.to_owned()).stack_size(128 << 10);
    let _ = thread.spawn(move || write(&inbox));
    std::panic::set_hook(Box::new(|panic| {
        // The writer panics when stderr is closed; telling that to stderr would go round in circles.
        if std::thread::current().name() != Some(THREAD) {
            log::error!("{panic}");
        }
    }));
}

fn write(inbox: &Receiver<Line>) {
    let logger = SimpleLogger::new().with_level(LevelFilter::Trace).with_utc_timestamps();
    let mut told = 0;
    while let Ok(line) = inbox.recv() {
        match line {
            Line::Text { level, target, text } => put(&logger, level, &target, &text),
            // Whoever waits may have given up.
            Line::Flush(done) => drop(done.send(())),
        }
        let dropped = QUEUE.get().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed));
        if dropped > told {
            put(&logger, log::Level::Warn, "fusegate", &format!("{} log lines were dropped", dropped - told));
            told = dropped;
        }
    }
}

fn put(logger: &SimpleLogger, level: log::Level, target: &str, text: &str) {
    if JSON.load(Ordering::Relaxed) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let level = level.as_str().to_ascii_lowercase();
        let document = Document { time: calendar::rfc3339(now), level, target, message: text };
        // Only maps with keys that are not strings can fail, and there is none.
        let mut line = serde_json::to_vec(&document).unwrap_or_default();
        line.push(b'\n');
        // A closed stderr stops nothing.
        let _ = std::io::stderr().lock().write_all(&line);
        return;
    }
    // simple_logger panics when stderr is closed.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let arguments = format_args!("{text}");
        logger.log(&Record::builder().level(level).target(target).args(arguments).build());
    }));
}

/// Lines that were dropped because the queue was full.
pub fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
}

/// Waits a moment until the lines so far are written.
pub fn finish() {
    let Some(queue) = QUEUE.get() else { return };
    let (done, written) = mpsc::channel();
    if queue.lines.tell(Line::Flush(done)).is_ok() {
        let _ = written.recv_timeout(FLUSH_TIME);
    }
}

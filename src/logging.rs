//! Log lines on their way to stderr: any thread hands a line to a bounded queue, one thread writes it with
//! simple_logger. A full pipe or a closed stderr stops that thread, and nothing else.
//!
//! Must not know: what is logged.

use log::{LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that may wait.
const LINES: usize = 1024;
/// How long the end of the process waits for the last lines.
const FLUSH_TIME: Duration = Duration::from_millis(500);
const THREAD: &str = "log";

enum Line {
    Text { level: log::Level, target: String, text: String },
    Flush(SyncSender<()>),
}

struct Queue {
    lines: SyncSender<Line>,
    dropped: AtomicU64,
}

static QUEUE: OnceLock<Queue> = OnceLock::new();

impl Log for Queue {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line =
            Line::Text { level: record.level(), target: record.target().to_owned(), text: record.args().to_string() };
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// Begins to take lines of at least this level. Later calls only set the level.
pub fn start(level: LevelFilter) {
    let (lines, inbox) = sync_channel(LINES);
    let mut fresh = false;
    let queue = QUEUE.get_or_init(|| {
        fresh = true;
        Queue { lines, dropped: AtomicU64::new(0) }
    });
    log::set_max_level(level);
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
            Line::Flush(done) => drop(done.try_send(())),
        }
        let dropped = QUEUE.get().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed));
        if dropped > told {
            put(&logger, log::Level::Warn, "fusegate", &format!("{} log lines were dropped", dropped - told));
            told = dropped;
        }
    }
}

fn put(logger: &SimpleLogger, level: log::Level, target: &str, text: &str) {
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
    let (done, written) = sync_channel(1);
    if queue.lines.try_send(Line::Flush(done)).is_ok() {
        let _ = written.recv_timeout(FLUSH_TIME);
    }
}

//! The seeded simulator: the real shards on a simulated network, in one thread and in virtual time, with
//! scripted clients and upstreams that know what they sent and judge every byte that they get.
//!
//! A seed is a whole run and runs the same way every time. A seed that fails is replayed with a trace by
//! `SIM_SEED=<seed> SIM_TRACE=1 cargo test --test sim -- replay --nocapture`.
//! `SIM_SEEDS` and `SIM_SECONDS` say how much `fresh_seeds` does, `SIM_FROM` where it begins.

mod client;
mod ledger;
mod net;
mod origin;
mod plan;
mod rng;
mod run;
mod watch;
mod wire;

use ledger::Tally;
use run::Outcome;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

/// Seeds that every test run goes through.
const FIXED: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn try_seed(seed: u64, tracing: bool) -> Result<Outcome, String> {
    match catch_unwind(AssertUnwindSafe(|| run::run(seed, tracing))) {
        Ok(result) => result,
        Err(panic) => match panic.downcast_ref::<String>() {
            Some(text) => Err(format!("panic: {text}")),
            None => Err(format!("panic: {}", panic.downcast_ref::<&str>().unwrap_or(&"?"))),
        },
    }
}

fn run_seed(seed: u64, tracing: bool) -> Outcome {
    let why = match try_seed(seed, tracing) {
        Ok(outcome) => return outcome,
        Err(why) => why,
    };
    panic!(
        "seed {seed}: {why}\nreplay: SIM_SEED={seed} SIM_TRACE=1 cargo test --test sim -- replay --nocapture --exact\n"
    );
}

fn run_seeds(name: &str, first: u64, count: u64, most: Duration) {
    let begun = Instant::now();
    let (mut tally, mut seeds, mut virtual_us, mut turns) = (Tally::default(), 0u64, 0u64, 0u64);
    while seeds < count && begun.elapsed() < most {
        let outcome = run_seed(first.wrapping_add(seeds), false);
        tally.add(&outcome.tally);
        virtual_us += outcome.virtual_us;
        turns += outcome.turns;
        seeds += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{name}: {seeds} seeds from {first}, {} exchanges ({} whole, {} cut, {} of the gateway itself), \
         {} requests, {} unanswered, {} attempts repeated ({} as retries), {} tunnels, {turns} rounds, \
         {:.0} virtual s in {seconds:.1} s: {:.0} exchanges/s",
        tally.exchanges(),
        tally.whole,
        tally.cut,
        tally.own,
        tally.requests,
        tally.unanswered,
        tally.repeated,
        tally.retried,
        tally.tunnels,
        virtual_us as f64 / 1e6,
        tally.exchanges() as f64 / seconds,
    );
}

#[test]
fn fixed_seeds() {
    run_seeds("fixed seeds", 1, FIXED, Duration::MAX);
}

#[test]
fn fresh_seeds() {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let first = number("SIM_FROM").unwrap_or(since.as_nanos() as u64 >> 10 << 24);
    let (count, seconds) = match (number("SIM_SEEDS"), number("SIM_SECONDS")) {
        (None, None) => (30, 10),
        (count, seconds) => (count.unwrap_or(u64::MAX), seconds.unwrap_or(u64::MAX / 4)),
    };
    run_seeds("fresh seeds", first, count, Duration::from_secs(seconds));
}

#[test]
fn a_seed_is_a_run() {
    for seed in [3, 14, 15, 92] {
        assert_eq!(run_seed(seed, false).digest, run_seed(seed, false).digest, "seed {seed} ran in two ways");
    }
}

/// Goes on when a seed fails and lists the failures: to see at once what there is. `SIM_SURVEY` seeds from
/// `SIM_FROM`.
#[test]
fn survey() {
    let first = number("SIM_FROM").unwrap_or(1);
    for seed in first..first + number("SIM_SURVEY").unwrap_or(0) {
        if let Err(why) = try_seed(seed, false) {
            println!("seed {seed}: {}", why.replace('\n', " "));
        }
    }
}

#[test]
fn replay() {
    if let Some(seed) = number("SIM_SEED") {
        println!("{:#?}", run_seed(seed, number("SIM_TRACE").is_some()));
    }
}

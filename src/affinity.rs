//! Which shard runs on which processor, and the system calls that put it there.
//!
//! Must not know: what a shard does, threads but the one that calls, when a listener is opened.

use crate::config::model::{Affinity, Gateway};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::SockRef;
use std::io;
use std::os::fd::AsFd;

/// How many shards there are: as the configuration says, else one for each processor that it lists, else one for each
/// that the process may use (its set and its share of a cgroup).
pub fn workers(gateway: &Gateway) -> usize {
    match (gateway.workers, &gateway.affinity) {
        (Some(workers), _) => workers.get(),
        (None, Affinity::Processors(numbers)) => numbers.len(),
        (None, _) => std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
    }
}

/// The processor of each shard; none when they are not bound. An error when there are fewer processors than shards.
pub fn plan(affinity: &Affinity, shards: usize) -> Result<Vec<usize>, String> {
    let mut processors = match affinity {
        Affinity::Off => return Ok(Vec::new()),
        Affinity::Processors(numbers) => numbers.clone(),
        Affinity::Auto => match allowed() {
            Ok(allowed) => allowed,
            Err(error) => {
                log::error!("which processors are allowed cannot be told, shards run anywhere: {error}");
                return Ok(Vec::new());
            }
        },
    };
    if processors.len() < shards {
        let found = processors.len();
        return Err(format!("gateway.affinity: {shards} workers cannot have a processor each, there are {found}"));
    }
    processors.truncate(shards);
    Ok(processors)
}

/// Those that this thread may run on, in order (sched_getaffinity(2)).
fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect())
}

/// Binds this thread to a processor (sched_setaffinity(2)).
///
/// # Errors
///
/// Those of the system: there is no such processor, or the process may not use it.
pub fn pin(processor: usize) -> io::Result<()> {
    if processor >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}

/// Of the listeners that share a port, prefers this one for connections that arrive on a processor (`SO_INCOMING_CPU`,
/// socket(7)).
///
/// # Errors
///
/// Those of the system.
pub fn attract(listener: &impl AsFd, processor: usize) -> io::Result<()> {
    SockRef::from(listener).set_cpu_affinity(processor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::num::NonZeroUsize;

    #[test]
    fn as_many_workers_as_processors_unless_a_number_says_otherwise() {
        let gateway =
            |workers, affinity| Gateway { workers: NonZeroUsize::new(workers), affinity, ..Gateway::default() };
        let cores = std::thread::available_parallelism().unwrap().get();
        assert_eq!(workers(&gateway(0, Affinity::Off)), cores);
        assert_eq!(workers(&gateway(0, Affinity::Auto)), cores);
        assert_eq!(workers(&gateway(0, Affinity::Processors(vec![4, 2, 9]))), 3);
        assert_eq!(workers(&gateway(2, Affinity::Processors(vec![4, 2, 9]))), 2);
    }

    #[test]
    fn every_shard_has_a_processor_of_its_own_or_none() {
        assert_eq!(plan(&Affinity::Off, 3), Ok(Vec::new()));
        assert_eq!(plan(&Affinity::Processors(vec![4, 2, 9]), 2), Ok(vec![4, 2]));
        assert!(plan(&Affinity::Processors(vec![4]), 2).is_err());
        let allowed = allowed().unwrap();
        assert_eq!(plan(&Affinity::Auto, 1), Ok(allowed[..1].to_vec()));
        assert!(plan(&Affinity::Auto, allowed.len() + 1).is_err());
    }

    #[test]
    fn a_thread_and_a_listener_are_bound() {
        let processor = *allowed().unwrap().last().unwrap();
        let found = std::thread::spawn(move || {
            pin(processor).unwrap();
            allowed().unwrap()
        });
        assert_eq!(found.join().unwrap(), [processor]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        attract(&listener, processor).unwrap();
        assert_eq!(SockRef::from(&listener).cpu_affinity().unwrap(), processor);
        assert!(pin(CpuSet::MAX_CPU).is_err());
    }
}

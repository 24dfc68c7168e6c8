//! A queue between threads that is bounded, and has memory only for what waits in it.
//!
//! That of the standard library has all of its memory from the start, touched, for each shard anew. What goes through
//! here is rare; a shared count that is written with every message is what that costs.
//! Must not know: what the messages are, who waits for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvError, RecvTimeoutError, TryRecvError};
use std::time::Duration;

/// A queue in which `most` messages may wait.
pub fn queue<T>(most: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (Sender { sender, waiting: Arc::clone(&waiting), most }, Receiver { receiver, waiting })
}

/// The message was not taken: too many wait, or nobody receives any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untold;

/// The end into which messages go.
#[derive(Debug)]
pub struct Sender<T> {
    sender: mpsc::Sender<T>,
    waiting: Arc<AtomicUsize>,
    most: usize,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { sender: self.sender.clone(), waiting: Arc::clone(&self.waiting), most: self.most }
    }
}

impl<T> Sender<T> {
    /// Sends unless the queue is full; never waits.
    pub fn tell(&self, message: T) -> Result<(), Untold> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Untold);
        }
        self.sender.send(message).map_err(|_| Untold)
    }

    /// Sends also into a full queue: for what must not be lost, and of which there cannot be much.
    pub fn press(&self, message: T) -> Result<(), Untold> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.sender.send(message).map_err(|_| Untold)
    }
}

/// The end from which they come, in the order in which each sender sent them.
#[derive(Debug)]
pub struct Receiver<T> {
    receiver: mpsc::Receiver<T>,
    waiting: Arc<AtomicUsize>,
}

impl<T> Receiver<T> {
    /// The next message, if one waits.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.receiver.try_recv().inspect(|_| self.took())
    }

    /// The next message; waits until there is one, or no sender is left.
    pub fn recv(&self) -> Result<T, RecvError> {
        self.receiver.recv().inspect(|_| self.took())
    }

    /// The next message; waits at most `patience`.
    pub fn recv_timeout(&self, patience: Duration) -> Result<T, RecvTimeoutError> {
        self.receiver.recv_timeout(patience).inspect(|_| self.took())
    }

    fn took(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_so_many_and_then_again_as_many_as_were_received() {
        let (sender, receiver) = queue(2);
        assert_eq!(sender.tell(1), Ok(()));
        assert_eq!(sender.clone().tell(2), Ok(()));
        assert_eq!(sender.tell(3), Err(Untold));
        assert_eq!(receiver.try_recv(), Ok(1));
        assert_eq!(sender.tell(4), Ok(()));
        assert_eq!(sender.tell(5), Err(Untold));
        assert_eq!(sender.press(6), Ok(()));
        assert_eq!([(); 3].map(|()| receiver.recv_timeout(Duration::ZERO)), [Ok(2), Ok(4), Ok(6)]);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(receiver.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
    }

    #[test]
    fn it_says_when_the_other_end_is_gone() {
        let (sender, receiver) = queue(2);
        drop(receiver);
        assert_eq!(sender.tell(1), Err(Untold));
        assert_eq!(sender.press(1), Err(Untold));
        let (sender, receiver) = queue::<u8>(2);
        drop(sender);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(receiver.recv(), Err(RecvError));
    }
}

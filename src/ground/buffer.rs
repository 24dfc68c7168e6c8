//! Byte buffers that own memory only while they hold bytes, and the pool that lends it.
//!
//! A shard has one pool and ten thousand connections; nearly all of them are idle, so an empty buffer is
//! an empty box. Memory comes in two sizes, newest first, so that a busy shard works in warm cache lines.
//!
//! Must not know: what the bytes mean, nor how many a caller may hold (callers ask before they append).

/// Bytes of a small piece of memory: a request or response head of everyday size.
pub const SMALL: usize = 2 << 10;

/// How many idle pieces are kept; beyond that memory goes back to the allocator.
const KEPT_SMALL: usize = 1024;
const KEPT_LARGE: usize = 128;

/// The memory of one shard's buffers.
#[derive(Debug)]
pub struct Pool {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    large_size: usize,
    lent: usize,
}

impl Pool {
    /// A pool whose large pieces have `large_size` bytes.
    pub fn new(large_size: usize) -> Pool {
        Pool { small: Vec::new(), large: Vec::new(), large_size: large_size.max(2 * SMALL), lent: 0 }
    }

    /// Bytes of a large piece.
    pub fn large_size(&self) -> usize {
        self.large_size
    }

    /// Later large pieces have this size; those on loan are dropped when they come back.
    pub fn resize(&mut self, large_size: usize) {
        let large_size = large_size.max(2 * SMALL);
        if large_size != self.large_size {
            self.large_size = large_size;
            self.large.clear();
        }
    }

    /// Pieces on loan now: what an idle shard must have at zero.
    pub fn lent(&self) -> usize {
        self.lent
    }

    fn lend(&mut self, at_least: usize) -> Box<[u8]> {
        self.lent += 1;
        let (shelf, size) = match at_least {
            0..=SMALL => (&mut self.small, SMALL),
            _ if at_least <= self.large_size => (&mut self.large, self.large_size),
            odd => return vec![0; odd].into_boxed_slice(),
        };
        shelf.pop().unwrap_or_else(|| vec![0; size].into_boxed_slice())
    }

    fn take_back(&mut self, piece: Box<[u8]>) {
        if piece.is_empty() {
            return;
        }
        self.lent -= 1;
        let (shelf, kept) = match piece.len() {
            SMALL => (&mut self.small, KEPT_SMALL),
            size if size == self.large_size => (&mut self.large, KEPT_LARGE),
            _ => return,
        };
        if shelf.len() < kept {
            shelf.push(piece);
        }
    }
}

/// A run of bytes, filled at the back and consumed at the front.
///
/// Dropping a buffer that holds memory loses it to the pool's count; connections give theirs back with
/// [`Buffer::clear`] when they close.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Box<[u8]>,
    start: u32,
    end: u32,
}

impl Buffer {
    /// The bytes held.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start as usize..self.end as usize]
    }

    /// How many bytes are held.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether no byte is held, and so no memory either (but for a buffer lent whole by [`Buffer::large`]).
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// An empty buffer that already has a large piece: a shard's scratch.
    pub fn large(pool: &mut Pool) -> Buffer {
        Buffer { memory: pool.lend(pool.large_size), start: 0, end: 0 }
    }

    /// Adds `bytes` at the back, with more memory when it is needed.
    pub fn append(&mut self, pool: &mut Pool, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.reserve(pool, bytes.len());
        let end = self.end as usize;
        self.memory[end..end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len() as u32;
    }

    /// Makes room for `more` bytes behind those held: by moving them to the front, or into a larger piece.
    pub fn reserve(&mut self, pool: &mut Pool, more: usize) {
        if self.memory.len() - self.end as usize >= more {
            return;
        }
        let len = self.len();
        if self.memory.len() - len >= more {
            self.memory.copy_within(self.start as usize..self.end as usize, 0);
        } else {
            let mut larger = pool.lend(len + more);
            larger[..len].copy_from_slice(self.bytes());
            pool.take_back(std::mem::replace(&mut self.memory, larger));
        }
        self.start = 0;
        self.end = len as u32;
    }

    /// The free memory behind the bytes held: read into it, then [`Buffer::filled`].
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.memory[self.end as usize..]
    }

    /// Says that the first `n` bytes of [`Buffer::space`] were filled.
    pub fn filled(&mut self, n: usize) {
        debug_assert!(self.end as usize + n <= self.memory.len());
        self.end += n as u32;
    }

    /// Drops `n` bytes at the front; the memory goes back when none is left.
    pub fn consume(&mut self, pool: &mut Pool, n: usize) {
        debug_assert!(n <= self.len());
        self.start += n as u32;
        if self.start == self.end {
            self.clear(pool);
        }
    }

    /// Drops all bytes and gives the memory back.
    pub fn clear(&mut self, pool: &mut Pool) {
        pool.take_back(std::mem::take(&mut self.memory));
        self.start = 0;
        self.end = 0;
    }

    /// Forgets the bytes and keeps the memory: for a scratch between two uses.
    pub fn reset(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// The same, and leaves `margin` bytes in front for [`Buffer::headed`].
    pub fn reset_behind(&mut self, margin: usize) {
        self.start = margin.min(self.memory.len()) as u32;
        self.end = self.start;
    }

    /// `head` and the `n` bytes from `at` on in one piece, for which `head` is written over what lies before
    /// `at`. `None`, and nothing is written, where there is no room for it.
    pub fn headed(&mut self, head: &[u8], at: usize, n: usize) -> Option<&[u8]> {
        let at = self.start as usize + at;
        let from = at.checked_sub(head.len())?;
        debug_assert!(at + n <= self.end as usize);
        self.memory[from..at].copy_from_slice(head);
        Some(&self.memory[from..at + n])
    }

    /// Whether the buffer holds memory.
    pub fn holds_memory(&self) -> bool {
        !self.memory.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_buffer_owns_nothing() {
        let mut pool = Pool::new(64 << 10);
        let mut buffer = Buffer::default();
        assert!(!buffer.holds_memory());
        buffer.append(&mut pool, b"abc");
        assert_eq!(pool.lent(), 1);
        buffer.consume(&mut pool, 3);
        assert!(!buffer.holds_memory());
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn it_grows_and_keeps_its_bytes() {
        let mut pool = Pool::new(8 << 10);
        let mut buffer = Buffer::default();
        for round in 0..40u8 {
            buffer.append(&mut pool, &[round; 500]);
        }
        assert_eq!(buffer.len(), 20_000);
        assert!(buffer.bytes().iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 500));
        buffer.clear(&mut pool);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_head_is_put_in_front_where_there_is_room() {
        let mut pool = Pool::new(8 << 10);
        let mut buffer = Buffer::large(&mut pool);
        buffer.reset_behind(4);
        buffer.space()[..8].copy_from_slice(b"headbody");
        buffer.filled(8);
        assert_eq!(buffer.headed(b"too long for it", 4, 4), None);
        assert_eq!(buffer.bytes(), b"headbody");
        assert_eq!(buffer.headed(b"longer: ", 4, 3), Some(&b"longer: bod"[..]));
        assert_eq!(&buffer.bytes()[4..], b"body");
    }

    proptest! {
        #[test]
        fn it_is_a_queue_of_bytes(moves in prop::collection::vec((0usize..3000, 0usize..3000), 1..60)) {
            let mut pool = Pool::new(16 << 10);
            let mut buffer = Buffer::default();
            let mut model = std::collections::VecDeque::new();
            let mut next = 0u8;
            for (add, take) in moves {
                let bytes: Vec<u8> = (0..add).map(|_| { next = next.wrapping_add(1); next }).collect();
                buffer.append(&mut pool, &bytes);
                model.extend(bytes);
                let take = take.min(model.len());
                buffer.consume(&mut pool, take);
                model.drain(..take);
                prop_assert_eq!(buffer.bytes(), model.make_contiguous() as &[u8]);
            }
            buffer.clear(&mut pool);
            prop_assert_eq!(pool.lent(), 0);
        }
    }
}

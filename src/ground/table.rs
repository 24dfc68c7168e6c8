//! Tables of slots whose identifiers go stale: a slab that stores a generation with each entry.
//!
//! A late event, alarm or answer names an entry by its [`Id`]; when that entry is gone the table says
//! `None`, and that is the only place where stale things end.
//!
//! Must not know: what is stored.

use slab::Slab;
use std::fmt;
use std::marker::PhantomData;

/// Bits of a generation in an identifier; two more bits stay free for the kind in a token.
const GENERATION_BITS: u32 = 30;

/// Names one entry of one table, and never another that later has its slot
/// (until 2^30 entries have been made in between).
pub struct Id<K> {
    index: u32,
    generation: u32,
    kind: PhantomData<fn() -> K>,
}

impl<K> Id<K> {
    /// As a number of 62 bits.
    pub fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The reverse of [`Id::pack`]; two higher bits are ignored.
    pub fn unpack(packed: u64) -> Id<K> {
        let generation = (packed >> 32) as u32 & ((1 << GENERATION_BITS) - 1);
        Id { index: packed as u32, generation, kind: PhantomData }
    }
}

// Derived impls would ask for bounds on K.
impl<K> Clone for Id<K> {
    fn clone(&self) -> Id<K> {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Id<K>) -> bool {
        self.index == other.index && self.generation == other.generation
    }
}
impl<K> Eq for Id<K> {}
impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.index, self.generation)
    }
}

/// A slab whose entries have generations. `K` is what identifiers are of: the entries themselves, or a name
/// for them where their type has parameters that identifiers should not have.
#[derive(Debug)]
pub struct Table<T, K = T> {
    slab: Slab<(u32, T)>,
    generation: u32,
    kind: PhantomData<fn() -> K>,
}

impl<T, K> Default for Table<T, K> {
    fn default() -> Table<T, K> {
        Table { slab: Slab::new(), generation: 0, kind: PhantomData }
    }
}

impl<T, K> Table<T, K> {
    /// The identifier that the next [`Table::insert`] will give: sockets are registered under it first.
    pub fn next_id(&self) -> Id<K> {
        Id { index: self.slab.vacant_key() as u32, generation: self.generation, kind: PhantomData }
    }

    /// Stores `value`.
    // Inlined, or an entry of half a kilobyte is copied three times on its way.
    #[inline(always)]
    pub fn insert(&mut self, value: T) -> Id<K> {
        let id = self.next_id();
        self.slab.insert((self.generation, value));
        self.generation = (self.generation + 1) & ((1 << GENERATION_BITS) - 1);
        id
    }

    /// The entry, unless it is gone.
    pub fn get(&self, id: Id<K>) -> Option<&T> {
        match self.slab.get(id.index as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// The entry, unless it is gone.
    pub fn get_mut(&mut self, id: Id<K>) -> Option<&mut T> {
        match self.slab.get_mut(id.index as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// Takes the entry out, unless it is gone.
    pub fn remove(&mut self, id: Id<K>) -> Option<T> {
        self.get(id)?;
        Some(self.slab.remove(id.index as usize).1)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// All entries with their identifiers, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (Id<K>, &T)> {
        self.slab.iter().map(|(index, (generation, value))| {
            (Id { index: index as u32, generation: *generation, kind: PhantomData }, value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_identifier_finds_nothing() {
        let mut table = Table::<&str>::default();
        let first = table.insert("first");
        assert_eq!(table.get(first), Some(&"first"));
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second");
        assert_eq!(second.pack() as u32, first.pack() as u32, "the slot is used again");
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(Id::unpack(second.pack() | 3 << 62)), Some(&"second"));
    }
}

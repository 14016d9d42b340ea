//! Entries that are gathered to be sorted, within the memory that all listings may take together.
//!
//! A record of 56 bytes stands for each entry; names and link targets are in blocks beside the records.

use std::{
    cmp::Ordering,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Entry, EntryKind};

/// Bytes of the first block of names. Each further block is twice as large, up to [`LARGEST_BLOCK`].
const SMALLEST_BLOCK: usize = 4 * 1024;

const LARGEST_BLOCK: usize = 64 * 1024;

/// Records that the first allocation holds.
const FEWEST_RECORDS: usize = 16;

/// The most records by which an allocation grows. Growing takes the memory of both allocations for a moment.
const MOST_NEW_RECORDS: usize = 16 * 1024;

/// A listing that took this many bytes gives free memory of the allocator back to the system.
const WORTH_A_TRIM: u64 = 1024 * 1024;

/// The memory that sorted listings of all sessions may take together.
#[derive(Clone, Debug)]
pub struct ListingMemory(Arc<MemoryBudget>);

#[derive(Debug)]
struct MemoryBudget {
    /// Bytes.
    most: u64,
    /// Bytes.
    taken: AtomicU64,
}

impl ListingMemory {
    /// `most`: bytes.
    pub fn new(most: u64) -> Self {
        Self(Arc::new(MemoryBudget { most, taken: AtomicU64::new(0) }))
    }

    /// Takes `bytes` if they are there.
    fn take(&self, bytes: u64) -> bool {
        let taken = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.0.most);
        self.0.taken.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.0.taken.fetch_sub(bytes, Relaxed);
    }
}

/// Entries in memory. Their memory is given back when this is dropped.
#[derive(Debug)]
pub struct EntryBuffer {
    memory: ListingMemory,
    /// Bytes taken of `memory`.
    taken: u64,
    /// The most that `taken` has been.
    peak: u64,
    /// Each with the capacity that it was made with.
    names: Vec<Vec<u8>>,
    records: Vec<EntryRecord>,
}

#[derive(Clone, Copy, Debug)]
struct EntryRecord {
    size: u64,
    modified: i64,
    links: u64,
    device: u64,
    inode: u64,
    /// Index in [`EntryBuffer::names`].
    block: u32,
    /// Where the name begins in its block. The link's target follows the name.
    start: u32,
    /// Permission bits.
    mode: u16,
    /// Bytes.
    name: u16,
    /// Length of the link's target in bytes; [`NO_TARGET`] for an entry that is no link.
    target: u16,
    kind: EntryKind,
}

const NO_TARGET: u16 = u16::MAX;

/// What an order compares.
#[derive(Clone, Copy, Debug)]
pub struct SortKey<'g> {
    pub name: &'g [u8],
    pub size: u64,
    pub modified: i64,
}

impl EntryBuffer {
    pub fn new(memory: &ListingMemory) -> Self {
        Self { memory: memory.clone(), taken: 0, peak: 0, names: Vec::new(), records: Vec::new() }
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// Adds an entry if there is memory for it.
    ///
    /// # Errors
    /// The entry, if `max_listing_memory` has no room for it.
    pub fn add(&mut self, entry: Entry) -> Result<(), Entry> {
        let target = entry.link_target.as_deref();
        let length = entry.name.len() + target.map_or(0, <[u8]>::len);
        let lengths = u16::try_from(entry.name.len()).ok().zip(match target {
            None => Some(NO_TARGET),
            // The kernel's limits, 255 and 4095 bytes, are far below.
            Some(target) => u16::try_from(target.len()).ok().filter(|length| *length != NO_TARGET),
        });
        let Some((name, target)) = lengths else { return Err(entry) };
        if !(self.has_block_for(length) && self.has_record()) {
            return Err(entry);
        }
        // `has_block_for` has left one with room; there are at most as many as records.
        let index = self.names.len() - 1;
        let block = &mut self.names[index];
        self.records.push(EntryRecord {
            size: entry.size,
            modified: entry.modified,
            links: entry.links,
            device: entry.device,
            inode: entry.inode,
            block: index as u32,
            // A block has at most 2 * 64 KiB.
            start: block.len() as u32,
            mode: (entry.mode & 0o7777) as u16,
            name,
            target,
            kind: entry.kind,
        });
        block.extend_from_slice(&entry.name);
        block.extend_from_slice(entry.link_target.as_deref().unwrap_or_default());
        Ok(())
    }

    /// Makes room for `length` bytes in the last block.
    fn has_block_for(&mut self, length: usize) -> bool {
        if self.names.last().is_some_and(|block| block.capacity() - block.len() >= length) {
            return true;
        }
        let doubled = SMALLEST_BLOCK << self.names.len().min(4);
        let capacity = doubled.min(LARGEST_BLOCK).max(length);
        if !self.take(capacity + size_of::<Vec<u8>>()) {
            return false;
        }
        self.names.push(Vec::with_capacity(capacity));
        true
    }

    /// Makes room for one more record.
    fn has_record(&mut self) -> bool {
        let capacity = self.records.capacity();
        if self.records.len() < capacity {
            return true;
        }
        let grown = capacity + capacity.clamp(FEWEST_RECORDS, MOST_NEW_RECORDS);
        if !self.take(grown * size_of::<EntryRecord>()) {
            return false;
        }
        self.records.reserve_exact(grown - capacity);
        self.give_back(capacity * size_of::<EntryRecord>());
        true
    }

    fn take(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let has_room = self.memory.take(bytes);
        if has_room {
            self.taken += bytes;
            self.peak = self.peak.max(self.taken);
        }
        has_room
    }

    fn give_back(&mut self, bytes: usize) {
        self.taken -= bytes as u64;
        self.memory.give_back(bytes as u64);
    }

    /// Sorts by `order`, which must not be equal for two names: the sort is not stable.
    pub fn sort(&mut self, order: impl Fn(SortKey<'_>, SortKey<'_>) -> Ordering) {
        let names = &self.names;
        self.records.sort_unstable_by(|a, b| order(a.key(names), b.key(names)));
    }

    /// The entries in their order. Each is made when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        self.records.iter().map(|record| Entry {
            name: record.name(&self.names).to_vec(),
            kind: record.kind,
            size: record.size,
            modified: record.modified,
            mode: record.mode.into(),
            links: record.links,
            device: record.device,
            inode: record.inode,
            link_target: record.link_target(&self.names).map(<[u8]>::to_vec),
        })
    }
}

impl EntryRecord {
    fn key<'n>(&self, names: &'n [Vec<u8>]) -> SortKey<'n> {
        SortKey { name: self.name(names), size: self.size, modified: self.modified }
    }

    fn name<'n>(&self, names: &'n [Vec<u8>]) -> &'n [u8] {
        let start = self.start as usize;
        &names[self.block as usize][start..start + usize::from(self.name)]
    }

    fn link_target<'n>(&self, names: &'n [Vec<u8>]) -> Option<&'n [u8]> {
        let start = self.start as usize + usize::from(self.name);
        let length = (self.target != NO_TARGET).then_some(usize::from(self.target))?;
        Some(&names[self.block as usize][start..start + length])
    }
}

impl Drop for EntryBuffer {
    fn drop(&mut self) {
        self.names = Vec::new();
        self.records = Vec::new();
        self.memory.give_back(self.taken);
        if self.peak >= WORTH_A_TRIM {
            trim();
        }
    }
}

/// Gives free memory back to the system. The allocator keeps it otherwise, in an arena for each of the
/// threads that ever sorted a listing.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and may be called at any time by any thread (malloc_trim(3): MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        const KINDS: [EntryKind; 4] =
            [EntryKind::File, EntryKind::Directory, EntryKind::Symlink, EntryKind::Other];
        let entry = (
            prop::collection::vec(1..=255u8, 1..100),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            (any::<u64>(), any::<i64>(), any::<u64>(), any::<u64>(), any::<u64>()),
            0..0o10000u32,
            prop::sample::select(&KINDS[..]),
        );
        let made =
            entry.prop_map(|(name, link_target, (size, modified, links, device, inode), mode, kind)| Entry {
                name,
                kind,
                size,
                modified,
                mode,
                links,
                device,
                inode,
                link_target,
            });
        prop::collection::vec(made, 0..100)
    }

    #[test]
    fn a_record_takes_56_bytes() {
        assert_eq!(size_of::<EntryRecord>(), 56);
    }

    proptest! {
        #[test]
        fn entries_come_back_as_they_were_and_in_order(entries in entries()) {
            let memory = ListingMemory::new(u64::MAX);
            let mut gathered = EntryBuffer::new(&memory);
            for entry in &entries {
                prop_assert!(gathered.add(entry.clone()).is_ok());
            }
            prop_assert_eq!(gathered.iter().collect::<Vec<_>>(), entries.clone());
            gathered.sort(|a, b| a.name.cmp(b.name).then(a.size.cmp(&b.size)));
            let mut sorted = entries;
            sorted.sort_by(|a, b| a.name.cmp(&b.name).then(a.size.cmp(&b.size)));
            prop_assert_eq!(gathered.iter().collect::<Vec<_>>(), sorted);
        }

        #[test]
        fn no_more_memory_is_taken_than_there_is_and_all_is_given_back(
            entries in entries(),
            most in 0..60_000u64,
        ) {
            let memory = ListingMemory::new(most);
            let mut both = [EntryBuffer::new(&memory), EntryBuffer::new(&memory)];
            for (number, entry) in entries.into_iter().enumerate() {
                let gathered = &mut both[number % 2];
                let count = gathered.count();
                match gathered.add(entry.clone()) {
                    Ok(()) => prop_assert_eq!(gathered.count(), count + 1),
                    Err(refused) => prop_assert_eq!(refused, entry),
                }
                let allocated = |gathered: &EntryBuffer| {
                    gathered.names.iter().map(Vec::capacity).sum::<usize>()
                        + gathered.records.capacity() * size_of::<EntryRecord>()
                };
                let allocated = both.iter().map(allocated).sum::<usize>() as u64;
                let taken = memory.0.taken.load(Relaxed);
                prop_assert!(allocated <= taken && taken <= most, "{} {} {}", allocated, taken, most);
            }
            drop(both);
            prop_assert_eq!(memory.0.taken.load(Relaxed), 0);
        }
    }
}

//! Entries in memory for sorted listings, within the memory limit for all listings together.
//!
//! Each entry is a record of 56 bytes. Names and link targets are in blocks beside the records.

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

/// Bytes of a block after all doublings.
const LARGEST_BLOCK: usize = 64 * 1024;

/// Doublings from the smallest to the largest block.
const DOUBLINGS: usize = 4;

const _: () = assert!(SMALLEST_BLOCK << DOUBLINGS == LARGEST_BLOCK);

/// Capacity of the first allocation of records.
const MIN_RECORDS: usize = 16;

/// Maximum number of records by which the allocation grows. Growing needs both the old and the new
/// allocation for a moment.
const MAX_NEW_RECORDS: usize = 16 * 1024;

/// After a listing that used at least this many bytes, the allocator's free memory is returned to the
/// system.
const TRIM_THRESHOLD: u64 = 1024 * 1024;

/// Memory that the sorted listings of all sessions may use together (`max_listing_memory`).
#[derive(Clone, Debug)]
pub struct ListingMemory(Arc<MemoryBudget>);

#[derive(Debug)]
struct MemoryBudget {
    /// Bytes.
    limit: u64,
    /// Bytes.
    reserved: AtomicU64,
}

impl ListingMemory {
    /// `limit` is in bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(MemoryBudget { limit, reserved: AtomicU64::new(0) }))
    }

    /// Reserves `bytes`. Returns false if that would exceed the limit.
    fn reserve(&self, bytes: u64) -> bool {
        let add = |reserved: u64| reserved.checked_add(bytes).filter(|sum| *sum <= self.0.limit);
        self.0.reserved.fetch_update(Relaxed, Relaxed, add).is_ok()
    }

    fn release(&self, bytes: u64) {
        self.0.reserved.fetch_sub(bytes, Relaxed);
    }
}

/// Entries in memory. Dropping them releases their memory.
#[derive(Debug)]
pub struct EntryBuffer {
    memory: ListingMemory,
    /// Bytes reserved in `memory`.
    reserved: u64,
    /// Maximum of `reserved` so far.
    peak: u64,
    /// Blocks of names and link targets. A block never grows beyond its initial capacity.
    blocks: Vec<Vec<u8>>,
    records: Vec<EntryRecord>,
}

/// An entry without the bytes of its name and link target.
#[derive(Clone, Copy, Debug)]
struct EntryRecord {
    size: u64,
    modified: i64,
    links: u64,
    device: u64,
    inode: u64,
    /// Index in [`EntryBuffer::blocks`].
    block: u32,
    /// Offset of the name in its block. The link's target follows the name.
    start: u32,
    /// Permission bits.
    mode: u16,
    /// Length of the name in bytes.
    name_length: u16,
    /// Length of the link's target in bytes; [`NO_TARGET`] for other entries.
    target_length: u16,
    kind: EntryKind,
}

const _: () = assert!(size_of::<EntryRecord>() == 56);

/// [`EntryRecord::target_length`] of an entry without a link target.
const NO_TARGET: u16 = u16::MAX;

/// The fields of an entry that a sort order can compare.
#[derive(Clone, Copy, Debug)]
pub struct SortKey<'g> {
    pub name: &'g [u8],
    pub size: u64,
    pub modified: i64,
}

impl EntryBuffer {
    pub fn new(memory: &ListingMemory) -> Self {
        Self { memory: memory.clone(), reserved: 0, peak: 0, blocks: Vec::new(), records: Vec::new() }
    }

    /// Number of entries.
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// Adds an entry if the memory limit allows it.
    ///
    /// # Errors
    /// The entry, if it would exceed `max_listing_memory`.
    pub fn add(&mut self, entry: Entry) -> Result<(), Entry> {
        let target = entry.link_target.as_deref();
        let length = entry.name.len() + target.map_or(0, <[u8]>::len);
        let lengths = u16::try_from(entry.name.len()).ok().zip(match target {
            None => Some(NO_TARGET),
            // The kernel's limits for names and targets, 255 and 4095 bytes, are far below `u16::MAX`.
            Some(target) => u16::try_from(target.len()).ok().filter(|length| *length != NO_TARGET),
        });
        let Some((name_length, target_length)) = lengths else { return Err(entry) };
        if !(self.reserve_name(length) && self.reserve_record()) {
            return Err(entry);
        }
        // `reserve_name` has ensured that the last block has room. There are at most as many blocks as
        // records.
        let index = self.blocks.len() - 1;
        let block = &mut self.blocks[index];
        debug_assert!(block.capacity() - block.len() >= length, "a block never grows");
        self.records.push(EntryRecord {
            size: entry.size,
            modified: entry.modified,
            links: entry.links,
            device: entry.device,
            inode: entry.inode,
            block: index as u32,
            // A block is at most 2 * 64 KiB long, so the offset fits.
            start: block.len() as u32,
            mode: (entry.mode & 0o7777) as u16,
            name_length,
            target_length,
            kind: entry.kind,
        });
        block.extend_from_slice(&entry.name);
        block.extend_from_slice(entry.link_target.as_deref().unwrap_or_default());
        Ok(())
    }

    /// Ensures room for `length` bytes in the last block. Returns false at the memory limit.
    fn reserve_name(&mut self, length: usize) -> bool {
        if self.blocks.last().is_some_and(|block| block.capacity() - block.len() >= length) {
            return true;
        }
        let doubled = SMALLEST_BLOCK << self.blocks.len().min(DOUBLINGS);
        let capacity = doubled.max(length);
        if !self.reserve(capacity + size_of::<Vec<u8>>()) {
            return false;
        }
        self.blocks.push(Vec::with_capacity(capacity));
        true
    }

    /// Ensures room for one more record. Returns false at the memory limit.
    fn reserve_record(&mut self) -> bool {
        let capacity = self.records.capacity();
        if self.records.len() < capacity {
            return true;
        }
        let grown = capacity + capacity.clamp(MIN_RECORDS, MAX_NEW_RECORDS);
        if !self.reserve(grown * size_of::<EntryRecord>()) {
            return false;
        }
        self.records.reserve_exact(grown - capacity);
        self.release(capacity * size_of::<EntryRecord>());
        true
    }

    fn reserve(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let has_room = self.memory.reserve(bytes);
        if has_room {
            self.reserved += bytes;
            self.peak = self.peak.max(self.reserved);
        }
        has_room
    }

    fn release(&mut self, bytes: usize) {
        self.reserved -= bytes as u64;
        self.memory.release(bytes as u64);
    }

    /// Sorts by `order`, which must not return `Equal` for two different entries, because the sort is
    /// not stable.
    pub fn sort(&mut self, order: impl Fn(SortKey<'_>, SortKey<'_>) -> Ordering) {
        let blocks = &self.blocks;
        self.records.sort_unstable_by(|a, b| order(a.key(blocks), b.key(blocks)));
    }

    /// Iterates over the entries in their order. Each entry is created when the iterator returns it.
    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        self.records.iter().map(|record| Entry {
            name: record.name(&self.blocks).to_vec(),
            kind: record.kind,
            size: record.size,
            modified: record.modified,
            mode: record.mode.into(),
            links: record.links,
            device: record.device,
            inode: record.inode,
            link_target: record.link_target(&self.blocks).map(<[u8]>::to_vec),
        })
    }
}

impl EntryRecord {
    fn key<'n>(&self, blocks: &'n [Vec<u8>]) -> SortKey<'n> {
        SortKey { name: self.name(blocks), size: self.size, modified: self.modified }
    }

    fn name<'n>(&self, blocks: &'n [Vec<u8>]) -> &'n [u8] {
        let start = self.start as usize;
        &blocks[self.block as usize][start..start + usize::from(self.name_length)]
    }

    fn link_target<'n>(&self, blocks: &'n [Vec<u8>]) -> Option<&'n [u8]> {
        let start = self.start as usize + usize::from(self.name_length);
        let length = (self.target_length != NO_TARGET).then_some(usize::from(self.target_length))?;
        Some(&blocks[self.block as usize][start..start + length])
    }
}

impl Drop for EntryBuffer {
    fn drop(&mut self) {
        self.blocks = Vec::new();
        self.records = Vec::new();
        self.memory.release(self.reserved);
        if self.peak >= TRIM_THRESHOLD {
            trim();
        }
    }
}

/// Returns the allocator's free memory to the system. Otherwise the allocator keeps it, in one arena
/// for each thread that has ever sorted a listing.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; any thread may call it at any time (malloc_trim(3): MT-Safe).
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

    proptest! {
        #[test]
        fn stored_entries_are_returned_unchanged_and_sorted(entries in entries()) {
            let memory = ListingMemory::new(u64::MAX);
            let mut buffer = EntryBuffer::new(&memory);
            for entry in &entries {
                prop_assert!(buffer.add(entry.clone()).is_ok());
            }
            prop_assert_eq!(buffer.iter().collect::<Vec<_>>(), entries.clone());
            buffer.sort(|a, b| a.name.cmp(b.name).then(a.size.cmp(&b.size)));
            let mut sorted = entries;
            sorted.sort_by(|a, b| a.name.cmp(&b.name).then(a.size.cmp(&b.size)));
            prop_assert_eq!(buffer.iter().collect::<Vec<_>>(), sorted);
        }

        #[test]
        fn memory_stays_within_the_limit_and_is_released_on_drop(
            entries in entries(),
            limit in 0..60_000u64,
        ) {
            let memory = ListingMemory::new(limit);
            let mut both = [EntryBuffer::new(&memory), EntryBuffer::new(&memory)];
            for (number, entry) in entries.into_iter().enumerate() {
                let buffer = &mut both[number % 2];
                let count = buffer.count();
                match buffer.add(entry.clone()) {
                    Ok(()) => prop_assert_eq!(buffer.count(), count + 1),
                    Err(refused) => prop_assert_eq!(refused, entry),
                }
                let allocated = |buffer: &EntryBuffer| {
                    buffer.blocks.iter().map(Vec::capacity).sum::<usize>()
                        + buffer.records.capacity() * size_of::<EntryRecord>()
                };
                let allocated = both.iter().map(allocated).sum::<usize>() as u64;
                let reserved = memory.0.reserved.load(Relaxed);
                prop_assert!(allocated <= reserved, "{} {}", allocated, reserved);
                prop_assert!(reserved <= limit, "{} {}", reserved, limit);
            }
            drop(both);
            prop_assert_eq!(memory.0.reserved.load(Relaxed), 0);
        }
    }
}

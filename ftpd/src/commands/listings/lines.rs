//! The lines of a listing: their entries, order and format.

use std::{cmp::Ordering, sync::Arc};

use common::policy::{Permission, Permissions};

use crate::{
    access::{AccessRules, DirectoryRules},
    data::CopyError,
    jail::{Entries, FileError, Jail, WalkStep},
    listing::{
        Entry, EntryKind,
        machine::{self, EntryRole},
        names,
        sorted::{EntryBuffer, ListingMemory, SortKey},
        unix,
    },
    metrics,
    protocol::{command::ListOptions, facts::Facts, glob::Pattern, reply::push_line_safe},
    transfer::TransferFailure,
    virtual_path::{InvalidPath, VirtualPath},
    work::progress::Progress,
};

/// The format of a listing's lines.
pub(super) enum ListFormat {
    /// The format of `ls -l`. `now` (Unix seconds) decides between the two date formats.
    Long {
        now: i64,
    },
    /// Names, each after a prefix that makes it a path for RETR.
    Names {
        prefix: Vec<u8>,
    },
    Machine {
        facts: Facts,
    },
}

/// The subject of a listing.
pub(super) enum ListTarget {
    /// The entries of a directory.
    Directory(VirtualPath),
    /// One entry itself.
    Single(VirtualPath),
    /// The entries of a directory whose names match.
    Matching(VirtualPath, Pattern),
}

/// The parameters of a listing.
pub(super) struct Listing {
    pub format: ListFormat,
    pub options: ListOptions,
    /// Maximum depth of `LIST -R`, in directories.
    pub depth: usize,
    /// Maximum number of entries that are sorted.
    pub max_sorted: usize,
    /// Memory that the sorted listings of all sessions share.
    pub memory: ListingMemory,
    pub access: Arc<AccessRules>,
}

/// The permissions that the fact `perm` of an entry shows: for the entry itself, and for a directory also
/// those inside it. Asks the storage only about directories that lead to shared folders.
pub(super) fn permissions_of(
    access: &AccessRules,
    jail: &Jail,
    path: &VirtualPath,
    entry: &Entry,
) -> Permissions {
    if entry.kind == EntryKind::Directory {
        directory_permissions(&access.directory(path), jail, path)
    } else {
        access.at(path)
    }
}

fn directory_permissions(directory: &DirectoryRules<'_>, jail: &Jail, path: &VirtualPath) -> Permissions {
    let mut permissions = directory.perm_fact();
    if path.is_root() || jail.is_fixed(path) {
        permissions = permissions.without(&[Permission::Rename, Permission::Rmdir]);
    }
    if jail.is_synthetic_directory(path) {
        permissions = permissions.without(&[Permission::Upload, Permission::Mkdir, Permission::Delete]);
    }
    permissions
}

/// The consumer of a listing's lines.
struct LineSink<'s> {
    take: &'s mut dyn FnMut(&[u8]) -> Result<(), TransferFailure>,
    /// The current line; its buffer is reused for all lines.
    line: Vec<u8>,
}

impl Listing {
    /// Passes each line of the listing of `target`, with CRLF, to `take` while the directory is read.
    /// Blocks. Ends when `progress` is cancelled, even if no line is written.
    ///
    /// # Errors
    /// Those of `take` and of the storage, and the cancellation.
    pub(super) fn write(
        &self,
        jail: &Jail,
        target: &ListTarget,
        progress: &Progress,
        take: &mut dyn FnMut(&[u8]) -> Result<(), TransferFailure>,
    ) -> Result<(), TransferFailure> {
        let sink = &mut LineSink { take, line: Vec::with_capacity(512) };
        let written = match target {
            ListTarget::Single(path) => self.single(jail, path, sink),
            ListTarget::Directory(path) if self.options.recursive => self.tree(jail, path, progress, sink),
            ListTarget::Directory(path) => self.directory(jail, path, progress, sink),
            ListTarget::Matching(directory, pattern) => {
                let shows_hidden = self.options.all || self.options.almost_all || pattern.asks_for_hidden();
                let is_wanted =
                    |name: &[u8]| (shows_hidden || !name.starts_with(b".")) && pattern.matches(name);
                let listed = ListedDirectory::new(&self.access, jail, directory);
                let entries = jail.entries(directory).map(|entries| entries.only(is_wanted));
                entries.map_err(Into::into).and_then(|entries| self.entries(&listed, entries, progress, sink))
            }
        };
        written.map_err(|error| match error {
            TransferFailure::Storage(FileError::Cancelled) => CopyError::of_cancellation(progress).into(),
            error => error,
        })
    }

    fn single(
        &self,
        jail: &Jail,
        path: &VirtualPath,
        sink: &mut LineSink<'_>,
    ) -> Result<(), TransferFailure> {
        let entry = jail.entry(path)?;
        let permissions = || permissions_of(&self.access, jail, path, &entry);
        self.line(&entry, EntryRole::Member, permissions, sink)
    }

    fn directory(
        &self,
        jail: &Jail,
        path: &VirtualPath,
        progress: &Progress,
        sink: &mut LineSink<'_>,
    ) -> Result<(), TransferFailure> {
        if self.options.all {
            self.dots(jail, path, sink)?;
        }
        self.entries(&ListedDirectory::new(&self.access, jail, path), jail.entries(path)?, progress, sink)
    }

    /// `.`, and `..` if the user may enter it.
    fn dots(&self, jail: &Jail, path: &VirtualPath, sink: &mut LineSink<'_>) -> Result<(), TransferFailure> {
        let dots = [(&b"."[..], path.clone(), EntryRole::Listed), (b"..", path.parent(), EntryRole::Parent)];
        for (name, path, role) in dots {
            let directory = self.access.directory(&path);
            if directory.is_enterable() {
                // The directory itself, even if a symbolic link leads to it.
                let entry = Entry { name: name.to_vec(), ..jail.resolved_entry(&path)? };
                self.line(&entry, role, || directory_permissions(&directory, jail, &path), sink)?;
            }
        }
        Ok(())
    }

    /// The entries that the user may see, in the order of the directory. With an option for another order,
    /// the first entries are sorted, as many as `max_sorted_entries` and `max_listing_memory` allow.
    fn entries<'j>(
        &self,
        listed: &ListedDirectory<'j>,
        entries: Entries<'j>,
        progress: &'j Progress,
        sink: &mut LineSink<'_>,
    ) -> Result<(), TransferFailure> {
        let entries = entries.until_cancelled(progress);
        let mut entries = entries.filter(|entry| entry.as_ref().map_or(true, |entry| listed.shows(entry)));
        if self.options.by_time || self.options.by_size || self.options.reverse {
            let (mut gathered, left_over) = self.gather(&mut entries)?;
            gathered.sort(|a, b| self.order(a, b));
            for entry in gathered.iter().chain(left_over) {
                self.line(&entry, EntryRole::Member, || listed.permissions(&entry), sink)?;
            }
        }
        for entry in entries {
            let entry = entry?;
            self.line(&entry, EntryRole::Member, || listed.permissions(&entry), sink)?;
        }
        Ok(())
    }

    /// The entries to sort, and the first entry that did not fit into the memory.
    fn gather(
        &self,
        entries: &mut impl Iterator<Item = Result<Entry, FileError>>,
    ) -> Result<(EntryBuffer, Option<Entry>), FileError> {
        let mut gathered = EntryBuffer::new(&self.memory);
        while gathered.count() < self.max_sorted
            && let Some(entry) = entries.next()
        {
            if let Err(entry) = gathered.add(entry?) {
                metrics::limit_reached("max_listing_memory");
                return Ok((gathered, Some(entry)));
            }
        }
        Ok((gathered, None))
    }

    fn order(&self, a: SortKey<'_>, b: SortKey<'_>) -> Ordering {
        let order = match (self.options.by_time, self.options.by_size) {
            (true, _) => b.modified.cmp(&a.modified),
            (_, true) => b.size.cmp(&a.size),
            _ => Ordering::Equal,
        };
        let order = order.then_with(|| a.name.cmp(b.name));
        if self.options.reverse { order.reverse() } else { order }
    }

    fn line(
        &self,
        entry: &Entry,
        role: EntryRole,
        permissions: impl FnOnce() -> Permissions,
        sink: &mut LineSink<'_>,
    ) -> Result<(), TransferFailure> {
        let LineSink { take, line } = sink;
        line.clear();
        let classify = self.options.classify;
        match &self.format {
            ListFormat::Long { now } => unix::line(entry, *now, classify, line),
            ListFormat::Names { prefix } => names::line(prefix, entry, classify, line),
            ListFormat::Machine { facts } => machine::line(*facts, entry, role, &permissions(), line),
        }
        take(line)
    }

    /// `ls -R`: each directory has a heading; NLST has paths instead. A directory that the user may not list
    /// appears only as an entry.
    fn tree(
        &self,
        jail: &Jail,
        top: &VirtualPath,
        progress: &Progress,
        sink: &mut LineSink<'_>,
    ) -> Result<(), TransferFailure> {
        let mut below = Vec::new();
        let mut is_first = true;
        let mut listed = ListedDirectory::new(&self.access, jail, top);
        for step in jail.walk(top, self.depth, progress, |path| self.access.at(path).has(Permission::List))? {
            match (step?, &self.format) {
                (WalkStep::Directory(path), format) => {
                    listed = ListedDirectory::new(&self.access, jail, &path);
                    let path = path.as_bytes();
                    below = path[if top.is_root() { 0 } else { top.as_bytes().len() }..].to_vec();
                    if below == b"/" {
                        below.clear();
                    }
                    if matches!(format, ListFormat::Long { .. }) {
                        let mut heading = if is_first { Vec::new() } else { b"\r\n".to_vec() };
                        heading.push(b'.');
                        push_line_safe(&below, &mut heading);
                        heading.extend_from_slice(b":\r\n");
                        (sink.take)(&heading)?;
                    }
                    is_first = false;
                }
                (WalkStep::Entry(entry), _) if !listed.shows(&entry) => {}
                (WalkStep::Entry(entry), ListFormat::Names { prefix }) => {
                    let mut path = prefix.clone();
                    if let [b'/', below @ ..] = &below[..] {
                        path.extend_from_slice(below);
                        path.push(b'/');
                    }
                    let mut line = Vec::new();
                    names::line(&path, &entry, self.options.classify, &mut line);
                    (sink.take)(&line)?;
                }
                (WalkStep::Entry(entry), _) => {
                    self.line(&entry, EntryRole::Member, || listed.permissions(&entry), sink)?;
                }
            }
        }
        Ok(())
    }
}

/// A directory whose entries are listed, with the permissions for them.
struct ListedDirectory<'l> {
    access: &'l AccessRules,
    directory: DirectoryRules<'l>,
    jail: &'l Jail,
    path: VirtualPath,
}

impl<'l> ListedDirectory<'l> {
    fn new(access: &'l AccessRules, jail: &'l Jail, path: &VirtualPath) -> Self {
        Self { access, directory: access.directory(path), jail, path: path.clone() }
    }

    /// Returns true if the user sees the entry: a directory that the user may list or enter, or another
    /// entry that the user may list.
    fn shows(&self, entry: &Entry) -> bool {
        !self.access.has_rules()
            || self.directory.at(&entry.name).has(Permission::List)
            || entry.kind == EntryKind::Directory && self.directory.below(&entry.name).is_enterable()
    }

    fn permissions(&self, entry: &Entry) -> Permissions {
        if entry.kind != EntryKind::Directory {
            return self.directory.at(&entry.name);
        }
        let directory = self.directory.below(&entry.name);
        match self.path.join(&entry.name) {
            Ok(path) => directory_permissions(&directory, self.jail, &path),
            // A name that is not valid in a path cannot be a shared folder.
            Err(InvalidPath) => directory.perm_fact(),
        }
    }
}

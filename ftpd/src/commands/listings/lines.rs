//! The lines of a listing: which entries, in which order, in which form.

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

/// How entries are written.
pub enum Form {
    /// As `ls -l`; `now` in Unix seconds decides how dates look.
    Long {
        now: i64,
    },
    /// Names after a prefix that makes them paths for RETR.
    Names {
        prefix: Vec<u8>,
    },
    Machine {
        facts: Facts,
    },
}

/// What is listed.
pub enum Target {
    /// What is in a directory.
    Directory(VirtualPath),
    /// One name itself.
    Single(VirtualPath),
    /// The names in a directory that match.
    Matching(VirtualPath, Pattern),
}

/// How a listing is made.
pub struct Listing {
    pub form: Form,
    pub options: ListOptions,
    /// Levels of directories of `LIST -R`.
    pub depth: usize,
    /// Entries that are sorted.
    pub most_sorted: usize,
    /// What sorted listings of all sessions may take together.
    pub memory: ListingMemory,
    pub access: Arc<AccessRules>,
}

/// What the fact `perm` of an entry tells: what may be done with it, and of a directory, what may be
/// done in it. Asks the storage only about directories that lead to folders.
pub fn permissions_of(access: &AccessRules, jail: &Jail, path: &VirtualPath, entry: &Entry) -> Permissions {
    if entry.kind == EntryKind::Directory {
        directory_permissions(&access.directory(path), jail, path)
    } else {
        access.at(path)
    }
}

fn directory_permissions(directory: &DirectoryRules<'_>, jail: &Jail, path: &VirtualPath) -> Permissions {
    let mut permissions = directory.facts();
    if path.is_root() || jail.is_fixed(path) {
        permissions = permissions.without(&[Permission::Rename, Permission::Rmdir]);
    }
    if jail.is_synthetic_directory(path) {
        permissions = permissions.without(&[Permission::Upload, Permission::Mkdir, Permission::Delete]);
    }
    permissions
}

/// Where lines go.
struct Sink<'s> {
    take: &'s mut dyn FnMut(&[u8]) -> Result<(), TransferFailure>,
    /// The line that is being made: one piece of memory for all of them.
    line: Vec<u8>,
}

impl Listing {
    /// Hands every line of the listing of `target` with its CRLF to `take`, as the directory is read. Blocks. Ends when `progress` is
    /// cancelled, also while nothing is written.
    ///
    /// # Errors
    /// Those of `take` and of the storage, and the cancellation.
    pub fn write(
        &self,
        jail: &Jail,
        target: &Target,
        progress: &Progress,
        take: &mut dyn FnMut(&[u8]) -> Result<(), TransferFailure>,
    ) -> Result<(), TransferFailure> {
        let sink = &mut Sink { take, line: Vec::with_capacity(512) };
        let written = match target {
            Target::Single(path) => self.single(jail, path, sink),
            Target::Directory(path) if self.options.recursive => self.tree(jail, path, progress, sink),
            Target::Directory(path) => self.directory(jail, path, progress, sink),
            Target::Matching(directory, pattern) => {
                let shows_hidden = self.options.all || self.options.almost_all || pattern.asks_for_hidden();
                let is_wanted =
                    |name: &[u8]| (shows_hidden || !name.starts_with(b".")) && pattern.matches(name);
                let place = Place::new(&self.access, jail, directory);
                let entries = jail.entries(directory).map(|entries| entries.only(is_wanted));
                entries.map_err(Into::into).and_then(|entries| self.entries(&place, entries, progress, sink))
            }
        };
        written.map_err(|error| match error {
            TransferFailure::Storage(FileError::Cancelled) => CopyError::of_cancellation(progress).into(),
            error => error,
        })
    }

    fn single(&self, jail: &Jail, path: &VirtualPath, sink: &mut Sink<'_>) -> Result<(), TransferFailure> {
        let entry = jail.entry(path)?;
        let permissions = || permissions_of(&self.access, jail, path, &entry);
        self.line(&entry, EntryRole::Member, permissions, sink)
    }

    fn directory(
        &self,
        jail: &Jail,
        path: &VirtualPath,
        progress: &Progress,
        sink: &mut Sink<'_>,
    ) -> Result<(), TransferFailure> {
        if self.options.all {
            self.dots(jail, path, sink)?;
        }
        self.entries(&Place::new(&self.access, jail, path), jail.entries(path)?, progress, sink)
    }

    /// `.`, and `..` where the user may go there.
    fn dots(&self, jail: &Jail, path: &VirtualPath, sink: &mut Sink<'_>) -> Result<(), TransferFailure> {
        let dots = [(&b"."[..], path.clone(), EntryRole::Listed), (b"..", path.parent(), EntryRole::Parent)];
        for (name, path, role) in dots {
            let directory = self.access.directory(&path);
            if directory.is_enterable() {
                // The directory itself, also where a link has led there.
                let entry = Entry { name: name.to_vec(), ..jail.resolved_entry(&path)? };
                self.line(&entry, role, || directory_permissions(&directory, jail, &path), sink)?;
            }
        }
        Ok(())
    }

    /// The entries that the user may see, in the order of the directory. If another order was asked for, the
    /// first entries are sorted: as many as `max_sorted_entries` and `max_listing_memory` allow.
    fn entries<'j>(
        &self,
        place: &Place<'j>,
        entries: Entries<'j>,
        progress: &'j Progress,
        sink: &mut Sink<'_>,
    ) -> Result<(), TransferFailure> {
        let entries = entries.until_cancelled(progress);
        let mut entries = entries.filter(|entry| entry.as_ref().map_or(true, |entry| place.shows(entry)));
        if self.options.by_time || self.options.by_size || self.options.reverse {
            let (mut gathered, left_over) = self.gather(&mut entries)?;
            gathered.sort(|a, b| self.order(a, b));
            for entry in gathered.iter().chain(left_over) {
                self.line(&entry, EntryRole::Member, || place.permissions(&entry), sink)?;
            }
        }
        for entry in entries {
            let entry = entry?;
            self.line(&entry, EntryRole::Member, || place.permissions(&entry), sink)?;
        }
        Ok(())
    }

    /// The entries that are to be sorted, and the first entry for which there was no memory.
    fn gather(
        &self,
        entries: &mut impl Iterator<Item = Result<Entry, FileError>>,
    ) -> Result<(EntryBuffer, Option<Entry>), FileError> {
        let mut gathered = EntryBuffer::new(&self.memory);
        while gathered.count() < self.most_sorted
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
        sink: &mut Sink<'_>,
    ) -> Result<(), TransferFailure> {
        let Sink { take, line } = sink;
        line.clear();
        let classify = self.options.classify;
        match &self.form {
            Form::Long { now } => unix::line(entry, *now, classify, line),
            Form::Names { prefix } => names::line(prefix, entry, classify, line),
            Form::Machine { facts } => machine::line(*facts, entry, role, &permissions(), line),
        }
        take(line)
    }

    /// `ls -R`: each directory with a heading; of NLST, paths without headings. Directories that the
    /// user may not list are entries, and nothing more.
    fn tree(
        &self,
        jail: &Jail,
        top: &VirtualPath,
        progress: &Progress,
        sink: &mut Sink<'_>,
    ) -> Result<(), TransferFailure> {
        let mut below = Vec::new();
        let mut is_first = true;
        let mut place = Place::new(&self.access, jail, top);
        for step in jail.walk(top, self.depth, progress, |path| self.access.at(path).has(Permission::List))? {
            match (step?, &self.form) {
                (WalkStep::Directory(path), form) => {
                    place = Place::new(&self.access, jail, &path);
                    let path = path.as_bytes();
                    below = path[if top.is_root() { 0 } else { top.as_bytes().len() }..].to_vec();
                    if below == b"/" {
                        below.clear();
                    }
                    if matches!(form, Form::Long { .. }) {
                        let mut heading = if is_first { Vec::new() } else { b"\r\n".to_vec() };
                        heading.push(b'.');
                        push_line_safe(&below, &mut heading);
                        heading.extend_from_slice(b":\r\n");
                        (sink.take)(&heading)?;
                    }
                    is_first = false;
                }
                (WalkStep::Entry(entry), _) if !place.shows(&entry) => {}
                (WalkStep::Entry(entry), Form::Names { prefix }) => {
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
                    self.line(&entry, EntryRole::Member, || place.permissions(&entry), sink)?;
                }
            }
        }
        Ok(())
    }
}

/// A directory whose entries are listed, with what the user may do with them.
struct Place<'l> {
    access: &'l AccessRules,
    directory: DirectoryRules<'l>,
    jail: &'l Jail,
    path: VirtualPath,
}

impl<'l> Place<'l> {
    fn new(access: &'l AccessRules, jail: &'l Jail, path: &VirtualPath) -> Self {
        Self { access, directory: access.directory(path), jail, path: path.clone() }
    }

    /// A directory is shown to those who may list it or go there, anything else to those who may
    /// list it.
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
            // No folder has a name that no client can say.
            Err(InvalidPath) => directory.facts(),
        }
    }
}

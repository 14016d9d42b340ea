//! LIST, NLST, STAT with a path (RFC 959 section 4.1.3), MLSD, MLST (RFC 3659 section 7).

use std::{
    cmp::Ordering,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use common::auth_api::Permissions;

use super::transfers::{Direction, Transfer, Work, run_in_background, start, take_port};
use crate::{
    activity::Watch,
    access::{Access, Directory},
    data::transfer::{ListingWriter, TransferError},
    jail::{
        FileError, Jail, Walked,
        path::{InvalidPath, VirtualPath},
    },
    listing::{
        Entry, Kind,
        machine::{self, Facts, Role},
        names, push_line_safe, unix,
    },
    protocol::{
        Code, Reply,
        command::{ListArguments, ListOptions},
        glob::{self, Pattern},
        reply::Text,
    },
    session::{LoggedIn, Outcome},
};

/// How entries are written.
enum Form {
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
enum Target {
    /// What is in a directory.
    Directory(VirtualPath),
    /// One name itself.
    Single(VirtualPath),
    /// The names in a directory that match.
    Matching(VirtualPath, Pattern),
}

/// A listing that is ready to be written.
struct Listing {
    target: Target,
    form: Form,
    options: ListOptions,
    depth: usize,
    most_sorted: usize,
    access: Arc<Access>,
}

/// LIST.
pub async fn list(
    session: &mut LoggedIn,
    verb: &'static str,
    arguments: ListArguments,
) -> Result<Outcome, Reply> {
    let argument = arguments.path.unwrap_or_default();
    let form = Form::Long { now: now() };
    send(session, verb, &argument, form, arguments.options).await
}

/// NLST; with `-l` it is LIST.
pub async fn nlst(
    session: &mut LoggedIn,
    verb: &'static str,
    arguments: ListArguments,
) -> Result<Outcome, Reply> {
    let argument = arguments.path.unwrap_or_default();
    let form = match arguments.options.long {
        true => Form::Long { now: now() },
        false => Form::Names { prefix: Vec::new() },
    };
    send(session, verb, &argument, form, arguments.options).await
}

/// MLSD: a directory only (RFC 3659 section 7.2.1).
pub async fn mlsd(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: Option<&[u8]>,
) -> Result<Outcome, Reply> {
    let argument = argument.unwrap_or_default();
    let path = session.path(argument)?;
    session.allow(|may| may.list, &path)?;
    let checked = path.clone();
    if session.in_home(move |jail| jail.resolved_entry(&checked)).await?.kind != Kind::Directory {
        return Err(Reply::new(Code::BAD_ARGUMENTS, "MLSD is for directories; MLST is for files"));
    }
    let form = Form::Machine { facts: session.facts };
    // The facts of `.` and `..` are part of the listing, as cdir and pdir.
    let options = ListOptions { all: true, ..ListOptions::default() };
    let listing = listing(session, Target::Directory(path.clone()), form, options);
    send_listing(session, verb, path, listing)
}

/// MLST: the facts of one path, over the control connection. Those of a symbolic link are its own.
pub async fn mlst(session: &LoggedIn, argument: Option<&[u8]>) -> Result<Reply, Reply> {
    let path = session.path(argument.unwrap_or_default())?;
    session.allow(|may| may.list, &path)?;
    let (named, access) = (path.clone(), Arc::clone(&session.access));
    let shown = session.in_home(move |jail| {
        let entry = jail.entry(&named)?;
        let permissions = permissions_of(&access, jail, &named, &entry);
        Ok((entry, permissions))
    });
    let (entry, permissions) = shown.await?;
    let mut line = Vec::new();
    machine::facts(session.facts, &entry, Role::Member, path.as_bytes(), &permissions, &mut line);
    Ok(Reply::lines(Code::DONE, "Facts:", vec![line.into()], "End"))
}

/// STAT with a path: LIST over the control connection, up to a limit. Runs in the background, because a
/// directory can have any number of entries: ABOR and the client's end end it.
pub fn stat(session: &LoggedIn, verb: &'static str, arguments: ListArguments) -> Result<Outcome, Reply> {
    let path = session.path(&arguments.path.unwrap_or_default())?;
    let options = ListOptions { recursive: false, ..arguments.options };
    let most = session.node.storage.stat_entries;
    let (depth, most_sorted) = (session.node.storage.list_depth, session.node.storage.sorted_entries);
    let meant = Meaning::new(session, path)?;
    let access = Arc::clone(&session.access);
    let (jail, subject) = (Arc::clone(&session.jail), Arc::clone(&session.subject));
    let watch = Watch::new(verb);
    let progress = Arc::clone(&watch.progress);
    Ok(run_in_background(session, watch, move || {
        let target = match meant.resolve(&jail, options) {
            Ok(target) => target,
            Err(error) => return subject.refuse(&error),
        };
        let form = Form::Long { now: now() };
        let listing = Listing { target, form, options, depth, most_sorted, access };
        let mut lines: Vec<Text> = Vec::new();
        let end = listing.write(&jail, &mut |line| {
            if progress.is_cancelled() {
                return Err(TransferError::Cancelled);
            }
            if lines.len() == most {
                lines.push("There is more; LIST shows it.".into());
                return Err(TransferError::Cancelled);
            }
            lines.push(line.strip_suffix(b"\r\n").unwrap_or(line).to_vec().into());
            Ok(())
        });
        match end {
            Err(TransferError::File(error)) => subject.refuse(&error),
            _ if progress.is_cancelled() => subject.refuse(&FileError::Cancelled),
            // The list is full: the lines went to memory, where nothing else can fail.
            Ok(()) | Err(_) => Reply::lines(Code::FILE_STATUS, "Status:", lines, "End of status"),
        }
    }))
}

/// LIST and NLST: finds out what the argument means, then starts.
async fn send(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
    form: Form,
    options: ListOptions,
) -> Result<Outcome, Reply> {
    let path = session.path(argument)?;
    let meant = Meaning::new(session, path.clone())?;
    let target = session.in_home(move |jail| meant.resolve(jail, options)).await?;
    let form = match form {
        Form::Names { .. } => Form::Names { prefix: prefix(argument, &target) },
        form => form,
    };
    let listing = listing(session, target, form, options);
    send_listing(session, verb, path, listing)
}

fn listing(session: &LoggedIn, target: Target, form: Form, options: ListOptions) -> Listing {
    let storage = &session.node.storage;
    let access = Arc::clone(&session.access);
    Listing { target, form, options, depth: storage.list_depth, most_sorted: storage.sorted_entries, access }
}

fn send_listing(
    session: &mut LoggedIn,
    verb: &'static str,
    path: VirtualPath,
    listing: Listing,
) -> Result<Outcome, Reply> {
    let port = take_port(session)?;
    // An offset was meant for a file; after a listing it is void.
    session.offset = 0;
    let jail = Arc::clone(&session.jail);
    let work = Work::on_thread(&session.node, move |stream, progress| {
        let mut writer = ListingWriter::new(&mut *stream, progress);
        listing.write(&jail, &mut |line| writer.write(line))?;
        writer.finish()?;
        Ok(stream.finish(progress)?)
    });
    let transfer = Transfer { verb, direction: Direction::Listing, path, work };
    let opening = Reply::new(Code::OPENING_DATA_CONNECTION, "Opening data connection for directory list");
    Ok(start(session, port, transfer, opening))
}

/// What an argument of LIST can mean to this user: a path, or the names in a directory that match.
struct Meaning {
    /// If the user may list it.
    path: Option<VirtualPath>,
    /// If there are wildcards, and the user may list their directory.
    pattern: Option<(VirtualPath, Pattern)>,
}

impl Meaning {
    /// # Errors
    /// The user may list neither.
    fn new(session: &LoggedIn, path: VirtualPath) -> Result<Self, Reply> {
        let may_list = |path: &VirtualPath| session.access.at(path).list;
        let pattern = match path.split() {
            Some((directory, name)) if glob::has_wildcards(name) && may_list(&directory) => {
                Some((directory, Pattern::parse(name)))
            }
            _ => None,
        };
        match (may_list(&path), pattern) {
            (false, None) => Err(Reply::permission_denied()),
            (may_list, pattern) => Ok(Self { path: may_list.then_some(path), pattern }),
        }
    }

    /// A symbolic link to a directory means the directory, as in vsftpd and Pure-FTPd: the client has
    /// named it. Any other link means itself.
    fn resolve(self, jail: &Jail, options: ListOptions) -> Result<Target, FileError> {
        let entry = self.path.as_ref().map_or(Err(FileError::NotFound), |path| jail.resolved_entry(path));
        let (entry, path) = match (entry, self.path, self.pattern) {
            // A name that is there is meant, whatever characters it has.
            (Ok(entry), Some(path), _) => (entry, path),
            (Err(FileError::NotFound), _, Some((directory, pattern))) => {
                jail.check_directory(&directory)?;
                return Ok(Target::Matching(directory, pattern));
            }
            (entry, ..) => return Err(entry.err().unwrap_or(FileError::NotFound)),
        };
        if entry.kind == Kind::Directory && !options.directory {
            jail.check_directory(&path)?;
            return Ok(Target::Directory(path));
        }
        Ok(Target::Single(path))
    }
}

/// What the fact `perm` of an entry tells: what may be done with it, and of a directory, what may be
/// done in it. Asks the storage only about directories that lead to folders.
fn permissions_of(access: &Access, jail: &Jail, path: &VirtualPath, entry: &Entry) -> Permissions {
    if entry.kind == Kind::Directory {
        directory_permissions(&access.directory(path), jail, path)
    } else {
        access.at(path)
    }
}

fn directory_permissions(directory: &Directory<'_>, jail: &Jail, path: &VirtualPath) -> Permissions {
    let mut permissions = directory.facts();
    if path.is_root() || jail.is_fixed(path) {
        permissions.rename = false;
        permissions.rmdir = false;
    }
    if jail.is_only_a_way(path) {
        permissions.upload = false;
        permissions.mkdir = false;
        permissions.delete = false;
    }
    permissions
}

/// What makes names of NLST paths that RETR takes (RFC 1123 section 4.1.2.7): the argument, as far
/// as it is a directory.
fn prefix(argument: &[u8], target: &Target) -> Vec<u8> {
    match target {
        Target::Directory(_) if matches!(argument, b"" | b"." | b"./") => Vec::new(),
        Target::Directory(_) => {
            let mut prefix = argument.to_vec();
            if !prefix.ends_with(b"/") {
                prefix.push(b'/');
            }
            prefix
        }
        Target::Single(_) | Target::Matching(..) => {
            let end = argument.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
            argument[..end].to_vec()
        }
    }
}

fn now() -> i64 {
    // A clock before 1970 is nobody's.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}

/// Where lines go.
struct Sink<'s> {
    take: &'s mut dyn FnMut(&[u8]) -> Result<(), TransferError>,
    /// The line that is being made: one piece of memory for all of them.
    line: Vec<u8>,
}

impl Listing {
    /// Hands every line with its CRLF to `take`, as the directory is read. Blocks.
    fn write(
        &self,
        jail: &Jail,
        take: &mut dyn FnMut(&[u8]) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        let sink = &mut Sink { take, line: Vec::with_capacity(512) };
        match &self.target {
            Target::Single(path) => {
                let entry = jail.entry(path)?;
                let permissions = || permissions_of(&self.access, jail, path, &entry);
                self.line(&entry, Role::Member, permissions, sink)
            }
            Target::Directory(path) if self.options.recursive => self.tree(jail, path, sink),
            Target::Directory(path) => {
                if self.options.all {
                    self.dots(jail, path, sink)?;
                }
                self.entries(&Place::new(&self.access, jail, path), jail.entries(path)?, sink)
            }
            Target::Matching(directory, pattern) => {
                let entries = jail.entries(directory)?;
                let shows_hidden = self.options.all || self.options.almost_all || pattern.asks_for_hidden();
                let matching = entries.filter(|entry| match entry {
                    Ok(entry) => {
                        (shows_hidden || !entry.name.starts_with(b".")) && pattern.matches(&entry.name)
                    }
                    Err(_) => true,
                });
                self.entries(&Place::new(&self.access, jail, directory), matching, sink)
            }
        }
    }

    /// `.`, and `..` where the user may go there.
    fn dots(&self, jail: &Jail, path: &VirtualPath, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        let dots = [(&b"."[..], path.clone(), Role::Listed), (b"..", path.parent(), Role::Parent)];
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

    /// Those that the user may see, in the order of the directory, unless one was asked for and the
    /// entries fit in memory.
    fn entries(
        &self,
        place: &Place<'_>,
        entries: impl Iterator<Item = Result<Entry, FileError>>,
        sink: &mut Sink<'_>,
    ) -> Result<(), TransferError> {
        let mut entries = entries.filter(|entry| entry.as_ref().map_or(true, |entry| place.shows(entry)));
        if self.options.by_time || self.options.by_size || self.options.reverse {
            let mut sorted = entries.by_ref().take(self.most_sorted).collect::<Result<Vec<_>, _>>()?;
            sorted.sort_by(|a, b| self.order(a, b));
            for entry in &sorted {
                self.line(entry, Role::Member, || place.permissions(entry), sink)?;
            }
        }
        for entry in entries {
            let entry = entry?;
            self.line(&entry, Role::Member, || place.permissions(&entry), sink)?;
        }
        Ok(())
    }

    fn order(&self, a: &Entry, b: &Entry) -> Ordering {
        let order = match (self.options.by_time, self.options.by_size) {
            (true, _) => b.modified.cmp(&a.modified),
            (_, true) => b.size.cmp(&a.size),
            _ => Ordering::Equal,
        };
        let order = order.then_with(|| a.name.cmp(&b.name));
        if self.options.reverse { order.reverse() } else { order }
    }

    fn line(
        &self,
        entry: &Entry,
        role: Role,
        permissions: impl FnOnce() -> Permissions,
        sink: &mut Sink<'_>,
    ) -> Result<(), TransferError> {
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
    fn tree(&self, jail: &Jail, top: &VirtualPath, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        let mut below = Vec::new();
        let mut is_first = true;
        let mut place = Place::new(&self.access, jail, top);
        for step in jail.walk(top, self.depth, |path| self.access.at(path).list)? {
            match (step?, &self.form) {
                (Walked::Directory(path), form) => {
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
                (Walked::Entry(entry), _) if !place.shows(&entry) => {}
                (Walked::Entry(entry), Form::Names { prefix }) => {
                    let mut path = prefix.clone();
                    if let [b'/', below @ ..] = &below[..] {
                        path.extend_from_slice(below);
                        path.push(b'/');
                    }
                    let mut line = Vec::new();
                    names::line(&path, &entry, self.options.classify, &mut line);
                    (sink.take)(&line)?;
                }
                (Walked::Entry(entry), _) => {
                    self.line(&entry, Role::Member, || place.permissions(&entry), sink)?;
                }
            }
        }
        Ok(())
    }
}

/// A directory whose entries are listed, with what the user may do with them.
struct Place<'l> {
    access: &'l Access,
    directory: Directory<'l>,
    jail: &'l Jail,
    path: VirtualPath,
}

impl<'l> Place<'l> {
    fn new(access: &'l Access, jail: &'l Jail, path: &VirtualPath) -> Self {
        Self { access, directory: access.directory(path), jail, path: path.clone() }
    }

    /// A directory is shown to those who may list it or go there, anything else to those who may
    /// list it.
    fn shows(&self, entry: &Entry) -> bool {
        !self.access.has_rules()
            || self.directory.at(&entry.name).list
            || entry.kind == Kind::Directory && self.directory.below(&entry.name).is_enterable()
    }

    fn permissions(&self, entry: &Entry) -> Permissions {
        if entry.kind != Kind::Directory {
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

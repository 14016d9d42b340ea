//! LIST, NLST, STAT with a path (RFC 959 section 4.1.3), MLSD, MLST (RFC 3659 section 7).

use std::{
    cmp::Ordering,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use common::auth_api::Permissions;

use super::transfers::{Direction, Transfer, Work, start, take_port};
use crate::{
    data::transfer::{ListingWriter, TransferError},
    jail::{FileError, Jail, Walked, path::VirtualPath},
    listing::{
        Entry, Kind,
        machine::{self, Facts, Role},
        names, unix,
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
        permissions: Permissions,
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
    session.allow(|may| may.list)?;
    let checked = path.clone();
    if session.in_home(move |jail| jail.entry(&checked)).await?.kind != Kind::Directory {
        return Err(Reply::new(Code::BAD_ARGUMENTS, "MLSD is for directories; MLST is for files"));
    }
    let form = Form::Machine { facts: session.facts, permissions: session.account.permissions };
    // The facts of `.` and `..` are part of the listing, as cdir and pdir.
    let options = ListOptions { all: true, ..ListOptions::default() };
    let listing = listing(session, Target::Directory(path.clone()), form, options);
    send_listing(session, verb, path, listing)
}

/// MLST: the facts of one path, over the control connection.
pub async fn mlst(session: &LoggedIn, argument: Option<&[u8]>) -> Result<Reply, Reply> {
    session.allow(|may| may.list)?;
    let path = session.path(argument.unwrap_or_default())?;
    let named = path.clone();
    let entry = session.in_home(move |jail| jail.entry(&named)).await?;
    let mut line = Vec::new();
    let permissions = &session.account.permissions;
    machine::facts(session.facts, &entry, Role::Member, path.as_bytes(), permissions, &mut line);
    Ok(Reply::lines(Code::DONE, "Facts:", vec![line.into()], "End"))
}

/// STAT with a path: LIST over the control connection, up to a limit.
pub async fn stat(session: &LoggedIn, arguments: ListArguments) -> Result<Reply, Reply> {
    session.allow(|may| may.list)?;
    let path = session.path(&arguments.path.unwrap_or_default())?;
    let options = ListOptions { recursive: false, ..arguments.options };
    let most = session.node.storage.stat_entries;
    let (depth, most_sorted) = (session.node.storage.list_depth, session.node.storage.sorted_entries);
    let lines = session
        .in_home(move |jail| {
            let target = resolve(jail, &path, options)?;
            let listing = Listing { target, form: Form::Long { now: now() }, options, depth, most_sorted };
            let mut lines: Vec<Text> = Vec::new();
            let end = listing.write(jail, &mut |line| {
                if lines.len() == most {
                    lines.push("There is more; LIST shows it.".into());
                    return Err(TransferError::Cancelled);
                }
                lines.push(line.strip_suffix(b"\r\n").unwrap_or(line).to_vec().into());
                Ok(())
            });
            match end {
                Ok(()) | Err(TransferError::Cancelled) => Ok(lines),
                Err(TransferError::File(error)) => Err(error),
                // The lines went to memory.
                Err(TransferError::Stalled | TransferError::ConnectionLost(_)) => Ok(lines),
            }
        })
        .await?;
    Ok(Reply::lines(Code::FILE_STATUS, "Status:", lines, "End of status"))
}

/// LIST and NLST: finds out what the argument means, then starts.
async fn send(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
    form: Form,
    options: ListOptions,
) -> Result<Outcome, Reply> {
    session.allow(|may| may.list)?;
    let path = session.path(argument)?;
    let resolved = path.clone();
    let target = session.in_home(move |jail| resolve(jail, &resolved, options)).await?;
    let form = match form {
        Form::Names { .. } => Form::Names { prefix: prefix(argument, &target) },
        form => form,
    };
    let listing = listing(session, target, form, options);
    send_listing(session, verb, path, listing)
}

fn listing(session: &LoggedIn, target: Target, form: Form, options: ListOptions) -> Listing {
    let storage = &session.node.storage;
    Listing { target, form, options, depth: storage.list_depth, most_sorted: storage.sorted_entries }
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
    let work: Work = Box::new(move |stream, progress| {
        let mut writer = ListingWriter::new(&mut *stream, progress);
        listing.write(&jail, &mut |line| writer.write(line))?;
        writer.finish()?;
        Ok(stream.finish(progress)?)
    });
    let transfer = Transfer { verb, direction: Direction::Listing, path, work };
    let opening = Reply::new(Code::OPENING_DATA_CONNECTION, "Opening data connection for directory list");
    Ok(start(session, port, transfer, opening))
}

fn resolve(jail: &Jail, path: &VirtualPath, options: ListOptions) -> Result<Target, FileError> {
    let entry = match (jail.entry(path), path.split()) {
        // A name that is there is meant, whatever characters it has.
        (Err(FileError::NotFound), Some((directory, name))) if glob::has_wildcards(name) => {
            jail.check_directory(&directory)?;
            return Ok(Target::Matching(directory, Pattern::parse(name)));
        }
        (entry, _) => entry?,
    };
    if entry.kind == Kind::Directory && !options.directory {
        jail.check_directory(path)?;
        return Ok(Target::Directory(path.clone()));
    }
    Ok(Target::Single(path.clone()))
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
            Target::Single(path) => self.entry(&jail.entry(path)?, Role::Member, sink),
            Target::Directory(path) if self.options.recursive => self.tree(jail, path, sink),
            Target::Directory(path) => {
                if self.options.all {
                    let dots =
                        [(&b"."[..], path.clone(), Role::Listed), (b"..", path.parent(), Role::Parent)];
                    for (name, path, role) in dots {
                        let entry = Entry { name: name.to_vec(), ..jail.entry(&path)? };
                        self.entry(&entry, role, sink)?;
                    }
                }
                self.entries(jail.entries(path)?, sink)
            }
            Target::Matching(directory, pattern) => {
                let entries = jail.entries(directory)?;
                let matching = entries.filter(|entry| match entry {
                    Ok(entry) => pattern.matches(&entry.name),
                    Err(_) => true,
                });
                self.entries(matching, sink)
            }
        }
    }

    /// In the order of the directory, unless one was asked for and the entries fit in memory.
    fn entries(
        &self,
        mut entries: impl Iterator<Item = Result<Entry, FileError>>,
        sink: &mut Sink<'_>,
    ) -> Result<(), TransferError> {
        if self.options.by_time || self.options.by_size || self.options.reverse {
            let mut sorted = entries.by_ref().take(self.most_sorted).collect::<Result<Vec<_>, _>>()?;
            sorted.sort_by(|a, b| self.order(a, b));
            for entry in &sorted {
                self.entry(entry, Role::Member, sink)?;
            }
        }
        for entry in entries {
            self.entry(&entry?, Role::Member, sink)?;
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

    fn entry(&self, entry: &Entry, role: Role, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        let Sink { take, line } = sink;
        line.clear();
        let classify = self.options.classify;
        match &self.form {
            Form::Long { now } => unix::line(entry, *now, classify, line),
            Form::Names { prefix } => names::line(prefix, entry, classify, line),
            Form::Machine { facts, permissions } => {
                machine::line(*facts, entry, role, permissions, line);
            }
        }
        take(line)
    }

    /// `ls -R`: each directory with a heading; of NLST, paths without headings.
    fn tree(&self, jail: &Jail, top: &VirtualPath, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        let mut below = Vec::new();
        let mut is_first = true;
        for step in jail.walk(top, self.depth)? {
            match (step?, &self.form) {
                (Walked::Directory(path), form) => {
                    let path = path.as_bytes();
                    below = path[if top.is_root() { 0 } else { top.as_bytes().len() }..].to_vec();
                    if below == b"/" {
                        below.clear();
                    }
                    if matches!(form, Form::Long { .. }) {
                        let mut heading = if is_first { Vec::new() } else { b"\r\n".to_vec() };
                        heading.push(b'.');
                        heading.extend(below.iter().map(|b| if b.is_ascii_control() { b'?' } else { *b }));
                        heading.extend_from_slice(b":\r\n");
                        (sink.take)(&heading)?;
                    }
                    is_first = false;
                }
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
                (Walked::Entry(entry), _) => self.entry(&entry, Role::Member, sink)?,
            }
        }
        Ok(())
    }
}

//! LIST, NLST, STAT with a path (RFC 959 section 4.1.3), MLSD, MLST (RFC 3659 section 7).

mod lines;

use std::sync::Arc;

use common::{clock::unix_seconds, policy::Permission};

use self::lines::{ListFormat, ListTarget, Listing, permissions_of};
use super::activities::{run_in_background, start_transfer, take_port};
use crate::{
    data::{CopyError, copy::ListingWriter},
    jail::{FileError, Jail},
    listing::{
        EntryKind,
        machine::{self, EntryRole},
    },
    protocol::{
        Code, Reply,
        command::{ListArguments, ListOptions},
        glob::{self, Pattern},
        reply::ReplyText,
    },
    session::{LoggedIn, Outcome},
    transfer::{Transfer, TransferFailure, TransferKind, TransferWork},
    virtual_path::VirtualPath,
    work::activity::ActivityHandle,
};

/// LIST: a directory in the format of `ls -l`.
pub(super) async fn list(
    session: &mut LoggedIn,
    verb: &'static str,
    arguments: ListArguments,
) -> Result<Outcome, Reply> {
    let argument = arguments.path.unwrap_or_default();
    let format = ListFormat::Long { now: now() };
    send(session, verb, &argument, format, arguments.options).await
}

/// NLST: the names in a directory; with `-l` like LIST.
pub(super) async fn nlst(
    session: &mut LoggedIn,
    verb: &'static str,
    arguments: ListArguments,
) -> Result<Outcome, Reply> {
    let argument = arguments.path.unwrap_or_default();
    let format = match arguments.options.long {
        true => ListFormat::Long { now: now() },
        false => ListFormat::Names { prefix: Vec::new() },
    };
    send(session, verb, &argument, format, arguments.options).await
}

/// MLSD: the facts of all entries of a directory (RFC 3659 section 7.2.1).
pub(super) async fn mlsd(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: Option<&[u8]>,
) -> Result<Outcome, Reply> {
    let argument = argument.unwrap_or_default();
    let path = session.path(argument)?;
    session.allow(Permission::List, &path)?;
    let checked = path.clone();
    if session.in_home(move |jail| jail.resolved_entry(&checked)).await?.kind != EntryKind::Directory {
        return Err(Reply::new(Code::BAD_ARGUMENTS, "Not a directory; use MLST for files"));
    }
    let format = ListFormat::Machine { facts: session.facts };
    // The listing contains `.` and `..`, as cdir and pdir.
    let options = ListOptions { all: true, ..ListOptions::default() };
    let listing = listing(session, format, options);
    send_listing(session, verb, path.clone(), ListTarget::Directory(path), listing)
}

/// MLST: the facts of one path, over the control connection. For a symbolic link, those of the link itself.
pub(super) async fn mlst(session: &LoggedIn, argument: Option<&[u8]>) -> Result<Reply, Reply> {
    let path = session.path(argument.unwrap_or_default())?;
    session.allow(Permission::List, &path)?;
    let (named, access) = (path.clone(), Arc::clone(&session.access));
    let shown = session.in_home(move |jail| {
        let entry = jail.entry(&named)?;
        let permissions = permissions_of(&access, jail, &named, &entry);
        Ok((entry, permissions))
    });
    let (entry, permissions) = shown.await?;
    let mut line = Vec::new();
    machine::push_facts(session.facts, &entry, EntryRole::Member, path.as_bytes(), &permissions, &mut line);
    Ok(Reply::lines(Code::DONE, "Facts:", vec![line.into()], "End"))
}

/// STAT with a path: a listing over the control connection, of at most `max_stat_entries` lines. Runs as an
/// activity, because a directory can have any number of entries: ABOR and the end of the session stop it.
pub(super) fn stat(
    session: &LoggedIn,
    verb: &'static str,
    arguments: ListArguments,
) -> Result<Outcome, Reply> {
    let path = session.path(&arguments.path.unwrap_or_default())?;
    let options = ListOptions { recursive: false, ..arguments.options };
    let max_lines = session.node.storage.stat_entries;
    let candidates = ListCandidates::new(session, path)?;
    let listing = listing(session, ListFormat::Long { now: now() }, options);
    let jail = Arc::clone(&session.jail);
    let handle = ActivityHandle::new(verb);
    let progress = Arc::clone(&handle.progress);
    Ok(run_in_background(session, handle, move || {
        let mut lines: Vec<ReplyText> = Vec::new();
        let mut is_full = false;
        let written = candidates.resolve(&jail, options).map_err(TransferFailure::from).and_then(|target| {
            listing.write(&jail, &target, &progress, &mut |line| {
                if lines.len() == max_lines {
                    is_full = true;
                    return Err(CopyError::Cancelled.into());
                }
                lines.push(line.strip_suffix(b"\r\n").unwrap_or(line).to_vec().into());
                Ok(())
            })
        });
        match written {
            Err(TransferFailure::Storage(error)) => return error.refusal(),
            Err(_) if is_full => lines.push("(listing truncated; use LIST for all entries)".into()),
            // The lines go to memory, so the only other error is a cancellation.
            Err(_) => return FileError::Cancelled.refusal(),
            Ok(()) => {}
        }
        Reply::lines(Code::FILE_STATUS, "Status:", lines, "End of status")
    }))
}

/// LIST and NLST: resolves the argument, then starts the transfer.
async fn send(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
    format: ListFormat,
    options: ListOptions,
) -> Result<Outcome, Reply> {
    let path = session.path(argument)?;
    let candidates = ListCandidates::new(session, path.clone())?;
    let target = session.in_home(move |jail| candidates.resolve(jail, options)).await?;
    let format = match format {
        ListFormat::Names { .. } => ListFormat::Names { prefix: prefix(argument, &target) },
        format => format,
    };
    let listing = listing(session, format, options);
    send_listing(session, verb, path, target, listing)
}

fn listing(session: &LoggedIn, format: ListFormat, options: ListOptions) -> Listing {
    let storage = &session.node.storage;
    Listing {
        format,
        options,
        depth: storage.list_depth,
        max_sorted: storage.sorted_entries,
        memory: session.node.listing_memory.clone(),
        access: Arc::clone(&session.access),
    }
}

fn send_listing(
    session: &mut LoggedIn,
    verb: &'static str,
    path: VirtualPath,
    target: ListTarget,
    listing: Listing,
) -> Result<Outcome, Reply> {
    let port = take_port(session)?;
    // REST does not apply to listings. The offset must not reach the next transfer.
    session.offset = 0;
    let jail = Arc::clone(&session.jail);
    let work = TransferWork::on_worker(&session.node.workers, move |stream, job| {
        let mut writer = ListingWriter::new(&mut *stream, &job);
        listing.write(&jail, &target, job.progress, &mut |line| Ok(writer.write(line)?))?;
        writer.finish()?;
        Ok(stream.finish(&job)?)
    });
    let coding = session.representation.coding();
    let kind = TransferKind::Listing;
    let transfer =
        Transfer { verb, kind, path, coding, offset: 0, size: None, pace: None, events: None, work };
    let opening = Reply::new(Code::OPENING_DATA_CONNECTION, "Opening data connection for directory list");
    Ok(start_transfer(session, port, transfer, opening))
}

/// The possible meanings of an argument of LIST: a path, or a pattern for the names in a directory.
struct ListCandidates {
    /// The argument as a path, if the user may list it.
    path: Option<VirtualPath>,
    /// The argument as a pattern, if it has wildcards and the user may list the directory.
    pattern: Option<(VirtualPath, Pattern)>,
}

impl ListCandidates {
    /// # Errors
    /// 550: the user may list neither.
    fn new(session: &LoggedIn, path: VirtualPath) -> Result<Self, Reply> {
        let may_list = |path: &VirtualPath| session.access.at(path).has(Permission::List);
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

    /// Decides what is listed. A symbolic link to a directory is listed as the directory, as in vsftpd and
    /// Pure-FTPd. Any other link is listed as a link.
    fn resolve(self, jail: &Jail, options: ListOptions) -> Result<ListTarget, FileError> {
        let entry = self.path.as_ref().map_or(Err(FileError::NotFound), |path| jail.resolved_entry(path));
        let (entry, path) = match (entry, self.path, self.pattern) {
            // An existing name comes first, even if it contains wildcard characters.
            (Ok(entry), Some(path), _) => (entry, path),
            (Err(FileError::NotFound), _, Some((directory, pattern))) => {
                jail.check_directory(&directory)?;
                return Ok(ListTarget::Matching(directory, pattern));
            }
            (entry, ..) => return Err(entry.err().unwrap_or(FileError::NotFound)),
        };
        if entry.kind == EntryKind::Directory && !options.directory {
            jail.check_directory(&path)?;
            return Ok(ListTarget::Directory(path));
        }
        Ok(ListTarget::Single(path))
    }
}

/// The prefix that makes paths for RETR of the names of NLST (RFC 1123 section 4.1.2.7): the directory part
/// of the argument.
fn prefix(argument: &[u8], target: &ListTarget) -> Vec<u8> {
    match target {
        ListTarget::Directory(_) if matches!(argument, b"" | b"." | b"./") => Vec::new(),
        ListTarget::Directory(_) => {
            let mut prefix = argument.to_vec();
            if !prefix.ends_with(b"/") {
                prefix.push(b'/');
            }
            prefix
        }
        ListTarget::Single(_) | ListTarget::Matching(..) => {
            let end = argument.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
            argument[..end].to_vec()
        }
    }
}

fn now() -> i64 {
    i64::try_from(unix_seconds()).unwrap_or(i64::MAX)
}

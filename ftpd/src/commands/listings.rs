//! LIST, NLST, STAT with a path (RFC 959 section 4.1.3), MLSD, MLST (RFC 3659 section 7).

mod lines;

use std::sync::Arc;

use common::{clock::unix_seconds, policy::Permission};

use self::lines::{Form, Listing, Target, permissions_of};
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
    session.allow(Permission::List, &path)?;
    let checked = path.clone();
    if session.in_home(move |jail| jail.resolved_entry(&checked)).await?.kind != EntryKind::Directory {
        return Err(Reply::new(Code::BAD_ARGUMENTS, "MLSD is for directories; MLST is for files"));
    }
    let form = Form::Machine { facts: session.facts };
    // The facts of `.` and `..` are part of the listing, as cdir and pdir.
    let options = ListOptions { all: true, ..ListOptions::default() };
    let listing = listing(session, form, options);
    send_listing(session, verb, path.clone(), Target::Directory(path), listing)
}

/// MLST: the facts of one path, over the control connection. Those of a symbolic link are its own.
pub async fn mlst(session: &LoggedIn, argument: Option<&[u8]>) -> Result<Reply, Reply> {
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
    machine::facts(session.facts, &entry, EntryRole::Member, path.as_bytes(), &permissions, &mut line);
    Ok(Reply::lines(Code::DONE, "Facts:", vec![line.into()], "End"))
}

/// STAT with a path: LIST over the control connection, up to a limit. Runs in the background, because a
/// directory can have any number of entries: ABOR and the client's end end it.
pub fn stat(session: &LoggedIn, verb: &'static str, arguments: ListArguments) -> Result<Outcome, Reply> {
    let path = session.path(&arguments.path.unwrap_or_default())?;
    let options = ListOptions { recursive: false, ..arguments.options };
    let most = session.node.storage.stat_entries;
    let meant = Meaning::new(session, path)?;
    let listing = listing(session, Form::Long { now: now() }, options);
    let jail = Arc::clone(&session.jail);
    let watch = ActivityHandle::new(verb);
    let progress = Arc::clone(&watch.progress);
    Ok(run_in_background(session, watch, move || {
        let mut lines: Vec<ReplyText> = Vec::new();
        let mut is_full = false;
        let written = meant.resolve(&jail, options).map_err(TransferFailure::from).and_then(|target| {
            listing.write(&jail, &target, &progress, &mut |line| {
                if lines.len() == most {
                    is_full = true;
                    return Err(CopyError::Cancelled.into());
                }
                lines.push(line.strip_suffix(b"\r\n").unwrap_or(line).to_vec().into());
                Ok(())
            })
        });
        match written {
            Err(TransferFailure::Storage(error)) => return error.refusal(),
            Err(_) if is_full => lines.push("There is more; LIST shows it.".into()),
            // The lines went to memory: nothing else can fail.
            Err(_) => return FileError::Cancelled.refusal(),
            Ok(()) => {}
        }
        Reply::lines(Code::FILE_STATUS, "Status:", lines, "End of status")
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
    let listing = listing(session, form, options);
    send_listing(session, verb, path, target, listing)
}

fn listing(session: &LoggedIn, form: Form, options: ListOptions) -> Listing {
    let storage = &session.node.storage;
    Listing {
        form,
        options,
        depth: storage.list_depth,
        most_sorted: storage.sorted_entries,
        memory: session.node.listing_memory.clone(),
        access: Arc::clone(&session.access),
    }
}

fn send_listing(
    session: &mut LoggedIn,
    verb: &'static str,
    path: VirtualPath,
    target: Target,
    listing: Listing,
) -> Result<Outcome, Reply> {
    let port = take_port(session)?;
    // An offset was meant for a file; after a listing it is void.
    session.offset = 0;
    let jail = Arc::clone(&session.jail);
    let work = TransferWork::on_worker(&session.node.workers, move |stream, job| {
        let mut writer = ListingWriter::new(&mut *stream, &job);
        listing.write(&jail, &target, job.progress, &mut |line| Ok(writer.write(line)?))?;
        writer.finish()?;
        Ok(stream.finish(&job)?)
    });
    let coding = session.representation.coding();
    let transfer = Transfer { verb, kind: TransferKind::Listing, path, coding, pace: None, work };
    let opening = Reply::new(Code::OPENING_DATA_CONNECTION, "Opening data connection for directory list");
    Ok(start_transfer(session, port, transfer, opening))
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
        if entry.kind == EntryKind::Directory && !options.directory {
            jail.check_directory(&path)?;
            return Ok(Target::Directory(path));
        }
        Ok(Target::Single(path))
    }
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
    i64::try_from(unix_seconds()).unwrap_or(i64::MAX)
}

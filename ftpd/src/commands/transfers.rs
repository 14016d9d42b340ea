//! RETR, REST (RFC 959 section 4.1.3, RFC 3659 section 5) and RANG (draft-bryan-ftp-range).

use std::sync::Arc;

use common::{policy::Permission, registry::BandwidthDirection};

use super::activities::{start_transfer, take_port};
use crate::{
    jail::OpenFile,
    protocol::{Code, Reply, command::ByteRange},
    session::{LoggedIn, Outcome},
    transfer::{SMALL, Transfer, TransferFailure, TransferKind, TransferWork},
    work::OffRuntime,
};

/// REST: the offset at which the next transfer begins.
pub(super) fn rest(session: &mut LoggedIn, offset: u64) -> Reply {
    session.offset = offset;
    Reply::new(Code::PENDING, format!("Restarting at {offset}"))
}

/// RANG: the bytes that the next RETR or HASH reads.
pub(super) fn rang(session: &mut LoggedIn, range: Option<ByteRange>) -> Reply {
    session.range = range;
    match range {
        Some(ByteRange { start, end }) => {
            Reply::new(Code::PENDING, format!("Restarting at {start}, ending at {end}"))
        }
        None => Reply::new(Code::PENDING, "Range cleared"),
    }
}

/// Takes the offset of REST, which applies to one transfer.
///
/// # Errors
/// 554 if the coding does not keep bytes (TYPE A): an offset would count bytes that are not in the file.
pub(super) fn take_offset(session: &mut LoggedIn) -> Result<u64, Reply> {
    match std::mem::take(&mut session.offset) {
        0 => Ok(0),
        _ if !session.representation.coding().keeps_bytes() => {
            Err(Reply::new(Code::BAD_OFFSET, "REST works in TYPE I only"))
        }
        offset => Ok(offset),
    }
}

/// The bytes that RETR sends.
enum Source {
    /// The content of a small file.
    Content(Vec<u8>),
    File(OffRuntime<OpenFile>),
}

/// RETR.
pub(super) async fn retr(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
) -> Result<Outcome, Reply> {
    let range = session.range.take();
    let offset = take_offset(session)?;
    let port = take_port(session)?;
    let path = session.path(argument)?;
    session.allow(Permission::Download, &path)?;
    let opened = path.clone();
    let coding = session.representation.coding();
    let (registry, user) = (&session.node.registry, &session.account.user);
    let pace = session.bandwidth.pace(registry, user, BandwidthDirection::Download, None);
    let may_be_sent_at_once = coding.keeps_bytes() && pace.is_none();
    let node = Arc::clone(&session.node);
    let (size, bytes, source) = session
        .in_home(move |jail| {
            let file = jail.open_read(&opened)?;
            let size = file.size;
            let bytes = match range {
                Some(range) => range.start..range.end.saturating_add(1).min(size),
                None => offset..size,
            };
            let content = if may_be_sent_at_once { file.content(&bytes, SMALL as u64)? } else { None };
            Ok((
                size,
                bytes,
                content.map_or_else(|| Source::File(node.workers.off_runtime(file)), Source::Content),
            ))
        })
        .await?;
    if bytes.start > size {
        return Err(Reply::new(Code::BAD_OFFSET, "Restart offset is beyond the end of the file"));
    }
    let (start, wanted) = (bytes.start, bytes.end.saturating_sub(bytes.start));
    let mut text = b"Opening data connection for ".to_vec();
    text.extend_from_slice(argument);
    if coding.keeps_bytes() {
        text.extend_from_slice(format!(" ({wanted} bytes)").as_bytes());
    }
    let work = match source {
        Source::Content(content) => TransferWork::Send(content),
        Source::File(file) => TransferWork::on_worker(&session.node.workers, move |stream, job| {
            let file = file.into_inner();
            let sent = stream.send_file(&file.file, bytes, coding, &job)?;
            if coding.keeps_bytes() && sent < wanted {
                return Err(TransferFailure::Shrunk { wanted, sent });
            }
            Ok(stream.finish(&job)?)
        }),
    };
    let size = coding.keeps_bytes().then_some(wanted);
    let kind = TransferKind::Download;
    let events = Some(session.events()).filter(|events| events.want_download(&path));
    let transfer = Transfer { verb, kind, path, coding, offset: start, size, pace, events, work };
    Ok(start_transfer(session, port, transfer, Reply::new(Code::OPENING_DATA_CONNECTION, text)))
}

//! The transfer log, in the format xferlog(5), which many report tools read.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    time::Duration,
};

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

/// Maximum lines that wait for a slow disk. Further lines are dropped, with an error in the log.
const QUEUED_LINES: usize = 4096;

/// The transfer log, or its absence. Cheap to clone.
#[derive(Clone, Default)]
pub struct TransferLog(Option<SyncSender<LogMessage>>);

enum LogMessage {
    Line(Vec<u8>),
    Reopen,
}

/// A download or upload, as the transfer log shows it.
pub struct LoggedTransfer<'t> {
    pub client: IpAddr,
    pub user: &'t str,
    /// The path below the storage root.
    pub path: &'t [u8],
    pub bytes: u64,
    pub took: Duration,
    pub ascii: bool,
    pub upload: bool,
    pub complete: bool,
}

impl TransferLog {
    /// Opens the log and starts the thread that writes it.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let (sender, messages) = sync_channel(QUEUED_LINES);
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("transfer-log".into())
            .spawn(move || write(file, &path, &messages))?;
        Ok(Self(Some(sender)))
    }

    /// Queues a line. Does not wait for the disk.
    pub fn record(&self, transfer: &LoggedTransfer<'_>) {
        if self.0.is_some() {
            self.send(LogMessage::Line(line(transfer, OffsetDateTime::now_utc())));
        }
    }

    /// Opens the file again, after log rotation has renamed it.
    pub fn reopen(&self) {
        self.send(LogMessage::Reopen);
    }

    fn send(&self, message: LogMessage) {
        let Some(sender) = &self.0 else { return };
        match sender.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                log::error!("transfer log: a line is lost, because the disk is too slow")
            }
            Err(TrySendError::Disconnected(_)) => {
                log::error!("transfer log: a line is lost, because the thread that writes the log has ended")
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn write(mut file: File, path: &Path, messages: &Receiver<LogMessage>) {
    while let Ok(message) = messages.recv() {
        let result = match message {
            LogMessage::Line(line) => file.write_all(&line),
            LogMessage::Reopen => append(path).map(|reopened| file = reopened),
        };
        if let Err(error) = result {
            log::error!("transfer log {}: {error}", path.display());
        }
    }
}

/// A line of xferlog(5): `current-time seconds host bytes file type _ direction mode user service method id
/// status`. As other servers do, it has `_` for spaces and control characters in names. The same applies to
/// the line ends of Unicode: U+0085, U+2028 and U+2029.
fn line(transfer: &LoggedTransfer<'_>, now: OffsetDateTime) -> Vec<u8> {
    const TIME: &[BorrowedFormatItem<'_>] = format_description!(
        "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year]"
    );
    // Formatting cannot fail: an `OffsetDateTime` has all these components.
    let time = now.format(TIME).unwrap_or_default();
    let seconds = transfer.took.as_secs();
    let mut line = format!("{time} {seconds} {} {} ", transfer.client, transfer.bytes).into_bytes();
    line.extend(name(transfer.path));
    let kind = if transfer.ascii { 'a' } else { 'b' };
    let direction = if transfer.upload { 'i' } else { 'o' };
    line.extend_from_slice(format!(" {kind} _ {direction} r ").as_bytes());
    line.extend(name(transfer.user.as_bytes()));
    let status = if transfer.complete { 'c' } else { 'i' };
    line.extend_from_slice(format!(" ftp 0 * {status}\n").as_bytes());
    line
}

fn name(bytes: &[u8]) -> Vec<u8> {
    const LINE_ENDS: [&[u8]; 3] = ["\u{85}".as_bytes(), "\u{2028}".as_bytes(), "\u{2029}".as_bytes()];
    let mut name = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        if let Some(end) = LINE_ENDS.iter().find(|end| rest.starts_with(end)) {
            name.push(b'_');
            rest = &rest[end.len()..];
            continue;
        }
        name.push(if byte.is_ascii_control() || *byte == b' ' { b'_' } else { *byte });
        rest = after;
    }
    name
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn line_ends_in_names_become_underscores() {
        assert_eq!(name("a\u{85}b\u{2028}c\u{2029}d\ne é".as_bytes()), "a_b_c_d_e_é".as_bytes());
        // Bytes of other encodings are kept: 0x85 alone is an ellipsis in windows-1252.
        assert_eq!(name(b"\x85\xff"), b"\x85\xff");
    }

    #[test]
    fn a_line_has_the_fields_of_xferlog() {
        let transfer = LoggedTransfer {
            client: Ipv4Addr::new(192, 0, 2, 1).into(),
            user: "an na",
            path: b"/anna/a b\nc",
            bytes: 42,
            took: Duration::from_millis(2900),
            ascii: false,
            upload: true,
            complete: true,
        };
        let line = line(&transfer, OffsetDateTime::from_unix_timestamp(1_795_365_624).unwrap());
        let text = String::from_utf8(line).unwrap();
        assert_eq!(text, "Sun Nov 22 16:40:24 2026 2 192.0.2.1 42 /anna/a_b_c b _ i r an_na ftp 0 * c\n");
    }
}

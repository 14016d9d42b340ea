//! The destinations of the audit trail's lines: a file, standard error, or journald.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::{fs::OpenOptionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
};

use super::AuditSink;

/// The socket of journald for messages in its native protocol.
const JOURNALD: &str = "/run/systemd/journal/socket";

/// Mode of a new file. The trail names users, addresses and paths.
const MODE: u32 = 0o640;

/// The sink that `audit_log` names cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the audit trail cannot be opened (audit_log = {sink})")]
pub struct AuditLogError {
    sink: String,
    #[source]
    source: io::Error,
}

impl AuditLogError {
    pub(super) fn new(sink: Option<&AuditSink>, source: io::Error) -> Self {
        Self { sink: sink.map(ToString::to_string).unwrap_or_default(), source }
    }
}

/// An open sink.
pub(super) struct OpenSink(Kind);

enum Kind {
    None,
    File {
        file: File,
        path: PathBuf,
        /// The last write stopped within a line.
        is_in_line: bool,
    },
    Stderr,
    Journald {
        socket: UnixDatagram,
        path: PathBuf,
        identifier: String,
    },
}

/// Lines that could not be written.
pub(super) struct WriteError {
    pub lost: usize,
    pub error: io::Error,
}

impl OpenSink {
    /// `program` is the first part of journald's identifier.
    pub(super) fn open(sink: Option<&AuditSink>, program: &str) -> Result<Self, AuditLogError> {
        let Some(sink) = sink else { return Ok(Self(Kind::None)) };
        let kind = match sink {
            AuditSink::Stderr => Ok(Kind::Stderr),
            AuditSink::File(path) => {
                append(path).map(|file| Kind::File { file, path: path.clone(), is_in_line: false })
            }
            AuditSink::Journald => Self::journald(Path::new(JOURNALD), program),
        };
        kind.map(Self).map_err(|source| AuditLogError::new(Some(sink), source))
    }

    /// Each message names the socket's path, so that a restart of journald needs no new connection.
    fn journald(path: &Path, program: &str) -> io::Result<Kind> {
        let socket = UnixDatagram::unbound()?;
        let kind = Kind::Journald { socket, path: path.to_owned(), identifier: format!("{program}-audit") };
        // Fails if there is no such socket. `connect` sends nothing.
        UnixDatagram::unbound()?.connect(path)?;
        Ok(kind)
    }

    /// The label `sink` of the metric.
    pub(super) fn name(&self) -> Option<&'static str> {
        match self.0 {
            Kind::None => None,
            Kind::File { .. } => Some("file"),
            Kind::Stderr => Some("stderr"),
            Kind::Journald { .. } => Some("journald"),
        }
    }

    /// Opens the file again, after log rotation has renamed it.
    pub(super) fn reopen(&mut self) {
        let Kind::File { file, path, is_in_line } = &mut self.0 else { return };
        match append(path) {
            Ok(reopened) => (*file, *is_in_line) = (reopened, false),
            Err(error) => {
                log::error!(
                    path:% = path.display();
                    "audit_log cannot be opened again; the open file is still used: {error}"
                );
            }
        }
    }

    /// Writes lines. Each ends with a line feed.
    pub(super) fn write(&mut self, lines: &[Vec<u8>]) -> Result<(), WriteError> {
        match &mut self.0 {
            Kind::None => Ok(()),
            Kind::File { file, is_in_line, .. } => write_lines(file, is_in_line, lines),
            Kind::Stderr => write_lines(&mut io::stderr().lock(), &mut false, lines),
            Kind::Journald { socket, path, identifier } => {
                let mut failed = WriteError { lost: 0, error: io::ErrorKind::Other.into() };
                for line in lines {
                    if let Err(error) = socket.send_to(&journal_message(identifier, line), path.as_path()) {
                        failed = WriteError { lost: failed.lost + 1, error };
                    }
                }
                if failed.lost == 0 { Ok(()) } else { Err(failed) }
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

/// A message in journald's native protocol. A line of JSON contains no line feed before its end.
fn journal_message(identifier: &str, line: &[u8]) -> Vec<u8> {
    let start = format!("PRIORITY=5\nSYSLOG_IDENTIFIER={identifier}\nMESSAGE=");
    [start.as_bytes(), line.strip_suffix(b"\n").unwrap_or(line), b"\n"].concat()
}

/// Writes lines with as few calls as possible. After an error in the middle of a line, the next call begins
/// with a line feed, so that only one line is damaged.
fn write_lines(out: &mut impl Write, is_in_line: &mut bool, lines: &[Vec<u8>]) -> Result<(), WriteError> {
    let mut bytes = Vec::with_capacity(lines.iter().map(Vec::len).sum::<usize>() + 1);
    if *is_in_line {
        bytes.push(b'\n');
    }
    for line in lines {
        bytes.extend_from_slice(line);
    }
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return Err(unwritten(is_in_line, &bytes, written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unwritten(is_in_line, &bytes, written, error)),
        }
    }
    *is_in_line = false;
    Ok(())
}

fn unwritten(is_in_line: &mut bool, bytes: &[u8], written: usize, error: io::Error) -> WriteError {
    if written > 0 {
        *is_in_line = bytes[written - 1] != b'\n';
    }
    WriteError { lost: bytes[written..].iter().filter(|byte| **byte == b'\n').count(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then fails.
    struct FullDisk {
        room: usize,
        content: Vec<u8>,
    }

    impl Write for FullDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.content.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_loses_the_lines_that_did_not_fit_and_damages_one_at_most() {
        let lines = [b"one\n".to_vec(), b"two\n".to_vec(), b"three\n".to_vec()];
        let mut disk = FullDisk { room: 6, content: Vec::new() };
        let mut is_in_line = false;
        let failed = write_lines(&mut disk, &mut is_in_line, &lines).unwrap_err();
        assert_eq!((failed.lost, is_in_line), (2, true));
        disk.room = 100;
        assert!(write_lines(&mut disk, &mut is_in_line, &lines[..1]).is_ok());
        assert_eq!(disk.content, b"one\ntw\none\n");
        assert!(!is_in_line);
    }

    #[test]
    fn journald_gets_each_line_as_a_message_with_the_identifier() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(OpenSink::journald(&path, "ftpd").is_err(), "there is no socket yet");
        let journald = UnixDatagram::bind(&path).unwrap();
        let mut sink = OpenSink(OpenSink::journald(&path, "ftpd").unwrap());
        assert!(sink.write(&[b"{\"a\":1}\n".to_vec()]).is_ok());
        let mut message = [0; 200];
        let length = journald.recv(&mut message).unwrap();
        let expected = "PRIORITY=5\nSYSLOG_IDENTIFIER=ftpd-audit\nMESSAGE={\"a\":1}\n";
        assert_eq!(str::from_utf8(&message[..length]).unwrap(), expected);
    }

    #[test]
    fn a_new_file_is_not_readable_for_everybody() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut sink = OpenSink::open(Some(&AuditSink::File(path.clone())), "ftpd").unwrap();
        assert!(sink.write(&[b"{}\n".to_vec()]).is_ok());
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        sink.reopen();
        assert!(sink.write(&[b"{}\n".to_vec()]).is_ok());
        assert_eq!(std::fs::read(&path).unwrap(), b"{}\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o007, 0);
    }
}

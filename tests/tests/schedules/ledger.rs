//! The ledger of a schedule: its operations in the order of their commands, with their replies.

use std::fmt;

use crate::model::{Account, UploadCommand, content};

/// One operation of a writer.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub writer: usize,
    pub account: Account,
    pub operation: Operation,
    /// Number of the event in which the command was sent.
    pub sent_at: usize,
    /// Number of the event in which the last reply was read, and its code. `None` if the client had left.
    pub replied: Option<(usize, u16)>,
}

/// The kind of an operation, with its names.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Upload(Upload),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    Move,
    Remove(&'static str),
    RemoveAll(&'static str),
}

/// An upload from its client's view.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    /// Number from 1 to 127, unique in the schedule.
    pub number: u8,
    pub name: &'static str,
    pub how: UploadCommand,
    /// Offset of REST; 0 without REST.
    pub offset: usize,
    /// The node has replied 150.
    pub has_begun: bool,
    pub content: Vec<u8>,
    /// Total number of bytes sent after each step.
    pub sent: Vec<usize>,
    /// The client has sent all bytes and closed the data connection in the regular way.
    pub is_ended: bool,
}

impl Upload {
    /// An upload before its first byte is sent.
    pub(crate) fn new(
        schedule: u32,
        number: u8,
        name: &'static str,
        how: UploadCommand,
        length: usize,
    ) -> Self {
        let content = content(schedule, number, length);
        Self { number, name, how, offset: 0, has_begun: false, content, sent: vec![0], is_ended: false }
    }

    /// Number of bytes sent so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent.last().copied().unwrap_or(0)
    }
}

impl Entry {
    /// The code of the last reply.
    pub(crate) fn code(&self) -> Option<u16> {
        self.replied.map(|(_, code)| code)
    }

    /// The upload, if the operation is an upload.
    pub(crate) fn upload(&self) -> Option<&Upload> {
        match &self.operation {
            Operation::Upload(upload) => Some(upload),
            _ => None,
        }
    }

    /// Returns true if the upload writes to a partial file. APPE always writes to the file itself.
    pub(crate) fn uses_partial_file(&self, how: UploadCommand) -> bool {
        self.account == Account::Atomic && how != UploadCommand::Append
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>3} writer {} {:?}: ", self.sent_at, self.writer, self.account)?;
        match &self.operation {
            Operation::Upload(upload) => {
                let Upload { number, name, how, offset, sent, is_ended, content, .. } = upload;
                let total = content.len();
                write!(f, "upload {number} {how:?} {name} offset {offset}, {total} bytes, sent {sent:?}")?;
                write!(f, "{}", if *is_ended { ", ended" } else { "" })?;
            }
            other => write!(f, "{other:?}")?,
        }
        match self.replied {
            Some((when, code)) => write!(f, " -> {code} at {when}"),
            None => write!(f, " -> no reply"),
        }
    }
}

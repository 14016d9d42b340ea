//! What was asked and answered in one schedule, in the order in which it happened.

use std::fmt;

use crate::model::{Account, How, content};

/// One operation of a writer.
#[derive(Clone, Debug)]
pub struct Entry {
    pub writer: usize,
    pub account: Account,
    pub operation: Operation,
    /// When it was asked, counted in events of the schedule.
    pub asked: usize,
    /// When its last reply was read, and the reply's code. Nothing if the client had left.
    pub answered: Option<(usize, u16)>,
}

/// What was asked.
#[derive(Clone, Debug)]
pub enum Operation {
    Upload(Upload),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    Move,
    Remove(&'static str),
    RemoveAll(&'static str),
}

/// An upload, as its client knows it.
#[derive(Clone, Debug)]
pub struct Upload {
    /// From 1 to 127, different for each upload of a schedule.
    pub number: u8,
    pub name: &'static str,
    pub how: How,
    /// Where REST lets it begin.
    pub offset: usize,
    /// Whether the node said 150.
    pub has_begun: bool,
    pub content: Vec<u8>,
    /// How many bytes were sent after each step.
    pub sent: Vec<usize>,
    /// The client has ended it in the regular way, after all its bytes.
    pub is_ended: bool,
}

impl Upload {
    /// An upload of which nothing is sent.
    pub fn new(schedule: u32, number: u8, name: &'static str, how: How, length: usize) -> Self {
        let content = content(schedule, number, length);
        Self { number, name, how, offset: 0, has_begun: false, content, sent: vec![0], is_ended: false }
    }

    /// How many bytes were sent.
    pub fn sent(&self) -> usize {
        self.sent.last().copied().unwrap_or(0)
    }
}

impl Entry {
    /// The code of the last reply.
    pub fn code(&self) -> Option<u16> {
        self.answered.map(|(_, code)| code)
    }

    /// The upload, if it is one.
    pub fn upload(&self) -> Option<&Upload> {
        match &self.operation {
            Operation::Upload(upload) => Some(upload),
            _ => None,
        }
    }

    /// Whether the data is hidden until the upload is complete. APPE changes the file itself.
    pub fn is_hidden(&self, how: How) -> bool {
        self.account == Account::Atomic && how != How::Append
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>3} writer {} {:?}: ", self.asked, self.writer, self.account)?;
        match &self.operation {
            Operation::Upload(upload) => {
                let Upload { number, name, how, offset, sent, is_ended, content, .. } = upload;
                let total = content.len();
                write!(f, "upload {number} {how:?} {name} offset {offset}, {total} bytes, sent {sent:?}")?;
                write!(f, "{}", if *is_ended { ", ended" } else { "" })?;
            }
            other => write!(f, "{other:?}")?,
        }
        match self.answered {
            Some((when, code)) => write!(f, " -> {code} at {when}"),
            None => write!(f, " -> no reply"),
        }
    }
}

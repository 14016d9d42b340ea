//! A schedule: what two or three writers of one path do before, during and after a fault.

use std::fmt;

/// Names of files in schedules without subdirectories.
pub(crate) const FLAT: [&str; 2] = ["a", "b"];
/// Names of files in schedules that rename the directory `d` to `e`, or remove it.
pub(crate) const NESTED: [&str; 3] = ["d/a", "d/b", "e/a"];

/// All names that a file can have at the end, including names after a rename of `d`.
pub(crate) const ALL: [&str; 6] = ["a", "b", "d/a", "d/b", "e/a", "e/b"];

/// Upload mode of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Account {
    Direct,
    Atomic,
}

/// A writer: a session of an account on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Writer {
    pub node: usize,
    pub account: Account,
}

/// Command with which an upload begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UploadCommand {
    /// STOR.
    Store,
    /// REST with the size from SIZE, then STOR. Only STOR if the file does not exist.
    Resume,
    /// APPE.
    Append,
}

/// Way in which a client interrupts an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interruption {
    /// The client resets the data connection.
    Reset,
    /// The client sends ABOR.
    Abort,
    /// The client resets the data connection and closes the control connection.
    Leave,
}

/// One step of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Begin(UploadCommand, &'static str),
    /// Sends a part of the upload.
    Part,
    /// Sends the rest of the upload and ends it.
    End,
    Interrupt(Interruption),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    /// Renames the directory `d` to `e`.
    Move,
    /// RMD of a directory.
    Remove(&'static str),
    /// RMDA of a directory.
    RemoveAll(&'static str),
}

/// Steps of different writers that begin at the same time. The next turn begins after their replies.
#[derive(Clone, Debug)]
pub(crate) struct Turn(pub Vec<(usize, Step)>);

/// Fault of the cluster in the middle of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// No fault.
    None,
    /// A node is stopped (SIGSTOP) and continues later.
    Pause(usize),
    /// A node does not reach Redis. Afterwards the delayed bytes arrive, or the node connects anew.
    Partition(usize),
    /// Redis loses all its data.
    Flush,
    /// Redis loses the write leases.
    Forget,
    /// Redis is killed and starts again without data.
    Away,
    /// Redis is stopped (SIGSTOP) and continues with its data, unless these have expired.
    Hang,
}

/// The three parts of a schedule.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub writers: Vec<Writer>,
    pub is_nested: bool,
    /// Before, during and after the fault.
    pub phases: [Vec<Turn>; 3],
    /// Seed of the lengths of uploads and their parts.
    pub seed: u64,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, Writer { node, account }) in self.writers.iter().enumerate() {
            writeln!(f, "  writer {number}: node {node}, {account:?}")?;
        }
        for (phase, turns) in ["before", "during", "after"].iter().zip(&self.phases) {
            writeln!(f, "  {phase}:")?;
            for Turn(steps) in turns {
                writeln!(f, "    {steps:?}")?;
            }
        }
        Ok(())
    }
}

/// Returns the content of an upload. Each block of 16 bytes contains the number of the upload and the
/// number of the block, so the bytes of a file show who wrote them. Only the first byte of a block is
/// above 127.
pub(crate) fn content(schedule: u32, upload: u8, length: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(length + 16);
    let mut number = 0_u32;
    while content.len() < length {
        content.push(0x80 | upload);
        content.extend(seven_bit_bytes(number));
        content.extend(seven_bit_bytes(schedule));
        content.extend(*b"block");
        number += 1;
    }
    content.truncate(length);
    content
}

/// Encodes a number in five bytes of seven bits, lowest bits first, so that blocks differ in an early byte.
fn seven_bit_bytes(number: u32) -> [u8; 5] {
    [0, 7, 14, 21, 28].map(|shift| (number >> shift & 0x7f) as u8)
}

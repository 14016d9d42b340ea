//! A schedule: what two or three writers of one path do before, during and after a fault.

use std::fmt;

/// The names of a schedule's files, below its own directory.
pub const FLAT: [&str; 2] = ["a", "b"];
/// The names where the directory `d` is renamed to `e`, or removed.
pub const NESTED: [&str; 3] = ["d/a", "d/b", "e/a"];

/// All names that a file can have in the end: with `d`, its files are renamed.
pub const ALL: [&str; 6] = ["a", "b", "d/a", "d/b", "e/a", "e/b"];

/// How an account's uploads are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    Direct,
    Atomic,
}

/// A session: on one node, of one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    pub node: usize,
    pub account: Account,
}

/// How an upload begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// STOR.
    Store,
    /// REST with the size that SIZE tells, and STOR. Without such a file, STOR alone.
    Resume,
    /// APPE.
    Append,
}

/// How a client breaks off an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// It resets the data connection.
    Reset,
    /// It sends ABOR.
    Abort,
    /// It resets the data connection and closes the control connection.
    Leave,
}

/// One step of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Begin(How, &'static str),
    /// Sends one of the upload's parts.
    Part,
    /// Sends what is left of the upload and ends it.
    End,
    Break(Break),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    /// Renames the directory `d` to `e`.
    Move,
    /// RMD of a directory.
    Remove(&'static str),
    /// RMDA of a directory.
    RemoveAll(&'static str),
}

/// Steps of different writers that are begun at the same time; the next turn begins after their replies.
#[derive(Clone, Debug)]
pub struct Turn(pub Vec<(usize, Step)>);

/// What happens to the cluster in the middle of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing.
    None,
    /// A node is stopped (SIGSTOP), and goes on.
    Pause(usize),
    /// A node does not reach Redis. Afterwards it gets what was sent meanwhile, or new connections.
    Partition(usize),
    /// Redis loses all its data.
    Flush,
    /// Redis loses the write leases.
    Forget,
    /// Redis is killed, and starts again without data.
    Away,
    /// Redis is stopped (SIGSTOP), and goes on with its data, in which the leases have expired.
    Hang,
}

/// The three parts of a schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub writers: Vec<Writer>,
    pub is_nested: bool,
    /// Before, during and after the fault.
    pub phases: [Vec<Turn>; 3],
    /// Decides the lengths of uploads.
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

/// The content of one upload. Each block of 16 bytes names the upload and the block's number in it, so that
/// the bytes of a file tell whose they are. Only the first byte of a block is above 127.
pub fn content(schedule: u32, upload: u8, length: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(length + 16);
    let mut number = 0_u32;
    while content.len() < length {
        content.push(0x80 | upload);
        content.extend(sevens(number));
        content.extend(sevens(schedule));
        content.extend(*b"block");
        number += 1;
    }
    content.truncate(length);
    content
}

/// A number in bytes of seven bits, the lowest first: two blocks differ early.
fn sevens(number: u32) -> [u8; 5] {
    [0, 7, 14, 21, 28].map(|shift| (number >> shift & 0x7f) as u8)
}

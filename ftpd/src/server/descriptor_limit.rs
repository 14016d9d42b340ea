//! The number of sessions that the limit of open files (RLIMIT_NOFILE) allows.
//!
//! With more sessions, a flood of silent connections could take the last descriptor, and logged-in sessions
//! could not open files and data connections.

use crate::relay::PIPE_DESCRIPTORS;

/// Descriptors of a session: the control connection and the home, and during a transfer the data connection,
/// the file and its directory.
const PER_SESSION: u64 = 5;

/// Descriptors of a transfer: both ends of the pipe through which a transfer thread moves data.
const PER_TRANSFER: u64 = 2;

/// Descriptors of a file operation: the directories on the path to its file.
const PER_OPERATION: u64 = 6;

/// Descriptors of a relayed connection: its two sockets.
const PER_RELAYED: u64 = 2;

/// Descriptors of the pipes of a relayed connection, one for each direction while bytes move there. All pipes
/// together take at most [`PIPE_DESCRIPTORS`].
const PIPES_PER_RELAYED: u64 = 4;

/// The part of the available descriptors that relayed connections may use at most.
const RELAYED_PART: u64 = 4;

/// Descriptors of the process itself: for Redis, authd, metrics, logs, certificates, and the home count of a
/// quota.
const PROCESS: u64 = 256;

/// Most descriptors that one session can use at a time.
const PER_BUSY_SESSION: u64 = 8;

/// The limit of open files is too low for a single session.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of open files (RLIMIT_NOFILE, LimitNOFILE= of the service) is {available}; one session needs \
     {needed}"
)]
pub struct TooFewDescriptors {
    available: u64,
    needed: u64,
}

/// The limits that decide how many descriptors the process needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct DescriptorNeeds {
    pub sessions: u32,
    pub transfers: u32,
    pub file_operations: u32,
    /// Listening sockets. A passive port has one for each address of the node.
    pub listening: u32,
    /// Data connections that this node carries to other nodes.
    pub relayed: u32,
}

impl DescriptorNeeds {
    /// Descriptors that the process needs if every limit is reached.
    pub(super) fn total(&self) -> u64 {
        let sessions = u64::from(self.sessions);
        PER_SESSION * sessions
            + PER_TRANSFER * sessions.min(self.transfers.into())
            + PER_OPERATION * sessions.min(self.file_operations.into())
            + self.fixed()
    }

    /// Descriptors that do not depend on the number of sessions.
    fn fixed(&self) -> u64 {
        let relayed = u64::from(self.relayed);
        let pipes = (PIPES_PER_RELAYED * relayed).min(PIPE_DESCRIPTORS as u64);
        u64::from(self.listening) + PER_RELAYED * relayed + pipes + PROCESS
    }

    /// The number of relayed connections for which `available` descriptors suffice, at most `relayed`.
    pub(super) fn relayed_that_fit(&self, available: u64) -> u32 {
        if self.total() <= available {
            return self.relayed;
        }
        let fit = available / RELAYED_PART / (PER_RELAYED + PIPES_PER_RELAYED);
        u32::try_from(fit).unwrap_or(u32::MAX).min(self.relayed)
    }

    /// The number of sessions for which `available` descriptors suffice, at most `sessions`.
    ///
    /// # Errors
    /// The descriptors do not suffice for one session.
    pub(super) fn sessions_that_fit(&self, available: u64) -> Result<u32, TooFewDescriptors> {
        if self.total() <= available {
            return Ok(self.sessions);
        }
        let for_sessions = available.saturating_sub(self.fixed());
        match u32::try_from(for_sessions / PER_BUSY_SESSION).unwrap_or(u32::MAX).min(self.sessions) {
            0 => Err(TooFewDescriptors { available, needed: self.fixed() + PER_BUSY_SESSION }),
            sessions => Ok(sessions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_lowered_until_each_has_enough_descriptors() {
        let needs = |listening| DescriptorNeeds {
            sessions: 10_000,
            transfers: 1000,
            file_operations: 128,
            listening,
            relayed: 0,
        };
        for (available, listening, sessions) in
            [(1_048_576, 1000, 10_000), (20_000, 1000, 2_343), (1_024, 40, 91), (305, 40, 1)]
        {
            assert_eq!(needs(listening).sessions_that_fit(available), Ok(sessions), "{available}");
            let busy = PER_BUSY_SESSION * u64::from(sessions) + u64::from(listening) + PROCESS;
            assert!(busy <= available, "{available}");
        }
        assert!(needs(40).sessions_that_fit(300).is_err());
        let with_relay = DescriptorNeeds { relayed: 2000, ..needs(200) };
        assert_eq!(with_relay.relayed_that_fit(1_048_576), 2000);
        assert_eq!(with_relay.relayed_that_fit(20_000), 833);
        let lowered = DescriptorNeeds { relayed: 833, ..with_relay };
        assert_eq!(lowered.sessions_that_fit(20_000), Ok(2_170));
        assert_eq!(DescriptorNeeds { sessions: 10, ..needs(40) }.sessions_that_fit(1_024), Ok(10));
    }
}

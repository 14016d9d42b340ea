//! Numbers and times that clients may not exceed.

use std::time::Duration;

use common::settings::{SettingsError, Values};

use crate::{
    limits::minimum_rate::MinimumRate,
    work::{SlotShares, WorkerSettings, quarter},
};

/// Numbers that this node does not exceed, all at least 1 unless noted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Control connections.
    pub sessions: u32,
    /// Sessions of one client address, on all nodes.
    pub sessions_per_address: u32,
    /// Running transfers, one thread each.
    pub transfers: u32,
    /// Running transfers of one user.
    pub transfers_per_user: u32,
    /// Running short file operations of commands.
    pub file_operations: u32,
    /// Running home counts, one thread each.
    pub home_counts: u32,
    /// Running checksums of one user.
    pub checksums_per_user: u32,
    /// Running short file operations of one user.
    pub file_operations_per_user: u32,
    /// Running short file operations in one file system.
    pub file_operations_per_filesystem: u32,
    /// Running file operations of logins.
    pub login_operations: u32,
    /// Running long commands, one thread each.
    pub long_operations: u32,
    /// Running long commands of one user.
    pub long_operations_per_user: u32,
    /// Data connections that this node carries to other nodes.
    pub relayed: u32,
    pub minimum_rate: MinimumRate,
    /// Threads of the runtime.
    pub serving_threads: usize,
    /// Failed logins on one connection.
    pub login_failures: u32,
    /// Commands before a login.
    pub unauthenticated_commands: u32,
    /// Rejected commands in a row.
    pub errors: u32,
    /// Log lines a minute of one kind in one session. 0: no limit.
    pub failure_lines: u32,
    /// Bytes of one session's dialogue. 0: none is kept.
    pub dialogue_size: u64,
    /// Bytes of the dialogues of all sessions.
    pub dialogue_memory: u64,
}

impl Limits {
    /// The numbers of slots of the workers. `file_operation_wait`: how long a file operation waits for a slot
    /// while no other operation ends.
    pub fn workers(&self, file_operation_wait: Duration) -> WorkerSettings {
        WorkerSettings {
            file_operations: SlotShares {
                slots: self.file_operations,
                per_user: self.file_operations_per_user,
                per_filesystem: self.file_operations_per_filesystem,
            },
            logins: SlotShares::new(self.login_operations, quarter(self.login_operations)),
            long_commands: SlotShares::new(self.long_operations, self.long_operations_per_user),
            transfers: SlotShares::new(self.transfers, self.transfers_per_user),
            file_operation_wait,
        }
    }
}

/// Time limits, all greater than zero.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the connection to the login.
    pub login: Duration,
    /// Without a command or a transfer.
    pub idle: Duration,
    /// For a client to accept a reply.
    pub reply: Duration,
    /// For the data connection of a transfer to come.
    pub data_connect: Duration,
    /// Without a byte in a transfer.
    pub stall: Duration,
    /// Of one checksum.
    pub checksum: Duration,
    /// Without a byte in an upload whose client has closed the control connection.
    pub client_left: Duration,
    /// For PASV to find a free port.
    pub passive_wait: Duration,
    /// For an upload to wait for the first count of its home.
    pub quota_wait: Duration,
    /// Of a home count, while others wait.
    pub home_count_turn: Duration,
    /// For a balancer to send the PROXY header.
    pub proxy_header: Duration,
    /// For a connection to another node, to carry a data connection there.
    pub relay_connect: Duration,
    /// For transfers to end after the node was told to drain.
    pub drain: Duration,
    /// For a file operation to wait for a slot, while no other operation begins or ends.
    pub file_operation_wait: Duration,
    /// Running time at which a file operation is logged as hanging.
    pub file_operation_alarm: Duration,
    /// For a long command to wait for a slot.
    pub long_operation_wait: Duration,
    /// Interval of the checks with authd which sessions may stay.
    pub reauthorize: Duration,
    /// Age of a session, since its login. `None`: no limit.
    pub session_age: Option<Duration>,
}

/// Lower bound of the default of `max_transfers_per_user`, as far as `max_transfers` allows.
const MIN_TRANSFERS_PER_USER: u32 = 10;

pub(super) fn limits(values: &Values) -> Result<Limits, SettingsError> {
    let transfers = count(values, "max_transfers")?;
    let file_operations = count(values, "max_file_operations")?;
    let long_operations = count(values, "max_long_operations")?;
    let share = |key: &str, default: u32| match values.optional(key)? {
        Some(0) => Err(values.invalid(key, "it cannot be zero")),
        Some(share) => Ok(share),
        None => Ok(default),
    };
    Ok(Limits {
        sessions: count(values, "max_sessions")?,
        sessions_per_address: count(values, "max_sessions_per_address")?,
        transfers,
        transfers_per_user: share(
            "max_transfers_per_user",
            quarter(transfers).max(MIN_TRANSFERS_PER_USER.min(transfers)),
        )?,
        file_operations,
        file_operations_per_user: share("max_file_operations_per_user", quarter(file_operations))?,
        file_operations_per_filesystem: share(
            "max_file_operations_per_filesystem",
            file_operations.div_ceil(2),
        )?,
        home_counts: count(values, "max_home_counts")?,
        checksums_per_user: count(values, "max_checksums_per_user")?,
        login_operations: count(values, "max_login_operations")?,
        long_operations,
        long_operations_per_user: count(values, "max_long_operations_per_user")?,
        relayed: count(values, "max_relayed")?,
        minimum_rate: MinimumRate {
            rate: values.required("minimum_rate")?,
            window: values.duration("minimum_rate_time")?,
        },
        serving_threads: serving_threads(values)?,
        login_failures: count(values, "max_login_failures")?,
        unauthenticated_commands: count(values, "max_unauthenticated_commands")?,
        errors: count(values, "max_errors")?,
        failure_lines: values.required("failure_log_limit")?,
        dialogue_size: values.required("dialogue_size")?,
        dialogue_memory: values.required("dialogue_memory")?,
    })
}

pub(super) fn timeouts(values: &Values) -> Result<Timeouts, SettingsError> {
    Ok(Timeouts {
        login: values.duration("login_timeout")?,
        idle: values.duration("idle_timeout")?,
        reply: values.duration("reply_timeout")?,
        data_connect: values.duration("data_connect_timeout")?,
        stall: values.duration("stall_timeout")?,
        checksum: values.duration("checksum_timeout")?,
        client_left: values.duration("client_left_timeout")?,
        passive_wait: values.duration("passive_wait")?,
        quota_wait: values.duration("quota_wait")?,
        home_count_turn: values.duration("home_count_turn")?,
        proxy_header: values.duration("proxy_header_timeout")?,
        relay_connect: values.duration("relay_connect_timeout")?,
        drain: values.duration("drain_timeout")?,
        file_operation_wait: values.duration("file_operation_wait")?,
        file_operation_alarm: values.duration("file_operation_alarm")?,
        long_operation_wait: values.duration("long_operation_wait")?,
        reauthorize: values.duration("reauthorize_interval")?,
        session_age: values.duration_or_off("session_max_age")?,
    })
}

pub(super) fn count(values: &Values, key: &str) -> Result<u32, SettingsError> {
    match values.required(key)? {
        0 => Err(values.invalid(key, "it cannot be zero")),
        count => Ok(count),
    }
}

fn serving_threads(values: &Values) -> Result<usize, SettingsError> {
    match values.optional("serving_threads")? {
        Some(0) => Err(values.invalid("serving_threads", "it cannot be zero")),
        Some(threads) => Ok(threads),
        // If the number of processors is unknown, one thread serves.
        None => Ok(std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))),
    }
}

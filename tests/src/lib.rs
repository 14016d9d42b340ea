//! The harness of all tests that start real processes: ports, daemons, FTP dialogues, clients.
//!
//! All waits have a condition and a deadline ([`eventually`], the waits of [`process::Daemon`], the reads
//! of a [`dialogue::Dialogue`]). They panic with what they saw, so a failed test explains itself.
//! Processes that a test starts end with the test, even if it is killed.

// The logs of the daemons are printed beside the panic of the test that used them.
#![allow(clippy::print_stderr)]

pub mod authd;
pub mod binaries;
pub mod browser;
pub mod clients;
pub mod cluster;
pub mod content;
pub mod cut_uploads;
pub mod dialogue;
pub mod doctor;
pub mod doors;
pub mod failing_calls;
pub mod gate;
pub mod hang;
pub mod haproxy;
pub mod http;
pub mod kernel_path;
pub mod load;
pub mod load_session;
pub mod loopback;
pub mod network;
pub mod nginx;
pub mod node;
pub mod packaging;
pub mod process;
pub mod proxy;
pub mod random;
pub mod redis;
pub mod redis_group;
pub mod relay;
pub mod reply;
pub mod stub_authd;
pub mod tls;
pub mod webhook_receiver;
pub mod wire;
pub mod work_counter;

use std::{
    thread,
    time::{Duration, Instant},
};

/// Maximum time for events that should happen soon, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Calls `attempt` until it returns a value.
///
/// # Panics
/// There is no value within [`DEADLINE`]. `what` describes the event for the message.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} for: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

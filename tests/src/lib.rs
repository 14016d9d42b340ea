//! The harness of all tests that start real processes: ports, daemons, FTP dialogues, clients.
//!
//! Everything waits for a condition with a deadline ([`eventually`], [`process::Daemon`]'s waits,
//! the reads of a [`dialogue::Dialogue`]) and panics with what it saw, because a test that fails
//! has to say why. Whatever a test starts ends with it, even if the test is killed.

// What a daemon logged belongs beside the panic of the test that used it.
#![allow(clippy::print_stderr)]

pub mod authd;
pub mod binaries;
pub mod clients;
pub mod cluster;
pub mod content;
pub mod dialogue;
pub mod gate;
pub mod hang;
pub mod http;
pub mod kernel_path;
pub mod loopback;
pub mod network;
pub mod nginx;
pub mod node;
pub mod process;
pub mod proxy;
pub mod random;
pub mod redis;
pub mod reply;
pub mod stub_authd;
pub mod tls;
pub mod wire;

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything that should happen soon may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks `attempt` until it has an answer.
///
/// # Panics
/// There is none within [`DEADLINE`]; `what` says what was waited for.
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

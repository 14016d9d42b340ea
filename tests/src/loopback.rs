//! Addresses and ports that no other test uses at the same time, in this process or another.

use std::{
    env,
    fs::{self, File, TryLockError},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    process,
};

/// Maximum number of concurrent tests with addresses on one machine.
const SLOTS: u16 = 512;
/// Ports of a slot. All slots together stay below the ephemeral ports (from 32768 on), which outgoing
/// connections may occupy.
const PORTS: u16 = 20;
const FIRST_PORT: u16 = 20000;

/// A test's part of the loopback network: 127.x.y.0/24, and some port numbers that it owns on every other
/// address of the host. Released when dropped or when the process ends.
#[derive(Debug)]
pub struct Loopback {
    slot: u16,
    /// Holds the lock on the slot.
    _lock: File,
}

impl Loopback {
    /// # Panics
    /// All slots are in use, or the lock files cannot be created.
    pub fn reserve() -> Self {
        // One directory per user of the machine: users cannot open each other's files.
        let directory = env::temp_dir().join(format!("distributed-ftp-tests-{}", nix::unistd::getuid()));
        fs::create_dir_all(&directory).expect("the temporary directory takes lock files");
        let start = process::id() as u16 % SLOTS;
        for slot in (0..SLOTS).map(|i| (start + i) % SLOTS) {
            let path = directory.join(format!("{slot}.lock"));
            let lock = File::options().create(true).append(true).open(path).expect("a lock file opens");
            match lock.try_lock() {
                Ok(()) => return Self { slot, _lock: lock },
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => panic!("cannot lock a slot of loopback ports: {error}"),
            }
        }
        panic!("all {SLOTS} slots of loopback ports are in use");
    }

    /// 127.x.y.`host`.
    pub fn address(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(127, 64 + (self.slot >> 8) as u8, (self.slot & 255) as u8, host).into()
    }

    /// 127.x.y.`host` with any port: the addresses belong to this test alone.
    pub fn socket(&self, host: u8, port: u16) -> SocketAddr {
        (self.address(host), port).into()
    }

    /// Port numbers that belong to this test on all addresses, including ::1.
    pub fn ports(&self) -> RangeInclusive<u16> {
        let first = FIRST_PORT + self.slot * PORTS;
        first..=first + PORTS - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_reservations_share_an_address_or_a_port() {
        let all: Vec<Loopback> = (0..40).map(|_| Loopback::reserve()).collect();
        for (i, one) in all.iter().enumerate() {
            for other in &all[..i] {
                assert_ne!(one.address(1), other.address(1));
                assert!(
                    one.ports().end() < other.ports().start() || other.ports().end() < one.ports().start()
                );
            }
        }
    }
}

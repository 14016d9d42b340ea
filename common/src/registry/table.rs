//! One node's own sessions and write leases, in memory.

use std::collections::HashMap;

use super::Refusal;
use crate::session::{SessionId, SessionLimits, SessionRecord};

/// Tells one granting of a path from the next, within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseNumber(u64);

/// Whether Redis has had its say. What is `Asked` counts in the node's own limits, but a refresh
/// must not put it into Redis before Redis has agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Asked,
    Granted,
}

struct Session {
    record: SessionRecord,
    standing: Standing,
}

struct Lease {
    number: LeaseNumber,
    holder: SessionId,
    standing: Standing,
}

#[derive(Default)]
pub(super) struct Table {
    sessions: HashMap<SessionId, Session>,
    leases: HashMap<Box<[u8]>, Lease>,
    last_number: u64,
}

impl Table {
    /// Enters a session as asked for, if this node's own sessions leave room within the limits.
    pub fn open(&mut self, record: SessionRecord, limits: SessionLimits) -> Result<(), Refusal> {
        let (mut of_user, mut of_address, mut of_both) = (0, 0, 0);
        for Session { record: other, .. } in self.sessions.values() {
            let (user, address) = (other.user == record.user, other.address == record.address);
            of_user += u32::from(user);
            of_address += u32::from(address);
            of_both += u32::from(user && address);
        }
        let reached = |limit: Option<u32>, count: u32| limit.filter(|&limit| count >= limit);
        if let Some(limit) = reached(limits.per_user, of_user) {
            return Err(Refusal::UserLimit(limit));
        }
        if let Some(limit) = reached(limits.per_address, of_address) {
            return Err(Refusal::AddressLimit(limit));
        }
        if let Some(limit) = reached(limits.per_user_and_address, of_both) {
            return Err(Refusal::UserAddressLimit(limit));
        }
        self.sessions.insert(
            record.id,
            Session {
                record,
                standing: Standing::Asked,
            },
        );
        Ok(())
    }

    pub fn admit(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.standing = Standing::Granted;
        }
    }

    pub fn close(&mut self, id: SessionId) -> Option<SessionRecord> {
        self.sessions.remove(&id).map(|session| session.record)
    }

    pub fn sessions(&self) -> Vec<SessionRecord> {
        self.sessions
            .values()
            .map(|session| session.record.clone())
            .collect()
    }

    /// Enters a lease as asked for; `None` if this node writes the path already.
    pub fn take(&mut self, path: &[u8], holder: SessionId) -> Option<LeaseNumber> {
        if self.leases.contains_key(path) {
            return None;
        }
        self.last_number += 1;
        let number = LeaseNumber(self.last_number);
        self.leases.insert(
            path.into(),
            Lease {
                number,
                holder,
                standing: Standing::Asked,
            },
        );
        Some(number)
    }

    pub fn grant(&mut self, path: &[u8], number: LeaseNumber) {
        if let Some(lease) = self
            .leases
            .get_mut(path)
            .filter(|lease| lease.number == number)
        {
            lease.standing = Standing::Granted;
        }
    }

    pub fn holds(&self, path: &[u8], number: LeaseNumber) -> bool {
        self.leases
            .get(path)
            .is_some_and(|lease| lease.number == number)
    }

    pub fn release(&mut self, path: &[u8], number: LeaseNumber) {
        if self.holds(path, number) {
            self.leases.remove(path);
        }
    }
}

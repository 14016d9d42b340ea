//! One node's own sessions and write leases, in memory.

use std::{collections::HashMap, fmt};

use super::Refusal;
use crate::session::{SessionId, SessionLimits, SessionRecord};

/// One granting of a path. `Display` tells it from all others of this process, and says to people
/// who has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    number: u64,
    holder: SessionId,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.holder)
    }
}

/// Whether Redis has had its say. What is `Asked` counts in the node's own limits, but a refresh
/// must not put it into Redis before Redis has agreed. Only a lease can be `Lost`: another has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Asked,
    Granted,
    Lost,
}

struct Session {
    record: SessionRecord,
    standing: Standing,
}

struct Lease {
    grant: Grant,
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
    pub fn take(&mut self, path: &[u8], holder: SessionId) -> Option<Grant> {
        if self.leases.contains_key(path) {
            return None;
        }
        self.last_number += 1;
        let grant = Grant {
            number: self.last_number,
            holder,
        };
        self.leases.insert(
            path.into(),
            Lease {
                grant,
                standing: Standing::Asked,
            },
        );
        Some(grant)
    }

    pub fn grant(&mut self, path: &[u8], grant: Grant) {
        if let Some(lease) = self
            .leases
            .get_mut(path)
            .filter(|lease| lease.grant == grant)
        {
            lease.standing = Standing::Granted;
        }
    }

    pub fn holds(&self, path: &[u8], grant: Grant) -> bool {
        self.leases
            .get(path)
            .is_some_and(|lease| lease.grant == grant)
    }

    /// Notes that another has the lease. The path stays taken until it is released.
    pub fn lose(&mut self, path: &[u8], grant: Grant) {
        if let Some(lease) = self
            .leases
            .get_mut(path)
            .filter(|lease| lease.grant == grant)
        {
            lease.standing = Standing::Lost;
        }
    }

    pub fn release(&mut self, path: &[u8]) {
        self.leases.remove(path);
    }

    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    pub fn granted_sessions(&self) -> Vec<SessionId> {
        let granted = |session: &Session| session.standing == Standing::Granted;
        self.sessions
            .iter()
            .filter(|(_, session)| granted(session))
            .map(|(&id, _)| id)
            .collect()
    }

    /// The records of those of these sessions that have not ended.
    pub fn records(&self, ids: &[SessionId]) -> Vec<SessionRecord> {
        ids.iter()
            .filter_map(|id| Some(self.sessions.get(id)?.record.clone()))
            .collect()
    }

    /// Those of these texts that are not the id of a session here.
    pub fn strangers(&self, ids: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let parse = |id: &[u8]| std::str::from_utf8(id).ok()?.parse::<SessionId>().ok();
        let known = |id: &[u8]| {
            parse(id).is_some_and(|parsed| {
                self.sessions.contains_key(&parsed) && parsed.to_string().as_bytes() == id
            })
        };
        ids.into_iter().filter(|id| !known(id)).collect()
    }

    pub fn granted_leases(&self) -> Vec<(Box<[u8]>, Grant)> {
        let granted = |lease: &Lease| lease.standing == Standing::Granted;
        let leases = self.leases.iter().filter(|(_, lease)| granted(lease));
        leases
            .map(|(path, lease)| (path.clone(), lease.grant))
            .collect()
    }
}

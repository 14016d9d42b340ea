//! One node's own sessions and write leases, in memory.

use std::{collections::HashMap, fmt, net::IpAddr};

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
/// must not put it into Redis before Redis has agreed. Only a lease can be `Lost`: another has it;
/// or `Ending`: a refresh must not bring it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Asked,
    Granted,
    Lost,
    Ending,
}

struct Session {
    record: SessionRecord,
    standing: Standing,
}

struct Lease {
    grant: Grant,
    standing: Standing,
}

/// How many sessions one user has, all in all and from each address.
#[derive(Default)]
struct OfUser {
    all: u32,
    by_address: HashMap<IpAddr, u32>,
}

#[derive(Default)]
pub(super) struct Table {
    sessions: HashMap<SessionId, Session>,
    /// How many of them are `Asked`.
    asked: usize,
    // Counts of `sessions`, without zeros: a login must not look at every session of the node.
    users: HashMap<String, OfUser>,
    addresses: HashMap<IpAddr, u32>,
    leases: HashMap<Box<[u8]>, Lease>,
    last_number: u64,
}

impl Table {
    /// Enters a session as asked for, if this node's own sessions leave room within the limits.
    pub fn open(&mut self, record: SessionRecord, limits: SessionLimits) -> Result<(), Refusal> {
        let user = self.users.get(&record.user);
        let of_user = user.map_or(0, |user| user.all);
        let of_both = user.and_then(|user| user.by_address.get(&record.address)).copied().unwrap_or(0);
        let of_address = self.addresses.get(&record.address).copied().unwrap_or(0);
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
        // Ids are random: that one comes twice does not happen, and must not spoil the counts.
        self.close(record.id);
        self.count(&record);
        self.asked += 1;
        self.sessions.insert(record.id, Session { record, standing: Standing::Asked });
        Ok(())
    }

    fn count(&mut self, record: &SessionRecord) {
        if !self.users.contains_key(&record.user) {
            self.users.insert(record.user.clone(), OfUser::default());
        }
        if let Some(user) = self.users.get_mut(&record.user) {
            user.all += 1;
            *user.by_address.entry(record.address).or_default() += 1;
        }
        *self.addresses.entry(record.address).or_default() += 1;
    }

    pub fn has_session(&self, id: SessionId) -> bool {
        self.sessions.contains_key(&id)
    }

    pub fn admit(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id).filter(|s| s.standing == Standing::Asked) {
            session.standing = Standing::Granted;
            self.asked -= 1;
        }
    }

    pub fn close(&mut self, id: SessionId) -> Option<SessionRecord> {
        let Session { record, standing } = self.sessions.remove(&id)?;
        if standing == Standing::Asked {
            self.asked -= 1;
        }
        if let Some(user) = self.users.get_mut(&record.user) {
            user.all -= 1;
            take_one(&mut user.by_address, record.address);
            if user.all == 0 {
                self.users.remove(&record.user);
            }
        }
        take_one(&mut self.addresses, record.address);
        Some(record)
    }

    pub fn sessions(&self) -> Vec<SessionRecord> {
        self.sessions.values().map(|session| session.record.clone()).collect()
    }

    /// Enters a lease as asked for.
    ///
    /// # Errors
    /// The session of this node that writes the path already.
    pub fn take(&mut self, path: &[u8], holder: SessionId) -> Result<Grant, SessionId> {
        if let Some(lease) = self.leases.get(path) {
            return Err(lease.grant.holder);
        }
        self.last_number += 1;
        let grant = Grant { number: self.last_number, holder };
        self.leases.insert(path.into(), Lease { grant, standing: Standing::Asked });
        Ok(grant)
    }

    pub fn grant(&mut self, path: &[u8], grant: Grant) {
        if let Some(lease) = self.leases.get_mut(path).filter(|lease| lease.grant == grant) {
            lease.standing = Standing::Granted;
        }
    }

    /// Whether this granting stands, as far as the node knows.
    pub fn holds(&self, path: &[u8], grant: Grant) -> bool {
        let stands = |lease: &Lease| lease.grant == grant && lease.standing != Standing::Lost;
        self.leases.get(path).is_some_and(stands)
    }

    /// From now on no refresh keeps the lease; `false` if it does not stand any more. The path stays
    /// taken until it is released.
    pub fn end(&mut self, path: &[u8], grant: Grant) -> bool {
        let stands = self.holds(path, grant);
        if let Some(lease) = self.leases.get_mut(path).filter(|_| stands) {
            lease.standing = Standing::Ending;
        }
        stands
    }

    /// Notes that another has the lease; `false` if it was given back before. The path stays taken
    /// until then.
    pub fn lose(&mut self, path: &[u8], grant: Grant) -> bool {
        let Some(lease) = self.leases.get_mut(path).filter(|lease| lease.grant == grant) else {
            return false;
        };
        lease.standing = Standing::Lost;
        true
    }

    pub fn release(&mut self, path: &[u8]) {
        self.leases.remove(path);
    }

    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    pub fn granted_count(&self) -> usize {
        self.sessions.len() - self.asked
    }

    pub fn granted_sessions(&self) -> Vec<SessionId> {
        let granted = |session: &Session| session.standing == Standing::Granted;
        self.sessions.iter().filter(|(_, session)| granted(session)).map(|(&id, _)| id).collect()
    }

    /// The records of those of these sessions that have not ended.
    pub fn records(&self, ids: &[SessionId]) -> Vec<SessionRecord> {
        ids.iter().filter_map(|id| Some(self.sessions.get(id)?.record.clone())).collect()
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
        leases.map(|(path, lease)| (path.clone(), lease.grant)).collect()
    }
}

/// Counts one less; what comes to nothing is forgotten.
fn take_one(counts: &mut HashMap<IpAddr, u32>, address: IpAddr) {
    if let Some(count) = counts.get_mut(&address) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(user: &str, address: [u8; 4]) -> SessionRecord {
        SessionRecord {
            id: SessionId::random(),
            node: "a".parse().unwrap(),
            user: user.to_owned(),
            address: IpAddr::from(address),
            since: 0,
        }
    }

    #[test]
    fn each_limit_counts_what_it_names() {
        let (home, away) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        let mut table = Table::default();
        for (user, address) in [("ann", home), ("ann", away), ("ben", home)] {
            table.open(record(user, address), SessionLimits::default()).unwrap();
        }
        let mut open = |user, address, limits: [Option<u32>; 3]| {
            let [per_user, per_address, per_user_and_address] = limits;
            let limits = SessionLimits { per_user, per_address, per_user_and_address };
            let record = record(user, address);
            let id = record.id;
            let outcome = table.open(record, limits);
            table.close(id);
            outcome
        };
        let (two, one) = (Some(2), Some(1));
        assert_eq!(open("ann", home, [two, None, None]), Err(Refusal::UserLimit(2)));
        assert_eq!(open("ben", home, [two, None, None]), Ok(()));
        assert_eq!(open("cat", home, [None, two, None]), Err(Refusal::AddressLimit(2)));
        assert_eq!(open("cat", away, [None, two, None]), Ok(()));
        assert_eq!(open("ann", home, [None, None, one]), Err(Refusal::UserAddressLimit(1)));
        assert_eq!(open("ben", away, [one, None, one]), Err(Refusal::UserLimit(1)));
        assert_eq!(open("ben", away, [None, None, one]), Ok(()));
        assert_eq!(open("dan", away, [Some(0), None, None]), Err(Refusal::UserLimit(0)));
    }

    #[test]
    fn nothing_is_left_of_sessions_that_have_ended() {
        let mut table = Table::default();
        let records = [("ann", [192, 0, 2, 1]), ("ann", [192, 0, 2, 1]), ("ben", [192, 0, 2, 2])]
            .map(|(user, address)| record(user, address));
        for record in &records {
            table.open(record.clone(), SessionLimits::default()).unwrap();
        }
        // Some end before Redis has agreed, some after.
        table.admit(records[0].id);
        table.admit(records[0].id);
        for record in &records {
            assert_eq!(table.close(record.id).as_ref(), Some(record));
            assert_eq!(table.close(record.id), None);
        }
        assert!(table.users.is_empty() && table.addresses.is_empty());
        assert_eq!((table.session_count(), table.granted_count()), (0, 0));
    }

    #[test]
    fn what_redis_has_not_agreed_to_is_not_refreshed() {
        let mut table = Table::default();
        let ann = record("ann", [192, 0, 2, 1]);
        table.open(ann.clone(), SessionLimits::default()).unwrap();
        let grant = table.take(b"/a", ann.id).unwrap();
        assert!(table.granted_sessions().is_empty() && table.granted_leases().is_empty());
        assert_eq!(table.granted_count(), 0);
        table.admit(ann.id);
        table.grant(b"/a", grant);
        assert_eq!(table.granted_sessions(), [ann.id]);
        assert_eq!(table.granted_count(), 1);
        assert_eq!(table.granted_leases(), [(b"/a"[..].into(), grant)]);
    }

    #[test]
    fn a_lost_lease_is_not_held_but_its_path_stays_taken() {
        let mut table = Table::default();
        let holder = SessionId::random();
        let first = table.take(b"/a", holder).unwrap();
        table.grant(b"/a", first);
        assert!(table.lose(b"/a", first));
        assert!(!table.holds(b"/a", first) && table.granted_leases().is_empty());
        assert_eq!(table.take(b"/a", SessionId::random()), Err(holder));
        table.release(b"/a");
        let second = table.take(b"/a", holder).unwrap();
        assert!(!table.lose(b"/a", first));
        assert!(table.holds(b"/a", second) && !table.holds(b"/a", first));
    }

    #[test]
    fn a_lease_that_ends_is_not_refreshed_but_its_path_stays_taken() {
        let mut table = Table::default();
        let holder = SessionId::random();
        let lease = table.take(b"/a", holder).unwrap();
        table.grant(b"/a", lease);
        assert!(table.end(b"/a", lease));
        assert!(table.granted_leases().is_empty());
        assert_eq!(table.take(b"/a", SessionId::random()), Err(holder));
        table.release(b"/a");
        let next = table.take(b"/a", holder).unwrap();
        assert!(!table.end(b"/a", lease) && table.holds(b"/a", next));
    }

    #[test]
    fn only_the_exact_id_of_a_session_here_is_no_stranger() {
        let mut table = Table::default();
        let ann = record("ann", [192, 0, 2, 1]);
        let id = ann.id.to_string();
        table.open(ann, SessionLimits::default()).unwrap();
        let other = SessionId::random().to_string();
        let ids = [id.as_str(), &other, "", "x", "\u{ff}"].map(|id| id.as_bytes().to_vec());
        assert_eq!(table.strangers(ids.to_vec()), ids[1..]);
    }
}

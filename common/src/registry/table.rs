//! The sessions and write leases of one node, in memory.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use super::lease_state::{LeaseConflict, LeaseGrant, LeasePath, LeaseScope, LeaseState};
use crate::{
    client_network::network_of,
    session::{SessionId, SessionLimits, SessionRecord},
};

/// The reason why a session may not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionRefused {
    #[error("the user has {0} sessions already")]
    UserLimit(u32),
    #[error("the address has {0} sessions already")]
    AddressLimit(u32),
    #[error("the user has {0} sessions from this address already")]
    UserAddressLimit(u32),
    /// Redis is away and the policy is [`WhenAway::Refuse`](super::WhenAway::Refuse).
    #[error("the registry is away")]
    RegistryAway,
}

/// The state of a session or lease in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryState {
    /// Redis has not agreed yet. The entry counts in the node's own limits, but a refresh must not enter it
    /// in Redis.
    Asked,
    /// Redis has agreed, or there is no Redis.
    Granted,
    /// Leases only: another session has one of the paths.
    Lost,
    /// Leases only: the lease is being released, and a refresh must not enter it again.
    Ending,
}

struct TableSession {
    record: SessionRecord,
    entry: EntryState,
}

struct TableLease {
    grant: LeaseGrant,
    paths: Arc<[LeasePath]>,
    entry: EntryState,
    state: Arc<LeaseState>,
}

/// A lease that Redis has granted and the refresh keeps there.
pub(super) struct GrantedLease {
    pub grant: LeaseGrant,
    pub paths: Arc<[LeasePath]>,
    pub state: Arc<LeaseState>,
}

/// Number of sessions of one user, in total and from each network (see [`network_of`]).
#[derive(Default)]
struct UserSessionCounts {
    all: u32,
    by_network: HashMap<IpAddr, u32>,
}

/// The sessions and write leases of this node.
#[derive(Default)]
pub(super) struct NodeTable {
    sessions: HashMap<SessionId, TableSession>,
    /// Number of sessions that are [`EntryState::Asked`].
    asked: usize,
    /// Numbers of `sessions` by user, without zeros, so that a login does not look at every session.
    users: HashMap<String, UserSessionCounts>,
    /// Numbers of `sessions` by network, without zeros.
    networks: HashMap<IpAddr, u32>,
    /// Leases by the number of their grant.
    leases: HashMap<u64, TableLease>,
    /// All leased paths.
    paths: BTreeMap<Box<[u8]>, (LeaseGrant, LeaseScope)>,
    /// Number of leased trees in `paths`.
    trees: usize,
    last_number: u64,
}

impl NodeTable {
    /// Enters a session as [`EntryState::Asked`], unless this node's own sessions reach one of the limits.
    pub(super) fn open(
        &mut self,
        record: SessionRecord,
        limits: SessionLimits,
    ) -> Result<(), SessionRefused> {
        let network = network_of(record.address);
        let user = self.users.get(&record.user);
        let of_user = user.map_or(0, |user| user.all);
        let of_both = user.and_then(|user| user.by_network.get(&network)).copied().unwrap_or(0);
        let of_address = self.networks.get(&network).copied().unwrap_or(0);
        let reached = |limit: Option<u32>, count: u32| limit.filter(|&limit| count >= limit);
        if let Some(limit) = reached(limits.per_user, of_user) {
            return Err(SessionRefused::UserLimit(limit));
        }
        if let Some(limit) = reached(limits.per_address, of_address) {
            return Err(SessionRefused::AddressLimit(limit));
        }
        if let Some(limit) = reached(limits.per_user_and_address, of_both) {
            return Err(SessionRefused::UserAddressLimit(limit));
        }
        // Ids are random, so none comes twice. If one did, the counts would still be right.
        self.close(record.id);
        self.count(&record);
        self.asked += 1;
        self.sessions.insert(record.id, TableSession { record, entry: EntryState::Asked });
        Ok(())
    }

    fn count(&mut self, record: &SessionRecord) {
        let network = network_of(record.address);
        if !self.users.contains_key(&record.user) {
            self.users.insert(record.user.clone(), UserSessionCounts::default());
        }
        if let Some(user) = self.users.get_mut(&record.user) {
            user.all += 1;
            *user.by_network.entry(network).or_default() += 1;
        }
        *self.networks.entry(network).or_default() += 1;
    }

    pub(super) fn has_session(&self, id: SessionId) -> bool {
        self.sessions.contains_key(&id)
    }

    /// Notes that Redis has agreed to a session.
    pub(super) fn admit(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id).filter(|s| s.entry == EntryState::Asked) {
            session.entry = EntryState::Granted;
            self.asked -= 1;
        }
    }

    /// Removes a session.
    pub(super) fn close(&mut self, id: SessionId) -> Option<SessionRecord> {
        let TableSession { record, entry } = self.sessions.remove(&id)?;
        let network = network_of(record.address);
        if entry == EntryState::Asked {
            self.asked -= 1;
        }
        if let Some(user) = self.users.get_mut(&record.user) {
            user.all -= 1;
            decrement(&mut user.by_network, network);
            if user.all == 0 {
                self.users.remove(&record.user);
            }
        }
        decrement(&mut self.networks, network);
        Some(record)
    }

    pub(super) fn sessions(&self) -> Vec<SessionRecord> {
        self.sessions.values().map(|session| session.record.clone()).collect()
    }

    /// Enters a lease as [`EntryState::Asked`]. `paths` has no duplicates.
    ///
    /// # Errors
    /// The session of this node whose lease prevents this one, and the position of that lease.
    pub(super) fn take(
        &mut self,
        paths: &Arc<[LeasePath]>,
        holder: SessionId,
        state: &Arc<LeaseState>,
    ) -> Result<LeaseGrant, (SessionId, LeaseConflict)> {
        if let Some(conflict) = paths.iter().find_map(|path| self.conflict(path)) {
            return Err(conflict);
        }
        self.last_number += 1;
        let grant = LeaseGrant { number: self.last_number, holder };
        for path in paths.iter() {
            self.trees += usize::from(path.scope == LeaseScope::Tree);
            self.paths.insert(path.path.clone(), (grant, path.scope));
        }
        let (paths, state) = (Arc::clone(paths), Arc::clone(state));
        self.leases.insert(grant.number, TableLease { grant, paths, entry: EntryState::Asked, state });
        Ok(grant)
    }

    fn conflict(&self, wanted: &LeasePath) -> Option<(SessionId, LeaseConflict)> {
        let path = &wanted.path;
        if let Some((grant, _)) = self.paths.get(path) {
            return Some((grant.holder, LeaseConflict::Same));
        }
        if self.trees > 0 {
            let above =
                above(path).find_map(|above| self.paths.get(above).filter(|it| it.1 == LeaseScope::Tree));
            if let Some((grant, _)) = above {
                return Some((grant.holder, LeaseConflict::Above));
            }
        }
        if wanted.scope == LeaseScope::File {
            return None;
        }
        let prefix = if path.is_empty() { Vec::new() } else { [&**path, b"/"].concat() };
        // All paths below begin with `prefix`, and sort directly after it.
        let after = (Bound::Excluded(&prefix[..]), Bound::Unbounded);
        let (below, (grant, _)) = self.paths.range::<[u8], _>(after).next()?;
        below.starts_with(&prefix).then_some((grant.holder, LeaseConflict::Below))
    }

    /// Notes that Redis has agreed to a lease.
    pub(super) fn grant(&mut self, grant: LeaseGrant) {
        if let Some(lease) = self.leases.get_mut(&grant.number) {
            lease.entry = EntryState::Granted;
        }
    }

    /// Returns true if the lease exists and is not lost, as far as the node knows.
    pub(super) fn holds(&self, grant: LeaseGrant) -> bool {
        self.leases.get(&grant.number).is_some_and(|lease| lease.entry != EntryState::Lost)
    }

    /// Marks a lease as [`EntryState::Ending`]. Returns false if it is lost or released. Its paths stay
    /// leased until [`Self::release`].
    pub(super) fn end(&mut self, grant: LeaseGrant) -> bool {
        match self.leases.get_mut(&grant.number).filter(|lease| lease.entry != EntryState::Lost) {
            Some(lease) => {
                lease.entry = EntryState::Ending;
                true
            }
            None => false,
        }
    }

    /// Marks a lease as [`EntryState::Lost`]. Returns false if it was released before. Its paths stay
    /// leased until [`Self::release`].
    pub(super) fn lose(&mut self, grant: LeaseGrant) -> bool {
        let Some(lease) = self.leases.get_mut(&grant.number) else {
            return false;
        };
        lease.entry = EntryState::Lost;
        lease.state.lose();
        true
    }

    pub(super) fn release(&mut self, grant: LeaseGrant) {
        let Some(lease) = self.leases.remove(&grant.number) else { return };
        for path in lease.paths.iter() {
            self.trees -= usize::from(path.scope == LeaseScope::Tree);
            self.paths.remove(&path.path);
        }
    }

    pub(super) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Number of sessions that Redis has agreed to.
    pub(super) fn granted_count(&self) -> usize {
        self.sessions.len() - self.asked
    }

    pub(super) fn granted_sessions(&self) -> Vec<SessionId> {
        let granted = |session: &TableSession| session.entry == EntryState::Granted;
        self.sessions.iter().filter(|(_, session)| granted(session)).map(|(&id, _)| id).collect()
    }

    /// The records of these sessions, without those that have ended.
    pub(super) fn records(&self, ids: &[SessionId]) -> Vec<SessionRecord> {
        ids.iter().filter_map(|id| Some(self.sessions.get(id)?.record.clone())).collect()
    }

    /// The texts of `ids` that are not exactly the id of a session of this node.
    pub(super) fn unknown_ids(&self, ids: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let parse = |id: &[u8]| std::str::from_utf8(id).ok()?.parse::<SessionId>().ok();
        let known = |id: &[u8]| {
            parse(id).is_some_and(|parsed| {
                self.sessions.contains_key(&parsed) && parsed.to_string().as_bytes() == id
            })
        };
        ids.into_iter().filter(|id| !known(id)).collect()
    }

    pub(super) fn granted_leases(&self) -> Vec<GrantedLease> {
        let granted = self.leases.values().filter(|lease| lease.entry == EntryState::Granted);
        let granted = granted.map(|TableLease { grant, paths, state, .. }| GrantedLease {
            grant: *grant,
            paths: Arc::clone(paths),
            state: Arc::clone(state),
        });
        granted.collect()
    }
}

/// The directories above a path, beginning with the storage's root.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let root = (!path.is_empty()).then_some(&path[..0]);
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    root.into_iter().chain(slashes.map(|(at, _)| &path[..at]))
}

/// Decrements a count, and removes it at zero.
fn decrement(counts: &mut HashMap<IpAddr, u32>, address: IpAddr) {
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
        let mut table = NodeTable::default();
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
        assert_eq!(open("ann", home, [two, None, None]), Err(SessionRefused::UserLimit(2)));
        assert_eq!(open("ben", home, [two, None, None]), Ok(()));
        assert_eq!(open("cat", home, [None, two, None]), Err(SessionRefused::AddressLimit(2)));
        assert_eq!(open("cat", away, [None, two, None]), Ok(()));
        assert_eq!(open("ann", home, [None, None, one]), Err(SessionRefused::UserAddressLimit(1)));
        assert_eq!(open("ben", away, [one, None, one]), Err(SessionRefused::UserLimit(1)));
        assert_eq!(open("ben", away, [None, None, one]), Ok(()));
        assert_eq!(open("dan", away, [Some(0), None, None]), Err(SessionRefused::UserLimit(0)));
    }

    #[test]
    fn all_addresses_of_an_ipv6_64_network_share_one_limit() {
        let mut table = NodeTable::default();
        let limits = SessionLimits { per_address: Some(2), ..SessionLimits::default() };
        let mut open = |address: &str| {
            let record = SessionRecord { address: address.parse().unwrap(), ..record("ann", [0; 4]) };
            table.open(record.clone(), limits).map(|()| record.id)
        };
        let first = open("2001:db8:1:2::1").unwrap();
        open("2001:db8:1:2:ffff::2").unwrap();
        assert_eq!(open("2001:db8:1:2::3"), Err(SessionRefused::AddressLimit(2)));
        open("2001:db8:1:3::1").unwrap();
        assert!(table.close(first).is_some());
        assert!(table.networks.values().all(|count| *count == 1));
    }

    #[test]
    fn ended_sessions_leave_no_counts() {
        let mut table = NodeTable::default();
        let records = [("ann", [192, 0, 2, 1]), ("ann", [192, 0, 2, 1]), ("ben", [192, 0, 2, 2])]
            .map(|(user, address)| record(user, address));
        for record in &records {
            table.open(record.clone(), SessionLimits::default()).unwrap();
        }
        // One ends after Redis has agreed, two before.
        table.admit(records[0].id);
        table.admit(records[0].id);
        for record in &records {
            assert_eq!(table.close(record.id).as_ref(), Some(record));
            assert_eq!(table.close(record.id), None);
        }
        assert!(table.users.is_empty() && table.networks.is_empty());
        assert_eq!((table.session_count(), table.granted_count()), (0, 0));
    }

    fn take(
        table: &mut NodeTable,
        paths: &[LeasePath],
        holder: SessionId,
    ) -> Result<LeaseGrant, (SessionId, LeaseConflict)> {
        table.take(&paths.into(), holder, &Arc::default())
    }

    #[test]
    fn sessions_and_leases_are_refreshed_only_after_redis_agreed() {
        let mut table = NodeTable::default();
        let ann = record("ann", [192, 0, 2, 1]);
        table.open(ann.clone(), SessionLimits::default()).unwrap();
        let grant = take(&mut table, &[LeasePath::file(b"a")], ann.id).unwrap();
        assert!(table.granted_sessions().is_empty() && table.granted_leases().is_empty());
        assert_eq!(table.granted_count(), 0);
        table.admit(ann.id);
        table.grant(grant);
        assert_eq!(table.granted_sessions(), [ann.id]);
        assert_eq!(table.granted_count(), 1);
        let leases = table.granted_leases();
        assert_eq!((leases.len(), leases[0].grant, &*leases[0].paths[0].path), (1, grant, &b"a"[..]));
    }

    #[test]
    fn a_lost_lease_is_not_held_and_its_path_stays_leased() {
        let mut table = NodeTable::default();
        let (holder, file) = (SessionId::random(), [LeasePath::file(b"a")]);
        let first = take(&mut table, &file, holder).unwrap();
        table.grant(first);
        assert!(table.lose(first));
        assert!(!table.holds(first) && table.granted_leases().is_empty());
        assert_eq!(take(&mut table, &file, SessionId::random()), Err((holder, LeaseConflict::Same)));
        table.release(first);
        let second = take(&mut table, &file, holder).unwrap();
        assert!(!table.lose(first));
        assert!(table.holds(second) && !table.holds(first));
    }

    #[test]
    fn an_ending_lease_is_not_refreshed_and_its_path_stays_leased() {
        let mut table = NodeTable::default();
        let (holder, file) = (SessionId::random(), [LeasePath::file(b"a")]);
        let lease = take(&mut table, &file, holder).unwrap();
        table.grant(lease);
        assert!(table.end(lease));
        assert!(table.granted_leases().is_empty());
        assert_eq!(take(&mut table, &file, SessionId::random()), Err((holder, LeaseConflict::Same)));
        table.release(lease);
        let next = take(&mut table, &file, holder).unwrap();
        assert!(!table.end(lease) && table.holds(next));
    }

    #[test]
    fn a_tree_conflicts_with_paths_below_and_trees_above_only() {
        let mut table = NodeTable::default();
        let holder = SessionId::random();
        let [file, tree] = [b"a/b/c", b"d/e/f"];
        let first = take(&mut table, &[LeasePath::file(file), LeasePath::tree(tree)], holder).unwrap();
        let mut check = |path: LeasePath| {
            let taken = take(&mut table, std::slice::from_ref(&path), SessionId::random());
            taken.map(|grant| table.release(grant)).map_err(|(of, conflict)| {
                assert_eq!(of, holder);
                conflict
            })
        };
        for (path, as_file, as_tree) in [
            ("a/b/c", Some(LeaseConflict::Same), Some(LeaseConflict::Same)),
            ("a/b", None, Some(LeaseConflict::Below)),
            ("a", None, Some(LeaseConflict::Below)),
            ("", None, Some(LeaseConflict::Below)),
            // Names with the same beginning that sort before and after `/`.
            ("a/b/c ", None, None),
            ("a/b/c0", None, None),
            ("a/b/c/d", None, None),
            ("a/", None, None),
            ("d/e/f", Some(LeaseConflict::Same), Some(LeaseConflict::Same)),
            ("d/e/f/g/h", Some(LeaseConflict::Above), Some(LeaseConflict::Above)),
            ("d/e/f ", None, None),
            ("d/e/f0/g", None, None),
            ("d/e", None, Some(LeaseConflict::Below)),
            ("e", None, None),
        ] {
            assert_eq!(check(LeasePath::file(path.as_bytes())).err(), as_file, "file {path}");
            assert_eq!(check(LeasePath::tree(path.as_bytes())).err(), as_tree, "tree {path}");
        }
        // A lease takes all of its paths or none.
        let some = [LeasePath::file(b"x"), LeasePath::file(file)];
        assert_eq!(take(&mut table, &some, holder), Err((holder, LeaseConflict::Same)));
        table.release(first);
        // The paths of one lease do not conflict with each other.
        let all = take(&mut table, &[LeasePath::tree(b""), LeasePath::file(b"x")], holder).unwrap();
        table.release(all);
        assert!(table.paths.is_empty() && table.leases.is_empty() && table.trees == 0);
    }

    #[test]
    fn unknown_ids_are_all_texts_but_the_exact_ids_of_sessions() {
        let mut table = NodeTable::default();
        let ann = record("ann", [192, 0, 2, 1]);
        let id = ann.id.to_string();
        table.open(ann, SessionLimits::default()).unwrap();
        let other = SessionId::random().to_string();
        let ids = [id.as_str(), &other, "", "x", "\u{ff}"].map(|id| id.as_bytes().to_vec());
        assert_eq!(table.unknown_ids(ids.to_vec()), ids[1..]);
    }
}

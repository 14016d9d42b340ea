//! The blocks that one node leases: its decisions between two answers of Redis. Pure: it knows no clock and
//! no connection. `lua/block_step.lua` is the other half of the protocol.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crate::{
    node::{NodeName, PortRange},
    passive::{BlockState, OwnBlock},
};

/// Longest time to the next refresh while the node waits for blocks.
const WAITING: Duration = Duration::from_secs(1);

/// The same for a node without any block.
const WITHOUT_BLOCKS: Duration = Duration::from_millis(200);

/// The times of the protocol. All nodes of a cluster have the same ones.
#[derive(Clone, Copy, Debug)]
pub struct BlockTimes {
    /// Time after which a node that does not refresh is dead.
    pub lease: Duration,
    /// Longest time for which a node holds a reservation after its block is lost.
    pub reservation: Duration,
}

impl BlockTimes {
    /// Time for which the blocks of a dead node rest.
    pub fn rest(self) -> Duration {
        self.reservation + Duration::from_secs(1)
    }

    /// Time for which a taken block is not used.
    pub fn settle(self) -> Duration {
        settle(self.lease)
    }
}

/// Time for which a taken block is not used, for this `node_lease`. Until then every live node and relay has
/// refreshed its map, and every live node has entered its blocks again if Redis lost them.
pub(super) fn settle(lease: Duration) -> Duration {
    lease / 3 + Duration::from_secs(1)
}

/// A node's request about its blocks, for the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStepRequest {
    /// Time of the request, by this node's clock.
    pub sent: Duration,
    /// Redis's time of the request, as far as this node knows it.
    asked_at: Option<u64>,
    has_lapsed: bool,
    claims: Vec<(PortRange, u64)>,
    released: Vec<(PortRange, u64)>,
}

/// Redis's answer about blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockReply {
    /// Redis's time, in ms since the Unix epoch.
    pub now: u64,
    step: Option<BlockStep>,
}

/// The part of the answer for a node that leases blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BlockStep {
    /// `None`: the request was too late, and its claims were ignored.
    share: Option<usize>,
    /// Ports, generation, and ms until the node may use the block.
    owned: Vec<(PortRange, u64, u64)>,
    lost: Vec<(PortRange, Option<NodeName>)>,
}

/// The changes that an answer brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockChanges {
    /// The node may use these blocks now.
    pub taken: Vec<PortRange>,
    /// These blocks belong to another node now.
    pub lost: Vec<(PortRange, Option<NodeName>)>,
    /// The node handed these blocks over.
    pub given: Vec<PortRange>,
    /// A released block has to be told to Redis at once.
    pub refresh_now: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeldState {
    /// Taken; other nodes may not know it yet.
    Settling,
    Usable,
    /// Time since which the node takes no new reservation on it.
    GivenUp(Duration),
}

#[derive(Clone, Copy, Debug)]
struct HeldBlock {
    ports: PortRange,
    generation: u64,
    state: HeldState,
}

/// The blocks of one node, and the answers of Redis about them.
#[derive(Debug)]
pub struct BlockHolder {
    times: BlockTimes,
    /// True if the node must not use blocks that another node may own by now (`registry_away` is `refuse`).
    is_strict: bool,
    /// By first port.
    held: BTreeMap<u16, HeldBlock>,
    /// Blocks to hand over with the next request.
    releasing: Vec<(PortRange, u64)>,
    share: usize,
    /// Time of the last request that was answered.
    confirmed: Option<Duration>,
    /// Redis's time in the last answer, and the time at which the answer arrived.
    clock: Option<(u64, Duration)>,
}

impl BlockHolder {
    /// A node without blocks.
    pub fn new(times: BlockTimes, is_strict: bool) -> Self {
        Self {
            times,
            is_strict,
            held: BTreeMap::new(),
            releasing: Vec::new(),
            share: 0,
            confirmed: None,
            clock: None,
        }
    }

    /// The next request to Redis. `now`: time since the boot of the host.
    pub fn request(&self, now: Duration) -> BlockStepRequest {
        let used = self.held.values().filter(|block| block.state != HeldState::Settling);
        BlockStepRequest {
            sent: now,
            // Not later than Redis's clock: the answer took some time to arrive.
            asked_at: self.clock.map(|(redis, at)| redis.saturating_add(millis(now.saturating_sub(at)))),
            has_lapsed: self.is_strict && self.has_lapsed(now),
            claims: used.map(|block| (block.ports, block.generation)).collect(),
            released: self.releasing.clone(),
        }
    }

    /// Takes in the answer to `request`, which arrived at `now`.
    pub fn answer(&mut self, request: &BlockStepRequest, reply: &BlockReply, now: Duration) -> BlockChanges {
        let mut changes = BlockChanges::default();
        self.clock = Some((reply.now, now));
        let Some(step) = &reply.step else {
            self.confirmed = Some(request.sent); // The node has a slice.
            return changes;
        };
        let Some(share) = &step.share else { return changes };
        self.confirmed = Some(request.sent);
        self.share = *share;
        self.releasing.retain(|block| {
            let is_done = request.released.contains(block);
            changes.given.extend(is_done.then_some(block.0));
            !is_done
        });
        let mut before = std::mem::take(&mut self.held);
        for &(ports, generation, wait) in &step.owned {
            // Released since the request.
            if self.releasing.iter().any(|&(released, until)| released == ports && generation <= until) {
                continue;
            }
            let old = before.remove(&ports.from()).map(|block| block.state);
            let state = match old {
                Some(HeldState::GivenUp(since)) => HeldState::GivenUp(since),
                _ if wait > 0 => HeldState::Settling,
                _ => HeldState::Usable,
            };
            if state == HeldState::Usable && old != Some(HeldState::Usable) {
                changes.taken.push(ports);
            }
            self.held.insert(ports.from(), HeldBlock { ports, generation, state });
        }
        for block in before.into_values().filter(|block| block.state != HeldState::Settling) {
            let owner = step.lost.iter().find(|(ports, _)| *ports == block.ports);
            changes.lost.push((block.ports, owner.and_then(|(_, owner)| owner.clone())));
        }
        self.give_up_surplus(now, &mut changes);
        changes
    }

    /// Gives up the blocks beyond the node's share, or takes some back if the share has risen.
    fn give_up_surplus(&mut self, now: Duration, changes: &mut BlockChanges) {
        let mut surplus = self.held.len().saturating_sub(self.share);
        // Nothing can be reserved on a block that settles: it is handed over at once.
        while surplus > 0 {
            let settling = self.held.values().rev().find(|block| block.state == HeldState::Settling);
            let Some(block) = settling.copied() else { break };
            self.held.remove(&block.ports.from());
            self.releasing.push((block.ports, block.generation));
            changes.refresh_now = true;
            surplus -= 1;
        }
        let given_up = |block: &&mut HeldBlock| matches!(block.state, HeldState::GivenUp(_));
        let already = self.held.values_mut().filter(given_up).count();
        if already > surplus {
            for block in self.held.values_mut().filter(given_up).take(already - surplus) {
                block.state = HeldState::Usable;
            }
        } else {
            let usable = self.held.values_mut().rev().filter(|block| block.state == HeldState::Usable);
            for block in usable.take(surplus - already) {
                block.state = HeldState::GivenUp(now);
            }
        }
    }

    /// Hands over a block that the node has given up. Returns false if it has no such block.
    pub fn release(&mut self, ports: PortRange) -> bool {
        let found = self.held.get(&ports.from()).copied();
        let Some(block) = found.filter(|block| block.ports == ports) else { return false };
        if !matches!(block.state, HeldState::GivenUp(_)) {
            return false;
        }
        self.held.remove(&ports.from());
        self.releasing.push((ports, block.generation));
        true
    }

    /// Hands over the blocks on which no reservation can be left. Returns true if there are some.
    pub fn release_overdue(&mut self, now: Duration) -> bool {
        let rest = self.times.rest();
        let overdue =
            |block: &&HeldBlock| matches!(block.state, HeldState::GivenUp(since) if now >= since + rest);
        let overdue: Vec<PortRange> = self.held.values().filter(overdue).map(|block| block.ports).collect();
        let released = overdue.into_iter().filter(|ports| self.release(*ports)).count();
        released > 0
    }

    /// The blocks that the node may use, in the order of their ports.
    pub fn usable(&self) -> Vec<OwnBlock> {
        let usable = self.held.values().filter_map(|block| {
            let state = match block.state {
                HeldState::Settling => return None,
                HeldState::Usable => BlockState::Leased,
                HeldState::GivenUp(_) => BlockState::GivenUp,
            };
            Some(OwnBlock { ports: block.ports, generation: block.generation, state })
        });
        usable.collect()
    }

    /// Returns false if other nodes may own the blocks by now, and the node must not use them then.
    pub fn may_reserve(&self, now: Duration) -> bool {
        !(self.is_strict && self.has_lapsed(now))
    }

    /// True if Redis has not confirmed the blocks within a lease.
    fn has_lapsed(&self, now: Duration) -> bool {
        self.confirmed.is_none_or(|confirmed| now >= confirmed + self.times.lease)
    }

    /// The number of blocks that are the node's share, by the last answer.
    pub fn share(&self) -> usize {
        self.share
    }

    /// Longest time to the next refresh.
    pub fn next_refresh(&self) -> Duration {
        let usual = self.times.lease / 3;
        let waits = self.held.values().any(|block| block.state == HeldState::Settling);
        if self.held.is_empty() && self.share > 0 {
            usual.min(WITHOUT_BLOCKS)
        } else if waits || self.held.len() < self.share {
            usual.min(WAITING)
        } else {
            usual
        }
    }
}

impl BlockStepRequest {
    /// The last arguments of `publish_node.lua`, from the rest to the released blocks.
    pub fn arguments(&self, holder: &BlockHolder) -> [String; 7] {
        let flag = |flag: bool| u8::from(flag).to_string();
        let words = |blocks: &[(PortRange, u64)]| {
            let mut words = String::new();
            for (ports, generation) in blocks {
                // Writing to memory does not fail.
                let _ = write!(words, "{ports}:{generation} ");
            }
            words
        };
        [
            millis(holder.times.rest()).to_string(),
            millis(holder.times.settle()).to_string(),
            flag(holder.is_strict),
            flag(self.has_lapsed),
            self.asked_at.map(|at| at.to_string()).unwrap_or_default(),
            words(&self.claims),
            words(&self.released),
        ]
    }
}

impl BlockReply {
    /// Reads the words of the script. `None`: they are malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let now = words.next()?.parse().ok()?;
        let Some(share) = words.next() else { return Some(Self { now, step: None }) };
        let share = if share == "late" { None } else { Some(share.parse().ok()?) };
        let mut step = BlockStep { share, ..BlockStep::default() };
        for word in words {
            let mut parts = word.splitn(3, ':');
            let (ports, generation, last) = (parts.next()?, parts.next()?, parts.next()?);
            let ports: PortRange = ports.parse().ok()?;
            match last.strip_prefix('-') {
                Some(owner) => step.lost.push((ports, owner.parse().ok())),
                None => step.owned.push((ports, generation.parse().ok()?, last.parse().ok()?)),
            }
        }
        Some(Self { now, step: Some(step) })
    }

    /// Returns true if the request was under way for so long that Redis ignored its claims.
    pub fn is_late(&self) -> bool {
        self.step.as_ref().is_some_and(|step| step.share.is_none())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn holder(is_strict: bool) -> BlockHolder {
        BlockHolder::new(BlockTimes { lease: SECOND * 30, reservation: SECOND * 30 }, is_strict)
    }

    fn take_in(holder: &mut BlockHolder, reply: &str, now: Duration) -> BlockChanges {
        let request = holder.request(now);
        holder.answer(&request, &BlockReply::parse(reply).unwrap(), now)
    }

    fn usable(holder: &BlockHolder) -> Vec<String> {
        let name = |block: &OwnBlock| format!("{} {:?}", block.ports, block.state);
        holder.usable().iter().map(name).collect()
    }

    #[test]
    fn a_block_is_used_after_an_answer_says_that_it_has_settled() {
        let mut holder = holder(false);
        assert_eq!(holder.next_refresh(), SECOND * 10);
        take_in(&mut holder, "1000 1 50-54:7:11000", SECOND);
        assert!(holder.usable().is_empty() && holder.request(SECOND).claims.is_empty());
        assert_eq!(holder.next_refresh(), SECOND);
        let changes = take_in(&mut holder, "12000 1 50-54:7:0", SECOND * 12);
        assert_eq!(changes.taken, ["50-54".parse().unwrap()]);
        assert_eq!(usable(&holder), ["50-54 Leased"]);
        assert_eq!(holder.request(SECOND * 13).claims.len(), 1);
        assert_eq!(holder.next_refresh(), SECOND * 10);
    }

    #[test]
    fn the_surplus_is_given_up_from_the_highest_port_and_taken_back_if_the_share_rises() {
        let mut holder = holder(false);
        take_in(&mut holder, "1000 3 50-54:7:0 55-59:7:0 60-64:7:0", SECOND);
        take_in(&mut holder, "1000 1 50-54:7:0 55-59:7:0 60-64:7:0", SECOND * 2);
        assert_eq!(usable(&holder), ["50-54 Leased", "55-59 GivenUp", "60-64 GivenUp"]);
        take_in(&mut holder, "1000 2 50-54:7:0 55-59:7:0 60-64:7:0", SECOND * 3);
        assert_eq!(usable(&holder), ["50-54 Leased", "55-59 Leased", "60-64 GivenUp"]);
        assert!(!holder.release("55-59".parse().unwrap()) && holder.release("60-64".parse().unwrap()));
        let request = holder.request(SECOND * 4);
        assert_eq!(request.arguments(&holder)[5..], ["50-54:7 55-59:7 ", "60-64:7 "]);
        let reply = BlockReply::parse("4000 2 50-54:7:0 55-59:7:0").unwrap();
        let changes = holder.answer(&request, &reply, SECOND * 4);
        assert_eq!((changes.given.len(), changes.lost.len()), (1, 0));
    }

    #[test]
    fn a_given_up_block_is_handed_over_when_no_reservation_can_be_left() {
        let mut holder = holder(false);
        take_in(&mut holder, "1000 2 50-54:7:0 55-59:7:0", SECOND);
        take_in(&mut holder, "1000 1 50-54:7:0 55-59:7:0", SECOND * 2);
        assert!(!holder.release_overdue(SECOND * 32) && holder.release_overdue(SECOND * 33));
        assert_eq!(usable(&holder), ["50-54 Leased"]);
    }

    #[test]
    fn a_lost_block_is_named_with_its_owner() {
        let mut holder = holder(false);
        take_in(&mut holder, "1000 1 50-54:7:0", SECOND);
        let changes = take_in(&mut holder, "2000 1 50-54:9:-b", SECOND * 2);
        assert_eq!(changes.lost, [("50-54".parse().unwrap(), Some("b".parse().unwrap()))]);
        assert!(holder.usable().is_empty());
        assert_eq!(holder.next_refresh(), Duration::from_millis(200));
    }

    #[test]
    fn a_late_answer_changes_only_the_clock() {
        let mut holder = holder(true);
        take_in(&mut holder, "1000 1 50-54:7:0", SECOND);
        take_in(&mut holder, "61000 late", SECOND * 61);
        assert_eq!(usable(&holder), ["50-54 Leased"]);
        assert!(!holder.may_reserve(SECOND * 61));
        let arguments = holder.request(SECOND * 62).arguments(&holder);
        assert_eq!(arguments, ["31000", "11000", "1", "1", "62000", "50-54:7 ", ""]);
    }

    #[test]
    fn malformed_words_are_refused() {
        for text in ["", "x", "1 x", "1 1 50", "1 1 50-54:x:0", "1 1 50-54:1:", "1 1 54-50:1:0"] {
            assert_eq!(BlockReply::parse(text), None, "{text:?}");
        }
        assert_eq!(BlockReply::parse("7"), Some(BlockReply { now: 7, step: None }));
    }
}

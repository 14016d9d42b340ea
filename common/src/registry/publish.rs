//! Publishing a node: one script that enters or renews the node in Redis, and reads the revision and its
//! orders.

use std::{sync::LazyLock, time::Duration};

use redis::{ErrorKind, RedisError};

use super::{
    EssentialScript, LinkError, block_holder::BlockReply, cluster::Cluster, core::Core, events::NameHolder,
    orders::OrdersInRedis, view::to_json,
};
use crate::{
    clock::since_boot,
    node::{NodeName, NodeState, PortRange},
    passive::{PassiveAssignment, PassiveLayout},
    sync::lock,
};

static PUBLISH_NODE: LazyLock<EssentialScript> = LazyLock::new(|| {
    EssentialScript::new(concat!(include_str!("lua/block_step.lua"), include_str!("lua/publish_node.lua")))
});

/// The result of publishing a node.
pub(super) enum PublishOutcome {
    Joined(JoinedNode),
    /// This live node owns some of this node's ports.
    SliceTaken(NodeName, PortRange, NodeInRedis),
    /// This live node leases blocks of another layout.
    LayoutDiffers(NodeName, PassiveLayout, NodeInRedis),
    /// This other process holds the node's name. Its lease ends after the duration unless the process
    /// renews it.
    NameTaken(NameHolder, Duration),
    /// No other process holds the name.
    NameFree,
}

/// The reason for publishing a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PublishReason {
    /// The process has just started. An earlier process at the same place is dead.
    Start,
    /// As `Start`, but the process serves clients already, because Redis was away when it started.
    Late,
    /// The process has joined before, and renews its lease.
    Keep,
    /// Changes nothing; only tells whether another process holds the name.
    Look,
}

/// The entries of a node that Redis had when the node was published.
#[derive(Clone, Copy)]
pub(super) struct NodeInRedis {
    /// Number of the node's sessions.
    pub sessions: usize,
    /// True if this process's entry had not expired.
    pub alive: bool,
}

/// The reply to a node that has joined.
pub(super) struct JoinedNode {
    pub before: NodeInRedis,
    /// The revision of the accounts.
    pub revision: u64,
    /// The orders for this process.
    pub orders: OrdersInRedis,
    blocks: BlockReply,
}

impl Cluster {
    /// Enters or renews the node and its blocks.
    pub(super) async fn publish(
        &self,
        core: &Core,
        reason: PublishReason,
    ) -> Result<PublishOutcome, LinkError> {
        let (name, incarnation) = self.process();
        let (_, ports) = self.ours();
        let record = core.record();
        let request = lock(&self.blocks).request(since_boot());
        let mut call = PUBLISH_NODE.on(self.link()).prepare_invoke();
        call.key(self.keys().nodes())
            .key(self.keys().node(name))
            .key(self.keys().node_commands(name))
            .key(self.keys().node_sessions(name))
            .key(self.keys().revision())
            .key(self.keys().node_orders(name))
            .key(self.keys().blocks())
            .arg(name.as_str())
            .arg(incarnation)
            .arg(self.place())
            .arg(match reason {
                PublishReason::Start => "start",
                PublishReason::Late => "late",
                PublishReason::Keep => "keep",
                PublishReason::Look => "look",
            })
            .arg(ports.from())
            .arg(ports.to())
            .arg(to_json(&record))
            .arg(self.lease_ms())
            .arg(self.retention_ms())
            .arg(u8::from(record.state == NodeState::Draining));
        match self.assignment {
            PassiveAssignment::Slice(_) => call.arg(0),
            PassiveAssignment::Leased(layout) => {
                call.arg(layout.block_ports()).arg(&request.arguments(&lock(&self.blocks)))
            }
        };
        let reply: Vec<Vec<u8>> = self.link().script(&call).await?;
        let reply: Vec<_> = reply.iter().map(|field| String::from_utf8_lossy(field)).collect();
        let fields: Vec<&str> = reply.iter().map(|field| &**field).collect();
        let outcome = parse_reply(&fields).ok_or_else(|| {
            LinkError::Reply(RedisError::from((ErrorKind::UnexpectedReturnType, "publish_node.lua")))
        })?;
        if let PublishOutcome::Joined(joined) = &outcome {
            self.note_blocks(core, &request, &joined.blocks);
        }
        Ok(outcome)
    }
}

fn parse_reply(fields: &[&str]) -> Option<PublishOutcome> {
    Some(match *fields {
        ["joined", sessions, alive, revision, blocks, ref orders @ ..] => {
            PublishOutcome::Joined(JoinedNode {
                blocks: BlockReply::parse(blocks)?,
                before: NodeInRedis::parse(sessions, alive)?,
                revision: revision.parse().unwrap_or(0),
                orders: OrdersInRedis::parse(orders),
            })
        }
        ["named", record, left] => {
            let holder = NameHolder(serde_json::from_str(record).ok().map(Box::new));
            PublishOutcome::NameTaken(holder, Duration::from_millis(left.parse().ok()?))
        }
        ["free"] => PublishOutcome::NameFree,
        ["taken", sessions, alive, name, from, to] => {
            let slice = PortRange::new(from.parse().ok()?, to.parse().ok()?).ok()?;
            PublishOutcome::SliceTaken(name.parse().ok()?, slice, NodeInRedis::parse(sessions, alive)?)
        }
        ["layout", sessions, alive, name, from, to, block_ports] => {
            let range = PortRange::new(from.parse().ok()?, to.parse().ok()?).ok()?;
            let layout = PassiveLayout::new(range, block_ports.parse().ok()?);
            PublishOutcome::LayoutDiffers(name.parse().ok()?, layout, NodeInRedis::parse(sessions, alive)?)
        }
        _ => return None,
    })
}

impl NodeInRedis {
    fn parse(sessions: &str, alive: &str) -> Option<Self> {
        Some(Self { sessions: sessions.parse().ok()?, alive: alive == "1" })
    }
}

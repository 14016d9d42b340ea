//! Orders of administrators to a node: state in Redis that stands until it is done.
//!
//! A command in a list reaches a node at once, but is lost if the connection breaks after Redis gave it
//! away. So each command that must not be lost also stands in a hash, which the node reads with each refresh
//! ([`Keys::node_orders`](crate::keys::Keys::node_orders)). An order names a process, and is void for the next
//! process of the same node.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    str::FromStr,
};

use crate::{node::NodeCommand, session::SessionId};

/// An order stands for so many seconds at most, and for so many seconds it is known that a node has drained.
pub(super) const ORDER_LIFE: u32 = 24 * 3600;

/// What a process of a node is to do. `Display` is its name in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Order {
    Drain,
    End(SessionId),
}

impl Order {
    /// The order that stands until `command` is done. Sessions of a user end by the revision of the accounts
    /// if the command is lost.
    pub fn of(command: &NodeCommand) -> Option<Self> {
        match command {
            NodeCommand::Drain => Some(Self::Drain),
            NodeCommand::EndSession { session } => Some(Self::End(*session)),
            NodeCommand::EndUser { .. } => None,
        }
    }

    pub fn command(self) -> NodeCommand {
        match self {
            Self::Drain => NodeCommand::Drain,
            Self::End(session) => NodeCommand::EndSession { session },
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => f.write_str("drain"),
            Self::End(session) => write!(f, "end:{session}"),
        }
    }
}

impl FromStr for Order {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix("end:") {
            Some(session) => session.parse().map(Self::End).map_err(drop),
            None if text == "drain" => Ok(Self::Drain),
            None => Err(()),
        }
    }
}

/// What administrators have asked of a node, as authd shows it. The times are seconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOrders {
    /// When the node was told to drain.
    pub drain: Option<u64>,
    /// When it had drained, and left.
    pub drained: Option<u64>,
    /// When each session that is still there was told to end.
    pub ends: BTreeMap<SessionId, u64>,
}

impl NodeOrders {
    /// Reads the fields of the hash. A field that is no order is skipped.
    pub(super) fn new(fields: &[(String, String)]) -> Self {
        let mut orders = Self::default();
        for (field, value) in fields {
            let Ok(at) = value.parse() else { continue };
            match field.parse() {
                Ok(Order::Drain) => orders.drain = Some(at),
                Ok(Order::End(session)) => drop(orders.ends.insert(session, at)),
                Err(()) if field == "drained" => orders.drained = Some(at),
                Err(()) => {}
            }
        }
        orders
    }
}

/// The orders of a node's own process: which stood at the last refresh, and which the node was told of.
#[derive(Default)]
pub(super) struct LocalOrders {
    seen: HashSet<Order>,
    /// With whether the node was told since the last refresh.
    told: HashMap<Order, bool>,
}

impl LocalOrders {
    /// The node was told of a command that came through the list.
    pub fn note(&mut self, command: &NodeCommand) {
        self.told.extend(Order::of(command).map(|order| (order, true)));
    }

    /// Takes the orders that stand now. Returns those that the node must be told of: it was not told through
    /// the list since the refresh before. `true`: there are others, which came just now.
    pub fn refresh(&mut self, standing: Vec<Order>) -> (Vec<Order>, bool) {
        let standing: HashSet<Order> = standing.into_iter().collect();
        // Redis may have answered this refresh before the order of a command stood that the node has had since.
        self.told.retain(|order, is_new| std::mem::take(is_new) || standing.contains(order));
        let is_told = |order: &Order| self.told.contains_key(order);
        let untold: Vec<Order> = standing.iter().filter(|order| !is_told(order)).copied().collect();
        let (late, fresh): (Vec<Order>, Vec<Order>) =
            untold.into_iter().partition(|order| self.seen.contains(order));
        self.seen = standing;
        (late, !fresh.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_its_name() {
        for order in [Order::Drain, Order::End(SessionId::random())] {
            assert_eq!(order.to_string().parse(), Ok(order));
            assert_eq!(Order::of(&order.command()), Some(order));
        }
        for text in ["", "drained", "end:", "end:x", "incarnation"] {
            assert_eq!(text.parse::<Order>(), Err(()), "{text:?}");
        }
    }

    #[test]
    fn a_command_that_was_lost_is_told_once_at_the_second_refresh() {
        let (lost, heard) = (Order::End(SessionId::random()), Order::End(SessionId::random()));
        let mut own = LocalOrders::default();
        own.note(&heard.command());
        assert_eq!(own.refresh(vec![lost]), (Vec::new(), true));
        assert_eq!(own.refresh(vec![lost, heard]), (vec![lost], false));
        own.note(&lost.command());
        assert_eq!(own.refresh(vec![lost]), (Vec::new(), false));
        for _ in 0..2 {
            assert_eq!(own.refresh(Vec::new()), (Vec::new(), false));
        }
        assert!(own.told.is_empty() && own.seen.is_empty());
    }
}

//! Orders: instructions of administrators to a node that stay in Redis until they are carried out.
//!
//! A command in a node's list reaches the node at once, but is lost if the connection breaks while Redis
//! sends it. So each command that must not be lost is also an order in a hash, which the node reads at each
//! refresh ([`Keys::node_orders`](crate::keys::Keys::node_orders)). An order names a process, and is void
//! for later processes of the same node.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    str::FromStr,
};

use crate::{node::NodeCommand, session::SessionId};

/// Lifetime of an order, and of the note that a node has drained, in seconds.
pub(super) const ORDER_LIFE: u32 = 24 * 3600;

/// An order to one process of a node. `Display` is its field in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Order {
    Drain,
    Undrain,
    End(SessionId),
}

impl Order {
    /// The order for `command`, if it has one. [`NodeCommand::EndUser`] has none: if it is lost, the new
    /// revision of the accounts ends the sessions. [`NodeCommand::Refresh`] has none: a node refreshes
    /// anyway. [`NodeCommand::Watch`], [`NodeCommand::Report`] and [`NodeCommand::ReplayEvents`] have none:
    /// the asking program sends them again.
    pub(super) fn of(command: &NodeCommand) -> Option<Self> {
        match command {
            NodeCommand::Drain => Some(Self::Drain),
            NodeCommand::Undrain => Some(Self::Undrain),
            NodeCommand::EndSession { session, .. } => Some(Self::End(*session)),
            NodeCommand::EndUser { .. }
            | NodeCommand::Refresh
            | NodeCommand::Watch { .. }
            | NodeCommand::ReplayEvents { .. }
            | NodeCommand::Report { .. } => None,
        }
    }

    /// The command that carries out the order. `reason`: why a session ends.
    pub(super) fn command(self, reason: Option<String>) -> NodeCommand {
        match self {
            Self::Drain => NodeCommand::Drain,
            Self::Undrain => NodeCommand::Undrain,
            Self::End(session) => NodeCommand::EndSession { session, reason },
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => f.write_str("drain"),
            Self::Undrain => f.write_str("undrain"),
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
            None if text == "undrain" => Ok(Self::Undrain),
            None => Err(()),
        }
    }
}

/// The orders to a process as [`publish_node.lua`](super::publish) returns them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OrdersInRedis {
    pub orders: Vec<Order>,
    /// The reasons of the orders to end sessions.
    pub reasons: HashMap<SessionId, String>,
}

impl OrdersInRedis {
    /// Reads the words of the reply: orders, and `why:ID REASON`. Unknown words are skipped.
    pub(super) fn parse(words: &[&str]) -> Self {
        let mut found = Self::default();
        for word in words {
            match word.strip_prefix(REASON_PREFIX).and_then(|why| why.split_once(' ')) {
                Some((session, reason)) => {
                    found.reasons.extend(session.parse().ok().map(|session| (session, reason.to_owned())));
                }
                None => found.orders.extend(word.parse::<Order>().ok()),
            }
        }
        found
    }
}

/// First part of the field that holds the reason of an order to end a session.
const REASON_PREFIX: &str = "why:";

/// The field in Redis for the reason of an order to end `session`.
pub(super) fn reason_field(session: SessionId) -> String {
    format!("{REASON_PREFIX}{session}")
}

/// The orders to a node as authd shows them. All times are seconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOrders {
    /// Time of the order to drain.
    pub drain: Option<u64>,
    /// Time of the order to end a drain.
    pub undrain: Option<u64>,
    /// Time at which the node had drained, and left.
    pub drained: Option<u64>,
    /// Sessions that have not ended yet, with the time of the order to end each of them.
    pub ends: BTreeMap<SessionId, u64>,
}

impl NodeOrders {
    /// Reads the fields of the hash. Unknown fields are skipped.
    pub(super) fn new(fields: &[(String, String)]) -> Self {
        let mut orders = Self::default();
        for (field, value) in fields {
            let Ok(at) = value.parse() else { continue };
            match field.parse() {
                Ok(Order::Drain) => orders.drain = Some(at),
                Ok(Order::Undrain) => orders.undrain = Some(at),
                Ok(Order::End(session)) => drop(orders.ends.insert(session, at)),
                Err(()) if field == "drained" => orders.drained = Some(at),
                Err(()) => {}
            }
        }
        orders
    }
}

/// The orders to the node's own process.
#[derive(Default)]
pub(super) struct LocalOrders {
    /// The orders at the last refresh.
    seen: HashSet<Order>,
    /// The orders that were passed to the node. True: since the last refresh.
    passed_on: HashMap<Order, bool>,
}

impl LocalOrders {
    /// Notes that `command` was passed to the node.
    pub(super) fn note(&mut self, command: &NodeCommand) {
        self.passed_on.extend(Order::of(command).map(|order| (order, true)));
    }

    /// Returns true if the command of `order` was passed to the node.
    pub(super) fn is_passed_on(&self, order: &Order) -> bool {
        self.passed_on.contains_key(order)
    }

    /// Compares the current orders with those of the last refresh. Returns the orders to pass to the node
    /// now: they were in Redis at the last refresh too, but their command has not arrived. The flag tells
    /// whether there are new orders whose command has not arrived; it may still do so.
    pub(super) fn refresh(&mut self, current: Vec<Order>) -> (Vec<Order>, bool) {
        let current: HashSet<Order> = current.into_iter().collect();
        // An order that was passed on since the last refresh is kept: Redis may have answered this refresh
        // before the order was entered.
        self.passed_on.retain(|order, is_new| std::mem::take(is_new) || current.contains(order));
        let open = current.iter().filter(|order| !self.is_passed_on(order)).copied();
        let (late, new): (Vec<Order>, Vec<Order>) = open.partition(|order| self.seen.contains(order));
        self.seen = current;
        (late, !new.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_its_text_form() {
        for order in [Order::Drain, Order::Undrain, Order::End(SessionId::random())] {
            assert_eq!(order.to_string().parse(), Ok(order));
            assert_eq!(Order::of(&order.command(None)), Some(order));
        }
        for text in ["", "drained", "end:", "end:x", "incarnation"] {
            assert_eq!(text.parse::<Order>(), Err(()), "{text:?}");
        }
    }

    #[test]
    fn an_order_with_a_lost_command_is_passed_on_once_at_the_second_refresh() {
        let (lost, heard) = (Order::End(SessionId::random()), Order::End(SessionId::random()));
        let mut own = LocalOrders::default();
        own.note(&heard.command(None));
        assert_eq!(own.refresh(vec![lost]), (Vec::new(), true));
        assert_eq!(own.refresh(vec![lost, heard]), (vec![lost], false));
        own.note(&lost.command(None));
        assert_eq!(own.refresh(vec![lost]), (Vec::new(), false));
        for _ in 0..2 {
            assert_eq!(own.refresh(Vec::new()), (Vec::new(), false));
        }
        assert!(own.passed_on.is_empty() && own.seen.is_empty());
    }

    #[test]
    fn the_words_of_a_reply_are_orders_and_their_reasons() {
        let session = SessionId::random();
        let (end, why) = (format!("end:{session}"), format!("{} too slow: 3 kB/s", reason_field(session)));
        let found = OrdersInRedis::parse(&[&why, "drain", "undrain", &end, "other", "why:x y", "why:"]);
        assert_eq!(found.orders, [Order::Drain, Order::Undrain, Order::End(session)]);
        assert_eq!(found.reasons, [(session, "too slow: 3 kB/s".to_owned())].into());
    }
}

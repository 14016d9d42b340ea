//! Reading the shared registry and sending commands to nodes, for authd and for nodes that list sessions.

use std::collections::BTreeMap;

use redis::cmd;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    ConfirmedLink, EssentialScript, LinkError, RedisLink, RedisOptions,
    orders::{NodeOrders, ORDER_LIFE, Order, reason_field},
};
use crate::{
    keys::Keys,
    node::{NodeCommand, NodeName, NodeRecord},
    session::{SessionId, SessionRecord},
};

/// Lifetime of a node's list of commands after its last command, in seconds. Commands that must survive
/// longer are orders too.
const COMMAND_LIFE: u32 = 60;

// An order must outlive the list that it backs up.
const _: () = assert!(COMMAND_LIFE < ORDER_LIFE);

/// Maximum number of commands in a node's list. The oldest are dropped.
const COMMANDS_WAITING: u32 = 1000;

/// A reader of the shared registry and sender of commands. Cheap to clone.
#[derive(Clone)]
pub struct RegistryView {
    link: RedisLink,
    keys: Keys,
    confirmed: ConfirmedLink,
}

impl RegistryView {
    /// A view that connects at its first use.
    pub fn new(options: &RedisOptions) -> Self {
        let link = RedisLink::new(&options.servers, options.timeout);
        let confirmed = ConfirmedLink::new(options, &link);
        Self { link, keys: Keys::new(&options.prefix), confirmed }
    }

    /// The connection, for other data of the daemon in Redis.
    pub fn link(&self) -> &RedisLink {
        &self.link
    }

    /// The connection for writes that replicas must confirm.
    pub fn confirmed(&self) -> &ConfirmedLink {
        &self.confirmed
    }

    /// The names of the cluster's keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The live nodes, by name.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, LinkError> {
        let mut nodes = Vec::new();
        for name in self.names().await? {
            let key = self.keys.node(&name);
            let record = self.link.query(cmd("HGET").arg(&key).arg("record")).await;
            let record: Option<Vec<u8>> = or_skip(record, &key)?;
            let Some(record) = record else { continue };
            nodes.extend(parse(&record, &key).filter(|node: &NodeRecord| node.name == name));
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    /// The sessions of all live nodes.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn sessions(&self) -> Result<Vec<SessionRecord>, LinkError> {
        let mut sessions = Vec::new();
        // One node per request, so that Redis serves other clients in between.
        for node in self.nodes().await? {
            let key = self.keys.node_sessions(&node.name);
            let hash = self.link.query(cmd("HGETALL").arg(&key)).await;
            let hash: Vec<(Vec<u8>, Vec<u8>)> = or_skip(hash, &key)?;
            sessions.extend(hash.iter().filter_map(|(id, record)| {
                parse(record, &key).filter(|record| is_in_place(record, id, &node.name))
            }));
        }
        Ok(sessions)
    }

    /// The sessions of one user on all live nodes. Reads the records of that user's sessions only.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn sessions_of(&self, user: &str) -> Result<Vec<SessionRecord>, LinkError> {
        let key = self.keys.user_sessions(user);
        let entries = self.link.query(cmd("ZRANGE").arg(&key).arg(0).arg(-1)).await;
        let entries: Vec<Vec<u8>> = or_skip(entries, &key)?;
        let mut processes = BTreeMap::<(NodeName, String), Vec<String>>::new();
        for entry in entries {
            // An entry is `ID NAME INCARNATION`. Anything else was not written by a node, and is skipped.
            let Ok(entry) = String::from_utf8(entry) else { continue };
            let mut words = entry.split(' ').map(str::to_owned);
            let (Some(id), Some(name), Some(incarnation)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let Ok(name) = name.parse() else { continue };
            processes.entry((name, incarnation)).or_default().push(id);
        }
        let mut sessions = Vec::new();
        for ((node, incarnation), ids) in processes {
            let key = self.keys.node(&node);
            let living = self.link.query(cmd("HGET").arg(&key).arg("incarnation")).await;
            let living: Option<Vec<u8>> = or_skip(living, &key)?;
            if living.as_deref() != Some(incarnation.as_bytes()) {
                continue;
            }
            let key = self.keys.node_sessions(&node);
            let records = self.link.query(cmd("HMGET").arg(&key).arg(&ids)).await;
            let records: Vec<Option<Vec<u8>>> = or_skip(records, &key)?;
            sessions.extend(ids.iter().zip(records).filter_map(|(id, record)| {
                let record = parse(&record?, &key)?;
                (is_in_place(&record, id.as_bytes(), &node) && record.user == user).then_some(record)
            }));
        }
        Ok(sessions)
    }

    /// The session with this id; `None` if no live node has it.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn find_session(&self, id: SessionId) -> Result<Option<SessionRecord>, LinkError> {
        let id = id.to_string();
        for node in self.nodes().await? {
            let key = self.keys.node_sessions(&node.name);
            let record = self.link.query(cmd("HGET").arg(&key).arg(&id)).await;
            let record: Option<Vec<u8>> = or_skip(record, &key)?;
            let found = record
                .and_then(|record| parse(&record, &key))
                .filter(|record| is_in_place(record, id.as_bytes(), &node.name));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Sends a command to a node. Returns false if there is no live node of this name. A command to drain
    /// or to end a session becomes an order too, until it is carried out, a day has passed, or the node's
    /// process has ended.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn send(&self, node: &NodeName, command: &NodeCommand) -> Result<bool, LinkError> {
        let script = EssentialScript::new(include_str!("lua/send_command.lua"));
        let mut call = script.on(&self.link).prepare_invoke();
        call.key(self.keys.node(node)).key(self.keys.node_commands(node)).key(self.keys.node_orders(node));
        call.arg(to_json(command)).arg(COMMAND_LIFE).arg(COMMANDS_WAITING);
        let order = Order::of(command);
        call.arg(order.map(|order| order.to_string()).unwrap_or_default()).arg(ORDER_LIFE);
        match command {
            NodeCommand::EndSession { session, reason: Some(reason) } => {
                call.arg(reason_field(*session)).arg(reason);
            }
            _ => {
                call.arg("").arg("");
            }
        }
        self.link.script(&call).await
    }

    /// The open orders to a node.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn orders(&self, node: &NodeName) -> Result<NodeOrders, LinkError> {
        let key = self.keys.node_orders(node);
        let fields = self.link.query(cmd("HGETALL").arg(&key)).await;
        Ok(NodeOrders::new(&or_skip::<Vec<(String, String)>>(fields, &key)?))
    }

    /// Gives the accounts a new revision. Each node then asks authd which of its sessions may stay.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn advance_revision(&self) -> Result<u64, LinkError> {
        let script = EssentialScript::new(include_str!("lua/advance_revision.lua"));
        let script = script.on(&self.link);
        let revision: String = self.link.script(script.prepare_invoke().key(self.keys.revision())).await?;
        // The script returns a decimal number.
        Ok(revision.parse().unwrap_or(0))
    }

    async fn names(&self) -> Result<Vec<NodeName>, LinkError> {
        let key = self.keys.nodes();
        let names: Vec<Vec<u8>> = or_skip(self.link.query(cmd("SMEMBERS").arg(&key)).await, &key)?;
        Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()?.parse().ok()).collect())
    }
}

/// The JSON form of a record in Redis.
pub(super) fn to_json(record: &impl Serialize) -> String {
    // `to_string` fails only for maps with keys that are not text and for a `Serialize` that fails. The
    // records are structs and enums of text and numbers.
    serde_json::to_string(record).expect("a record is plain data")
}

/// Parses a record from Redis. Logs and skips a malformed one, which another program may have written.
pub(super) fn parse<T: DeserializeOwned>(record: &[u8], key: &str) -> Option<T> {
    match serde_json::from_slice(record) {
        Ok(record) => Some(record),
        Err(error) => {
            log::warn!(key, error:% = error; "skipped a malformed record in Redis");
            None
        }
    }
}

/// Returns true if a record is stored under its own id and node.
fn is_in_place(record: &SessionRecord, id: &[u8], node: &NodeName) -> bool {
    record.id.to_string().as_bytes() == id && record.node == *node
}

/// Replaces a value of the wrong type by the default, and logs it.
pub(super) fn or_skip<T: Default>(answer: Result<T, LinkError>, key: &str) -> Result<T, LinkError> {
    match answer {
        Err(LinkError::Reply(error)) if error.code() == Some("WRONGTYPE") => {
            log::warn!(key, error:% = error; "skipped a value in Redis of the wrong type");
            Ok(T::default())
        }
        answer => answer,
    }
}

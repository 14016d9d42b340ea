//! Blocks: an administrator forbids the logins of a user, an address or a network, for a time or until the
//! block is removed. They are in Redis, for all authd instances.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use common::{
    admin_api::BlockSubject,
    clock::unix_seconds,
    keys::Keys,
    registry::{LinkError, RedisLink},
    sync::lock,
};
use ipnet::IpNet;
use redis::{Script, cmd};
use serde::{Deserialize, Serialize};

/// Maximum number of blocks. Each login reads all of them.
pub(crate) const MAX_BLOCKS: usize = 1000;

/// The subject of a block. `Display` is its field in Redis.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockKey {
    pub kind: BlockSubject,
    /// The user's canonical name, the address or the network.
    pub name: String,
}

/// A block as it is in Redis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoginBlock {
    /// Unix time in seconds. `None`: until an administrator removes it.
    pub until: Option<u64>,
    pub since: u64,
    pub reason: String,
    pub by: String,
}

type Blocks = BTreeMap<BlockKey, LoginBlock>;

/// The blocks in Redis, with the last known ones for the time when Redis cannot be reached.
pub(crate) struct LoginBlocks {
    redis: Option<(RedisLink, Keys)>,
    known: Mutex<Arc<Blocks>>,
}

/// The blocks at one time.
pub(crate) struct CurrentBlocks(Arc<Blocks>);

impl CurrentBlocks {
    /// Returns true if a block forbids this login.
    pub(crate) fn forbids(&self, user: Option<&str>, address: IpAddr) -> bool {
        self.forbidding(user, address).is_some()
    }

    /// The block that forbids this login.
    pub(crate) fn forbidding(&self, user: Option<&str>, address: IpAddr) -> Option<(&BlockKey, &LoginBlock)> {
        let (address, now) = (address.to_canonical(), unix_seconds());
        let mut blocks = self.0.iter().filter(|(_, block)| block.until.is_none_or(|until| until > now));
        blocks.find(|(key, _)| key.holds(user, address))
    }
}

impl BlockKey {
    /// The block of an address or a network in CIDR form. `None`: the text is neither.
    pub(crate) fn network(text: &str) -> Option<Self> {
        let network = match text.parse::<IpNet>() {
            Ok(network) => network.trunc(),
            Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?.to_canonical()),
        };
        let is_one = network.prefix_len() == network.max_prefix_len();
        let name = if is_one { network.addr().to_string() } else { network.to_string() };
        Some(Self { kind: BlockSubject::Address, name })
    }

    pub(crate) fn user(name: &str) -> Self {
        Self { kind: BlockSubject::User, name: name.to_owned() }
    }

    pub(crate) fn field(&self) -> String {
        match self.kind {
            BlockSubject::User => format!("user:{}", self.name),
            BlockSubject::Address => format!("address:{}", self.name),
        }
    }

    pub(crate) fn from_field(field: &str) -> Option<Self> {
        match field.split_once(':')? {
            ("user", name) => Some(Self::user(name)),
            ("address", network) => Self::network(network),
            _ => None,
        }
    }

    fn holds(&self, user: Option<&str>, address: IpAddr) -> bool {
        match self.kind {
            BlockSubject::User => user == Some(self.name.as_str()),
            BlockSubject::Address => match self.name.parse::<IpNet>() {
                Ok(network) => network.contains(&address),
                Err(_) => self.name.parse() == Ok(address),
            },
        }
    }
}

impl LoginBlocks {
    pub(crate) fn new(redis: Option<(RedisLink, Keys)>) -> Self {
        Self { redis, known: Mutex::default() }
    }

    /// The blocks in effect.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub(crate) async fn all(&self) -> Result<Arc<Blocks>, LinkError> {
        let Some((link, keys)) = &self.redis else { return Ok(Arc::default()) };
        let fields: Vec<(String, String)> = link.query(cmd("HGETALL").arg(keys.login_blocks())).await?;
        let now = unix_seconds();
        let (mut blocks, mut ended) = (Blocks::new(), Vec::new());
        for (field, json) in fields {
            let block = serde_json::from_str::<LoginBlock>(&json);
            match (BlockKey::from_field(&field), block) {
                (Some(key), Ok(block)) if block.until.is_none_or(|until| until > now) => {
                    blocks.insert(key, block);
                }
                (Some(_), Ok(_)) => ended.extend([field, json]),
                (None, _) | (_, Err(_)) => {
                    log::warn!(field = field.as_str(); "skipped a malformed block in Redis");
                }
            }
        }
        if !ended.is_empty() {
            // Only if it is still the same block: an administrator may have begun it anew meanwhile.
            let script = Script::new(include_str!("forget_blocks.lua"));
            let mut call = script.prepare_invoke();
            call.key(keys.login_blocks()).arg(ended);
            link.script::<()>(&call).await?;
        }
        let blocks = Arc::new(blocks);
        *lock(&self.known) = Arc::clone(&blocks);
        Ok(blocks)
    }

    /// The blocks in effect. While Redis cannot be reached, the last known ones apply.
    pub(crate) async fn current(&self) -> CurrentBlocks {
        match self.all().await {
            Ok(blocks) => CurrentBlocks(blocks),
            // The Redis link logs this itself.
            Err(_) => CurrentBlocks(Arc::clone(&lock(&self.known))),
        }
    }

    /// Begins or changes a block. Without Redis there is nothing to write to.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub(crate) async fn put(&self, key: &BlockKey, block: &LoginBlock) -> Result<(), LinkError> {
        let Some((link, keys)) = &self.redis else { return Ok(()) };
        // The struct is plain data, so it has a JSON form.
        let json = serde_json::to_string(block).unwrap_or_default();
        link.query(cmd("HSET").arg(keys.login_blocks()).arg(key.field()).arg(json)).await
    }

    /// Removes a block. Returns false if there was none.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub(crate) async fn remove(&self, key: &BlockKey) -> Result<bool, LinkError> {
        let Some((link, keys)) = &self.redis else { return Ok(false) };
        link.query(cmd("HDEL").arg(keys.login_blocks()).arg(key.field())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_its_user_address_or_network() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let network = |text: &str| BlockKey::network(text).unwrap();
        assert!(BlockKey::user("ann").holds(Some("ann"), address("::1")));
        assert!(!BlockKey::user("ann").holds(Some("bob"), address("::1")));
        assert!(!BlockKey::user("ann").holds(None, address("::1")));
        assert!(network("192.0.2.0/24").holds(None, address("192.0.2.9")));
        assert!(!network("192.0.2.0/24").holds(None, address("192.0.3.9")));
        assert!(network("::ffff:192.0.2.1").holds(None, address("192.0.2.1")));
        assert_eq!(network("192.0.2.7/24").name, "192.0.2.0/24");
        assert_eq!(network("192.0.2.7/32").name, "192.0.2.7");
        assert_eq!(BlockKey::network("ann"), None);
        for key in [BlockKey::user("a:b"), network("2001:db8::/32"), network("::1")] {
            assert_eq!(BlockKey::from_field(&key.field()), Some(key));
        }
    }
}

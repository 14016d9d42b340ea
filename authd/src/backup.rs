//! What a backup holds, as it is in Redis: read in one step, and put in place in one step.

use std::collections::BTreeMap;

use common::{
    keys::Keys,
    registry::{LinkError, RedisLink},
};
use redis::{FromRedisValue, ParsingError, Pipeline, Script, Value, cmd, from_redis_value};

/// Lifetime of a staged backup, in seconds. A restore takes less.
const STAGED_LIFE: u64 = 600;

/// Maximum number of objects in a request, so that Redis serves other clients in between.
const BATCH: usize = 500;

/// Maximum number of conflicts that an answer names.
pub(crate) const NAMED_CONFLICTS: usize = 20;

/// Objects by name, in JSON.
pub(crate) type StoredFields = BTreeMap<String, String>;

/// All objects that administrators made through the API.
#[derive(Debug, Default)]
pub(crate) struct StoredState {
    pub users: StoredFields,
    pub groups: StoredFields,
    pub overrides: StoredFields,
    pub blocks: StoredFields,
}

/// Result of an attempt to put a backup in place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RestoreOutcome {
    Done {
        removed: usize,
    },
    /// These users and groups exist with other properties. Nothing has changed.
    Conflicts(Vec<String>),
    /// Redis lost a part of the staged backup. Nothing has changed.
    Incomplete,
}

impl FromRedisValue for RestoreOutcome {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let mut items = Vec::<Value>::from_redis_value(value)?.into_iter();
        let Some(first) = items.next() else { return Ok(Self::Incomplete) };
        Ok(match from_redis_value::<i64>(first)? {
            1 => Self::Done { removed: items.next().map(from_redis_value).transpose()?.unwrap_or(0) },
            0 => Self::Conflicts(items.map(from_redis_value).collect::<Result<_, _>>()?),
            _ => Self::Incomplete,
        })
    }
}

impl StoredState {
    /// Reads everything in one transaction, so that each user's groups are those of the same moment.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub(crate) async fn read(link: &RedisLink, keys: &Keys) -> Result<Self, LinkError> {
        let mut commands = Pipeline::new();
        commands.atomic();
        for key in real_keys(keys) {
            commands.hgetall(key);
        }
        let (users, groups, overrides, blocks) = link.pipe(&commands).await?;
        Ok(Self { users, groups, overrides, blocks })
    }

    /// Puts the objects in place. With `replace` all others are removed; without it, nothing changes if a
    /// user or a group exists with another JSON. `id` is the random name of this restore.
    ///
    /// # Errors
    /// Redis cannot be reached. The objects may be in place all the same.
    pub(crate) async fn apply(
        &self,
        link: &RedisLink,
        keys: &Keys,
        id: u64,
        replace: bool,
    ) -> Result<RestoreOutcome, LinkError> {
        let parts = ["users", "groups", "overrides", "blocks"];
        let staged = parts.map(|part| keys.restore(id, part));
        let marker = keys.restore(id, "state");
        let all = [&self.users, &self.groups, &self.overrides, &self.blocks];
        for (key, fields) in staged.iter().zip(all) {
            stage(link, key, fields).await?;
        }
        link.query::<Value>(cmd("SET").arg(&marker).arg("staged").arg("EX").arg(STAGED_LIFE)).await?;
        let script = Script::new(include_str!("restore.lua"));
        let mut call = script.prepare_invoke();
        for key in real_keys(keys).iter().chain(&staged) {
            call.key(key);
        }
        call.key(&marker).key(keys.users_generation());
        call.arg(if replace { "replace" } else { "add" });
        for fields in all {
            call.arg(fields.len());
        }
        let outcome = link.script(call.arg(STAGED_LIFE)).await;
        // What is left expires by itself, too.
        let _ = link.query::<Value>(cmd("UNLINK").arg(&staged)).await;
        outcome
    }
}

fn real_keys(keys: &Keys) -> [String; 4] {
    [keys.users(), keys.groups(), keys.overrides(), keys.login_blocks()]
}

async fn stage(link: &RedisLink, key: &str, fields: &StoredFields) -> Result<(), LinkError> {
    let fields: Vec<_> = fields.iter().collect();
    for batch in fields.chunks(BATCH) {
        let mut pipe = Pipeline::new();
        pipe.hset_multiple(key, batch).ignore();
        pipe.cmd("EXPIRE").arg(key).arg(STAGED_LIFE).ignore();
        link.pipe::<()>(&pipe).await?;
    }
    Ok(())
}

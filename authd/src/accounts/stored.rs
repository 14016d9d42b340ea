//! The users made through the API, in Redis: one hash of names to users as JSON. Each change is
//! one atomic step that also counts the generation up, which every authd instance sees at its
//! next look-up.

use common::{
    keys::Keys,
    registry::{LinkError, RedisLink},
};
use redis::{Script, cmd, pipe};

use super::user::{User, UserName};

/// The users in Redis. Cheap to clone.
#[derive(Clone)]
pub struct Stored {
    link: RedisLink,
    keys: Keys,
}

/// Why a user in Redis cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Somebody or something else wrote it.
    #[error("user {name} in Redis is not one that this version can read")]
    Unreadable {
        name: UserName,
        #[source]
        source: serde_json::Error,
    },
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Done,
    /// The user to be made exists, or the one to be changed is not as it was when it was read.
    Differs,
    /// There is no such user.
    Missing,
}

/// KEYS: users, generation. ARGV: name, what must be there (empty: nothing), what is to be there
/// (empty: nothing). A step whose answer was lost may be taken again: that what is to be there is
/// there already is success too.
const WRITE: &str = "
local now = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if now == ARGV[3] and now ~= '' then return 1 end
if now ~= ARGV[2] then
  if now == '' then return -1 else return 0 end
end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1])
else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
redis.call('INCR', KEYS[2])
return 1
";

/// A user as read, to be changed only if nobody else does so meanwhile.
#[derive(Debug)]
pub struct Read {
    pub user: User,
    json: String,
}

impl Stored {
    pub fn new(link: RedisLink, keys: Keys) -> Self {
        Self { link, keys }
    }

    /// Whether Redis answered when it was last asked.
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    /// A user, and the number of changes there have been to any.
    ///
    /// # Errors
    /// Redis is away, or what it holds is no user.
    pub async fn find(&self, name: &UserName) -> Result<(Option<Read>, u64), StoredError> {
        let mut commands = pipe();
        commands.hget(self.keys.users(), name.as_str()).get(self.keys.users_generation());
        let (json, generation): (Option<String>, Option<u64>) = self.link.pipe(&commands).await?;
        let read = json.map(|json| parse(name, &json).map(|user| Read { user, json })).transpose()?;
        Ok((read, generation.unwrap_or(0)))
    }

    /// All users. One that cannot be read is left out, and the log says so.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn all(&self) -> Result<Vec<(UserName, User)>, StoredError> {
        let entries: Vec<(String, String)> = self.link.query(cmd("HGETALL").arg(self.keys.users())).await?;
        let read = |(name, json): &(String, String)| {
            let name: UserName = name.parse().ok()?;
            parse(&name, json).inspect_err(super::log_unreadable).ok().map(|user| (name, user))
        };
        Ok(entries.iter().filter_map(read).collect())
    }

    /// Makes a user.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn create(&self, name: &UserName, user: &User) -> Result<Written, StoredError> {
        self.write(name, "", &json(name, user)?).await
    }

    /// Puts `user` in the place of what was read.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn replace(&self, name: &UserName, read: &Read, user: &User) -> Result<Written, StoredError> {
        self.write(name, &read.json, &json(name, user)?).await
    }

    /// Removes what was read.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn remove(&self, name: &UserName, read: &Read) -> Result<Written, StoredError> {
        self.write(name, &read.json, "").await
    }

    async fn write(&self, name: &UserName, old: &str, new: &str) -> Result<Written, StoredError> {
        let script = Script::new(WRITE);
        let mut call = script.key(self.keys.users());
        call.key(self.keys.users_generation()).arg(name.as_str()).arg(old).arg(new);
        Ok(match self.link.script::<i64>(&call).await? {
            1 => Written::Done,
            0 => Written::Differs,
            _ => Written::Missing,
        })
    }
}

fn parse(name: &UserName, json: &str) -> Result<User, StoredError> {
    serde_json::from_str(json).map_err(|source| StoredError::Unreadable { name: name.clone(), source })
}

fn json(name: &UserName, user: &User) -> Result<String, StoredError> {
    serde_json::to_string(user).map_err(|source| StoredError::Unreadable { name: name.clone(), source })
}

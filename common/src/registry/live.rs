//! Live details of sessions and dialogues: a node writes them to Redis while an administrator asks for them.

use std::{collections::HashMap, time::Duration};

use redis::{Pipeline, Value, cmd};
use tokio::time::{Instant, sleep};

use super::{
    LinkError, Registry, RegistryView,
    view::{or_skip, parse, to_json},
};
use crate::{
    clock::since_epoch,
    ids::NodeName,
    live::{DialogueLine, NodeActivity, SessionDetails},
    node::NodeCommand,
    session::SessionId,
    sync::lock,
};

/// Lifetime of a node's details in Redis, in seconds.
const LIVE_LIFE: u32 = 5;

/// Lifetime of a dialogue in Redis, in seconds.
const DIALOGUE_LIFE: u32 = 30;

/// Interval at which a reader looks for the dialogue that it has asked for.
const DIALOGUE_POLL: Duration = Duration::from_millis(50);

/// Maximum number of sessions in one request, so that Redis serves other clients in between.
const BATCH: usize = 500;

/// The field of the time at which the node wrote its details.
const PUBLISHED: &str = "published";

impl RegistryView {
    /// Makes all live nodes publish the details of their sessions once a second, for this many seconds.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn watch(&self, seconds: u32) -> Result<(), LinkError> {
        for node in self.nodes().await? {
            self.send(&node.name, &NodeCommand::Watch { seconds }).await?;
        }
        Ok(())
    }

    /// The details of the node's sessions, at most a few seconds old. `None`: the node has not published any,
    /// because no administrator watches, it has just been told to, or its version does not know them.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn live(
        &self,
        node: &NodeName,
    ) -> Result<Option<HashMap<SessionId, SessionDetails>>, LinkError> {
        let key = self.keys().live(node);
        let fields = self.link().query(cmd("HGETALL").arg(&key)).await;
        let fields: Vec<(String, Vec<u8>)> = or_skip(fields, &key)?;
        let details = fields.iter().filter_map(|(id, details)| {
            let id = id.parse().ok()?;
            parse(details, &key).filter(|details: &SessionDetails| details.id == id).map(|found| (id, found))
        });
        Ok((!fields.is_empty()).then(|| details.collect()))
    }

    /// The last part of a session's dialogue. The session may still be without a login. `None`: no node has
    /// the session, its node keeps no dialogues or has a version that does not know them, or the node did not
    /// answer within `limit`.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn dialogue(
        &self,
        session: SessionId,
        limit: Duration,
    ) -> Result<Option<Vec<DialogueLine>>, LinkError> {
        let key = self.keys().dialogue(session);
        let deadline = Instant::now() + limit;
        // An answer to an earlier request is not the newest dialogue.
        self.link().query::<Value>(cmd("DEL").arg(&key)).await?;
        let command = NodeCommand::Report { session };
        match self.find_session(session).await? {
            Some(record) => drop(self.send(&record.node, &command).await?),
            // Before the login, only the node of the session knows it.
            None => {
                for node in self.nodes().await? {
                    self.send(&node.name, &command).await?;
                }
            }
        }
        loop {
            let answer = self.link().query(cmd("GET").arg(&key)).await;
            if let Some(lines) = or_skip::<Option<Vec<u8>>>(answer, &key)? {
                return Ok(parse(&lines, &key));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            sleep(DIALOGUE_POLL).await;
        }
    }
}

impl Registry {
    /// Publishes the node's activity with the next refresh. The registry adds the duration of Redis's last
    /// answer.
    pub fn set_activity(&self, activity: NodeActivity) {
        let redis_seconds = self.core.cluster.as_ref().and_then(|cluster| cluster.link().last_answer());
        let redis_seconds = redis_seconds.map(|time| time.as_secs_f64());
        *lock(&self.core.activity) = Some(NodeActivity { redis_seconds, ..activity });
    }

    /// Publishes the details of all sessions of this node in place of the last ones. Does nothing on a single
    /// node.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn publish_live(&self, sessions: &[SessionDetails]) -> Result<(), LinkError> {
        let Some(cluster) = &self.core.cluster else { return Ok(()) };
        let name = &self.core.node.name;
        let (key, next) = (cluster.keys().live(name), cluster.keys().next_live(name));
        let mut pipe = Pipeline::new();
        let now = u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX);
        pipe.del(&next).ignore().hset(&next, PUBLISHED, now).ignore();
        pipe.cmd("EXPIRE").arg(&next).arg(LIVE_LIFE).ignore();
        for batch in sessions.chunks(BATCH) {
            pipe.cmd("HSET").arg(&next);
            for details in batch {
                pipe.arg(details.id.to_string()).arg(to_json(details));
            }
            pipe.ignore();
            cluster.link().pipe::<()>(&pipe).await?;
            pipe = Pipeline::new();
        }
        // A reader sees the old details or the new ones, never a part of them.
        pipe.cmd("RENAME").arg(&next).arg(&key).ignore();
        pipe.cmd("EXPIRE").arg(&key).arg(LIVE_LIFE).ignore();
        cluster.link().pipe(&pipe).await
    }

    /// Publishes the dialogue of a session. Does nothing on a single node.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn publish_dialogue(
        &self,
        session: SessionId,
        lines: &[DialogueLine],
    ) -> Result<(), LinkError> {
        let Some(cluster) = &self.core.cluster else { return Ok(()) };
        let mut set = cmd("SET");
        set.arg(cluster.keys().dialogue(session)).arg(to_json(&lines)).arg("EX").arg(DIALOGUE_LIFE);
        cluster.link().query::<Value>(&set).await.map(drop)
    }
}

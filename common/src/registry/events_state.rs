//! The state of the events, which the delivering node publishes for administrators, and their stream.

use redis::{Value, cmd};

use super::{
    LinkError, Registry, RegistryView,
    view::{or_skip, parse, to_json},
};
use crate::events::EventsView;

/// Lifetime of the state in Redis, in seconds. The node publishes it more often.
const EVENTS_LIFE: u32 = 30;

/// The fields of an entry of the stream.
const ID_FIELD: &str = "id";
const EVENT_FIELD: &str = "event";

impl Registry {
    /// Appends an event to the stream of events, which keeps about `entries` entries. `json` is the event.
    /// If the connection breaks meanwhile, the stream may have the event twice, with the same id.
    ///
    /// # Errors
    /// Redis is away, or refuses the request. A single node has no Redis.
    pub async fn append_event(&self, id: &str, json: &[u8], entries: u32) -> Result<(), LinkError> {
        let Some(cluster) = &self.core.cluster else { return Err(LinkError::Away) };
        let mut add = cmd("XADD");
        add.arg(cluster.keys().events()).arg("MAXLEN").arg("~").arg(entries).arg("*");
        add.arg(ID_FIELD).arg(id).arg(EVENT_FIELD).arg(json);
        cluster.link().query::<Value>(&add).await.map(drop)
    }

    /// Publishes the state of the events. Does nothing on a single node.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn publish_events(&self, events: &EventsView) -> Result<(), LinkError> {
        let Some(cluster) = &self.core.cluster else { return Ok(()) };
        let mut set = cmd("SET");
        set.arg(cluster.keys().events_state()).arg(to_json(events)).arg("EX").arg(EVENTS_LIFE);
        cluster.link().query::<Value>(&set).await.map(drop)
    }
}

impl RegistryView {
    /// The state of the events. `None`: no node delivers events.
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn events(&self) -> Result<Option<EventsView>, LinkError> {
        let key = self.keys().events_state();
        let answer = self.link().query(cmd("GET").arg(&key)).await;
        let state: Option<Vec<u8>> = or_skip(answer, &key)?;
        Ok(state.and_then(|state| parse(&state, &key)))
    }
}

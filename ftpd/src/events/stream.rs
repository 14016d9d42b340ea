//! Appends events to the Redis stream of the cluster.

use common::{process::logging::chain, registry::Registry};

use super::target::DeliveryAttempt;

/// The Redis stream of events.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventStream {
    /// The number of entries that the stream keeps.
    pub entries: u32,
}

impl EventStream {
    /// Makes one attempt. `body` is the event as JSON.
    pub(super) async fn append(self, registry: &Registry, id: &str, body: Vec<u8>) -> DeliveryAttempt {
        match registry.append_event(id, &body, self.entries).await {
            Ok(()) => DeliveryAttempt::Delivered,
            // What Redis refuses, such as a write while its memory is full, does not concern this event only.
            Err(error) => DeliveryAttempt::Unavailable(chain(&error).to_string()),
        }
    }
}

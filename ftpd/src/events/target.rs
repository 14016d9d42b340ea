//! Where a receiver gets its events.

use std::time::Duration;

use common::registry::Registry;
use tokio::runtime::Handle;

use super::{
    command::EventCommand, programs::ProgramsHandle, record::Event, stream::EventStream,
    webhook::WebhookClient,
};

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeliveryAttempt {
    Delivered,
    /// The receiver does not accept this event.
    Refused(String),
    /// The receiver does not work, whatever the event is.
    Unavailable(String),
}

/// Where a receiver gets its events. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum DeliveryTarget {
    Webhook(WebhookClient),
    Stream(EventStream),
    Command(EventCommand),
}

/// What attempts need.
pub(super) struct DeliveryContext {
    pub runtime: Handle,
    pub registry: Registry,
    pub programs: ProgramsHandle,
}

impl DeliveryTarget {
    /// The name of the kind in `events_file`.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Stream(_) => "stream",
            Self::Command(_) => "command",
        }
    }

    /// The longest delay until the next attempt after the receiver was unavailable.
    pub(super) fn longest_delay(&self) -> Duration {
        match self {
            Self::Webhook(_) | Self::Command(_) => Duration::from_secs(300),
            // An attempt costs Redis next to nothing.
            Self::Stream(_) => Duration::from_secs(2),
        }
    }

    /// Begins an attempt, and passes its result to `report`.
    pub(super) fn begin(
        &self,
        context: &DeliveryContext,
        event: Event,
        report: impl FnOnce(DeliveryAttempt) + Send + 'static,
    ) {
        // An event has neither maps nor values that JSON cannot hold.
        let body = serde_json::to_vec(&event).unwrap_or_default();
        match self {
            Self::Webhook(client) => {
                let client = client.clone();
                context.runtime.spawn(async move { report(client.post(&event.id, body).await) });
            }
            Self::Stream(stream) => {
                let (stream, registry) = (*stream, context.registry.clone());
                context.runtime.spawn(async move { report(stream.append(&registry, &event.id, body).await) });
            }
            Self::Command(command) => command.begin(context.programs.clone(), event, body, report),
        }
    }
}

//! Publishes the details of the node's sessions while an administrator watches.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::sync::lock;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::node::Node;

/// Interval at which the details are published.
const INTERVAL: Duration = Duration::from_secs(1);

/// Longest time for which one command makes the node publish.
const LONGEST_WATCH: Duration = Duration::from_secs(60);

/// The task that publishes, while an administrator watches.
#[derive(Default)]
pub(super) struct LivePublisher {
    task: Option<JoinHandle<()>>,
    /// The end of the task. `None`: no task runs.
    until: Arc<Mutex<Option<Instant>>>,
}

impl LivePublisher {
    /// Publishes the details now and then once a second, for at least `seconds` from now.
    pub(super) fn watch(&mut self, node: &Arc<Node>, seconds: u32) {
        let end = Instant::now() + Duration::from_secs(seconds.into()).min(LONGEST_WATCH);
        let mut until = lock(&self.until);
        if until.is_none() {
            self.task = Some(tokio::spawn(publish(Arc::clone(node), Arc::clone(&self.until))));
        }
        *until = (*until).max(Some(end));
    }
}

impl Drop for LivePublisher {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn publish(node: Arc<Node>, until: Arc<Mutex<Option<Instant>>>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        {
            let mut until = lock(&until);
            if until.is_none_or(|until| Instant::now() >= until) {
                *until = None;
                return;
            }
        }
        // An error means that Redis is away, which the link has logged.
        let _ = node.registry.publish_live(&node.connections.details()).await;
    }
}

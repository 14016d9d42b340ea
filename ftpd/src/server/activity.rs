//! The activity of the node, which it publishes with each refresh of the registry: load, rates and totals.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::live::NodeActivity;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{live::Traffic, metrics, node::Node, work::storage_call};

/// Interval at which the activity is measured.
const INTERVAL: Duration = Duration::from_secs(2);

/// `fsync_max` is the longest fsync of so many intervals: an administrator sees a slow one for half a minute.
const FSYNC_INTERVALS: usize = 15;

/// Measures the activity until the node ends.
pub(super) async fn measure(node: Arc<Node>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut before, mut measured) = (node.connections.traffic(), Instant::now());
    let mut fsyncs = [Duration::ZERO; FSYNC_INTERVALS];
    loop {
        ticks.tick().await;
        let (traffic, now) = (node.connections.traffic(), Instant::now());
        fsyncs.rotate_left(1);
        fsyncs[FSYNC_INTERVALS - 1] = storage_call::take_longest_fsync();
        let activity = NodeActivity {
            fsync_max: fsyncs.iter().max().map_or(0.0, Duration::as_secs_f64),
            ..activity(&node, traffic, before, now.duration_since(measured))
        };
        (before, measured) = (traffic, now);
        metrics::load(activity.load);
        node.registry.set_activity(activity);
    }
}

fn activity(node: &Node, traffic: Traffic, before: Traffic, elapsed: Duration) -> NodeActivity {
    let rate = |now: u64, before: u64| match elapsed.as_secs_f64() {
        0.0 => 0.0,
        seconds => now.saturating_sub(before) as f64 / seconds,
    };
    let (logins, logins_refused) = metrics::login_counts();
    let oldest = node.workers.oldest_operation();
    let expiry = node.tls.as_ref().and_then(|tls| tls.certificate_expiry());
    NodeActivity {
        load: load(node),
        upload_rate: rate(traffic.uploaded, before.uploaded),
        download_rate: rate(traffic.downloaded, before.downloaded),
        uploaded: traffic.uploaded,
        downloaded: traffic.downloaded,
        logins,
        logins_refused,
        oldest_operation: oldest.as_ref().map_or(0.0, |operation| operation.age.as_secs_f64()),
        oldest_operation_name: oldest.map(|operation| operation.to_string()).unwrap_or_default(),
        authd_seconds: metrics::last_authd_answer().map(|took| took.as_secs_f64()),
        balancers: node.balancers.activity(),
        certificate_expiry: expiry.and_then(|expiry| u64::try_from(expiry).ok()),
        ..NodeActivity::default()
    }
}

/// The largest share of a limit in use: sessions or transfers.
fn load(node: &Node) -> f64 {
    let sessions = node.connections.count() as f64 / f64::from(node.limits.sessions);
    let transfers = node.registry.transfers().load(Ordering::Relaxed);
    sessions.max(f64::from(transfers) / f64::from(node.limits.transfers)).min(1.0)
}

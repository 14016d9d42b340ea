//! The last hour of the cluster, as this authd saw it: one point every 10 seconds, in memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    admin_api::{HistoryPoint, HistoryView},
    clock::unix_seconds,
    node::{NodeName, NodeRecord},
    registry::RegistryView,
    sync::lock,
};

/// Time between two points.
const INTERVAL: Duration = Duration::from_secs(10);

/// Number of points: an hour.
const POINTS: usize = 360;

/// The points, oldest first.
#[derive(Default)]
pub(crate) struct History(Mutex<VecDeque<HistoryPoint>>);

/// The totals of a node's process at the previous point.
type Totals = HashMap<(NodeName, u64), (u64, u64)>;

impl History {
    pub(crate) fn view(&self) -> HistoryView {
        HistoryView { interval: INTERVAL.as_secs(), points: lock(&self.0).iter().cloned().collect() }
    }

    fn push(&self, point: HistoryPoint) {
        let mut points = lock(&self.0);
        if points.len() == POINTS {
            points.pop_front();
        }
        points.push_back(point);
    }
}

/// Takes a point every [`INTERVAL`]. While Redis cannot be reached, the history has a gap.
pub(crate) async fn run(history: Arc<History>, registry: RegistryView) {
    let mut previous = Totals::new();
    loop {
        if let Ok(nodes) = registry.nodes().await {
            history.push(point(unix_seconds(), &nodes, &mut previous));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn point(at: u64, nodes: &[NodeRecord], previous: &mut Totals) -> HistoryPoint {
    let mut point = HistoryPoint {
        at,
        upload_rate: 0.0,
        download_rate: 0.0,
        sessions: 0,
        transfers: 0,
        logins: 0,
        logins_refused: 0,
    };
    let mut totals = Totals::new();
    for node in nodes {
        point.sessions += u64::from(node.sessions);
        point.transfers += u64::from(node.transfers);
        let Some(activity) = &node.activity else { continue };
        point.upload_rate += activity.upload_rate;
        point.download_rate += activity.download_rate;
        let key = (node.name.clone(), node.incarnation);
        let now = (activity.logins, activity.logins_refused);
        // A process that was not seen before has no previous totals, and adds nothing.
        let (logins, refused) = previous.get(&key).copied().unwrap_or(now);
        point.logins += now.0.saturating_sub(logins);
        point.logins_refused += now.1.saturating_sub(refused);
        totals.insert(key, now);
    }
    *previous = totals;
    point
}

#[cfg(test)]
mod tests {
    use common::live::NodeActivity;

    use super::*;

    #[test]
    fn logins_are_counted_between_two_points_and_not_for_a_new_process() {
        let node = |incarnation, logins| {
            let slice = "50000-50003".parse().unwrap();
            let mut record = NodeRecord::new("a".parse().unwrap(), incarnation, slice);
            record.activity = Some(NodeActivity { logins, upload_rate: 7.0, ..NodeActivity::default() });
            [record]
        };
        let mut previous = Totals::new();
        let logins: Vec<u64> = [node(1, 100), node(1, 103), node(2, 9), node(2, 10)]
            .iter()
            .map(|nodes| point(1, nodes, &mut previous).logins)
            .collect();
        assert_eq!(logins, [0, 3, 0, 1]);
    }

    #[test]
    fn the_history_keeps_an_hour() {
        let history = History::default();
        for at in 0..500 {
            history.push(point(at, &[], &mut Totals::new()));
        }
        let points = history.view().points;
        assert_eq!((points.len(), points[0].at), (360, 140));
    }
}

//! Metrics of the daemons as a table, which Prometheus and docs/metrics.md show.

use std::fmt::Write;

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// One metric of a daemon.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    /// The unit of the value: `seconds`, `bytes`, or the things counted.
    pub unit: &'static str,
    /// Each label with its values.
    pub labels: &'static [(&'static str, &'static str)],
    /// One or two sentences.
    pub meaning: &'static str,
    /// Upper bounds of a histogram's buckets, in seconds. `None`: the usual ones.
    pub buckets: Option<&'static [f64]>,
}

/// Few buckets, for a histogram with many series.
pub const FEW_BUCKETS: &[f64] = &[0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];

/// The type of a metric, as Prometheus names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that only grows, from 0 at the start of the process.
    Counter,
    /// A number that rises and falls.
    Gauge,
    /// Counts by size. Its series are `NAME_bucket`, `NAME_sum` and `NAME_count`.
    Histogram,
}

impl MetricKind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Metric {
    pub const fn counter(name: &'static str, unit: &'static str, meaning: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, unit, labels: &[], meaning, buckets: None }
    }

    pub const fn gauge(name: &'static str, unit: &'static str, meaning: &'static str) -> Self {
        Self { kind: MetricKind::Gauge, ..Self::counter(name, unit, meaning) }
    }

    pub const fn histogram(name: &'static str, unit: &'static str, meaning: &'static str) -> Self {
        Self { kind: MetricKind::Histogram, ..Self::counter(name, unit, meaning) }
    }

    /// A histogram with [`FEW_BUCKETS`].
    pub const fn coarse_histogram(name: &'static str, meaning: &'static str) -> Self {
        Self { buckets: Some(FEW_BUCKETS), ..Self::histogram(name, "seconds", meaning) }
    }

    #[must_use]
    pub const fn labels(self, labels: &'static [(&'static str, &'static str)]) -> Self {
        Self { labels, ..self }
    }
}

/// `ftp_registry_connected`, which every process with a connection to Redis has.
pub const REGISTRY_CONNECTED: Metric = Metric::gauge(
    "ftp_registry_connected",
    "1 or 0",
    "1 while the process is connected to Redis, 0 after a request failed. Missing without `redis_url`, and \
     until the first connection or failure.",
);

/// `ftp_registry_writable`, which every process with a connection to Redis has.
pub const REGISTRY_WRITABLE: Metric = Metric::gauge(
    "ftp_registry_writable",
    "1 or 0",
    "1 while Redis accepts writes, 0 from a refusal (out of memory, too few replicas, cannot save) until 10 \
     seconds passed without one. Missing without `redis_url`, and until the first write.",
);

/// `ftp_redis_seconds`, which every process with a connection to Redis has.
pub const REDIS_SECONDS: Metric = Metric::coarse_histogram(
    "ftp_redis_seconds",
    "Time until Redis's answer. A request that gets none is not counted.",
)
.labels(&[("call", "command, pipeline (several commands at once), script")]);

/// `ftp_registry_degraded_total`, which the nodes of a cluster have.
pub const REGISTRY_DEGRADED: Metric = Metric::counter(
    "ftp_registry_degraded_total",
    "decisions",
    "Logins, write leases and quota reservations that were decided without Redis, because it did not answer. \
     `registry_away` says whether they were admitted.",
);

/// `ftp_block_handovers_total`, which the nodes of a cluster have.
pub const BLOCK_HANDOVERS: Metric = Metric::counter(
    "ftp_block_handovers_total",
    "blocks",
    "Blocks of passive ports that the node leased, handed over to another node, or lost because it did not \
     reach Redis or a node has them as its slice.",
)
.labels(&[("direction", "taken, given (handed over), lost")]);

/// Tells the recorder what the metrics mean. Call it once, after the recorder is installed.
pub(crate) fn describe(metrics: &[Metric]) {
    for metric in metrics {
        let (name, meaning) = (metric.name, metric.meaning);
        match metric.kind {
            MetricKind::Counter => describe_counter!(name, meaning),
            MetricKind::Gauge => describe_gauge!(name, meaning),
            MetricKind::Histogram => describe_histogram!(name, meaning),
        }
    }
}

/// The table of metrics as Markdown, for docs/metrics.md.
pub fn markdown(metrics: &[Metric]) -> String {
    let mut text =
        String::from("| name | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n");
    for Metric { name, kind, unit, labels, meaning, .. } in metrics {
        let labels: Vec<_> = labels.iter().map(|(label, values)| format!("`{label}`: {values}")).collect();
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join("; ") };
        // Writing to memory does not fail.
        let _ = writeln!(text, "| `{name}` | {} | {unit} | {labels} | {meaning} |", kind.name());
    }
    text
}

//! The condition of a daemon's dependencies and its readiness: the body of `/readyz`.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Mutex, MutexGuard},
    time::SystemTime,
};

use serde::{Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{clock::unix_seconds_at, node::FailingDependency, sync::lock};

/// The storage, which contains `root`.
pub const STORAGE: &str = "storage";
/// Redis.
pub const REGISTRY: &str = "registry";
/// Redis's acceptance of writes, apart from its reachability.
pub const REGISTRY_WRITES: &str = "registry_writes";
/// The service that checks logins.
pub const AUTHD: &str = "authd";
/// The daemon's own listening sockets.
pub const LISTENERS: &str = "listeners";

/// The passive ports that a node leases in the registry. They fail while the node has none.
pub const PASSIVE_PORTS: &str = "passive_ports";

/// The daemon's slots for file operations. They fail while operations that do not end occupy all of them.
pub const FILE_OPERATIONS: &str = "file_operations";

/// The audit trail. It fails for a while after a record was lost.
pub const AUDIT: &str = "audit";

/// The condition of a dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Not probed yet.
    Unknown,
    Ok,
    /// The dependency gives no answer or a wrong one. It may recover by itself.
    Failed,
    /// The dependency refuses this daemon's token or password. An operator must change a file.
    Misconfigured,
}

/// The failure of a dependency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DependencyFailure {
    pub condition: Condition,
    pub error: String,
    /// The setting to check.
    pub setting: &'static str,
}

/// A dependency in `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dependency {
    #[serde(rename = "state")]
    pub condition: Condition,
    /// Start of this condition.
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// The error of this condition, or the last one before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// The setting with the dependency's address or, if the dependency fails, the setting to check.
    pub setting: &'static str,
}

/// An error, and the time at which it last occurred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastError {
    pub message: String,
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = OffsetDateTime::from(*time);
    // Without fractions of a second.
    let seconds = time.replace_nanosecond(0).unwrap_or(time);
    serializer.serialize_str(&seconds.format(&Rfc3339).unwrap_or_default())
}

impl Dependency {
    /// A dependency that is not probed yet.
    pub fn new(setting: &'static str) -> Self {
        Self { condition: Condition::Unknown, since: SystemTime::now(), last_error: None, setting }
    }
}

/// A dependency that is probed regularly.
pub struct DependencyMonitor {
    /// The setting with the dependency's address.
    setting: &'static str,
    current: Mutex<Dependency>,
}

impl DependencyMonitor {
    pub fn new(setting: &'static str) -> Self {
        Self { setting, current: Mutex::new(Dependency::new(setting)) }
    }

    /// Notes the result of a probe. Returns true if the condition has changed.
    pub fn note(&self, result: Result<(), DependencyFailure>) -> bool {
        let mut current = self.current();
        let condition = match result {
            Ok(()) => {
                current.setting = self.setting;
                Condition::Ok
            }
            Err(DependencyFailure { condition, error, setting }) => {
                current.last_error = Some(LastError { message: error, at: SystemTime::now() });
                current.setting = setting;
                condition
            }
        };
        let is_changed = current.condition != condition;
        if is_changed {
            current.condition = condition;
            current.since = SystemTime::now();
        }
        is_changed
    }

    pub fn dependency(&self) -> Dependency {
        self.current().clone()
    }

    fn current(&self) -> MutexGuard<'_, Dependency> {
        lock(&self.current)
    }
}

/// One entry of the setting `readiness_requires`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// This dependency must be [`Condition::Ok`].
    Dependency(&'static str),
    /// No dependency may be [`Condition::Misconfigured`].
    Credentials,
}

/// The text is not a [`Requirement`].
#[derive(Debug, thiserror::Error)]
#[error("not one of storage, registry, authd and credentials")]
pub struct InvalidRequirement;

impl FromStr for Requirement {
    type Err = InvalidRequirement;

    fn from_str(text: &str) -> Result<Self, InvalidRequirement> {
        match text {
            "credentials" => Ok(Self::Credentials),
            _ => [STORAGE, REGISTRY, AUTHD]
                .into_iter()
                .find(|name| *name == text)
                .map(Self::Dependency)
                .ok_or(InvalidRequirement),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dependency(name) => name,
            Self::Credentials => "credentials",
        })
    }
}

/// The state of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LifeStage {
    Starting,
    Ready,
    Draining,
}

/// The body of `/readyz`.
#[derive(Clone, Debug, Serialize)]
pub struct ReadinessReport {
    /// True if the HTTP status is 200, false if it is 503.
    pub ready: bool,
    pub state: LifeStage,
    pub dependencies: BTreeMap<&'static str, ReportedDependency>,
}

/// A dependency, and whether the daemon is unready while it fails.
#[derive(Clone, Debug, Serialize)]
pub struct ReportedDependency {
    pub required: bool,
    #[serde(flatten)]
    pub dependency: Dependency,
}

impl ReadinessReport {
    /// A dependency is required if `requirements` name it, or if it is misconfigured and they contain
    /// [`Requirement::Credentials`]. The listeners, the file operations and the passive ports are always
    /// required.
    pub fn new(
        state: LifeStage,
        dependencies: impl IntoIterator<Item = (&'static str, Dependency)>,
        requirements: &[Requirement],
    ) -> Self {
        let shown = |(name, dependency): (&'static str, Dependency)| {
            let is_named = [LISTENERS, FILE_OPERATIONS, PASSIVE_PORTS].contains(&name)
                || requirements.contains(&Requirement::Dependency(name));
            let is_misconfigured = dependency.condition == Condition::Misconfigured;
            let required = is_named || is_misconfigured && requirements.contains(&Requirement::Credentials);
            (name, ReportedDependency { required, dependency })
        };
        let dependencies: BTreeMap<_, _> = dependencies.into_iter().map(shown).collect();
        let fails =
            |shown: &ReportedDependency| shown.required && shown.dependency.condition != Condition::Ok;
        let ready = state == LifeStage::Ready && !dependencies.values().any(fails);
        Self { ready, state, dependencies }
    }

    /// The failing dependencies in the form of the registry.
    pub fn failing(&self) -> Vec<FailingDependency> {
        const LONGEST_ERROR: usize = 200;
        let is_failing = |shown: &ReportedDependency| {
            matches!(shown.dependency.condition, Condition::Failed | Condition::Misconfigured)
        };
        let failing = |(name, shown): (&&str, &ReportedDependency)| {
            let message = shown.dependency.last_error.as_ref().map_or("", |error| &error.message);
            FailingDependency {
                dependency: (*name).to_owned(),
                error: message.chars().take(LONGEST_ERROR).collect(),
                since: unix_seconds_at(shown.dependency.since),
                required: shown.required,
            }
        };
        self.dependencies.iter().filter(|(_, shown)| is_failing(shown)).map(failing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(condition: Condition) -> Dependency {
        Dependency { condition, ..Dependency::new("setting") }
    }

    fn is_ready(condition: Condition, requirements: &[Requirement]) -> bool {
        ReadinessReport::new(LifeStage::Ready, [(REGISTRY, dependency(condition))], requirements).ready
    }

    #[test]
    fn requirements_decide_which_dependencies_count() {
        use Condition::{Failed, Misconfigured, Ok, Unknown};
        let registry = Requirement::Dependency(REGISTRY);
        for (condition, requirements, ready) in [
            (Ok, &[registry][..], true),
            (Unknown, &[registry], false),
            (Failed, &[registry], false),
            (Failed, &[Requirement::Credentials], true),
            (Misconfigured, &[Requirement::Credentials], false),
            (Misconfigured, &[Requirement::Dependency(STORAGE)], true),
            (Misconfigured, &[], true),
        ] {
            assert_eq!(is_ready(condition, requirements), ready, "{condition:?} {requirements:?}");
        }
        let listeners = [(LISTENERS, dependency(Failed))];
        assert!(!ReadinessReport::new(LifeStage::Ready, listeners, &[]).ready);
        assert!(!ReadinessReport::new(LifeStage::Draining, [], &[]).ready);
    }

    #[test]
    fn the_time_of_a_condition_is_the_time_of_its_last_change() {
        let monitor = DependencyMonitor::new("root");
        assert!(monitor.note(Ok(())));
        let since = monitor.dependency().since;
        assert!(!monitor.note(Ok(())));
        assert_eq!(monitor.dependency().since, since);
        let failure =
            DependencyFailure { condition: Condition::Failed, error: "gone".to_owned(), setting: "other" };
        assert!(monitor.note(Err(failure)));
        let failed = monitor.dependency();
        assert!(failed.since >= since && failed.setting == "other");
        assert!(monitor.note(Ok(())));
        let text = serde_json::to_value(monitor.dependency()).unwrap();
        assert_eq!((&text["state"], &text["setting"]), (&"ok".into(), &"root".into()));
        assert_eq!(text["last_error"]["message"], "gone");
        assert!(text["since"].as_str().unwrap().ends_with('Z'), "{text}");
    }

    #[test]
    fn requirements_survive_their_text_form() {
        for name in ["storage", "registry", "authd", "credentials"] {
            assert_eq!(name.parse::<Requirement>().unwrap().to_string(), name);
        }
        assert!("redis".parse::<Requirement>().is_err());
    }
}

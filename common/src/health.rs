//! What a daemon depends on, and whether it is ready for new work: the body of `/readyz`.

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

/// The storage, where `root` is.
pub const STORAGE: &str = "storage";
/// Redis.
pub const REGISTRY: &str = "registry";
/// The service that decides logins.
pub const AUTHD: &str = "authd";
/// The daemon's own listening sockets.
pub const LISTENERS: &str = "listeners";

/// The daemon's places for work on files: they fail while all are taken by work that does not end.
pub const FILE_OPERATIONS: &str = "file_operations";

/// How a dependency is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It was not asked yet.
    Unknown,
    Ok,
    /// It does not answer as it should. That may pass by itself.
    Failed,
    /// It refuses this daemon's token or password. That passes only after a file has been changed.
    Misconfigured,
}

/// Why a dependency is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DependencyFailure {
    pub condition: Condition,
    pub error: String,
    /// The setting to look at.
    pub setting: &'static str,
}

/// A dependency as `/readyz` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dependency {
    #[serde(rename = "state")]
    pub condition: Condition,
    /// When it came into this condition.
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// The error of this condition, or the last one before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// The setting that says where it is or, if it fails, what to look at.
    pub setting: &'static str,
}

/// An error and when it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastError {
    pub message: String,
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = OffsetDateTime::from(*time);
    // Nanoseconds say nothing here.
    let seconds = time.replace_nanosecond(0).unwrap_or(time);
    serializer.serialize_str(&seconds.format(&Rfc3339).unwrap_or_default())
}

impl Dependency {
    /// One that was not asked yet.
    pub fn new(setting: &'static str) -> Self {
        Self { condition: Condition::Unknown, since: SystemTime::now(), last_error: None, setting }
    }
}

/// A dependency that is asked again and again.
pub struct DependencyMonitor {
    /// Where it is.
    setting: &'static str,
    now: Mutex<Dependency>,
}

impl DependencyMonitor {
    pub fn new(setting: &'static str) -> Self {
        Self { setting, now: Mutex::new(Dependency::new(setting)) }
    }

    /// Notes how the dependency is, and says whether that is another condition than before.
    pub fn note(&self, result: Result<(), DependencyFailure>) -> bool {
        let mut now = self.now();
        let condition = match result {
            Ok(()) => {
                now.setting = self.setting;
                Condition::Ok
            }
            Err(DependencyFailure { condition, error, setting }) => {
                now.last_error = Some(LastError { message: error, at: SystemTime::now() });
                now.setting = setting;
                condition
            }
        };
        let is_new = now.condition != condition;
        if is_new {
            now.condition = condition;
            now.since = SystemTime::now();
        }
        is_new
    }

    pub fn dependency(&self) -> Dependency {
        self.now().clone()
    }

    fn now(&self) -> MutexGuard<'_, Dependency> {
        lock(&self.now)
    }
}

/// One entry of the setting `readiness_requires`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// This dependency is [`Condition::Ok`].
    Dependency(&'static str),
    /// No dependency is [`Condition::Misconfigured`].
    Credentials,
}

/// The text names no requirement.
#[derive(Debug, thiserror::Error)]
#[error("neither storage, registry, authd nor credentials")]
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

/// Where a daemon is in its life.
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
    /// Whether the status is 200.
    pub ready: bool,
    pub state: LifeStage,
    pub dependencies: BTreeMap<&'static str, ReportedDependency>,
}

/// A dependency, and whether it makes the daemon unready as it is, or would if it failed.
#[derive(Clone, Debug, Serialize)]
pub struct ReportedDependency {
    pub required: bool,
    #[serde(flatten)]
    pub dependency: Dependency,
}

impl ReadinessReport {
    /// Dependencies that `requirements` do not name count only if they are misconfigured and
    /// [`Requirement::Credentials`] is among the requirements. The listeners and the file operations
    /// always count.
    pub fn new(
        state: LifeStage,
        dependencies: impl IntoIterator<Item = (&'static str, Dependency)>,
        requirements: &[Requirement],
    ) -> Self {
        let shown = |(name, dependency): (&'static str, Dependency)| {
            let always = name == LISTENERS || name == FILE_OPERATIONS;
            let is_named = always || requirements.contains(&Requirement::Dependency(name));
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

    /// The dependencies that are not as they should be, as the registry shows them.
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
    fn the_time_of_a_condition_is_that_of_its_beginning() {
        let watched = DependencyMonitor::new("root");
        assert!(watched.note(Ok(())));
        let since = watched.dependency().since;
        assert!(!watched.note(Ok(())));
        assert_eq!(watched.dependency().since, since);
        let trouble =
            DependencyFailure { condition: Condition::Failed, error: "gone".to_owned(), setting: "other" };
        assert!(watched.note(Err(trouble)));
        let failed = watched.dependency();
        assert!(failed.since >= since && failed.setting == "other");
        assert!(watched.note(Ok(())));
        let text = serde_json::to_value(watched.dependency()).unwrap();
        assert_eq!((&text["state"], &text["setting"]), (&"ok".into(), &"root".into()));
        assert_eq!(text["last_error"]["message"], "gone");
        assert!(text["since"].as_str().unwrap().ends_with('Z'), "{text}");
    }

    #[test]
    fn requirements_have_names() {
        for name in ["storage", "registry", "authd", "credentials"] {
            assert_eq!(name.parse::<Requirement>().unwrap().to_string(), name);
        }
        assert!("redis".parse::<Requirement>().is_err());
    }
}

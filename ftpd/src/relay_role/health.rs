//! Readiness of the relay for clients, and the state of its dependencies.

use std::sync::{
    RwLock,
    atomic::{AtomicBool, Ordering},
};

use common::{
    health::{
        Condition, DependencyFailure, DependencyMonitor, LISTENERS, LifeStage, REGISTRY, REGISTRY_WRITES,
        ReadinessReport, Requirement,
    },
    process::service,
    registry::{MapContent, PortMap},
    sync,
};

use super::metrics;
use crate::{listener, metrics::dependency};

/// The name of the map of the passive ports among the dependencies.
const PORT_MAP: &str = "port_map";

/// State of the relay and its dependencies.
pub(super) struct RoleHealth {
    life: RwLock<LifeStage>,
    nodes: DependencyMonitor,
    listeners: DependencyMonitor,
    map: PortMap,
    was_ready: AtomicBool,
}

impl RoleHealth {
    pub(super) fn new(map: PortMap) -> Self {
        Self {
            life: RwLock::new(LifeStage::Starting),
            nodes: DependencyMonitor::new("redis_url"),
            listeners: DependencyMonitor::new("listen"),
            map,
            was_ready: AtomicBool::new(true),
        }
    }

    pub(super) fn set_life(&self, life: LifeStage) {
        *sync::write(&self.life) = life;
    }

    /// The report that `/readyz` shows. The registry is not required: the relay goes on with its last map.
    pub(super) fn report(&self) -> ReadinessReport {
        let own = [(PORT_MAP, self.nodes.dependency()), (LISTENERS, self.listeners.dependency())];
        let registry = self.map.dependency().map(|redis| (REGISTRY, redis));
        let writes = self.map.writes().map(|writes| (REGISTRY_WRITES, writes));
        let requirements = [Requirement::Dependency(PORT_MAP)];
        ReadinessReport::new(
            *sync::read(&self.life),
            own.into_iter().chain(registry).chain(writes),
            &requirements,
        )
    }

    /// Looks at the map and the listeners, and publishes the report to the metrics, the log and the service
    /// manager.
    pub(super) fn check(&self, known: &MapContent) {
        let failure =
            |error: String, setting| DependencyFailure { condition: Condition::Failed, error, setting };
        let ready = known.nodes.iter().filter(|node| node.is_ready).count();
        metrics::nodes(ready, known.nodes.len() - ready);
        if let Some(age) = self.map.age() {
            metrics::map_age(age);
        }
        self.nodes.note(match (ready, known.nodes.len()) {
            (1.., _) => Ok(()),
            (0, 0) => Err(failure("the registry has shown no node yet".to_owned(), "redis_url")),
            (0, nodes) => Err(failure(format!("none of the {nodes} nodes is ready"), "redis_url")),
        });
        // The listener logged the shortage when it happened.
        self.listeners.note(match listener::shortage() {
            None => Ok(()),
            Some(error) => Err(failure(error, "the limit of open files")),
        });
        let report = self.report();
        for (name, shown) in &report.dependencies {
            dependency(name, shown.dependency.condition == Condition::Ok);
        }
        if report.state != LifeStage::Ready
            || self.was_ready.swap(report.ready, Ordering::Relaxed) == report.ready
        {
            return;
        }
        if report.ready {
            log::info!("ready again");
            service::status("ready");
        } else {
            let failing = report.failing().into_iter().filter(|failing| failing.required);
            let names = failing.map(|failing| failing.dependency).collect::<Vec<_>>().join(", ");
            log::warn!(dependencies = names.as_str(); "not ready (see /readyz)");
            service::status(&format!("not ready: {names}"));
        }
    }
}

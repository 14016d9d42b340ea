//! Readiness of the node for new clients, and the state of its dependencies.

pub mod operations;
pub mod passive_ports;
mod storage;

use std::{
    path::Path,
    sync::{
        Arc, OnceLock, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{
    audit::AuditTrail,
    health::{
        AUDIT, AUTHD, Condition, DependencyFailure, DependencyMonitor, FILE_OPERATIONS, LISTENERS, LifeStage,
        PASSIVE_PORTS, REGISTRY, REGISTRY_WRITES, ReadinessReport, Requirement, STORAGE,
    },
    passive::PassiveAssignment,
    process::service,
    registry::Registry,
    sync,
};
use tokio::time::{Instant, sleep, sleep_until};

use self::storage::StorageProbe;
use crate::{auth::probe::AuthdProbe, listener, metrics};

/// Settings of the readiness probes.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// Dependencies that must work for the node to be ready.
    pub requirements: Vec<Requirement>,
    /// Interval between probes.
    pub interval: Duration,
    /// Time limit of one probe.
    pub timeout: Duration,
}

/// State of the node and its dependencies.
pub struct Health {
    settings: Readiness,
    life: RwLock<LifeStage>,
    storage: DependencyMonitor,
    listeners: DependencyMonitor,
    operations: DependencyMonitor,
    authd: Option<DependencyMonitor>,
    /// `None` for a node with a fixed slice.
    passive_ports: Option<DependencyMonitor>,
    registry: OnceLock<Registry>,
    audit: AuditTrail,
    was_ready: AtomicBool,
}

impl Health {
    /// `asks_authd`: authd decides the node's logins.
    pub fn new(
        settings: Readiness,
        asks_authd: bool,
        assignment: PassiveAssignment,
        audit: AuditTrail,
    ) -> Self {
        Self {
            settings,
            life: RwLock::new(LifeStage::Starting),
            storage: DependencyMonitor::new("root"),
            listeners: DependencyMonitor::new("listen"),
            operations: operations::monitor(),
            authd: asks_authd.then(|| DependencyMonitor::new("authd_urls")),
            passive_ports: passive_ports::monitor(assignment),
            registry: OnceLock::new(),
            audit,
            was_ready: AtomicBool::new(true),
        }
    }

    pub fn set_life(&self, life: LifeStage) {
        *sync::write(&self.life) = life;
    }

    /// The report that `/readyz` shows.
    pub fn report(&self) -> ReadinessReport {
        let life = *sync::read(&self.life);
        let always = [
            (STORAGE, self.storage.dependency()),
            (LISTENERS, self.listeners.dependency()),
            (FILE_OPERATIONS, self.operations.dependency()),
        ];
        let authd = self.authd.as_ref().map(|authd| (AUTHD, authd.dependency()));
        let passive_ports = self.passive_ports.as_ref().map(|ports| (PASSIVE_PORTS, ports.dependency()));
        let registry = self.registry.get().and_then(Registry::dependency).map(|redis| (REGISTRY, redis));
        let writes = self.registry.get().and_then(Registry::writes).map(|writes| (REGISTRY_WRITES, writes));
        let audit = self.audit.dependency().map(|audit| (AUDIT, audit));
        ReadinessReport::new(
            life,
            always.into_iter().chain(authd).chain(passive_ports).chain(registry).chain(writes).chain(audit),
            &self.settings.requirements,
        )
    }

    /// Starts a task that probes the dependencies at intervals. Returns after the first round, or after one
    /// second.
    pub async fn watch(self: &Arc<Self>, root: &Path, authd: Option<AuthdProbe>, registry: &Registry) {
        // Called only once, so the cell is empty.
        let _ = self.registry.set(registry.clone());
        let mut storage = StorageProbe::of(root);
        let (first, done) = tokio::sync::oneshot::channel();
        let mut first = Some(first);
        let (health, registry) = (Arc::clone(self), registry.clone());
        let mut blocks = registry.blocks();
        tokio::spawn(async move {
            loop {
                let due = Instant::now() + health.settings.interval;
                tokio::join!(health.probe_storage(&mut storage), health.probe_authd(authd.as_ref()));
                health.check_listeners();
                health.check_passive_ports(&registry);
                if let Some(first) = first.take() {
                    // Fails if the caller has stopped waiting.
                    let _ = first.send(());
                }
                health.publish(&registry);
                loop {
                    tokio::select! {
                        () = sleep_until(due) => break,
                        Ok(()) = blocks.changed() => {
                            health.check_passive_ports(&registry);
                            health.publish(&registry);
                        }
                    }
                }
            }
        });
        // A dependency that hangs does not keep the node from starting; the node is then not ready.
        let _ = tokio::time::timeout(Duration::from_secs(1), done).await;
    }

    async fn probe_storage(&self, probe: &mut StorageProbe) {
        let result = probe.ask(self.settings.timeout).await;
        let failure =
            |error: String| DependencyFailure { condition: Condition::Failed, error, setting: "root" };
        let is_new = self.storage.note(result.clone().map_err(failure));
        match result {
            Err(error) if is_new => log::error!(error, setting = "root"; "the storage does not respond"),
            Ok(()) if is_new && self.storage.dependency().last_error.is_some() => {
                log::info!("the storage responds again");
            }
            _ => {}
        }
    }

    async fn probe_authd(&self, probe: Option<&AuthdProbe>) {
        let (Some(monitor), Some(probe)) = (&self.authd, probe) else { return };
        let mut result = probe.ask(self.settings.timeout).await;
        if result.is_err() && monitor.dependency().condition == Condition::Ok {
            // A restart of authd takes less than a second.
            sleep(Duration::from_secs(1)).await;
            result = probe.ask(self.settings.timeout).await;
        }
        let is_new = monitor.note(result.clone());
        match result {
            Err(DependencyFailure { error, setting, .. }) if is_new => {
                log::error!(error, setting; "no authd is able to decide logins");
            }
            Ok(()) if is_new && monitor.dependency().last_error.is_some() => {
                log::info!("authd is able to decide logins again");
            }
            _ => {}
        }
    }

    fn check_listeners(&self) {
        // The listener logged the shortage when it happened.
        self.listeners.note(match listener::shortage() {
            None => Ok(()),
            Some(error) => Err(DependencyFailure {
                condition: Condition::Failed,
                error,
                setting: "the limit of open files",
            }),
        });
    }

    /// Publishes the report to the metrics, the registry, the log and the service manager.
    pub fn publish(&self, registry: &Registry) {
        let report = self.report();
        for (name, shown) in &report.dependencies {
            metrics::dependency(name, shown.dependency.condition == Condition::Ok);
        }
        registry.set_failing(report.failing());
        if report.state != LifeStage::Ready {
            return;
        }
        if self.was_ready.swap(report.ready, Ordering::Relaxed) == report.ready {
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

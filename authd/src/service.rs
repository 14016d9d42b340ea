//! The state that all requests share, and authd's readiness.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use common::{
    audit::{AuditLogError, AuditTrail},
    health::{AUDIT, Condition, LifeStage, REGISTRY, REGISTRY_WRITES, ReadinessReport, Requirement},
    registry::RegistryView,
};

use crate::{
    accounts::{
        Accounts,
        cache::PasswordCache,
        declared::{DeclaredAccounts, DeclaredUsers},
        file::UsersFileError,
        password::PasswordVerifier,
        stored::StoredAccounts,
        user::{Credential, User},
    },
    administrators::{Administrators, AdministratorsError},
    audit_window::AuditWindow,
    config::Config,
    feed::Feed,
    history::History,
    login_blocks::LoginBlocks,
    metrics,
    page::Page,
    revision::RevisionAdvancer,
    throttle::Throttle,
    tokens::{TokenPolicy, Tokens},
};

/// A file that the settings name cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("users_file")]
    Users(#[from] UsersFileError),
    #[error("administrators_file")]
    Administrators(#[from] AdministratorsError),
    #[error(transparent)]
    AuditLog(#[from] AuditLogError),
}

/// The state that all requests share.
pub struct Service {
    pub(crate) accounts: Accounts,
    pub(crate) passwords: PasswordVerifier,
    pub(crate) cache: PasswordCache,
    pub(crate) throttle: Throttle,
    pub(crate) blocks: LoginBlocks,
    pub(crate) history: Arc<History>,
    pub(crate) feed: Feed,
    pub(crate) failures: AuditWindow,
    /// When nodes were last told to publish what their sessions do.
    pub(crate) watched: Mutex<Option<Instant>>,
    pub(crate) tokens: Tokens,
    pub(crate) audit: AuditTrail,
    /// Sessions and nodes in Redis. `None`: no Redis is configured.
    pub(crate) registry: Option<RegistryView>,
    pub(crate) revision: RevisionAdvancer,
    /// `None`: the page is switched off.
    pub(crate) page: Option<Page>,
    /// Conditions for `/readyz` to answer 200.
    requirements: Vec<Requirement>,
}

impl Service {
    /// Reads the users file, computes one argon2 hash, and opens the audit trail. Blocks.
    ///
    /// # Errors
    /// The users file or the administrators' file cannot be used, or the audit trail cannot be opened.
    pub fn new(config: &Config) -> Result<Self, ServiceError> {
        let registry = config.redis.as_ref().map(RegistryView::new);
        let link_and_keys = || registry.as_ref().map(|view| (view.link().clone(), view.keys().clone()));
        let is_demo = config.users == DeclaredUsers::Demo;
        Ok(Self {
            accounts: Accounts::new(
                DeclaredAccounts::new(&config.users, config.anonymous.clone())?,
                registry.as_ref().map(StoredAccounts::new),
            ),
            passwords: PasswordVerifier::new(&config.passwords, config.node_tokens.last()),
            cache: PasswordCache::new(config.cache),
            watched: Mutex::default(),
            history: Arc::default(),
            feed: Feed::new(config.live_listeners),
            failures: AuditWindow::default(),
            blocks: LoginBlocks::new(link_and_keys()),
            throttle: Throttle::new(config.throttle.clone(), link_and_keys()),
            tokens: Tokens::new(
                match &config.node_tokens[..] {
                    [] if is_demo => TokenPolicy::AcceptAll,
                    tokens => TokenPolicy::of(tokens),
                },
                Administrators::new(
                    config.administrators.clone(),
                    config.admin_token.as_ref().map(|token| token.expose().as_bytes()),
                )?,
            ),
            audit: AuditTrail::open(
                &config.audit,
                "authd",
                "authd",
                config.redis.is_some(),
                metrics::audit_records_lost,
            )?,
            registry,
            revision: RevisionAdvancer::default(),
            page: config.page.map(Page::new),
            requirements: config.requirements.clone(),
        })
    }

    /// The report for `/readyz`. Also updates the metrics of the dependencies.
    pub fn readiness(&self) -> ReadinessReport {
        let mut requirements = self.requirements.clone();
        if self.accounts.declared.current().users.is_empty() {
            // All users are in Redis: without it, no login can be decided.
            requirements.push(Requirement::Dependency(REGISTRY));
        }
        let redis = self.registry.as_ref().map(|registry| (REGISTRY, registry.link().dependency()));
        let writes = self.registry.as_ref().and_then(|registry| registry.link().writes());
        let writes = writes.map(|writes| (REGISTRY_WRITES, writes));
        let audit = self.audit.dependency().map(|audit| (AUDIT, audit));
        for (name, dependency) in redis.iter().chain(&writes).chain(&audit) {
            metrics::dependency(name, dependency.condition == Condition::Ok);
        }
        ReadinessReport::new(LifeStage::Ready, redis.into_iter().chain(writes).chain(audit), &requirements)
    }

    /// Notes the cost of each user's hash, so that a login with an unknown name takes as long as one with
    /// a known name. While Redis cannot be reached, only declared users are considered.
    pub async fn learn_hash_costs(&self) {
        let note = |user: &User| {
            if let Credential::Hash(hash) = &user.credential {
                self.passwords.observe(hash);
            }
        };
        self.accounts.declared.current().users.values().for_each(note);
        // The Redis link logs that Redis cannot be reached, and unreadable users are logged, too.
        if let Ok(users) = self.accounts.users().await {
            users.values().for_each(|found| note(&found.user));
        }
    }
}

//! The state that all requests share, and authd's readiness.

use common::{
    health::{Condition, LifeStage, REGISTRY, ReadinessReport, Requirement},
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
    config::Config,
    metrics,
    revision::RevisionAdvancer,
    throttle::Throttle,
    tokens::{TokenPolicy, Tokens},
};

/// The state that all requests share.
pub struct Service {
    pub(crate) accounts: Accounts,
    pub(crate) passwords: PasswordVerifier,
    pub(crate) cache: PasswordCache,
    pub(crate) throttle: Throttle,
    pub(crate) tokens: Tokens,
    /// Sessions and nodes in Redis. `None`: no Redis is configured.
    pub(crate) registry: Option<RegistryView>,
    pub(crate) revision: RevisionAdvancer,
    /// Conditions for `/readyz` to answer 200.
    requirements: Vec<Requirement>,
}

impl Service {
    /// Reads the users file and computes one argon2 hash. Blocks.
    ///
    /// # Errors
    /// The users file cannot be used.
    pub fn new(config: &Config) -> Result<Self, UsersFileError> {
        let registry = config.redis.as_ref().map(RegistryView::new);
        let link_and_keys = || registry.as_ref().map(|view| (view.link().clone(), view.keys().clone()));
        let is_demo = config.users == DeclaredUsers::Demo;
        Ok(Self {
            accounts: Accounts::new(
                DeclaredAccounts::new(&config.users, config.anonymous.clone())?,
                link_and_keys().map(|(link, keys)| StoredAccounts::new(link, keys)),
            ),
            passwords: PasswordVerifier::new(&config.passwords, config.node_token.as_ref()),
            cache: PasswordCache::new(config.cache),
            throttle: Throttle::new(config.throttle.clone(), link_and_keys()),
            tokens: Tokens::new(
                match &config.node_token {
                    None if is_demo => TokenPolicy::AcceptAll,
                    token => TokenPolicy::of(token.as_ref()),
                },
                TokenPolicy::of(config.admin_token.as_ref()),
            ),
            registry,
            revision: RevisionAdvancer::default(),
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
        if let Some((name, dependency)) = &redis {
            metrics::dependency(name, dependency.condition == Condition::Ok);
        }
        ReadinessReport::new(LifeStage::Ready, redis, &requirements)
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

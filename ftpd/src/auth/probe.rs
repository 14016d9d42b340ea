//! Probe of authd: asks whether it would decide a login, without sending a password.

use std::{sync::Arc, time::Duration};

use common::{
    auth_api::ErrorBody,
    health::{Condition, DependencyFailure},
    process::logging::chain,
};
use hyper::{StatusCode, header::HeaderValue};
use tokio::{task::JoinSet, time::timeout};

use super::{
    CONNECT_TIMEOUT,
    http::{AuthdInstance, AuthdUrl},
    refused_token,
};

/// Sends `GET /v1/authenticate` to every authd instance, over its own connections.
pub struct AuthdProbe {
    instances: Vec<Arc<AuthdInstance>>,
}

impl AuthdProbe {
    pub fn new(urls: &[AuthdUrl], authorization: Option<&HeaderValue>) -> Self {
        let instance = |url: &AuthdUrl| {
            Arc::new(AuthdInstance::new(url.clone(), authorization.cloned(), CONNECT_TIMEOUT))
        };
        Self { instances: urls.iter().map(instance).collect() }
    }

    /// Asks all instances at once and returns when one would decide a login.
    ///
    /// # Errors
    /// No instance would decide a login within `time_limit`. Contains the failure of each.
    pub async fn ask(&self, time_limit: Duration) -> Result<(), DependencyFailure> {
        let mut asked = JoinSet::new();
        for instance in &self.instances {
            let instance = Arc::clone(instance);
            asked.spawn(async move {
                let answer = timeout(time_limit, ask(&instance)).await;
                let answer =
                    answer.unwrap_or_else(|_| Err((Condition::Failed, "no answer in time".to_owned())));
                answer.map_err(|(condition, error)| (condition, format!("{}: {error}", instance.url)))
            });
        }
        let mut failures = Vec::new();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failures.push(failure),
                Err(error) => failures.push((Condition::Failed, error.to_string())),
            }
        }
        failures.sort_by(|(_, a), (_, b)| a.cmp(b));
        let is_refused = failures.iter().any(|(condition, _)| *condition == Condition::Misconfigured);
        let (condition, setting) = if is_refused {
            (Condition::Misconfigured, "authd_token_file")
        } else {
            (Condition::Failed, "authd_urls")
        };
        let errors: Vec<String> = failures.into_iter().map(|(_, error)| error).collect();
        Err(DependencyFailure { condition, error: errors.join("; "), setting })
    }
}

async fn ask(instance: &AuthdInstance) -> Result<(), (Condition, String)> {
    let answer = instance.get_authenticate().await.map_err(|error| (Condition::Failed, chain(&error)))?;
    match answer.status {
        status if status.is_success() => Ok(()),
        // An older version without this request.
        StatusCode::METHOD_NOT_ALLOWED => Ok(()),
        StatusCode::UNAUTHORIZED => Err((Condition::Misconfigured, refused_token())),
        status => {
            let body: Option<ErrorBody> = serde_json::from_slice(&answer.body).ok();
            let message = body.map(|body| format!(": {}", body.message)).unwrap_or_default();
            Err((Condition::Failed, format!("answered {status}{message}")))
        }
    }
}

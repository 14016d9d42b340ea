//! `/v1/usage` and `/v1/users/{name}/usage`: what homes hold, and their quotas.

use common::{
    admin_api::UsageView,
    clock::rfc3339,
    policy::Quota,
    registry::{LinkError, RegistryView},
};
use redis::cmd;
use serde::Deserialize;

use super::{existing, registry};
use crate::{
    accounts::name::{GroupName, UserName},
    error::ApiError,
    service::Service,
};

/// The query of `GET /v1/usage`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageFilter {
    /// Only users who use at least this share of their quota, in percent.
    over: Option<f64>,
}

/// The usage of one user's home.
///
/// # Errors
/// No user has this name, or Redis cannot be reached.
pub async fn show(service: &Service, name: &str) -> Result<UsageView, ApiError> {
    let registry = registry(service)?;
    let name: UserName = service.accounts.declared.canonical_name(existing(name, "user")?);
    let (found, _) = service.accounts.find(&name).await?;
    let user = found.ok_or(ApiError::NotFound("user"))?.user;
    let quota = service.accounts.effective(&user).await?.quota;
    Ok(view(registry, &name, user.home.as_str(), quota).await?)
}

/// The usage of all users with a quota, the fullest first.
///
/// # Errors
/// Redis cannot be reached.
pub async fn list(service: &Service, filter: UsageFilter) -> Result<Vec<UsageView>, ApiError> {
    let registry = registry(service)?;
    let groups = service.accounts.groups().await?;
    let group = |name: &GroupName| groups.get(name).map(|(_, policy)| policy.clone());
    let mut usages = Vec::new();
    for (name, found) in service.accounts.users().await? {
        let Ok(effective) = found.user.effective(group) else { continue };
        if effective.quota == Quota::default() {
            continue;
        }
        let usage = view(registry, &name, found.user.home.as_str(), effective.quota).await?;
        if filter.over.is_none_or(|over| usage.percent.is_some_and(|percent| percent >= over)) {
            usages.push(usage);
        }
    }
    usages.sort_by(|a, b| b.percent.unwrap_or(-1.0).total_cmp(&a.percent.unwrap_or(-1.0)));
    Ok(usages)
}

async fn view(
    registry: &RegistryView,
    name: &UserName,
    home: &str,
    quota: Quota,
) -> Result<UsageView, LinkError> {
    let key = registry.keys().home_usage(home.trim_matches('/').as_bytes());
    let fields = cmd("HMGET").arg(key).arg(&["bytes", "files", "counted"]).to_owned();
    let (bytes, files, counted): (Option<u64>, Option<u64>, Option<u64>) =
        registry.link().query(&fields).await?;
    Ok(UsageView {
        user: name.to_string(),
        home: home.to_owned(),
        bytes,
        files,
        bytes_limit: quota.bytes,
        files_limit: quota.files,
        percent: percent(bytes, quota.bytes).into_iter().chain(percent(files, quota.files)).reduce(f64::max),
        counted: counted.filter(|at| *at > 0).map(|at| rfc3339(at / 1000)),
    })
}

/// With a limit of 0, everything is over it.
fn percent(used: Option<u64>, limit: Option<u64>) -> Option<f64> {
    let (used, limit) = (used? as f64, limit? as f64);
    Some(if limit > 0.0 { (used / limit * 1000.0).round() / 10.0 } else { 100.0 })
}

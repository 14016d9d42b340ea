//! Records the actions of administrators: who, from where, on what, and what changed. Each is a line in the
//! log and a record of the audit trail.

use common::audit::{AuditEvent, AuditRecord, AuditResult, AuditTrail};
use serde_json::{Map, Value, to_value};

use crate::{
    administrators::Actor,
    error::ApiError,
    handlers::{groups, users},
    service::Service,
};

/// Values with these keys are secrets. A record tells only that they were set.
const SECRETS: [&str; 2] = ["password", "password_hash"];

/// An administrator's action that is about to be carried out.
pub(crate) struct AdminAction {
    action: &'static str,
    object: String,
    before: Map<String, Value>,
    after: Map<String, Value>,
}

impl AdminAction {
    /// Notes the state before the action. `body` is the request's body as JSON, if it is an object.
    pub(crate) async fn begin(
        service: &Service,
        action: &'static str,
        parameter: &str,
        mut body: Map<String, Value>,
    ) -> Self {
        for (key, value) in &mut body {
            if SECRETS.contains(&key.as_str()) {
                *value = Value::from("set");
            }
        }
        let named = body.get("name").or_else(|| body.get("user"));
        let named = named.and_then(Value::as_str).unwrap_or_default();
        let object = if parameter.is_empty() { named } else { parameter };
        // 64 characters: a name that no object can have may be long.
        let object: String = object.chars().take(64).collect();
        let mut before = if action.ends_with(".update") || action.ends_with(".remove") {
            state(service, action, &object).await
        } else {
            Map::new()
        };
        if action.ends_with(".update") {
            before.retain(|key, _| body.contains_key(key));
        }
        Self { action, object, before, after: body }
    }

    /// Records the action with its result.
    pub(crate) fn end(self, trail: &AuditTrail, by: &Actor, failure: Option<&ApiError>) {
        let Self { action, object, before, after } = self;
        let result = if failure.is_none() { AuditResult::Ok } else { AuditResult::Failed };
        trail.record(AuditRecord {
            address: by.address,
            by: Some(by.administrator.name.clone()),
            action: Some(action.to_owned()),
            object: Some(object.clone()),
            before: before.clone().into_iter().collect(),
            after: after.clone().into_iter().collect(),
            reason: failure.map(|error| error.code().as_str().to_owned()),
            detail: failure.map(ToString::to_string),
            ..AuditRecord::new(AuditEvent::Admin, result)
        });
        let (before, after) = (Value::Object(before).to_string(), Value::Object(after).to_string());
        let (name, address) = (by.administrator.name.as_str(), by.address());
        match failure {
            None => log::info!(
                by = name, address = address.as_str(), action, object = object.as_str(),
                before = before.as_str(), after = after.as_str();
                "administrator's action"
            ),
            Some(error) => log::warn!(
                by = name, address = address.as_str(), action, object = object.as_str(),
                after = after.as_str(), reason = error.code().as_str();
                "administrator's action failed"
            ),
        }
    }
}

/// The fields of a user or a group, without what authd derives from them.
async fn state(service: &Service, action: &str, object: &str) -> Map<String, Value> {
    let state = match action.split_once('.') {
        Some(("user", _)) => users::show(service, object).await.ok().and_then(|user| to_value(user).ok()),
        Some(("group", _)) => groups::show(service, object).await.ok().and_then(|group| to_value(group).ok()),
        _ => None,
    };
    let Some(Value::Object(mut fields)) = state else { return Map::new() };
    fields.retain(|key, _| key != "effective" && key != "members");
    fields
}

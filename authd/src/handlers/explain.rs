//! `GET /v1/users/{name}/explain`: why a user can log in or cannot. Nothing is counted, and no password is
//! needed.

use std::{net::IpAddr, time::SystemTime};

use common::{
    admin_api::{AuditEntry, ExplainGate, GateVerdict, LoginAttemptView, UserExplanation},
    audit::AuditResult,
    clock::{parse_rfc3339, rfc3339},
    login_conditions::{LoginConditions, UnmetCondition},
};
use serde::Deserialize;

use super::{
    audit::{self, AuditFilter},
    existing,
};
use crate::{
    accounts::{name::UserName, user::AccountSource},
    error::ApiError,
    service::Service,
    throttle::BanSubject,
};

/// Number of attempts that are shown.
const ATTEMPTS: usize = 5;

/// The query: the login that is to be explained.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    address: Option<IpAddr>,
    /// RFC 3339; missing: now.
    at: Option<String>,
}

/// Collects the gates, and the first command that opens a closed one.
#[derive(Default)]
struct Gates {
    gates: Vec<ExplainGate>,
    remedy: Option<String>,
}

impl Gates {
    fn add(&mut self, gate: &str, verdict: GateVerdict, text: impl Into<String>) {
        self.gates.push(ExplainGate { gate: gate.to_owned(), verdict, text: text.into() });
    }

    fn refuse(&mut self, gate: &str, text: impl Into<String>, remedy: String) {
        self.add(gate, GateVerdict::Refused, text);
        self.remedy.get_or_insert(remedy);
    }
}

/// Explains the login of a user.
///
/// # Errors
/// Redis cannot be reached, so it is not known whether the user exists.
pub async fn explain(
    service: &Service,
    name: &str,
    query: ExplainQuery,
) -> Result<UserExplanation, ApiError> {
    let at = match query.at {
        None => SystemTime::now(),
        Some(at) => parse_rfc3339(&at).ok_or_else(|| {
            ApiError::InvalidRequest("at: expected a time such as 2026-11-27T21:14:00Z".to_owned())
        })?,
    };
    let name: UserName = service.accounts.declared.canonical_name(existing(name, "user")?);
    let mut gates = Gates::default();
    let (found, _) = service.accounts.find(&name).await?;
    match found {
        None => gates.refuse("user", "there is no such user", format!("ftpctl users add {name}")),
        Some(found) => {
            let place = match (found.source, service.accounts.declared.path()) {
                (AccountSource::Registry, _) => "kept by the API".to_owned(),
                (_, Some(path)) => format!("declared in {}", path.display()),
                (_, None) => "declared in the settings".to_owned(),
            };
            gates.add("user", GateVerdict::Ok, format!("the user exists, {place}"));
            if found.user.enabled {
                gates.add("enabled", GateVerdict::Ok, "the user is enabled");
            } else {
                gates.refuse("enabled", "the user is disabled", format!("ftpctl users enable {name}"));
            }
            match service.accounts.effective(&found.user).await {
                Err(error) => gates.add(
                    "groups",
                    GateVerdict::Refused,
                    format!("the user's groups cannot be read, so every login is refused: {error}"),
                ),
                Ok(effective) => {
                    conditions(&mut gates, &name, &effective.access, query.address, at);
                    sessions(&mut gates, service, &name, effective.limits.sessions).await;
                    if effective.tls.control {
                        gates.add("tls", GateVerdict::Unknown, "TLS is required: plain logins get 530");
                    }
                }
            }
        }
    }
    blocks_and_bans(&mut gates, service, &name, query.address).await;
    let may_log_in = gates.gates.iter().all(|gate| gate.verdict != GateVerdict::Refused);
    let Gates { gates, remedy } = gates;
    let attempts = attempts(service, &name).await;
    Ok(UserExplanation { user: name.to_string(), may_log_in, gates, remedy, attempts })
}

/// The last logins in the audit trail. Without Redis none are known.
async fn attempts(service: &Service, name: &UserName) -> Vec<LoginAttemptView> {
    let Some(registry) = &service.registry else { return Vec::new() };
    let page = audit::search(registry, &AuditFilter::logins_of(name.as_str()), ATTEMPTS, None).await;
    let view = |entry: AuditEntry| LoginAttemptView {
        time: entry.record.time,
        accepted: entry.record.result == AuditResult::Ok,
        reason: entry.record.reason,
        node: entry.record.node,
        address: entry.record.address,
    };
    page.map(|page| page.records.into_iter().map(view).collect()).unwrap_or_default()
}

fn conditions(
    gates: &mut Gates,
    name: &UserName,
    access: &LoginConditions,
    address: Option<IpAddr>,
    at: SystemTime,
) {
    let networks = LoginConditions { hours: Vec::new(), ..access.clone() };
    match address {
        _ if access.allow_from.is_empty() && access.deny_from.is_empty() => {
            gates.add("address", GateVerdict::Ok, "every address is allowed");
        }
        None => gates.add("address", GateVerdict::Unknown, "only some addresses are allowed; name one"),
        Some(address) if networks.check(address, at) == Err(UnmetCondition::Address) => gates.refuse(
            "address",
            format!("address {address} is not allowed (access.allow_from, access.deny_from)"),
            format!("ftpctl users set {name} access.allow_from=[]"),
        ),
        Some(address) => gates.add("address", GateVerdict::Ok, format!("address {address} is allowed")),
    }
    let hours = LoginConditions { hours: access.hours.clone(), ..LoginConditions::default() };
    let any = IpAddr::from([127, 0, 0, 1]);
    if access.hours.is_empty() {
        gates.add("hours", GateVerdict::Ok, "every hour is allowed");
    } else {
        let allowed: Vec<String> = access.hours.iter().map(ToString::to_string).collect();
        let allowed = format!("allowed (UTC): {}", allowed.join(", "));
        match hours.check(any, at) {
            Ok(()) => gates.add("hours", GateVerdict::Ok, allowed),
            Err(_) => gates.refuse(
                "hours",
                format!("this time is not allowed; {allowed} (access.hours)"),
                format!("ftpctl users set {name} access.hours=[]"),
            ),
        }
    }
}

async fn sessions(gates: &mut Gates, service: &Service, name: &UserName, limit: Option<u32>) {
    let Some(limit) = limit else { return };
    let Some(registry) = &service.registry else { return };
    match registry.sessions_of(name.as_str()).await {
        Ok(sessions) if sessions.len() >= limit as usize => gates.refuse(
            "sessions",
            format!("{} of {limit} sessions are in use (limits.sessions)", sessions.len()),
            format!("ftpctl kick --user {name}"),
        ),
        Ok(sessions) => {
            gates.add("sessions", GateVerdict::Ok, format!("{} of {limit} sessions", sessions.len()));
        }
        Err(error) => gates.add("sessions", GateVerdict::Unknown, error.to_string()),
    }
}

async fn blocks_and_bans(gates: &mut Gates, service: &Service, name: &UserName, address: Option<IpAddr>) {
    // Without an address, only a block of the user can be found.
    let from = address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    match service.blocks.current().await.forbidding(Some(name.as_str()), from) {
        None => gates.add("block", GateVerdict::Ok, "not blocked"),
        Some((key, block)) => gates.refuse(
            "block",
            format!(
                "{} is blocked by {}{}{}",
                key.name,
                block.by,
                block.until.map(|until| format!(" until {}", rfc3339(until))).unwrap_or_default(),
                if block.reason.is_empty() { String::new() } else { format!(": {}", block.reason) },
            ),
            format!("ftpctl unblock {}", key.name),
        ),
    }
    let subjects = [Some(BanSubject::User(name.clone())), {
        address.and_then(|address| BanSubject::address(&address.to_string()).ok())
    }];
    match service.throttle.bans().await {
        Err(error) => gates.add("ban", GateVerdict::Unknown, error.to_string()),
        Ok(bans) => match bans.iter().find(|ban| subjects.iter().flatten().any(|own| *own == ban.subject)) {
            None => gates.add("ban", GateVerdict::Ok, "not banned"),
            Some(ban) => gates.refuse(
                "ban",
                format!(
                    "{} is banned after failed logins until {}",
                    ban.subject,
                    rfc3339(ban.until.div_ceil(1000))
                ),
                format!("ftpctl bans lift {}", ban.subject),
            ),
        },
    }
}

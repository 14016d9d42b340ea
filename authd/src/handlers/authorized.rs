//! `POST /v1/authorized`: decides which sessions of past logins may continue.

use std::{
    collections::{BTreeSet, HashMap},
    time::SystemTime,
};

use common::{
    auth_api::{AuthorizedAnswer, AuthorizedRequest, EndReason, MAX_AUTHORIZED, PastLogin, Verdict},
    certificate::CertificateRule,
    login_conditions::{LoginConditions, UnmetCondition},
    process::logging::chain,
};

use super::shortened;
use crate::{
    accounts::{
        name::UserName,
        user::{User, version},
    },
    error::ApiError,
    metrics,
    service::Service,
};

/// Decides about past logins. Passwords are not needed, and no argon2 is computed.
///
/// # Errors
/// The request contains more than [`MAX_AUTHORIZED`] logins.
pub async fn authorized(service: &Service, request: AuthorizedRequest) -> Result<AuthorizedAnswer, ApiError> {
    let AuthorizedRequest { node, logins } = request;
    if logins.len() > MAX_AUTHORIZED {
        return Err(ApiError::InvalidRequest(format!("logins: more than {MAX_AUTHORIZED}")));
    }
    let now = SystemTime::now();
    // No user has a malformed name.
    let name = |login: &PastLogin| {
        login.user.parse().ok().map(|name| service.accounts.declared.canonical_name(name))
    };
    let names: BTreeSet<UserName> = logins.iter().filter_map(name).collect();
    let names: Vec<UserName> = names.into_iter().collect();
    let found = service.accounts.find_many(&names).await;
    for (name, result) in names.iter().zip(&found) {
        // The Redis link logs its own errors. All others need the operator.
        if let Err(error) = result
            && !error.is_unreachable()
        {
            let error = chain(error.as_ref());
            log::error!(
                user:% = name, node:%, error; "cannot decide whether the user's sessions may continue"
            );
        }
    }
    let users: HashMap<&UserName, _> = names.iter().zip(&found).collect();
    let blocks = service.blocks.current().await;
    let decide = |login: &PastLogin| {
        let canonical = name(login);
        let is_blocked = blocks.forbids(canonical.as_ref().map(UserName::as_str), login.address);
        let verdict = match canonical.and_then(|name| users.get(&name).copied()) {
            _ if is_blocked => Verdict::End { reason: EndReason::Blocked },
            None => judge(None, login, now),
            Some(Ok(user)) => judge(user.as_ref(), login, now),
            Some(Err(_)) => Verdict::Undecided,
        };
        if let Verdict::End { reason } = verdict {
            metrics::session_revoked(reason.as_str());
            log::info!(
                user = shortened(&login.user), address:% = login.address, node:%, reason = reason.as_str();
                "the sessions of a past login must end"
            );
        }
        verdict
    };
    Ok(AuthorizedAnswer { verdicts: logins.iter().map(decide).collect() })
}

fn judge(known: Option<&(User, LoginConditions)>, login: &PastLogin, now: SystemTime) -> Verdict {
    let end = |reason| Verdict::End { reason };
    let Some((user, access)) = known else { return end(EndReason::Removed) };
    if !user.enabled {
        return end(EndReason::Disabled);
    }
    if login.version.as_ref().is_some_and(|then| !is_current(user, then)) {
        return end(EndReason::CredentialChanged);
    }
    match access.check(login.address, now) {
        Ok(()) => Verdict::Stay,
        Err(UnmetCondition::Address) => end(EndReason::AddressNotAllowed),
        Err(UnmetCondition::Time) => end(EndReason::TimeNotAllowed),
    }
}

/// Returns true if a login of this version would be accepted again: by the password, or by a certificate
/// rule that the user still has.
fn is_current(user: &User, then: &str) -> bool {
    let by_certificate = |rule: &CertificateRule| version(user, Some(rule)) == then;
    version(user, None) == then || user.certificates.iter().any(by_certificate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::user::Credential;

    const HASHES: [&str; 2] = [
        "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$9OzPPD5NcFBCFBsPPUbMKr3/kZ2CpcUvYjPmEdjfYAM",
        "$argon2id$v=19$m=64,t=1,p=1$b3RoZXJzYWx0$9OzPPD5NcFBCFBsPPUbMKr3/kZ2CpcUvYjPmEdjfYAM",
    ];

    fn ann(hash: &str) -> User {
        User::new(&"ann".parse().unwrap(), Credential::Hash(hash.parse().unwrap()))
    }

    fn verdict(user: &User, version: Option<String>) -> Verdict {
        let login = PastLogin { user: "ann".to_owned(), version, address: [192, 0, 2, 1].into() };
        judge(Some(&(user.clone(), LoginConditions::default())), &login, SystemTime::now())
    }

    #[test]
    fn session_ends_when_the_credential_of_its_login_changes() {
        let changed = Verdict::End { reason: EndReason::CredentialChanged };
        let user = ann(HASHES[0]);
        let with = |certificates: &[&str]| User {
            certificates: certificates.iter().map(|text| text.parse().unwrap()).collect(),
            ..user.clone()
        };
        let by_password = version(&user, None);
        let by_certificate = version(&with(&["CN=a"]), Some(&"CN=a".parse().unwrap()));
        assert_ne!(by_password, by_certificate);
        for (now, password, certificate) in [
            (with(&[]), Verdict::Stay, changed),
            (with(&["CN=a"]), Verdict::Stay, Verdict::Stay),
            (with(&["CN=b", "CN=a"]), Verdict::Stay, Verdict::Stay),
            (with(&["CN=b"]), Verdict::Stay, changed),
            (ann(HASHES[1]), changed, changed),
            (User { certificates: vec!["CN=a".parse().unwrap()], ..ann(HASHES[1]) }, changed, changed),
        ] {
            assert_eq!(verdict(&now, Some(by_password.clone())), password, "{now:?}");
            assert_eq!(verdict(&now, Some(by_certificate.clone())), certificate, "{now:?}");
            // A login that an older authd decided has no version.
            assert_eq!(verdict(&now, None), Verdict::Stay);
        }
        let disabled = User { enabled: false, ..user };
        assert_eq!(verdict(&disabled, None), Verdict::End { reason: EndReason::Disabled });
    }

    #[test]
    fn other_changes_end_no_session() {
        let user = ann(HASHES[0]);
        let then = version(&user, None);
        let moved = User { home: "/x".to_owned().try_into().unwrap(), admin: true, ..user };
        assert_eq!(verdict(&moved, Some(then)), Verdict::Stay);
    }
}

//! `POST /v1/authorized`: which sessions of past logins may go on.

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

use crate::{
    Service,
    accounts::{
        name::UserName,
        user::{User, version},
    },
    error::ApiError,
    metrics,
};

/// Decides about past logins, without passwords: no argon2 is computed.
///
/// # Errors
/// The request names more than [`MAX_AUTHORIZED`] logins.
pub async fn authorized(service: &Service, request: AuthorizedRequest) -> Result<AuthorizedAnswer, ApiError> {
    let AuthorizedRequest { node, logins } = request;
    if logins.len() > MAX_AUTHORIZED {
        return Err(ApiError::InvalidRequest(format!("logins: more than {MAX_AUTHORIZED}")));
    }
    let now = SystemTime::now();
    // No user has a name that cannot be one.
    let name = |login: &PastLogin| login.user.parse().ok().map(|name| service.accounts.canonical(name));
    let names: BTreeSet<UserName> = logins.iter().filter_map(name).collect();
    let names: Vec<UserName> = names.into_iter().collect();
    let found = service.accounts.find_many(&names).await;
    for (name, result) in names.iter().zip(&found) {
        // The link's log says that Redis is away; what else it is must be put right.
        if let Err(error) = result
            && !error.is_absence()
        {
            let error = chain(error.as_ref());
            log::error!(user:% = name, node:%, error; "cannot tell whether the user's sessions may stay");
        }
    }
    let users: HashMap<&UserName, _> = names.iter().zip(&found).collect();
    let judge_one = |login: &PastLogin| {
        let known = name(login).and_then(|name| users.get(&name).copied());
        let verdict = match known {
            None => judge(None, login, now),
            Some(Ok(user)) => judge(user.as_ref(), login, now),
            Some(Err(_)) => Verdict::Undecided,
        };
        if let Verdict::End { reason } = verdict {
            metrics::session_revoked(reason.as_str());
            let user: String = login.user.chars().take(64).collect();
            log::info!(
                user, address:% = login.address, node:%, reason = reason.as_str(); "sessions may not stay"
            );
        }
        verdict
    };
    Ok(AuthorizedAnswer { verdicts: logins.iter().map(judge_one).collect() })
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

/// Whether a login of this version would be accepted again: by the password, or by a certificate that still
/// stands in for it.
fn is_current(user: &User, then: &str) -> bool {
    let by_certificate = |entry: &CertificateRule| version(user, Some(entry)) == then;
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
    fn a_session_ends_with_the_credential_that_began_it() {
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
            // From a node whose authd told no version.
            assert_eq!(verdict(&now, None), Verdict::Stay);
        }
        let disabled = User { enabled: false, ..user };
        assert_eq!(verdict(&disabled, None), Verdict::End { reason: EndReason::Disabled });
    }

    #[test]
    fn a_change_that_holds_for_the_next_login_ends_no_session() {
        let user = ann(HASHES[0]);
        let then = version(&user, None);
        let moved = User { home: "/x".to_owned().try_into().unwrap(), admin: true, ..user };
        assert_eq!(verdict(&moved, Some(then)), Verdict::Stay);
    }
}

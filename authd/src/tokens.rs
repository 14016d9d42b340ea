//! Bearer tokens: one for nodes, and those of administrators.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use common::{
    process::http::{self, Peer},
    secret::Secret,
    sync::lock,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use warp::http::{HeaderMap, header};

use crate::{
    administrators::{Administrator, Administrators},
    error::ApiError,
};

/// Requests that are accepted on some routes.
pub(crate) enum TokenPolicy {
    /// All: the nodes of a demo on a loopback address.
    AcceptAll,
    /// Requests with a token that has one of these SHA-256; none, if no token is configured.
    Sha256(Vec<[u8; 32]>),
}

/// Checks the tokens of requests.
pub(crate) struct Tokens {
    node: TokenCheck,
    administrators: Administrators,
    refusals: RefusalLog,
}

/// Checks the token of nodes.
struct TokenCheck {
    policy: TokenPolicy,
    messages: &'static Messages,
    refusals: RefusalLog,
}

/// Texts about the tokens of nodes or of administrators.
struct Messages {
    /// The owner and the settings of the token, for the 401 response.
    owner: &'static str,
    /// For the log: no token is configured.
    not_configured: &'static str,
    /// For the log: the request has no token.
    missing: &'static str,
    /// For the log: the request has another token.
    differs: &'static str,
}

const NODES: Messages = Messages {
    owner: "nodes: authd's node_token_file, ftpd's authd_token_file",
    not_configured: "a node's request was refused (401): node_token_file is not set",
    missing: "a node's request was refused (401): it has no token; set the node's authd_token_file",
    differs: "a node's request was refused (401): its authd_token_file differs from node_token_file",
};

const ADMINISTRATORS: Messages = Messages {
    owner: "administrators: authd's admin_token_file or administrators_file",
    not_configured: "an administrator's request was refused (401): neither admin_token_file nor \
                     administrators_file is set",
    missing: "an administrator's request was refused (401): it has no token",
    differs: "an administrator's request was refused (401): its token differs from admin_token_file and \
              administrators_file",
};

impl Tokens {
    /// Checks requests of nodes by this policy, and requests of these administrators.
    pub(crate) fn new(node: TokenPolicy, administrators: Administrators) -> Self {
        let node = TokenCheck { policy: node, messages: &NODES, refusals: RefusalLog::default() };
        Self { node, administrators, refusals: RefusalLog::default() }
    }

    /// The administrators that the settings name.
    pub(crate) fn administrators(&self) -> &Administrators {
        &self.administrators
    }

    /// # Errors
    /// The request does not have the nodes' token.
    pub(crate) fn node(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<(), ApiError> {
        self.node.check(headers, peer)
    }

    /// The administrator to whom the request's token belongs.
    pub(crate) fn who(&self, headers: &HeaderMap) -> Option<Administrator> {
        self.administrators.with_token(bearer(headers)?)
    }

    /// The administrator of the request.
    ///
    /// # Errors
    /// The request does not have an administrator's token.
    pub(crate) fn admin(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<Administrator, ApiError> {
        if let Some(administrator) = self.who(headers) {
            http::trust_connection();
            return Ok(administrator);
        }
        let message = match bearer(headers) {
            _ if self.administrators.is_empty() => ADMINISTRATORS.not_configured,
            None => ADMINISTRATORS.missing,
            Some(_) => ADMINISTRATORS.differs,
        };
        self.refusals.log(message, peer);
        Err(ApiError::Unauthorized(ADMINISTRATORS.owner))
    }
}

impl TokenCheck {
    fn check(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<(), ApiError> {
        if self.policy.accepts(headers) {
            http::trust_connection();
            return Ok(());
        }
        let message = match (&self.policy, bearer(headers)) {
            (TokenPolicy::Sha256(tokens), _) if tokens.is_empty() => self.messages.not_configured,
            (_, None) => self.messages.missing,
            (_, Some(_)) => self.messages.differs,
        };
        self.refusals.log(message, peer);
        Err(ApiError::Unauthorized(self.messages.owner))
    }
}

impl TokenPolicy {
    /// Accepts requests with one of `tokens`. Without tokens it refuses all requests.
    pub(crate) fn of(tokens: &[Secret]) -> Self {
        Self::Sha256(tokens.iter().map(|token| digest(token.expose().as_bytes())).collect())
    }

    /// Returns true if the request's token is accepted. Compares all digests in constant time, so that the
    /// duration reveals neither the token nor its length, nor which of two it is.
    fn accepts(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::AcceptAll => true,
            Self::Sha256(expected) => bearer(headers).is_some_and(|token| {
                let shown = digest(token);
                expected.iter().fold(false, |found, expected| found | bool::from(shown.ct_eq(expected)))
            }),
        }
    }
}

/// Logs refused requests of one kind, at most one line per [`LOG_INTERVAL`]: refused requests cost their
/// sender nothing and could otherwise fill the log.
#[derive(Default)]
struct RefusalLog(Mutex<LoggedRefusals>);

#[derive(Default)]
struct LoggedRefusals {
    last_line: Option<Instant>,
    /// Refusals since the last line.
    suppressed: u64,
}

/// Minimum time between two lines of a [`RefusalLog`].
const LOG_INTERVAL: Duration = Duration::from_secs(10);

impl RefusalLog {
    fn log(&self, message: &str, peer: Option<Peer>) {
        let suppressed = {
            let mut logged = lock(&self.0);
            if logged.last_line.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
                logged.suppressed += 1;
                return;
            }
            logged.last_line = Some(Instant::now());
            std::mem::take(&mut logged.suppressed)
        };
        let address = peer.map(|Peer(peer)| peer.ip().to_string()).unwrap_or_default();
        log::warn!(address = address.as_str(), suppressed; "{message}");
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750 section 2.1), if there is exactly one such header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap())).collect()
    }

    #[test]
    fn only_one_header_with_the_exact_token_is_accepted() {
        let policy = TokenPolicy::of(&[Secret::new("sesame")]);
        for right in ["Bearer sesame", "bearer sesame", "Bearer  sesame"] {
            assert!(policy.accepts(&with(&[right])), "{right}");
        }
        let wrong: [&[&str]; 9] = [
            &[],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["sesame"],
            &["Basic sesame"],
            &["Bearer Sesame"],
            &["Bearer sesame2"],
            &["Bearer sesame", "Bearer x"],
        ];
        for wrong in wrong {
            assert!(!policy.accepts(&with(wrong)), "{wrong:?}");
        }
        assert!(!TokenPolicy::of(&[]).accepts(&with(&["Bearer sesame"])));
        assert!(!TokenPolicy::of(&[]).accepts(&with(&["Bearer "])));
        assert!(TokenPolicy::AcceptAll.accepts(&with(&[])));
    }
}

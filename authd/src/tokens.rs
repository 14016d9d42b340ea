//! The two bearer tokens: one for nodes, one for administrators.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use common::{process::http, secret::Secret, sync::lock};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use warp::http::{HeaderMap, header};

use crate::{error::ApiError, server::Peer};

/// Whose token is asked for, and where it stands, in the answer to a request without it.
const NODES: &str = "nodes: authd's node_token_file, ftpd's authd_token_file";
const ADMINISTRATORS: &str = "administrators: authd's admin_token_file";

/// Who may use some routes.
pub enum Access {
    /// Nobody: there is no token.
    Closed,
    /// Everybody who can connect: the nodes of a demo on loopback.
    Open,
    /// Who sends the token with this SHA-256.
    Token([u8; 32]),
}

/// Shows that a request came with the administrators' token.
pub struct Admin(());

/// Shows that a request came with the nodes' token.
pub struct Node(());

/// Who may use which routes.
pub struct Tokens {
    node: Access,
    admin: Access,
    refused_nodes: Refusals,
    refused_admins: Refusals,
}

impl Tokens {
    pub fn new(node: Access, admin: Access) -> Self {
        Self { node, admin, refused_nodes: Refusals::default(), refused_admins: Refusals::default() }
    }

    /// # Errors
    /// The request does not come from a node.
    pub fn node(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<Node, ApiError> {
        if self.node.check(headers) {
            http::trust_connection();
            return Ok(Node(()));
        }
        let what = match (&self.node, bearer(headers)) {
            (Access::Closed, _) => "a node's request was refused (401): node_token_file is not set",
            (_, None) => {
                "a node's request was refused (401): it has no token; set the node's authd_token_file"
            }
            (_, Some(_)) => {
                "a node's request was refused (401): its authd_token_file differs from node_token_file"
            }
        };
        self.refused_nodes.tell(what, peer);
        Err(ApiError::Unauthorized(NODES))
    }

    /// # Errors
    /// The request does not come from an administrator.
    pub fn admin(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<Admin, ApiError> {
        if self.admin.check(headers) {
            http::trust_connection();
            return Ok(Admin(()));
        }
        let what = match (&self.admin, bearer(headers)) {
            (Access::Closed, _) => {
                "an administrator's request was refused (401): admin_token_file is not set"
            }
            (_, None) => "an administrator's request was refused (401): it has no token",
            (_, Some(_)) => {
                "an administrator's request was refused (401): its token differs from admin_token_file"
            }
        };
        self.refused_admins.tell(what, peer);
        Err(ApiError::Unauthorized(ADMINISTRATORS))
    }
}

/// Refused requests of one kind, of which the log gets a line in each [`QUIET`]: they cost their sender
/// nothing.
#[derive(Default)]
struct Refusals(Mutex<(Option<Instant>, u64)>);

/// How long further refusals are only counted.
const QUIET: Duration = Duration::from_secs(10);

impl Refusals {
    fn tell(&self, what: &str, peer: Option<Peer>) {
        let unwritten = {
            let mut state = lock(&self.0);
            let (written, unwritten) = &mut *state;
            if written.is_some_and(|written| written.elapsed() < QUIET) {
                *unwritten += 1;
                return;
            }
            *written = Some(Instant::now());
            std::mem::take(unwritten)
        };
        let address = peer.map(|Peer(peer)| peer.ip().to_string()).unwrap_or_default();
        log::warn!(address = address.as_str(), unwritten; "{what}");
    }
}

impl Access {
    pub fn token(secret: Option<&Secret>) -> Self {
        secret.map_or(Self::Closed, |secret| Self::Token(digest(secret.expose().as_bytes())))
    }

    /// Digests are compared, in constant time, so that neither the token nor its length shows in
    /// how long it takes.
    fn check(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Closed => false,
            Self::Open => true,
            Self::Token(expected) => {
                bearer(headers).is_some_and(|token| digest(token).ct_eq(expected).into())
            }
        }
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// The token of the only `Authorization: Bearer TOKEN` (RFC 6750 section 2.1).
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
    fn only_the_token_opens() {
        let access = Access::token(Some(&Secret::new("sesame")));
        for right in ["Bearer sesame", "bearer sesame", "Bearer  sesame"] {
            assert!(access.check(&with(&[right])), "{right}");
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
            assert!(!access.check(&with(wrong)), "{wrong:?}");
        }
        assert!(!Access::token(None).check(&with(&["Bearer sesame"])));
        assert!(!Access::token(None).check(&with(&["Bearer "])));
        assert!(Access::Open.check(&with(&[])));
    }
}

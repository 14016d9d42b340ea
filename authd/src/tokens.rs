//! The two bearer tokens: one for nodes, one for administrators.

use common::secret::Secret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use warp::http::{HeaderMap, header};

use crate::error::ApiError;

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
    pub node: Access,
    pub admin: Access,
}

impl Tokens {
    /// # Errors
    /// The request does not come from a node.
    pub fn node(&self, headers: &HeaderMap) -> Result<Node, ApiError> {
        self.node.check(headers).then_some(Node(())).ok_or(ApiError::Unauthorized)
    }

    /// # Errors
    /// The request does not come from an administrator.
    pub fn admin(&self, headers: &HeaderMap) -> Result<Admin, ApiError> {
        self.admin.check(headers).then_some(Admin(())).ok_or(ApiError::Unauthorized)
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

//! Sessions of the page, in the memory of this authd. A restart ends them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use common::clock::unix_seconds;
use sha2::{Digest, Sha256};

use crate::administrators::{Administrator, Administrators, digest};

/// Maximum number of sessions. A further one ends the oldest.
const MAX_SESSIONS: usize = 1000;

/// The sessions by the SHA-256 of their cookie's secret: the time of a look-up by a hash tells nothing about
/// the secret, and the memory does not hold it.
#[derive(Default)]
pub(super) struct PageSessions(HashMap<[u8; 32], StoredSession>);

/// A session of an administrator who has logged in to the page.
#[derive(Clone, Debug)]
pub(crate) struct PageSession {
    pub(crate) administrator: Administrator,
    /// The token that each request must show that changes something. Other sites cannot read it.
    pub(crate) csrf: String,
    /// End of the session; Unix time in seconds.
    pub(crate) until: u64,
}

struct StoredSession {
    session: PageSession,
    /// SHA-256 of the administrator's token. The session ends when the administrator gets another token.
    token: [u8; 32],
    began: Instant,
    lifetime: Duration,
}

impl PageSessions {
    /// Begins a session. Returns the secret of its cookie.
    pub(super) fn begin(
        &mut self,
        administrator: Administrator,
        token: &[u8],
        lifetime: Duration,
    ) -> (String, PageSession) {
        self.0.retain(|_, stored| !stored.is_over());
        if self.0.len() >= MAX_SESSIONS
            && let Some(oldest) = self.0.iter().min_by_key(|(_, stored)| stored.began)
        {
            let oldest = *oldest.0;
            self.0.remove(&oldest);
        }
        let (secret, csrf) = (random(), random());
        let session = PageSession { administrator, csrf, until: unix_seconds() + lifetime.as_secs() };
        let stored =
            StoredSession { session: session.clone(), token: digest(token), began: Instant::now(), lifetime };
        self.0.insert(key(&secret), stored);
        (secret, session)
    }

    pub(super) fn find(&mut self, administrators: &Administrators, secret: &str) -> Option<PageSession> {
        let key = key(secret);
        let stored = self.0.get(&key)?;
        let is_current =
            administrators.with_digest(&stored.token).as_ref() == Some(&stored.session.administrator);
        if stored.is_over() || !is_current {
            self.0.remove(&key);
            return None;
        }
        Some(stored.session.clone())
    }

    pub(super) fn end(&mut self, secret: &str) -> Option<Administrator> {
        Some(self.0.remove(&key(secret))?.session.administrator)
    }
}

impl StoredSession {
    fn is_over(&self) -> bool {
        self.began.elapsed() >= self.lifetime
    }
}

fn key(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// 256 random bits.
fn random() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_sessions_is_bounded_and_the_oldest_ends() {
        let administrators = Administrators::new(None, Some(b"sesame")).unwrap();
        let administrator = administrators.with_token(b"sesame").unwrap();
        let mut sessions = PageSessions::default();
        let mut begin = |lifetime| sessions.begin(administrator.clone(), b"sesame", lifetime).0;
        let hour = Duration::from_secs(3600);
        let first = begin(hour);
        let second = begin(hour);
        for _ in 2..MAX_SESSIONS {
            begin(hour);
        }
        let over = begin(Duration::ZERO);
        assert_eq!(sessions.0.len(), MAX_SESSIONS);
        assert!(sessions.find(&administrators, &first).is_none());
        assert!(sessions.find(&administrators, &over).is_none());
        let found = sessions.find(&administrators, &second).unwrap();
        assert_eq!(found.administrator, administrator);
        assert_ne!(found.csrf, second);
        sessions.end(&second);
        assert!(sessions.find(&administrators, &second).is_none());
    }
}

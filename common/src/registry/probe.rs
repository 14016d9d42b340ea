//! One request to Redis for `--check --deep`. Its errors name the setting to correct.

use redis::{ErrorKind, RedisError, cmd};
use tokio::time::timeout;

use super::{RedisLink, RedisOptions, connect::is_handshake_failure};

/// The reason why Redis cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("it refuses the password: correct redis_user and redis_password_file, or redis_url ({0})")]
    Credentials(RedisError),
    #[error(
        "{0}; see redis_ca_file, the names in the certificate of Redis, and whether it has TLS at this port"
    )]
    Encryption(RedisError),
    #[error("{0}; see redis_url or redis_sentinels, and whether Redis runs and listens there")]
    Away(RedisError),
    #[error("no answer within redis_timeout; see redis_url or redis_sentinels, and the firewalls between")]
    Silent,
}

/// Connects with the credentials of `options`, and sends PING.
///
/// # Errors
/// Redis cannot be reached, or refuses to answer.
pub async fn probe(options: &RedisOptions) -> Result<(), ProbeError> {
    let link = RedisLink::new(&options.servers, options.timeout);
    let ping = async {
        let mut connection = link.dedicated().await?;
        cmd("PING").query_async::<()>(&mut connection).await
    };
    let answer = timeout(options.timeout, ping).await.map_err(|_| ProbeError::Silent)?;
    answer.map_err(|error| {
        if is_handshake_failure(&error) {
            return ProbeError::Encryption(error);
        }
        let refused = matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
        if refused || error.kind() == ErrorKind::AuthenticationFailed {
            ProbeError::Credentials(error)
        } else {
            ProbeError::Away(error)
        }
    })
}

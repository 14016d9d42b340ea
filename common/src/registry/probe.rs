//! One request to Redis for `--check --deep`. Its errors name the setting to correct.

use redis::{ErrorKind, RedisError, cmd};
use tokio::time::timeout;

use super::RedisOptions;

/// The reason why Redis cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("it refuses the password: correct redis_password_file, or the password in redis_url ({0})")]
    Credentials(RedisError),
    #[error("{0}; see redis_url, and whether Redis runs and listens there")]
    Away(RedisError),
    #[error("no answer within redis_timeout; see redis_url, and firewalls between here and there")]
    Silent,
}

/// Connects with the credentials of `options`, and sends PING.
///
/// # Errors
/// Redis cannot be reached, or refuses to answer.
pub async fn probe(options: &RedisOptions) -> Result<(), ProbeError> {
    let ping = async {
        let mut connection = options.url.client().get_multiplexed_async_connection().await?;
        cmd("PING").query_async::<()>(&mut connection).await
    };
    let answer = timeout(options.timeout, ping).await.map_err(|_| ProbeError::Silent)?;
    answer.map_err(|error| {
        let refused = matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
        if refused || error.kind() == ErrorKind::AuthenticationFailed {
            ProbeError::Credentials(error)
        } else {
            ProbeError::Away(error)
        }
    })
}

//! Sends events to webhooks: a POST with a JSON body and an HMAC.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use common::{clock::unix_seconds, secret::Secret};
use reqwest::{Client, StatusCode, Url, header::CONTENT_TYPE};

use super::target::DeliveryAttempt;

const USER_AGENT: &str = concat!("ftpd/", env!("CARGO_PKG_VERSION"));

/// A client for one webhook. Cheap to clone.
#[derive(Clone)]
pub(super) struct WebhookClient {
    webhook: Arc<WebhookTarget>,
    client: Client,
}

struct WebhookTarget {
    url: Url,
    key: hmac::Key,
}

impl fmt::Debug for WebhookClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebhookClient").field(&self.webhook.url.as_str()).finish()
    }
}

impl WebhookClient {
    /// `timeout` is for one attempt. `authorities`: those that the receiver's certificate may come from, in
    /// PEM; `None`: those of the system.
    ///
    /// # Errors
    /// The certificates cannot be read, or the system has none.
    pub(super) fn new(
        url: Url,
        secret: &Secret,
        timeout: Duration,
        authorities: Option<&[u8]>,
    ) -> Result<Self, reqwest::Error> {
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .timeout(timeout)
            // A redirect could carry the event to another host.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = authorities {
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        let target = WebhookTarget { url, key };
        Ok(Self { webhook: Arc::new(target), client: builder.build()? })
    }

    /// Makes one attempt.
    pub(super) async fn post(&self, id: &str, body: Vec<u8>) -> DeliveryAttempt {
        let time = unix_seconds().to_string();
        let request = self
            .client
            .post(self.webhook.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", id)
            .header("X-Ftp-Timestamp", &time)
            .header("X-Ftp-Signature", signature(&self.webhook.key, &time, &body))
            .body(body);
        match request.send().await {
            Ok(response) => judge(response.status()),
            Err(error) => DeliveryAttempt::Unavailable(reason(&error.without_url())),
        }
    }
}

fn judge(status: StatusCode) -> DeliveryAttempt {
    let text = || format!("HTTP status {status}");
    match status.as_u16() {
        200..=299 => DeliveryAttempt::Delivered,
        // Credentials, a missing route, too many requests: not about this event.
        401 | 403 | 404 | 408 | 429 | 500..=599 => DeliveryAttempt::Unavailable(text()),
        _ => DeliveryAttempt::Refused(text()),
    }
}

/// `sha256=` and the HMAC over timestamp, a dot and the body, in hexadecimal.
fn signature(key: &hmac::Key, time: &str, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    for part in [time.as_bytes(), b".", body] {
        context.update(part);
    }
    format!("sha256={}", hex::encode(context.sign()))
}

/// The message of an error with those of its sources.
fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_covers_time_and_body() {
        // echo -n '1700000000.{}' | openssl dgst -sha256 -hmac s3cret
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"s3cret");
        let expected = "sha256=97926816e98fbb41ccb1673225ff29a2f35369099990e1b1561651e7bd097ebf";
        assert_eq!(signature(&key, "1700000000", b"{}"), expected);
        assert_ne!(signature(&key, "1700000001", b"{}"), expected);
    }

    #[test]
    fn only_a_refusal_of_the_event_itself_concerns_one_event() {
        let judged = |code| judge(StatusCode::from_u16(code).unwrap());
        assert_eq!(judged(204), DeliveryAttempt::Delivered);
        assert!(matches!(judged(422), DeliveryAttempt::Refused(_)));
        assert!(matches!(judged(302), DeliveryAttempt::Refused(_)));
        for code in [401, 404, 429, 500, 503] {
            assert!(matches!(judged(code), DeliveryAttempt::Unavailable(_)));
        }
    }
}

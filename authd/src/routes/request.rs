//! The parts of a request: body, query, the variable part of the path, and who sent it.

use std::{future::poll_fn, pin::pin, time::Duration};

use common::process::http::Peer;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;
use warp::{
    Buf, Stream,
    http::{HeaderMap, header},
};

use crate::{administrators::Actor, error::ApiError};

/// Limits of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BodyLimits {
    /// Maximum size in bytes.
    size: usize,
    /// Maximum time to arrive.
    time: Duration,
}

impl BodyLimits {
    pub(super) const USUAL: Self = Self { size: 16 * 1024, time: Duration::from_secs(10) };

    /// A backup. A user takes about 400 bytes.
    pub(super) const DOCUMENT: Self = Self { size: 64 * 1024 * 1024, time: Duration::from_secs(120) };
}

/// The parts of a request that a handler may need.
pub(super) struct ApiRequest {
    pub(super) peer: Option<Peer>,
    pub(super) headers: HeaderMap,
    /// The variable part of the path, decoded.
    pub(super) parameter: Result<String, ApiError>,
    pub(super) query: String,
    pub(super) body: Result<Vec<u8>, ApiError>,
    /// The administrator, in operations that need one.
    pub(super) by: Option<Actor>,
}

impl ApiRequest {
    /// Parses the query.
    pub(super) fn query<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_urlencoded::from_str(&self.query)
            .map_err(|error| ApiError::InvalidRequest(format!("the query: {error}")))
    }

    /// The administrator, in operations that need one.
    pub(super) fn by(&self) -> Result<&Actor, ApiError> {
        self.by.as_ref().ok_or(ApiError::NotFound("administrator"))
    }

    /// The fields of the body and the query, for the log.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let body = self.body.as_ref().ok().and_then(|body| serde_json::from_slice(body).ok());
        let mut fields: Map<String, Value> = body.unwrap_or_default();
        fields.extend(self.query_fields());
        fields
    }

    /// The fields of the query, for the log.
    pub(super) fn query_fields(&self) -> Map<String, Value> {
        let query: Vec<(String, String)> = serde_urlencoded::from_str(&self.query).unwrap_or_default();
        query.into_iter().map(|(key, value)| (key, Value::from(value))).collect()
    }
}

/// Reads a body within the limits of size and time.
pub(super) async fn read<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limits: BodyLimits,
) -> Result<Vec<u8>, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limits.size as u64) {
        return Err(ApiError::TooLarge(limits.size));
    }
    let whole = async {
        let mut body = pin!(body);
        let mut bytes = Vec::new();
        while let Some(part) = poll_fn(|context| body.as_mut().poll_next(context)).await {
            let mut part = part.map_err(|_| ApiError::InvalidRequest("the body is incomplete".to_owned()))?;
            if bytes.len() + part.remaining() > limits.size {
                return Err(ApiError::TooLarge(limits.size));
            }
            while part.has_remaining() {
                let chunk = part.chunk();
                bytes.extend_from_slice(chunk);
                let length = chunk.len();
                part.advance(length);
            }
        }
        Ok(bytes)
    };
    let late = |_| ApiError::InvalidRequest("the body did not arrive in time".to_owned());
    timeout(limits.time, whole).await.map_err(late)?
}

/// Parses a JSON body. The message names fields and positions. It quotes a value only if its type is wrong.
pub(super) fn parse<T: DeserializeOwned>(body: Result<Vec<u8>, ApiError>) -> Result<T, ApiError> {
    serde_json::from_slice(&body?).map_err(|error| ApiError::InvalidRequest(error.to_string()))
}

/// Decodes the percent-encoding of a part of a path (RFC 3986 section 2.1).
pub(super) fn decoded(part: &str) -> Result<String, ApiError> {
    let invalid = || ApiError::InvalidRequest("the path is not percent-encoded UTF-8".to_owned());
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_first_chunk::<2>().ok_or_else(invalid)?;
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(invalid);
            // Two hexadecimal digits fit a byte.
            bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_decoded_and_malformed_encoding_refused() {
        for (part, text) in
            [("demo", "demo"), ("Ann%20Smith", "Ann Smith"), ("m%C3%bcller", "müller"), ("%2F", "/")]
        {
            assert_eq!(decoded(part).unwrap(), text);
        }
        for part in ["%", "%2", "%zz", "%ff", "%+1"] {
            assert!(decoded(part).is_err(), "{part}");
        }
    }
}

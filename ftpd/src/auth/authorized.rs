//! Asks authd which earlier logins it would still accept (`POST /v1/authorized`).

use common::{
    auth_api::{
        AuthorizedAnswer, AuthorizedRequest, ErrorBody, ErrorCode, MAX_AUTHORIZED, PastLogin, Verdict,
    },
    process::logging::chain,
};
use hyper::StatusCode;

use super::{Authd, http::AuthdInstance, refused_token, texts};

/// Bytes of logins in one request. authd accepts bodies of up to 16 KiB.
const BATCH: usize = 15 * 1024;

/// The reason why an instance gave no verdicts.
#[derive(Debug, thiserror::Error)]
enum NoVerdicts {
    #[error("it is an older version without this request")]
    NotSupported,
    #[error("{0}")]
    Failed(String),
}

impl Authd {
    /// Returns one verdict for each login, in the same order. `None`: every authd is an older version without
    /// this request.
    ///
    /// # Errors
    /// No authd instance gave verdicts in time. The text lists the failure of each, for the log.
    pub async fn authorized(&self, logins: &[PastLogin]) -> Result<Option<Vec<Verdict>>, String> {
        let mut verdicts = Vec::with_capacity(logins.len());
        for batch in batches(logins) {
            match self.authorized_batch(batch).await? {
                Some(more) => verdicts.extend(more),
                None => return Ok(None),
            }
        }
        Ok(Some(verdicts))
    }

    async fn authorized_batch(&self, logins: &[PastLogin]) -> Result<Option<Vec<Verdict>>, String> {
        let request = AuthorizedRequest { node: self.node.clone(), logins: logins.to_vec() };
        match self.first_answer(|instance| ask(instance, &request)).await {
            Ok((_, verdicts)) => Ok(Some(verdicts)),
            Err(mut failures) => {
                failures.retain(|failure| !matches!(failure.reason, Some(NoVerdicts::NotSupported)));
                if failures.is_empty() { Ok(None) } else { Err(texts(&failures)) }
            }
        }
    }
}

/// Asks one instance.
async fn ask(instance: &AuthdInstance, request: &AuthorizedRequest) -> Result<Vec<Verdict>, NoVerdicts> {
    // `to_string` fails only for maps with keys that are not strings and for failing `Serialize`
    // implementations; the request has neither.
    let body = || serde_json::to_string(request).expect("a request is plain data");
    let answer = instance.post_authorized(body).await.map_err(|error| NoVerdicts::Failed(chain(&error)))?;
    if answer.status == StatusCode::OK {
        let AuthorizedAnswer { verdicts } = serde_json::from_slice(&answer.body)
            .map_err(|error| NoVerdicts::Failed(format!("its response has no verdicts: {error}")))?;
        let (given, asked) = (verdicts.len(), request.logins.len());
        return match given == asked {
            true => Ok(verdicts),
            false => Err(NoVerdicts::Failed(format!("it gave {given} verdicts for {asked} logins"))),
        };
    }
    Err(match serde_json::from_slice(&answer.body) {
        Ok(ErrorBody { error: ErrorCode::NotFound, .. }) => NoVerdicts::NotSupported,
        Ok(ErrorBody { error: ErrorCode::Unauthorized, .. }) => NoVerdicts::Failed(refused_token()),
        Ok(ErrorBody { message, .. }) => NoVerdicts::Failed(format!("answered {}: {message}", answer.status)),
        Err(_) => NoVerdicts::Failed(format!("answered {}", answer.status)),
    })
}

/// Splits logins into batches that fit into one request each.
fn batches(logins: &[PastLogin]) -> Vec<&[PastLogin]> {
    let mut batches = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (at, login) in logins.iter().enumerate() {
        // `to_string` does not fail for a plain struct. The added byte is the comma.
        let length = serde_json::to_string(login).map_or(0, |json| json.len() + 1);
        if at > from && (at - from == MAX_AUTHORIZED || bytes + length > BATCH) {
            batches.push(&logins[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += length;
    }
    if from < logins.len() {
        batches.push(&logins[from..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fit_into_a_request_and_contain_every_login() {
        let login = |user: String| PastLogin { user, version: None, address: [192, 0, 2, 1].into() };
        assert!(batches(&[]).is_empty());
        let short: Vec<_> = (0..600).map(|i| login(format!("u{i}"))).collect();
        let long: Vec<_> = (0..600).map(|i| login(format!("{i}{}", "ä".repeat(60)))).collect();
        let whole = [short, long].concat();
        let cut = batches(&whole);
        assert_eq!(cut.concat(), whole);
        for batch in cut {
            let request = AuthorizedRequest { node: "n".repeat(64).parse().unwrap(), logins: batch.to_vec() };
            assert!(serde_json::to_string(&request).unwrap().len() <= 16 * 1024);
            assert!(batch.len() <= MAX_AUTHORIZED && !batch.is_empty());
        }
    }
}

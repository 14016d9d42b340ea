//! HASH (draft-bryan-ftpext-hash), XCRC, XMD5, XSHA1, XSHA256, XSHA512.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use common::policy::Permission;

use super::activities::run_in_background;
use crate::{
    jail::checksum::{self, ChecksumError},
    metrics,
    protocol::{
        Code, Failure, Reply,
        command::{Algorithm, Checksum},
    },
    session::{LoggedIn, Outcome},
    work::activity::{Activity, ActivityHandle},
};

/// HASH: uses the algorithm of OPTS HASH and the range of RANG.
pub(super) async fn hash(
    session: &mut LoggedIn,
    verb: &'static str,
    argument: &[u8],
) -> Result<Outcome, Reply> {
    let range = session.range.take().map(|range| range.start..range.end.saturating_add(1));
    let algorithm = session.hash;
    let name = argument.to_vec();
    compute(session, verb, argument, algorithm, range, move |range, sum| {
        // `213 algorithm first-last sum name` (section 3.2); the last byte is included.
        let last = range.end.saturating_sub(1).max(range.start);
        let mut text = format!("{} {}-{last} {sum} ", algorithm.name(), range.start).into_bytes();
        text.extend_from_slice(&name);
        Reply::new(Code::FILE_STATUS, text)
    })
    .await
}

/// XCRC, XMD5, XSHA1, XSHA256, XSHA512: 250 with the checksum.
pub(super) async fn checksum(
    session: &LoggedIn,
    verb: &'static str,
    checksum: Checksum,
) -> Result<Outcome, Reply> {
    let range = checksum.start..checksum.end.unwrap_or(u64::MAX);
    compute(session, verb, &checksum.path, checksum.algorithm, Some(range), |_, sum| {
        Reply::new(Code::DONE, sum)
    })
    .await
}

/// Opens the file and computes the checksum in the background. `answer` makes the reply from the range and
/// the sum.
async fn compute(
    session: &LoggedIn,
    verb: &'static str,
    argument: &[u8],
    algorithm: Algorithm,
    range: Option<Range<u64>>,
    answer: impl FnOnce(Range<u64>, String) -> Reply + Send + 'static,
) -> Result<Outcome, Reply> {
    let path = session.path(argument)?;
    session.allow(Permission::Download, &path)?;
    let node = Arc::clone(&session.node);
    let opened = session.in_home(move |jail| {
        let file = jail.open_read(&path)?;
        Ok((file.size, node.workers.off_runtime(file)))
    });
    let (size, file) = opened.await?;
    let range = range.unwrap_or(0..size);
    if range.start > size {
        return Err(Reply::new(Code::BAD_ARGUMENTS, "Range starts beyond the end of the file"));
    }
    let range = range.start..range.end.min(size);
    let handle = ActivityHandle::new(verb);
    let progress = Arc::clone(&handle.progress);
    let limit = session.node.timeouts.checksum;
    let started = run_in_background(session, handle, move || {
        let file = file.into_inner();
        let deadline = Instant::now().checked_add(limit);
        match checksum::checksum(&file.file, algorithm, range.clone(), &progress, deadline) {
            Ok(sum) => answer(range, sum),
            Err(error) => refuse(&error, limit),
        }
    });
    Ok(wait_for_turn(session, started))
}

/// Makes the activity wait for the user's turn (`max_checksums_per_user`) before it requests a slot for long
/// commands. Until then it holds only its open file.
fn wait_for_turn(session: &LoggedIn, started: Outcome) -> Outcome {
    let Outcome::Start(opening, Activity { handle, is_upload, run }) = started else { return started };
    let (node, identity) = (Arc::clone(&session.node), Arc::clone(&session.identity));
    let activity = Arc::clone(&handle);
    let run_in_turn = async move {
        let _turn = match node.checksum_turns.try_take(&identity.user) {
            Some(turn) => Some(turn),
            None => {
                metrics::limit_reached("max_checksums_per_user");
                tokio::select! {
                    // `run` notices the cancellation, too, and replies.
                    () = activity.cancellation() => None,
                    turn = node.checksum_turns.take(&identity.user) => Some(turn),
                }
            }
        };
        run.await
    };
    Outcome::Start(opening, Activity { handle, is_upload, run: Box::pin(run_in_turn) })
}

fn refuse(error: &ChecksumError, limit: Duration) -> Reply {
    match error {
        ChecksumError::File(error) => error.refusal(),
        ChecksumError::TooLong => {
            metrics::limit_reached("checksum_timeout");
            let text = format!("Checksum takes longer than {} s (checksum_timeout)", limit.as_secs_f64());
            // A permanent error: the same file would take as long again.
            Reply::new(Code::QUOTA_EXCEEDED, text).because(Failure::from("checksum_timeout"))
        }
    }
}

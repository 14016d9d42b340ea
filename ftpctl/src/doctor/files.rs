//! The checks that write: each pair of nodes, one writer, replaced files, large transfers, resets.
//!
//! All files are in one directory with a random name, which is removed at the end.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{
    cluster::milliseconds,
    findings::Finding,
    ftp::{FtpClient, FtpError},
    report::Report,
    sessions::NodeSession,
};

/// Size of the files that go through each pair of nodes.
const SMALL: usize = 4096;

/// Size of the file that needs full packets, and more than the socket buffers of a small transfer.
const LARGE: usize = 4 << 20;

/// Uploads that are ended by a reset.
const RESETS: usize = 5;

/// An upload of a small file that takes longer is reported.
const SLOW_UPLOAD: Duration = Duration::from_secs(1);

/// How long a node may take to see a file that another one has stored.
const LATE: Duration = Duration::from_secs(5);

pub(crate) async fn check(directory: &str, sessions: &mut [NodeSession], report: &mut Report<'_>) {
    let Some(first) = sessions.first_mut() else { return };
    if let Err(error) = first.client.ask(&format!("MKD {directory}")).await {
        write_failed("write", "create a directory", &error, report);
        return;
    }
    let mut present = Vec::new();
    let creator = first.node.clone();
    for (i, session) in sessions.iter_mut().enumerate() {
        match session.client.ask(&format!("CWD {directory}")).await {
            Ok(_) => present.push(i),
            Err(error) => {
                let name = format!("storage of {}", session.node);
                let text = format!("the directory that {creator} has made is not there: {error}");
                report.fail(&name, Finding::StorageDiffers, text);
            }
        }
    }
    pairs(&present, sessions, report).await;
    if let [one, other, ..] = present[..] {
        one_writer(one, other, sessions, report).await;
    }
    if let Some(&position) = present.first() {
        let is_there = large(&mut sessions[position].client, report).await;
        if let (true, [one, other, ..]) = (is_there, &present[..]) {
            replaced(*one, *other, sessions, report).await;
        }
        let client = &mut sessions[position].client;
        if is_there {
            // The clean-up reports what is left.
            let _ = client.command("DELE large").await;
        }
        resets(client, report).await;
    }
    remove(directory, sessions, report).await;
}

/// Removes what a failed check has left, and the directory.
async fn remove(directory: &str, sessions: &mut [NodeSession], report: &mut Report<'_>) {
    let left = ["w", "large", "new", "reset"].map(str::to_owned).into_iter();
    let left: Vec<String> = left.chain((0..sessions.len()).map(|i| format!("from-{i}"))).collect();
    let mut result = Ok(());
    // The last session that works removes the directory; one whose transfer hangs does not answer.
    for session in sessions.iter_mut() {
        let client = &mut session.client;
        result = async {
            for name in &left {
                client.command(&format!("DELE {name}")).await?;
            }
            client.ask("CDUP").await?;
            client.ask(&format!("RMD {directory}")).await.map(drop)
        }
        .await;
        if result.is_ok() {
            return;
        }
    }
    if let Err(error) = result {
        report.warn("clean-up", Finding::FilesLeft, format!("{directory} is still there: {error}"));
    }
}

/// A line for an upload that was refused.
fn write_failed(name: &str, what: &str, error: &FtpError, report: &mut Report<'_>) {
    let finding = match error {
        FtpError::Reply { reply, .. } => match reply.code {
            552 => Finding::QuotaUsedUp,
            452 => Finding::StorageFull,
            550 | 553 | 530 => Finding::NotWritable,
            _ => Finding::UploadFailed,
        },
        _ => Finding::UploadFailed,
    };
    report.fail(name, finding, format!("cannot {what}: {error}"));
}

/// Stores a file through each node and reads it through each.
async fn pairs(present: &[usize], sessions: &mut [NodeSession], report: &mut Report<'_>) {
    let (mut passed, mut slowest) = (0, Duration::ZERO);
    let mut is_well = true;
    for &writer in present {
        let name = format!("from-{writer}");
        let content: Vec<u8> = (0..SMALL).map(|i| (i * 31 + writer * 7) as u8).collect();
        match sessions[writer].client.store(&name, &content).await {
            Ok(took) => slowest = slowest.max(took),
            Err(error) => {
                let check = format!("upload through {}", sessions[writer].node);
                write_failed(&check, "store a file", &error, report);
                is_well = false;
                continue;
            }
        }
        for &reader in present {
            let start = Instant::now();
            let mut read = sessions[reader].client.retrieve(&name, 2 * SMALL).await;
            let mut late = None;
            while !matches!(&read, Ok(found) if *found == content) && start.elapsed() < LATE {
                sleep(Duration::from_millis(500)).await;
                read = sessions[reader].client.retrieve(&name, 2 * SMALL).await;
                late = Some(start.elapsed());
            }
            let check = format!("{} → {}", sessions[writer].node, sessions[reader].node);
            match (read, late) {
                (Ok(found), None) if found == content => passed += 1,
                (Ok(found), Some(late)) if found == content => {
                    let text = format!("the file is seen after {}", milliseconds(late));
                    report.warn(&check, Finding::SeenLate, text);
                    is_well = false;
                }
                (Ok(found), _) => {
                    let text = format!("{} other bytes instead of the {SMALL} stored", found.len());
                    report.fail(&check, Finding::StorageDiffers, text);
                    is_well = false;
                }
                (Err(error), _) => {
                    let text = format!("the file cannot be read: {error}");
                    report.fail(&check, Finding::StorageDiffers, text);
                    is_well = false;
                }
            }
        }
        // The clean-up tries once more.
        let _ = sessions[writer].client.command(&format!("DELE {name}")).await;
    }
    if slowest > SLOW_UPLOAD {
        let text = format!("a file of {SMALL} bytes is answered 226 in {}", milliseconds(slowest));
        report.warn("upload time", Finding::UploadSlow, text);
    }
    if is_well && passed > 0 {
        report.ok(
            "upload → read",
            format!(
                "{passed} of {} pairs of nodes; 226 in {} at most",
                present.len().pow(2),
                milliseconds(slowest)
            ),
        );
    }
}

/// While one node writes a file, another refuses to.
async fn one_writer(one: usize, other: usize, sessions: &mut [NodeSession], report: &mut Report<'_>) {
    let names = (sessions[one].node.clone(), sessions[other].node.clone());
    let mut data = match sessions[one].client.begin_store("w").await {
        Ok(data) => data,
        Err(error) => return write_failed("one writer", "begin an upload", &error, report),
    };
    // A failure shows in the reply at the end.
    let _ = data.write_all(&[1; 1000]).await;
    match sessions[other].client.begin_store("w").await {
        Err(FtpError::Reply { reply, .. }) if matches!(reply.code, 450 | 550) => {
            report.ok("one writer", format!("while {} writes a file, {} answers {reply}", names.0, names.1));
        }
        Err(error) => report.fail("one writer", Finding::UploadFailed, error.to_string()),
        Ok(rival) => {
            let text = format!("{} and {} both write the same file", names.0, names.1);
            report.fail("one writer", Finding::TwoWriters, text);
            // It may be refused now.
            let _ = sessions[other].client.finish_store(rival).await;
        }
    }
    // Only that it ends matters.
    let _ = sessions[one].client.finish_store(data).await;
    let _ = sessions[one].client.command("DELE w").await;
}

fn large_content() -> Vec<u8> {
    (0..LARGE).map(|i| ((i * 2_654_435_761_usize) >> 13) as u8).collect()
}

/// A transfer with full packets in both directions. Returns true if the file is there.
async fn large(client: &mut FtpClient, report: &mut Report<'_>) -> bool {
    let content = large_content();
    let name = "full packets";
    let start = Instant::now();
    match client.store("large", &content).await {
        Ok(_) => {}
        Err(FtpError::NoReply(_)) => {
            report.fail(name, Finding::LargePacketsLost, "small uploads pass, one of 4 MiB hangs");
            return false;
        }
        Err(error) => {
            write_failed(name, "store 4 MiB", &error, report);
            return false;
        }
    }
    let up = start.elapsed();
    let start = Instant::now();
    match client.retrieve("large", 2 * LARGE).await {
        Ok(found) if found == content => {
            let rate = |time: Duration| LARGE as f64 / 1e6 / time.as_secs_f64().max(0.001);
            let text = format!("4 MiB: ↑ {:.0} MB/s, ↓ {:.0} MB/s", rate(up), rate(start.elapsed()));
            report.ok(name, text);
            true
        }
        Ok(found) => {
            let text = format!("{} other bytes came back", found.len());
            report.fail(name, Finding::StorageDiffers, text);
            true
        }
        Err(FtpError::NoReply(_)) => {
            report.fail(name, Finding::LargePacketsLost, "small downloads pass, one of 4 MiB hangs");
            false
        }
        Err(error) => {
            report.fail(name, Finding::ListingFailed, error.to_string());
            true
        }
    }
}

/// Replaces a file by a rename while another session downloads it: the download must bring the old content.
async fn replaced(reader: usize, other: usize, sessions: &mut [NodeSession], report: &mut Report<'_>) {
    let name = "rename over an open file";
    let content = large_content();
    if sessions[other].client.store("new", b"new").await.is_err() {
        return;
    }
    let Ok(mut data) = sessions[reader].client.begin_retrieve("large").await else { return };
    let mut found = vec![0; 1 << 16];
    let Ok(Ok(length)) = timeout(Duration::from_secs(5), data.read(&mut found)).await else { return };
    found.truncate(length);
    let client = &mut sessions[other].client;
    let renamed = async {
        client.ask("RNFR new").await?;
        client.ask("RNTO large").await
    };
    let renamed = renamed.await;
    let rest = sessions[reader].client.read_all(data, 2 * LARGE).await;
    match (renamed, rest) {
        (Err(error), _) => report.skipped(name, format!("the user may not replace a file: {error}")),
        (Ok(_), Ok(rest)) => {
            found.extend(rest);
            if found == content {
                report.ok(name, "a download keeps the file that it opened");
            } else {
                report.fail(name, Finding::OpenFileLost, format!("{} other bytes came", found.len()));
            }
        }
        (_, Err(error)) => report.fail(name, Finding::OpenFileLost, error.to_string()),
    }
    // It is left where the rename failed.
    let _ = sessions[other].client.command("DELE new").await;
}

/// Uploads that end with a reset must not be answered 226. Without TLS: TLS tells a cut by itself.
async fn resets(client: &mut FtpClient, report: &mut Report<'_>) {
    let name = "resets kept";
    let is_plain = match client.plain_data().await {
        Ok(is_plain) => is_plain,
        Err(error) => return report.fail(name, Finding::UploadFailed, error.to_string()),
    };
    let mut confirmed = 0;
    for _ in 0..RESETS {
        let mut data = match client.begin_store("reset").await {
            Ok(data) => data,
            Err(error) => {
                write_failed(name, "begin an upload", &error, report);
                break;
            }
        };
        // A failure is as good as a reset.
        let _ = data.write_all(&[7; 50_000]).await;
        sleep(Duration::from_millis(100)).await;
        data.reset();
        match client.reply().await {
            Ok(reply) => confirmed += usize::from(reply.code / 100 == 2),
            Err(error) => return report.fail(name, Finding::UploadFailed, error.to_string()),
        }
    }
    // Later checks report a session that is broken.
    let _ = client.private_data().await;
    let _ = client.command("DELE reset").await;
    if confirmed > 0 {
        let text = format!("{confirmed} of {RESETS} uploads that were cut by a reset were answered 226");
        report.fail(name, Finding::ResetConfirmed, text);
    } else if is_plain {
        report.ok(name, format!("none of {RESETS} uploads cut by a reset was answered 226"));
    } else {
        report.ok(name, "plain data connections are not allowed, and TLS tells a cut");
    }
}

//! The slow checks: what a balancer, a firewall or a NAT does with silent connections.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    Doctor,
    findings::Finding,
    ftp::{FtpClient, FtpError},
    report::Report,
    sessions,
};

/// How a silent control connection ended.
enum Silence {
    /// It still answers.
    Kept,
    /// The node ended it with 421.
    EndedByNode(Duration),
    /// It was closed without a reply.
    Cut(Duration),
    /// It looks open, and nothing answers.
    Dropped,
}

pub(crate) async fn check(
    doctor: &Doctor,
    address: SocketAddr,
    has_tls: bool,
    silence: Duration,
    report: &mut Report<'_>,
) {
    let control = |length| silent_control(doctor, address, has_tls, length);
    // Shorter silences tell when a connection was dropped that says nothing.
    let (quarter, half, whole, data) = tokio::join!(
        control(silence / 4),
        control(silence / 2),
        control(silence),
        silent_upload(doctor, address, has_tls, silence)
    );
    judge_control(&[(silence / 4, quarter), (silence / 2, half), (silence, whole)], report);
    judge_upload(silence, data, report);
}

async fn silent_control(
    doctor: &Doctor,
    address: SocketAddr,
    has_tls: bool,
    length: Duration,
) -> Result<Silence, FtpError> {
    let (mut client, _) = sessions::log_in(doctor, address, has_tls, None).await?;
    let start = Instant::now();
    match client.reply_within(length).await {
        Ok(_) => return Ok(Silence::EndedByNode(start.elapsed())),
        Err(FtpError::NoReply(_)) => {}
        Err(_) => return Ok(Silence::Cut(start.elapsed())),
    }
    let answer = client.command("NOOP").await;
    Ok(match answer {
        Ok(reply) if reply.code == 421 => Silence::EndedByNode(start.elapsed()),
        Ok(_) => {
            client.quit().await;
            Silence::Kept
        }
        Err(FtpError::NoReply(_)) => Silence::Dropped,
        Err(_) => Silence::Cut(start.elapsed()),
    })
}

fn judge_control(ladder: &[(Duration, Result<Silence, FtpError>)], report: &mut Report<'_>) {
    let name = "silent control connection";
    let mut kept = Duration::ZERO;
    for (length, result) in ladder {
        match result {
            Err(error) => {
                report.fail(name, Finding::LoginUnavailable, error.to_string());
                return;
            }
            Ok(Silence::Kept) => kept = *length,
            Ok(Silence::EndedByNode(after)) => {
                report.ok(name, format!("the node ends it with 421 after {}", span(*after)));
                return;
            }
            Ok(Silence::Cut(after)) => {
                let text = format!("cut after {}, without the node's 421", span(*after));
                report.fail(name, Finding::SilentControlCut, text);
                return;
            }
            Ok(Silence::Dropped) => {
                let text = format!(
                    "answers after {} of silence, and not after {}; nothing tells the client",
                    span(kept),
                    span(*length)
                );
                report.fail(name, Finding::SilentControlDropped, text);
                return;
            }
        }
    }
    report.ok(name, format!("still answers after {}", span(kept)));
}

/// The replies of an upload that pauses.
enum Pause {
    Kept,
    EndedByNode(Duration, String),
    Cut(Duration, String),
}

async fn silent_upload(
    doctor: &Doctor,
    address: SocketAddr,
    has_tls: bool,
    length: Duration,
) -> Result<Pause, FtpError> {
    let (mut client, _) = sessions::log_in(doctor, address, has_tls, None).await?;
    let name = format!("{}.pause", doctor.directory);
    // As most clients that pause; TLS would tell a cut by itself.
    client.plain_data().await?;
    let result = paused(&mut client, &name, length).await;
    // It may not be there.
    let _ = client.command(&format!("DELE {name}")).await;
    client.quit().await;
    result
}

async fn paused(client: &mut FtpClient, name: &str, length: Duration) -> Result<Pause, FtpError> {
    let mut data = client.begin_store(name).await?;
    let start = Instant::now();
    if let Err(error) = data.write_all(&[1; 1000]).await {
        return Ok(Pause::Cut(start.elapsed(), error.to_string()));
    }
    match client.reply_within(length).await {
        Err(FtpError::NoReply(_)) => {}
        Ok(reply) if reply.text.contains("stalled") => {
            return Ok(Pause::EndedByNode(start.elapsed(), reply.to_string()));
        }
        Ok(reply) => return Ok(Pause::Cut(start.elapsed(), format!("the node answers {reply}"))),
        Err(error) => return Ok(Pause::Cut(start.elapsed(), error.to_string())),
    }
    let end = timeout(Duration::from_secs(10), async {
        if data.write_all(&[2; 1000]).await.is_err() {
            return client.reply().await.map(|reply| reply.to_string());
        }
        client.finish_store(data).await.map(|_| String::new())
    });
    Ok(match end.await {
        Ok(Ok(text)) if text.is_empty() => Pause::Kept,
        Ok(Ok(text)) => Pause::Cut(start.elapsed(), format!("the node answers {text}")),
        Ok(Err(error)) => Pause::Cut(start.elapsed(), error.to_string()),
        Err(_) => Pause::Cut(start.elapsed(), "nothing answers any more".to_owned()),
    })
}

fn judge_upload(silence: Duration, result: Result<Pause, FtpError>, report: &mut Report<'_>) {
    let name = "silent upload";
    match result {
        Ok(Pause::Kept) => report.ok(name, format!("goes on after a pause of {}", span(silence))),
        Ok(Pause::EndedByNode(after, reply)) => {
            report.ok(name, format!("the node ends it after {}: {reply}", span(after)));
        }
        Ok(Pause::Cut(after, text)) => {
            report.fail(name, Finding::SilentDataCut, format!("cut after {}: {text}", span(after)));
        }
        Err(error) => report.fail(name, Finding::UploadFailed, error.to_string()),
    }
}

/// `5 min 02 s`, `2.0 s`.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

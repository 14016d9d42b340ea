//! The checks before a login: the published addresses, the greeting, TLS and its certificate.

use std::{net::SocketAddr, time::Duration};

use super::{
    Doctor,
    cluster::milliseconds,
    findings::Finding,
    ftp::{FtpClient, FtpError},
    report::Report,
    trust::{SeenCertificate, SessionTls},
};

/// A certificate that expires earlier is reported.
const EXPIRES_SOON: i64 = 14 * 24 * 3600;

/// What the control port showed.
#[derive(Default)]
pub(crate) struct SeenDoors {
    /// Control addresses that greet.
    pub(crate) working: Vec<SocketAddr>,
    /// The node offers TLS.
    pub(crate) has_tls: bool,
    /// A client would refuse the certificate.
    pub(crate) is_untrusted: bool,
}

/// Checks every address of the host, on the control port and the port for implicit TLS.
pub(crate) async fn check(doctor: &Doctor, addresses: &[SocketAddr], report: &mut Report<'_>) -> SeenDoors {
    let mut seen = SeenDoors::default();
    let mut certificate = None;
    for address in addresses {
        if let Some(found) = control(doctor, *address, &mut seen, report).await {
            certificate.get_or_insert(found);
        }
    }
    if let Some(port) = doctor.implicit_port {
        for address in addresses {
            let address = SocketAddr::new(address.ip(), port);
            if let Some(found) = implicit(doctor, address, report).await {
                certificate.get_or_insert(found);
            }
        }
    }
    match certificate {
        Some(certificate) => seen.is_untrusted = !judge_certificate("certificate", &certificate, report),
        None if !seen.working.is_empty() && !seen.has_tls => {
            report.warn("TLS", Finding::NoTls, "not offered: passwords and files travel in the clear");
        }
        None => {}
    }
    seen
}

async fn control(
    doctor: &Doctor,
    address: SocketAddr,
    seen: &mut SeenDoors,
    report: &mut Report<'_>,
) -> Option<SeenCertificate> {
    let name = format!("control {address}");
    let client = match FtpClient::connect(address, None, doctor.limit).await {
        Ok(client) => client,
        Err(error) => {
            connection_failed(&name, &error, report);
            return None;
        }
    };
    let greeting = milliseconds(client.greeting_time);
    let Ok(tls) = doctor.session_tls() else { return None };
    match client.auth_tls(tls.clone()).await {
        Ok((mut client, true)) => {
            let version = client.tls_version.clone().unwrap_or_default();
            // The first reply over TLS shows that the connection works.
            if let Err(error) = client.ask("FEAT").await {
                report.fail(&name, Finding::TlsFailed, format!("after the handshake: {error}"));
                return None;
            }
            client.quit().await;
            report.ok(&name, format!("greets in {greeting}; AUTH TLS: {version}"));
            seen.working.push(address);
            seen.has_tls = true;
            tls.certificate()
        }
        Ok((client, false)) => {
            client.quit().await;
            report.ok(&name, format!("greets in {greeting}; no TLS"));
            seen.working.push(address);
            None
        }
        Err(FtpError::Tls(error)) => {
            report.fail(&name, Finding::TlsFailed, format!("AUTH TLS: {error}"));
            None
        }
        Err(FtpError::Closed | FtpError::Broken(_)) => {
            report.fail(&name, Finding::HeaderNotTrusted, "greets, and closes before the first command");
            None
        }
        Err(error) => {
            report.fail(&name, Finding::TlsFailed, format!("AUTH TLS: {error}"));
            None
        }
    }
}

async fn implicit(doctor: &Doctor, address: SocketAddr, report: &mut Report<'_>) -> Option<SeenCertificate> {
    let name = format!("implicit TLS {address}");
    let tls: SessionTls = doctor.session_tls().ok()?;
    match FtpClient::connect(address, Some(tls.clone()), doctor.limit).await {
        Ok(client) => {
            let version = client.tls_version.clone().unwrap_or_default();
            report.ok(&name, format!("greets in {}; {version}", milliseconds(client.greeting_time)));
            client.quit().await;
            tls.certificate()
        }
        Err(FtpError::Tls(error)) => {
            report.fail(&name, Finding::TlsFailed, error.to_string());
            None
        }
        Err(error) => {
            connection_failed(&name, &error, report);
            None
        }
    }
}

/// A line for a connection without a greeting.
fn connection_failed(name: &str, error: &FtpError, report: &mut Report<'_>) {
    let (finding, text) = match error {
        FtpError::Refused => (Finding::PortRefused, error.to_string()),
        FtpError::Silent(_) => (Finding::PortSilent, error.to_string()),
        FtpError::Unreachable(_) => (Finding::PortUnreachable, error.to_string()),
        FtpError::Closed | FtpError::Broken(_) => {
            (Finding::ClosedWithoutGreeting, "accepts, and closes without a greeting".to_owned())
        }
        FtpError::NoReply(limit) => {
            (Finding::NoGreeting, format!("accepts, and sends no greeting in {} s", limit.as_secs_f64()))
        }
        FtpError::Reply { reply, .. } if reply.code == 421 => {
            (Finding::ClosedWithoutGreeting, format!("greets with {reply}"))
        }
        FtpError::Reply { reply, .. } => (Finding::ClosedWithoutGreeting, format!("greets with {reply}")),
        FtpError::Tls(_) | FtpError::NoFtp(_) => (Finding::TlsFailed, error.to_string()),
    };
    report.fail(name, finding, text);
}

/// Returns true if a client would accept the certificate.
fn judge_certificate(name: &str, certificate: &SeenCertificate, report: &mut Report<'_>) -> bool {
    if let Some((finding, text)) = &certificate.fault {
        report.fail(name, *finding, text.clone());
        return false;
    }
    match certificate.seconds_left {
        Some(left) if left < EXPIRES_SOON => {
            report.warn(name, Finding::CertificateExpiresSoon, format!("expires in {}", days(left)));
        }
        Some(left) => report.ok(name, format!("chain valid, expires in {}", days(left))),
        None => report.ok(name, "chain valid"),
    }
    true
}

fn days(seconds: i64) -> String {
    let left = Duration::from_secs(seconds.max(0).unsigned_abs());
    match left.as_secs() / 86400 {
        0 => format!("{} h", left.as_secs() / 3600),
        days => format!("{days} d"),
    }
}

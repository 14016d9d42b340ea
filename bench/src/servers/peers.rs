//! Starts the reference server and other FTP servers. Each serves the same files to the same user, in
//! its fastest set-up: cheap password checks, no logs, no delays.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, process::Command};

use nix::mount::{MsFlags, mount};

use super::{Server, ServerKind, Testbed, address, require};
use crate::client::{PASSWORD, USER, other};

/// MD5-crypt hash of the password (`openssl passwd -1 -salt bench bench`): the cheapest hash that all
/// of these servers support.
const HASH: &str = "$1$bench$IDaFocGqo.f39hZ5dc3P7.";
/// User and group id of Debian's `www-data`.
const OWNER: u32 = 33;

/// Starts the reference server, which is this program itself.
///
/// # Errors
/// The server does not start.
pub(super) fn null(testbed: &Testbed) -> io::Result<Server> {
    let address = address(50, 2121);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("null").arg(address.to_string()).arg(&testbed.home);
    testbed.server(ServerKind::Null, address, "null", command)
}

/// Starts pure-ftpd.
///
/// # Errors
/// Its package is not unpacked, or the server does not start.
pub(super) fn pure_ftpd(testbed: &Testbed) -> io::Result<Server> {
    let package = require(testbed.peers.join("pure-ftpd"))?;
    let address = address(51, 2121);
    let (directory, home) = (testbed.directory("pure-ftpd")?, testbed.home.display());
    let users = format!("{USER}:{HASH}:{OWNER}:{OWNER}::{home}/./::::::::::::\n");
    let users = testbed.file("pure-ftpd/users", &users)?;
    let database = directory.join("users.pdb");
    let made = Command::new(package.join("usr/bin/pure-pw"))
        .arg("mkdb")
        .arg(&database)
        .arg("-f")
        .arg(users)
        .status()?;
    if !made.success() {
        return Err(other("pure-pw failed"));
    }
    let pem =
        fs::read_to_string(&testbed.certificate.key)? + &fs::read_to_string(&testbed.certificate.chain)?;
    let pem = testbed.file("pure-ftpd/both.pem", &pem)?;
    let mut command = command(&package, "usr/sbin/pure-ftpd")?;
    command.args(["-S", &format!("{},{}", address.ip(), address.port()), "-4"]);
    command.args(["-l", &format!("puredb:{}", database.display())]);
    // Limits of clients in all (-c) and per address (-C), lowest user id (-u), chroot for all users (-A),
    // no anonymous users (-E), no DNS look-ups (-H), idle limit of 60 minutes (-I), optional TLS (-Y 1),
    // listings of up to 2,000,000 entries (-L), no system log (-f), uploads until the disk is full (-k).
    command.args(["-c", "40000", "-C", "40000", "-u", "1", "-A", "-E", "-H", "-I", "60", "-Y", "1", "-2"]);
    command.arg(pem).args(["-L", "2000000:20", "-f", "none", "-k", "100", "-g"]).arg(directory.join("pid"));
    testbed.server(ServerKind::PureFtpd, address, "pure-ftpd", command)
}

/// Starts vsftpd.
///
/// # Errors
/// Its package is not unpacked, there is no mount namespace, or the server does not start.
pub(super) fn vsftpd(testbed: &Testbed) -> io::Result<Server> {
    let package = require(testbed.peers.join("vsftpd"))?;
    let module = require(package.join("lib/x86_64-linux-gnu/security/pam_pwdfile.so"))?;
    let address = address(52, 2121);
    let (directory, home) = (testbed.directory("vsftpd")?, testbed.home.display());
    testbed.directory("vsftpd/empty")?;
    let users = testbed.file("vsftpd/users", &format!("{USER}:{HASH}\n"))?;
    if !testbed.placement.own_mounts {
        return Err(other("vsftpd needs a file in /etc/pam.d, and no mount namespace is available for it"));
    }
    pam_service(&format!(
        "auth required {} pwdfile={}\naccount required pam_permit.so\n",
        module.display(),
        users.display()
    ))?;
    let pem =
        fs::read_to_string(&testbed.certificate.key)? + &fs::read_to_string(&testbed.certificate.chain)?;
    let pem = testbed.file("vsftpd/both.pem", &pem)?;
    let configuration = format!(
        "listen=YES\nlisten_address={}\nlisten_port={}\nbackground=NO\nanonymous_enable=NO\n\
         local_enable=YES\nwrite_enable=YES\nguest_enable=YES\nguest_username=www-data\n\
         virtual_use_local_privs=YES\nlocal_root={home}\nchroot_local_user=YES\n\
         allow_writeable_chroot=YES\nsecure_chroot_dir={}/empty\npam_service_name=bench\n\
         nopriv_user=nobody\nxferlog_enable=NO\nmax_clients=0\nmax_per_ip=0\n\
         idle_session_timeout=3600\ndata_connection_timeout=3600\nssl_enable=YES\n\
         force_local_data_ssl=NO\nforce_local_logins_ssl=NO\nrequire_ssl_reuse=NO\nssl_ciphers=HIGH\n\
         rsa_cert_file={pem}\nrsa_private_key_file={pem}\n",
        address.ip(),
        address.port(),
        directory.display(),
        pem = pem.display(),
    );
    let configuration = testbed.file("vsftpd/vsftpd.conf", &configuration)?;
    let mut command = command(&package, "usr/sbin/vsftpd")?;
    command.arg(configuration);
    testbed.server(ServerKind::Vsftpd, address, "vsftpd", command)
}

/// Starts proftpd.
///
/// # Errors
/// Its package is not unpacked, or the server does not start.
pub(super) fn proftpd(testbed: &Testbed) -> io::Result<Server> {
    let package = require(testbed.peers.join("proftpd"))?;
    let address = address(53, 2121);
    let (directory, home) = (testbed.directory("proftpd")?, testbed.home.display());
    let users =
        testbed.file("proftpd/users", &format!("{USER}:{HASH}:{OWNER}:{OWNER}::{home}:/bin/false\n"))?;
    let configuration = format!(
        "ModulePath {}\nLoadModule mod_tls.c\nServerName bench\nServerType standalone\n\
         DefaultAddress {}\nSocketBindTight on\nUseIPv6 off\nPort {}\nUser www-data\nGroup www-data\n\
         MaxInstances none\nMaxClients none\nUseReverseDNS off\nAuthOrder mod_auth_file.c\n\
         AuthUserFile {}\nRequireValidShell off\nUseFtpUsers off\nWtmpLog off\nTransferLog none\n\
         SystemLog none\nDefaultRoot ~\nAllowOverwrite on\nTimeoutIdle 3600\nTimeoutNoTransfer 0\n\
         ScoreboardFile {directory}/scoreboard\nPidFile {directory}/pid\nDelayEngine off\nTLSEngine on\n\
         TLSRequired off\nTLSProtocol TLSv1.2 TLSv1.3\nTLSECCertificateFile {}\n\
         TLSECCertificateKeyFile {}\nTLSVerifyClient off\nTLSOptions NoSessionReuseRequired\n",
        package.join("usr/lib/proftpd").display(),
        address.ip(),
        address.port(),
        users.display(),
        testbed.certificate.chain.display(),
        testbed.certificate.key.display(),
        directory = directory.display(),
    );
    let configuration = testbed.file("proftpd/proftpd.conf", &configuration)?;
    let mut command = command(&package, "usr/sbin/proftpd")?;
    command.args(["--nodaemon", "--quiet", "-c"]).arg(configuration);
    testbed.server(ServerKind::Proftpd, address, "proftpd", command)
}

/// Starts unftp.
///
/// # Errors
/// unftp is not installed, or does not start.
pub(super) fn unftp(testbed: &Testbed) -> io::Result<Server> {
    let program =
        testbed.unftp.clone().ok_or_else(|| other("unftp is not installed (cargo install unftp)"))?;
    let address = address(54, 2121);
    testbed.directory("unftp")?;
    let users = format!("[{{\"username\": \"{USER}\", \"password\": \"{PASSWORD}\"}}]");
    let users = testbed.file("unftp/users.json", &users)?;
    let mut command = Command::new(program);
    command.args(["--bind-address", &address.to_string(), "--bind-address-http"]);
    command.arg(format!("{}:{}", address.ip(), 8080)).arg("--root-dir").arg(&testbed.home);
    command.args(["--auth-type", "json", "--auth-json-path"]).arg(users);
    command.args([
        "--passive-ports",
        "20000-60000",
        "--idle-session-timeout",
        "3600",
        "--log-level",
        "error",
    ]);
    command.arg("--ftps-certs-file").arg(&testbed.certificate.chain);
    command.arg("--ftps-key-file").arg(&testbed.certificate.key);
    testbed.server(ServerKind::Unftp, address, "unftp", command)
}

/// Returns the command for a program of an unpacked package, with the package's libraries.
fn command(package: &Path, program: &str) -> io::Result<Command> {
    let mut command = Command::new(require(package.join(program))?);
    command.env("LD_LIBRARY_PATH", package.join("usr/lib/x86_64-linux-gnu"));
    Ok(command)
}

/// Creates the PAM service `bench` in a new /etc/pam.d that only this process and its children see.
fn pam_service(content: &str) -> io::Result<()> {
    let directory = Path::new("/etc/pam.d");
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("size=64k"))?;
    let service = directory.join("bench");
    fs::write(&service, content)?;
    fs::set_permissions(service, fs::Permissions::from_mode(0o644))
}

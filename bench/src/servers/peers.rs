//! Other servers, each set up to serve the same files to the same user with cheap password checks,
//! no logs and no delays: what they would do for a benchmark of their own.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, process::Command};

use nix::mount::{MsFlags, mount};

use super::{Kind, Server, Site, address, require};
use crate::client::{PASSWORD, USER, other};

/// MD5-crypt of the password (`openssl passwd -1 -salt bench bench`): the cheapest that all know.
const HASH: &str = "$1$bench$IDaFocGqo.f39hZ5dc3P7.";
/// Debian's www-data.
const OWNER: u32 = 33;

/// This program itself, as the reference.
///
/// # Errors
/// It does not start.
pub fn null(site: &Site) -> io::Result<Server> {
    let address = address(50, 2121);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("null").arg(address.to_string()).arg(&site.home);
    site.server(Kind::Null, address, "null", command)
}

/// # Errors
/// It is not unpacked, or does not start.
pub fn pure_ftpd(site: &Site) -> io::Result<Server> {
    let package = require(site.peers.join("pure-ftpd"))?;
    let address = address(51, 2121);
    let (folder, home) = (site.folder("pure-ftpd")?, site.home.display());
    let users = format!("{USER}:{HASH}:{OWNER}:{OWNER}::{home}/./::::::::::::\n");
    let users = site.file("pure-ftpd/users", &users)?;
    let database = folder.join("users.pdb");
    let made = Command::new(package.join("usr/bin/pure-pw"))
        .arg("mkdb")
        .arg(&database)
        .arg("-f")
        .arg(users)
        .status()?;
    if !made.success() {
        return Err(other("pure-pw failed"));
    }
    let pem = fs::read_to_string(&site.certificate.key)? + &fs::read_to_string(&site.certificate.chain)?;
    let pem = site.file("pure-ftpd/both.pem", &pem)?;
    let mut command = command(&package, "usr/sbin/pure-ftpd")?;
    command.args(["-S", &format!("{},{}", address.ip(), address.port()), "-4"]);
    command.args(["-l", &format!("puredb:{}", database.display())]);
    // Many clients, all of one address; no names of clients; dot files shown; an hour of idling;
    // TLS offered; long listings; no system log.
    command.args(["-c", "40000", "-C", "40000", "-u", "1", "-A", "-E", "-H", "-I", "60", "-Y", "1", "-2"]);
    command.arg(pem).args(["-L", "2000000:20", "-f", "none", "-k", "100", "-g"]).arg(folder.join("pid"));
    site.server(Kind::PureFtpd, address, "pure-ftpd", command)
}

/// # Errors
/// It is not unpacked, or does not start.
pub fn vsftpd(site: &Site) -> io::Result<Server> {
    let package = require(site.peers.join("vsftpd"))?;
    let module = require(package.join("lib/x86_64-linux-gnu/security/pam_pwdfile.so"))?;
    let address = address(52, 2121);
    let (folder, home) = (site.folder("vsftpd")?, site.home.display());
    site.folder("vsftpd/empty")?;
    let users = site.file("vsftpd/users", &format!("{USER}:{HASH}\n"))?;
    if !site.place.own_mounts {
        return Err(other("it needs a file in /etc/pam.d, and there is no namespace to keep it in"));
    }
    pam_service(&format!(
        "auth required {} pwdfile={}\naccount required pam_permit.so\n",
        module.display(),
        users.display()
    ))?;
    let pem = fs::read_to_string(&site.certificate.key)? + &fs::read_to_string(&site.certificate.chain)?;
    let pem = site.file("vsftpd/both.pem", &pem)?;
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
        folder.display(),
        pem = pem.display(),
    );
    let configuration = site.file("vsftpd/vsftpd.conf", &configuration)?;
    let mut command = command(&package, "usr/sbin/vsftpd")?;
    command.arg(configuration);
    site.server(Kind::Vsftpd, address, "vsftpd", command)
}

/// # Errors
/// It is not unpacked, or does not start.
pub fn proftpd(site: &Site) -> io::Result<Server> {
    let package = require(site.peers.join("proftpd"))?;
    let address = address(53, 2121);
    let (folder, home) = (site.folder("proftpd")?, site.home.display());
    let users = site.file("proftpd/users", &format!("{USER}:{HASH}:{OWNER}:{OWNER}::{home}:/bin/false\n"))?;
    let configuration = format!(
        "ModulePath {}\nLoadModule mod_tls.c\nServerName bench\nServerType standalone\n\
         DefaultAddress {}\nSocketBindTight on\nUseIPv6 off\nPort {}\nUser www-data\nGroup www-data\n\
         MaxInstances none\nMaxClients none\nUseReverseDNS off\nAuthOrder mod_auth_file.c\n\
         AuthUserFile {}\nRequireValidShell off\nUseFtpUsers off\nWtmpLog off\nTransferLog none\n\
         SystemLog none\nDefaultRoot ~\nAllowOverwrite on\nTimeoutIdle 3600\nTimeoutNoTransfer 0\n\
         ScoreboardFile {folder}/scoreboard\nPidFile {folder}/pid\nDelayEngine off\nTLSEngine on\n\
         TLSRequired off\nTLSProtocol TLSv1.2 TLSv1.3\nTLSECCertificateFile {}\n\
         TLSECCertificateKeyFile {}\nTLSVerifyClient off\nTLSOptions NoSessionReuseRequired\n",
        package.join("usr/lib/proftpd").display(),
        address.ip(),
        address.port(),
        users.display(),
        site.certificate.chain.display(),
        site.certificate.key.display(),
        folder = folder.display(),
    );
    let configuration = site.file("proftpd/proftpd.conf", &configuration)?;
    let mut command = command(&package, "usr/sbin/proftpd")?;
    command.args(["--nodaemon", "--quiet", "-c"]).arg(configuration);
    site.server(Kind::Proftpd, address, "proftpd", command)
}

/// # Errors
/// It is not installed, or does not start.
pub fn unftp(site: &Site) -> io::Result<Server> {
    let program = site.unftp.clone().ok_or_else(|| other("it is not installed (cargo install unftp)"))?;
    let address = address(54, 2121);
    site.folder("unftp")?;
    let users = format!("[{{\"username\": \"{USER}\", \"password\": \"{PASSWORD}\"}}]");
    let users = site.file("unftp/users.json", &users)?;
    let mut command = Command::new(program);
    command.args(["--bind-address", &address.to_string(), "--bind-address-http"]);
    command.arg(format!("{}:{}", address.ip(), 8080)).arg("--root-dir").arg(&site.home);
    command.args(["--auth-type", "json", "--auth-json-path"]).arg(users);
    command.args([
        "--passive-ports",
        "20000-60000",
        "--idle-session-timeout",
        "3600",
        "--log-level",
        "error",
    ]);
    command.arg("--ftps-certs-file").arg(&site.certificate.chain);
    command.arg("--ftps-key-file").arg(&site.certificate.key);
    site.server(Kind::Unftp, address, "unftp", command)
}

/// A program of an unpacked package, with the libraries beside it.
fn command(package: &Path, program: &str) -> io::Result<Command> {
    let mut command = Command::new(require(package.join(program))?);
    command.env("LD_LIBRARY_PATH", package.join("usr/lib/x86_64-linux-gnu"));
    Ok(command)
}

/// A PAM service called `bench`, in a /etc/pam.d that only this process and its children see.
fn pam_service(content: &str) -> io::Result<()> {
    let directory = Path::new("/etc/pam.d");
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("size=64k"))?;
    let service = directory.join("bench");
    fs::write(&service, content)?;
    fs::set_permissions(service, fs::Permissions::from_mode(0o644))
}

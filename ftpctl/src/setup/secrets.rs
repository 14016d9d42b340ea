//! `ftpctl secrets`: tokens, Redis's password and a self-signed certificate of a new cluster, as files.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use clap::Args;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyIdMethod, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use crate::error::ConsoleError;

/// Clients must trust a self-signed certificate by hand, so it is replaced by a signed one long before.
const VALIDITY: Duration = Duration::days(825);

/// Makes the secrets of a new cluster and a self-signed certificate. It keeps files that exist.
///
/// The files are secrets/node-token, secrets/redis-password, admin/admin-token, tls/certificate.pem and
/// tls/key.pem below the folder, readable by the own user only. Each folder is for other programs: nodes and
/// authd need secrets/, authd and administrators admin/, nodes tls/.
#[derive(Args, Debug)]
pub(crate) struct SecretsArguments {
    /// The folder. It is created if it does not exist.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
    /// A host name or address of the certificate; may be repeated.
    #[arg(long = "name", value_name = "NAME", default_values = ["localhost", "127.0.0.1"])]
    pub(crate) names: Vec<String>,
}

/// Runs the command. Returns the exit status.
pub(crate) fn run(arguments: &SecretsArguments) -> Result<u8, ConsoleError> {
    let folder = &arguments.out;
    let mut written = Vec::new();
    for (part, name) in [("secrets", "node-token"), ("secrets", "redis-password"), ("admin", "admin-token")] {
        let file = private_folder(&folder.join(part))?.join(name);
        if !exists(&file)? {
            write_private(&file, &random_secret())?;
            written.push(file);
        }
    }
    let tls = private_folder(&folder.join("tls"))?;
    let (certificate, key) = (tls.join("certificate.pem"), tls.join("key.pem"));
    match (exists(&certificate)?, exists(&key)?) {
        (true, true) => {}
        (false, false) => {
            let pair = self_signed(&arguments.names)?;
            write_private(&key, &pair.key)?;
            write_private(&certificate, &pair.certificate)?;
            written.extend([certificate, key]);
        }
        // A certificate without its own key is of no use, and a key may be the only copy.
        (_, has_key) => {
            let (there, missing) = if has_key { (key, certificate) } else { (certificate, key) };
            let (there, missing) = (there.display(), missing.display());
            return Err(ConsoleError::Failed(format!(
                "there is {there} without {missing}: remove or complete it"
            )));
        }
    }
    let mut out = io::stdout();
    for file in &written {
        writeln!(out, "wrote {}", file.display())?;
    }
    if written.is_empty() {
        writeln!(out, "all files are in {} already", folder.display())?;
    }
    Ok(0)
}

/// 256 random bits in printable form, with a line break.
pub(crate) fn random_secret() -> String {
    format!("{}\n", hex::encode(rand::random::<[u8; 32]>()))
}

/// A certificate and its key, in PEM.
pub(crate) struct PemPair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// A certificate for host names and addresses that is signed by its own key.
pub(crate) fn self_signed(names: &[String]) -> Result<PemPair, ConsoleError> {
    let refused = |error: rcgen::Error| {
        ConsoleError::Usage(format!("no certificate for {}: {error}", names.join(", ")))
    };
    let mut parameters = CertificateParams::new(names).map_err(refused)?;
    if let Some(first) = names.first() {
        parameters.distinguished_name.remove(DnType::CommonName);
        parameters.distinguished_name.push(DnType::CommonName, first.as_str());
    }
    // A client's clock may be behind this one.
    let now = OffsetDateTime::now_utc();
    (parameters.not_before, parameters.not_after) = (now - Duration::days(1), now + VALIDITY);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.key_identifier_method = KeyIdMethod::Sha256;
    let key = KeyPair::generate().map_err(refused)?;
    let certificate = parameters.self_signed(&key).map_err(refused)?;
    Ok(PemPair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn exists(path: &Path) -> Result<bool, ConsoleError> {
    path.try_exists().map_err(|error| ConsoleError::File { path: path.to_owned(), error })
}

/// Creates a folder that only its owner can enter, unless it exists.
pub(crate) fn private_folder(path: &Path) -> Result<PathBuf, ConsoleError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(|error| ConsoleError::File { path: path.to_owned(), error })?;
    Ok(path.to_owned())
}

/// Writes a new file of mode 0600. A crash leaves no part of a file under its name.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), ConsoleError> {
    write_new(path, text, 0o600)
}

/// Writes a file of this mode, by a temporary one beside it.
pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), ConsoleError> {
    let failed = |error| ConsoleError::File { path: path.to_owned(), error };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let written = (|| {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(failed)
}

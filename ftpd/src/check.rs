//! `ftpd --check`: a summary of the settings, and with `--deep`, tests of the services and files they name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
};

use common::{passive::PassiveAssignment, process::logging::chain, registry};
use nix::unistd::{Gid, Uid};

use crate::{
    auth::{Authentication, DEMO_USERS, probe::AuthdProbe},
    config::Config,
    jail::{LockMode, PARTIAL_PREFIX},
    tls::Tls,
};

/// Result of one test: its name, and the reason of a failure.
pub type CheckResult = (String, Result<(), String>);

/// A summary of the settings, one line each.
pub fn summary(config: &Config) -> Vec<String> {
    let network = &config.network;
    let listen = network.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let users = match &config.authentication {
        Authentication::Users(users) => format!("{} users of its own", users.len()),
        Authentication::Demo => format!("DEMO users {} with any password", DEMO_USERS.join(", ")),
        Authentication::Authd { urls, .. } => {
            format!("authd at {}", urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
    };
    let redis = match &config.redis {
        Some(options) => format!("registry in Redis at {}, keys {}:*", options.servers, options.prefix),
        None => "registry in memory: a single node, without Redis".to_owned(),
    };
    let tls = match &config.tls {
        Some(tls) => format!("TLS with {} certificates", tls.certificates.len()),
        None => "no TLS".to_owned(),
    };
    let passive = match network.assignment {
        PassiveAssignment::Leased(layout) => {
            format!("blocks of {} of the passive ports {}", layout.block_ports(), network.passive_ports)
        }
        PassiveAssignment::Slice(slice) if slice == network.passive_ports => format!("passive ports {slice}"),
        PassiveAssignment::Slice(slice) => format!("passive ports {slice} of {}", network.passive_ports),
    };
    vec![
        format!("node {}, on {listen}, port {}, {passive}", config.node_name, network.port),
        format!("files in {}", config.storage.root.display()),
        users,
        redis,
        tls,
    ]
}

/// Tests the storage, the certificates, Redis and every authd instance. Creates and removes a probe
/// file; changes nothing else and counts no login.
pub async fn deep(config: Config) -> Vec<CheckResult> {
    let root = config.storage.root.clone();
    let must_write =
        config.storage.create_homes || !matches!(config.authentication, Authentication::Authd { .. });
    let locks = config.redis.is_some().then_some(config.storage.locks);
    let storage = tokio::task::spawn_blocking(move || storage(&root, must_write, locks)).await;
    let mut results = storage.unwrap_or_default();
    if let Some(tls) = config.tls {
        results.push(("certificates (tls_certificates)".to_owned(), load(tls)));
    }
    if let Some(options) = &config.redis {
        let answer = registry::probe(options).await.map_err(|error| error.to_string());
        results.push((format!("Redis at {}", options.servers), answer));
    }
    if let Authentication::Authd { urls, authorization, timeout } = config.authentication {
        for url in urls {
            let name = format!("authd at {url}");
            let probe = AuthdProbe::new(&[url], authorization.as_ref());
            let answer = probe.ask(timeout).await;
            results.push((
                name,
                answer.map_err(|failure| format!("{}; see {}", failure.error, failure.setting)),
            ));
        }
    }
    results
}

fn load(tls: crate::tls::TlsSettings) -> Result<(), String> {
    Tls::load(tls).map(drop).map_err(|error| chain(&error))
}

/// Opens the root, writes a probe file, and shows whether file locks exclude other nodes. If they do not, the
/// check still succeeds, because the write leases in Redis do. `locks` is `None` without Redis.
fn storage(root: &Path, must_write: bool, locks: Option<LockMode>) -> Vec<CheckResult> {
    let opened = fs::read_dir(root).map(drop).map_err(|error| refused(root, &error));
    let is_open = opened.is_ok();
    let mut results = vec![(format!("storage root {}", root.display()), opened)];
    if is_open {
        match write_probe(root) {
            Err(error) if !must_write && error.kind() == io::ErrorKind::PermissionDenied => {}
            written => results.push((
                format!("a probe file in {}", root.display()),
                written.map_err(|error| refused(root, &error)),
            )),
        }
        if let Some(locks) = locks {
            let name = match locks.check_cross_nodes(root) {
                Ok(why) => format!("file locks hold on all nodes: {why}"),
                Err(why) => {
                    format!("file locks do not keep out other nodes, so that uploads depend on Redis: {why}")
                }
            };
            results.push((name, Ok(())));
        }
    }
    results
}

/// Creates a hidden file, flushes it to the storage, and removes it.
fn write_probe(root: &Path) -> io::Result<()> {
    let prefix = String::from_utf8_lossy(PARTIAL_PREFIX);
    let path = root.join(format!("{prefix}check-{:016x}", rand::random::<u64>()));
    let mut file: File = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let written = file.write_all(b"probe").and_then(|()| file.sync_all());
    fs::remove_file(&path)?;
    written
}

fn refused(root: &Path, error: &io::Error) -> String {
    let root = root.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{error}; create it (mkdir -p {root}), mount it, or correct `root`")
        }
        io::ErrorKind::PermissionDenied => format!(
            "{error}; this process runs as uid {}, gid {}: compare with `ls -ld {root}`, then chown or chmod \
             it, or see the export's root_squash",
            Uid::effective(),
            Gid::effective()
        ),
        io::ErrorKind::ReadOnlyFilesystem => format!("{error}; mount it writable"),
        io::ErrorKind::StorageFull => format!("{error}; free space"),
        _ => error.to_string(),
    }
}

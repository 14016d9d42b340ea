//! The workloads, and the figures that a round of a workload yields.

mod idle;
mod listing;
mod login;
mod many;
mod relayed;
mod transfer;

use std::{collections::BTreeMap, io, thread};

use crate::{
    client::Session,
    servers::{Server, ServerKind, Testbed, Usage},
};

/// The figures of one round by name. `cpu` is the CPU time per unit of work, by which servers are
/// compared; `rate` is the number of units of work per second. Each other figure gets its own column.
pub(crate) type Figures = BTreeMap<String, f64>;

/// A workload.
pub(crate) struct Workload {
    pub name: &'static str,
    pub about: &'static str,
    pub cpu_unit: &'static str,
    pub rate_unit: &'static str,
    /// The modes that run: `false` is plain FTP, `true` is FTPS.
    pub modes: &'static [bool],
    /// The servers that run this workload.
    pub kinds: &'static [ServerKind],
    /// Each round starts a new server, because earlier work would change its memory use.
    pub fresh: bool,
    /// Upper limit of the number of rounds.
    pub rounds: usize,
    pub run: fn(&Testbed, &Server, bool) -> io::Result<Figures>,
}

const PLAIN: &[bool] = &[false];
const BOTH: &[bool] = &[false, true];
const ALL_AND_SYNC: &[ServerKind] = &[
    ServerKind::Ftpd,
    ServerKind::Before,
    ServerKind::FtpdAlone,
    ServerKind::Null,
    ServerKind::PureFtpd,
    ServerKind::Vsftpd,
    ServerKind::Proftpd,
    ServerKind::Unftp,
    ServerKind::FtpdSync,
];
/// Without `FtpdSync`, which differs only in uploads.
const ALL: &[ServerKind] = ALL_AND_SYNC.split_at(ALL_AND_SYNC.len() - 1).0;
const DIRECT_AND_BALANCED: &[ServerKind] = &[ServerKind::Ftpd, ServerKind::Balancer, ServerKind::Relay];
const AUDITED: &[ServerKind] = &[ServerKind::FtpdNoAudit, ServerKind::Ftpd, ServerKind::FtpdAudit];
const RELAYED: &[ServerKind] = &[ServerKind::Relay];
const OURS: &[ServerKind] = &[ServerKind::Ftpd, ServerKind::Before];

const fn workload(
    name: &'static str,
    about: &'static str,
    (cpu_unit, rate_unit): (&'static str, &'static str),
    modes: &'static [bool],
    kinds: &'static [ServerKind],
    run: fn(&Testbed, &Server, bool) -> io::Result<Figures>,
) -> Workload {
    Workload { name, about, cpu_unit, rate_unit, modes, kinds, fresh: false, rounds: usize::MAX, run }
}

const VOLUME: (&str, &str) = ("s/GiB", "GiB/s");
const FILES: (&str, &str) = ("ms/file", "files/s");
const LISTS: (&str, &str) = ("ms/listing", "listings/s");
const LOGINS: (&str, &str) = ("ms/login", "logins/s");

/// All workloads, in the order in which they run.
pub(crate) static WORKLOADS: &[Workload] = &[
    workload("retr-1", "download of 1 GiB", VOLUME, BOTH, ALL, |_, s, e| transfer::retr(s, e, 1)),
    workload("retr-8", "8 downloads of 256 MiB", VOLUME, BOTH, ALL, |_, s, e| transfer::retr(s, e, 8)),
    workload("stor-1", "upload of 1 GiB", VOLUME, BOTH, ALL_AND_SYNC, |testbed, s, e| {
        transfer::stor(testbed, s, e, 1)
    }),
    workload("stor-8", "8 uploads of 256 MiB", VOLUME, BOTH, ALL_AND_SYNC, |testbed, s, e| {
        transfer::stor(testbed, s, e, 8)
    }),
    workload("small-get", "4 KiB files, 8 sessions", FILES, BOTH, ALL, |_, s, e| transfer::small_get(s, e)),
    workload("small-put", "4 KiB files, 8 sessions", FILES, BOTH, ALL_AND_SYNC, transfer::small_put),
    workload("audit-get", "small-get with and without an audit trail", FILES, PLAIN, AUDITED, |_, s, e| {
        transfer::small_get(s, e)
    }),
    workload(
        "audit-put",
        "small-put with and without an audit trail",
        FILES,
        PLAIN,
        AUDITED,
        transfer::small_put,
    ),
    workload("list", "LIST of 10,000 entries", LISTS, BOTH, ALL, |_, s, e| listing::listing(s, e, "LIST")),
    workload("mlsd", "MLSD of 10,000 entries", LISTS, BOTH, ALL, |_, s, e| listing::listing(s, e, "MLSD")),
    workload("login-16", "16 clients log in repeatedly", LOGINS, BOTH, ALL, |_, s, e| login::login(s, e)),
    workload("login-rate", "500 logins a second", LOGINS, BOTH, OURS, |_, s, e| login::at_rate(s, e)),
    workload(
        "balancer-retr",
        "retr-1 direct, behind nginx, behind ftp-relay",
        VOLUME,
        PLAIN,
        DIRECT_AND_BALANCED,
        |_, s, e| transfer::retr(s, e, 1),
    ),
    workload(
        "balancer-stor",
        "stor-1 direct, behind nginx, behind ftp-relay",
        VOLUME,
        PLAIN,
        DIRECT_AND_BALANCED,
        |testbed, s, e| transfer::stor(testbed, s, e, 1),
    ),
    workload(
        "balancer-small",
        "small-get direct, behind nginx, behind ftp-relay",
        FILES,
        PLAIN,
        DIRECT_AND_BALANCED,
        |_, s, e| transfer::small_get(s, e),
    ),
    Workload {
        fresh: true,
        rounds: 1,
        ..workload(
            "relay-idle",
            "up to 5,000 relayed uploads without a byte",
            LOGINS,
            PLAIN,
            RELAYED,
            |testbed, s, _| relayed::idle(testbed, s),
        )
    },
    Workload {
        fresh: true,
        rounds: 1,
        ..workload(
            "relay-busy",
            "up to 5,000 relayed downloads at 20 kB/s",
            VOLUME,
            PLAIN,
            RELAYED,
            |_, s, _| relayed::busy(s),
        )
    },
    Workload {
        fresh: true,
        rounds: 3,
        ..workload("many", "1,000 downloads at 1 MB/s each", VOLUME, PLAIN, OURS, |_, s, _| {
            many::downloads(s)
        })
    },
    Workload {
        fresh: true,
        rounds: 3,
        ..workload("million", "LIST of 1,000,000 entries", LISTS, PLAIN, OURS, listing::million)
    },
    Workload {
        fresh: true,
        rounds: 1,
        ..workload("idle", "up to 15,000 idle sessions", LOGINS, BOTH, OURS, |_, s, e| idle::sessions(s, e))
    },
];

/// Returns the workloads whose names begin with one of `names`; all workloads if `names` is empty.
///
/// # Errors
/// No workload's name begins with one of them.
pub(crate) fn select(names: &[String]) -> io::Result<Vec<&'static Workload>> {
    if let Some(unknown) = names.iter().find(|name| !WORKLOADS.iter().any(|w| w.name.starts_with(*name))) {
        let known: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        return Err(io::Error::other(format!(
            "unknown workload \"{unknown}\"; the workloads are: {}",
            known.join(" ")
        )));
    }
    let chosen = |w: &&Workload| names.is_empty() || names.iter().any(|name| w.name.starts_with(name));
    Ok(WORKLOADS.iter().filter(chosen).collect())
}

/// Returns the figures that every workload has, for `units` units of work.
fn figures(usage: &Usage, cpu_scale: f64, units: f64) -> Figures {
    let mut figures = Figures::from([
        ("cpu".to_owned(), cpu_scale * usage.cpu / units),
        ("rate".to_owned(), units / usage.wall),
        ("client cores".to_owned(), usage.client / usage.wall),
        ("other cores".to_owned(), usage.foreign / usage.wall),
    ]);
    for (name, cpu) in &usage.helpers {
        figures.insert((*name).to_owned(), cpu_scale * cpu / units);
    }
    figures
}

/// Runs `work` for all sessions at the same time, each in its own thread.
fn run_in_parallel<T: Send>(
    sessions: &mut [Session],
    work: impl Fn(usize, &mut Session) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = sessions
            .iter_mut()
            .enumerate()
            .map(|(i, session)| scope.spawn(move || work(i, session)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<T>>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}

/// Opens `count` sessions and prepares them for transfers.
fn sessions(server: &Server, encrypted: bool, count: usize) -> io::Result<Vec<Session>> {
    (0..count).map(|_| Session::ready(server.endpoint(encrypted))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_selected_by_prefixes_of_their_names() {
        let names = |words: &[&str]| -> Vec<&str> {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            select(&words).unwrap().iter().map(|w| w.name).collect()
        };
        assert_eq!(names(&["retr", "stor-8"]), ["retr-1", "retr-8", "stor-8"]);
        assert_eq!(names(&[]).len(), WORKLOADS.len());
        assert!(select(&["x".to_owned()]).is_err());
    }
}

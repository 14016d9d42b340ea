//! For any concurrent operations of several sessions in one home, the quota counts at least what is on the
//! disk.

use std::{os::unix::fs::FileExt, path::Path, sync::Arc, thread, time::Duration};

use common::{
    node::NodeRecord,
    policy::Quota,
    registry::{LeasePath, Registry, Usage, UsageStep, WriteLease},
    session::SessionId,
};
use proptest::{collection::vec, prelude::*, sample::select};
use tokio::runtime::Runtime;

use super::{HomeCountSettings, HomeCounts, HomeQuota, NewFile, QuotaReservation};
use crate::{
    jail::{
        Changes, CombineRequest, FileError, Jail, Modes, RivalPolicy, Upload, UploadPlacement, WriteMode,
    },
    virtual_path::VirtualPath,
    work::progress::Progress,
};

const LIMIT: Quota = Quota { bytes: Some(100_000), files: Some(6) };

const SESSIONS: usize = 3;

/// Few names, so that sessions use the same ones.
const NAMES: [&str; 4] = ["/a", "/b", "/d", "/d/c"];

#[derive(Clone, Copy, Debug)]
enum Operation {
    /// STOR or APPE, up to the first byte.
    Begin {
        name: &'static str,
        mode: WriteMode,
        atomic: bool,
    },
    /// Further bytes of the running upload.
    Write(u64),
    End(End),
    Delete(&'static str),
    Rename {
        from: &'static str,
        to: &'static str,
        replace: bool,
    },
    Combine {
        target: &'static str,
        source: &'static str,
    },
    MakeDirectory(&'static str),
    RemoveDirectory(&'static str),
    RemoveTree(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Finish,
    Abandon,
    Discard,
}

fn operation() -> impl Strategy<Value = Operation> {
    let name = || select(&NAMES[..]);
    let mode = select(vec![
        WriteMode::Replace,
        WriteMode::CreateNew,
        WriteMode::Append,
        WriteMode::Resume { offset: 500, replace: true },
        WriteMode::Resume { offset: 1000, replace: false },
    ]);
    let end = select(vec![End::Finish, End::Finish, End::Abandon, End::Discard]);
    prop_oneof![
        4 => (name(), mode, any::<bool>())
            .prop_map(|(name, mode, atomic)| Operation::Begin { name, mode, atomic }),
        4 => (1..60_000_u64).prop_map(Operation::Write),
        3 => end.prop_map(Operation::End),
        3 => name().prop_map(Operation::Delete),
        3 => (name(), name(), any::<bool>())
            .prop_map(|(from, to, replace)| Operation::Rename { from, to, replace }),
        2 => (name(), name()).prop_map(|(target, source)| Operation::Combine { target, source }),
        2 => name().prop_map(Operation::MakeDirectory),
        1 => name().prop_map(Operation::RemoveDirectory),
        1 => name().prop_map(Operation::RemoveTree),
    ]
}

/// A session without its connection.
struct Session {
    site: Arc<Site>,
    /// True if renames and removals take the write leases of the names, too.
    leases: bool,
    running: Option<Running>,
}

struct Running {
    upload: Upload,
    share: QuotaReservation,
    position: u64,
    _lease: WriteLease,
}

struct Site {
    runtime: Runtime,
    registry: Registry,
    quota: Arc<HomeQuota>,
    _directory: tempfile::TempDir,
}

fn path(text: &str) -> VirtualPath {
    VirtualPath::root().join(text.as_bytes()).unwrap()
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let modes = Modes { file: 0o640, directory: 0o750 };
        let jail = Arc::new(Jail::open(directory.path(), &VirtualPath::root(), false, modes).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let registry =
            Registry::local(NodeRecord::new("test".parse().unwrap(), 1, "50000-50004".parse().unwrap()));
        let usage = registry.home_usage(b"home", Duration::from_secs(24 * 3600));
        runtime.block_on(async {
            usage.begin_count().await.unwrap().finish(Usage::default()).await;
        });
        let settings = HomeCountSettings {
            at_once: 1,
            turn: Duration::from_secs(1),
            interval: Duration::from_secs(24 * 3600),
            wait: Duration::from_secs(60),
        };
        let counts = HomeCounts::new(settings, || false);
        let (directory_of_home, home) = (VirtualPath::root(), "/home".to_owned());
        let quota =
            Arc::new(HomeQuota { counts, jail, directory: directory_of_home, usage, limit: LIMIT, home });
        Self { runtime, registry, quota, _directory: directory }
    }

    /// The usage that the quota counts, and the usage on the disk.
    fn standing(&self) -> (Usage, Usage) {
        let counted = self.runtime.block_on(self.quota.usage.settle(UsageStep::default())).unwrap().held;
        (counted.unwrap(), self.quota.jail.usage(&VirtualPath::root(), || Ok(())).unwrap())
    }

    fn lease(&self, name: &VirtualPath) -> Option<WriteLease> {
        let key = self.quota.jail.canonical_key(name).ok()?;
        self.runtime.block_on(self.registry.lease_write(&key, SessionId::random())).ok()
    }
}

impl Session {
    /// Runs an operation. Errors are refusals, as a client gets them.
    fn run(&mut self, operation: Operation) {
        let (site, jail) = (Arc::clone(&self.site), Arc::clone(&self.site.quota.jail));
        match operation {
            Operation::Begin { name, mode, atomic } if self.running.is_none() => {
                self.running = self.begin(&path(name), mode, atomic);
            }
            Operation::Write(bytes) => {
                if let Some(running) = &mut self.running
                    && running.write(&site.runtime, bytes).is_none()
                {
                    self.end(End::Abandon);
                }
            }
            Operation::End(end) => self.end(end),
            Operation::Delete(name) => self.change(&[name], |changes| {
                if let Some(freed) = jail.remove_partial(&path(name), "anna")? {
                    changes.remove(freed);
                }
                changes.remove(jail.remove_file(&path(name))?);
                Ok(())
            }),
            Operation::Rename { from, to, replace } => self.change(&[from, to], |changes| {
                changes.remove(jail.rename(&path(from), &path(to), replace)?);
                Ok(())
            }),
            Operation::Combine { target, source } if target != source => {
                let Some(_leases) = self.leases_of(&[target, source]) else { return };
                let (mut changes, mut share) = (Changes::default(), None);
                let reserve = |bytes, is_new| {
                    let wanted = Usage { bytes, files: u64::from(is_new) };
                    let reserved = site.runtime.block_on(site.quota.admit_whole(wanted));
                    share = Some(reserved.map_err(|_| FileError::QuotaExceeded)?);
                    Ok(())
                };
                let (target, sources, progress) = (path(target), [path(source)], Progress::default());
                let joining = CombineRequest { target: &target, sources: &sources, sync: false };
                let _ = jail.combine(joining, &progress, &mut changes, reserve, || true, || true);
                if let Some(share) = share {
                    share.follow(changes);
                    share.settle();
                }
            }
            Operation::MakeDirectory(name) => {
                let wanted = Usage { bytes: 0, files: 1 };
                let Ok(share) = site.runtime.block_on(site.quota.admit_whole(wanted)) else { return };
                let changes = Changes::default();
                if jail.create_directory(&path(name)).is_ok() {
                    changes.create();
                }
                share.follow(changes);
                share.settle();
            }
            Operation::RemoveDirectory(name) => {
                self.change(&[name], |changes| jail.remove_directory(&path(name), changes));
            }
            Operation::RemoveTree(name) => {
                self.change(&[name], |changes| jail.remove_tree(&path(name), &Progress::default(), changes));
            }
            Operation::Begin { .. } | Operation::Combine { .. } => {}
        }
    }

    /// Takes the write leases of the names and of all paths below them, as commands do. `None`: another
    /// session has a conflicting lease.
    fn leases_of(&self, names: &[&str]) -> Option<Option<WriteLease>> {
        if !self.leases {
            return Some(None);
        }
        // A name in a missing directory cannot be changed.
        let key = |name: &&str| self.site.quota.jail.name_key(&path(name)).ok();
        let claims: Vec<LeasePath> = names.iter().filter_map(key).map(|key| LeasePath::tree(&key)).collect();
        if claims.is_empty() {
            return Some(None);
        }
        let lease = self.site.registry.lease_names(claims, SessionId::random());
        self.site.runtime.block_on(lease).ok().map(Some)
    }

    fn change(&self, names: &[&str], work: impl FnOnce(&Changes) -> Result<(), FileError>) {
        let Some(_leases) = self.leases_of(names) else { return };
        let changes = Changes::default();
        let _ = work(&changes);
        self.site.runtime.block_on(self.site.quota.report(changes.so_far()));
    }

    fn begin(&self, name: &VirtualPath, mode: WriteMode, atomic: bool) -> Option<Running> {
        let (site, jail) = (&self.site, &self.site.quota.jail);
        let lease = site.lease(name)?;
        let atomic = atomic && mode != WriteMode::Append;
        let new = match (jail.open_read(name), jail.partial_size(name, "anna").ok()?) {
            // Without leases, another session may remove the file before it is opened.
            _ if !self.leases => NewFile::Beside,
            // As STOR and APPE do.
            (Err(_), partial) if !atomic || partial.is_none() => NewFile::Yes,
            (_, Some(_)) if atomic && matches!(mode, WriteMode::Resume { .. }) => NewFile::No,
            _ if atomic => NewFile::Beside,
            _ => NewFile::No,
        };
        let share = site.runtime.block_on(site.quota.admit(new, 1)).ok()?;
        let hidden = UploadPlacement::Atomic { owner: "anna", rivals: RivalPolicy::Replace };
        let placement = if atomic { hidden } else { UploadPlacement::Direct };
        let Ok(mut upload) = jail.open_write(name, mode, placement) else {
            share.settle();
            return None;
        };
        share.follow(upload.changes());
        match upload.begin() {
            Ok(position) => Some(Running { upload, share, position, _lease: lease }),
            Err(_) => {
                upload.abandon();
                share.settle();
                None
            }
        }
    }

    fn end(&mut self, end: End) {
        // The lease is released last, as in a real session.
        let Some(Running { upload, share, position, _lease }) = self.running.take() else { return };
        match end {
            End::Finish => {
                let _ = upload.finish(false, position);
            }
            End::Abandon => upload.abandon(),
            End::Discard => upload.discard(),
        }
        share.settle();
    }
}

impl Running {
    /// `None`: the quota is used up.
    fn write(&mut self, runtime: &Runtime, bytes: u64) -> Option<()> {
        let mut left = bytes;
        while left > 0 {
            if self.share.room() == 0 {
                runtime.block_on(self.share.reserve()).ok()?;
            }
            let piece = left.min(self.share.room());
            if piece == 0 {
                return None;
            }
            self.share.arrived(piece).ok()?;
            let content = vec![b'x'; usize::try_from(piece).unwrap()];
            let file = self.upload.prepare_write(piece).ok()?;
            file.write_all_at(&content, self.position).unwrap();
            self.position += piece;
            left -= piece;
        }
        Some(())
    }
}

/// The order in which the operations of one round run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    InTurn,
    AtOnce,
}

/// Each session runs one operation in a round. After each round, the quota must count at least what is on the
/// disk; after the last round, exactly that if the operations ran in turn. Concurrent operations may be
/// counted as more than they leave, until the home is counted again: MKD, for example, takes no lease.
fn check(rounds: &[[Operation; SESSIONS]], leases: bool, order: Order) -> Result<(), TestCaseError> {
    let site = Arc::new(Site::new());
    let session = || Session { site: Arc::clone(&site), leases, running: None };
    let mut sessions: [Session; SESSIONS] = std::array::from_fn(|_| session());
    let is_enough = |(counted, disk): (Usage, Usage)| {
        prop_assert!(
            counted.bytes >= disk.bytes && counted.files >= disk.files,
            "{counted:?}, disk {disk:?}"
        );
        prop_assert!(disk.bytes <= 100_000, "{disk:?}");
        Ok(())
    };
    for round in rounds {
        let operations = sessions.iter_mut().zip(round);
        match order {
            Order::InTurn => operations.for_each(|(session, operation)| session.run(*operation)),
            Order::AtOnce => thread::scope(|scope| {
                for (session, operation) in operations {
                    scope.spawn(move || session.run(*operation));
                }
            }),
        }
        is_enough(site.standing())?;
    }
    for session in &mut sessions {
        session.end(End::Abandon);
    }
    let (counted, disk) = site.standing();
    is_enough((counted, disk))?;
    if order == Order::InTurn {
        prop_assert_eq!(counted, disk);
    }
    Ok(())
}

fn rounds() -> impl Strategy<Value = Vec<[Operation; SESSIONS]>> {
    vec([operation(), operation(), operation()], 1..30)
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 64, ..ProptestConfig::default() }
}

#[test]
fn sequential_operations_are_counted_exactly() {
    proptest!(cases(), |(rounds in rounds())| check(&rounds, true, Order::InTurn)?);
}

#[test]
fn concurrent_operations_with_leases_are_never_counted_as_less_than_is_on_the_disk() {
    proptest!(cases(), |(rounds in rounds())| check(&rounds, true, Order::AtOnce)?);
}

#[test]
fn concurrent_operations_without_leases_are_never_counted_as_less_than_is_on_the_disk() {
    proptest!(cases(), |(rounds in rounds())| check(&rounds, false, Order::AtOnce)?);
}

/// Runs the operations at the same time, each in a session of its own, and repeats that.
fn at_once(prepare: impl Fn(&Path), operations: &[Operation]) {
    for _ in 0..200 {
        let site = Arc::new(Site::new());
        prepare(site._directory.path());
        // The prepared files are reported.
        let disk = site.quota.jail.usage(&VirtualPath::root(), || Ok(())).unwrap();
        site.runtime.block_on(site.quota.report((disk.bytes as i64, disk.files as i64)));
        thread::scope(|scope| {
            for operation in operations {
                let mut session = Session { site: Arc::clone(&site), leases: false, running: None };
                scope.spawn(move || session.run(*operation));
            }
        });
        let (counted, disk) = site.standing();
        assert_eq!(counted, disk);
    }
}

fn file(directory: &Path, name: &str, length: usize) {
    std::fs::write(directory.join(name), vec![b'x'; length]).unwrap();
}

#[test]
fn two_renames_onto_one_name_free_its_bytes_once() {
    let prepare = |home: &Path| {
        for (name, length) in [("a", 1000), ("b", 2000), ("d", 40_000)] {
            file(home, name, length);
        }
    };
    let rename = |from| Operation::Rename { from, to: "/d", replace: true };
    at_once(prepare, &[rename("/a"), rename("/b")]);
}

#[test]
fn concurrent_removals_of_one_file_free_its_bytes_once() {
    let prepare = |home: &Path| {
        file(home, "a", 40_000);
        file(home, "b", 1000);
    };
    let replace = Operation::Rename { from: "/b", to: "/a", replace: true };
    at_once(prepare, &[Operation::Delete("/a"), replace, Operation::Delete("/a")]);
}

#[test]
fn a_file_that_is_truncated_and_removed_at_the_same_time_frees_its_bytes_once() {
    for _ in 0..200 {
        let site = Arc::new(Site::new());
        file(site._directory.path(), "a", 40_000);
        site.runtime.block_on(site.quota.report((40_000, 1)));
        let mut writer = Session { site: Arc::clone(&site), leases: false, running: None };
        let mut remover = Session { site: Arc::clone(&site), leases: false, running: None };
        writer.run(Operation::Begin { name: "/a", mode: WriteMode::Replace, atomic: false });
        thread::scope(|scope| {
            scope.spawn(|| writer.run(Operation::Write(1)));
            scope.spawn(|| remover.run(Operation::Delete("/a")));
        });
        let (counted, disk) = site.standing();
        assert!(counted.bytes >= disk.bytes && counted.files >= disk.files, "{counted:?}, disk {disk:?}");
        // A second upload of this session gets the freed room, and no more.
        writer.end(End::Discard);
        let (counted, disk) = site.standing();
        assert!(counted.bytes >= disk.bytes && counted.files >= disk.files, "{counted:?}, disk {disk:?}");
    }
}

//! Tests of operations on names: rename, remove, attributes, keys, COMB, locks for changes.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::work::progress::Progress;

#[test]
fn rename_without_replace_keeps_both_files() {
    let site = Site::new();
    fs::write(site.home("a"), "a").unwrap();
    fs::write(site.home("b"), "b").unwrap();
    fs::create_dir(site.home("dir")).unwrap();
    for to in ["/b", "/dir", "/a"] {
        let renamed = site.jail.rename(&path("/a"), &path(to), false);
        assert!(matches!(renamed, Err(FileError::AlreadyExists)), "{to}: {renamed:?}");
    }
    assert_eq!((site.read("a"), site.read("b")), ("a".into(), "b".into()));
    site.jail.rename(&path("/a"), &path("/dir/c"), false).unwrap();
    site.jail.rename(&path("/dir/c"), &path("/b"), true).unwrap();
    assert_eq!(site.names(), ["b", "dir"]);
    assert_eq!(site.read("b"), "a");
}

#[test]
fn reserved_names_and_the_root_cannot_be_changed() {
    let site = Site::new();
    fs::write(site.home(".ftpd-partial-1"), "x").unwrap();
    fs::write(site.home("a"), "x").unwrap();
    let (hidden, a) = (path("/.ftpd-partial-1"), path("/a"));
    let refused = |result: Result<(), FileError>| {
        assert!(matches!(result, Err(FileError::NameNotAllowed)), "{result:?}");
    };
    refused(site.jail.open_read(&hidden).map(drop));
    refused(site.jail.entry(&hidden).map(drop));
    refused(site.jail.remove_file(&hidden).map(drop));
    refused(site.jail.rename(&hidden, &path("/b"), true).map(drop));
    refused(site.jail.rename(&a, &hidden, true).map(drop));
    refused(site.jail.create_directory(&hidden));
    refused(site.jail.change_mode(&hidden, |_, _| 0o777).map(drop));
    refused(site.jail.set_modified(&hidden, 0));
    refused(site.jail.open_write(&hidden, WriteMode::Append, UploadPlacement::Direct).map(drop));
    refused(site.jail.remove_directory(&VirtualPath::root(), &Changes::default()));
    refused(site.jail.remove_tree(&VirtualPath::root(), &Progress::default(), &Changes::default()));
    refused(site.jail.rename(&a, &VirtualPath::root(), true).map(drop));
    fs::create_dir(site.home("dir")).unwrap();
    refused(site.jail.rename(&path("/dir"), &path("/dir/below"), true).map(drop));
}

#[test]
fn wrong_file_types_get_specific_errors() {
    let site = Site::new();
    fs::write(site.home("file"), "x").unwrap();
    fs::create_dir_all(site.home("dir/full")).unwrap();
    nix::unistd::mkfifo(&site.home("fifo"), Mode::S_IRWXU).unwrap();
    let jail = &site.jail;
    assert!(matches!(jail.open_read(&path("/none")), Err(FileError::NotFound)));
    assert!(matches!(jail.open_read(&path("/dir")), Err(FileError::NotAFile)));
    assert!(matches!(jail.open_read(&path("/fifo")), Err(FileError::NotAFile)));
    assert!(matches!(jail.open_read(&path("/file/x")), Err(FileError::NotADirectory)));
    assert!(matches!(jail.check_directory(&path("/file")), Err(FileError::NotADirectory)));
    assert!(matches!(jail.remove_file(&path("/dir")), Err(FileError::IsADirectory)));
    assert!(matches!(
        jail.remove_directory(&path("/dir"), &Changes::default()),
        Err(FileError::DirectoryNotEmpty)
    ));
    assert!(matches!(
        jail.remove_directory(&path("/file"), &Changes::default()),
        Err(FileError::NotADirectory)
    ));
    assert!(matches!(jail.create_directory(&path("/dir")), Err(FileError::AlreadyExists)));
    let long = format!("/{}", "n".repeat(256));
    assert!(matches!(jail.create_directory(&path(&long)), Err(FileError::NameTooLong)));
    for placement in
        [UploadPlacement::Direct, UploadPlacement::Atomic { owner: "alice", rivals: RivalPolicy::Replace }]
    {
        let open = |name| jail.open_write(&path(name), WriteMode::Replace, placement);
        assert!(matches!(open("/dir"), Err(FileError::IsADirectory)));
        assert!(matches!(open("/fifo"), Err(FileError::NotAFile)));
        assert!(matches!(open("/none/file"), Err(FileError::NotFound)));
    }
    jail.check_directory(&path("/dir/full")).unwrap();
    jail.remove_directory(&path("/dir/full"), &Changes::default()).unwrap();
    jail.remove_file(&path("/file")).unwrap();
    assert_eq!(site.names(), ["dir", "fifo"]);
}

#[test]
fn attributes_are_set_on_the_target_of_a_link() {
    let site = Site::new();
    fs::write(site.home("file"), "12345").unwrap();
    symlink("/file", site.home("link")).unwrap();
    site.jail.set_modified(&path("/link"), 1_000_000_007).unwrap();
    site.jail.change_mode(&path("/link"), |_, _| 0o7604).unwrap();
    let status = fs::metadata(site.home("file")).unwrap();
    assert_eq!((status.mtime(), status.mode() & 0o7777), (1_000_000_007, 0o604));
    let entry = site.jail.resolved_entry(&path("/link")).unwrap();
    assert_eq!((entry.name.as_slice(), entry.size, entry.modified), (&b"link"[..], 5, 1_000_000_007));
    assert_eq!(site.jail.open_read(&path("/link")).unwrap().modified, 1_000_000_007);
    assert!(site.jail.free_space(&VirtualPath::root()).unwrap() > 0);
}

#[test]
fn canonical_key_is_the_same_through_every_home_and_link() {
    let site = Site::new();
    fs::create_dir(site.home("real")).unwrap();
    fs::write(site.home("real/file"), "x").unwrap();
    symlink("real", site.home("link")).unwrap();
    symlink("/real/file", site.home("file-link")).unwrap();
    let whole = Jail::open(&site.storage(), &VirtualPath::root(), false, MODES).unwrap();
    let key = site.jail.canonical_key(&path("/real/file")).unwrap();
    assert_eq!(key, b"alice/real/file");
    assert_eq!(site.jail.canonical_key(&path("/link/file")).unwrap(), key);
    assert_eq!(site.jail.canonical_key(&path("/file-link")).unwrap(), key);
    assert_eq!(whole.canonical_key(&path("/alice/real/file")).unwrap(), key);
    assert_eq!(whole.canonical_key(&path("/alice/link/file")).unwrap(), key);
    assert_eq!(whole.canonical_key(&path("/new")).unwrap(), b"new");
    assert_eq!(site.jail.canonical_key(&path("/link/new")).unwrap(), b"alice/real/new");
    assert_eq!(site.jail.canonical_key(&VirtualPath::root()).unwrap(), b"alice");
}

#[test]
fn remove_tree_removes_every_file_unless_cancelled() {
    let site = Site::new();
    for directory in 0..10 {
        let directory = site.home(&format!("tree/{directory}/x/y"));
        fs::create_dir_all(&directory).unwrap();
        (0..20).for_each(|file| fs::write(directory.join(format!("file {file}")), "").unwrap());
    }
    // More names than one read of a directory returns.
    fs::create_dir(site.home("tree/many")).unwrap();
    (0..1000).for_each(|file| fs::write(site.home(&format!("tree/many/{file:040}")), "").unwrap());
    let progress = Progress::default();
    progress.cancel();
    let cancelled = site.jail.remove_tree(&path("/tree"), &progress, &Changes::default());
    assert!(matches!(cancelled, Err(FileError::Cancelled)));
    assert!(site.home("tree/many").exists());
    site.jail.remove_tree(&path("/tree"), &Progress::default(), &Changes::default()).unwrap();
    assert!(site.names().is_empty());
}

/// Accepts every reservation.
fn room(_bytes: u64, _is_new: bool) -> Result<(), FileError> {
    Ok(())
}

#[test]
fn combine_appends_in_order_and_removes_the_sources() {
    let site = Site::new();
    fs::write(site.home("1"), "one ").unwrap();
    fs::write(site.home("2"), "two").unwrap();
    let (target, sources) = (path("/all"), [path("/1"), path("/2")]);
    let progress = Progress::default();
    let combine = |sources: &[VirtualPath]| {
        let request = CombineRequest { target: &target, sources, sync: true };
        site.jail.combine(request, &progress, &mut Changes::default(), room, || true, || true)
    };

    let missing = combine(&[path("/1"), path("/none")]);
    assert!(matches!(missing, Err(FileError::NotFound)));
    assert_eq!(site.names(), ["1", "2"], "a created target is removed again");
    assert!(matches!(combine(&[path("/1"), path("/1")]), Err(FileError::SameFile)));

    assert_eq!(combine(&sources).unwrap(), 7);
    assert_eq!(site.read("all"), "one two");
    assert_eq!(site.names(), ["all"]);
    assert_eq!(progress.transferred(), 7);
    assert!(matches!(combine(&[path("/all")]), Err(FileError::SameFile)));

    fs::write(site.home("3"), " three").unwrap();
    progress.cancel();
    assert!(matches!(combine(&[path("/3")]), Err(FileError::Cancelled)));
    assert_eq!((site.read("all"), site.read("3")), ("one two".into(), " three".into()));
    let request = CombineRequest { target: &target, sources: &[path("/3")], sync: false };
    let again =
        site.jail.combine(request, &Progress::default(), &mut Changes::default(), room, || true, || true);
    assert_eq!(again.unwrap(), 6);
    assert_eq!(site.read("all"), "one two three");
}

#[test]
fn combine_keeps_the_sources_if_another_session_may_write_them() {
    let site = Site::new();
    fs::write(site.home("1"), "one").unwrap();
    let (progress, changes) = (Progress::default(), &mut Changes::default());
    let request = CombineRequest { target: &path("/all"), sources: &[path("/1")], sync: true };
    let lost = site.jail.combine(request, &progress, changes, room, || true, || false);
    assert!(matches!(lost, Err(FileError::WriteRightLost)));
    assert_eq!(site.read("1"), "one");
}

#[test]
fn combine_changes_nothing_once_the_right_to_write_is_lost() {
    let site = Site::new();
    for name in ["all", "1", "2"] {
        fs::write(site.home(name), name).unwrap();
    }
    // The right to write is lost before the second piece.
    let (progress, asked) = (Progress::default(), AtomicU32::new(0));
    let may_store = || asked.fetch_add(1, Ordering::Relaxed) < 1;
    let (target, sources) = (path("/all"), [path("/1"), path("/2")]);
    let request = CombineRequest { target: &target, sources: &sources, sync: true };
    let lost = site.jail.combine(request, &progress, &mut Changes::default(), room, may_store, || true);
    assert!(matches!(lost, Err(FileError::WriteRightLost)));
    // The target is not even truncated, because its content may be another session's.
    assert_eq!([site.read("all"), site.read("1"), site.read("2")], ["all1", "1", "2"]);
}

#[test]
fn combine_reserves_quota_before_it_changes_anything() {
    let site = Site::new();
    fs::write(site.home("1"), "one").unwrap();
    fs::write(site.home("2"), "four").unwrap();
    let mut changes = Changes::default();
    for (target, is_new) in [("/new", true), ("/2", false)] {
        let mut asked = None;
        let no_room = |bytes, is_new| {
            asked = Some((bytes, is_new));
            Err(FileError::QuotaExceeded)
        };
        let (progress, sources) = (Progress::default(), [path("/1")]);
        let request = CombineRequest { target: &path(target), sources: &sources, sync: true };
        let refused = site.jail.combine(request, &progress, &mut changes, no_room, || true, || true);
        assert!(matches!(refused, Err(FileError::QuotaExceeded)));
        assert_eq!(asked, Some((3, is_new)));
        assert_eq!((site.names(), site.read("2")), (vec!["1".into(), "2".into()], "four".into()));
        assert_eq!(changes.so_far(), (0, 0));
    }
}

/// A source cannot be removed, for example because its directory is not writable or has the sticky bit.
#[test]
fn combine_undoes_the_copy_of_sources_that_cannot_be_removed() {
    let site = Site::new();
    fs::write(site.home("there"), "before ").unwrap();
    for (target, before) in [("there", Some("before ")), ("new", None)] {
        for kept in [0, 1] {
            fs::write(site.home("1"), "one ").unwrap();
            fs::write(site.home("2"), "two").unwrap();
            let stays = if kept == 0 { "1" } else { "2" };
            // A directory takes the name before the sources are removed, so the removal fails even for
            // root.
            let spoil = || {
                fs::rename(site.home(stays), site.home("away")).unwrap();
                fs::create_dir(site.home(stays)).unwrap();
                true
            };
            let (progress, sources) = (Progress::default(), [path("/1"), path("/2")]);
            let mut changes = Changes::default();
            let target_path = path(&format!("/{target}"));
            let request = CombineRequest { target: &target_path, sources: &sources, sync: true };
            let failed = site.jail.combine(request, &progress, &mut changes, room, || true, spoil);
            assert!(matches!(failed, Err(FileError::IsADirectory)), "{failed:?}");
            let gone = if kept == 0 { "" } else { "one " };
            let expected = before.map_or(gone.to_owned(), |before| format!("{before}{gone}"));
            let is_made = i64::from(before.is_none() && kept == 1);
            assert_eq!(site.home(target).exists(), !expected.is_empty());
            if !expected.is_empty() {
                assert_eq!(site.read(target), expected);
            }
            // The target contains the bytes of each removed source, so only the number of files changes.
            assert_eq!(changes.so_far(), (0, is_made - i64::from(kept == 1)));
            fs::remove_dir(site.home(stays)).unwrap();
            let _ = (fs::remove_file(site.home("away")), fs::remove_file(site.home("2")));
            let _ = fs::remove_file(site.home("new"));
            fs::write(site.home("there"), "before ").unwrap();
        }
    }
}

#[test]
fn lock_for_change_and_writers_lock_exclude_each_other() {
    let site = Site::new();
    let file = path("/file");
    fs::write(site.home("file"), "content").unwrap();
    symlink("file", site.home("link")).unwrap();
    let write = || File::options().write(true).open(site.home("file")).unwrap();
    let held = site.jail.lock_for_change(&file).unwrap().unwrap();
    assert_eq!(LockMode::Auto.take(&write()).unwrap(), lock::WriterLock::HeldByAnother);
    drop(held);
    let writer = write();
    assert!(matches!(LockMode::Auto.take(&writer), Ok(lock::WriterLock::Held { .. })));
    assert!(matches!(site.jail.lock_for_change(&file), Err(FileError::BeingWritten)));
    assert!(matches!(site.jail.lock_resolved_for_change(&path("/link")), Err(FileError::BeingWritten)));
    assert!(site.jail.lock_for_change(&path("/link")).unwrap().is_none(), "the link itself is not written");
}

#[test]
fn lock_for_change_locks_regular_files_only_and_opens_no_fifo() {
    let site = Site::new();
    fs::create_dir(site.home("dir")).unwrap();
    nix::unistd::mkfifo(&site.home("fifo"), Mode::S_IRWXU).unwrap();
    for name in ["/none", "/dir", "/fifo", "/dir/none", "/"] {
        assert!(site.jail.lock_for_change(&path(name)).unwrap().is_none(), "{name}");
    }
    // If the FIFO had been opened for writing and closed, the reader would see the end of the stream.
    let mut reader = File::options();
    let reader = reader.read(true).custom_flags(libc::O_NONBLOCK).open(site.home("fifo")).unwrap();
    let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one valid structure, as the count says, and 0 does not wait.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 0);
    assert!(site.jail.lock_for_change(&path("/fifo")).unwrap().is_none());
    // SAFETY: as above.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 0);
}

#[test]
fn lock_for_change_uses_a_readers_lock_on_read_only_files() {
    let site = Site::new();
    fs::write(site.home("file"), "content").unwrap();
    let writer = File::options().write(true).open(site.home("file")).unwrap();
    fs::set_permissions(site.home("file"), fs::Permissions::from_mode(0o444)).unwrap();
    let held = site.jail.lock_for_change(&path("/file")).unwrap().unwrap();
    assert_eq!(LockMode::Auto.take(&writer).unwrap(), lock::WriterLock::HeldByAnother);
    drop(held);
    assert!(matches!(LockMode::Auto.take(&writer), Ok(lock::WriterLock::Held { .. })));
    assert!(matches!(site.jail.lock_for_change(&path("/file")), Err(FileError::BeingWritten)));
}

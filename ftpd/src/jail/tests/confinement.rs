//! Tests that no path, symbolic link or race reaches a file outside the home.

use std::io::Read;
use std::os::unix::fs::{FileExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::work::progress::Progress;

#[test]
fn symbolic_links_and_dots_never_reach_outside_the_home() {
    let site = Site::new();
    for (name, target) in [
        ("absolute", site.outside()),
        ("relative", "../../outside".into()),
        ("deep", "../../../../../../../../../../../../../".into()),
        ("proc", "/proc/self/root".into()),
        ("cwd", "/proc/self/cwd".into()),
        ("file", site.outside().join("secret")),
        ("relative-file", "../../outside/secret".into()),
    ] {
        symlink(target, site.home(name)).unwrap();
    }
    let outside = site.outside().to_str().unwrap().to_owned();
    for name in [
        "/absolute/secret",
        "/relative/secret",
        "/file",
        "/relative-file",
        &format!("/deep{outside}/secret"),
        &format!("/proc{outside}/secret"),
        &format!("{outside}/secret"),
        "/proc/etc/passwd",
        "/cwd/Cargo.toml",
        "/../outside/secret",
        "/../../../../../etc/passwd",
    ] {
        let name = path(name);
        assert!(site.jail.open_read(&name).is_err(), "{name}");
        assert!(site.jail.remove_file(&name).is_err() || name.parent().is_root(), "{name}");
        assert!(site.jail.change_mode(&name, |_, _| 0o777).is_err(), "{name}");
    }
    assert!(site.jail.check_directory(&path("/absolute")).is_err());
    assert!(site.jail.entries(&path("/relative")).is_err());
    assert!(site.jail.create_directory(&path("/absolute/new")).is_err());
    assert!(site.jail.rename(&path("/absolute/secret"), &path("/stolen"), true).is_err());
    let new = path("/relative/new");
    assert!(site.jail.open_write(&new, WriteMode::Replace, UploadPlacement::Direct).is_err());
    assert_eq!(fs::read_dir(site.outside()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(site.outside().join("secret")).unwrap(), "secret");
    // A link that climbs above the root leads to the home itself.
    assert!(site.jail.entries(&path("/deep")).unwrap().any(|entry| entry.unwrap().name == b"proc"));
}

#[test]
fn upload_through_a_link_to_the_outside_creates_no_file() {
    let site = Site::new();
    symlink(site.outside().join("new"), site.home("link")).unwrap();
    let link = path("/link");
    for mode in [WriteMode::Replace, WriteMode::Append, WriteMode::CreateNew] {
        assert!(site.jail.open_write(&link, mode, UploadPlacement::Direct).is_err(), "{mode:?}");
    }
    assert!(!site.outside().join("new").exists());
}

#[test]
fn remove_tree_removes_links_but_not_their_targets() {
    let site = Site::new();
    fs::create_dir_all(site.home("tree/a/b")).unwrap();
    fs::create_dir(site.home("kept")).unwrap();
    fs::write(site.home("kept/file"), "x").unwrap();
    symlink(site.outside(), site.home("tree/a/out")).unwrap();
    symlink("/kept", site.home("tree/in")).unwrap();
    fs::write(site.home("tree/a/b/.ftpd-partial-0"), "x").unwrap();
    site.jail.remove_tree(&path("/tree"), &Progress::default(), &Changes::default()).unwrap();
    assert_eq!(site.names(), ["kept"]);
    assert!(site.home("kept/file").exists());
    assert!(site.outside().join("secret").exists());
    symlink(site.home("kept"), site.home("link")).unwrap();
    let of_link = site.jail.remove_tree(&path("/link"), &Progress::default(), &Changes::default());
    assert!(matches!(of_link, Err(FileError::NotADirectory)), "{of_link:?}");
}

/// Stops the other thread when this thread ends, even by a failed assertion.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A thread exchanges a directory and a link to the outside as fast as it can, while every operation
/// uses that name.
#[test]
fn directory_swapped_with_a_link_never_reaches_outside() {
    let site = Site::new();
    fs::create_dir(site.home("dir")).unwrap();
    fs::write(site.home("dir/secret"), "inside").unwrap();
    symlink(site.outside(), site.home("link")).unwrap();
    let stop = AtomicBool::new(false);
    let swaps = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                nix::fcntl::renameat2(
                    nix::fcntl::AT_FDCWD,
                    &site.home("dir"),
                    nix::fcntl::AT_FDCWD,
                    &site.home("link"),
                    nix::fcntl::RenameFlags::RENAME_EXCHANGE,
                )
                .unwrap();
                swaps += 1;
            }
            swaps
        });
        let stopping = Stop(&stop);
        let mut inside = 0;
        // Ten times the duration on a busy machine.
        let end = Instant::now() + Duration::from_secs(180);
        // Both threads must have run often enough for an operation to hit the race window.
        while inside < 500 {
            assert!(Instant::now() < end, "the operations make no progress");
            let (secret, new) = (path("/dir/secret"), path("/dir/new"));
            if let Ok(open) = site.jail.open_read(&secret) {
                let mut content = String::new();
                (&open.file).read_to_string(&mut content).unwrap();
                assert_ne!(content, "secret");
                inside += 1;
            }
            let placement = UploadPlacement::Atomic { owner: "alice", rivals: RivalPolicy::Replace };
            if let Ok(mut upload) = site.jail.open_write(&new, WriteMode::Replace, placement) {
                upload.begin().unwrap();
                upload.prepare_write(3).unwrap().write_all_at(b"new", 0).unwrap();
                let finished = upload.finish(false, 3);
                assert!(matches!(finished, Ok(_) | Err(FileError::Stale)), "{finished:?}");
            }
            if let Ok(upload) = site.jail.open_write(&new, WriteMode::Append, UploadPlacement::Direct) {
                upload.abandon();
            }
            let _ = site.jail.create_directory(&path("/dir/made"));
            let _ = site.jail.remove_tree(&path("/dir/made"), &Progress::default(), &Changes::default());
            let _ = site.jail.rename(&new, &path("/dir/moved"), true);
            let _ = site.jail.remove_file(&path("/dir/moved"));
            let _ = site.jail.change_mode(&secret, |_, _| 0o604);
            if let Ok(entries) = site.jail.entries(&path("/dir")) {
                entries.for_each(|entry| drop(entry.unwrap()));
            }
        }
        drop(stopping);
        swapper.join().unwrap()
    });
    assert!(swaps > 100, "only {swaps} swaps");
    assert_eq!(fs::read_dir(site.outside()).unwrap().count(), 1);
    let secret = site.outside().join("secret");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&secret).unwrap().permissions());
    assert_ne!(mode & 0o777, 0o604);
}

#[test]
fn home_is_opened_or_created_inside_the_storage_root_only() {
    let site = Site::new();
    symlink(site.outside(), site.storage().join("mallory")).unwrap();
    symlink("/alice", site.storage().join("other")).unwrap();
    let open = |home: &str, create| Jail::open(&site.storage(), &path(home), create, MODES);
    assert!(matches!(open("/bob", false), Err(FileError::NotFound)));
    assert!(open("/mallory", false).is_err());
    assert!(open("/mallory", true).is_err());
    assert!(open("/other/sub/dir", true).is_ok());
    assert!(site.home("sub/dir").is_dir());
    assert!(open("/", false).is_ok());
    assert_eq!(fs::read_dir(site.outside()).unwrap().count(), 1);
}

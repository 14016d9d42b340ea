//! Tests that a file has one writer at a time, ensured by the storage alone. Several jails stand for
//! several nodes.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use proptest::prelude::*;

use super::*;
use crate::jail::lock::WriterLock;

const ATOMIC: UploadPlacement<'_> = UploadPlacement::Atomic { owner: "alice", rivals: RivalPolicy::Replace };
const RESPECTFUL: UploadPlacement<'_> =
    UploadPlacement::Atomic { owner: "alice", rivals: RivalPolicy::Respect };
const RESUME: WriteMode = WriteMode::Resume { offset: 4, replace: true };

/// Opens `/file` and writes `data` at the start offset of the upload.
fn upload(
    jail: &Jail,
    mode: WriteMode,
    placement: UploadPlacement<'_>,
    data: &str,
) -> Result<Upload, FileError> {
    let mut upload = jail.open_write(&path("/file"), mode, placement)?;
    let offset = upload.begin()?;
    upload.prepare_write(data.len() as u64)?.write_all_at(data.as_bytes(), offset)?;
    Ok(upload)
}

impl Site {
    /// A jail of the same home on another node.
    fn node(&self) -> Jail {
        Jail::open(&self.storage(), &path("/alice"), false, MODES).unwrap()
    }
}

#[test]
fn second_direct_upload_is_refused_under_every_name_of_the_file() {
    let (site, names) = (Site::new(), ["/file", "/hard", "/soft"]);
    fs::write(site.home("file"), "old").unwrap();
    fs::hard_link(site.home("file"), site.home("hard")).unwrap();
    symlink("file", site.home("soft")).unwrap();
    let node = site.node();
    let first = upload(&site.jail, WriteMode::Replace, UploadPlacement::Direct, "content").unwrap();
    for name in names {
        for mode in [WriteMode::Replace, WriteMode::Append, RESUME] {
            for placement in [UploadPlacement::Direct, ATOMIC] {
                let is_direct = placement == UploadPlacement::Direct || mode == WriteMode::Append;
                let second = node.open_write(&path(name), mode, placement);
                assert_eq!(matches!(second, Err(FileError::BeingWritten)), is_direct, "{name} {mode:?}");
            }
        }
    }
    first.finish(true, 7).unwrap();
    upload(&node, WriteMode::Replace, UploadPlacement::Direct, "again").unwrap().finish(true, 5).unwrap();
    assert_eq!(site.read("file"), "again");
}

#[test]
fn refused_upload_does_not_remove_a_file_that_another_upload_locked() {
    let site = Site::new();
    let first = site.jail.open_write(&path("/file"), WriteMode::Replace, UploadPlacement::Direct).unwrap();
    let second = site.node().open_write(&path("/file"), WriteMode::Replace, UploadPlacement::Direct);
    assert!(matches!(second, Err(FileError::BeingWritten)));
    assert_eq!(site.names(), ["file"]);
    first.finish(false, 0).unwrap();
    assert_eq!(site.names(), ["file"]);
}

#[test]
fn upload_fails_if_its_file_was_renamed_removed_or_replaced() {
    type Change = fn(&Site);
    let changes: [Change; 6] = [
        |site| fs::rename(site.home("file"), site.home("other")).unwrap(),
        |site| fs::remove_file(site.home("file")).unwrap(),
        |site| {
            fs::write(site.home("new"), "new").unwrap();
            fs::rename(site.home("new"), site.home("file")).unwrap();
        },
        |site| fs::rename(site.home(""), site.storage().join("bob")).unwrap(),
        |site| fs::write(site.home("file"), "contents").unwrap(),
        |site| fs::write(site.home("file"), "").unwrap(),
    ];
    for (number, change) in changes.iter().enumerate() {
        for mode in [WriteMode::Replace, WriteMode::Append, WriteMode::CreateNew] {
            let site = Site::new();
            let upload = upload(&site.jail, mode, UploadPlacement::Direct, "content").unwrap();
            change(&site);
            let finished = upload.finish(true, 7);
            assert!(matches!(finished, Err(FileError::Stale)), "{number} {mode:?}: {finished:?}");
        }
    }
}

#[test]
fn upload_through_a_link_fails_if_the_link_or_its_target_changed() {
    let site = Site::new();
    fs::write(site.home("one"), "").unwrap();
    fs::write(site.home("two"), "").unwrap();
    symlink("one", site.home("file")).unwrap();
    upload(&site.jail, WriteMode::Replace, UploadPlacement::Direct, "content")
        .unwrap()
        .finish(true, 7)
        .unwrap();
    assert_eq!(site.read("one"), "content");
    let moved = upload(&site.jail, WriteMode::Replace, UploadPlacement::Direct, "moved").unwrap();
    fs::rename(site.home("one"), site.home("three")).unwrap();
    assert!(matches!(moved.finish(true, 5), Err(FileError::Stale)));
    fs::rename(site.home("three"), site.home("one")).unwrap();
    let led_away = upload(&site.jail, WriteMode::Replace, UploadPlacement::Direct, "other").unwrap();
    fs::remove_file(site.home("file")).unwrap();
    symlink("two", site.home("file")).unwrap();
    assert!(matches!(led_away.finish(true, 5), Err(FileError::Stale)));
    assert_eq!(site.read("two"), "");
}

#[test]
fn atomic_upload_is_not_published_if_its_directory_was_renamed() {
    let site = Site::new();
    fs::create_dir(site.home("d1")).unwrap();
    let mut upload = site.jail.open_write(&path("/d1/file"), WriteMode::Replace, ATOMIC).unwrap();
    upload.begin().unwrap();
    upload.prepare_write(3).unwrap().write_all_at(b"new", 0).unwrap();
    fs::rename(site.home("d1"), site.home("d2")).unwrap();
    assert!(matches!(upload.finish(true, 3), Err(FileError::Stale)));
    assert!(!site.home("d2/file").exists());
}

#[test]
fn atomic_upload_that_lost_its_partial_file_cannot_publish() {
    let site = Site::new();
    let node = site.node();
    let lost = upload(&site.jail, WriteMode::Replace, ATOMIC, "first, and longer").unwrap();
    let second = upload(&node, WriteMode::Replace, ATOMIC, "second").unwrap();
    second.finish(true, 6).unwrap();
    lost.file().write_all_at(b" goes on", 17).unwrap();
    assert!(matches!(lost.finish(true, 25), Err(FileError::WriteRightLost)));
    assert_eq!((site.read("file"), site.names()), ("second".into(), vec!["file".into()]));

    // The same if the other upload is still running or was aborted.
    let lost = upload(&site.jail, WriteMode::Replace, ATOMIC, "first").unwrap();
    let second = upload(&node, WriteMode::Replace, ATOMIC, "other").unwrap();
    assert!(matches!(lost.finish(true, 5), Err(FileError::WriteRightLost)));
    second.abandon();
    let lost = upload(&site.jail, WriteMode::Replace, ATOMIC, "first").unwrap();
    drop(lost);
    assert_eq!(node.partial_size(&path("/file"), "alice").unwrap(), Some(5));
    let mut resumed = node.open_write(&path("/file"), RESUME, ATOMIC).unwrap();
    assert_eq!(resumed.begin().unwrap(), 4);
    resumed.prepare_write(4).unwrap().write_all_at(b"/end", 4).unwrap();
    resumed.finish(true, 8).unwrap();
    assert_eq!((site.read("file"), site.names()), ("firs/end".into(), vec!["file".into()]));
}

#[test]
fn respect_policy_never_replaces_a_running_atomic_upload() {
    let site = Site::new();
    let node = site.node();
    let first = upload(&site.jail, WriteMode::Replace, RESPECTFUL, "first").unwrap();
    let second = node.open_write(&path("/file"), WriteMode::Replace, RESPECTFUL);
    assert!(matches!(second, Err(FileError::BeingWritten)));
    first.abandon();
    let second = upload(&node, WriteMode::Replace, RESPECTFUL, "second").unwrap();
    let resumed = site.jail.open_write(&path("/file"), RESUME, RESPECTFUL);
    assert!(matches!(resumed, Err(FileError::BeingWritten)));
    second.finish(true, 6).unwrap();
    assert_eq!((site.read("file"), site.names()), ("second".into(), vec!["file".into()]));
    let direct = upload(&site.jail, WriteMode::Replace, UploadPlacement::Direct, "third").unwrap();
    let atomic = node.open_write(&path("/file"), WriteMode::Replace, RESPECTFUL);
    assert!(matches!(atomic, Err(FileError::BeingWritten)));
    direct.finish(true, 5).unwrap();
}

#[test]
fn upload_before_its_first_byte_blocks_resuming_but_keeps_the_partial_file() {
    let site = Site::new();
    let node = site.node();
    upload(&site.jail, WriteMode::Replace, ATOMIC, "broken").unwrap().abandon();
    let waiting = site.jail.open_write(&path("/file"), WriteMode::Replace, ATOMIC).unwrap();
    assert!(matches!(node.open_write(&path("/file"), RESUME, ATOMIC), Err(FileError::BeingWritten)));
    drop(waiting);
    assert_eq!(site.names().len(), 1);
    let changes = {
        let mut again = site.jail.open_write(&path("/file"), WriteMode::Replace, ATOMIC).unwrap();
        again.begin().unwrap();
        again.prepare_write(3).unwrap().write_all_at(b"new", 0).unwrap();
        let changes = again.changes();
        again.abandon();
        changes
    };
    assert_eq!(changes.so_far(), (3 - 6, 0), "the old partial file was replaced");
    assert_eq!(site.names().len(), 1);
}

#[test]
fn directory_with_a_running_atomic_upload_is_not_removed() {
    let site = Site::new();
    fs::create_dir(site.home("dir")).unwrap();
    let mut upload = site.jail.open_write(&path("/dir/file"), WriteMode::Replace, ATOMIC).unwrap();
    let node = site.node();
    assert!(matches!(
        node.remove_directory(&path("/dir"), &Changes::default()),
        Err(FileError::BeingWritten)
    ));
    upload.begin().unwrap();
    upload.prepare_write(3).unwrap().write_all_at(b"new", 0).unwrap();
    assert!(matches!(
        node.remove_directory(&path("/dir"), &Changes::default()),
        Err(FileError::BeingWritten)
    ));
    assert!(matches!(node.remove_partial(&path("/dir/file"), "alice"), Err(FileError::BeingWritten)));
    upload.finish(true, 3).unwrap();
    assert_eq!(site.read("dir/file"), "new");
}

#[test]
fn upload_whose_guard_refuses_changes_nothing() {
    let site = Site::new();
    let may_not = |mut upload: Upload| {
        upload.guard_by(|| false);
        upload
    };
    fs::write(site.home("file"), "old").unwrap();
    let mut late =
        may_not(site.jail.open_write(&path("/file"), WriteMode::Replace, UploadPlacement::Direct).unwrap());
    late.begin().unwrap();
    assert!(matches!(late.prepare_write(1), Err(FileError::WriteRightLost)));
    drop(late);
    assert_eq!(site.read("file"), "old");
    for end in [Upload::abandon, Upload::keep_if_durable, Upload::discard, Upload::leave_untouched] {
        end(may_not(upload(&site.jail, WriteMode::Append, UploadPlacement::Direct, " new").unwrap()));
    }
    assert_eq!(site.read("file"), "old new new new new");
    for placement in [UploadPlacement::Direct, ATOMIC] {
        let upload = may_not(upload(&site.jail, WriteMode::Replace, placement, "other").unwrap());
        assert!(matches!(upload.finish(true, 5), Err(FileError::WriteRightLost)));
    }
    assert_eq!(site.read("file"), "other");
    assert_eq!(site.jail.partial_size(&path("/file"), "alice").unwrap(), Some(5));
}

#[test]
fn upload_without_locks_is_not_fenced() {
    let site = Site::new();
    let mut node = site.node();
    node.set_locks(LockMode::Off);
    let first = upload(&site.jail, WriteMode::Replace, UploadPlacement::Direct, "first").unwrap();
    let second = upload(&node, WriteMode::Replace, UploadPlacement::Direct, "second").unwrap();
    assert_eq!(second.lock, WriterLock::NotSupported);
    assert!(!second.is_fenced());
    assert!(node.lock_for_change(&path("/file")).unwrap().is_none());
    drop((first, second));
    node.set_locks(LockMode::Cluster);
    let third = node.open_write(&path("/file"), WriteMode::Replace, UploadPlacement::Direct).unwrap();
    assert!(third.is_fenced());
}

/// One upload of a schedule and its state.
struct Writer {
    jail: Jail,
    mode: WriteMode,
    placement: UploadPlacement<'static>,
    state: WriterState,
    /// Bytes written by this writer.
    written: usize,
}

enum WriterState {
    Waiting,
    Opened(Upload),
    /// `found` is the content before `start` that the upload keeps.
    Writing {
        upload: Upload,
        found: Vec<u8>,
        start: u64,
    },
    /// The upload has taken its unique name.
    Claimed {
        upload: Upload,
        found: Vec<u8>,
        start: u64,
    },
    Ended,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Opens the upload, begins it, or writes a piece.
    Advance,
    /// Opens or begins the upload, stops writing and takes the unique name, or publishes.
    End,
    Abandon,
    /// The node dies: its locks are released, and its files stay as they are.
    Crash,
}

/// The byte that a writer writes: it tells which upload wrote a file.
fn byte(writer: usize) -> u8 {
    b'a' + writer as u8
}

/// Returns true if all bytes come from one writer.
fn has_one_writer(content: &[u8]) -> bool {
    content.iter().all(|byte| *byte == content[0])
}

/// Begins the upload and reads the content that it keeps.
fn begin(mut upload: Upload) -> WriterState {
    let start = match upload.begin() {
        Ok(start) => start,
        Err(FileError::BadOffset) => return WriterState::Ended,
        Err(error) => panic!("{error:?}"),
    };
    match upload.prepare_write(2) {
        Ok(file) => {
            let mut found = vec![0; start as usize];
            let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            again.read_exact_at(&mut found, 0).unwrap();
            WriterState::Writing { upload, found, start }
        }
        Err(FileError::WriteRightLost) => WriterState::Ended,
        Err(error) => panic!("{error:?}"),
    }
}

impl Writer {
    /// Takes one step. If the step completes the upload, checks that the file has its name and its
    /// whole content.
    fn step(&mut self, number: usize, step: Step, site: &Site) {
        let state = std::mem::replace(&mut self.state, WriterState::Ended);
        self.state = match (state, step) {
            (WriterState::Ended, _) | (WriterState::Waiting, Step::Abandon | Step::Crash) => {
                WriterState::Ended
            }
            (WriterState::Waiting, _) => {
                match self.jail.open_write(&path("/file"), self.mode, self.placement) {
                    Ok(upload) => WriterState::Opened(upload),
                    Err(FileError::BeingWritten | FileError::BadOffset | FileError::Stale) => {
                        WriterState::Ended
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            (
                WriterState::Opened(upload)
                | WriterState::Writing { upload, .. }
                | WriterState::Claimed { upload, .. },
                Step::Abandon | Step::Crash,
            ) => {
                match step {
                    Step::Abandon => upload.abandon(),
                    _ => upload.crash(),
                }
                WriterState::Ended
            }
            (WriterState::Opened(upload), _) => begin(upload),
            (WriterState::Writing { upload, found, start }, Step::Advance) => {
                upload.file().write_all_at(&[byte(number); 2], start + self.written as u64).unwrap();
                self.written += 2;
                WriterState::Writing { upload, found, start }
            }
            (WriterState::Writing { mut upload, found, start }, Step::End) => match upload.take_unique_name()
            {
                Ok(()) => WriterState::Claimed { upload, found, start },
                Err(FileError::WriteRightLost) => WriterState::Ended,
                Err(error) => panic!("{error:?}"),
            },
            (WriterState::Claimed { upload, found, start }, Step::Advance | Step::End) => {
                let end = start + self.written as u64;
                assert_eq!(
                    upload.file().metadata().unwrap().size(),
                    end,
                    "no other upload has written the file"
                );
                let content = [&found[..], &vec![byte(number); self.written]].concat();
                let named = upload.rename_to_final_name().and_then(|()| upload.check_still_named());
                match named {
                    Ok(()) => {
                        assert_eq!(fs::read(site.home("file")).unwrap(), content);
                        upload.crash();
                        WriterState::Ended
                    }
                    Err(FileError::Stale) => WriterState::Ended,
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
    }
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Advance),
        4 => Just(Step::End),
        1 => Just(Step::Abandon),
        1 => Just(Step::Crash),
    ]
}

fn modes() -> impl Strategy<Value = (WriteMode, UploadPlacement<'static>)> {
    let mode = prop_oneof![
        4 => Just(WriteMode::Replace),
        1 => Just(WriteMode::Append),
        2 => Just(WriteMode::Resume { offset: 2, replace: true }),
    ];
    (mode, prop_oneof![Just(UploadPlacement::Direct), Just(ATOMIC), Just(RESPECTFUL)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// A file of uploads that begin at 0 contains bytes of one writer only. A resumed or appended file
    /// contains its old content and then bytes of one writer. A name never shows anything else.
    #[test]
    fn file_never_mixes_bytes_of_two_uploads_in_any_order_of_steps(
        is_there in any::<bool>(),
        writers in prop::collection::vec(modes(), 2..4),
        schedule in prop::collection::vec((0..4usize, steps()), 1..60),
    ) {
        let site = Site::new();
        if is_there {
            fs::write(site.home("file"), "zzzz").unwrap();
        }
        let only_from_zero = writers.iter().all(|(mode, _)| *mode == WriteMode::Replace);
        let mut writers: Vec<_> = writers
            .into_iter()
            .map(|(mode, placement)| Writer {
                jail: site.node(), mode, placement, state: WriterState::Waiting, written: 0,
            })
            .collect();
        for (number, step) in schedule {
            let Some(writer) = writers.get_mut(number) else { continue };
            writer.step(number, step, &site);
            if only_from_zero && let Ok(content) = fs::read(site.home("file")) {
                prop_assert!(has_one_writer(&content), "{}", content.escape_ascii());
            }
        }
        // Partial files also contain bytes of one writer only, because they may be resumed.
        if only_from_zero {
            for name in site.names() {
                let content = fs::read(site.home(&name)).unwrap();
                prop_assert!(has_one_writer(&content), "{name}: {}", content.escape_ascii());
            }
        }
    }
}

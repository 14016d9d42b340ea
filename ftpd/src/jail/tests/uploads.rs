//! Tests of uploads: which data is kept or removed, and when a file appears.

use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;

const ATOMIC: UploadPlacement<'_> = UploadPlacement::Atomic { owner: "alice", rivals: RivalPolicy::Replace };

impl Site {
    fn upload(&self, name: &str, mode: WriteMode, placement: UploadPlacement<'_>) -> Upload {
        self.jail.open_write(&path(name), mode, placement).unwrap()
    }
}

fn write(upload: &mut Upload, data: &str) {
    let offset = upload.begin().unwrap();
    upload.prepare_write(3).unwrap().write_all_at(data.as_bytes(), offset).unwrap();
}

#[test]
fn file_is_not_truncated_before_the_first_byte_is_written() {
    let site = Site::new();
    fs::write(site.home("file"), "old content").unwrap();
    for mode in [WriteMode::Replace, WriteMode::Append, WriteMode::Resume { offset: 3, replace: true }] {
        site.upload("/file", mode, UploadPlacement::Direct).abandon();
        drop(site.upload("/file", mode, UploadPlacement::Direct));
        site.upload("/file", mode, UploadPlacement::Direct).discard();
        assert_eq!(site.read("file"), "old content", "{mode:?}");
    }
    for mode in [WriteMode::Replace, WriteMode::Resume { offset: 3, replace: true }] {
        for end in [Upload::abandon, Upload::keep_if_durable, Upload::discard] {
            let mut upload = site.upload("/file", mode, UploadPlacement::Direct);
            upload.begin().unwrap();
            end(upload);
            assert_eq!(site.read("file"), "old content", "{mode:?}");
        }
    }
    let mut upload = site.upload("/file", WriteMode::Replace, UploadPlacement::Direct);
    assert!(matches!(upload.prepare_write(3), Err(FileError::BadOffset)), "the upload has not begun");
    assert_eq!(upload.begin().unwrap(), 0);
    assert_eq!(site.read("file"), "old content");
    upload.prepare_write(3).unwrap().write_all_at(b"new", 0).unwrap();
    upload.finish(true, 3).unwrap();
    assert_eq!(site.read("file"), "new");
}

#[test]
fn aborted_upload_keeps_received_data_and_can_be_resumed() {
    let site = Site::new();
    let mut upload = site.upload("/file", WriteMode::Replace, UploadPlacement::Direct);
    write(&mut upload, "0123456789");
    upload.abandon();
    assert_eq!(site.read("file"), "0123456789");
    let mut upload =
        site.upload("/file", WriteMode::Resume { offset: 4, replace: true }, UploadPlacement::Direct);
    assert_eq!(upload.begin().unwrap(), 4);
    upload.prepare_write(3).unwrap();
    assert_eq!(site.read("file"), "0123", "bytes after the offset are removed");
    upload.prepare_write(3).unwrap().write_all_at(b"abc", 4).unwrap();
    upload.finish(true, 7).unwrap();
    assert_eq!(site.read("file"), "0123abc");
    let mut upload = site.upload("/file", WriteMode::Append, UploadPlacement::Direct);
    write(&mut upload, "!");
    upload.finish(false, 8).unwrap();
    assert_eq!(site.read("file"), "0123abc!");
}

#[test]
fn resume_without_replace_never_truncates() {
    let site = Site::new();
    fs::write(site.home("file"), "0123").unwrap();
    let resume = WriteMode::Resume { offset: 4, replace: false };
    let mut upload = site.upload("/file", resume, UploadPlacement::Direct);
    // Another upload of the same file has ended after this one was opened.
    fs::write(site.home("file"), "0123456789").unwrap();
    assert!(matches!(upload.begin(), Err(FileError::BadOffset)));
    drop(upload);
    assert_eq!(site.read("file"), "0123456789");
}

#[test]
fn resume_offset_beyond_the_end_is_refused() {
    let site = Site::new();
    fs::write(site.home("file"), "123").unwrap();
    for (name, placement) in
        [("/file", UploadPlacement::Direct), ("/none", UploadPlacement::Direct), ("/file", ATOMIC)]
    {
        let mode = WriteMode::Resume { offset: 4, replace: true };
        let opened = site.jail.open_write(&path(name), mode, placement);
        assert!(matches!(opened, Err(FileError::BadOffset)), "{name} {placement:?}");
    }
    let mut upload =
        site.upload("/file", WriteMode::Resume { offset: 3, replace: true }, UploadPlacement::Direct);
    fs::write(site.home("file"), "1").unwrap();
    assert!(matches!(upload.begin(), Err(FileError::BadOffset)));
    drop(upload);
    assert_eq!(site.names(), ["file"]);
    assert_eq!(site.read("file"), "1");
}

#[test]
fn created_file_without_data_is_removed_unless_the_upload_finished() {
    let site = Site::new();
    for placement in [UploadPlacement::Direct, ATOMIC] {
        drop(site.upload("/new", WriteMode::Replace, placement));
        drop(site.upload("/new", WriteMode::CreateNew, placement));
        let mut upload = site.upload("/new", WriteMode::Replace, placement);
        upload.begin().unwrap();
        upload.abandon();
        assert!(site.names().is_empty(), "{placement:?}");
    }
    fs::write(site.home("empty"), "").unwrap();
    drop(site.upload("/empty", WriteMode::Replace, UploadPlacement::Direct));
    assert_eq!(site.names(), ["empty"], "the file existed before");
    site.upload("/complete", WriteMode::CreateNew, UploadPlacement::Direct).finish(true, 0).unwrap();
    assert_eq!(site.names(), ["complete", "empty"], "a finished empty upload is kept");
}

#[test]
fn keep_if_durable_keeps_data_written_before_a_storage_error() {
    let site = Site::new();
    fs::write(site.home("file"), "before").unwrap();
    let mut upload = site.upload("/file", WriteMode::Append, UploadPlacement::Direct);
    write(&mut upload, " and after");
    upload.keep_if_durable();
    assert_eq!(site.read("file"), "before and after");
    let mut upload = site.upload("/new", WriteMode::Replace, ATOMIC);
    write(&mut upload, "data");
    upload.keep_if_durable();
    assert_eq!(site.jail.partial_size(&path("/new"), "alice").unwrap(), Some(4));
    // No byte could be written.
    for placement in [UploadPlacement::Direct, ATOMIC] {
        let mut upload = site.upload("/empty", WriteMode::Replace, placement);
        upload.begin().unwrap();
        upload.prepare_write(1).unwrap();
        upload.keep_if_durable();
    }
    assert_eq!(site.names().len(), 2, "the file and the partial file");
}

#[test]
fn discarded_upload_restores_the_previous_content() {
    let site = Site::new();
    fs::write(site.home("file"), "before").unwrap();
    let mut upload = site.upload("/file", WriteMode::Append, UploadPlacement::Direct);
    write(&mut upload, " and after");
    upload.discard();
    assert_eq!(site.read("file"), "before");
    for placement in [UploadPlacement::Direct, ATOMIC] {
        let mut upload = site.upload("/new", WriteMode::Replace, placement);
        write(&mut upload, "data");
        upload.discard();
        assert_eq!(site.names(), ["file"]);
    }
}

#[test]
fn create_new_never_changes_an_existing_file() {
    let site = Site::new();
    fs::write(site.home("file"), "old").unwrap();
    for placement in [UploadPlacement::Direct, ATOMIC] {
        let opened = site.jail.open_write(&path("/file"), WriteMode::CreateNew, placement);
        assert!(matches!(opened, Err(FileError::AlreadyExists)), "{placement:?}");
    }
    let mut upload = site.upload("/late", WriteMode::CreateNew, ATOMIC);
    write(&mut upload, "mine");
    fs::write(site.home("late"), "theirs").unwrap();
    assert!(matches!(upload.finish(true, 4), Err(FileError::AlreadyExists)));
    assert_eq!(site.read("late"), "theirs");
    assert_eq!(site.names(), ["file", "late"]);
}

#[test]
fn atomic_upload_appears_only_when_complete() {
    let site = Site::new();
    fs::write(site.home("file"), "old").unwrap();
    let reader = site.jail.open_read(&path("/file")).unwrap();
    let mut upload = site.upload("/file", WriteMode::Replace, ATOMIC);
    write(&mut upload, "new content");
    assert_eq!(site.read("file"), "old");
    assert_eq!(site.jail.entries(&VirtualPath::root()).unwrap().count(), 1);
    upload.finish(true, 11).unwrap();
    assert_eq!(site.read("file"), "new content");
    assert_eq!(site.names(), ["file"]);
    let mut old = String::new();
    (&reader.file).read_to_string(&mut old).unwrap();
    assert_eq!(old, "old", "an open reader keeps reading the old file");
    assert_eq!(fs::metadata(site.home("file")).unwrap().mode() & 0o777 & !MODES.file, 0);
}

#[test]
fn aborted_atomic_upload_is_resumed_by_its_owner_on_any_node() {
    let site = Site::new();
    let file = path("/file");
    let mut upload = site.upload("/file", WriteMode::Replace, ATOMIC);
    write(&mut upload, "0123456789");
    upload.abandon();
    assert!(!site.home("file").exists());
    // Another node that reaches the same directory by another path.
    let whole = Jail::open(&site.storage(), &VirtualPath::root(), false, MODES).unwrap();
    assert_eq!(whole.partial_size(&path("/alice/file"), "alice").unwrap(), Some(10));
    assert_eq!(whole.partial_size(&path("/alice/file"), "bob").unwrap(), None);
    assert_eq!(site.jail.partial_size(&path("/other"), "alice").unwrap(), None);

    let resume = WriteMode::Resume { offset: 11, replace: true };
    assert!(matches!(site.jail.open_write(&file, resume, ATOMIC), Err(FileError::BadOffset)));
    let resume = WriteMode::Resume { offset: 5, replace: true };
    let mut upload = whole.open_write(&path("/alice/file"), resume, ATOMIC).unwrap();
    assert_eq!(upload.begin().unwrap(), 5);
    upload.prepare_write(3).unwrap().write_all_at(b"abc", 5).unwrap();
    upload.finish(true, 8).unwrap();
    assert_eq!(site.read("file"), "01234abc");
    assert_eq!(site.jail.partial_size(&file, "alice").unwrap(), None);
    assert_eq!(site.names(), ["file"]);
}

#[test]
fn new_atomic_upload_replaces_the_partial_file_with_its_first_byte() {
    let site = Site::new();
    let file = path("/file");
    let mut upload = site.upload("/file", WriteMode::Replace, ATOMIC);
    write(&mut upload, "a long first attempt");
    drop(upload);
    drop(site.upload("/file", WriteMode::Replace, ATOMIC));
    assert_eq!(site.jail.partial_size(&file, "alice").unwrap(), Some(20));
    let mut upload = site.upload("/file", WriteMode::Replace, ATOMIC);
    write(&mut upload, "short");
    upload.finish(false, 5).unwrap();
    assert_eq!(site.read("file"), "short");

    drop({
        let mut upload = site.upload("/file", WriteMode::Replace, ATOMIC);
        write(&mut upload, "again");
        upload
    });
    assert!(site.jail.remove_partial(&file, "alice").unwrap().is_some());
    assert!(site.jail.remove_partial(&file, "alice").unwrap().is_none());
    assert_eq!(site.read("file"), "short");
}

#[test]
fn append_in_atomic_mode_changes_the_file_itself() {
    let site = Site::new();
    fs::write(site.home("log"), "one").unwrap();
    let mut upload = site.upload("/log", WriteMode::Append, ATOMIC);
    write(&mut upload, " two");
    upload.finish(true, 7).unwrap();
    assert_eq!(site.read("log"), "one two");
    assert_eq!(site.names(), ["log"]);
}

#[test]
fn aborted_upload_does_not_remove_another_file_with_its_name() {
    let site = Site::new();
    let upload = site.upload("/new", WriteMode::CreateNew, UploadPlacement::Direct);
    fs::write(site.home("other"), "").unwrap();
    fs::rename(site.home("other"), site.home("new")).unwrap();
    drop(upload);
    assert_eq!(site.names(), ["new"]);
}

#[test]
fn directory_with_only_partial_files_can_be_removed() {
    let site = Site::new();
    fs::create_dir(site.home("dir")).unwrap();
    let mut upload = site.upload("/dir/file", WriteMode::Replace, ATOMIC);
    write(&mut upload, "part");
    upload.abandon();
    fs::write(site.home("dir/other"), "").unwrap();
    let refused = site.jail.remove_directory(&path("/dir"), &Changes::default());
    assert!(matches!(refused, Err(FileError::DirectoryNotEmpty)), "{refused:?}");
    assert_eq!(site.jail.partial_size(&path("/dir/file"), "alice").unwrap(), Some(4));
    fs::remove_file(site.home("dir/other")).unwrap();
    site.jail.remove_directory(&path("/dir"), &Changes::default()).unwrap();
    assert!(!site.home("dir").exists());
}

#[test]
fn resumed_atomic_upload_without_replace_never_replaces_a_file() {
    let site = Site::new();
    let mut upload = site.upload("/file", WriteMode::CreateNew, ATOMIC);
    write(&mut upload, "part");
    upload.abandon();
    let mut upload = site.upload("/file", WriteMode::Resume { offset: 4, replace: false }, ATOMIC);
    assert_eq!(upload.begin().unwrap(), 4);
    // Another session creates the file first.
    fs::write(site.home("file"), "other").unwrap();
    assert!(matches!(upload.finish(true, 4), Err(FileError::AlreadyExists)));
    assert_eq!(site.read("file"), "other");
}

#[test]
fn only_existing_never_creates_a_file() {
    let site = Site::new();
    let named = path("/file");
    for (mode, placement) in [
        (WriteMode::Replace, UploadPlacement::Direct),
        (WriteMode::Replace, ATOMIC),
        (WriteMode::Append, UploadPlacement::Direct),
    ] {
        let open = |removed: bool| {
            fs::write(site.home("file"), "content").unwrap();
            let target = site.jail.upload_target(&named).unwrap().only_existing();
            if removed {
                fs::remove_file(site.home("file")).unwrap();
            }
            target.open(mode, placement)
        };
        assert!(open(false).is_ok(), "{mode:?}");
        if placement == UploadPlacement::Direct {
            // Removed between the look-up and the open.
            assert!(matches!(open(true), Err(FileError::NotFound)), "{mode:?}");
        } else {
            fs::remove_file(site.home("file")).unwrap();
        }
        let gone = site.jail.upload_target(&named).unwrap().only_existing().open(mode, placement);
        assert!(matches!(gone, Err(FileError::NotFound)), "{mode:?}");
        assert_eq!(fs::read_dir(site.home("")).unwrap().count(), 0);
    }
}

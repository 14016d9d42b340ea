//! The files that workloads use, in the home that all servers share.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use crate::client::pattern;

pub(crate) const GIB: u64 = 1 << 30;
/// Name of a file of 1 GiB.
pub(crate) const LARGE: &str = "large";
/// Name of a file of 256 MiB.
pub(crate) const MEDIUM: &str = "medium";
/// Number of small files.
pub(crate) const SMALL_FILES: usize = 2000;
/// Size of a small file in bytes.
pub(crate) const SMALL: u64 = 4096;
/// Entries of the directory `entries`.
pub(crate) const ENTRIES: usize = 10_000;
/// Entries of the directory `million`.
pub(crate) const MILLION: usize = 1_000_000;

/// Creates all files except the directory of a million entries.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn make(home: &Path) -> io::Result<()> {
    for directory in ["small", "entries", "uploads"] {
        fs::create_dir_all(home.join(directory))?;
    }
    // Servers that change to the user's identity must be able to write here.
    fs::set_permissions(home.join("uploads"), fs::Permissions::from_mode(0o777))?;
    let block = pattern(1 << 20);
    for (name, mebibytes) in [(LARGE, 1024), (MEDIUM, 256)] {
        let mut file = File::create(home.join(name))?;
        for i in 0..mebibytes {
            file.write_all(&block[i..])?;
            file.write_all(&block[..i])?;
        }
    }
    for i in 0..SMALL_FILES {
        fs::write(home.join(small(i)), &block[i..i + SMALL as usize])?;
    }
    for i in 0..ENTRIES {
        fs::write(home.join(format!("entries/report-2026-{i:05}.csv")), &block[..i % 97])?;
    }
    Ok(())
}

/// The path of a small file.
pub(crate) fn small(number: usize) -> String {
    format!("small/file-{number:05}")
}

/// Creates the directory of a million entries, unless it exists.
///
/// # Errors
/// A file cannot be created.
pub(crate) fn make_million(home: &Path) -> io::Result<()> {
    let directory = home.join("million");
    if fs::create_dir(&directory).is_ok() {
        for i in 0..MILLION {
            File::create(directory.join(format!("report-2026-{i:07}.csv")))?;
        }
    }
    Ok(())
}

/// Removes the files that a failed round has uploaded.
///
/// # Errors
/// A file cannot be removed.
pub(crate) fn clear_uploads(home: &Path) -> io::Result<()> {
    fs::read_dir(home.join("uploads"))?.try_for_each(|entry| fs::remove_file(entry?.path()))
}

/// Removes the uploaded files, after checking that there are `count` files of `size` bytes each.
///
/// # Errors
/// The number or a size differs, or a file cannot be removed.
pub(crate) fn check_and_remove_uploads(home: &Path, count: usize, size: u64) -> io::Result<()> {
    let (mut found, mut complete) = (0, 0);
    for entry in fs::read_dir(home.join("uploads"))? {
        let entry = entry?;
        found += 1;
        complete += usize::from(entry.metadata()?.len() == size);
        fs::remove_file(entry.path())?;
    }
    if (found, complete) == (count, count) {
        return Ok(());
    }
    Err(io::Error::other(format!("found {found} of {count} uploaded files; {complete} have the right size")))
}

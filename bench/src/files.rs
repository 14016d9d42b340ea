//! The files that workloads ask for, in every server's one home.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use crate::client::pattern;

pub const GIB: u64 = 1 << 30;
/// What one stream moves.
pub const LARGE: &str = "large";
/// What each of eight streams moves: a quarter of [`LARGE`].
pub const MEDIUM: &str = "medium";
pub const SMALL_FILES: usize = 2000;
pub const SMALL: u64 = 4096;
pub const ENTRIES: usize = 10_000;
pub const MILLION: usize = 1_000_000;

/// Makes what every workload needs.
///
/// # Errors
/// There is no room.
pub fn make(home: &Path) -> io::Result<()> {
    for directory in ["small", "entries", "uploads"] {
        fs::create_dir_all(home.join(directory))?;
    }
    // Servers that change to the user's identity write here too.
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
pub fn small(number: usize) -> String {
    format!("small/file-{number:05}")
}

/// Makes a directory with a million entries, if there is none.
///
/// # Errors
/// There is no room.
pub fn make_million(home: &Path) -> io::Result<()> {
    let directory = home.join("million");
    if fs::create_dir(&directory).is_ok() {
        for i in 0..MILLION {
            File::create(directory.join(format!("report-2026-{i:07}.csv")))?;
        }
    }
    Ok(())
}

/// Removes what a failed round has left.
///
/// # Errors
/// A file cannot be removed.
pub fn clear_uploads(home: &Path) -> io::Result<()> {
    fs::read_dir(home.join("uploads"))?.try_for_each(|entry| fs::remove_file(entry?.path()))
}

/// Removes uploads and wants so many of them of that size.
///
/// # Errors
/// There are others.
pub fn take_uploads(home: &Path, count: usize, size: u64) -> io::Result<()> {
    let (mut found, mut right) = (0, 0);
    for entry in fs::read_dir(home.join("uploads"))? {
        let entry = entry?;
        found += 1;
        right += usize::from(entry.metadata()?.len() == size);
        fs::remove_file(entry.path())?;
    }
    if (found, right) == (count, count) {
        return Ok(());
    }
    Err(io::Error::other(format!("of {count} uploads there are {found}, {right} of them whole")))
}

//! Tests of the jail on a real file system.

mod confinement;
mod names;
mod reading;
mod uploads;
mod writers;

use std::fs;
use std::path::PathBuf;

use super::*;

const MODES: Modes = Modes { file: 0o640, directory: 0o750 };

/// A storage root with the home `/alice`, and beside it the directory `outside` with a secret file.
struct Site {
    directory: tempfile::TempDir,
    jail: Jail,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("storage")).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), "secret").unwrap();
        let jail = Jail::open(&directory.path().join("storage"), &path("/alice"), true, MODES).unwrap();
        Self { directory, jail }
    }

    fn storage(&self) -> PathBuf {
        self.directory.path().join("storage")
    }

    fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    fn home(&self, name: &str) -> PathBuf {
        self.storage().join("alice").join(name)
    }

    /// Content of a file in the home.
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.home(name)).unwrap()
    }

    /// All names in the home, including hidden ones.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.home(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn path(text: &str) -> VirtualPath {
    VirtualPath::root().join(text.as_bytes()).unwrap()
}

//! The source files of the repository, as far as the build has them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders with source files. The Nix build copies some of them only.
const FOLDERS: [&str; 14] = [
    ".ci",
    "authd",
    "bench",
    "common",
    "deploy",
    "ftpctl",
    "ftpd",
    "fuzz",
    "nginx",
    "nix",
    "nixos-modules",
    "template",
    "tests",
    "vm-tests",
];

pub(crate) struct SourceFile {
    /// Relative to the repository.
    pub path: String,
    /// Relative to the crate's `src`, where the file belongs to a crate's `src`.
    pub module: String,
    pub text: String,
}

/// The files in the `src` folder of a crate, without its tests.
pub(crate) fn of_crate(name: &str) -> Vec<SourceFile> {
    let src = format!("{name}/src/");
    let files = read(&[name]).into_iter().filter_map(|file| {
        let module = file.path.strip_prefix(&src)?.to_owned();
        Some(SourceFile { module, ..file })
    });
    files
        .filter(|file| file.path.ends_with(".rs"))
        .filter(|file| !file.path.ends_with("/tests.rs") && !file.path.contains("/tests/"))
        .collect()
}

/// All source files.
pub(crate) fn all() -> Vec<SourceFile> {
    read(&FOLDERS)
}

/// The text of one file, by its path in the repository.
pub(crate) fn read_text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(folders: &[&str]) -> Vec<SourceFile> {
    let root = root();
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    left.push(root.join("dev"));
    let mut files = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let is_generated = path.ends_with("target") || path.ends_with("corpus");
            if !is_generated && let Ok(entries) = fs::read_dir(&path) {
                left.extend(entries.map(|entry| entry.unwrap().path()));
            }
        } else if is_source(&path) {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            files.push(SourceFile { module: path.clone(), path, text });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn is_source(path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some(extension) => ["rs", "nix", "lua", "sh"].contains(&extension),
        None => path.ends_with("dev") || path.ends_with(".ci/run"),
    }
}

//! Paths of the daemons under test.

use std::{env, path::PathBuf};

/// Path of the daemon `name` from the same build as the running test.
///
/// # Panics
/// The daemon is not built.
pub fn daemon(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a running test knows its executable");
    // target/debug/deps/TEST → target/debug/NAME
    let path = test.parent().and_then(|deps| deps.parent()).map(|debug| debug.join(name));
    match path {
        Some(path) if path.exists() => path,
        path => {
            panic!("{path:?} is not there: run `cargo build --workspace --bins` first, as ./dev test does")
        }
    }
}

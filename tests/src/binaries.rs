//! Where the daemons under test are.

use std::{env, path::PathBuf};

/// The built daemon `name`, from the same build as the running test.
///
/// # Panics
/// It is not built.
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

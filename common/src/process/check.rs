//! What both daemons print for `--check`.

use std::io::Write;

/// Prints that the settings are right, what they mean, and what was tried of them (`None`: without
/// `--deep`). Answers whether all of it works.
pub fn report(
    out: &mut impl Write,
    program: &str,
    summary: &[String],
    tried: Option<&[(String, Result<(), String>)]>,
) -> bool {
    // Where the output is closed, the exit status still tells.
    let _ = writeln!(out, "{program}: the settings are right");
    for line in summary {
        let _ = writeln!(out, "  {line}");
    }
    let Some(tried) = tried else {
        let _ = writeln!(out, "  (files and servers that they name were not tried: --check --deep does)");
        return true;
    };
    for (name, result) in tried {
        let _ = match result {
            Ok(()) => writeln!(out, "  ok      {name}"),
            Err(reason) => writeln!(out, "  FAILED  {name}: {reason}"),
        };
    }
    tried.iter().all(|(_, result)| result.is_ok())
}

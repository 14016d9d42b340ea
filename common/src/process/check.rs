//! The output of `--check` of both daemons.

use std::io::Write;

/// Prints that the settings are valid, a summary of them, and the results of the checks of files and
/// servers (`None` without `--deep`). Returns true if all checks succeeded.
pub fn report(
    out: &mut impl Write,
    program: &str,
    summary: &[String],
    checks: Option<&[(String, Result<(), String>)]>,
) -> bool {
    // If the output is closed, the exit status still reports the result.
    let _ = writeln!(out, "{program}: the settings are valid");
    for line in summary {
        let _ = writeln!(out, "  {line}");
    }
    let Some(checks) = checks else {
        let _ = writeln!(out, "  (files and servers were not checked: --check --deep does that)");
        return true;
    };
    for (name, result) in checks {
        let _ = match result {
            Ok(()) => writeln!(out, "  ok      {name}"),
            Err(reason) => writeln!(out, "  FAILED  {name}: {reason}"),
        };
    }
    checks.iter().all(|(_, result)| result.is_ok())
}

//! What the tests of images and packages need of the machine.

use std::{path::Path, process::Command};

/// Whether `deploy/sbom` can list the parts of a program: it needs Python 3.11, and cargo with the sources of
/// all crates. A user who may not read root's toolchain has neither.
///
/// # Errors
/// The reason, for the line of a skipped test.
pub fn can_list_parts() -> Result<(), String> {
    succeeds(Command::new("python3").args(["-c", "import tomllib"]))?;
    let version = succeeds(Command::new("rustc").arg("-vV"))?;
    // The sources for other platforms may be missing.
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    let metadata = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host];
    succeeds(Command::new("cargo").args(metadata).current_dir(env!("CARGO_MANIFEST_DIR"))).map(drop)
}

/// Whether `deploy/containers/image-root` can collect the files of an image.
///
/// # Errors
/// The reason, for the line of a skipped test.
pub fn can_fill_images() -> Result<(), String> {
    can_list_parts()?;
    succeeds(Command::new("objcopy").arg("--version"))?;
    succeeds(Command::new("ldd").arg("--version"))?;
    let authorities = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
    if authorities.iter().any(|path| Path::new(path).exists()) {
        Ok(())
    } else {
        Err("there are no certificate authorities (ca-certificates)".to_owned())
    }
}

/// Returns the standard output.
fn succeeds(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim_end()))
    }
}

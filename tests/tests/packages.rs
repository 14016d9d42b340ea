//! The Debian packages of `./dev package`, and the systemd units in them.
//!
//! A skipped test says so.
#![allow(clippy::print_stderr)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cluster_tests::{binaries, content::sha256, packaging::can_list_parts};
use tempfile::TempDir;

const PROGRAMS: [&str; 4] = ["ftpd", "authd", "ftp-relay", "ftpctl"];
/// The daemons, and the NixOS modules that run them.
const UNITS: [(&str, &str); 3] = [("ftpd", "node.nix"), ("authd", "auth.nix"), ("ftp-relay", "relay.nix")];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a command that must succeed. Returns its standard output.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{command:?}: {}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
    }
}

/// The packages of this build, without compression. `None` where they cannot be built.
fn packages() -> Option<TempDir> {
    if let Err(error) =
        can_list_parts().and_then(|()| run(Command::new("dpkg-deb").arg("--version")).map(drop))
    {
        eprintln!("skipped: packages cannot be built here: {error}");
        return None;
    }
    let output = tempfile::tempdir().unwrap();
    build(output.path());
    Some(output)
}

fn build(output: &Path) {
    let mut build = Command::new(repository().join("deploy/debian/build"));
    build.arg(binaries::daemon("ftpd").parent().unwrap()).arg(output).args(["0.1.0", "1700000000"]);
    run(build.env("PACKAGE_COMPRESSION", "none").env("CARGO_NET_OFFLINE", "true")).unwrap();
}

fn package(folder: &Path, program: &str) -> PathBuf {
    let start = format!("distributed-ftp-{program}_0.1.0_");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_wanted = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(&start);
    files.into_iter().find(is_wanted).unwrap_or_else(|| panic!("no package {start}"))
}

#[test]
fn packages_hold_the_program_its_unit_manual_pages_and_completions() {
    let Some(folder) = packages() else { return };
    for program in PROGRAMS {
        let file = package(folder.path(), program);
        let root = tempfile::tempdir().unwrap();
        run(Command::new("dpkg-deb").arg("--raw-extract").arg(&file).arg(root.path())).unwrap();
        let text = |path: &str| {
            fs::read_to_string(root.path().join(path))
                .unwrap_or_else(|error| panic!("{program}: {path}: {error}"))
        };
        let mut expected = vec![
            format!("usr/bin/{program}"),
            format!("usr/share/bash-completion/completions/{program}"),
            format!("usr/share/zsh/vendor-completions/_{program}"),
            format!("usr/share/fish/vendor_completions.d/{program}.fish"),
            format!("usr/share/doc/distributed-ftp-{program}/copyright"),
            format!("etc/distributed-ftp/{program}.toml.example"),
        ];
        if program == "ftpctl" {
            expected.push("usr/share/man/man1/ftpctl.1.gz".to_owned());
        } else {
            expected.extend([
                format!("usr/share/man/man8/{program}.8.gz"),
                format!("usr/share/man/man5/{program}.toml.5.gz"),
                format!("usr/share/man/man1/{program}-health.1.gz"),
            ]);
            let unit = text(&format!("usr/lib/systemd/system/{program}.service"));
            assert!(unit.contains(&format!("\nExecStart=/usr/bin/{program} --config /etc/distributed-ftp/")));
            for script in ["postinst", "prerm", "postrm"] {
                run(Command::new("sh").arg("-n").arg(root.path().join("DEBIAN").join(script))).unwrap();
            }
        }
        for path in expected {
            let length =
                fs::metadata(root.path().join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(length.len() > 0, "{path}");
        }
        let control = text("DEBIAN/control");
        assert!(
            control.contains("\nVersion: 0.1.0\n") && control.contains("\nDepends: libc6 (>= 2."),
            "{control}"
        );
        assert!(text("DEBIAN/conffiles").contains(&format!("/etc/distributed-ftp/{program}.toml.example")));
        run(Command::new(root.path().join("usr/bin").join(program)).arg("--version")).unwrap();
    }
    // The packages depend on their content only.
    let again = tempfile::tempdir().unwrap();
    build(again.path());
    for program in PROGRAMS {
        let hash = |folder: &Path| sha256(fs::read(package(folder, program)).unwrap());
        assert_eq!(hash(folder.path()), hash(again.path()), "{program}");
    }
}

#[test]
fn the_daemons_accept_the_examples_of_the_packages() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    for (program, _) in UNITS {
        let mut text = read(&format!("deploy/debian/examples/{program}.toml"));
        for name in ["node-token", "redis-password", "admin-token"] {
            let (credential, file) =
                (format!("/run/credentials/{program}.service/{name}"), secret.with_extension(name));
            fs::write(&file, format!("the {name} of a test, which is long enough\n")).unwrap();
            let unit = read(&format!("deploy/systemd/{program}.service"));
            assert_eq!(
                text.contains(&credential),
                unit.contains(&format!("\nLoadCredential={name}:/etc/distributed-ftp/")),
                "the settings and the unit of {program} name the same credentials: {name}"
            );
            text = text.replace(&credential, file.to_str().unwrap());
        }
        let file = directory.path().join(format!("{program}.toml"));
        fs::write(&file, text).unwrap();
        let mut check = Command::new(binaries::daemon(program));
        run(check.env_clear().arg("--check").arg("--config").arg(file)).unwrap();
    }
}

/// The settings of a unit's section `[Service]`; a key may have several lines.
fn service_section(unit: &str) -> BTreeMap<String, Vec<String>> {
    let (_, section) = unit.split_once("\n[Service]\n").expect("a section [Service]");
    let section = section.split("\n[").next().unwrap_or_default();
    let mut settings = BTreeMap::<String, Vec<String>>::new();
    for line in section.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("not a setting: {line}"));
        settings.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    settings
}

/// The attributes of nixos-modules/hardening.nix, as the lines of a unit.
fn hardening() -> BTreeMap<String, Vec<String>> {
    let text = read("nixos-modules/hardening.nix");
    let mut settings = BTreeMap::new();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    while let Some(line) = lines.next() {
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let unquoted = |text: &str| text.trim_matches('"').to_owned();
        let values = match value {
            "[" => lines.by_ref().take_while(|line| *line != "];").map(unquoted).collect::<Vec<_>>(),
            value => vec![unquoted(value.trim_end_matches(';'))],
        };
        // One line holds all families; each line of the filter adds or takes away calls.
        let values = if key == "RestrictAddressFamilies" { vec![values.join(" ")] } else { values };
        settings.insert(key.to_owned(), values);
    }
    settings
}

/// Settings of a unit that differ from hardening.nix, and the line of the NixOS module that does the same.
const DEVIATIONS: [(&str, &str, &str, &str); 8] = [
    ("ftpd", "PrivateUsers", "false", "PrivateUsers = false;"),
    ("ftpd", "RestrictSUIDSGID", "false", "RestrictSUIDSGID = false;"),
    ("ftpd", "SystemCallFilter", "+sched_setattr", "hardening.SystemCallFilter ++ [ \"sched_setattr\" ];"),
    ("ftpd", "CapabilityBoundingSet", BIND, "if hasPrivilegedPort then \"CAP_NET_BIND_SERVICE\" else \"\";"),
    ("ftp-relay", "PrivateUsers", "false", "PrivateUsers = privileged == [ ];"),
    ("ftp-relay", "CapabilityBoundingSet", BIND, "if privileged == [ ] then \"\" else privileged;"),
    // The same as in hardening.nix, with the port of the package.
    ("authd", "PrivateUsers", "true", "PrivateUsers = own.port >= 1024;"),
    ("authd", "CapabilityBoundingSet", "", "if own.port < 1024 then \"CAP_NET_BIND_SERVICE\" else \"\";"),
];
const BIND: &str = "CAP_NET_BIND_SERVICE";

#[test]
fn units_have_the_sandbox_of_the_nixos_modules() {
    let hardening = hardening();
    assert!(hardening.len() > 20 && hardening["SystemCallFilter"].len() == 3, "{hardening:?}");
    for (program, module) in UNITS {
        let unit = service_section(&read(&format!("deploy/systemd/{program}.service")));
        let module = read(&format!("nixos-modules/{module}"));
        for (key, values) in &hardening {
            let deviation = DEVIATIONS.iter().find(|(unit, name, ..)| (*unit, *name) == (program, key));
            let mut expected = values.clone();
            match deviation {
                Some((.., value, line)) => {
                    assert!(module.contains(line), "the module of {program} has no longer: {line}");
                    match value.strip_prefix('+') {
                        Some(added) => expected.push(added.to_owned()),
                        None => expected = vec![(*value).to_owned()],
                    }
                }
                None => {
                    // Only the kernel's data path needs nft's sockets; the package's unit has none.
                    let is_other = key == "RestrictAddressFamilies" && program == "ftp-relay";
                    let deviates = module.contains(&format!(" {key} = "));
                    assert!(is_other || !deviates, "{program}: {key} deviates");
                }
            }
            assert_eq!(unit.get(key), Some(&expected), "{program}.service: {key}");
        }
        // What else both have in common.
        for key in
            ["Restart", "RestartSec", "RestartPreventExitStatus", "WatchdogSec", "LogRateLimitIntervalSec"]
        {
            let value = &unit[key][0];
            let [plain, quoted] = [format!(" {key} = {value};"), format!(" {key} = \"{value}\";")];
            assert!(module.contains(&plain) || module.contains(&quoted), "{program}: {key}={value}");
        }
    }
}

#[test]
fn systemd_accepts_the_units_and_rates_their_sandbox() {
    if let Err(error) = Command::new("systemd-analyze").arg("--version").output() {
        eprintln!("skipped: systemd-analyze cannot be started: {error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for (program, _) in UNITS {
        let text = read(&format!("deploy/systemd/{program}.service"));
        // The program of this build, because the packages are not installed; and no manual pages.
        let installed = format!("=/usr/bin/{program} ");
        assert!(text.contains(&installed));
        let text = text.replace(&installed, &format!("={} ", binaries::daemon(program).display()));
        let lines = text.lines().filter(|line| !line.starts_with("Documentation="));
        let file = directory.path().join(format!("{program}.service"));
        fs::write(&file, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let output = Command::new("systemd-analyze").arg("verify").arg(&file).output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        let own: Vec<_> = complaints.lines().filter(|line| line.contains(program)).collect();
        assert!(own.is_empty(), "{program}: {own:?}");
        // Exposure in tenths; a unit without any sandbox has 96.
        let mut rate = Command::new("systemd-analyze");
        rate.args(["security", "--offline=true", "--threshold=20", "--no-pager"]).arg(&file);
        let output = rate.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        if error.contains("unrecognized option") || error.contains("Unknown") {
            eprintln!("skipped: this systemd-analyze cannot rate a file");
            continue;
        }
        assert!(output.status.success(), "{}{error}", String::from_utf8_lossy(&output.stdout));
    }
}

//! Podman with images, containers and networks of its own, for tests as root. It needs no registry.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cluster_tests::{binaries, packaging::can_fill_images};
use tempfile::TempDir;

/// Limit of one command: building images on a busy machine.
const LIMIT: &str = "300";

/// A podman whose state is in a temporary directory. Dropping it ends its containers and removes everything.
pub(crate) struct Engine {
    directory: TempDir,
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Engine {
    /// `None`, with a line that says why, where containers cannot run.
    pub(crate) fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: containers in a network of their own need root");
            return None;
        }
        if let Err(error) = Command::new("podman").arg("--version").output() {
            eprintln!(
                "skipped: podman cannot be started ({error}); Debian has it in `podman`, with `runc`, \
                       `netavark`, `aardvark-dns` and `iptables`"
            );
            return None;
        }
        let engine = Self { directory: tempfile::tempdir().unwrap() };
        let path = |name: &str| engine.directory.path().join(name).display().to_string();
        // The limits and the runtime work inside of another container, too, as in CI.
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=1024:1024\"]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n",
            path("networks")
        );
        fs::write(path("containers.conf"), settings).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            path("storage"),
            path("run")
        );
        fs::write(path("storage.conf"), storage).unwrap();
        if let Err(why) = can_fill_images().and_then(|()| engine.runs_containers()) {
            eprintln!("skipped: no image can be built or run here: {why}");
            return None;
        }
        engine.make_images(&["ftpctl"]).unwrap();
        engine.podman(&["run", "--rm", "--network", "none", "distributed-ftp/ftpctl", "--version"]);
        Some(engine)
    }

    /// Builds and runs an image of one program of this machine, without anything of this repository.
    fn runs_containers(&self) -> Result<(), String> {
        let folder = self.folder("probe");
        fs::write(folder.join("Containerfile"), "FROM scratch\nCOPY root /\n").unwrap();
        let copy =
            "mkdir root && cp --parents --dereference /bin/true $(ldd /bin/true | grep -o '/[^ ]*') root";
        run(Command::new("sh").args(["-ec", copy]).current_dir(&folder))?;
        let folder = folder.display().to_string();
        self.try_podman(&["build", "--isolation=chroot", "--network=host", "--tag", "probe", &folder])?;
        self.try_podman(&["run", "--rm", "--network", "none", "probe", "/bin/true"]).map(drop)
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.directory.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A command in the environment of this podman, with a time limit.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command.arg(LIMIT).arg(program).current_dir(repository());
        command.env("CONTAINERS_CONF", self.directory.path().join("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.directory.path().join("storage.conf"));
        command.env("IMAGE_BUILDER", "podman");
        command.env("IMAGE_BUILD_OPTIONS", "--isolation=chroot --network=host");
        command.env("IMAGE_BINARIES", binaries::daemon("ftpd").parent().unwrap());
        command
    }

    /// `./dev image` with the programs of this build.
    pub(crate) fn make_images(&self, programs: &[&str]) -> Result<(), String> {
        let mut command = self.command(&repository().join("dev"));
        run(command.arg("image").args(programs)).map(drop)
    }

    pub(crate) fn try_podman(&self, arguments: &[&str]) -> Result<String, String> {
        run(self.command(Path::new("podman")).args(arguments))
    }

    /// The log of a container. The daemons log to standard error.
    pub(crate) fn log(&self, container: &str) -> String {
        let output = self.command(Path::new("podman")).args(["logs", container]).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs podman. Returns its output.
    pub(crate) fn podman(&self, arguments: &[&str]) -> String {
        self.try_podman(arguments).unwrap_or_else(|error| panic!("podman {arguments:?}: {error}"))
    }
}

/// Runs a command that must succeed. Returns its standard output, without spaces at the end.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } = command.output().map_err(|error| error.to_string())?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
    if status.success() {
        Ok(text(stdout))
    } else {
        Err(format!("{status}: {}{}", text(stdout), text(stderr)))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // podman removes containers that others depend on only after those: the next call gets the rest.
        let _ = self.try_podman(&["rm", "--all", "--force", "--depend", "--time", "0"]);
        for arguments in [
            &["rm", "--all", "--force", "--depend", "--time", "0"][..],
            &["network", "prune", "--force"],
            &["volume", "rm", "--all", "--force"],
            &["rmi", "--all", "--force"],
        ] {
            if let Err(error) = self.try_podman(arguments) {
                eprintln!("podman {arguments:?}: {error}");
            }
        }
    }
}

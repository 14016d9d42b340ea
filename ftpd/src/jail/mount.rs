//! The mount of a file, and if file locks on it exclude other nodes.

use std::fs;
use std::os::fd::AsRawFd;

/// A mount as described in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountInfo {
    /// File system type: `ext4`, `nfs4`, …
    pub kind: String,
    /// Mount options, then the options of the file system (super options).
    options: Vec<String>,
}

impl MountInfo {
    /// Returns the mount that an open file is on.
    pub(super) fn of(file: &impl AsRawFd) -> std::io::Result<Self> {
        let absent = |what: &str| std::io::Error::new(std::io::ErrorKind::NotFound, what.to_owned());
        // The mount id, because btrfs reports other device numbers in mountinfo than in fstat.
        let status = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let mount = status.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
        let mount = mount.ok_or_else(|| absent("no mnt_id in /proc/self/fdinfo"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Self::in_mountinfo(&mounts, mount).ok_or_else(|| absent("the mount is not in /proc/self/mountinfo"))
    }

    /// Parses the line of the mount with the id `mount`.
    fn in_mountinfo(mounts: &str, mount: &str) -> Option<Self> {
        let line = mounts.lines().find(|line| line.split(' ').next() == Some(mount))?;
        // Spaces in names are written as \040, so ` - ` is always the separator.
        let (before, after) = line.split_once(" - ")?;
        let mut of_file_system = after.split(' ');
        let kind = of_file_system.next()?.to_owned();
        let options = [before.split(' ').nth(5)?, of_file_system.nth(1).unwrap_or_default()];
        let options = options.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
        Some(Self { kind, options })
    }

    /// Checks that a lock taken on one node excludes all other nodes.
    ///
    /// # Errors
    /// A text that says why it does not, and which mount option would change that.
    pub(super) fn check_cross_nodes(&self) -> Result<(), String> {
        let has = |option: &str| self.options.iter().any(|found| found == option);
        let kind = &*self.kind;
        let local = |option: &str, instead: &str| {
            Err(format!("{kind} is mounted with {option}, so its locks hold on one node only; {instead}"))
        };
        match kind {
            "nfs" | "nfs4" => {
                let wrong = ["nolock", "local_lock=all", "local_lock=posix"].into_iter().find(|o| has(o));
                wrong.map_or(Ok(()), |option| local(option, "mount it with vers=4.2 and local_lock=none"))
            }
            "lustre" if has("localflock") => local("localflock", "mount it with flock"),
            "cifs" | "smb3" if has("nobrl") => local("nobrl", "mount it without nobrl"),
            "gfs2" if has("localflocks") => local("localflocks", "mount it without localflocks"),
            // Without a cluster stack in user space, ocfs2 does not pass these locks to other nodes
            // (fs/ocfs2/file.c in Linux).
            "ocfs2" if !self.options.iter().any(|found| found.starts_with("cluster_stack=")) => {
                Err("ocfs2 passes locks to other nodes only with a cluster stack in user space".to_owned())
            }
            "lustre" | "cifs" | "smb3" | "gfs2" | "ocfs2" | "ceph" | "gpfs" | "fuse.glusterfs"
            | "fuse.ceph" | "fuse.ceph-fuse" => Ok(()),
            // Local file systems: all nodes that use the same one are processes of one kernel.
            "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "bcachefs" | "f2fs" | "zfs" | "jfs" | "nilfs2"
            | "reiserfs" | "tmpfs" | "ramfs" | "overlay" | "vfat" | "exfat" | "ntfs3" | "fuseblk"
            | "ecryptfs" => Ok(()),
            _ => Err(format!("ftpd does not know if locks on a {kind} file system hold on all nodes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
27 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
63 27 0:52 / /srv/ftp rw,nosuid,nodev,noexec,noatime shared:30 - nfs4 storage:/srv/ftp \
rw,vers=4.2,rsize=1048576,hard,proto=tcp,sec=sys,local_lock=none,addr=192.0.2.1
64 27 0:53 / /srv/a\\040-\\040b rw,relatime - nfs storage:/old rw,vers=3,nolock,local_lock=all,addr=192.0.2.1
65 27 0:54 / /srv/c rw - fuse.sshfs host:/srv rw,user_id=0,group_id=0
6 27 0:55 / /srv/d rw - tmpfs tmpfs rw,size=1024k
";

    fn found(mount: &str) -> MountInfo {
        MountInfo::in_mountinfo(MOUNTS, mount).unwrap()
    }

    #[test]
    fn mountinfo_line_is_found_by_its_whole_id() {
        assert_eq!(found("27").kind, "ext4");
        assert_eq!(found("6").kind, "tmpfs");
        assert_eq!(found("64").kind, "nfs", "a name with ` - ` in it");
        assert_eq!(MountInfo::in_mountinfo(MOUNTS, "5"), None);
        assert_eq!(MountInfo::in_mountinfo("27 1 259:2 / / rw\n", "27"), None);
        assert_eq!(MountInfo::in_mountinfo("", "27"), None);
    }

    #[test]
    fn locks_of_local_file_systems_and_of_nfs_4_hold_on_all_nodes() {
        for mount in ["27", "63", "6"] {
            assert_eq!(found(mount).check_cross_nodes(), Ok(()), "{mount}");
        }
    }

    #[test]
    fn reason_names_the_mount_option_that_makes_locks_local() {
        let why = found("64").check_cross_nodes().unwrap_err();
        assert!(why.contains("nolock") && why.contains("local_lock=none"), "{why}");
        assert!(found("65").check_cross_nodes().unwrap_err().contains("fuse.sshfs"));
        let storage = |kind: &str, options: &[&str]| MountInfo {
            kind: kind.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        for (kind, option, holds) in [
            ("nfs4", "local_lock=posix", false),
            // This option only affects flock(2).
            ("nfs4", "local_lock=flock", true),
            ("nfs", "vers=3", true),
            ("lustre", "flock", true),
            ("lustre", "localflock", false),
            ("cifs", "nobrl", false),
            ("ceph", "acl", true),
            ("ocfs2", "coherency=full", false),
            ("ocfs2", "cluster_stack=pcmk", true),
            ("9p", "trans=virtio", false),
            ("virtiofs", "rw", false),
        ] {
            assert_eq!(storage(kind, &["rw", option]).check_cross_nodes().is_ok(), holds, "{kind} {option}");
        }
    }
}

//! Settings of homes, uploads, listings and quotas.

use common::settings::{BYTES, DURATION, DURATION_OR_OFF, FILE, Form, Group, NUMBER, Setting};

use super::MODE;

pub(super) static FILES: Group = Group {
    name: "Files",
    about: "Homes, uploads, listings and the count of quotas.",
    settings: &[
        Setting::switch(
            "create_homes",
            "false",
            "Create a missing home at the user's first login. If off, a login without a home is refused.",
        ),
        Setting::one(
            "file_mode",
            MODE,
            "0640",
            "The permissions of new files. The umask does not change them.",
        ),
        Setting::one(
            "directory_mode",
            MODE,
            "0750",
            "The permissions of new directories. The umask does not change them.",
        ),
        Setting::one(
            "ascii_conversion",
            Form::new("explicit|on|off", "explicit, on or off"),
            "explicit",
            "Conversion of line ends in TYPE A: CRLF on the wire, LF in the file. explicit: after the \
             client has sent TYPE A. on: from the login on, as in RFC 959; binary files of clients that \
             never send TYPE are damaged. off: never.",
        ),
        Setting::switch(
            "sync_uploads",
            "true",
            "Flush an upload to the disk (fsync) before the 226 reply, and the directory of a name that is \
             made, changed or removed (MKD, RNTO, DELE, RMD, RMDA, COMB) before that reply. If off, replies \
             come sooner, and a crash of the storage can undo what was confirmed.",
        ),
        Setting::one(
            "storage_locks",
            Form::new("auto|cluster|off", "auto, cluster or off"),
            "auto",
            "Locks on files that are being written, which keep out a second writer even while Redis is \
             away. auto: lock, and derive from the mount whether the locks hold on all nodes (local file \
             systems, NFS without nolock and local_lock, CephFS, GlusterFS and others). cluster: lock, and \
             take for granted that the locks hold on all nodes. off: do not lock. Where locks do not hold \
             on all nodes, uploads depend on Redis: see docs/one-writer.md.",
        ),
        Setting::one(
            "storage_self_test",
            Form::new("require|warn|off", "require, warn or off"),
            "require",
            "The test of the storage when the node starts, with hidden files in the root: O_EXCL, rename \
             over an open file, rename to a new name, fsync, file locks. require: the node exits with 78 \
             where uploads in atomic mode would not keep their promise. warn: it logs an error and starts; \
             choose it only if all accounts upload in direct mode. off: no test.",
        ),
        Setting::one(
            "settle_time",
            DURATION,
            "50ms",
            "The time that a complete atomic upload waits before it gets its name. The end of a data \
             connection does not show whether the client finished or died; the end of the \
             control connection, which shows that it died, may arrive a little later.",
        ),
        Setting::one(
            "upload_digest",
            Form::new("off|sha256|sha256_in_reply", "off, sha256 or sha256_in_reply"),
            "off",
            "sha256: compute SHA-256 of each upload while it arrives, for its record in the audit trail and \
             its event. Resumed uploads and APPE have none. The bytes of plain uploads then pass through the \
             node's memory, instead of going from the connection to the file within the kernel. \
             sha256_in_reply: also tell the client, as the last word of the reply 226.",
        ),
        Setting::one(
            "partial_lifetime",
            DURATION_OR_OFF,
            "7d",
            "The age, since its last change, at which the node removes the hidden file of an unfinished \
             atomic upload. Until then the client can resume the upload. 0s: never.",
        ),
        Setting::one(
            "events_file",
            FILE,
            "",
            "A TOML file with the receivers that are told when an upload is complete: see docs/events.md. \
             All nodes need the same. SIGHUP reads it again. If not set, there are no events, and nothing is \
             written for them.",
        ),
        Setting::switch(
            "resolve_links",
            "false",
            "Show symbolic links in listings as the files and directories that they lead to. Danger: a \
             client that deletes a directory tree then also deletes what links in it lead to, and a \
             recursive download of a link to a parent directory never ends.",
        ),
        Setting::one(
            "list_depth",
            NUMBER,
            "32",
            "The depth of directories that LIST -R shows. It bounds the work of one command.",
        ),
        Setting::one(
            "max_sorted_entries",
            NUMBER,
            "50000",
            "The entries that a sorted listing (LIST -t, -S, -r) sorts. Further entries follow unsorted.",
        ),
        Setting::one(
            "max_listing_memory",
            BYTES,
            "67108864",
            "The memory in bytes of all sorted listings of the node together. An entry takes 56 bytes and \
             its name until it is sent. Entries beyond the limit are sent unsorted. 0: nothing is sorted.",
        ),
        Setting::one(
            "max_stat_entries",
            NUMBER,
            "1000",
            "The entries that STAT with a path shows. Its answer goes over the control connection: keep it \
             short.",
        ),
        Setting::one(
            "quota_rescan",
            DURATION,
            "24h",
            "The interval at which a home with a quota is counted again from the disk. In between, the \
             nodes add up what their sessions change. Shorten it where other programs than ftpd write to \
             homes.",
        ),
    ],
};

//! MLSD and MLST: facts about an entry, for programs (RFC 3659 section 7).

use common::policy::{Permission, Permissions};

use super::{Entry, EntryKind, push_hex, push_number};
use crate::protocol::{
    facts::{Fact, Facts},
    reply::push_line_safe,
    timestamp,
};

/// Relation of an entry to the listed directory, RFC 3659 section 7.5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryRole {
    /// An entry of the listed directory, or the argument of MLST.
    Member,
    /// The listed directory itself: `cdir`.
    Listed,
    /// The parent of the listed directory: `pdir`.
    Parent,
}

/// Appends the facts of `entry` that `facts` selects, a space and `name`, without a line end:
/// `type=file;size=5;modify=19700101000000; name`. In MLSD `name` is the entry's own name, in MLST its
/// path.
///
/// The `perm` fact is computed from `permissions`: the user's permissions for this entry. For a
/// directory, its permissions to upload, create and delete are those for entries in it.
pub fn push_facts(
    facts: Facts,
    entry: &Entry,
    role: EntryRole,
    name: &[u8],
    permissions: &Permissions,
    out: &mut Vec<u8>,
) {
    for fact in facts.iter() {
        // The size of a directory means nothing to a client (RFC 3659 section 7.5.7).
        if fact == Fact::Size && entry.kind != EntryKind::File {
            continue;
        }
        out.extend_from_slice(fact.name().as_bytes());
        out.push(b'=');
        match fact {
            Fact::Type => kind(entry, role, out),
            Fact::Size => push_number(entry.size, 0, out),
            Fact::Modify => timestamp::format(entry.modified, out),
            Fact::Perm => perm(entry.kind, permissions, out),
            Fact::Unique => {
                push_hex(entry.device, out);
                out.push(b'g');
                push_hex(entry.inode, out);
            }
            Fact::UnixMode => {
                out.extend([9, 6, 3, 0].map(|shift| b'0' + (entry.mode >> shift & 7) as u8));
            }
        }
        out.push(b';');
    }
    out.push(b' ');
    push_line_safe(name, out);
}

/// Appends the line of MLSD for an entry, with its CRLF; see [`push_facts`].
pub fn line(selected: Facts, entry: &Entry, role: EntryRole, permissions: &Permissions, out: &mut Vec<u8>) {
    push_facts(selected, entry, role, &entry.name, permissions, out);
    out.extend_from_slice(b"\r\n");
}

/// The value of the fact `type`. A symbolic link is `OS.unix=slink:` followed by its target as it is
/// stored (RFC 3659 section 7.5.1.5), or `OS.unix=symlink` if the target is unknown or not allowed in a
/// fact. The target is not escaped, because no client decodes escapes there; clients that support links
/// know both forms.
fn kind(entry: &Entry, role: EntryRole, out: &mut Vec<u8>) {
    let target = entry.link_target.as_deref().filter(|target| fits_in_fact(target));
    let (value, target): (&[u8], _) = match (entry.kind, role, target) {
        (EntryKind::File, ..) => (b"file", None),
        (EntryKind::Directory, EntryRole::Member, _) => (b"dir", None),
        (EntryKind::Directory, EntryRole::Listed, _) => (b"cdir", None),
        (EntryKind::Directory, EntryRole::Parent, _) => (b"pdir", None),
        (EntryKind::Symlink, _, None) => (b"OS.unix=symlink", None),
        (EntryKind::Symlink, _, target) => (b"OS.unix=slink:", target),
        (EntryKind::Other, ..) => (b"OS.unix=special", None),
    };
    out.extend_from_slice(value);
    out.extend_from_slice(target.unwrap_or_default());
}

/// Returns true if a text is allowed as the value of a fact: `;` ends the fact, and the first space
/// ends all facts (RFC 3659 section 7.2). Bytes above 127 are allowed as in names.
fn fits_in_fact(text: &[u8]) -> bool {
    !text.iter().any(|byte| byte.is_ascii_control() || matches!(byte, b' ' | b';'))
}

/// The value of the fact `perm`, RFC 3659 section 7.5.5, in the order of its letters. The target of a
/// symbolic link is not known here, so a link gets the letters for reading both a file and a directory.
fn perm(kind: EntryKind, permissions: &Permissions, out: &mut Vec<u8>) {
    let file = kind == EntryKind::File;
    let directory = kind == EntryKind::Directory;
    let link = kind == EntryKind::Symlink;
    let delete = if directory { Permission::Rmdir } else { Permission::Delete };
    for (letter, granted) in [
        (b'a', file && permissions.has(Permission::Append)),
        (b'c', directory && permissions.has(Permission::Upload)),
        (b'd', permissions.has(delete)),
        (b'e', directory || link),
        (b'f', permissions.has(Permission::Rename)),
        (b'l', (directory || link) && permissions.has(Permission::List)),
        (b'm', directory && permissions.has(Permission::Mkdir)),
        (b'p', directory && permissions.has(Permission::Delete)),
        (b'r', (file || link) && permissions.has(Permission::Download)),
        (b'w', file && permissions.has(Permission::Overwrite)),
    ] {
        if granted {
            out.push(letter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(selected: Facts, entry: &Entry, role: EntryRole, permissions: Permissions) -> String {
        let mut out = Vec::new();
        line(selected, entry, role, &permissions, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn read_only() -> Permissions {
        [Permission::List, Permission::Download].into_iter().collect()
    }

    #[test]
    fn line_is_facts_one_space_and_the_name_rfc_3659_7_2() {
        let file = Entry { size: 5, device: 0xfd01, inode: 0x2a, ..Entry::sample(b" a b") };
        assert_eq!(
            shown(Facts::default(), &file, EntryRole::Member, Permissions::default()),
            "type=file;size=5;modify=19700101000000;perm=adfrw;unique=fd01g2a;UNIX.mode=0644;  a b\r\n"
        );
        assert_eq!(shown(Facts::parse(b""), &file, EntryRole::Member, read_only()), "  a b\r\n");
        let split = Entry::sample(b"a\r\ntype=dir; b");
        assert_eq!(shown(Facts::parse(b""), &split, EntryRole::Member, read_only()), " a??type=dir; b\r\n");
    }

    #[test]
    fn type_and_perm_depend_on_kind_role_and_permissions_rfc_3659_7_5() {
        let selected = Facts::parse(b"type;size;perm;");
        for (kind, role, all, read) in [
            (EntryKind::File, EntryRole::Member, "type=file;size=0;perm=adfrw;", "type=file;size=0;perm=r;"),
            (EntryKind::Directory, EntryRole::Member, "type=dir;perm=cdeflmp;", "type=dir;perm=el;"),
            (EntryKind::Directory, EntryRole::Listed, "type=cdir;perm=cdeflmp;", "type=cdir;perm=el;"),
            (EntryKind::Directory, EntryRole::Parent, "type=pdir;perm=cdeflmp;", "type=pdir;perm=el;"),
            (
                EntryKind::Symlink,
                EntryRole::Member,
                "type=OS.unix=symlink;perm=deflr;",
                "type=OS.unix=symlink;perm=elr;",
            ),
            (
                EntryKind::Other,
                EntryRole::Member,
                "type=OS.unix=special;perm=df;",
                "type=OS.unix=special;perm=;",
            ),
        ] {
            let entry = Entry { kind, ..Entry::sample(b"x") };
            assert_eq!(shown(selected, &entry, role, Permissions::default()), format!("{all} x\r\n"));
            assert_eq!(shown(selected, &entry, role, read_only()), format!("{read} x\r\n"));
        }
    }

    #[test]
    fn link_target_is_shown_if_a_fact_may_contain_it_rfc_3659_7_2() {
        let selected = Facts::parse(b"type;");
        for (target, value) in [
            ("../keep", "OS.unix=slink:../keep"),
            ("/a=b:c", "OS.unix=slink:/a=b:c"),
            ("\u{e4}", "OS.unix=slink:\u{e4}"),
            ("two words", "OS.unix=symlink"),
            ("a;type=dir", "OS.unix=symlink"),
            ("a\r\nb", "OS.unix=symlink"),
            ("a\tb", "OS.unix=symlink"),
        ] {
            let link_target = Some(target.as_bytes().to_vec());
            let entry = Entry { kind: EntryKind::Symlink, link_target, ..Entry::sample(b"x") };
            let line = shown(selected, &entry, EntryRole::Member, Permissions::default());
            assert_eq!(line, format!("type={value}; x\r\n"));
        }
    }
}

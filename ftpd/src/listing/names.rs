//! NLST: lines with names only, for programs (RFC 959 section 4.1.3, RFC 1123 section 4.1.2.7).

use super::Entry;
use crate::protocol::reply::push_line_safe;

/// Appends the line of one entry, with its CRLF. `prefix` precedes the name. It is empty or the directory
/// as the client wrote it, with a `/`, so that the line is a path for RETR. `classify` is `ls -F`: a
/// character after the name shows directories, links and programs.
pub fn line(prefix: &[u8], entry: &Entry, classify: bool, out: &mut Vec<u8>) {
    push_line_safe(prefix, out);
    push_line_safe(&entry.name, out);
    if classify {
        out.extend(entry.suffix());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::{super::EntryKind, *};

    #[test]
    fn lines_are_paths_for_retr_rfc_1123() {
        let mut out = Vec::new();
        line(b"", &Entry::sample(b" a\xff\x01 "), true, &mut out);
        line(b"dir/", &Entry { kind: EntryKind::Directory, ..Entry::sample(b"b") }, false, &mut out);
        line(b"", &Entry { kind: EntryKind::Directory, ..Entry::sample(b"b") }, true, &mut out);
        line(b"", &Entry::sample(b"c\r\nd"), false, &mut out);
        assert_eq!(out, b" a\xff\x01 \r\ndir/b\r\nb/\r\nc??d\r\n");
    }
}

//! LIST: lines in the format of `ls -l`. No RFC specifies the format; clients parse this one.

use super::{Entry, EntryKind, push_number};
use crate::protocol::{reply::push_line_safe, timestamp};

/// Half of 365.2425 days, in seconds.
const HALF_A_YEAR: i64 = 15_778_476;

/// Tolerance in seconds for a storage clock that is ahead of the node's clock. A file that was just
/// written must show its time of day, and not the year, as a file of the future does.
const CLOCK_SKEW: i64 = 3600;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Appends the line of one entry, with its CRLF:
/// `drwxr-xr-x   2 ftp      ftp          4096 Nov 22 16:40 name`.
///
/// Times are UTC. Times within half a year before `now` (Unix seconds) have a time of day, all others a
/// year. Owner and group are always `ftp`, because the storage's user names mean nothing to a client.
/// `classify` is `ls -F`: a character after the name shows directories, links and programs.
pub fn line(entry: &Entry, now: i64, classify: bool, out: &mut Vec<u8>) {
    out.push(match entry.kind {
        EntryKind::File => b'-',
        EntryKind::Directory => b'd',
        EntryKind::Symlink => b'l',
        // Socket: a type that clients know and do not try to download.
        EntryKind::Other => b's',
    });
    permissions(entry.mode, out);
    out.push(b' ');
    push_number(entry.links, 3, out);
    out.extend_from_slice(b" ftp      ftp      ");
    push_number(entry.size, 8, out);
    out.push(b' ');
    date(entry.modified, now, out);
    out.push(b' ');
    push_line_safe(&entry.name, out);
    if let (EntryKind::Symlink, Some(target)) = (entry.kind, &entry.link_target) {
        out.extend_from_slice(b" -> ");
        push_line_safe(target, out);
    } else if classify {
        out.extend(entry.suffix());
    }
    out.extend_from_slice(b"\r\n");
}

/// `rwxr-xr-x`, with `s`, `S`, `t` and `T` as in `ls`.
fn permissions(mode: u32, out: &mut Vec<u8>) {
    for (shift, special, letter) in [(6, 0o4000, b's'), (3, 0o2000, b's'), (0, 0o1000, b't')] {
        let bits = mode >> shift;
        out.push(if bits & 4 == 0 { b'-' } else { b'r' });
        out.push(if bits & 2 == 0 { b'-' } else { b'w' });
        out.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => b'-',
            (false, true) => b'x',
            (true, false) => letter.to_ascii_uppercase(),
            (true, true) => letter,
        });
    }
}

/// `Nov 22 16:40`, or `Nov 22  2025`.
fn date(modified: i64, now: i64, out: &mut Vec<u8>) {
    let at = timestamp::calendar(modified);
    // Months are 1 to 12.
    let month = MONTHS[usize::from(u8::from(at.month())) - 1];
    let age = now.saturating_sub(modified);
    out.extend_from_slice(month.as_bytes());
    out.push(b' ');
    push_number(at.day().into(), 2, out);
    out.push(b' ');
    if (-CLOCK_SKEW..HALF_A_YEAR).contains(&age) {
        timestamp::decimal::<2>(at.hour().into(), out);
        out.push(b':');
        timestamp::decimal::<2>(at.minute().into(), out);
    } else {
        // `calendar` returns years from 1970 to 9999.
        push_number(at.year().unsigned_abs().into(), 5, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22 16:40:05 UTC
    const NOW: i64 = 1_795_365_605;

    fn shown(entry: &Entry, classify: bool) -> String {
        let mut out = Vec::new();
        line(entry, NOW, classify, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn entry(kind: EntryKind, mode: u32, name: &[u8]) -> Entry {
        Entry { kind, mode, modified: NOW, ..Entry::sample(name) }
    }

    #[test]
    fn lines_have_the_format_of_ls() {
        let directory = Entry { links: 2, size: 4096, ..entry(EntryKind::Directory, 0o755, b"name") };
        assert_eq!(
            shown(&directory, false),
            "drwxr-xr-x   2 ftp      ftp          4096 Nov 22 16:40 name\r\n"
        );
        let file = Entry { size: 12_345_678_901, ..entry(EntryKind::File, 0o4601, b"a b") };
        assert_eq!(shown(&file, false), "-rwS-----x   1 ftp      ftp      12345678901 Nov 22 16:40 a b\r\n");
    }

    #[test]
    fn times_older_than_half_a_year_or_in_the_future_show_the_year() {
        for (age, date) in [
            (0, "Nov 22 16:40"),
            (-CLOCK_SKEW, "Nov 22 17:40"),
            (-CLOCK_SKEW - 1, "Nov 22  2026"),
            (HALF_A_YEAR - 1, "May 24 01:45"),
            (HALF_A_YEAR, "May 24  2026"),
            (NOW, "Jan  1  1970"),
            (i64::MAX, "Jan  1  1970"),
            (NOW - i64::MAX, "Dec 31  9999"),
        ] {
            let modified = NOW.saturating_sub(age);
            let line = shown(&Entry { modified, ..entry(EntryKind::File, 0, b"x") }, false);
            assert!(line.contains(&format!(" {date} x")), "{age}: {line}");
        }
    }

    #[test]
    fn classify_appends_the_suffix_of_ls_dash_f() {
        for (kind, mode, name) in [
            (EntryKind::Directory, 0o755, " x/\r\n"),
            (EntryKind::File, 0o755, " x*\r\n"),
            (EntryKind::File, 0o644, " x\r\n"),
            (EntryKind::Symlink, 0o777, " x@\r\n"),
        ] {
            assert!(shown(&entry(kind, mode, b"x"), true).ends_with(name));
        }
        let link = Entry { link_target: Some(b"to/b".to_vec()), ..entry(EntryKind::Symlink, 0o777, b"a") };
        assert!(shown(&link, true).ends_with(" a -> to/b\r\n"));
    }

    #[test]
    fn line_ends_in_names_are_replaced() {
        let target = Some(b"x\r\ny".to_vec());
        let link = Entry { link_target: target, ..entry(EntryKind::Symlink, 0, b"a\r\n\tb") };
        assert!(shown(&link, false).ends_with(" a??\tb -> x??y\r\n"));
    }
}

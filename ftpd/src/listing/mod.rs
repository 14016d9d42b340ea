//! Directory entries as text for LIST, NLST and MLSD. Pure: no input or output.

pub mod machine;
pub mod names;
pub mod sorted;
pub mod unix;

/// A directory entry with its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name without its directory. Bytes, not text.
    pub name: Vec<u8>,
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
    /// Last change of the content, in Unix seconds.
    pub modified: i64,
    /// Permission bits; bits of the file type are ignored.
    pub mode: u32,
    /// Hard links.
    pub links: u64,
    pub device: u64,
    pub inode: u64,
    /// Target of a symbolic link as it is stored. `None` for other entries, or if it was not read.
    pub link_target: Option<Vec<u8>>,
}

/// Type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    /// Device, socket or pipe.
    Other,
}

impl Entry {
    /// The character that `ls -F` appends to the name.
    fn suffix(&self) -> Option<u8> {
        match self.kind {
            EntryKind::Directory => Some(b'/'),
            EntryKind::Symlink => Some(b'@'),
            EntryKind::File if self.mode & 0o111 != 0 => Some(b'*'),
            EntryKind::File | EntryKind::Other => None,
        }
    }
}

/// Appends a number, padded with leading spaces to `width`. `format!` would take longer than reading
/// the entry from the storage.
fn push_number(mut number: u64, width: usize, out: &mut Vec<u8>) {
    // u64::MAX has 20 digits.
    let mut digits = [b' '; 20];
    debug_assert!(width <= digits.len());
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start.min(digits.len() - width)..]);
}

/// Appends a number in hexadecimal.
fn push_hex(number: u64, out: &mut Vec<u8>) {
    let nibbles = (64 - number.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..nibbles).rev().map(|i| b"0123456789abcdef"[(number >> (4 * i)) as usize & 15]));
}

#[cfg(test)]
impl Entry {
    /// An empty file; tests change the fields that they test.
    fn sample(name: &[u8]) -> Self {
        Self {
            name: name.to_vec(),
            kind: EntryKind::File,
            size: 0,
            modified: 0,
            mode: 0o644,
            links: 1,
            device: 0,
            inode: 0,
            link_target: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_formatted_like_the_standard_library(
            number in prop_oneof![any::<u64>(), 0..1000u64],
            width in 0..=20usize,
        ) {
            let mut out = Vec::new();
            push_number(number, width, &mut out);
            out.push(b' ');
            push_hex(number, &mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{number:>width$} {number:x}"));
        }
    }
}

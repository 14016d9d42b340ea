//! Reading files in pieces.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use super::scratch::Scratch;

/// Bytes read or written at once. NFS is slow with pieces below 256 KiB.
pub const PIECE: usize = 256 * 1024;

const _: () = assert!(PIECE <= Scratch::SIZE);

/// Reads `range` piece by piece until its end or the end of the file. Returns the bytes read. Stops at the
/// first error of `consume`; `read_error` wraps an error of the file.
///
/// # Errors
/// Those of `consume` and of the file.
pub fn each_piece<E>(
    file: &File,
    range: Range<u64>,
    read_error: impl Fn(io::Error) -> E,
    mut consume: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<u64, E> {
    let mut buffer = Scratch::take();
    let buffer = &mut buffer[..PIECE];
    let mut position = range.start;
    while position < range.end {
        // At most PIECE, so it fits into usize.
        let wanted = (range.end - position).min(PIECE as u64) as usize;
        match file.read_at(&mut buffer[..wanted], position) {
            Ok(0) => break,
            Ok(read) => {
                consume(&buffer[..read])?;
                position += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_error(error)),
        }
    }
    Ok(position - range.start)
}

//! The large buffers of transfers. A thread keeps the buffers of its last transfer for the next one, until
//! the thread ends.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use super::pieces::PIECE;

/// Buffers that a thread keeps: as many as the busiest transfer uses at once.
const MAX_SPARE: usize = 3;

thread_local! {
    /// Buffers for the next transfer. For a small file, fresh pages cost as much as copying its content.
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`Scratch::SIZE`] bytes, with arbitrary content.
#[derive(Debug)]
pub struct Scratch(Box<[u8]>);

impl Scratch {
    /// One piece of a file, and what TLS adds to it.
    pub const SIZE: usize = PIECE + 8 * 1024;

    /// Takes a spare buffer of this thread, or a new one.
    pub fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| vec![0; Self::SIZE].into_boxed_slice()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // At the end of the thread SPARE is gone already; then the buffer is freed.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MAX_SPARE {
                spare.push(buffer);
            }
        });
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_reuses_its_buffers_and_keeps_a_few() {
        std::thread::spawn(|| {
            let mut first = Scratch::take();
            first[Scratch::SIZE - 1] = 7;
            drop(first);
            assert_eq!(Scratch::take()[Scratch::SIZE - 1], 7);
            drop([(); 2 * MAX_SPARE].map(|()| Scratch::take()));
            assert_eq!(SPARE.with_borrow(Vec::len), MAX_SPARE);
        })
        .join()
        .unwrap();
    }
}

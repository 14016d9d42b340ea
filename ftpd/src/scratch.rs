//! The large buffers of transfers: a thread keeps those of its last transfer for the next one, and
//! they end with the thread.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// So many does the busiest transfer have at once.
const MOST_SPARE: usize = 3;

thread_local! {
    /// Fresh pages cost a small file as much as its content.
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`Scratch::SIZE`] bytes. What is in it is anything.
#[derive(Debug)]
pub struct Scratch(Box<[u8]>);

impl Scratch {
    /// 256 KiB of data, which NFS wants at once, and what TLS adds to it.
    pub const SIZE: usize = (256 + 8) * 1024;

    /// A buffer of this thread's last transfers, or a new one.
    pub fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| vec![0; Self::SIZE].into_boxed_slice()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // While the thread ends there is no such place any more, and the buffer goes with it.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MOST_SPARE {
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
    fn a_thread_uses_its_buffers_again_and_keeps_few() {
        std::thread::spawn(|| {
            let mut first = Scratch::take();
            first[Scratch::SIZE - 1] = 7;
            drop(first);
            assert_eq!(Scratch::take()[Scratch::SIZE - 1], 7);
            drop([(); 2 * MOST_SPARE].map(|()| Scratch::take()));
            assert_eq!(SPARE.with_borrow(Vec::len), MOST_SPARE);
        })
        .join()
        .unwrap();
    }
}

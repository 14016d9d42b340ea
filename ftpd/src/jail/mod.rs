//! All file access of a session, confined to the user's home by the kernel.

pub mod path;

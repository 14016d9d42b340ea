//! The FTP node.

pub mod data;
pub mod jail;
pub mod listing;
pub mod protocol;

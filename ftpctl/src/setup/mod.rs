//! Commands that prepare a new cluster. They write files and ask no authd.

mod files;
pub(crate) mod init;
pub(crate) mod secrets;

//! Commands that prepare a new cluster. They write files and ask no authd.

pub(crate) mod secrets;

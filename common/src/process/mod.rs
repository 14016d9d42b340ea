//! Parts of a process that several programs use: logging, metrics, HTTP, signals, the service manager.

pub mod admin;
pub mod capabilities;
pub mod check;
pub mod descriptors;
pub mod http;
pub mod logging;
pub mod prompt;
pub mod service;
pub mod signals;

/// Exit status of a daemon with wrong settings: EX_CONFIG of sysexits.h. A service manager can be
/// configured not to restart the daemon then (`RestartPreventExitStatus=78`).
pub const EXIT_CONFIG: u8 = 78;

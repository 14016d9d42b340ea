//! The few lines that both mains run: logging, metrics, signals, the service manager.

pub mod admin;
pub mod capabilities;
pub mod check;
pub mod descriptors;
pub mod http;
pub mod logging;
pub mod service;
pub mod signals;

/// Exit status of a daemon whose settings are wrong: sysexits.h's EX_CONFIG, so that a service
/// manager can be told not to try again (`RestartPreventExitStatus=78`).
pub const EXIT_CONFIG: u8 = 78;

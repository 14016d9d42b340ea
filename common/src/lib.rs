//! Code and types that ftpd and authd share.
//!
//! A type belongs here if it crosses a process boundary (`auth_api`, `certificate`, `health`, `ids`, `keys`,
//! `login_conditions`, `node`, `policy`, `registry`, `session`). A function belongs here if both daemons
//! call it (`client_network`, `clock`, `metric`, `password`, `process`, `secret`, `settings`, `sync`,
//! `toml_lines`).

pub mod auth_api;
pub mod certificate;
pub mod client_network;
pub mod clock;
pub mod health;
pub mod ids;
pub mod keys;
pub mod login_conditions;
pub mod metric;
pub mod node;
pub mod passive;
pub mod password;
pub mod policy;
pub mod process;
pub mod registry;
pub mod secret;
pub mod session;
pub mod settings;
pub mod sync;
pub mod toml_lines;

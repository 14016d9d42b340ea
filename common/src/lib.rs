//! What both daemons share.
//!
//! A type belongs here when it crosses a process boundary (`access`, `auth_api`, `certificate`, `node`, `policy`,
//! `session`, `keys`, `registry`), and code when both `main`s run it (`clock`, `settings`, `toml_lines`,
//! `secret`, `password`, `process`).

pub mod access;
pub mod auth_api;
pub mod certificate;
pub mod client_network;
pub mod clock;
pub mod health;
pub mod keys;
pub mod node;
pub mod password;
pub mod policy;
pub mod process;
pub mod registry;
pub mod secret;
pub mod session;
pub mod settings;
pub mod sync;
pub mod toml_lines;

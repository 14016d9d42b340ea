//! Code and types that ftpd, authd and ftpctl share.
//!
//! A type belongs here if it crosses a process boundary (`admin_api`, `audit`, `auth_api`, `certificate`,
//! `events`, `health`, `ids`, `keys`, `live`, `login_conditions`, `node`, `policy`, `registry`, `session`).
//! A function belongs here if several programs call it (`client_network`, `clock`, `metric`, `password`,
//! `process`, `secret`, `settings`, `sync`, `toml_lines`).

pub mod admin_api;
pub mod audit;
pub mod auth_api;
pub mod certificate;
pub mod client_network;
pub mod clock;
pub mod events;
pub mod health;
pub mod health_command;
pub mod ids;
pub mod keys;
pub mod live;
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

//! What both daemons share.
//!
//! A type belongs here when it crosses a process boundary (`access`, `auth_api`, `node`, `policy`,
//! `session`, `keys`, `registry`), and code when both `main`s run it (`settings`, `secret`,
//! `password`, `process`).

pub mod access;
pub mod auth_api;
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

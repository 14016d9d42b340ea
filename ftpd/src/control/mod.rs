//! A client's control connection: the loop that serves it, and its bytes.

pub mod connection;
pub mod wire;

pub use connection::ControlConnection;
pub use wire::{ControlStream, Received};

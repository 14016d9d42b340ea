//! Data connections and what goes over them.

pub mod ascii;
pub mod progress;
mod splice;
pub mod transfer;

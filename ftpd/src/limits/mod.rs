//! The limits of users: bandwidth, quotas of homes, and the minimum rate of transfers.
//!
//! They take the registry and the workers, not the node, and know nothing of FTP replies.

pub mod minimum_rate;
pub mod pace;
pub mod quota;

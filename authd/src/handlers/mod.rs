//! What each route does: a typed request in, a typed answer or an `ApiError` out.

pub mod authorized;
pub mod bans;
pub mod groups;
pub mod login;
pub mod sessions;
pub mod users;

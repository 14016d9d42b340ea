//! The FTP protocol without I/O: parses commands and headers, and encodes replies.

pub mod address;
pub mod arguments;
pub mod command;
pub mod facts;
pub mod failure;
pub mod glob;
pub mod line;
pub mod mode;
pub mod proxy;
pub mod relayed;
pub mod reply;
pub mod site;
pub mod timestamp;
pub mod verb_group;
pub mod verbs;

pub use command::{AnyTimeCommand, Command, LoggedInCommand, ParseError, Request, parse};
pub use failure::Failure;
pub use reply::{Code, Reply};
pub use verb_group::VerbGroup;

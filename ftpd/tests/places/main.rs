//! What an account may do depends on the place: rules of directories, denied names, folders.

mod folders;
mod permissions;
mod support;

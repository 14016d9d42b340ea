//! Tests of permissions by path: access rules of directories, denied names, shared folders.

mod folders;
mod permissions;
mod support;

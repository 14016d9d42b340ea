//! Virtual paths: normalised absolute paths in a user's tree, as clients see them.

use std::fmt;

/// Maximum length of a virtual path in bytes: Linux's `PATH_MAX` without the NUL.
pub const MAX_PATH: usize = 4095;

/// An absolute path in a user's tree: `/` or `/a/b`. It contains no empty component, no `.` or `..`, no
/// NUL and no line end. It is a byte string, because names need not be UTF-8.
///
/// This type only does bookkeeping (the reply to PWD, the meaning of CDUP). It is not a security
/// boundary: the kernel confines paths to the home, see [`crate::jail`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualPath(Box<[u8]>);

/// The argument is not a path: it contains a NUL or a line end, or the path is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a path must not contain NUL or line ends and must not exceed {MAX_PATH} bytes")]
pub struct InvalidPath;

impl VirtualPath {
    pub fn root() -> Self {
        Self(Box::from(&b"/"[..]))
    }

    /// Resolves the pathname `argument` (RFC 959) in the directory `self`. `..` removes the last
    /// component, as in a shell, even if `self` was reached through a symbolic link. `..` in the root
    /// is the root.
    ///
    /// # Errors
    /// The argument contains a byte that no name can have, or the result is too long.
    pub fn join(&self, argument: &[u8]) -> Result<Self, InvalidPath> {
        if argument.len() > MAX_PATH || argument.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
            return Err(InvalidPath);
        }
        let mut path = match argument.first() {
            Some(b'/') => Vec::new(),
            _ if self.is_root() => Vec::new(),
            _ => self.0.to_vec(),
        };
        for component in argument.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => path.truncate(path.iter().rposition(|b| *b == b'/').unwrap_or(0)),
                name => {
                    path.push(b'/');
                    path.extend_from_slice(name);
                }
            }
        }
        if path.is_empty() {
            path.push(b'/');
        }
        if path.len() > MAX_PATH { Err(InvalidPath) } else { Ok(Self(path.into())) }
    }

    pub fn is_root(&self) -> bool {
        &*self.0 == b"/"
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path relative to the home's directory handle: `.` for the root.
    pub fn relative(&self) -> &[u8] {
        if self.is_root() { b"." } else { &self.0[1..] }
    }

    /// The parent directory and the name in it. `None` for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        // Every path except the root starts with a slash and ends with a name.
        let slash = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let parent = if slash == 0 { Self::root() } else { Self(self.0[..slash].into()) };
        Some((parent, &self.0[slash + 1..]))
    }

    /// The components from the root down. The root has no components.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// The path relative to `top`: empty if both are equal, `None` if `self` is not at or below `top`.
    pub fn below(&self, top: &Self) -> Option<&[u8]> {
        if top.is_root() {
            return Some(&self.0[1..]);
        }
        match self.0.strip_prefix(&*top.0)? {
            [] => Some(&[]),
            [b'/', below @ ..] => Some(below),
            _ => None,
        }
    }

    pub fn parent(&self) -> Self {
        self.split().map_or_else(Self::root, |(parent, _)| parent)
    }
}

impl fmt::Display for VirtualPath {
    /// Writes the path for logs. Control characters, backslashes and bytes that are not valid UTF-8 are
    /// escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || c == '\\' {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for VirtualPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(cwd: &str, argument: &str) -> String {
        let cwd = VirtualPath::root().join(cwd.as_bytes()).unwrap();
        cwd.join(argument.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn join_resolves_dots_and_slashes_as_a_shell_does() {
        for (cwd, argument, path) in [
            ("/", "", "/"),
            ("/", "a", "/a"),
            ("/a", "b/c", "/a/b/c"),
            ("/a/b", "..", "/a"),
            ("/a", "../..", "/"),
            ("/", "../../etc/passwd", "/etc/passwd"),
            ("/a", "/b//c/./d/", "/b/c/d"),
            ("/a/b", "../c", "/a/c"),
            ("/a", "...", "/a/..."),
        ] {
            assert_eq!(at(cwd, argument), path, "{argument} in {cwd}");
        }
    }

    #[test]
    fn join_refuses_nul_line_ends_and_too_long_paths() {
        for argument in [&b"a\0b"[..], b"a\rb", b"a\nb", &[b'a'; MAX_PATH + 1]] {
            assert_eq!(VirtualPath::root().join(argument), Err(InvalidPath));
        }
    }

    #[test]
    fn display_escapes_control_characters_and_invalid_utf8() {
        let path = VirtualPath::root().join(b"a\x1b[31m\xffz").unwrap();
        assert_eq!(path.to_string(), "/a\\u{1b}[31m\\xffz");
    }

    #[test]
    fn below_compares_whole_components() {
        let path = |text: &str| VirtualPath::root().join(text.as_bytes()).unwrap();
        for (at, top, below) in [
            ("/a/b", "/", Some("a/b")),
            ("/", "/", Some("")),
            ("/a/b/c", "/a/b", Some("c")),
            ("/a/b", "/a/b", Some("")),
            ("/a/bc", "/a/b", None),
            ("/a", "/a/b", None),
        ] {
            assert_eq!(path(at).below(&path(top)), below.map(str::as_bytes), "{at} below {top}");
        }
        assert!(path("/a/b").names().eq([b"a", b"b"]));
        assert_eq!(path("/").names().count(), 0);
    }

    proptest! {
        #[test]
        fn joined_paths_are_always_normalised(cwd: Vec<u8>, argument in "[a./\\PC]{0,40}") {
            let cwd = VirtualPath::root().join(&cwd).unwrap_or(VirtualPath::root());
            if let Ok(path) = cwd.join(argument.as_bytes()) {
                prop_assert_eq!(path.as_bytes().first(), Some(&b'/'));
                if !path.is_root() {
                    for component in path.as_bytes()[1..].split(|b| *b == b'/') {
                        prop_assert!(!matches!(component, b"" | b"." | b".."));
                    }
                }
                prop_assert_eq!(path.join(b"").unwrap(), path.clone());
                prop_assert_eq!(VirtualPath::root().join(path.as_bytes()).unwrap(), path.clone());
                if let Some((parent, name)) = path.split() {
                    prop_assert_eq!(parent.join(name).unwrap(), path);
                }
            }
        }
    }
}

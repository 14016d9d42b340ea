//! The declarative users: a TOML or JSON file, read as a whole or not at all.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use common::secret::Secret;
use serde_json::{Map, Value};

use super::{
    password::Phc,
    user::{Change, Credential, User, UserName},
};

/// What a users file declares.
#[derive(Clone, Debug, Default)]
pub struct UsersFile {
    pub users: BTreeMap<UserName, User>,
    /// The state of everything that was read, as it was before that.
    pub fingerprint: Fingerprint,
}

/// A users file that cannot be used. The message names the file, the user and the key, and never
/// shows what stands where a hash or a password does.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct UsersFileError {
    path: PathBuf,
    reason: String,
}

/// Which versions of which files there are: the users file and the hash files it names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, Option<Version>)>);

/// Inode numbers tell apart what a renamed file or a swapped symbolic link puts in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Fingerprint {
    fn of(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(paths.into_iter().map(|path| (Version::of(&path), path)).map(|(v, p)| (p, v)).collect())
    }

    /// The state of the same files now.
    pub fn now(&self) -> Self {
        Self::of(self.0.iter().map(|(path, _)| path.clone()))
    }
}

impl Version {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }
}

impl UsersFile {
    /// Reads the file and the hash files that it names. Blocks.
    ///
    /// # Errors
    /// One of them cannot be read, or says something that is no user. The fingerprint comes with
    /// the error, so that a change of any of the files can be noticed then too.
    pub fn load(path: &Path) -> Result<Self, (UsersFileError, Fingerprint)> {
        let mut paths = vec![path.to_owned()];
        // Taken before reading: a change in between is then seen as one.
        let first = Fingerprint::of(paths.clone());
        let failed = |reason: String| UsersFileError { path: path.to_owned(), reason };
        let root = match read(path) {
            Ok(root) => root,
            Err(reason) => return Err((failed(reason), first)),
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        paths.extend(hash_files(&root).map(|file| folder.join(file)));
        let mut fingerprint = Fingerprint::of(paths);
        fingerprint.0[0] = first.0[0].clone();
        match users(root, folder) {
            Ok(users) => Ok(Self { users, fingerprint }),
            Err(reason) => Err((failed(reason), fingerprint)),
        }
    }
}

fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    match path.extension().and_then(|extension| extension.to_str()) {
        // The parser's own messages quote the line, which may hold what is not for logs.
        Some("toml") => toml::from_str(&text).map_err(|error| match error.span() {
            Some(span) => format!("line {}: {}", line(&text, span.start), error.message()),
            None => error.message().to_owned(),
        }),
        Some("json") => serde_json::from_str(&text).map_err(|error| error.to_string()),
        _ => Err("the name of a users file ends in .toml or .json".to_owned()),
    }
}

fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn hash_files(root: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let users = root.get("users").and_then(Value::as_object);
    users.into_iter().flat_map(Map::values).filter_map(|user| user.get("password_hash_file")?.as_str())
}

fn users(mut root: Map<String, Value>, folder: &Path) -> Result<BTreeMap<UserName, User>, String> {
    let users = match root.remove("users") {
        None => Map::new(),
        Some(Value::Object(users)) => users,
        Some(_) => return Err("users: expected one table for each user".to_owned()),
    };
    if let Some(key) = root.keys().next() {
        return Err(format!("unknown key {key:?}; expected `users`"));
    }
    users
        .into_iter()
        .map(|(name, value)| {
            let key = format!("users.{name:?}");
            let name: UserName = name.parse().map_err(|error| format!("{key}: {error}"))?;
            let user = user(&name, value, folder).map_err(|reason| format!("{key}: {reason}"))?;
            Ok((name, user))
        })
        .collect()
}

fn user(name: &UserName, value: Value, folder: &Path) -> Result<User, String> {
    let Value::Object(mut fields) = value else { return Err("expected a table".to_owned()) };
    let hash_file = match fields.remove("password_hash_file") {
        None => None,
        Some(Value::String(file)) => Some(folder.join(file)),
        Some(_) => return Err("password_hash_file: expected the name of a file".to_owned()),
    };
    let mut change: Change =
        serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
    if change.password.is_some() {
        return Err("password: a users file holds hashes (password_hash) only".to_owned());
    }
    let hash = match (change.password_hash.take(), hash_file) {
        (Some(hash), None) => hash,
        (None, Some(file)) => {
            read_hash(&file).map_err(|error| format!("password_hash_file {}: {error}", file.display()))?
        }
        (Some(_), Some(_)) => return Err("both password_hash and password_hash_file".to_owned()),
        (None, None) => return Err("neither password_hash nor password_hash_file".to_owned()),
    };
    Ok(change.apply(&User::new(name, Credential::Hash(hash))))
}

fn read_hash(path: &Path) -> io::Result<Phc> {
    let text = Secret::read(path)?;
    text.expose().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const HASH: &str = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$9OzPPD5NcFBCFBsPPUbMKr3/kZ2CpcUvYjPmEdjfYAM";

    fn load(name: &str, text: &str) -> Result<UsersFile, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ann.hash"), format!("{HASH}\n")).unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        UsersFile::load(&path).map_err(|(error, _)| error.to_string())
    }

    #[test]
    fn both_formats_say_the_same() {
        let toml = format!(
            "[users.ann]\npassword_hash_file = \"ann.hash\"\nhome = \"/teams/a\"\nuploads = \"atomic\"\n\
             permissions.delete = false\nlimits.sessions = 3\n\
             [users.\"bob b\"]\npassword_hash = \"{HASH}\"\nenabled = false\nadmin = true\n"
        );
        let json = serde_json::json!({ "users": {
            "ann": { "password_hash_file": "ann.hash", "home": "/teams/a", "uploads": "atomic",
                     "permissions": { "delete": false }, "limits": { "sessions": 3 } },
            "bob b": { "password_hash": HASH, "enabled": false, "admin": true },
        }});
        let (toml, json) =
            (load("u.toml", &toml).unwrap().users, load("u.json", &json.to_string()).unwrap().users);
        assert_eq!(toml, json);
        let ann = &toml[&"ann".parse().unwrap()];
        assert_eq!(ann.home.as_str(), "/teams/a");
        assert!(!ann.permissions.delete && ann.permissions.list && ann.enabled && !ann.admin);
        let bob = &toml[&"bob b".parse().unwrap()];
        assert_eq!(bob.home.as_str(), "/bob b");
        assert!(!bob.enabled && bob.admin);
    }

    #[test]
    fn what_is_wrong_is_named_and_never_quoted() {
        let with = |line: &str| format!("[users.ann]\npassword_hash = \"{HASH}\"\n{line}\n");
        for (text, parts) in [
            (with("hom = \"/x\""), &["ann", "hom"][..]),
            (with("permissions.fly = true"), &["ann", "fly"]),
            (with("home = \"../x\""), &["ann", "home"]),
            (with("password = \"hunter2\""), &["ann", "password"]),
            (with("password_hash_file = \"ann.hash\""), &["ann", "both"]),
            (with("limits.sessions = -1"), &["ann"]),
            (with("x = hunter2"), &["line 3"]),
            ("[users.ann]\n".to_owned(), &["ann", "neither"]),
            ("[users.ann]\npassword_hash = \"hunter2\"\n".to_owned(), &["ann", "PHC"]),
            ("[users.ann]\npassword_hash_file = \"none\"\n".to_owned(), &["ann", "none"]),
            ("[users.ann]\npassword_hash_file = \"u.toml\"\n".to_owned(), &["ann", "u.toml", "PHC"]),
            ("[users.\"a/b\"]\n".to_owned(), &["a/b"]),
            ("[user.ann]\n".to_owned(), &["user", "users"]),
            ("users = 1\n".to_owned(), &["users"]),
        ] {
            let error = load("u.toml", &text).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}\n{error}");
            assert!(!error.contains("hunter2") && !error.contains(HASH), "{error}");
        }
        assert!(load("u.yaml", "").unwrap_err().contains(".toml or .json"));
        assert!(load("u.toml", "").unwrap().users.is_empty());
    }

    #[test]
    fn a_change_of_any_of_the_files_shows_and_so_does_a_swapped_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.toml");
        let text = "[users.ann]\npassword_hash_file = \"ann.hash\"\n";
        fs::write(dir.path().join("one"), text).unwrap();
        fs::write(dir.path().join("two"), text).unwrap();
        symlink("one", &path).unwrap();
        // The hash file is missing at first.
        let (_, before) = UsersFile::load(&path).unwrap_err();
        assert_eq!(before, before.now());
        fs::write(dir.path().join("ann.hash"), HASH).unwrap();
        assert_ne!(before, before.now());
        let loaded = UsersFile::load(&path).unwrap().fingerprint;
        assert_eq!(loaded, loaded.now());
        symlink("two", dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_ne!(loaded, loaded.now());
    }
}

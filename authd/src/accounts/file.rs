//! The declarative users: a TOML or JSON file, read as a whole or not at all.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use common::{
    secret::Secret,
    toml_lines::{line_at, line_of},
};
use serde_json::{Map, Value};

use super::{
    Declarations,
    name::{GroupName, UserName},
    password::Phc,
    policy::AccountPolicy,
    user::{User, from_fields},
};

/// What a users file declares.
#[derive(Clone, Debug, Default)]
pub struct UsersFile {
    pub declared: Declarations,
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
pub struct Fingerprint(Vec<(PathBuf, Option<FileVersion>)>);

/// Inode numbers tell apart what a renamed file or a swapped symbolic link puts in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Fingerprint {
    fn of(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(paths.into_iter().map(|path| (FileVersion::of(&path), path)).map(|(v, p)| (p, v)).collect())
    }

    /// The state of the same files now.
    pub fn now(&self) -> Self {
        Self::of(self.0.iter().map(|(path, _)| path.clone()))
    }
}

impl FileVersion {
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
    /// Reads the file and the hash files that it names. Users cannot have the `reserved` names.
    /// Blocks.
    ///
    /// # Errors
    /// One of them cannot be read, or says something that is no user. The fingerprint comes with
    /// the error, so that a change of any of the files can be noticed then too.
    pub fn load(path: &Path, reserved: &[&str]) -> Result<Self, (UsersFileError, Fingerprint)> {
        let mut paths = vec![path.to_owned()];
        // Taken before reading: a change in between is then seen as one.
        let first = Fingerprint::of(paths.clone());
        let failed = |reason: String| UsersFileError { path: path.to_owned(), reason };
        let (root, text) = match read(path) {
            Ok(both) => both,
            Err(reason) => return Err((failed(reason), first)),
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        paths.extend(hash_files(&root).map(|file| folder.join(file)));
        let mut fingerprint = Fingerprint::of(paths);
        fingerprint.0[0] = first.0[0].clone();
        match declarations(root, folder, reserved) {
            Ok(declared) => Ok(Self { declared, fingerprint }),
            Err(FileFault { place, reason }) => {
                let place: Vec<&str> = place.iter().map(String::as_str).collect();
                // A JSON text has no line here: the names in the reason have to do.
                let line = line_of(&text, &place).map(|line| format!("line {line}: ")).unwrap_or_default();
                Err((failed(format!("{line}{reason}")), fingerprint))
            }
        }
    }
}

/// The tables of the file, and its text.
fn read(path: &Path) -> Result<(Map<String, Value>, String), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let root = match path.extension().and_then(|extension| extension.to_str()) {
        // The parser's own messages quote the line, which may hold what is not for logs.
        Some("toml") => toml::from_str(&text).map_err(|error| match error.span() {
            Some(span) => format!("line {}: {}", line_at(&text, span.start), error.message()),
            None => error.message().to_owned(),
        }),
        Some("json") => serde_json::from_str(&text).map_err(|error| error.to_string()),
        _ => Err("the name of a users file ends in .toml or .json".to_owned()),
    }?;
    Ok((root, text))
}

/// What in the file is wrong, and where: the keys that lead there.
struct FileFault {
    place: Vec<String>,
    reason: String,
}

impl FileFault {
    fn at(place: &[&str], reason: impl Into<String>) -> Self {
        Self { place: place.iter().map(|&key| key.to_owned()).collect(), reason: reason.into() }
    }
}

fn hash_files(root: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let users = root.get("users").and_then(Value::as_object);
    users.into_iter().flat_map(Map::values).filter_map(|user| user.get("password_hash_file")?.as_str())
}

fn declarations(
    mut root: Map<String, Value>,
    folder: &Path,
    reserved: &[&str],
) -> Result<Declarations, FileFault> {
    let mut groups = BTreeMap::new();
    for (name, value) in tables(&mut root, "groups")? {
        let failed = |reason: String| FileFault::at(&["groups", &name], format!("groups.{name:?}: {reason}"));
        let group: GroupName = name.parse().map_err(|error| failed(format!("{error}")))?;
        let Value::Object(fields) = value else { return Err(failed("expected a table".to_owned())) };
        let policy: AccountPolicy = from_fields(fields).map_err(|error| failed(error.to_string()))?;
        groups.insert(group, policy);
    }
    let mut users = BTreeMap::new();
    for (name, value) in tables(&mut root, "users")? {
        let failed = |reason: String| FileFault::at(&["users", &name], format!("users.{name:?}: {reason}"));
        if reserved.contains(&name.as_str()) {
            return Err(failed("with anonymous_home this is a name of the anonymous user".to_owned()));
        }
        let user: UserName = name.parse().map_err(|error| failed(format!("{error}")))?;
        let properties = self::user(&user, value, folder).map_err(failed)?;
        if let Some(unknown) = properties.groups.iter().find(|group| !groups.contains_key(group)) {
            return Err(failed(format!("groups: no group {:?} is declared here", unknown.as_str())));
        }
        users.insert(user, properties);
    }
    match root.keys().next() {
        Some(key) => Err(FileFault::at(&[key], format!("unknown key {key:?}; expected `users` or `groups`"))),
        None => Ok(Declarations { users, groups }),
    }
}

fn tables(root: &mut Map<String, Value>, key: &str) -> Result<Map<String, Value>, FileFault> {
    match root.remove(key) {
        None => Ok(Map::new()),
        Some(Value::Object(tables)) => Ok(tables),
        Some(_) => Err(FileFault::at(&[key], format!("{key}: expected one table for each"))),
    }
}

fn user(name: &UserName, value: Value, folder: &Path) -> Result<User, String> {
    let Value::Object(mut fields) = value else { return Err("expected a table".to_owned()) };
    let hash_file = match fields.remove("password_hash_file") {
        None => None,
        Some(Value::String(file)) => Some(folder.join(file)),
        Some(_) => return Err("password_hash_file: expected the name of a file".to_owned()),
    };
    if fields.contains_key("password") {
        return Err(
            "password: a users file holds hashes only: `authd hash-password` makes one for password_hash"
                .to_owned(),
        );
    }
    match (fields.contains_key("password_hash"), hash_file) {
        (true, None) => {}
        (false, Some(file)) => {
            let hash = read_hash(&file)
                .map_err(|error| format!("password_hash_file {}: {error}", file.display()))?;
            fields.insert("password_hash".to_owned(), hash.as_str().into());
        }
        (true, Some(_)) => return Err("both password_hash and password_hash_file".to_owned()),
        (false, None) => {
            // Its own keys first: a hash under a misspelt key is the likely reason.
            let hint = "`authd hash-password` makes a hash";
            let mut tried = fields.clone();
            tried.insert("password_hash".to_owned(), ABSENT.into());
            return Err(match User::from_fields(name, tried) {
                Err(error) => format!("{error}; and neither password_hash nor password_hash_file ({hint})"),
                Ok(_) => format!("neither password_hash nor password_hash_file ({hint})"),
            });
        }
    }
    User::from_fields(name, fields).map_err(|error| error.to_string())
}

/// A hash of no password, to look at the other fields of a user without one.
const ABSENT: &str = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$9OzPPD5NcFBCFBsPPUbMKr3/kZ2CpcUvYjPmEdjfYAM";

fn read_hash(path: &Path) -> io::Result<Phc> {
    let text = Secret::read(path)?;
    text.expose().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use common::policy::Permission;

    use super::*;

    const HASH: &str = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$9OzPPD5NcFBCFBsPPUbMKr3/kZ2CpcUvYjPmEdjfYAM";

    fn load(name: &str, text: &str) -> Result<UsersFile, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ann.hash"), format!("{HASH}\n")).unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        UsersFile::load(&path, &["ftp"]).map_err(|(error, _)| error.to_string())
    }

    #[test]
    fn both_formats_say_the_same() {
        let toml = format!(
            "[users.ann]\npassword_hash_file = \"ann.hash\"\nhome = \"/teams/a\"\nuploads = \"atomic\"\n\
             permissions.delete = false\nlimits.sessions = 3\ngroups = [\"staff\"]\n\
             [groups.staff]\nquota.bytes = 1000\n\
             [users.\"bob b\"]\npassword_hash = \"{HASH}\"\nenabled = false\nadmin = true\n"
        );
        let json = serde_json::json!({ "groups": { "staff": { "quota": { "bytes": 1000 } } }, "users": {
            "ann": { "password_hash_file": "ann.hash", "home": "/teams/a", "uploads": "atomic",
                     "permissions": { "delete": false }, "limits": { "sessions": 3 }, "groups": ["staff"] },
            "bob b": { "password_hash": HASH, "enabled": false, "admin": true },
        }});
        let (toml, json) =
            (load("u.toml", &toml).unwrap().declared, load("u.json", &json.to_string()).unwrap().declared);
        assert_eq!(toml, json);
        let ann = &toml.users[&"ann".parse().unwrap()];
        assert_eq!(ann.home.as_str(), "/teams/a");
        assert!(ann.policy.permissions.get(Permission::Delete) == Some(false) && ann.enabled && !ann.admin);
        let effective = ann.effective(|group| toml.groups.get(group).cloned()).unwrap();
        assert!(
            !effective.permissions.has(Permission::Delete) && effective.permissions.has(Permission::List)
        );
        assert_eq!(effective.quota.bytes, Some(1000));
        let bob = &toml.users[&"bob b".parse().unwrap()];
        assert_eq!(bob.home.as_str(), "/bob b");
        assert!(!bob.enabled && bob.admin);
    }

    #[test]
    fn what_is_wrong_is_named_and_never_quoted() {
        let with = |line: &str| format!("[users.ann]\npassword_hash = \"{HASH}\"\n{line}\n");
        for (text, parts) in [
            (with("hom = \"/x\""), &["line 1: ", "ann", "hom"][..]),
            (with("permissions.fly = true"), &["ann", "fly"]),
            (with("home = \"../x\""), &["ann", "home"]),
            (with("password = \"hunter2\""), &["ann", "password"]),
            (with("password_hash_file = \"ann.hash\""), &["ann", "both"]),
            (with("limits.sessions = -1"), &["ann", "limits: "]),
            (with("enabled = 1"), &["ann", "enabled: "]),
            (with("enabled = 1\ntls.control = 1"), &["ann", "tls: "]),
            (with("quota.bytes = \"1 GB\"\ntls.control = 1"), &["ann", "quota: "]),
            (with("[groups.staff]\nbandwidth.upload = 0"), &["groups", "staff", "bandwidth: "]),
            (with("x = hunter2"), &["line 3"]),
            ("[users.ann]\n".to_owned(), &["line 1: ", "ann", "neither", "authd hash-password"]),
            ("\n[users.ann]\npasswd = \"hunter2\"\n".to_owned(), &["line 2: ", "passwd", "neither"]),
            (with("groups = [\"staff\"]"), &["ann", "groups", "staff"]),
            (with("[groups.staff]\nhome = \"/x\""), &["groups", "staff", "home"]),
            (with("[groups.\"a/b\"]"), &["line 3: ", "groups", "a/b"]),
            (with("[group.staff]"), &["group", "`groups`"]),
            (with("").replace("ann", "ftp"), &["ftp", "anonymous"]),
            ("[users.ann]\npassword_hash = \"hunter2\"\n".to_owned(), &["ann", "PHC", "authd hash-password"]),
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
        assert!(load("u.toml", "").unwrap().declared.users.is_empty());
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
        let (_, before) = UsersFile::load(&path, &[]).unwrap_err();
        assert_eq!(before, before.now());
        fs::write(dir.path().join("ann.hash"), HASH).unwrap();
        assert_ne!(before, before.now());
        let loaded = UsersFile::load(&path, &[]).unwrap().fingerprint;
        assert_eq!(loaded, loaded.now());
        symlink("two", dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_ne!(loaded, loaded.now());
    }
}

//! The users file: declared users and groups in TOML or JSON, read completely or not at all.

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
    name::{GroupName, UserName},
    password::Phc,
    policy::AccountPolicy,
    user::{User, from_fields},
};

/// Declared users, and the groups that they may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    pub users: BTreeMap<UserName, User>,
    pub groups: BTreeMap<GroupName, AccountPolicy>,
}

/// Contents of a users file.
#[derive(Clone, Debug, Default)]
pub struct UsersFile {
    pub declared: Declarations,
    /// State of the users file and the hash files, taken before they were read.
    pub fingerprint: Fingerprint,
}

/// A users file that cannot be used. The message names the file, the user and the key. It never contains a
/// hash or a password.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct UsersFileError {
    path: PathBuf,
    reason: String,
}

/// Versions of the users file and of the hash files that it names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, Option<FileVersion>)>);

/// Version of one file. The inode number changes when a file is replaced or a symbolic link is changed.
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

    /// The current state of the same files.
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
    /// Reads the file and the hash files that it names. A user must not have one of the `reserved` names.
    /// Blocks.
    ///
    /// # Errors
    /// A file cannot be read or has invalid contents. The fingerprint comes with the error, so that a later
    /// change of any of the files is noticed.
    pub fn load(path: &Path, reserved: &[&str]) -> Result<Self, (UsersFileError, Fingerprint)> {
        let mut paths = vec![path.to_owned()];
        // Fingerprints are taken before reading: a change during reading then counts as a later change.
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
            Err(fault) => Err((failed(fault.describe(&text)), fingerprint)),
        }
    }
}

/// Reads the top-level table of the file, and its text.
fn read(path: &Path) -> Result<(Map<String, Value>, String), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let root = match path.extension().and_then(|extension| extension.to_str()) {
        // The parser's own error text quotes the line, which may contain a password.
        Some("toml") => toml::from_str(&text).map_err(|error| match error.span() {
            Some(span) => format!("line {}: {}", line_at(&text, span.start), error.message()),
            None => error.message().to_owned(),
        }),
        Some("json") => serde_json::from_str(&text).map_err(|error| error.to_string()),
        _ => Err("the name of a users file must end in .toml or .json".to_owned()),
    }?;
    Ok((root, text))
}

/// An error in the contents of the file.
struct FileFault {
    /// The keys that lead to the faulty entry.
    keys: Vec<String>,
    reason: String,
}

impl FileFault {
    fn at(keys: &[&str], reason: impl Into<String>) -> Self {
        Self { keys: keys.iter().map(|&key| key.to_owned()).collect(), reason: reason.into() }
    }

    /// The reason, with the line number in `text` if `text` is TOML. For JSON only the keys in the reason
    /// name the place.
    fn describe(&self, text: &str) -> String {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let line = line_of(text, &keys).map(|line| format!("line {line}: ")).unwrap_or_default();
        format!("{line}{}", self.reason)
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
            return Err(failed("this name is reserved for the anonymous user (anonymous_home)".to_owned()));
        }
        let user: UserName = name.parse().map_err(|error| failed(format!("{error}")))?;
        let properties = self::user(&user, value, folder).map_err(failed)?;
        if let Some(unknown) = properties.groups.iter().find(|group| !groups.contains_key(group)) {
            return Err(failed(format!("groups: this file declares no group {:?}", unknown.as_str())));
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
        Some(_) => Err(FileFault::at(&[key], format!("{key}: expected a table of tables, one per name"))),
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
        return Err("password: not allowed in a users file; set password_hash to the output of \
                    `authd hash-password`"
            .to_owned());
    }
    match (fields.contains_key("password_hash"), hash_file) {
        (true, None) => {}
        (false, Some(file)) => {
            let hash = read_hash(&file)
                .map_err(|error| format!("password_hash_file {}: {error}", file.display()))?;
            fields.insert("password_hash".to_owned(), hash.as_str().into());
        }
        (true, Some(_)) => {
            return Err("both password_hash and password_hash_file are set; set one of them".to_owned());
        }
        (false, None) => return Err(missing_hash(name, &fields)),
    }
    User::from_fields(name, fields).map_err(|error| error.to_string())
}

/// The message for a user without a hash. It names an unknown key first, because a misspelt key of the
/// hash is the likely cause.
fn missing_hash(name: &UserName, fields: &Map<String, Value>) -> String {
    const MISSING: &str = "neither password_hash nor password_hash_file is set \
                           (`authd hash-password` makes a hash)";
    let mut with_hash = fields.clone();
    with_hash.insert("password_hash".to_owned(), PLACEHOLDER_HASH.into());
    match User::from_fields(name, with_hash) {
        Err(error) => format!("{error}; and {MISSING}"),
        Ok(_) => MISSING.to_owned(),
    }
}

/// A valid hash, used to check the other fields of a user without one.
const PLACEHOLDER_HASH: &str =
    "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$9OzPPD5NcFBCFBsPPUbMKr3/kZ2CpcUvYjPmEdjfYAM";

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
    fn toml_and_json_declare_the_same_users() {
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
    fn errors_name_the_faulty_entry_and_never_quote_secrets() {
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
    fn fingerprint_changes_with_each_file_and_with_a_changed_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.toml");
        let text = "[users.ann]\npassword_hash_file = \"ann.hash\"\n";
        fs::write(dir.path().join("one"), text).unwrap();
        fs::write(dir.path().join("two"), text).unwrap();
        symlink("one", &path).unwrap();
        // The hash file does not exist yet.
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

//! Permissions by path: an account's access rules, compiled once at login.
//!
//! The first rule that matches the virtual path of a file or directory decides its permissions. Moving
//! or removing a whole directory tree is allowed only if every rule that could match a path in it
//! allows it, even if no such path exists.

mod path_pattern;

use common::{
    auth_api::Account,
    policy::{Permission, Permissions},
};

pub(crate) use self::path_pattern::{MatchState, PathPattern};
use crate::{protocol::glob::Pattern, virtual_path::VirtualPath};

/// An account's permissions by path, and the names that it must not give to files.
#[derive(Debug)]
pub(crate) struct AccessRules {
    general: Permissions,
    rules: Vec<PathRule>,
    denied_names: Vec<Pattern>,
}

#[derive(Debug)]
struct PathRule {
    pattern: PathPattern,
    permissions: Permissions,
}

impl AccessRules {
    pub(crate) fn new(account: &Account) -> Self {
        let general = account.permissions;
        let rules = account.directories.iter().map(|rule| PathRule {
            pattern: PathPattern::parse(rule.path.as_str()),
            permissions: rule.permissions.applied_to(general),
        });
        let denied = account.denied_names.iter();
        Self {
            general,
            rules: rules.collect(),
            denied_names: denied.map(|name| Pattern::parse_ignoring_case(name.as_str().as_bytes())).collect(),
        }
    }

    /// Returns true if permissions depend on the path.
    pub(crate) fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Returns the permissions of a file or directory.
    pub(crate) fn at(&self, path: &VirtualPath) -> Permissions {
        self.rules
            .iter()
            .find(|rule| rule.pattern.at(path) == MatchState::Matched)
            .map_or(self.general, |rule| rule.permissions)
    }

    /// Returns the rules for the directory `path` and its entries.
    pub(crate) fn directory(&self, path: &VirtualPath) -> DirectoryRules<'_> {
        DirectoryRules { access: self, states: self.rules.iter().map(|rule| rule.pattern.at(path)).collect() }
    }

    /// Returns true if the directory can be a working directory: it, or a possible path below it, has at
    /// least one permission.
    pub(crate) fn is_enterable(&self, path: &VirtualPath) -> bool {
        self.directory(path).is_enterable()
    }

    /// Returns true if all of `permissions` are granted for `path` and for every possible path below it.
    pub(crate) fn holds_in_tree(&self, path: &VirtualPath, permissions: &[Permission]) -> bool {
        self.directory(path).tree().all(|possible| possible.has_all(permissions))
    }

    /// Returns true if one of `permissions` is granted for any path.
    pub(crate) fn holds_somewhere(&self, permissions: &[Permission]) -> bool {
        self.directory(&VirtualPath::root()).tree().any(|possible| possible.has_any(permissions))
    }

    /// Returns true if `from` may be renamed to `to`. If all permissions of both are equal, `rename` is
    /// enough. Otherwise the user also needs the permissions to read and delete `from` and to store
    /// `to`, so that a rename allows no more than the other commands. For a directory, these permissions
    /// must be granted for every possible path below it.
    pub(crate) fn may_rename(&self, from: &VirtualPath, to: &VirtualPath, is_directory: bool) -> bool {
        let possible = |path| match is_directory {
            true => self.directory(path).tree().collect(),
            false => vec![self.at(path)],
        };
        let (from, to): (Vec<_>, Vec<_>) = (possible(from), possible(to));
        let is_same = from.iter().chain(&to).all(|permissions| *permissions == from[0]);
        let may_take = |may: &Permissions| {
            may.has_all(&[Permission::Download, Permission::Delete])
                && (!is_directory || may.has_all(&[Permission::List, Permission::Rmdir]))
        };
        let may_put =
            |may: &Permissions| may.has(Permission::Upload) && (!is_directory || may.has(Permission::Mkdir));
        from.iter().chain(&to).all(|may| may.has(Permission::Rename))
            && (is_same || from.iter().all(may_take) && to.iter().all(may_put))
    }

    /// Returns true if COMB may move the content of `from` to the end of `to`. This requires `upload`
    /// and `append` for `to`, and `delete` for `from`. If the permissions of the two differ, it also
    /// requires `download` for `from`, as a rename does.
    pub(crate) fn may_combine(&self, from: &VirtualPath, to: &VirtualPath) -> bool {
        let (from, to) = (self.at(from), self.at(to));
        to.has_all(&[Permission::Upload, Permission::Append])
            && from.has(Permission::Delete)
            && (from == to || from.has(Permission::Download))
    }

    /// Returns true if no file may get this name.
    pub(crate) fn denies_name(&self, name: &[u8]) -> bool {
        self.denied_names.iter().any(|pattern| pattern.matches(name))
    }
}

/// A directory, with the match state of every rule.
#[derive(Debug)]
pub(crate) struct DirectoryRules<'a> {
    access: &'a AccessRules,
    states: Vec<MatchState>,
}

impl DirectoryRules<'_> {
    /// Returns the permissions of the entry `name` in the directory.
    pub(crate) fn at(&self, name: &[u8]) -> Permissions {
        self.rules()
            .find(|(rule, state)| rule.pattern.matches_below(state, name))
            .map_or(self.access.general, |(rule, _)| rule.permissions)
    }

    /// Returns the rules for the subdirectory `name`.
    pub(crate) fn below(&self, name: &[u8]) -> Self {
        let states = self.rules().map(|(rule, state)| rule.pattern.below(state, name)).collect();
        Self { access: self.access, states }
    }

    /// See [`AccessRules::is_enterable`].
    pub(crate) fn is_enterable(&self) -> bool {
        self.tree().any(|possible| possible != Permissions::NONE)
    }

    /// Returns the permissions for the fact `perm` of the directory (RFC 3659 section 7.5.5): its own,
    /// but `upload`, `mkdir` and `delete` if a possible entry in it has them.
    pub(crate) fn perm_fact(&self) -> Permissions {
        let inside =
            |permission| self.possible(PathPattern::may_match_entry).any(|possible| possible.has(permission));
        [Permission::Upload, Permission::Mkdir, Permission::Delete]
            .into_iter()
            .fold(self.own(), |permissions, permission| permissions.with(permission, inside(permission)))
    }

    /// The permissions of the directory itself.
    fn own(&self) -> Permissions {
        self.rules()
            .find(|(_, state)| **state == MatchState::Matched)
            .map_or(self.access.general, |(rule, _)| rule.permissions)
    }

    /// All permissions that the directory, or a possible path below it, can have.
    fn tree(&self) -> impl Iterator<Item = Permissions> {
        self.possible(|_, state| *state != MatchState::Pending(Vec::new()))
    }

    /// The permissions of the rules that `may_match` accepts, up to the first rule that matches
    /// everything in the directory. Without such a rule, the general permissions come last.
    fn possible(
        &self,
        may_match: impl Fn(&PathPattern, &MatchState) -> bool,
    ) -> impl Iterator<Item = Permissions> {
        let decides = self.states.iter().position(|state| *state == MatchState::Matched);
        let last = match decides {
            Some(rule) => self.access.rules[rule].permissions,
            None => self.access.general,
        };
        self.rules()
            .take(decides.unwrap_or(self.states.len()))
            .filter(move |(rule, state)| may_match(&rule.pattern, state))
            .map(|(rule, _)| rule.permissions)
            .chain([last])
    }

    fn rules(&self) -> impl Iterator<Item = (&PathRule, &MatchState)> {
        debug_assert_eq!(self.access.rules.len(), self.states.len(), "one state for each rule");
        self.access.rules.iter().zip(&self.states)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn access(account: serde_json::Value) -> AccessRules {
        let mut account = account;
        account["user"] = "anna".into();
        account["home"] = "/anna".into();
        AccessRules::new(&serde_json::from_value(account).unwrap())
    }

    fn path(text: &str) -> VirtualPath {
        VirtualPath::root().join(text.as_bytes()).unwrap()
    }

    #[test]
    fn first_matching_rule_decides_and_changes_only_the_permissions_it_names() {
        let access = access(json!({
            "permissions": { "delete": false },
            "directories": [
                { "path": "/in/done", "permissions": { "list": true } },
                { "path": "/in", "permissions": { "list": false, "delete": true } },
                { "path": "/in/done/later", "permissions": { "list": false } },
            ],
        }));
        let may = |at| {
            let may = access.at(&path(at));
            (may.has(Permission::List), may.has(Permission::Delete))
        };
        assert_eq!(may("/x"), (true, false));
        assert_eq!(may("/in"), (false, true));
        assert_eq!(may("/in/x"), (false, true));
        assert_eq!(may("/in/done/x"), (true, false));
        assert_eq!(may("/in/done/later"), (true, false));
    }

    #[test]
    fn directory_is_enterable_if_anything_below_it_is_permitted() {
        let nothing = serde_json::to_value(Permissions::NONE).unwrap();
        let access = access(json!({
            "permissions": nothing,
            "directories": [{ "path": "/a/b", "permissions": { "upload": true } }],
        }));
        assert!(["/", "/a", "/a/b", "/a/b/c"].iter().all(|at| access.is_enterable(&path(at))));
        assert!(["/b", "/a/c"].iter().all(|at| !access.is_enterable(&path(at))));
        assert!(access.holds_somewhere(&[Permission::Upload]));
        assert!(!access.holds_somewhere(&[Permission::List]));
    }

    #[test]
    fn rename_allows_no_more_than_reading_storing_and_deleting() {
        let access = access(json!({ "directories": [
            { "path": "/drop", "permissions": { "list": false, "download": false } },
            { "path": "/archive", "permissions": { "delete": false } },
            { "path": "/published", "permissions": { "upload": false } },
            { "path": "/project/*/secret", "permissions": { "download": false } },
        ]}));
        for (from, to, file, directory) in [
            ("/a", "/b", true, true),
            ("/a", "/drop/a", true, true),
            ("/drop/a", "/drop/b", true, true),
            ("/drop/a", "/b", false, false),
            ("/archive/a", "/archive/b", true, true),
            ("/archive/a", "/b", false, false),
            ("/a", "/published/a", false, false),
            // For a directory, paths below it count as well.
            ("/project", "/p", true, false),
            ("/project/x", "/p", true, false),
            ("/project/x/secret", "/p", false, false),
            ("/project/x/open", "/p", true, true),
            ("/a", "/project/x", true, true),
        ] {
            let may = |is_directory| access.may_rename(&path(from), &path(to), is_directory);
            assert_eq!((may(false), may(true)), (file, directory), "{from} to {to}");
        }
        assert!(access.may_combine(&path("/drop/1"), &path("/drop/2")));
        assert!(!access.may_combine(&path("/drop/1"), &path("/2")));
        assert!(!access.may_combine(&path("/archive/1"), &path("/2")));
        assert!(access.may_combine(&path("/1"), &path("/archive/2")));
    }

    #[test]
    fn facts_of_a_directory_include_what_is_possible_in_it() {
        let access = access(json!({ "directories": [
            { "path": "/in/*.csv", "permissions": { "upload": true, "mkdir": false } },
            { "path": "/in", "permissions": { "upload": false, "mkdir": false } },
            { "path": "/a/b/c", "permissions": { "upload": true } },
            { "path": "/a", "permissions": { "upload": false } },
        ]}));
        let may = |at, permission| access.directory(&path(at)).perm_fact().has(permission);
        assert!(may("/in", Permission::Upload) && !may("/in", Permission::Mkdir));
        assert!(!may("/in/x", Permission::Upload));
        assert!(!may("/a", Permission::Upload) && may("/a/b", Permission::Upload));
    }

    #[test]
    fn denied_names_match_in_any_case() {
        let access = access(json!({ "denied_names": ["*.exe", ".*"] }));
        assert!(access.denies_name(b"SETUP.EXE") && access.denies_name(b".htaccess"));
        // Hidden names are denied as well, although patterns in listings do not match them.
        assert!(access.denies_name(b".hidden.exe") && access.denies_name(b".exe"));
        assert!(!access.denies_name(b"exe"));
    }

    proptest! {
        #[test]
        fn permissions_of_a_path_are_among_those_of_every_tree_above(
            places in proptest::collection::vec(("(/(\\*\\*|[ab*])){1,3}", any::<bool>()), 0..5),
            above in "(/[ab]){0,2}",
            below in "(/[ab]){0,3}",
        ) {
            let rules: Vec<_> = places
                .iter()
                .map(|(path, list)| json!({ "path": path, "permissions": { "list": list } }))
                .collect();
            let access = access(json!({ "directories": rules }));
            let (top, inside) = (path(&above), path(&format!("{above}{below}")));
            let found = access.at(&inside);
            prop_assert!(access.directory(&top).tree().any(|possible| possible == found));
            prop_assert_eq!(access.directory(&inside).own(), found);
            if let Some((parent, name)) = inside.split() {
                let parent = access.directory(&parent);
                prop_assert_eq!(parent.at(name), found);
                prop_assert_eq!(parent.below(name).own(), found);
                prop_assert!(parent.possible(PathPattern::may_match_entry).any(|possible| possible == found));
            }
        }
    }
}

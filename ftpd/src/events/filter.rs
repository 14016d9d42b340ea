//! Which events a receiver gets.

use super::record::EventKind;
use crate::{
    access::{MatchState, PathPattern},
    protocol::glob::Pattern,
    virtual_path::VirtualPath,
};

/// Which events a receiver gets.
#[derive(Debug)]
pub(super) struct EventFilter {
    events: Vec<EventKind>,
    /// Empty: all users.
    users: Vec<Pattern>,
    /// Empty: users of all groups, and of none.
    groups: Vec<String>,
    /// Empty: all paths.
    paths: Vec<PathPattern>,
}

/// What a filter looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilteredEvent<'e> {
    pub kind: EventKind,
    pub user: &'e str,
    pub groups: &'e [String],
    pub path: &'e VirtualPath,
    /// Of a rename: the previous path.
    pub old_path: Option<&'e VirtualPath>,
}

impl EventFilter {
    /// # Errors
    /// A path does not begin with a slash.
    pub(super) fn new(
        events: Vec<EventKind>,
        users: &[String],
        groups: Vec<String>,
        paths: &[String],
    ) -> Result<Self, String> {
        if let Some(path) = paths.iter().find(|path| !path.starts_with('/')) {
            return Err(format!("paths: {path:?} does not begin with a slash"));
        }
        Ok(Self {
            events,
            users: users.iter().map(|user| Pattern::parse(user.as_bytes())).collect(),
            groups,
            paths: paths.iter().map(|path| PathPattern::parse(path)).collect(),
        })
    }

    pub(super) fn accepts(&self, event: &FilteredEvent<'_>) -> bool {
        let accepts_user = || self.users.iter().any(|pattern| pattern.matches(event.user.as_bytes()));
        let accepts_path = || {
            let mut paths = [event.path].into_iter().chain(event.old_path);
            paths.any(|path| self.paths.iter().any(|pattern| pattern.at(path) == MatchState::Matched))
        };
        self.events.contains(&event.kind)
            && (self.users.is_empty() || accepts_user())
            && (self.groups.is_empty() || self.groups.iter().any(|group| event.groups.contains(group)))
            && (self.paths.is_empty() || accepts_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_filter_looks_at_event_user_and_path() {
        let groups = texts(&["staff", "others"]);
        let filter = EventFilter::new(
            vec![EventKind::Upload],
            &texts(&["alice", "b*"]),
            groups,
            &texts(&["/in/*.csv"]),
        )
        .unwrap();
        let wants = |kind, user, path: &str| {
            let path = VirtualPath::root().join(path.as_bytes()).unwrap();
            let groups = &["staff".to_owned()];
            filter.accepts(&FilteredEvent { kind, user, groups, path: &path, old_path: None })
        };
        assert!(wants(EventKind::Upload, "alice", "/in/a.csv"));
        assert!(wants(EventKind::Upload, "bob", "/in/a.csv"));
        assert!(!wants(EventKind::Append, "alice", "/in/a.csv"));
        assert!(!wants(EventKind::Upload, "carol", "/in/a.csv"));
        assert!(!wants(EventKind::Upload, "alice", "/in/a.txt"));
        assert!(!wants(EventKind::Upload, "alice", "/a.csv"));
    }

    #[test]
    fn a_filter_for_groups_accepts_their_members_only() {
        let filter = EventFilter::new(vec![EventKind::Upload], &[], texts(&["staff"]), &[]).unwrap();
        let wants = |groups: &[String]| {
            let path = VirtualPath::root();
            let kind = EventKind::Upload;
            filter.accepts(&FilteredEvent { kind, user: "a", groups, path: &path, old_path: None })
        };
        assert!(wants(&["other".to_owned(), "staff".to_owned()]));
        assert!(!wants(&["other".to_owned()]) && !wants(&[]));
    }

    #[test]
    fn a_rename_is_wanted_by_those_who_look_at_either_path() {
        let filter =
            EventFilter::new(vec![EventKind::Rename], &[], Vec::new(), &texts(&["/in/*.csv"])).unwrap();
        let path = |path: &str| VirtualPath::root().join(path.as_bytes()).unwrap();
        let wants = |from: &str, to: &str| {
            let (from, to) = (path(from), path(to));
            let kind = EventKind::Rename;
            filter.accepts(&FilteredEvent { kind, user: "a", groups: &[], path: &to, old_path: Some(&from) })
        };
        assert!(wants("/in/a.tmp", "/in/a.csv") && wants("/in/a.csv", "/done/a.csv"));
        assert!(!wants("/in/a.tmp", "/in/b.tmp"));
    }
}

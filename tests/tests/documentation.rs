//! Documentation that is made from the daemons says what they say.

use std::{fs, path::Path, process::Command};

use cluster_tests::binaries;

#[test]
fn the_page_of_settings_holds_what_both_daemons_print() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    let page = fs::read_to_string(page).unwrap();
    let mut sections = page.split("\n## ").skip(1);
    for daemon in ["ftpd", "authd"] {
        let printed = Command::new(binaries::daemon(daemon)).arg("--print-settings").output().unwrap();
        assert!(printed.status.success(), "{printed:?}");
        let table = String::from_utf8(printed.stdout).unwrap();
        assert!(table.lines().count() > 10, "{table}");
        let expected = format!("`{daemon}`\n\n{table}");
        let section = sections.next().unwrap_or_default();
        // One side of each pair is the whole section: the first difference is enough to look at.
        let difference = section.lines().zip(expected.lines()).find(|(found, wanted)| found != wanted);
        assert_eq!(difference, None, "docs/settings.md is stale: run ./dev settings");
        assert_eq!(section.trim_end(), expected.trim_end(), "docs/settings.md is stale: run ./dev settings");
    }
    assert_eq!(sections.next(), None);
}

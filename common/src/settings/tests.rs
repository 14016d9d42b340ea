//! Tests of the table of settings, its values, its help and its pages.

use std::{ffi::OsString, fs};

use super::*;

const fn setting(key: &'static str, shape: Shape, default: &'static str, help: &'static str) -> Setting {
    Setting { key, shape, form: Form::new("THING", "a thing"), default, help, alias: None }
}

static ESSENTIAL: Group = Group {
    name: "Essential",
    about: "Settings to begin with.",
    settings: &[
        setting("control_port", Shape::One, "21", "The port. Ports below 1024 need a capability.")
            .alias("port"),
        setting("standalone", Shape::Switch, "false", "Serve alone."),
    ],
};

static LIMITS: Group = Group {
    name: "Limits",
    about: "Limits of the `demo` daemon.",
    settings: &[
        setting("idle_timeout", Shape::One, "5m", "Idle sessions end."),
        setting("trusted", Shape::Many, "", "Networks that are trusted."),
    ],
};

const MANUAL: Manual = Manual {
    synopsis: &[("demo --config FILE", "with a file"), ("demo", "without")],
    description: &["First paragraph.", "Second paragraph, on `control_port`."],
    examples: &[("Start it:", "demo --standalone \\\n  --control-port 2121")],
    files: &[("/etc/demo.toml", "Its settings.")],
    environment: &[("DEMO_CONFIG", "Path of the file.")],
    signals: &[("SIGHUP", "Reads the file again.")],
    exit_status: &[("0", "It ended as asked.")],
    see_also: &["other(8)"],
};

static SCHEMA: Schema = Schema {
    program: "demo",
    about: "shows how it works",
    version: "0",
    prefix: "DEMO_",
    groups: &[&ESSENTIAL, &LIMITS],
    subcommands: &[Subcommand { name: "hash", about: "print a hash", manual: MANUAL }],
    metrics: &[Metric::gauge("demo_places", "places", "Places in use.").labels(&[("kind", "a, b")])],
    manual: MANUAL,
    example_file: "control_port = 2121\nstandalone = true\n",
};

fn collect(args: &[&str], environment: &[(&str, &str)]) -> Result<Values, SettingsError> {
    let flags = SCHEMA.command().try_get_matches_from([&["demo"], args].concat()).unwrap();
    let environment = environment.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
    Values::collect(&SCHEMA, &flags, environment)
}

#[test]
fn a_flag_wins_over_a_variable_over_its_alias_over_the_file_over_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    fs::write(&file, "control_port = 1\ntrusted = [\"a\", \"b\"]\n").unwrap();
    let file = file.to_str().unwrap();
    let port = |args: &[&str], env: &[(&str, &str)]| {
        collect(args, env).unwrap().required::<u16>("control_port").unwrap()
    };
    assert_eq!(port(&[], &[]), 21);
    assert_eq!(port(&["--config", file], &[]), 1);
    assert_eq!(port(&["--config", file], &[("port", "2")]), 2);
    assert_eq!(port(&["--config", file], &[("DEMO_CONTROL_PORT", "3"), ("port", "2")]), 3);
    assert_eq!(port(&["--config", file, "--control-port", "4"], &[("DEMO_CONTROL_PORT", "3")]), 4);
    let values = collect(&["--config", file], &[]).unwrap();
    assert_eq!(values.list::<String>("trusted").unwrap(), ["a", "b"]);
}

#[test]
fn lists_take_commas_and_repetition_and_a_switch_alone_means_true() {
    let values = collect(&["--trusted", "a, b", "--trusted", "c", "--standalone"], &[]).unwrap();
    assert_eq!(values.list::<String>("trusted").unwrap(), ["a", "b", "c"]);
    assert!(values.required::<bool>("standalone").unwrap());
    assert!(values.is_given("standalone") && !values.is_given("idle_timeout"));
    assert!(!collect(&["--standalone", "false"], &[]).unwrap().required::<bool>("standalone").unwrap());
}

#[test]
fn an_error_names_the_setting_the_value_its_source_and_the_expected_form() {
    let values = collect(&[], &[("DEMO_IDLE_TIMEOUT", "5 apples")]).unwrap();
    let error = values.duration("idle_timeout").unwrap_err().to_string();
    for part in ["idle_timeout", "5 apples", "DEMO_IDLE_TIMEOUT", "a thing"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(collect(&["--idle-timeout", "0s"], &[]).unwrap().duration("idle_timeout").is_err());
}

fn printed(flags: &[&str]) -> String {
    let matches = SCHEMA.command().try_get_matches_from([&["demo"][..], flags].concat()).unwrap();
    String::from_utf8(SCHEMA.printed(&matches).unwrap()).unwrap()
}

#[test]
fn completions_and_the_page_of_the_file_hold_every_setting() {
    for setting in SCHEMA.settings() {
        for shell in ["bash", "zsh"] {
            assert!(printed(&["--print-completions", shell]).contains(&setting.flag()), "{shell}");
        }
        let page = printed(&["--print-manual", "demo.toml"]);
        assert!(page.contains(setting.key) && page.contains(&setting.help.replace('-', "\\-")), "{page}");
    }
    let matches = SCHEMA.command().try_get_matches_from(["demo"]).unwrap();
    assert_eq!(SCHEMA.printed(&matches), None);
}

#[test]
fn manual_pages_have_the_sections_of_their_kind() {
    const OF_DAEMON: [&str; 10] = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "EXAMPLES",
        "FILES",
        "ENVIRONMENT",
        "SIGNALS",
        "\"EXIT STATUS\"",
        "\"SEE ALSO\"",
    ];
    for (arguments, title, sections) in [
        (&["--print-manual"][..], "DEMO 8", &OF_DAEMON[..]),
        (&["--print-manual", "demo", "--check"], "DEMO 8", &OF_DAEMON),
        (&["--print-manual", "demo.toml"], "DEMO.TOML 5", &["\"LIMITS SETTINGS\"", "EXAMPLES", "FILES"]),
        (&["--print-manual", "demo-hash"], "DEMO\\-HASH 1", &["SYNOPSIS", "\"EXIT STATUS\""]),
    ] {
        let page = printed(arguments).replace("DEMO-HASH", "DEMO\\-HASH");
        assert!(page.contains(&format!(".TH {title} ")), "{page}");
        for section in sections {
            assert!(page.contains(&format!(".SH {section}\n")), "{section}: {page}");
        }
    }
    assert!(SCHEMA.command().try_get_matches_from(["demo", "--print-manual", "other"]).is_err());
}

#[test]
fn short_help_shows_the_first_group_and_long_help_every_setting() {
    let mut command = SCHEMA.command();
    let (short, long) = (command.render_help().to_string(), command.render_long_help().to_string());
    for part in ["Essential:", "--control-port <THING>", "The port [default: 21]", "Commands:", "Examples:"] {
        assert!(short.contains(part), "{part}: {short}");
    }
    assert!(short.contains("Limits: 2 more settings, see --help or demo.toml(5)"), "{short}");
    assert!(!short.contains("--idle-timeout") && !short.contains("Ports below 1024"), "{short}");
    for part in ["Limits:", "--idle-timeout <THING>", "DEMO_IDLE_TIMEOUT", "Ports below 1024", "Subcommands:"]
    {
        assert!(long.contains(part), "{part}: {long}");
    }
}

#[test]
fn tables_are_grouped_and_hold_every_setting_and_metric() {
    let settings = printed(&["--print-settings"]);
    assert!(settings.starts_with("### Essential\n\nSettings to begin with.\n\n| key |"), "{settings}");
    assert!(settings.contains("\n### Limits\n") && settings.contains("| `idle_timeout` | a thing | `5m` |"));
    let metrics = printed(&["--print-metrics"]);
    assert!(
        metrics.contains("| `demo_places` | gauge | places | `kind`: a, b | Places in use. |"),
        "{metrics}"
    );
}

#[test]
fn an_error_names_the_line_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let error = |text: &str| {
        fs::write(&path, text).unwrap();
        let values = collect(&["--config", path.to_str().unwrap()], &[]);
        values
            .and_then(|values| {
                values.duration("idle_timeout")?;
                values.required::<u16>("control_port")
            })
            .unwrap_err()
            .to_string()
    };
    let at = |line: usize| format!("{}:{line}", path.display());
    for (text, line, parts) in [
        ("\n\ncontrol_port = \"abc\"\n", 3, &["control_port = \"abc\"", "not a whole number", "a thing"][..]),
        ("control_port = 99999\n", 1, &["control_port = \"99999\"", "too large"]),
        ("\nidle_timeout = 5\n", 2, &["idle_timeout = \"5\"", "time unit"]),
        ("\n\nidle_timeuot = \"5m\"\n", 3, &["idle_timeuot", "did you mean idle_timeout?"]),
        ("\ncontrol_ports = 3\n", 2, &["control_ports", "did you mean control_port?"]),
        ("\nidle_timeout_of_sessions = 3\n", 2, &["did you mean idle_timeout?"]),
        ("\ncontrol_port = [21]\n", 2, &["control_port = \"<array>\"", "a thing"]),
        ("\n\n\nidle_timeout = \n", 4, &["not TOML"]),
    ] {
        let error = error(text);
        assert!(error.contains(&at(line)), "{line}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    }
}

#[test]
fn a_missing_setting_tells_where_it_can_be_set() {
    let error = collect(&[], &[]).unwrap().missing("trusted", "the test wants it").to_string();
    for part in ["trusted", "a thing", "DEMO_TRUSTED", "--trusted", "the test wants it"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_password_in_a_url_or_a_broken_file_is_not_repeated() {
    let values = collect(&["--trusted", "redis://ann:secret@host"], &[]).unwrap();
    let error = values.list::<u16>("trusted").unwrap_err().to_string();
    assert!(!error.contains("secret") && error.contains("redis://…@host"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    fs::write(&path, "trusted = \"secret\n").unwrap();
    let error = collect(&["--config", path.to_str().unwrap()], &[]).err().unwrap().to_string();
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn a_key_outside_the_table_is_an_error_in_every_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    fs::write(&file, "idle_timeuot = \"5m\"\n").unwrap();
    let error = collect(&["--config", file.to_str().unwrap()], &[]).err().unwrap().to_string();
    assert!(error.contains("idle_timeuot") && error.contains("did you mean idle_timeout?"), "{error}");
    let error = collect(&[], &[("DEMO_NOPE", "1")]).err().unwrap().to_string();
    assert!(error.contains("DEMO_NOPE"), "{error}");
    assert!(SCHEMA.command().try_get_matches_from(["demo", "--nope"]).is_err());
}

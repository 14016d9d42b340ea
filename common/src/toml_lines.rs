//! Line numbers in a TOML text, for messages that name `FILE:LINE`.

use toml::de::DeTable;

/// The number of the line, from 1, that holds the byte at `offset`.
pub fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The number of the line, from 1, of a key in nested tables: `["users", "ann", "home"]`. `None` if the key
/// is missing or the text is not TOML.
pub fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let parsed = DeTable::parse(text).ok()?;
    let mut table = parsed.get_ref();
    let (last, tables) = path.split_last()?;
    for name in tables {
        table = table.iter().find(|(key, _)| key.get_ref() == name)?.1.get_ref().as_table()?;
    }
    let (key, _) = table.iter().find(|(key, _)| key.get_ref() == last)?;
    Some(line_at(text, key.span().start))
}

#[cfg(test)]
mod tests {
    use super::line_of;

    #[test]
    fn keys_are_found_in_nested_tables() {
        let text = "port = 1\n\n[users.ann]\nhome = \"/a\"\n[users.\"b c\"]\n";
        assert_eq!(line_of(text, &["port"]), Some(1));
        assert_eq!(line_of(text, &["users", "ann"]), Some(3));
        assert_eq!(line_of(text, &["users", "ann", "home"]), Some(4));
        assert_eq!(line_of(text, &["users", "b c"]), Some(5));
        assert_eq!(line_of(text, &["users", "nobody"]), None);
        assert_eq!(line_of("= 3", &["users"]), None);
    }
}

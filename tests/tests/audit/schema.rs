//! Checks JSON values against a JSON Schema, with the keywords that docs/audit.schema.json uses.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A JSON Schema.
pub(crate) struct Schema(Value);

impl Schema {
    pub(crate) fn new(text: &str) -> Self {
        Self(serde_json::from_str(text).expect("the schema is JSON"))
    }

    /// The names of the described fields.
    pub(crate) fn fields(&self) -> Vec<&str> {
        self.0["properties"]
            .as_object()
            .expect("the schema describes fields")
            .keys()
            .map(String::as_str)
            .collect()
    }

    /// The violations; empty for a valid value.
    pub(crate) fn violations(&self, value: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.check(&self.0, value, "record", &mut found);
        found
    }

    fn is_valid(&self, schema: &Value, value: &Value) -> bool {
        let mut found = Vec::new();
        self.check(schema, value, "", &mut found);
        found.is_empty()
    }

    fn check(&self, schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
        for (keyword, rule) in schema.as_object().expect("a schema is an object") {
            let is_met = match keyword.as_str() {
                "$schema" | "title" | "description" | "$defs" | "then" | "else" => true,
                "$ref" => {
                    let pointer = rule.as_str().and_then(|text| text.strip_prefix('#'));
                    let target = pointer.and_then(|pointer| self.0.pointer(pointer));
                    self.check(target.expect("the reference leads to a schema"), value, place, found);
                    true
                }
                "type" => has_type(value, rule.as_str().expect("one type")),
                "const" => value == rule,
                "enum" => rule.as_array().expect("a list of values").contains(value),
                "minimum" => value.as_f64() >= rule.as_f64(),
                "minLength" => {
                    value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap())
                }
                "pattern" => value.as_str().is_none_or(|text| matches(text, rule.as_str().unwrap())),
                "format" => value.as_str().is_none_or(|text| has_format(text, rule.as_str().unwrap())),
                "required" => {
                    let names = rule.as_array().expect("a list of names");
                    names.iter().all(|name| value.get(name.as_str().unwrap()).is_some())
                }
                "properties" => {
                    for (name, inner) in rule.as_object().expect("fields") {
                        if let Some(field) = value.get(name) {
                            self.check(inner, field, &format!("{place}.{name}"), found);
                        }
                    }
                    true
                }
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        self.check(rule, item, &format!("{place}[]"), found);
                    }
                    true
                }
                "allOf" => {
                    rule.as_array()
                        .expect("schemas")
                        .iter()
                        .for_each(|all| self.check(all, value, place, found));
                    true
                }
                "anyOf" => rule.as_array().expect("schemas").iter().any(|any| self.is_valid(any, value)),
                "if" => {
                    let branch = if self.is_valid(rule, value) { "then" } else { "else" };
                    if let Some(branch) = schema.get(branch) {
                        self.check(branch, value, place, found);
                    }
                    true
                }
                unknown => panic!("this checker does not know {unknown}"),
            };
            if !is_met {
                found.push(format!("{place}: {keyword} {rule} is not met by {value}"));
            }
        }
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        unknown => panic!("this checker does not know the type {unknown}"),
    }
}

fn matches(text: &str, pattern: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match pattern {
        "^[0-9a-f]{16}$" => text.len() == 16 && is_hex(text),
        "^[0-9a-f]{64}$" => text.len() == 64 && is_hex(text),
        "^([0-9a-f]{2})+$" => !text.is_empty() && text.len().is_multiple_of(2) && is_hex(text),
        "^.+-[0-9a-f]{16}-[0-9]+$" => {
            let mut parts = text.rsplitn(3, '-');
            let (number, incarnation, name) = (parts.next(), parts.next(), parts.next());
            number.is_some_and(|number| number.parse::<u64>().is_ok())
                && incarnation.is_some_and(|part| part.len() == 16 && is_hex(part))
                && name.is_some_and(|name| !name.is_empty())
        }
        unknown => panic!("this checker does not know the pattern {unknown}"),
    }
}

fn has_format(text: &str, name: &str) -> bool {
    match name {
        "date-time" => OffsetDateTime::parse(text, &Rfc3339).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        unknown => panic!("this checker does not know the format {unknown}"),
    }
}

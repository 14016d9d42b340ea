//! `FIELD=VALUE` arguments.

use serde_json::{Map, Value};

use crate::error::ConsoleError;

/// The body of a change. `current` are the present fields: `A.B=VALUE` keeps the other fields of `A`.
pub(crate) fn body(
    fields: &[String],
    current: &Map<String, Value>,
) -> Result<Map<String, Value>, ConsoleError> {
    let mut body = Map::new();
    for field in fields {
        let wrong = |text: &str| ConsoleError::Usage(format!("{field:?}: {text}"));
        let (path, text) = field.split_once('=').ok_or_else(|| wrong("expected FIELD=VALUE"))?;
        let mut names = path.split('.');
        let first = names.next().unwrap_or_default();
        if first.is_empty() || matches!(first, "password" | "password_hash") {
            return Err(wrong("a password comes from --password-file or standard input"));
        }
        let present = || current.get(first).cloned().unwrap_or(Value::Null);
        let mut place = body.entry(first).or_insert_with(present);
        for name in names {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[name];
        }
        *place = value(text);
    }
    Ok(body)
}

/// JSON, or else text.
pub(crate) fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(fields: &[&str], current: Value) -> Value {
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        Value::Object(body(&fields, current.as_object().unwrap()).unwrap())
    }

    #[test]
    fn values_are_json_or_text() {
        let body = changed(&["home=/x", "enabled=false", "groups=[\"a\"]", "quota=null", "a=b=c"], json!({}));
        assert_eq!(
            body,
            json!({ "home": "/x", "enabled": false, "groups": ["a"], "quota": null, "a": "b=c" })
        );
    }

    #[test]
    fn field_of_an_object_keeps_the_other_fields() {
        let current = json!({ "access": { "hours": ["x"], "allow_from": ["10.0.0.0/8"] } });
        let body = changed(&["access.hours=[]", "limits.sessions=5"], current);
        assert_eq!(
            body,
            json!({ "access": { "hours": [], "allow_from": ["10.0.0.0/8"] }, "limits": { "sessions": 5 } })
        );
    }

    #[test]
    fn passwords_are_not_taken_from_the_command_line() {
        let error = body(&["password=x".to_owned()], &Map::new()).unwrap_err();
        assert_eq!(error.exit_status(), 2);
    }
}

//! `users`, `groups`.

use std::{fs, path::Path};

use common::process::prompt;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{csv, fields};
use crate::{
    cli::{GroupsCommand, UsersCommand},
    console::Console,
    error::{ConsoleError, FOUND},
    render::{human::printable, table::Table},
};

pub(crate) async fn users(console: &Console, command: UsersCommand) -> Result<u8, ConsoleError> {
    match command {
        UsersCommand::List => {
            let users: Vec<Value> = console.api.get(&["users"], &vec![]).await?;
            console.output.show(&json!({ "users": users }), || {
                let mut table = Table::new(&["USER", "ENABLED", "SOURCE", "HOME", "GROUPS"]);
                for user in &users {
                    let enabled = if user["enabled"] == json!(true) { "yes" } else { "NO" };
                    let overridden = if user["override"].is_null() { "" } else { " (override)" };
                    table.row([
                        text(&user["name"]),
                        format!("{enabled}{overridden}"),
                        source(user),
                        text(&user["home"]),
                        list(&user["groups"]),
                    ]);
                }
                table.render()
            })?;
            Ok(0)
        }
        UsersCommand::Show { name } => show(console, "users", &name).await,
        UsersCommand::Add { name, password_file, fields } => {
            let mut body = fields::body(&fields, &Map::new())?;
            body.insert("password".to_owned(), json!(password(password_file.as_deref())?));
            add(console, "users", &name, body).await
        }
        UsersCommand::Passwd { name, password_file } => {
            let body = json!({ "password": password(password_file.as_deref())? });
            change(console, "users", &name, &body, "has a new password").await
        }
        UsersCommand::Set { name, fields } => set(console, "users", &name, &fields).await,
        UsersCommand::Disable { name } => {
            change(console, "users", &name, &json!({ "enabled": false }), "is disabled").await
        }
        UsersCommand::Enable { name } => {
            change(console, "users", &name, &json!({ "enabled": true }), "is enabled").await
        }
        UsersCommand::Remove { name } => remove(console, "users", &name).await,
        UsersCommand::Import { file, update } => import(console, &file, update).await,
    }
}

pub(crate) async fn groups(console: &Console, command: GroupsCommand) -> Result<u8, ConsoleError> {
    match command {
        GroupsCommand::List => {
            let groups: Vec<Value> = console.api.get(&["groups"], &vec![]).await?;
            console.output.show(&json!({ "groups": groups }), || {
                let mut table = Table::new(&["GROUP", "SOURCE", "SETS"]);
                for group in &groups {
                    let sets: Vec<String> = group
                        .as_object()
                        .into_iter()
                        .flatten()
                        .filter(|(key, value)| !matches!(key.as_str(), "name" | "source") && !value.is_null())
                        .map(|(key, _)| key.clone())
                        .collect();
                    table.row([text(&group["name"]), source(group), sets.join(", ")]);
                }
                table.render()
            })?;
            Ok(0)
        }
        GroupsCommand::Show { name } => show(console, "groups", &name).await,
        GroupsCommand::Add { name, fields } => {
            add(console, "groups", &name, fields::body(&fields, &Map::new())?).await
        }
        GroupsCommand::Set { name, fields } => set(console, "groups", &name, &fields).await,
        GroupsCommand::Remove { name } => remove(console, "groups", &name).await,
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list(value: &Value) -> String {
    value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ")
}

fn source(object: &Value) -> String {
    match object["source"].as_str() {
        Some("declarative") => "file".to_owned(),
        Some("registry") => "API".to_owned(),
        _ => text(&object["source"]),
    }
}

/// One object: a line for each field that is set.
async fn show(console: &Console, kind: &str, name: &str) -> Result<u8, ConsoleError> {
    let object: Value = console.api.get(&[kind, name], &vec![]).await?;
    console.output.show(&object, || {
        let mut text = String::new();
        for (key, value) in object.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            lines(key, value, &mut text);
        }
        text
    })?;
    Ok(0)
}

fn lines(path: &str, value: &Value, shown: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                lines(&format!("{path}.{key}"), value, shown);
            }
        }
        value => shown.push_str(&format!("{} = {}\n", printable(path), printable(&value.to_string()))),
    }
}

async fn add(
    console: &Console,
    kind: &str,
    name: &str,
    mut body: Map<String, Value>,
) -> Result<u8, ConsoleError> {
    body.insert("name".to_owned(), json!(name));
    let answer = console.api.change(Method::POST, &[kind], &vec![], Some(&Value::Object(body))).await?;
    console.output.show(&answer, || format!("{} is created\n", printable(name)))?;
    Ok(0)
}

async fn set(console: &Console, kind: &str, name: &str, fields: &[String]) -> Result<u8, ConsoleError> {
    let current: Map<String, Value> = console.api.get(&[kind, name], &vec![]).await?;
    let body = Value::Object(fields::body(fields, &current)?);
    change(console, kind, name, &body, "is changed").await
}

async fn change(
    console: &Console,
    kind: &str,
    name: &str,
    body: &Value,
    done: &str,
) -> Result<u8, ConsoleError> {
    let answer = console.api.change(Method::PATCH, &[kind, name], &vec![], Some(body)).await?;
    console.output.show(&answer, || format!("{} {done}\n", printable(name)))?;
    Ok(0)
}

async fn remove(console: &Console, kind: &str, name: &str) -> Result<u8, ConsoleError> {
    console.api.change(Method::DELETE, &[kind, name], &vec![], None).await?;
    console.output.show(&json!({ "name": name }), || format!("{} is removed\n", printable(name)))?;
    Ok(0)
}

/// The first line of the file, or from standard input.
fn password(file: Option<&Path>) -> Result<String, ConsoleError> {
    let Some(path) = file else {
        let secret =
            prompt::password().map_err(|error| ConsoleError::Usage(format!("the password: {error}")))?;
        return Ok(secret.expose().to_owned());
    };
    let text =
        fs::read_to_string(path).map_err(|error| ConsoleError::File { path: path.to_owned(), error })?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(ConsoleError::Usage(format!("{}: the first line is empty", path.display()))),
    }
}

/// Creates a user for each record. A refused record does not stop the others.
async fn import(console: &Console, file: &Path, update: bool) -> Result<u8, ConsoleError> {
    let wrong = |text: String| ConsoleError::Usage(format!("{}: {text}", file.display()));
    let content =
        fs::read_to_string(file).map_err(|error| ConsoleError::File { path: file.to_owned(), error })?;
    let mut records = csv::records(&content).map_err(wrong)?.into_iter();
    let (_, head) = records.next().ok_or_else(|| wrong("the file is empty".to_owned()))?;
    let head: Vec<String> = head.iter().map(|name| name.trim().to_owned()).collect();
    if !head.iter().any(|name| name == "name") {
        return Err(wrong("the first line must name the fields, `name` among them".to_owned()));
    }
    let mut users = Vec::new();
    // All records are read before the first user is created.
    for (line, record) in records {
        if record.len() != head.len() {
            let text = format!("line {line}: {} fields, but the first line has {}", record.len(), head.len());
            return Err(wrong(text));
        }
        users.push((line, user_of(&head, &record)));
    }
    let (mut created, mut changed, mut refused) = (0_u64, 0_u64, Vec::new());
    for (line, body) in users {
        let name = body.get("name").map(text).unwrap_or_default();
        let whole = Value::Object(body.clone());
        let mut fields = body;
        fields.remove("name");
        let answer = match update {
            true => {
                let fields = Value::Object(fields);
                console.api.change(Method::PATCH, &["users", &name], &vec![], Some(&fields)).await
            }
            false => Err(ConsoleError::Refused { status: 404, message: String::new() }),
        };
        let (answer, count) = match answer {
            Err(ConsoleError::Refused { status: 404, .. }) => {
                let answer = console.api.change(Method::POST, &["users"], &vec![], Some(&whole)).await;
                (answer, &mut created)
            }
            answer => (answer, &mut changed),
        };
        match answer {
            Ok(_) => *count += 1,
            Err(ConsoleError::Refused { status, message }) if !matches!(status, 401 | 403 | 500..) => {
                refused.push(json!({ "line": line, "name": name, "error": message }));
            }
            Err(error) => {
                console
                    .output
                    .note(&format!("stopped at line {line}: {created} created, {changed} changed"))?;
                return Err(error);
            }
        }
    }
    let result = json!({ "created": created, "changed": changed, "refused": refused });
    console.output.show(&result, || {
        let mut shown = String::new();
        for line in &refused {
            let (name, error) = (text(&line["name"]), text(&line["error"]));
            shown.push_str(&format!("line {}: {}: {}\n", line["line"], printable(&name), printable(&error)));
        }
        shown.push_str(&format!("{created} users created, {changed} changed, {} refused\n", refused.len()));
        shown
    })?;
    Ok(if refused.is_empty() { 0 } else { FOUND })
}

/// Empty fields are left out. `groups` is a list with `;` between the names. Passwords and names are text.
fn user_of(head: &[String], record: &[String]) -> Map<String, Value> {
    let mut body = Map::new();
    for (key, cell) in head.iter().zip(record).filter(|(_, cell)| !cell.is_empty()) {
        let value = match key.as_str() {
            "name" | "password" | "password_hash" | "home" => json!(cell),
            "groups" if !cell.starts_with('[') => {
                json!(cell.split(';').map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>())
            }
            _ => fields::value(cell),
        };
        body.insert(key.clone(), value);
    }
    body
}

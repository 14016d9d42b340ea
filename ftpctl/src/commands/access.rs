//! `quota`, `block`, `unblock`, `bans`.

use std::{net::IpAddr, time::Duration};

use common::admin_api::{BlockRequest, BlockSubject, BlockView, UsageView};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::{
    api::Query,
    cli::BansCommand,
    console::Console,
    error::ConsoleError,
    render::{
        human::{bar, clock_time, count, printable, size},
        table::Table,
    },
};

/// A ban in the answer to `GET /v1/bans`.
#[derive(Debug, Serialize, Deserialize)]
struct BanLine {
    by: BlockSubject,
    name: String,
    until: String,
}

pub(crate) async fn quota(
    console: &Console,
    user: Option<String>,
    over: Option<f64>,
) -> Result<u8, ConsoleError> {
    let usage: Vec<UsageView> = match user {
        Some(user) => vec![console.api.get(&["users", &user, "usage"], &vec![]).await?],
        None => {
            let query: Query = over.map(|percent| ("over", percent.to_string())).into_iter().collect();
            console.api.get(&["usage"], &query).await?
        }
    };
    console.output.show(&serde_json::json!({ "usage": usage }), || {
        let mut table = Table::new(&["USER", "", ">BYTES", ">FILES", "COUNTED", "HOME"]);
        let of = |used: Option<String>, limit: Option<String>| {
            let used = used.unwrap_or_else(|| "?".to_owned());
            limit.map_or_else(|| used.clone(), |limit| format!("{used} of {limit}"))
        };
        let exact = console.output.bytes;
        for usage in &usage {
            table.row([
                usage.user.clone(),
                usage.percent.map(bar).unwrap_or_default(),
                of(
                    usage.bytes.map(|bytes| size(bytes, exact)),
                    usage.bytes_limit.map(|bytes| size(bytes, exact)),
                ),
                of(usage.files.map(count), usage.files_limit.map(count)),
                usage.counted.as_deref().map_or_else(|| "–".to_owned(), clock_time),
                usage.home.clone(),
            ]);
        }
        table.render()
    })?;
    Ok(0)
}

/// An address or a network; everything else is the name of a user.
fn kind(subject: &str) -> BlockSubject {
    let (address, bits) = subject.split_once('/').unwrap_or((subject, "0"));
    match address.parse::<IpAddr>() {
        Ok(_) if bits.parse::<u8>().is_ok() => BlockSubject::Address,
        _ => BlockSubject::User,
    }
}

fn kind_name(kind: BlockSubject) -> &'static str {
    match kind {
        BlockSubject::User => "user",
        BlockSubject::Address => "address",
    }
}

pub(crate) async fn blocks(console: &Console) -> Result<u8, ConsoleError> {
    let blocks: Vec<BlockView> = console.api.get(&["blocks"], &vec![]).await?;
    console.output.show(&serde_json::json!({ "blocks": blocks }), || {
        let mut table = Table::new(&["KIND", "NAME", "SINCE", "UNTIL", "BY", "REASON"]);
        for block in &blocks {
            table.row([
                kind_name(block.kind).to_owned(),
                block.name.clone(),
                block.since.clone(),
                block.until.clone().unwrap_or_else(|| "removed".to_owned()),
                block.by.clone(),
                block.reason.clone(),
            ]);
        }
        table.render()
    })?;
    Ok(0)
}

pub(crate) async fn block(
    console: &Console,
    name: String,
    duration: Option<Duration>,
    reason: String,
) -> Result<u8, ConsoleError> {
    let seconds = duration.map(|duration| duration.as_secs().max(1));
    let request = BlockRequest { kind: kind(&name), name, seconds, reason };
    let body = serde_json::to_value(&request).map_err(|error| ConsoleError::Failed(error.to_string()))?;
    let answer = console.api.change(Method::POST, &["blocks"], &vec![], Some(&body)).await?;
    console.output.show(&answer, || {
        let until = answer["until"].as_str().map_or_else(
            || format!("until: ftpctl unblock {}", printable(&request.name)),
            |until| format!("until {}", printable(until)),
        );
        format!("{} {} is blocked {until}\n", kind_name(request.kind), printable(&request.name))
    })?;
    Ok(0)
}

pub(crate) async fn unblock(console: &Console, subject: &str) -> Result<u8, ConsoleError> {
    let kind = kind_name(kind(subject));
    console.api.change(Method::DELETE, &["blocks", kind, subject], &vec![], None).await?;
    let done = serde_json::json!({ "kind": kind, "name": subject });
    console.output.show(&done, || format!("{kind} {} is not blocked any more\n", printable(subject)))?;
    Ok(0)
}

pub(crate) async fn bans(console: &Console, command: BansCommand) -> Result<u8, ConsoleError> {
    match command {
        BansCommand::List => {
            let bans: Vec<BanLine> = console.api.get(&["bans"], &vec![]).await?;
            console.output.show(&serde_json::json!({ "bans": bans }), || {
                let mut table = Table::new(&["KIND", "NAME", "UNTIL"]);
                for ban in &bans {
                    table.row([kind_name(ban.by).to_owned(), ban.name.clone(), ban.until.clone()]);
                }
                table.render()
            })?;
        }
        BansCommand::Lift { subject } => {
            // The ban of an IPv6 address is listed as its network, which authd finds by any of its addresses.
            let kind = kind_name(kind(&subject));
            console.api.change(Method::DELETE, &["bans", kind, &subject], &vec![], None).await?;
            let done = serde_json::json!({ "by": kind, "name": subject });
            console.output.show(&done, || format!("the ban of {} is lifted\n", printable(&subject)))?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_told_from_names() {
        for text in ["203.0.113.9", "203.0.113.0/24", "2001:db8::/64", "::1"] {
            assert_eq!(kind(text), BlockSubject::Address, "{text}");
        }
        for text in ["acme", "203.0.113", "10.0.0.1/x", "a/b"] {
            assert_eq!(kind(text), BlockSubject::User, "{text}");
        }
    }
}

//! Keeps a named map of nftables equal to the owners of the passive ports, for the kernel's data path.
//!
//! `nft -f -` applies a whole map in one transaction: no packet sees an empty or a half map. The relay writes
//! the map after each change, and every 5 seconds without one: another program may have loaded the table
//! again. A thread of its own runs `nft`, because it is the only one that keeps CAP_NET_ADMIN.

use std::{
    collections::BTreeMap,
    fmt, io,
    io::Write as _,
    net::IpAddr,
    process::{Command, Output, Stdio},
    str::FromStr,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use common::{
    process::capabilities,
    registry::{BlockOwner, MapContent},
};

use super::metrics;

/// Interval at which the map is written without a change.
const REPEAT: Duration = Duration::from_secs(5);

/// The name of a map of nftables: family, table and map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftMap(String);

/// The text is not the name of a map.
#[derive(Debug, thiserror::Error)]
#[error("not FAMILY TABLE MAP with the family ip, ip6 or inet, and names of letters, digits, _ and -")]
pub struct InvalidNftMap;

impl FromStr for NftMap {
    type Err = InvalidNftMap;

    fn from_str(text: &str) -> Result<Self, InvalidNftMap> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let &[family, table, map] = words.as_slice() else { return Err(InvalidNftMap) };
        // The names become part of a script for nft.
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        if !["ip", "ip6", "inet"].contains(&family) || !is_name(table) || !is_name(map) {
            return Err(InvalidNftMap);
        }
        Ok(Self(words.join(" ")))
    }
}

impl fmt::Display for NftMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the map could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot run nft (nftables must be installed, and in PATH)")]
    Run(#[source] io::Error),
    #[error("nft failed: {0}")]
    Failed(String),
    #[error("the map does not have the type `inet_service : ipv4_addr` or `inet_service : ipv6_addr`")]
    WrongType,
}

/// The family of the addresses in a map. Nodes of the other family are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NftFamily {
    V4,
    V6,
}

impl NftMap {
    /// Reads the map's type.
    ///
    /// # Errors
    /// The map does not exist or has another type, `nft` is not installed, or the process may not read rules.
    pub fn family_of_addresses(&self) -> Result<NftFamily, NftError> {
        let listed = run(&["--stateless", "list", "map"], self.0.split(' '), "")?;
        let mut types = listed.lines().filter_map(|line| line.trim().strip_prefix("type inet_service : "));
        match types.next() {
            Some("ipv4_addr") => Ok(NftFamily::V4),
            Some("ipv6_addr") => Ok(NftFamily::V6),
            _ => Err(NftError::WrongType),
        }
    }

    /// Replaces the content of the map in one step.
    fn write(&self, blocks: &[BlockOwner]) -> Result<(), NftError> {
        let family = self.family_of_addresses()?;
        run(&["-f", "-"], [], &self.script(blocks, family)).map(drop)
    }

    fn script(&self, blocks: &[BlockOwner], family: NftFamily) -> String {
        let mut script = format!("flush map {self}\n");
        let elements = elements(blocks, family);
        if !elements.is_empty() {
            script += &format!("add element {self} {{ {} }}\n", elements.join(", "));
        }
        script
    }
}

/// `PORTS : ADDRESS` for each range of ports whose owner has the same address. Of blocks that overlap the
/// first counts, as in [`common::registry::PortMap::owner`]; nft refuses elements that overlap.
fn elements(blocks: &[BlockOwner], family: NftFamily) -> Vec<String> {
    let mut owners = BTreeMap::new();
    for block in blocks {
        let address = block.address.to_canonical();
        if address.is_ipv4() == (family == NftFamily::V4) {
            block.ports.iter().for_each(|port| _ = owners.entry(port).or_insert(address));
        }
    }
    let mut ranges: Vec<(u16, u16, IpAddr)> = Vec::new();
    for (port, address) in owners {
        match ranges.last_mut() {
            Some((_, to, owner)) if *to + 1 == port && *owner == address => *to = port,
            _ => ranges.push((port, port, address)),
        }
    }
    let element = |(from, to, address): (u16, u16, IpAddr)| match from == to {
        true => format!("{from} : {address}"),
        false => format!("{from}-{to} : {address}"),
    };
    ranges.into_iter().map(element).collect()
}

/// Runs nft with `script` as its input, and returns its output.
fn run<'a>(
    options: &[&str],
    arguments: impl IntoIterator<Item = &'a str>,
    script: &str,
) -> Result<String, NftError> {
    let mut command = Command::new("nft");
    command.args(options).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(NftError::Run)?;
    if let Some(mut input) = child.stdin.take() {
        // If nft ends without reading its input, its status says why.
        let _ = input.write_all(script.as_bytes());
    }
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(NftError::Run)?;
    if !status.success() {
        let reason = String::from_utf8_lossy(&stderr);
        let reason = reason.lines().next().unwrap_or_default().trim().to_owned();
        return Err(NftError::Failed(if reason.is_empty() { status.to_string() } else { reason }));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The thread that writes the map. Call [`NftWriter::start`] before the calling thread gives up its
/// capabilities.
pub(super) struct NftWriter(mpsc::Sender<Arc<MapContent>>);

impl NftWriter {
    /// # Errors
    /// The process has no CAP_NET_ADMIN, or cannot start a thread.
    pub(super) fn start(map: NftMap) -> io::Result<Self> {
        let (contents, inbox) = mpsc::channel();
        let (started, start) = mpsc::channel();
        thread::Builder::new().name("nft".to_owned()).spawn(move || {
            let kept = capabilities::keep_network_administration();
            let is_allowed = kept.is_ok();
            // The receiver waits below.
            let _ = started.send(kept);
            if is_allowed {
                write_until_the_end(&map, &inbox);
            }
        })?;
        // The thread sends before it ends.
        start.recv().unwrap_or_else(|_| Err(io::Error::other("the thread for nft ended")))?;
        Ok(Self(contents))
    }

    /// Writes this content from now on.
    pub(super) fn set(&self, content: Arc<MapContent>) {
        // The thread runs until this sender is dropped.
        let _ = self.0.send(content);
    }
}

fn write_until_the_end(map: &NftMap, inbox: &mpsc::Receiver<Arc<MapContent>>) {
    let Ok(mut content) = inbox.recv() else { return };
    let mut works = None;
    loop {
        let result = map.write(&content.blocks);
        metrics::nft_written(result.is_ok());
        match &result {
            Ok(()) if works != Some(true) => {
                log::info!(map:%; "the nftables map has the owners of the passive ports")
            }
            Err(error) if works != Some(false) => {
                let error = common::process::logging::chain(error);
                log::error!(
                    map:%, error = error.as_str(), setting = "nft_map";
                    "cannot write the nftables map; the kernel goes on with the old one"
                );
            }
            _ => {}
        }
        works = Some(result.is_ok());
        content = match inbox.recv_timeout(REPEAT) {
            // Only the newest content counts.
            Ok(newer) => inbox.try_iter().last().unwrap_or(newer),
            Err(mpsc::RecvTimeoutError::Timeout) => content,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(ports: &str, address: &str) -> BlockOwner {
        let node = "ftp1".parse().unwrap();
        BlockOwner { ports: ports.parse().unwrap(), node, address: address.parse().unwrap(), generation: 1 }
    }

    #[test]
    fn the_name_of_a_map_has_three_safe_words() {
        let map: NftMap = " inet  ftp_data_path owners ".parse().unwrap();
        assert_eq!(map.to_string(), "inet ftp_data_path owners");
        for text in
            ["", "inet t", "inet t m x", "bridge t m", "inet t; m", "inet {t} m", "inet t m;", "inet 1 m"]
        {
            assert!(text.parse::<NftMap>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_script_replaces_the_map_by_ranges_that_do_not_overlap() {
        let map: NftMap = "inet t m".parse().unwrap();
        let blocks = [
            block("50000-50004", "10.0.0.1"),
            block("50010-50014", "10.0.0.2"),
            block("50005-50009", "10.0.0.1"),
            // Overlaps the one before; the first block counts.
            block("50008-50010", "10.0.0.3"),
            block("50020-50020", "10.0.0.3"),
            block("50021-50024", "fd00::1"),
        ];
        assert_eq!(
            map.script(&blocks, NftFamily::V4),
            "flush map inet t m\nadd element inet t m { 50000-50009 : 10.0.0.1, 50010-50014 : 10.0.0.2, \
             50020 : 10.0.0.3 }\n"
        );
        assert_eq!(
            map.script(&blocks, NftFamily::V6),
            "flush map inet t m\nadd element inet t m { 50021-50024 : fd00::1 }\n"
        );
        assert_eq!(map.script(&[], NftFamily::V4), "flush map inet t m\n");
    }
}

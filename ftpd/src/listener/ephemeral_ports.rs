//! Warns if the kernel may use ports of the passive range for outgoing connections. Such a connection,
//! even in TIME_WAIT, prevents a node or relay from listening on the port when it starts.

use std::fs;

use common::node::PortRange;

const LOCAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Logs a warning if the passive range is not reserved on this host.
pub(crate) fn warn(range: PortRange) {
    // Some containers do not have these files.
    let (Ok(local), Ok(reserved)) = (fs::read_to_string(LOCAL_RANGE), fs::read_to_string(RESERVED)) else {
        return;
    };
    if let Some(advice) = advice(range, &local, &reserved) {
        log::warn!("{advice}");
    }
}

/// The warning for a passive range `range` that overlaps the kernel's ports for outgoing connections
/// and is not completely reserved; else `None`. `local` (two numbers) and `reserved` (such as
/// `8080,50000-50099`) are the contents of [`LOCAL_RANGE`] and [`RESERVED`].
fn advice(range: PortRange, local: &str, reserved: &str) -> Option<String> {
    let mut bounds = local.split_whitespace().map(str::parse);
    let (Some(Ok(low)), Some(Ok(high))) = (bounds.next(), bounds.next()) else { return None };
    let local = PortRange::new(low, high).ok()?;
    let reserved = reserved.trim();
    let ranges: Vec<PortRange> = reserved.split(',').filter_map(ports).collect();
    let is_reserved = |port: u16| ranges.iter().any(|range| range.from() <= port && port <= range.to());
    let at_risk = range.iter().any(|port| local.from() <= port && port <= local.to() && !is_reserved(port));
    if !at_risk {
        return None;
    }
    // sysctl replaces the whole list, so the ports that are already reserved must be repeated.
    let line = if reserved.is_empty() { range.to_string() } else { format!("{reserved},{range}") };
    Some(format!(
        "the kernel may use passive ports ({range}) for outgoing connections ({local}), and then this \
         process cannot start; reserve them: sysctl -w net.ipv4.ip_local_reserved_ports={line}"
    ))
}

/// Parses `50000-50099` or `8080`.
fn ports(text: &str) -> Option<PortRange> {
    let text = text.trim();
    text.parse().ok().or_else(|| text.parse().ok().and_then(|port| PortRange::new(port, port).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(range: &str, local: &str, reserved: &str) -> Option<String> {
        let advice = advice(range.parse().unwrap(), local, reserved)?;
        Some(advice.rsplit_once("ip_local_reserved_ports=").unwrap().1.to_owned())
    }

    #[test]
    fn a_range_that_overlaps_the_kernels_ports_should_be_reserved() {
        let local = "32768\t60999\n";
        for (range, reserved, wanted) in [
            ("50000-50099", "\n", Some("50000-50099")),
            ("50000-50099", "8080,9000-9100\n", Some("8080,9000-9100,50000-50099")),
            ("50000-50099", "50000-50050\n", Some("50000-50050,50000-50099")),
            ("32700-32768", "", Some("32700-32768")),
            // Already reserved, as one range or several.
            ("50000-50099", "50000-50099\n", None),
            ("50000-50099", "8080,49000-50050,50051,50052-51000\n", None),
            // No overlap.
            ("20000-20099", "\n", None),
            ("61000-61099", "", None),
        ] {
            assert_eq!(line(range, local, reserved).as_deref(), wanted, "{range} {reserved:?}");
        }
    }

    #[test]
    fn without_a_valid_kernel_range_there_is_no_warning() {
        for local in ["", "32768", "a b", "60999 32768"] {
            assert_eq!(line("50000-50099", local, ""), None, "{local:?}");
        }
    }
}

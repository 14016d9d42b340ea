//! Groups of verbs that wait for the same parts of the cluster: the label of a metric.

/// A group of verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerbGroup {
    /// The login: authd, the registry, the home.
    Login,
    /// PASV and the like.
    DataPort,
    Download,
    /// STOR and the like, until the reply 150.
    Upload,
    Listing,
    /// Changes of the tree.
    Change,
    /// Questions about one path.
    Query,
    Checksum,
    /// Commands that neither the storage nor another daemon delays.
    Other,
}

impl VerbGroup {
    /// All groups. The position of each is its discriminant.
    pub const ALL: [Self; 9] = [
        Self::Login,
        Self::DataPort,
        Self::Download,
        Self::Upload,
        Self::Listing,
        Self::Change,
        Self::Query,
        Self::Checksum,
        Self::Other,
    ];

    /// The group of a verb of the verb table.
    pub fn of(verb: &str) -> Self {
        match verb {
            "PASS" => Self::Login,
            "PASV" | "EPSV" | "PORT" | "EPRT" => Self::DataPort,
            "RETR" => Self::Download,
            "STOR" | "STOU" | "APPE" => Self::Upload,
            "LIST" | "NLST" | "MLSD" | "MLST" | "STAT" => Self::Listing,
            "DELE" | "RMD" | "RMDA" | "MKD" | "RNTO" | "MFMT" | "COMB" | "SITE" => Self::Change,
            "CWD" | "CDUP" | "SIZE" | "MDTM" | "AVBL" | "ALLO" | "RNFR" => Self::Query,
            "HASH" | "XCRC" | "XMD5" | "XSHA1" | "XSHA256" | "XSHA512" => Self::Checksum,
            _ => Self::Other,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::DataPort => "data_port",
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Listing => "listing",
            Self::Change => "change",
            Self::Query => "query",
            Self::Checksum => "checksum",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::verbs::VERBS;

    #[test]
    fn a_verb_without_a_group_waits_for_no_other_part() {
        const OTHER: [&str; 22] = [
            "USER", "ACCT", "REIN", "QUIT", "HOST", "CLNT", "AUTH", "PBSZ", "PROT", "CCC", "PWD", "TYPE",
            "STRU", "MODE", "REST", "RANG", "ABOR", "SYST", "FEAT", "HELP", "NOOP", "OPTS",
        ];
        for verb in VERBS.iter().filter(|verb| verb.parser.is_some()) {
            let is_other = VerbGroup::of(verb.name) == VerbGroup::Other;
            assert_eq!(is_other, OTHER.contains(&verb.name), "{}", verb.name);
        }
    }

    #[test]
    fn the_position_of_a_group_is_its_discriminant() {
        for (position, group) in VerbGroup::ALL.into_iter().enumerate() {
            assert_eq!(group as usize, position, "{group:?}");
        }
    }
}

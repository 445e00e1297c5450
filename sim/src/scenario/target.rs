//! Whom a fault hits, in the words of a scenario: `n2`, `leader of flights/1`, `random replica of it`.

use std::fmt;
use std::str::FromStr;

use super::period::as_text;
use super::position::{nearest, one_of};

/// Nodes, named directly or by what they do at the moment when the fault strikes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// `n2`.
    Node(u32),
    /// `every node`.
    EveryNode,
    /// `random node`: drawn when the fault strikes.
    RandomNode,
    /// `leader of flights/1`, `meta leader`.
    Leader(Region),
    /// `every leader of flights`: each region's.
    EveryLeader(String),
    /// `follower of flights/1`, `meta follower`: the one on the least node.
    Follower(Region),
    /// `random replica of flights/1`: drawn when the fault strikes.
    RandomReplica(Region),
    /// `random follower of flights/1`: drawn when the fault strikes.
    RandomFollower(Region),
    /// `old leader`: the node that the last fault of this rule (or of the steps) was aimed at as a leader.
    OldLeader,
    /// `it`: the node that the rule's event is of.
    It,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// `flights/1`: a table and the number of its region.
    Of(String, u32),
    /// `meta`: the catalog's group.
    Meta,
    /// `it`: the region that the rule's event is of.
    It,
}

/// Some regions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regions {
    /// `flights/1`, `meta`, `it`.
    One(Region),
    /// `flights/*`: those of a table.
    OfTable(String),
    /// `*`: all, meta among them.
    All,
}

impl Target {
    /// Whether it says something only inside a rule: it speaks of the rule's event.
    pub fn needs_event(&self) -> bool {
        match self {
            Target::It => true,
            Target::Leader(region)
            | Target::Follower(region)
            | Target::RandomReplica(region)
            | Target::RandomFollower(region) => *region == Region::It,
            _ => false,
        }
    }

    /// The node's number if it is named directly.
    pub fn node(&self) -> Option<u32> {
        match self {
            Target::Node(node) => Some(*node),
            _ => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(node) => write!(f, "n{node}"),
            Target::EveryNode => f.write_str("every node"),
            Target::RandomNode => f.write_str("random node"),
            Target::Leader(Region::Meta) => f.write_str("meta leader"),
            Target::Follower(Region::Meta) => f.write_str("meta follower"),
            Target::Leader(region) => write!(f, "leader of {region}"),
            Target::EveryLeader(table) => write!(f, "every leader of {table}"),
            Target::Follower(region) => write!(f, "follower of {region}"),
            Target::RandomReplica(region) => write!(f, "random replica of {region}"),
            Target::RandomFollower(region) => write!(f, "random follower of {region}"),
            Target::OldLeader => f.write_str("old leader"),
            Target::It => f.write_str("it"),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Region::Of(table, number) => write!(f, "{table}/{number}"),
            Region::Meta => f.write_str("meta"),
            Region::It => f.write_str("it"),
        }
    }
}

impl fmt::Display for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Regions::One(region) => region.fmt(f),
            Regions::OfTable(table) => write!(f, "{table}/*"),
            Regions::All => f.write_str("*"),
        }
    }
}

/// The forms of a target, for messages.
const TARGETS: &[&str] = &[
    "n1",
    "every node",
    "random node",
    "leader of TABLE/N",
    "every leader of TABLE",
    "follower of TABLE/N",
    "random replica of TABLE/N",
    "random follower of TABLE/N",
    "meta leader",
    "meta follower",
    "old leader",
    "it",
];

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        type Role = fn(Region) -> Target;
        let roles: [(&str, Role); 4] = [
            ("leader of ", Target::Leader),
            ("follower of ", Target::Follower),
            ("random replica of ", Target::RandomReplica),
            ("random follower of ", Target::RandomFollower),
        ];
        for (role, of) in roles {
            if let Some(region) = text.strip_prefix(role) {
                return Ok(of(region.parse()?));
            }
        }
        if let Some(table) = text.strip_prefix("every leader of ") {
            return Ok(Target::EveryLeader(table_name(table)?));
        }
        match text {
            "every node" => Ok(Target::EveryNode),
            "random node" => Ok(Target::RandomNode),
            "meta leader" => Ok(Target::Leader(Region::Meta)),
            "meta follower" => Ok(Target::Follower(Region::Meta)),
            "old leader" => Ok(Target::OldLeader),
            "it" => Ok(Target::It),
            _ => match text.strip_prefix('n').and_then(number) {
                Some(node) if node > 0 => Ok(Target::Node(node)),
                _ => Err(unknown_target(text)),
            },
        }
    }
}

/// Says what a target could be. Of `leader off flights/1` the first words decide what was meant.
fn unknown_target(text: &str) -> String {
    let words = text.rsplit_once(' ').map_or(text, |(words, _)| words);
    let role = ["leader of", "follower of", "random replica of", "random follower of", "every leader of"];
    match nearest(words, &role) {
        Some(role) if text.contains(' ') && nearest(text, TARGETS).is_none() => {
            format!("expected a target ({}), found \"{text}\"; did you mean \"{role} ..\"?", TARGETS.join(", "))
        }
        _ => one_of("a target", text, TARGETS),
    }
}

impl FromStr for Region {
    type Err = String;

    fn from_str(text: &str) -> Result<Region, String> {
        match text {
            "meta" => return Ok(Region::Meta),
            "it" => return Ok(Region::It),
            _ => {}
        }
        match text.split_once('/') {
            Some((table, region)) => match number(region) {
                Some(region) => Ok(Region::Of(table_name(table)?, region)),
                None => Err(format!("expected a region like \"{table}/0\", found \"{text}\"")),
            },
            None => {
                let table = if text.is_empty() { "flights" } else { text };
                Err(format!("expected a region like \"{table}/0\", \"meta\" or, in a rule, \"it\", found \"{text}\""))
            }
        }
    }
}

impl FromStr for Regions {
    type Err = String;

    fn from_str(text: &str) -> Result<Regions, String> {
        if text == "*" {
            return Ok(Regions::All);
        }
        match text.strip_suffix("/*") {
            Some(table) => Ok(Regions::OfTable(table_name(table)?)),
            None => match text.parse() {
                Ok(region) => Ok(Regions::One(region)),
                Err(_) => Err(format!(
                    "expected regions like \"flights/1\", \"flights/*\", \"meta\" or \"*\", found \"{text}\""
                )),
            },
        }
    }
}

fn number(text: &str) -> Option<u32> {
    (text.len() == 1 || !text.starts_with('0')).then(|| text.parse().ok()).flatten()
}

/// A table's name: what SQL leaves alone without quotes.
pub(crate) fn table_name(text: &str) -> Result<String, String> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts_well && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return Ok(text.to_string());
    }
    Err(format!("expected the name of a table (a-z, 0-9, _), found \"{text}\""))
}

as_text!(Target, Region, Regions);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again() {
        for text in [
            "n2",
            "every node",
            "random node",
            "leader of flights/1",
            "every leader of flights",
            "follower of delay_by_carrier/0",
            "random replica of it",
            "random follower of flights/12",
            "meta leader",
            "meta follower",
            "old leader",
            "leader of it",
            "it",
        ] {
            assert_eq!(text.parse::<Target>().map(|target| target.to_string()), Ok(text.to_string()));
        }
        for text in ["flights/1", "flights/*", "meta", "*", "it"] {
            assert_eq!(text.parse::<Regions>().map(|regions| regions.to_string()), Ok(text.to_string()));
        }
    }

    #[test]
    fn a_wrong_one_is_told_what_it_could_be() {
        for (text, hint) in [
            ("meta leadr", "did you mean \"meta leader\""),
            ("leader off flights/1", "did you mean \"leader of ..\""),
            ("leader of flights", "\"flights/0\""),
            ("n0", "a target"),
            ("n02", "a target"),
            ("", "a target"),
            ("leader of Flights/1", "name of a table"),
            ("leader of flights/x", "\"flights/0\""),
        ] {
            let message = text.parse::<Target>().unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
        assert!("flights".parse::<Regions>().is_err());
    }
}

//! The file as serde reads it: flat structs of options with their places, unknown keys refused. Nothing is checked here
//! beyond names and types; no `untagged`, no `flatten`, because they lose the places.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use toml::Spanned;

pub(super) type Text = Option<Spanned<String>>;
pub(super) type Number = Option<Spanned<i64>>;
pub(super) type Any = Option<Spanned<toml::Value>>;
pub(super) type Table = BTreeMap<Spanned<String>, Spanned<toml::Value>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    pub title: Text,
    /// Read before, and put into the rest: see `matrix.rs`.
    #[expect(dead_code, reason = "its name must be known")]
    pub matrix: Option<toml::Table>,
    #[serde(default)]
    pub seeds: Vec<Spanned<i64>>,
    pub budget: Text,
    pub cluster: Option<Spanned<Cluster>>,
    #[serde(default)]
    pub step: Vec<Spanned<Step>>,
    #[serde(default)]
    pub on: Vec<Spanned<Rule>>,
    #[serde(default)]
    pub workload: Vec<Spanned<Workload>>,
    #[serde(default)]
    pub storm: Vec<Spanned<Storm>>,
    pub expect: Option<Spanned<Expect>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    pub nodes: Number,
    #[serde(default)]
    pub options: Table,
}

/// A step, or what a rule does: exactly one verb, and words that go with it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub sql: Text,
    pub load: Option<Spanned<Load>>,
    pub join: Text,
    pub wait: Option<Spanned<Wait>>,
    pub check: Text,
    pub sleep: Text,
    pub repeat: Number,
    pub power_loss: Text,
    pub crash: Text,
    pub restart: Text,
    pub pause: Text,
    pub resume: Text,
    pub transfer_leader: Text,
    pub isolate: Text,
    pub partition: Option<Spanned<Vec<Vec<Spanned<String>>>>>,
    pub heal: Option<Spanned<bool>>,
    pub cut: Option<Spanned<Cut>>,
    pub disk: Option<Spanned<Disk>>,
    pub clock: Option<Spanned<Clock>>,
    pub wipe: Text,
    pub option: Option<Spanned<Table>>,

    pub error: Text,
    pub rows: Number,
    pub client: Text,
    pub node: Text,
    pub within: Text,
    pub unknown: Text,
    pub start: Text,
    pub steps: Option<Spanned<Vec<Spanned<Step>>>>,
    pub restart_after: Text,
    #[serde(rename = "for")]
    pub lasts: Text,
    pub to: Text,
    pub direction: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    pub table: Text,
    pub file: Text,
    pub rows: Number,
    pub batch: Number,
    pub ingest: Text,
    #[serde(default)]
    pub casts: BTreeMap<Spanned<String>, Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    pub ready: Text,
    pub leader: Text,
    pub converged: Text,
    pub up: Text,
    pub down: Text,
    pub event: Text,
    pub fired: Text,
    pub within: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cut {
    pub kind: Text,
    pub side: Text,
    pub nth: Number,
    pub times: Number,
    pub from: Text,
    pub to: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    pub node: Text,
    pub files: Text,
    pub op: Text,
    pub nth: Number,
    pub times: Number,
    pub effect: Text,
    pub delay: Text,
    #[serde(rename = "for")]
    pub lasts: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clock {
    pub node: Text,
    pub offset: Text,
    pub drift_ppm: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Workload {
    pub name: Text,
    pub kind: Text,
    pub table: Text,
    pub column: Text,
    pub clients: Number,
    pub ops: Number,
    pub mix: Option<Spanned<Mix>>,
    pub staleness: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mix {
    pub insert: Number,
    pub update: Number,
    pub delete: Number,
    pub read: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Storm {
    pub name: Text,
    #[serde(default)]
    pub kinds: Vec<Spanned<String>>,
    pub from: Text,
    pub until: Text,
    pub every: Text,
    #[serde(default)]
    pub targets: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    #[serde(default)]
    pub result: Vec<Spanned<String>>,
    #[serde(default)]
    pub holds: Vec<Spanned<String>>,
    #[serde(default)]
    pub happened: Vec<Spanned<String>>,
    #[serde(default)]
    pub exempt: Vec<Spanned<Exempt>>,
    pub outcome: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exempt {
    pub oracle: Text,
    pub reason: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Durable {
    pub file: Text,
    pub step: Text,
    pub when: Text,
}

/// A rule: some words of its own; every other key is a field of its event, so no derived struct can list them.
#[derive(Default)]
pub(super) struct Rule {
    pub name: Text,
    pub event: Text,
    pub durable: Option<Spanned<Durable>>,
    /// A number, or the least and the most.
    pub nth: Any,
    pub times: Number,
    pub after: Text,
    pub each: Text,
    pub action: Option<Spanned<Step>>,
    pub node: Text,
    pub fields: Vec<(Spanned<String>, Spanned<toml::Value>)>,
}

/// The words of a rule that are no fields of events.
pub(super) const RULE_KEYS: &[&str] = &["name", "event", "durable", "nth", "times", "after", "each", "do", "node"];

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rule, D::Error> {
        struct RuleVisitor;

        impl<'de> Visitor<'de> for RuleVisitor {
            type Value = Rule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rule")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Rule, A::Error> {
                let mut rule = Rule::default();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    match key.get_ref().as_str() {
                        "name" => rule.name = Some(map.next_value()?),
                        "event" => rule.event = Some(map.next_value()?),
                        "durable" => rule.durable = Some(map.next_value()?),
                        "nth" => rule.nth = Some(map.next_value()?),
                        "times" => rule.times = Some(map.next_value()?),
                        "after" => rule.after = Some(map.next_value()?),
                        "each" => rule.each = Some(map.next_value()?),
                        "do" => rule.action = Some(map.next_value()?),
                        "node" => rule.node = Some(map.next_value()?),
                        _ => {
                            let value = map.next_value()?;
                            rule.fields.push((key, value));
                        }
                    }
                }
                Ok(rule)
            }
        }

        deserializer.deserialize_map(RuleVisitor)
    }
}

//! Which events a rule or a claim is about: `FlushFinished on n2 with region = flights/1 and rows >= 3`.
//!
//! Kinds and fields are those of [`Event::SCHEMA`], so the language cannot drift from the product. Not here: counting
//! (a rule's `nth`, a claim's `at least`).

use std::fmt;
use std::str::FromStr;

use engine::event::Event;
use engine::types::{NodeId, RegionId};

use super::period::as_text;
use super::position::one_of;
use super::target::{Region, Regions};

/// Events of one kind whose fields have certain values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The kind, as in [`Event::SCHEMA`].
    pub event: String,
    /// Only those of this node.
    pub node: Option<u32>,
    /// All must hold.
    pub fields: Vec<(String, Test)>,
}

/// What a field's value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// A region among these.
    Region(Regions),
    /// A number, compared.
    Number(Comparison, u64),
    /// This text.
    Text(String),
}

/// How a number is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Comparison {
    Equal,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Condition {
    /// Events of this kind, whatever their fields. The error lists the kinds that there are.
    pub fn of(event: &str) -> Result<Condition, String> {
        let kinds: Vec<&str> = Event::SCHEMA.iter().map(|(name, _)| *name).collect();
        if !kinds.contains(&event) {
            return Err(one_of("an event", event, &kinds));
        }
        Ok(Condition { event: event.to_string(), node: None, fields: Vec::new() })
    }

    /// Adds that `field` must pass the test `text`: for a number `3` or `>= 3`, else the value itself.
    pub fn require(&mut self, field: &str, text: &str) -> Result<(), String> {
        let kind = Event::SCHEMA.iter().find(|(name, _)| *name == self.event);
        let fields = kind.map_or(&[][..], |(_, fields)| *fields);
        let Some((_, kind)) = fields.iter().find(|(name, _)| *name == field) else {
            let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            return Err(one_of(&format!("a field of {}", self.event), field, &names));
        };
        let test = match *kind {
            "RegionId" => Test::Region(text.parse()?),
            "String" => Test::Text(text.to_string()),
            "bool" if ["true", "false"].contains(&text) => Test::Text(text.to_string()),
            "bool" => return Err(format!("expected true or false, found \"{text}\"")),
            "u64" | "u32" | "Sequence" | "Incarnation" | "NodeId" => number(text)?,
            "ReplicaId" => {
                return Err(format!(
                    "expected a field that is known before the run; the id in `{field}` is not: name a region"
                ));
            }
            _ => return Err(format!("expected a field with a single value; `{field}` is a {kind}")),
        };
        self.fields.push((field.to_string(), test));
        Ok(())
    }

    /// Whether `event`, which happened on `node`, is one of these. `table` gives the name of a table by its id; the
    /// regions `it` stands for are those in `it`.
    pub fn matches(
        &self,
        node: NodeId,
        event: &Event,
        table: &dyn Fn(u32) -> Option<String>,
        it: Option<RegionId>,
    ) -> bool {
        self.event == event.name()
            && self.node.is_none_or(|wanted| u64::from(wanted) == node.0)
            && self.fields.iter().all(|(field, test)| match event.field(field) {
                Some(value) => test.passes(&value, table, it),
                None => false,
            })
    }

    /// Whether it speaks of the region of a rule's event.
    pub fn needs_event(&self) -> bool {
        self.fields.iter().any(|(_, test)| *test == Test::Region(Regions::One(Region::It)))
    }
}

impl Test {
    fn passes(&self, value: &str, table: &dyn Fn(u32) -> Option<String>, it: Option<RegionId>) -> bool {
        match self {
            Test::Region(regions) => regions.contain(value, table, it),
            Test::Text(text) => text == value,
            Test::Number(comparison, wanted) => {
                // Ids are shown with a letter in front, `n2`.
                let digits = value.trim_start_matches(|c: char| !c.is_ascii_digit());
                let digits = digits.trim_end_matches(|c: char| !c.is_ascii_digit());
                digits.parse::<u64>().is_ok_and(|value| match comparison {
                    Comparison::Equal => value == *wanted,
                    Comparison::Less => value < *wanted,
                    Comparison::AtMost => value <= *wanted,
                    Comparison::More => value > *wanted,
                    Comparison::AtLeast => value >= *wanted,
                })
            }
        }
    }
}

impl Regions {
    /// Whether the region that events show as `shown` (`7/0`, `meta`) is among these.
    pub fn contain(&self, shown: &str, table: &dyn Fn(u32) -> Option<String>, it: Option<RegionId>) -> bool {
        let parts = shown.split_once('/').and_then(|(id, number)| {
            Some((table(id.trim_start_matches('t').parse().ok()?)?, number.parse::<u32>().ok()?))
        });
        match self {
            Regions::All => true,
            Regions::One(Region::Meta) => shown == "meta",
            Regions::One(Region::It) => it.is_some_and(|it| it.to_string() == shown),
            Regions::One(Region::Of(name, number)) => parts == Some((name.clone(), *number)),
            Regions::OfTable(name) => parts.is_some_and(|(table, _)| table == *name),
        }
    }
}

fn number(text: &str) -> Result<Test, String> {
    let signs = [
        (">=", Comparison::AtLeast),
        ("<=", Comparison::AtMost),
        (">", Comparison::More),
        ("<", Comparison::Less),
        ("=", Comparison::Equal),
    ];
    let text = text.trim();
    let (comparison, digits) = signs
        .into_iter()
        .find_map(|(sign, comparison)| Some((comparison, text.strip_prefix(sign)?)))
        .unwrap_or((Comparison::Equal, text));
    match digits.trim().parse() {
        Ok(value) => Ok(Test::Number(comparison, value)),
        Err(_) => Err(format!("expected a number like 3 or \">= 3\", found \"{text}\"")),
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Test::Region(regions) => write!(f, "= {regions}"),
            Test::Text(text) => write!(f, "= {text}"),
            Test::Number(comparison, value) => {
                let sign = match comparison {
                    Comparison::Equal => "=",
                    Comparison::Less => "<",
                    Comparison::AtMost => "<=",
                    Comparison::More => ">",
                    Comparison::AtLeast => ">=",
                };
                write!(f, "{sign} {value}")
            }
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.event)?;
        if let Some(node) = self.node {
            write!(f, " on n{node}")?;
        }
        for (at, (field, test)) in self.fields.iter().enumerate() {
            write!(f, "{}{field} {test}", if at == 0 { " with " } else { " and " })?;
        }
        Ok(())
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Condition, String> {
        let (head, fields) = match text.split_once(" with ") {
            Some((head, fields)) => (head, Some(fields)),
            None => (text, None),
        };
        let (event, node) = match head.split_once(" on ") {
            Some((event, node)) => (event, Some(node)),
            None => (head, None),
        };
        let mut condition = Condition::of(event.trim())?;
        if let Some(node) = node {
            let number = node.trim().strip_prefix('n').and_then(|number| number.parse().ok()).filter(|node| *node > 0);
            condition.node = Some(number.ok_or_else(|| format!("expected a node like \"n1\", found \"{node}\""))?);
        }
        for part in fields.into_iter().flat_map(|fields| fields.split(" and ")) {
            let part = part.trim();
            let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
            let (field, test) = part.split_at(end);
            let test = test.trim();
            let value = test.strip_prefix('=').map(str::trim);
            let wrong = || format!("expected FIELD = VALUE or FIELD >= NUMBER, found \"{part}\"");
            match (field, value) {
                ("", _) => return Err(wrong()),
                (field, Some(value)) if !value.is_empty() => condition.require(field, value)?,
                (field, None) if test.starts_with(['<', '>']) => condition.require(field, test)?,
                _ => return Err(wrong()),
            }
        }
        Ok(condition)
    }
}

as_text!(Condition);

#[cfg(test)]
mod tests {
    use super::*;
    use engine::types::ReplicaId;

    fn flush(region: RegionId, rows: u64) -> Event {
        Event::FlushStarted { region, replica: ReplicaId(5), upto: engine::types::LogId { term: 1, index: 9 }, rows }
    }

    fn tables(id: u32) -> Option<String> {
        (id == 7).then(|| "flights".to_string())
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for text in [
            "NodeStarted",
            "NodeStarted on n2",
            "FlushFinished with region = flights/1 and rows >= 3",
            "LogOpened on n1 with torn_bytes > 0",
            "VersionSwapped with why = install",
            "FillResumed with view = by_carrier and is_live = true and round > 1",
        ] {
            assert_eq!(text.parse::<Condition>().map(|condition| condition.to_string()), Ok(text.to_string()));
        }
    }

    #[test]
    fn a_condition_holds_of_the_events_that_it_describes() {
        let region = RegionId::new(engine::types::TableId(7), 1);
        let holds = |text: &str, event: &Event| {
            let condition: Condition = text.parse().unwrap();
            condition.matches(NodeId(2), event, &tables, Some(region))
        };
        let event = flush(region, 10);
        for text in [
            "FlushStarted",
            "FlushStarted on n2",
            "FlushStarted with region = flights/1",
            "FlushStarted with region = flights/* and rows = 10",
            "FlushStarted with region = * and rows >= 10 and rows < 11",
            "FlushStarted with region = it",
        ] {
            assert!(holds(text, &event), "{text}");
        }
        for text in [
            "FlushFinished",
            "FlushStarted on n1",
            "FlushStarted with region = flights/2",
            "FlushStarted with region = flight/*",
            "FlushStarted with region = meta",
            "FlushStarted with rows > 10",
        ] {
            assert!(!holds(text, &event), "{text}");
        }
        assert!(holds("FlushStarted with region = meta", &flush(RegionId::META, 1)));
    }

    #[test]
    fn a_wrong_one_is_told_what_it_could_be() {
        for (text, hint) in [
            ("FlushFinnished", "did you mean \"FlushFinished\""),
            ("FlushFinished with regoin = flights/1", "did you mean \"region\""),
            ("FlushFinished with rows = many", "a number"),
            ("FlushFinished with replica = r1", "name a region"),
            ("FlushFinished with upto = 1.2", "single value"),
            ("FillResumed with is_live = yes", "true or false"),
            ("FlushFinished with region", "FIELD = VALUE"),
            ("FlushFinished with = 3", "FIELD = VALUE"),
            ("FlushFinished on 2", "a node like"),
        ] {
            let message = text.parse::<Condition>().unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }
}

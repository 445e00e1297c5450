//! What a scenario claims to have hit: a closed set of sentences, and the count that proves them.
//!
//! A sentence that stays unproved makes the run vacuous: nothing was shown.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use engine::event::Event;
use engine::types::NodeId;

use super::condition::Condition;
use super::period::as_text;
use super::position::nearest;
use super::target::{Region, Regions, table_name};
use crate::run::report::Effect;

/// One sentence about what must have happened, with what proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// As it was written.
    pub text: String,
    /// What has to be counted.
    pub claim: Claim,
    /// How often, per region if it is claimed of each.
    pub at_least: u64,
    /// Of each region of the claim, not of any of them.
    pub each: bool,
}

/// What has to be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Events.
    Event(Condition),
    /// An effect of faults.
    Effect(Effect),
    /// A node was lost (power loss or crash) in this role while it had rows of a client unacknowledged.
    Lost(Role, Regions),
    /// Regions got another leader than their first.
    LeaderChanged(Regions),
}

/// What a lost node was to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It led.
    Leader,
    /// It followed.
    Follower,
}

/// Sentences about effects.
const EFFECTS: &[(&str, Effect)] = &[
    ("unsynced bytes were lost", Effect::UnsyncedBytesLost),
    ("a sector was torn", Effect::SectorsTorn),
    ("a directory entry was lost", Effect::DirectoryEntriesLost),
    ("a disk operation failed", Effect::IoErrors),
    ("a disk rotted", Effect::Rotted),
    ("a disk was full", Effect::DiskFull),
    ("a disk stalled", Effect::Stalls),
    ("a connection was cut", Effect::ConnectionsCut),
    ("segments were held back", Effect::SegmentsHeld),
    ("a partition was healed", Effect::Heals),
    ("a request was lost", Effect::RequestsLost),
    ("an answer was lost", Effect::AnswersLost),
    ("a node lost power", Effect::PowerLosses),
    ("a process crashed", Effect::Crashes),
    ("a node was restarted", Effect::Restarts),
    ("a node was paused", Effect::Pauses),
    ("a paused node went on", Effect::Resumes),
    ("a leader was asked to hand over", Effect::Transfers),
    ("a clock was wrong", Effect::ClocksChanged),
    ("a node started with other options", Effect::OptionsChanged),
];

/// Sentences about events; those whose event has a region may add `in REGIONS`.
const EVENTS: &[(&str, &str)] = &[
    ("a snapshot was installed", "SnapshotInstalled"),
    ("a write was answered from the session", "WriteRepeated"),
    ("a torn tail was cut", "LogOpened with torn_bytes > 0"),
    ("a write was refused because its rows had changed", "WriteConflict"),
    ("a write met a table that was altered since it was made", "WriteOutdated"),
    ("a flush finished", "FlushFinished"),
    ("a flush failed", "FlushFailed"),
    ("files were compacted", "CompactionFinished"),
    ("versions that nobody can read were dropped", "CompactionFinished with dropped > 0"),
    ("a compaction failed", "CompactionFailed"),
    ("a log was purged", "Purged"),
    ("a log was truncated", "Truncated"),
    ("a replica was reopened after a failed write", "ReplicaReopening"),
    ("a stale route was refreshed", "RouteRefreshed"),
    ("requests were cut off with a connection", "PeerLost with unanswered > 0"),
    ("a fill was resumed", "FillResumed with is_live = false"),
    ("a live view was resumed", "FillResumed with is_live = true"),
    ("a batch was refused", "BatchRefused"),
    ("a view became ready", "ViewReady"),
    ("a view failed", "ViewFailed"),
];

const LOST: &str = "rows were unacknowledged when the ";
const CHANGED: &str = "the leader of ";
const EACH: &str = "each region of ";

impl Happened {
    /// Whether it claims that an event of one of these kinds happened.
    pub fn is_about(&self, kinds: &[&str]) -> bool {
        matches!(&self.claim, Claim::Event(condition) if kinds.contains(&condition.event.as_str()))
    }

    /// Every form that a sentence can have, for messages and the schema.
    pub fn forms() -> Vec<String> {
        let mut forms: Vec<String> = EFFECTS.iter().map(|(text, _)| (*text).to_string()).collect();
        forms.extend(EVENTS.iter().map(|(text, event)| match has_region(event) {
            true => format!("{text} [in REGIONS]"),
            false => (*text).to_string(),
        }));
        forms.push("rows were unacknowledged when the leader|follower of REGIONS was lost".to_string());
        forms.push("the leader of REGIONS changed".to_string());
        forms.push("EVENT [on nN] [with FIELD = VALUE [and FIELD >= NUMBER ..]]".to_string());
        forms
    }
}

fn has_region(event: &str) -> bool {
    let name = event.split(' ').next().unwrap_or(event);
    let fields = Event::SCHEMA.iter().find(|(kind, _)| *kind == name).map_or(&[][..], |(_, fields)| *fields);
    fields.iter().any(|(field, _)| *field == "region")
}

impl FromStr for Happened {
    type Err = String;

    fn from_str(text: &str) -> Result<Happened, String> {
        let (sentence, at_least) = match text.rsplit_once(" at least ") {
            Some((sentence, count)) => {
                let times = count.strip_suffix(" times").or_else(|| count.strip_suffix(" time")).unwrap_or(count);
                let times = times.parse().ok().filter(|times| *times > 0);
                let wrong = || format!("expected \"at least N times\", found \"at least {count}\"");
                (sentence, times.ok_or_else(wrong)?)
            }
            None => (text, 1),
        };
        let (claim, each) = claim(sentence)?;
        Ok(Happened { text: text.to_string(), claim, at_least, each })
    }
}

fn claim(sentence: &str) -> Result<(Claim, bool), String> {
    if let Some((_, effect)) = EFFECTS.iter().find(|(text, _)| *text == sentence) {
        return Ok((Claim::Effect(*effect), false));
    }
    for (text, event) in EVENTS {
        let Some(rest) = sentence.strip_prefix(text) else { continue };
        let mut condition: Condition = event.parse()?;
        if rest.is_empty() {
            return Ok((Claim::Event(condition), false));
        }
        if let Some(place) = rest.strip_prefix(" in ")
            && has_region(event)
        {
            let (regions, each) = regions(place)?;
            condition.require("region", &regions.to_string())?;
            return Ok((Claim::Event(condition), each));
        }
    }
    if let Some(rest) = sentence.strip_prefix(LOST)
        && let Some(rest) = rest.strip_suffix(" was lost")
        && let Some((role, place)) = rest.split_once(" of ")
        && let Some(role) = [("leader", Role::Leader), ("follower", Role::Follower)]
            .into_iter()
            .find_map(|(name, value)| (name == role).then_some(value))
    {
        let (regions, each) = regions(place)?;
        return Ok((Claim::Lost(role, regions), each));
    }
    if let Some(rest) = sentence.strip_prefix(CHANGED)
        && let Some(place) = rest.strip_suffix(" changed")
    {
        let (regions, each) = regions(place)?;
        return Ok((Claim::LeaderChanged(regions), each));
    }
    if sentence.starts_with(|c: char| c.is_ascii_uppercase()) {
        return Ok((Claim::Event(sentence.parse()?), false));
    }
    let forms = Happened::forms();
    let forms: Vec<&str> = forms.iter().map(String::as_str).collect();
    let near = nearest(sentence, &forms).map_or(String::new(), |near| format!("; did you mean \"{near}\"?"));
    Err(format!("expected a sentence of the form \"{}\", found \"{sentence}\"{near}", forms.join("\", \"")))
}

/// `flights/1`, `flights/*`, `meta`, or `each region of flights`: of each, not of any.
fn regions(text: &str) -> Result<(Regions, bool), String> {
    match text.strip_prefix(EACH) {
        Some(table) => Ok((Regions::OfTable(table_name(table)?), true)),
        None => match text.parse()? {
            Regions::One(Region::It) => Err("expected regions by name; \"it\" means something only in a rule".into()),
            regions => Ok((regions, false)),
        },
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

as_text!(Happened);

/// Counts what the sentences of a scenario need, but for the effects of faults, which others count.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Each sentence with its count by region (as events show it), `""` for what has none.
    counts: Vec<(Happened, BTreeMap<String, u64>)>,
    /// Events by kind: what was seen instead, when a sentence stays unproved.
    seen: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(happened: &[Happened]) -> Tally {
        Tally {
            counts: happened.iter().map(|sentence| (sentence.clone(), BTreeMap::new())).collect(),
            seen: BTreeMap::new(),
        }
    }

    /// An event of `node`. `table` gives the name of a table by its id.
    pub fn event(&mut self, node: NodeId, event: &Event, table: &dyn Fn(u32) -> Option<String>) {
        *self.seen.entry(event.name()).or_default() += 1;
        let region = event.field("region").unwrap_or_default();
        for (sentence, counts) in &mut self.counts {
            let counted = match &sentence.claim {
                Claim::Event(condition) => condition.matches(node, event, table, None),
                Claim::LeaderChanged(regions) => {
                    matches!(event, Event::BecameLeader { .. }) && regions.contain(&region, table, None)
                }
                Claim::Effect(_) | Claim::Lost(..) => false,
            };
            if counted {
                *counts.entry(region.clone()).or_default() += 1;
            }
        }
    }

    /// A node was lost that was `role` to `region` (as events show it) and had `rows` unacknowledged.
    pub fn lost(&mut self, role: Role, region: &str, rows: u64, table: &dyn Fn(u32) -> Option<String>) {
        for (sentence, counts) in &mut self.counts {
            if let Claim::Lost(wanted, regions) = &sentence.claim
                && *wanted == role
                && rows > 0
                && regions.contain(region, table, None)
            {
                *counts.entry(region.to_string()).or_default() += 1;
            }
        }
    }

    /// The sentences that stay unproved, with what was seen. `regions_of` gives the number of regions of a table; `effects`
    /// are those of the faults.
    pub fn unproved(&self, regions_of: &dyn Fn(&str) -> u32, effects: &BTreeMap<Effect, u64>) -> Vec<String> {
        let unproved = self.counts.iter().filter_map(|(sentence, counts)| {
            // The first leader is no change.
            let free = u64::from(matches!(sentence.claim, Claim::LeaderChanged(_)));
            let enough = |count: &u64| count.saturating_sub(free) >= sentence.at_least;
            if sentence.each {
                let wanted = sentence.table().map_or(1, regions_of).max(1) as usize;
                let reached = counts.values().filter(|count| enough(count)).count();
                return (reached < wanted)
                    .then(|| format!("\"{sentence}\": in {reached} of {wanted} regions{}", self.instead(sentence)));
            }
            let total: u64 = match &sentence.claim {
                Claim::Effect(effect) => effects.get(effect).copied().unwrap_or_default(),
                _ => counts.values().map(|count| count.saturating_sub(free)).sum(),
            };
            (total < sentence.at_least)
                .then(|| format!("\"{sentence}\": {total} of {} times{}", sentence.at_least, self.instead(sentence)))
        });
        unproved.collect()
    }

    fn instead(&self, sentence: &Happened) -> String {
        let kind = match &sentence.claim {
            Claim::Event(condition) => condition.event.as_str(),
            Claim::LeaderChanged(_) => "BecameLeader",
            Claim::Effect(_) | Claim::Lost(..) => return String::new(),
        };
        format!(" ({kind} was seen {} times in all)", self.seen.get(kind).copied().unwrap_or(0))
    }
}

impl Happened {
    fn table(&self) -> Option<&str> {
        let regions = match &self.claim {
            Claim::Lost(_, regions) | Claim::LeaderChanged(regions) => regions,
            Claim::Event(condition) => condition.fields.iter().find_map(|(_, test)| match test {
                super::condition::Test::Region(regions) => Some(regions),
                _ => None,
            })?,
            Claim::Effect(_) => return None,
        };
        match regions {
            Regions::OfTable(table) => Some(table),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::types::{RegionId, ReplicaId, TableId};

    fn tables(id: u32) -> Option<String> {
        (id == 7).then(|| "flights".to_string())
    }

    fn elected(number: u32, term: u64) -> Event {
        Event::BecameLeader { region: RegionId::new(TableId(7), number), replica: ReplicaId(1), term }
    }

    fn tally(sentences: &[&str]) -> Tally {
        Tally::new(&sentences.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn every_form_is_understood() {
        for form in Happened::forms() {
            let text = form.split(" [").next().unwrap().replace("leader|follower", "leader");
            let text = text.replace("REGIONS", "flights/*").replace("EVENT", "NodeStarted");
            assert!(text.parse::<Happened>().is_ok(), "{text}");
        }
        let sentence: Happened = "a snapshot was installed in each region of flights at least 2 times".parse().unwrap();
        assert!(sentence.each && sentence.at_least == 2);
        assert_eq!(
            "WriteRepeated with region = flights/1 at least 3 times".parse::<Happened>().map(|h| h.at_least),
            Ok(3)
        );
    }

    #[test]
    fn a_wrong_one_lists_what_is_possible() {
        for (text, hint) in [
            ("unsynced bytes where lost", "did you mean \"unsynced bytes were lost\""),
            ("it rained", "a snapshot was installed [in REGIONS]"),
            ("a torn tail was cut in flights/1", "a torn tail was cut"),
            ("unsynced bytes were lost at least many times", "at least N times"),
            ("unsynced bytes were lost at least 0 times", "at least N times"),
            ("FlushFinnished at least 2 times", "did you mean \"FlushFinished\""),
            ("rows were unacknowledged when the owner of flights/* was lost", "leader|follower"),
            ("the leader of flights changed", "expected regions"),
        ] {
            let message = text.parse::<Happened>().unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }

    #[test]
    fn a_sentence_is_proved_by_what_it_speaks_of_and_by_nothing_else() {
        let sentences = ["unsynced bytes were lost", "rows were unacknowledged when the leader of flights/* was lost"];
        let mut tally = tally(&sentences);
        let mut effects = BTreeMap::from([(Effect::Crashes, 1), (Effect::UnsyncedBytesLost, 0)]);
        assert_eq!(tally.unproved(&|_| 2, &effects).len(), 2);
        tally.lost(Role::Follower, "t7/0", 5, &tables);
        tally.lost(Role::Leader, "t7/0", 0, &tables);
        tally.lost(Role::Leader, "t8/0", 5, &tables);
        assert_eq!(tally.unproved(&|_| 2, &effects).len(), 2);
        effects.insert(Effect::UnsyncedBytesLost, 4096);
        tally.lost(Role::Leader, "t7/0", 5, &tables);
        assert_eq!(tally.unproved(&|_| 2, &effects), Vec::<String>::new());
    }

    #[test]
    fn every_effect_can_be_claimed() {
        let claimed: Vec<Effect> = EFFECTS.iter().map(|(_, effect)| *effect).collect();
        assert!(Effect::ALL.iter().all(|(effect, _)| claimed.contains(effect)), "{claimed:?}");
    }

    #[test]
    fn what_is_claimed_of_each_region_must_happen_in_each() {
        let mut tally = tally(&["the leader of each region of flights changed"]);
        for (number, term) in [(0, 1), (1, 1), (0, 2), (0, 3)] {
            tally.event(NodeId(1), &elected(number, term), &tables);
        }
        let unproved = tally.unproved(&|_| 2, &BTreeMap::new());
        assert_eq!(
            unproved,
            [
                "\"the leader of each region of flights changed\": in 1 of 2 regions (BecameLeader was seen 4 times in all)"
            ]
        );
        tally.event(NodeId(1), &elected(1, 2), &tables);
        assert!(tally.unproved(&|_| 2, &BTreeMap::new()).is_empty());
    }
}

//! The JSON schema of scenario files: for editors, so that they complete and explain. Made of the same tables as the
//! parser; a test keeps its keys equal to those that serde takes.

use engine::error::Error;
use engine::event::Event;
use serde_json::{Value, json};

use super::decode::{EXPECTED_OUTCOMES, MODIFIERS, VERBS, WORKLOADS};
use super::durable::{FileKind, StepKind, When};
use super::fault::{Direction, DiskEffect, DiskOp, FileClass, Side, StormKind};
use super::happened::Happened;
use crate::oracle::NAMES;

/// The schema.
pub fn schema() -> Value {
    let options: serde_json::Map<String, Value> = serde_json::to_value(super::default_options())
        .ok()
        .and_then(|options| options.as_object().cloned())
        .unwrap_or_default()
        .into_iter()
        .map(|(name, default)| (name, json!({ "type": "integer", "minimum": 0, "default": default })))
        .collect();
    let kinds: Vec<&str> = Event::SCHEMA.iter().map(|(name, _)| *name).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Seedbed scenario",
        "type": "object",
        "additionalProperties": false,
        "required": ["title", "expect"],
        "properties": {
            "title": text("One line: what is shown."),
            "seeds": { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": (1u64 << 53) - 1 },
                       "uniqueItems": true, "description": "Pinned seeds: run in every test, with a reviewed story." },
            "matrix": { "type": "object", "description":
                "AXIS = [values or tables of values]: each seed runs one combination; `$AXIS` or `$AXIS.key` in a string \
                 stands for its value.",
                "additionalProperties": { "type": "array", "minItems": 1 } },
            "budget": time("Virtual time after which the run has failed (10m if absent)."),
            "cluster": object(json!({
                "nodes": count(1, "How many nodes (3 if absent)."),
                "options": { "type": "object", "additionalProperties": false, "properties": options },
            })),
            "step": { "type": "array", "items": { "$ref": "#/$defs/step" },
                      "description": "What is done, in order; each step waits for the one before." },
            "on": { "type": "array", "items": rule(&kinds), "description": "What is done at events." },
            "workload": { "type": "array", "items": workload(), "description": "Clients beside the steps." },
            "storm": { "type": "array", "items": storm(), "description": "Random faults." },
            "expect": expect(),
        },
        "$defs": {
            "step": step(&kinds),
            "time": { "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(ms|s|m)$" },
            "target": { "type": "string", "description":
                "n1, every node, random node, leader of TABLE/N, every leader of TABLE, follower of TABLE/N, \
                 random replica of TABLE/N, random follower of TABLE/N, meta leader, meta follower, old leader; in a \
                 rule also: it, leader of it, .." },
            "regions": { "type": "string", "description": "TABLE/N, TABLE/*, meta or *" },
        },
    })
}

fn step(kinds: &[&str]) -> Value {
    let mut properties = serde_json::Map::new();
    for verb in VERBS {
        let schema = match *verb {
            "sql" => text("A statement."),
            "load" => object(json!({
                "table": text("Into this table."),
                "file": text("A Parquet file, relative to the scenario."),
                "rows": count(1, "The first so many rows (all if absent)."),
                "batch": count(1, "Rows of one INSERT (500 if absent)."),
                "ingest": text("Ingests each batch as a file of this name and a number: none is written twice."),
                "casts": { "type": "object", "additionalProperties": { "type": "string" },
                           "description": "COLUMN = TYPE: columns of the file that are cast before they are inserted." },
            })),
            "join" => text("Waits for the statement that was started under this name."),
            "wait" => object(json!({
                "ready": text("The relation exists and can be used; a view is READY."),
                "leader": regions("Each has a leader that answers."),
                "converged": regions("All their replicas have the same content."),
                "up": target("They run."),
                "down": target("They do not run."),
                "event": text(&format!("EVENT [on nN] [with FIELD = VALUE ..]: {}", kinds.join(", "))),
                "fired": text("The rule of this name struck."),
                "within": time("60s if absent."),
            })),
            "check" => text("A query that must return no row."),
            "sleep" => time("Lets virtual time pass."),
            "repeat" => count(1, "How often `steps` are done."),
            "power_loss" | "crash" | "restart" | "pause" | "resume" | "isolate" => target("Who."),
            "transfer_leader" => text("Of this region: TABLE/N or meta."),
            "partition" => json!({ "type": "array", "minItems": 2, "maxItems": 2,
                                   "items": { "type": "array", "items": { "$ref": "#/$defs/target" } } }),
            "heal" => json!({ "const": true }),
            "cut" => object(json!({
                "kind": words(&engine::server::message::Kind::ALL.iter().map(|(_, name)| *name).collect::<Vec<_>>()),
                "side": words(Side::WORDS),
                "nth": count(1, "From the n-th on."),
                "times": count(1, "So many."),
                "from": target("Only requests that come from here."),
                "to": target("Only requests that go here."),
            })),
            "disk" => object(json!({
                "node": target("Whose."),
                "files": words(FileClass::WORDS),
                "op": words(DiskOp::WORDS),
                "nth": count(1, "From the n-th on."),
                "times": count(1, "So many."),
                "effect": words(DiskEffect::WORDS),
                "delay": time("How long a slow operation takes."),
                "for": time("Ends after this, not before it met an operation."),
            })),
            "clock" => object(json!({
                "node": target("Whose."),
                "offset": { "type": "string", "pattern": "^-?[0-9]+(\\.[0-9]+)?(ms|s|m)$" },
                "drift_ppm": { "type": "integer", "minimum": -500_000, "maximum": 500_000 },
            })),
            _ => json!({ "type": "object", "description": "Options that nodes get at their next start." }),
        };
        properties.insert((*verb).to_string(), schema);
    }
    for (word, verbs) in MODIFIERS {
        let with = format!("Goes with {}.", verbs.join(", "));
        let schema = match *word {
            "rows" => count(0, &with),
            "within" | "restart_after" | "for" => time(&with),
            "unknown" => words(&["fail", "retry"]),
            "steps" => json!({ "type": "array", "items": { "$ref": "#/$defs/step" } }),
            "node" | "to" => target(&with),
            "direction" => words(Direction::WORDS),
            "error" => words(Error::CODES),
            _ => text(&with),
        };
        properties.insert((*word).to_string(), schema);
    }
    let one: Vec<Value> = VERBS.iter().map(|verb| json!({ "required": [verb] })).collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "oneOf": one })
}

fn rule(kinds: &[&str]) -> Value {
    let mut properties = json!({
        "name": text("For reports and `wait = { fired = .. }`."),
        "event": words(kinds),
        "durable": object(json!({
            "file": words(FileKind::WORDS),
            "step": words(StepKind::WORDS),
            "when": words(When::WORDS),
        })),
        "nth": { "description": "It strikes at the n-th such event; two numbers: at one from .. to, drawn by the seed.",
                 "oneOf": [count(1, "The n-th."),
                           { "type": "array", "items": count(1, "From, to."), "minItems": 2, "maxItems": 2 },
                           { "type": "string", "pattern": "^\\$" }] },
        "times": count(1, "It strikes so often at most."),
        "after": time("It strikes so long after the event."),
        "each": text("It counts and strikes once for each: node, region, region of TABLE, replica."),
        "do": { "$ref": "#/$defs/step" },
        "node": target("Only events of this node."),
    });
    if let Some(properties) = properties.as_object_mut() {
        for (field, _) in Event::SCHEMA.iter().flat_map(|(_, fields)| fields.iter()) {
            properties.entry(*field).or_insert_with(|| json!({ "type": ["string", "integer"] }));
        }
    }
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": ["do"],
            "oneOf": [{ "required": ["event"] }, { "required": ["durable"] }] })
}

fn workload() -> Value {
    object(json!({
        "name": text("For reports."),
        "kind": words(WORKLOADS),
        "table": text("The table."),
        "column": text("increment: the column."),
        "clients": count(1, "How many clients (1 if absent)."),
        "ops": count(1, "Statements of all clients together."),
        "mix": object(json!({
            "insert": count(0, "Share."), "update": count(0, "Share."),
            "delete": count(0, "Share."), "read": count(0, "Share."),
        })),
        "staleness": time("mutate: its reads may be so old, and come from any replica (absent: they are of now)."),
    }))
}

fn storm() -> Value {
    object(json!({
        "name": text("For reports."),
        "kinds": { "type": "array", "items": words(StormKind::WORDS), "minItems": 1, "uniqueItems": true },
        "from": time("When it begins."),
        "until": time("When it ends."),
        "every": time("How far two faults of a kind are apart, on average (5s if absent)."),
        "targets": { "type": "array", "items": { "$ref": "#/$defs/target" } },
    }))
}

fn expect() -> Value {
    let texts = |what: &str| json!({ "type": "array", "items": { "type": "string" }, "description": what });
    object(json!({
        "result": texts("Queries whose rows are the same for every seed; reviewed in snapshots/."),
        "holds": texts("Queries that return no row at the end."),
        "happened": texts(&Happened::forms().join(" | ")),
        "exempt": { "type": "array", "items": object(json!({
            "oracle": words(NAMES), "reason": text("For those who read the scenario."),
        })) },
        "outcome": words(EXPECTED_OUTCOMES),
    }))
}

fn object(properties: Value) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn text(what: &str) -> Value {
    json!({ "type": "string", "description": what })
}

fn time(what: &str) -> Value {
    json!({ "$ref": "#/$defs/time", "description": what })
}

fn target(what: &str) -> Value {
    json!({ "$ref": "#/$defs/target", "description": what })
}

fn regions(what: &str) -> Value {
    json!({ "$ref": "#/$defs/regions", "description": what })
}

fn count(least: u64, what: &str) -> Value {
    json!({ "type": "integer", "minimum": least, "description": what })
}

fn words(words: &[&str]) -> Value {
    json!({ "enum": words })
}

#[cfg(test)]
mod tests {
    use super::super::{decode::LATER, raw};
    use super::*;
    use serde::de::DeserializeOwned;

    /// The keys that serde takes, out of what it says about one that it does not.
    fn taken<T: DeserializeOwned>() -> Vec<String> {
        let Err(err) = toml::from_str::<T>("no_such_key = 1") else { panic!("an unknown key was taken") };
        let keys = err.message().split('`').skip(3).step_by(2).map(str::to_string);
        let mut keys: Vec<String> = keys.collect();
        keys.sort();
        keys
    }

    /// The same without the words that are only known so as to be refused.
    fn available<T: DeserializeOwned>() -> Vec<String> {
        let mut keys = taken::<T>();
        keys.retain(|key| LATER.iter().all(|(later, _)| later != key));
        keys
    }

    fn keys(schema: &Value, pointer: &str) -> Vec<String> {
        let object = schema.pointer(pointer).and_then(Value::as_object).unwrap_or_else(|| panic!("no {pointer}"));
        let mut keys: Vec<String> = object.keys().cloned().collect();
        keys.sort();
        keys
    }

    #[test]
    fn the_schema_has_the_keys_that_the_parser_takes() {
        let schema = schema();
        assert_eq!(keys(&schema, "/properties"), taken::<raw::Scenario>());
        assert_eq!(keys(&schema, "/properties/cluster/properties"), taken::<raw::Cluster>());
        assert_eq!(keys(&schema, "/$defs/step/properties"), available::<raw::Step>());
        assert_eq!(keys(&schema, "/$defs/step/properties/load/properties"), taken::<raw::Load>());
        assert_eq!(keys(&schema, "/$defs/step/properties/wait/properties"), taken::<raw::Wait>());
        assert_eq!(keys(&schema, "/$defs/step/properties/cut/properties"), taken::<raw::Cut>());
        assert_eq!(keys(&schema, "/$defs/step/properties/disk/properties"), taken::<raw::Disk>());
        assert_eq!(keys(&schema, "/$defs/step/properties/clock/properties"), taken::<raw::Clock>());
        assert_eq!(keys(&schema, "/properties/workload/items/properties"), taken::<raw::Workload>());
        assert_eq!(keys(&schema, "/properties/workload/items/properties/mix/properties"), taken::<raw::Mix>());
        assert_eq!(keys(&schema, "/properties/on/items/properties/durable/properties"), taken::<raw::Durable>());
        assert_eq!(keys(&schema, "/properties/storm/items/properties"), taken::<raw::Storm>());
        assert_eq!(keys(&schema, "/properties/expect/properties"), taken::<raw::Expect>());
        assert_eq!(keys(&schema, "/properties/expect/properties/exempt/items/properties"), taken::<raw::Exempt>());
        let rule = keys(&schema, "/properties/on/items/properties");
        assert!(raw::RULE_KEYS.iter().all(|key| rule.iter().any(|known| known == key)));
    }

    #[test]
    fn every_word_of_a_step_is_a_verb_or_goes_with_one() {
        let mut words: Vec<String> =
            VERBS.iter().chain(MODIFIERS.iter().map(|(word, _)| word)).map(|w| w.to_string()).collect();
        words.sort();
        assert_eq!(words, available::<raw::Step>());
        assert!(MODIFIERS.iter().all(|(_, verbs)| verbs.iter().all(|verb| VERBS.contains(verb))));
    }
}

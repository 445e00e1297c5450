//! Rules: what they wait for and what they count by.

use std::ops::Range;

use toml::Spanned;

use super::super::condition::Condition;
use super::super::durable::{Durable, When};
use super::super::position::one_of;
use super::super::raw::{self, Text};
use super::super::target::Target;
use super::super::{Action, DrawnRule, Each, Rule, Trigger};
use super::{Decoder, MANY, VERBS, text_span};

impl Decoder<'_> {
    pub(super) fn rule(&mut self, raw: Spanned<raw::Rule>, number: usize) -> Option<DrawnRule> {
        let span = raw.span();
        let line = self.source.line(span.start);
        let mut raw = raw.into_inner();
        let name = raw.name.take().map_or_else(|| format!("rule {number}"), Spanned::into_inner);
        if !self.rule_names.insert(name.clone()) {
            self.source.wrong(span.clone(), format!("there is a rule \"{name}\" already"));
        }
        let trigger = match (&raw.event, raw.durable.take()) {
            (Some(event), Some(_)) => {
                self.source.wrong(event.span(), "expected `event` or `durable`: make two rules");
                None
            }
            (None, Some(durable)) => self.durable(durable, &mut raw).map(Trigger::Durable),
            _ => self.event(&mut raw, span.clone()).map(Trigger::Event),
        };
        let each = self.parsed::<Each>(&raw.each);
        if let (Some(each), Some(trigger)) = (&each, &trigger)
            && let Some(lacks) = lacks(trigger, each)
        {
            self.source.wrong(text_span(&raw.each), lacks);
        }
        let (nth, nth_most) = self.nth(raw.nth);
        let times = self.number(&raw.times, 1, MANY).unwrap_or(1);
        let after = self.parsed(&raw.after);
        let Some(action) = raw.action else {
            self.source.wrong(span, "expected `do = { .. }`: what is done at the event");
            return None;
        };
        let at = action.span();
        self.in_rule = true;
        let action = self.action(action.into_inner(), at.clone());
        self.in_rule = false;
        match action? {
            Action::Fault(fault) => {
                let rule = Rule { name, line, on: trigger?, nth, times, after, each, fault };
                Some(DrawnRule { rule, nth_most })
            }
            _ => {
                self.source.wrong(at, format!("expected a fault ({}): a rule does not wait", VERBS[7..].join(", ")));
                None
            }
        }
    }

    /// `3`, or `[3, 20]`: one of these, drawn by the seed.
    fn nth(&mut self, raw: raw::Any) -> (u64, u64) {
        let Some(raw) = raw else { return (1, 1) };
        let bounds = match raw.get_ref() {
            toml::Value::Array(bounds) => bounds.as_slice(),
            one => std::slice::from_ref(one),
        };
        let numbers: Vec<u64> = bounds.iter().filter_map(|one| u64::try_from(one.as_integer()?).ok()).collect();
        match numbers.as_slice() {
            [one] if bounds.len() == 1 && *one > 0 => (*one, *one),
            [least, most] if bounds.len() == 2 && 0 < *least && least <= most => (*least, *most),
            _ => {
                self.source.wrong(raw.span(), "expected a whole number from 1, or two like [3, 20]: from .. to");
                (1, 1)
            }
        }
    }

    fn durable(&mut self, raw: Spanned<raw::Durable>, rule: &mut raw::Rule) -> Option<Durable> {
        let span = raw.span();
        let raw = raw.into_inner();
        let file = self.required_word(&raw.file, span.clone(), "`file`: what comes to last");
        let step = self.required_word(&raw.step, span.clone(), "`step`: how");
        let when = self.required_word(&raw.when, span.clone(), &format!("`when`: {}", When::WORDS.join(" or ")));
        let node = self.rule_node(&rule.node);
        let mut regions = None;
        for (field, value) in std::mem::take(&mut rule.fields) {
            match (field.get_ref().as_str(), value.get_ref()) {
                ("region", toml::Value::String(text)) => regions = self.source.take(value.span(), text.parse()),
                ("region", _) => self.source.wrong(value.span(), "expected regions, like \"flights/*\""),
                (other, _) => {
                    let known = [raw::RULE_KEYS, &["region"]].concat();
                    self.source.wrong(field.span(), one_of("a word of a rule with `durable`", other, &known));
                }
            }
        }
        let durable = Durable { when: when?, step: step?, file: file?, node, regions };
        self.source.take(span, durable.check()).map(|()| durable)
    }

    /// The node that a rule is about.
    fn rule_node(&mut self, raw: &Text) -> Option<u32> {
        match self.target(raw)? {
            Target::Node(node) => Some(node),
            other => {
                self.source.wrong(text_span(raw), format!("expected a node like \"n1\", found \"{other}\""));
                None
            }
        }
    }

    fn event(&mut self, raw: &mut raw::Rule, span: Range<usize>) -> Option<Condition> {
        let event = self.required(&raw.event, span, "`event` or `durable`: what it waits for");
        let mut condition = event.and_then(|event| self.source.take(text_span(&raw.event), Condition::of(&event)));
        let node = self.rule_node(&raw.node);
        if let Some(condition) = &mut condition {
            condition.node = node;
        }
        for (field, value) in std::mem::take(&mut raw.fields) {
            let Some(condition) = &mut condition else { break };
            let text = match value.get_ref() {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(value) => value.to_string(),
                other => {
                    let message = format!("expected text or a number, found {}", other.type_str());
                    self.source.wrong(value.span(), message);
                    continue;
                }
            };
            let known = engine::event::Event::SCHEMA
                .iter()
                .find(|(name, _)| *name == condition.event)
                .is_some_and(|(_, fields)| fields.iter().any(|(name, _)| name == field.get_ref()));
            let span = if known { value.span() } else { field.span() };
            let event = engine::event::Event::SCHEMA.iter().find(|(name, _)| *name == condition.event);
            let fields = event.into_iter().flat_map(|(_, fields)| fields.iter().map(|(name, _)| *name));
            let words: Vec<&str> = raw::RULE_KEYS.iter().copied().chain(fields).collect();
            let what = format!("a word of a rule or a field of {}", condition.event);
            let required = condition
                .require(field.get_ref(), &text)
                .map_err(|message| if known { message } else { one_of(&what, field.get_ref(), &words) });
            self.source.take(span, required);
        }
        condition
    }
}

/// Why a rule cannot count by `each`: what it waits for does not tell.
fn lacks(trigger: &Trigger, each: &Each) -> Option<String> {
    let field = match each {
        Each::Node => return None,
        Each::Region | Each::RegionOf(_) => "region",
        Each::Replica => "replica",
    };
    match trigger {
        Trigger::Event(condition) => {
            let fields = engine::event::Event::SCHEMA.iter().find(|(name, _)| *name == condition.event);
            let has = fields.is_some_and(|(_, fields)| fields.iter().any(|(name, _)| *name == field));
            (!has).then(|| format!("{} has no field `{field}` to count by", condition.event))
        }
        Trigger::Durable(durable) => (!durable.file.is_of_a_replica())
            .then(|| format!("a {} has no {field} to count by: it is not of one replica", durable.file)),
    }
}

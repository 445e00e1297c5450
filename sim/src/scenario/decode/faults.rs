//! Faults, of steps, rules and storms.

use std::ops::Range;

use toml::Spanned;

use super::super::Storm;
use super::super::fault::{Cutoff, Death, Direction, DiskEffect, DiskFault, DiskOp, Fault, FileClass, Stay, StormKind};
use super::super::period::{Offset, Period};
use super::super::raw;
use super::super::target::{Region, Target};
use super::{Decoder, MANY, place, text_span};

impl Decoder<'_> {
    pub(super) fn fault(&mut self, raw: raw::Step, verb: &str, at: Range<usize>) -> Option<Fault> {
        let lasts = self.parsed(&raw.lasts);
        let direction = self.parsed(&raw.direction).unwrap_or(Direction::Both);
        Some(match verb {
            "power_loss" => Fault::PowerLoss(Death {
                target: self.target(&raw.power_loss)?,
                restart_after: self.parsed(&raw.restart_after),
            }),
            "crash" => {
                Fault::Crash(Death { target: self.target(&raw.crash)?, restart_after: self.parsed(&raw.restart_after) })
            }
            "restart" => Fault::Restart(self.target(&raw.restart)?),
            "pause" => Fault::Pause(Stay { target: self.target(&raw.pause)?, lasts }),
            "resume" => Fault::Resume(self.target(&raw.resume)?),
            "transfer_leader" => {
                let region: Region = self.parsed(&raw.transfer_leader)?;
                if region == Region::It && !self.in_rule {
                    self.source.wrong(at, "\"it\" means something only in a rule");
                }
                Fault::TransferLeader { region, to: self.target(&raw.to) }
            }
            "isolate" => Fault::Isolate(Cutoff { target: self.target(&raw.isolate)?, direction, lasts }),
            "partition" => {
                let groups = raw.partition?.into_inner();
                let mut sides = Vec::new();
                for group in groups {
                    let mut side = Vec::new();
                    for target in group {
                        side.extend(self.target(&Some(target)));
                    }
                    sides.push(side);
                }
                let Ok([from, to]) = <[Vec<Target>; 2]>::try_from(sides) else {
                    self.source.wrong(at, "expected two groups of nodes, like [[\"n1\"], [\"n2\", \"n3\"]]");
                    return None;
                };
                if from.is_empty() || to.is_empty() {
                    self.source.wrong(at.clone(), "expected at least one node on each side");
                }
                if let Some(both) = from.iter().find(|target| to.contains(target)) {
                    self.source.wrong(at, format!("{both} is on both sides"));
                }
                Fault::Partition { from, to, direction, lasts }
            }
            "heal" => {
                if raw.heal.is_some_and(|heal| !heal.into_inner()) {
                    self.source.wrong(at, "expected `heal = true`: all partitions end");
                }
                Fault::Heal
            }
            "cut" => return self.cut(raw.cut?),
            "disk" => return self.disk(raw.disk?),
            "clock" => {
                let clock = raw.clock?;
                let span = clock.span();
                let clock = clock.into_inner();
                let offset: Option<Offset> = self.parsed(&clock.offset);
                let drift = self.signed(&clock.drift_ppm, -500_000, 500_000);
                if offset.is_none() && drift.is_none() {
                    self.source.wrong(span.clone(), "expected `offset`, `drift_ppm` or both");
                }
                let node = self.required_target(&clock.node, span, "`node`");
                Fault::Clock { node: node?, offset: offset.unwrap_or_default(), drift_ppm: drift.unwrap_or(0) }
            }
            _ => {
                let options = raw.option?;
                self.options(options.get_ref())?;
                let options = options.into_inner().into_iter();
                Fault::Option(options.map(|(name, value)| (name.into_inner(), value.into_inner())).collect())
            }
        })
    }

    fn cut(&mut self, raw: Spanned<raw::Cut>) -> Option<Fault> {
        let span = raw.span();
        let raw = raw.into_inner();
        let kind = self.required_word(&raw.kind, span.clone(), "`kind`: which requests");
        let side = self.required_word(&raw.side, span, "`side`: request or answer");
        let from = self.target(&raw.from);
        let to = self.target(&raw.to);
        let nth = self.number(&raw.nth, 1, MANY).unwrap_or(1);
        let times = self.number(&raw.times, 1, MANY).unwrap_or(1);
        Some(Fault::Cut { kind: kind?, side: side?, nth, times, from, to })
    }

    fn disk(&mut self, raw: Spanned<raw::Disk>) -> Option<Fault> {
        let span = raw.span();
        let raw = raw.into_inner();
        let node = self.required_target(&raw.node, span.clone(), "`node`");
        let op = self.required_word(&raw.op, span.clone(), "`op`: which operations");
        let effect = self.required_word(&raw.effect, span.clone(), "`effect`");
        let delay = self.parsed(&raw.delay);
        match (effect, delay) {
            (Some(DiskEffect::Slow), None) => self.source.wrong(span, "expected `delay`: how long they take"),
            (Some(effect), Some(_)) if effect != DiskEffect::Slow => {
                self.source.wrong(text_span(&raw.delay), format!("`delay` goes with \"slow\", not with \"{effect}\""));
            }
            _ => {}
        }
        if let (Some(DiskEffect::Rot), Some(op)) = (effect, op)
            && op != DiskOp::Read
        {
            self.source
                .wrong(text_span(&raw.op), format!("\"rot\" goes with \"read\", not with \"{op}\": it is found then"));
        }
        if let Some(deadly) = effect.filter(DiskEffect::is_deadly) {
            for (word, at) in [("times", place(&raw.times)), ("for", place(&raw.lasts))] {
                if let Some(at) = at {
                    self.source.wrong(at, format!("`{word}` does not go with \"{deadly}\": it happens once"));
                }
            }
        }
        let files = self.parsed(&raw.files).unwrap_or(FileClass::Any);
        let nth = self.number(&raw.nth, 1, MANY).unwrap_or(1);
        let times = self.number(&raw.times, 1, MANY);
        let lasts = self.parsed(&raw.lasts);
        Some(Fault::Disk(DiskFault { node: node?, files, op: op?, nth, times, effect: effect?, delay, lasts }))
    }

    pub(super) fn storm(&mut self, raw: Spanned<raw::Storm>, number: usize) -> Option<Storm> {
        let span = raw.span();
        let raw = raw.into_inner();
        let name = raw.name.map_or_else(|| format!("storm {number}"), Spanned::into_inner);
        let mut kinds = Vec::new();
        for kind in raw.kinds {
            let place = kind.span();
            if let Some(kind) = self.source.take(place.clone(), kind.get_ref().parse::<StormKind>()) {
                if kinds.contains(&kind) {
                    self.source.wrong(place, format!("{kind} is there twice"));
                } else if self.nodes == 1 && matches!(kind, StormKind::Partition | StormKind::TransferLeader) {
                    self.source.wrong(place, format!("{kind} needs two nodes, and there is one"));
                }
                kinds.push(kind);
            }
        }
        if kinds.is_empty() {
            self.source.wrong(span.clone(), format!("expected `kinds`: some of {}", StormKind::WORDS.join(", ")));
        }
        let mut targets = Vec::new();
        for target in raw.targets {
            targets.extend(self.target(&Some(target)));
        }
        let from: Option<Period> = self.required_word(&raw.from, span.clone(), "`from`: when it begins");
        let until: Option<Period> = self.required_word(&raw.until, span.clone(), "`until`: when it ends");
        let every = self.parsed(&raw.every).unwrap_or(Period::ms(5_000));
        if every.ms == 0 {
            self.source.wrong(text_span(&raw.every), "expected a time above 0");
        }
        let (from, until) = (from?, until?);
        if until <= from {
            self.source.wrong(span, "expected `until` after `from`");
        } else if (until.ms - from.ms) / every.ms.max(1) > 10_000 {
            self.source.wrong(span, "expected at most 10000 faults of a kind: make `every` longer");
        }
        Some(Storm { name, kinds, from, until, every, targets })
    }
}

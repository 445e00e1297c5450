//! What clients do beside the steps.

use toml::Spanned;

use super::super::position::one_of;
use super::super::raw::{self, Number};
use super::super::target::table_name;
use super::super::{Mix, Workload, WorkloadKind};
use super::{Decoder, MANY, place, text_place, text_span};

/// What clients beside the steps can do.
pub(in crate::scenario) const WORKLOADS: &[&str] = &["mutate", "increment"];

/// What they will be able to do.
const LATER_WORKLOADS: &[&str] = &["transfer", "nexmark", "tsbs", "ddl_storm"];

impl Decoder<'_> {
    pub(super) fn workload(&mut self, raw: Spanned<raw::Workload>, number: usize) -> Option<Workload> {
        let span = raw.span();
        let raw = raw.into_inner();
        let name = raw.name.map_or_else(|| format!("workload {number}"), Spanned::into_inner);
        let clients = self.number(&raw.clients, 1, 1_000).unwrap_or(1) as u32;
        let ops = self.number(&raw.ops, 1, MANY);
        if raw.ops.is_none() {
            self.source.wrong(span.clone(), "expected `ops`: it ends by count");
        }
        let kind = self.required(&raw.kind, span.clone(), &format!("`kind`: {}", WORKLOADS.join(" or ")))?;
        let given = [("column", text_place(&raw.column)), ("mix", place(&raw.mix))];
        let staleness = self.parsed(&raw.staleness);
        let wanted = match kind.as_str() {
            "mutate" => "mix",
            "increment" => "column",
            later if LATER_WORKLOADS.contains(&later) => {
                let message =
                    format!("the workload \"{later}\" is not available; there is {}", WORKLOADS.join(" and "));
                self.source.wrong(text_span(&raw.kind), message);
                return None;
            }
            other => {
                let message = one_of("a workload", other, WORKLOADS);
                self.source.wrong(text_span(&raw.kind), message);
                return None;
            }
        };
        for (word, place) in given {
            match place {
                Some(place) if word != wanted => {
                    self.source.wrong(place, format!("`{word}` does not go with kind = \"{kind}\""));
                }
                None if word == wanted => {
                    self.source.wrong(span.clone(), format!("expected `{word}`: kind = \"{kind}\" needs it"));
                }
                _ => {}
            }
        }
        if let (Some(place), "column") = (text_place(&raw.staleness), wanted) {
            self.source.wrong(place, "`staleness` goes with kind = \"mutate\": the others do not read");
        }
        let table = self.required(&raw.table, span, "`table`");
        let table = table.and_then(|table| self.source.take(text_span(&raw.table), table_name(&table)))?;
        let kind = match wanted {
            "mix" => WorkloadKind::Mutate { table, mix: self.mix(raw.mix?)?, staleness },
            _ => WorkloadKind::Increment { table, column: raw.column?.into_inner() },
        };
        Some(Workload { name, kind, clients, ops: ops? })
    }

    fn mix(&mut self, raw: Spanned<raw::Mix>) -> Option<Mix> {
        let span = raw.span();
        let raw = raw.into_inner();
        let mut part = |number: &Number| self.number(number, 0, 1_000_000).unwrap_or(0) as u32;
        let mix = Mix {
            insert: part(&raw.insert),
            update: part(&raw.update),
            delete: part(&raw.delete),
            read: part(&raw.read),
        };
        if mix == Mix::default() {
            self.source.wrong(span, "expected a share above 0 of insert, update, delete or read");
            return None;
        }
        Some(mix)
    }
}

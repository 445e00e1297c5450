//! What the aggregates of a group know, and what a delta adds to it.
//!
//! A [`Partial`] is a difference: it may be negative, and adding two of them is adding what they are of. A [`State`] is what is
//! there: its counts are not negative, and as nothing is rounded, it is the same whatever way it came about. Both are stored and
//! sent as postcard.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, UInt64Type, i256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ExactSum;
use crate::error::{Error, Invalid, Result};
use crate::sql::{AggregatePlan, Call, Function, LegPlan};
use crate::types::{ColumnType, Key, Value, decode_key, encode_keys};

/// What changes of a group's rows come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Partial {
    /// How many rows more.
    pub(super) rows: i64,
    /// One for each call.
    pub(super) calls: Vec<Change>,
}

/// What changes of a group's rows come to for one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Change {
    /// How many more, of COUNT.
    Count(i64),
    /// By how much the sum grows, and how many more are not NULL: of SUM and AVG.
    Sum(Total, i64),
    /// How many more there are of each value, of MIN and MAX.
    Values(BTreeMap<Vec<u8>, i64>),
}

/// What is known of the rows of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// How many.
    pub(super) rows: i64,
    /// One for each call.
    pub(super) calls: Vec<Known>,
}

/// What one call knows of the rows of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Known {
    /// COUNT
    Count(i64),
    /// The sum, and how many are not NULL: of SUM and AVG.
    Sum(Total, i64),
    /// The value that MIN or MAX chooses, and how many are not NULL.
    Best(Option<Vec<u8>>, i64),
}

/// A sum, exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Total {
    /// Of integers, and of unscaled DECIMALs: 2^63 of the largest ones have room.
    Whole(#[serde(with = "whole")] i256),
    /// Of floats.
    Float(ExactSum),
}

/// The calls of a view.
#[derive(Debug)]
pub(super) struct Calls {
    calls: Vec<Call>,
    /// For messages.
    names: Vec<String>,
}

impl Calls {
    /// The aggregates of a plan. An error if one has types that it cannot have.
    pub(super) fn new(plan: &AggregatePlan, legs: &[LegPlan]) -> Result<Calls> {
        let named = |call: &Call| {
            let input = call.input.and_then(|at| legs.first()?.outputs.get(at)).map(ToString::to_string);
            let function = format!("{:?}", call.function).to_uppercase();
            format!("{function}({})", input.as_deref().unwrap_or("*"))
        };
        let names: Vec<String> = plan.calls.iter().map(named).collect();
        for (call, name) in plan.calls.iter().zip(&names) {
            if !is_sound(call) {
                let message = format!("{name} of {} cannot be {}", call.input_type, call.output_type);
                return Err(Error::invalid(Invalid::WrongType, message));
            }
        }
        let choosing = plan.calls.iter().filter(|call| call.chooses()).count();
        let most = usize::from(u8::MAX - FIRST_VALUES) + 1;
        if choosing > most {
            let message = format!("a view has {most} MIN and MAX at most, not {choosing}; make two views of it");
            return Err(Error::invalid(Invalid::Unsupported, message));
        }
        Ok(Calls { calls: plan.calls.clone(), names })
    }

    /// The calls with their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Call, &str)> {
        self.calls.iter().zip(self.names.iter().map(String::as_str))
    }

    /// The part of a group that has the values of each call which chooses from them; none for the others.
    pub(super) fn parts(&self) -> Vec<Option<u8>> {
        let mut parts = FIRST_VALUES..=u8::MAX;
        let part = |call: &Call| if call.chooses() { parts.next() } else { None };
        self.calls.iter().map(part).collect()
    }

    /// What rows come to, one for each of `groups`: a row belongs to the group that `group_of` has for it, and counts as its
    /// sign; `outputs` are the leg's.
    pub(super) fn gather(&self, outputs: &[ArrayRef], signs: &[i8], group_of: &[u32], groups: usize) -> Vec<Partial> {
        let mut partials = vec![Partial { rows: 0, calls: Vec::with_capacity(self.calls.len()) }; groups];
        for (sign, group) in signs.iter().zip(group_of) {
            partials[*group as usize].rows += i64::from(*sign);
        }
        for call in &self.calls {
            let input = call.input.map(|at| &outputs[at]);
            for (partial, change) in partials.iter_mut().zip(changes(call, input, signs, group_of, groups)) {
                partial.calls.push(change);
            }
        }
        partials
    }

    /// The state of no rows.
    pub(super) fn nothing(&self) -> State {
        let known = |call: &Call| match call.function {
            Function::Count => Known::Count(0),
            Function::Sum | Function::Avg => Known::Sum(Total::zero(call.input_type), 0),
            Function::Min | Function::Max => Known::Best(None, 0),
        };
        State { rows: 0, calls: self.calls.iter().map(known).collect() }
    }

    /// What a [`Partial`] was stored as; none if it is none of these calls.
    pub(super) fn read_partial(&self, bytes: &[u8]) -> Option<Partial> {
        let partial: Partial = postcard::from_bytes(bytes).ok()?;
        let fits = |call: &Call, change: &Change| match change {
            Change::Count(_) => call.function == Function::Count,
            Change::Sum(total, _) => call.sums() && total.is_of(call.input_type),
            Change::Values(_) => call.chooses(),
        };
        let fit = self.calls.len() == partial.calls.len()
            && self.calls.iter().zip(&partial.calls).all(|(call, change)| fits(call, change));
        fit.then_some(partial)
    }

    /// What a [`State`] was stored as; none if it is none of these calls.
    pub(super) fn read_state(&self, bytes: &[u8]) -> Option<State> {
        let state: State = postcard::from_bytes(bytes).ok()?;
        let fits = |call: &Call, known: &Known| match known {
            Known::Count(_) => call.function == Function::Count,
            Known::Sum(total, _) => call.sums() && total.is_of(call.input_type),
            Known::Best(..) => call.chooses(),
        };
        let fit = self.calls.len() == state.calls.len()
            && self.calls.iter().zip(&state.calls).all(|(call, known)| fits(call, known));
        fit.then_some(state)
    }
}

/// The first part of a group that has values to choose from, see [`columns`](crate::meta::catalog::columns).
const FIRST_VALUES: u8 = 2;

impl Call {
    fn sums(&self) -> bool {
        matches!(self.function, Function::Sum | Function::Avg)
    }

    pub(super) fn chooses(&self) -> bool {
        matches!(self.function, Function::Min | Function::Max)
    }
}

impl Partial {
    /// Whether nothing changes by it.
    pub(super) fn is_zero(&self) -> bool {
        let is_zero = |change: &Change| match change {
            Change::Count(count) => *count == 0,
            Change::Sum(total, count) => *count == 0 && total.is_zero(),
            Change::Values(values) => values.is_empty(),
        };
        self.rows == 0 && self.calls.iter().all(is_zero)
    }
}

impl Known {
    /// What the call says of this, or why it cannot.
    pub(super) fn result(&self, call: &Call) -> Result<Value, String> {
        match self {
            Known::Count(count) => Ok(Value::Int(*count)),
            Known::Sum(_, 0) => Ok(Value::Null),
            Known::Sum(total, count) => match call.function {
                Function::Avg => average(total, *count, call),
                _ => sum(total, call.output_type),
            },
            Known::Best(None, _) => Ok(Value::Null),
            Known::Best(Some(best), _) => value(best, call),
        }
    }

    /// Whether there is nothing.
    pub(super) fn is_nothing(&self) -> bool {
        match self {
            Known::Count(count) => *count == 0,
            Known::Sum(total, count) => *count == 0 && total.is_zero(),
            Known::Best(best, count) => *count == 0 && best.is_none(),
        }
    }
}

impl Total {
    fn zero(column_type: ColumnType) -> Total {
        match column_type {
            ColumnType::Float32 | ColumnType::Float64 => Total::Float(ExactSum::default()),
            _ => Total::Whole(i256::ZERO),
        }
    }

    fn is_of(&self, column_type: ColumnType) -> bool {
        let is_float = matches!(column_type, ColumnType::Float32 | ColumnType::Float64);
        matches!(self, Total::Float(_)) == is_float
    }

    /// Adds `other`, which is of the same type.
    pub(super) fn merge(&mut self, other: &Total) {
        match (self, other) {
            (Total::Whole(total), Total::Whole(other)) => {
                *total = total.checked_add(*other).expect("2^63 of the largest numbers have room");
            }
            (Total::Float(total), Total::Float(other)) => total.merge(other),
            (total, other) => panic!("a sum of two types: {total:?} and {other:?}"),
        }
    }

    fn is_zero(&self) -> bool {
        match self {
            Total::Whole(total) => *total == i256::ZERO,
            Total::Float(total) => total.is_zero(),
        }
    }

    /// Whether more was taken away than was there, as far as that can be seen.
    pub(super) fn is_negative(&self) -> bool {
        match self {
            Total::Whole(_) => false,
            Total::Float(total) => total.is_negative(),
        }
    }
}

/// Whether the call has types that it can have.
fn is_sound(call: &Call) -> bool {
    use ColumnType::*;
    if call.input.is_none() {
        return call.function == Function::Count && call.output_type == Int64;
    }
    let is_integer = |of: ColumnType| matches!(of, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64);
    match (call.function, call.input_type, call.output_type) {
        (Function::Count, _, output) => output == Int64,
        (Function::Min | Function::Max, input, output) => input == output,
        (Function::Sum, Decimal { scale: from, .. }, Decimal { scale: to, .. }) => from == to,
        (Function::Avg, Decimal { scale: from, .. }, Decimal { scale: to, .. }) => from <= to,
        (Function::Sum | Function::Avg, Float32 | Float64, Float64) => true,
        (Function::Sum, input, output) => is_integer(input) && is_integer(output),
        (Function::Avg, input, output) => is_integer(input) && output == Float64,
    }
}

/// What rows come to for one call, one for each of `groups`.
fn changes(
    call: &Call,
    input: Option<&ArrayRef>,
    signs: &[i8],
    group_of: &[u32],
    groups: usize,
) -> Box<dyn Iterator<Item = Change>> {
    let mut counts = vec![0i64; groups];
    for (row, (sign, group)) in signs.iter().zip(group_of).enumerate() {
        if input.is_none_or(|input| input.is_valid(row)) {
            counts[*group as usize] += i64::from(*sign);
        }
    }
    let Some(input) = input else { return Box::new(counts.into_iter().map(Change::Count)) };
    // What is not NULL: its row, its sign, its group.
    let rows = || {
        let rows = signs.iter().zip(group_of).enumerate().filter(|(row, _)| input.is_valid(*row));
        rows.map(|(row, (sign, group))| (row, *sign, *group as usize))
    };
    match call.function {
        Function::Count => Box::new(counts.into_iter().map(Change::Count)),
        Function::Min | Function::Max => {
            let mut values = vec![BTreeMap::new(); groups];
            let keys = keys(input, call.function == Function::Max);
            for (row, sign, group) in rows() {
                *values[group].entry(keys[row].clone()).or_insert(0) += i64::from(sign);
            }
            values.iter_mut().for_each(|values| values.retain(|_, count| *count != 0));
            Box::new(values.into_iter().map(Change::Values))
        }
        Function::Sum | Function::Avg if matches!(call.input_type, ColumnType::Float32 | ColumnType::Float64) => {
            let column = cast(input, &DataType::Float64).expect("a float is a DOUBLE");
            let column = column.as_primitive::<Float64Type>();
            let mut totals = vec![ExactSum::default(); groups];
            for (row, sign, group) in rows() {
                match sign {
                    1 => totals[group].add(column.value(row)),
                    _ => totals[group].subtract(column.value(row)),
                }
            }
            let change = |(total, count)| Change::Sum(Total::Float(total), count);
            Box::new(totals.into_iter().zip(counts).map(change))
        }
        Function::Sum | Function::Avg => {
            let mut totals = vec![i256::ZERO; groups];
            let mut add = |number: &dyn Fn(usize) -> i128| {
                for (row, sign, group) in rows() {
                    // A batch has no 2^63 rows.
                    totals[group] = totals[group].wrapping_add(i256::from_i128(number(row) * i128::from(sign)));
                }
            };
            match call.input_type {
                ColumnType::Decimal { .. } => {
                    let column = input.as_primitive::<Decimal128Type>();
                    add(&|row| column.value(row));
                }
                ColumnType::UInt64 => {
                    let column = input.as_primitive::<UInt64Type>();
                    add(&|row| column.value(row).into());
                }
                _ => {
                    let column = cast(input, &DataType::Int64).expect("an integer is a BIGINT");
                    let column = column.as_primitive::<Int64Type>();
                    add(&|row| column.value(row).into());
                }
            }
            let change = |(total, count)| Change::Sum(Total::Whole(total), count);
            Box::new(totals.into_iter().zip(counts).map(change))
        }
    }
}

/// The cells of `column` as bytes in the order in which MIN, or MAX, chooses.
fn keys(column: &ArrayRef, is_max: bool) -> Vec<Vec<u8>> {
    let batch = RecordBatch::try_from_iter_with_nullable([("value", column.clone(), true)]).expect("one column");
    let bytes = |key: Key| match is_max {
        // No key is the beginning of another one, so this turns the order round.
        true => key.0.iter().map(|byte| !byte).collect(),
        false => key.0.to_vec(),
    };
    encode_keys(&batch, &[0]).into_iter().map(bytes).collect()
}

/// The value that [`keys`] wrote.
fn value(bytes: &[u8], call: &Call) -> Result<Value, String> {
    let bytes: Vec<u8> = match call.function {
        Function::Max => bytes.iter().map(|byte| !byte).collect(),
        _ => bytes.to_vec(),
    };
    let mut values = decode_key(&Key(bytes.into()), &[call.input_type]).map_err(|err| err.to_string())?;
    Ok(values.remove(0))
}

fn sum(total: &Total, output_type: ColumnType) -> Result<Value, String> {
    let total = match total {
        Total::Whole(total) => *total,
        Total::Float(total) => return Ok(Value::Float(total.value())),
    };
    let value = match output_type {
        ColumnType::Decimal { precision, .. } => decimal(total, precision),
        ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64 => {
            total.to_i128().and_then(|total| u64::try_from(total).ok()).map(Value::UInt)
        }
        _ => total.to_i128().and_then(|total| i64::try_from(total).ok()).map(Value::Int),
    };
    value.filter(|value| value.fits(output_type)).ok_or_else(|| format!("{total} is out of range for {output_type}"))
}

/// As DataFusion has it: of a DECIMAL with more digits behind the point, the rest cut off; else by way of DOUBLE.
fn average(total: &Total, count: i64, call: &Call) -> Result<Value, String> {
    let total = match (total, call.input_type, call.output_type) {
        (Total::Float(total), ..) => return Ok(Value::Float(total.value() / count as f64)),
        (Total::Whole(total), ColumnType::Decimal { scale: from, .. }, ColumnType::Decimal { precision, scale }) => {
            let digits = i256::from(10i64).checked_pow((scale - from) as u32);
            let total = digits.and_then(|digits| total.checked_mul(digits));
            let average = total.and_then(|total| total.checked_div(i256::from(count)));
            let average = average.and_then(|average| decimal(average, precision));
            return average.ok_or_else(|| format!("an average is out of range for {}", call.output_type));
        }
        (Total::Whole(total), ..) => total,
    };
    // 2^63 integers of 64 bits have room.
    let total = total.to_i128().ok_or_else(|| format!("a sum of {total} is none of integers"))?;
    Ok(Value::Float(total as f64 / count as f64))
}

/// `unscaled` as a DECIMAL, if it fits.
fn decimal(unscaled: i256, precision: u8) -> Option<Value> {
    let end = 10i128.checked_pow(precision.into())?;
    let unscaled = unscaled.to_i128()?;
    (-end < unscaled && unscaled < end).then_some(Value::Decimal(unscaled))
}

/// An i256 as two numbers that are small if it is near zero.
mod whole {
    use super::*;

    pub(super) fn serialize<S: Serializer>(number: &i256, serializer: S) -> Result<S::Ok, S::Error> {
        // Zigzag: the sign is the lowest bit.
        let (low, high) = ((*number << 1u8) ^ (*number >> 255u8)).to_parts();
        (low, high as u128).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i256, D::Error> {
        let (low, high) = <(u128, u128)>::deserialize(deserializer)?;
        let half = i256::from_parts(low >> 1 | high << 127, (high >> 1) as i128);
        Ok(if low & 1 == 1 { !half } else { half })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_small_sum_is_small() {
        for number in [0i64, -1, 1, 63, -64] {
            let total = Total::Whole(i256::from(number));
            assert_eq!(postcard::to_allocvec(&total).unwrap().len(), 3);
        }
    }

    proptest! {
        #[test]
        fn sums_come_back(low in any::<u128>(), high in any::<i128>(), small in any::<i64>()) {
            for number in [i256::from_parts(low, high), i256::from(small), i256::MIN, i256::MAX] {
                let total = Total::Whole(number);
                let bytes = postcard::to_allocvec(&total).unwrap();
                prop_assert_eq!(postcard::from_bytes::<Total>(&bytes).unwrap(), total);
            }
        }

        #[test]
        fn values_are_in_the_order_of_the_choice(values in prop::collection::vec(".{0,4}", 2..8)) {
            let column = Value::to_array(&values.iter().cloned().map(Value::String).collect::<Vec<_>>(), ColumnType::String);
            for function in [Function::Min, Function::Max] {
                let column_type = ColumnType::String;
                let call = Call { function, input: Some(0), input_type: column_type, output_type: column_type };
                let best = keys(&column, function == Function::Max).into_iter().min().unwrap();
                let expected = if function == Function::Min { values.iter().min() } else { values.iter().max() };
                prop_assert_eq!(value(&best, &call), Ok(Value::String(expected.unwrap().clone())));
            }
        }
    }
}

//! Partition rules: every row belongs to exactly one region, and CREATE TABLE proves it.
//!
//! An expression compares columns with constants and nothing else. So the constants cut the domain of each column into
//! elementary intervals (`c1`, between `c1` and `c2`, `c2`, ..) within which no comparison changes, and one value of each
//! interval stands for all of them: the expressions are evaluated for every combination of such values. None that holds is
//! a gap, two are an overlap, and the combination is the example that the error shows.

use std::collections::BTreeSet;

use datafusion::scalar::ScalarValue;
use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Expr};

use super::cast::{repeat, show_value, to_column, to_value};
use super::names::suggest;
use super::parser::fold;
use super::planner::Evaluator;
use super::values::for_column;
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{CompareOp, PartitionExpr, PartitionRule};
use crate::types::{Column, ColumnType, Schema, Value};

/// Comparisons that are made at most to find gaps and overlaps: about a second of work.
const WORK: usize = 20_000_000;

/// The rule of `PARTITION ON COLUMNS (columns) (expressions)`, without gaps and overlaps.
pub(super) fn resolve(
    columns: &[String],
    expressions: &[Expr],
    schema: &Schema,
    evaluator: &Evaluator,
) -> Result<PartitionRule> {
    let refuse = |message: String| Err(Error::invalid(Invalid::PartitionRule, message));
    for (at, name) in columns.iter().enumerate() {
        let Some((position, _)) = schema.column(name) else {
            let known = schema.columns().iter().map(|column| column.name.as_str());
            let message = format!("partition column {name:?} is not defined{}", suggest(name, known));
            return Err(Error::invalid(Invalid::UnknownColumn, message));
        };
        if columns[..at].contains(name) {
            let message = format!("partition column {name:?} is named twice");
            return Err(Error::invalid(Invalid::DuplicateColumn, message));
        }
        if !schema.is_key(position) {
            return refuse(format!(
                "partition column {name:?} is not in the row key, so an UPDATE could move a row to another region; \
                 add it to the PRIMARY KEY"
            ));
        }
    }
    let resolver = Resolver { columns, schema, evaluator };
    let expressions = expressions.iter().map(|expr| resolver.expression(expr)).collect::<Result<Vec<_>>>()?;
    check(columns, &expressions, schema)?;
    Ok(PartitionRule::Expressions { columns: columns.to_vec(), expressions })
}

/// Whether `expr` holds of `cells`, the partition columns by name. NULL is less than every value.
///
/// # Panics
/// If `expr` names a column that is not among them.
pub fn holds(expr: &PartitionExpr, cells: &[(&str, &Value)]) -> bool {
    match expr {
        PartitionExpr::Compare { column, op, value } => {
            let (_, cell) = cells.iter().find(|(name, _)| name == column).expect("expressions name partition columns");
            compare(*op, (*cell).cmp(value))
        }
        PartitionExpr::And(a, b) => holds(a, cells) && holds(b, cells),
        PartitionExpr::Or(a, b) => holds(a, cells) || holds(b, cells),
    }
}

/// Whether `op` holds of a cell that is `ordering` the constant.
pub fn compare(op: CompareOp, ordering: std::cmp::Ordering) -> bool {
    match op {
        CompareOp::Eq => ordering.is_eq(),
        CompareOp::NotEq => ordering.is_ne(),
        CompareOp::Lt => ordering.is_lt(),
        CompareOp::LtEq => ordering.is_le(),
        CompareOp::Gt => ordering.is_gt(),
        CompareOp::GtEq => ordering.is_ge(),
    }
}

/// `expr` as SQL writes it.
pub fn show(expr: &PartitionExpr, schema: &Schema) -> String {
    match expr {
        PartitionExpr::Compare { column, op, value } => {
            let op = match op {
                CompareOp::Eq => "=",
                CompareOp::NotEq => "<>",
                CompareOp::Lt => "<",
                CompareOp::LtEq => "<=",
                CompareOp::Gt => ">",
                CompareOp::GtEq => ">=",
            };
            let value = match schema.column(column) {
                Some((_, definition)) => show_value(value, definition.column_type),
                None => value.to_string(),
            };
            format!("{column} {op} {value}")
        }
        PartitionExpr::And(a, b) => {
            let side = |expr: &PartitionExpr| match expr {
                PartitionExpr::Or(..) => format!("({})", show(expr, schema)),
                _ => show(expr, schema),
            };
            format!("{} AND {}", side(a), side(b))
        }
        PartitionExpr::Or(a, b) => format!("{} OR {}", show(a, schema), show(b, schema)),
    }
}

/// `rule` as SQL writes it.
pub fn show_rule(rule: &PartitionRule, schema: &Schema) -> String {
    match rule {
        PartitionRule::Hash { columns, regions } => format!("HASH ({}) INTO {regions}", columns.join(", ")),
        PartitionRule::Expressions { columns, expressions } => {
            let expressions: Vec<String> = expressions.iter().map(|expr| show(expr, schema)).collect();
            format!("ON COLUMNS ({}) ({})", columns.join(", "), expressions.join(", "))
        }
    }
}

/// From SQL to [`PartitionExpr`].
struct Resolver<'a> {
    columns: &'a [String],
    schema: &'a Schema,
    evaluator: &'a Evaluator<'a>,
}

impl Resolver<'_> {
    fn expression(&self, expr: &Expr) -> Result<PartitionExpr> {
        match expr {
            Expr::Nested(inner) => self.expression(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                Ok(PartitionExpr::And(Box::new(self.expression(left)?), Box::new(self.expression(right)?)))
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
                Ok(PartitionExpr::Or(Box::new(self.expression(left)?), Box::new(self.expression(right)?)))
            }
            Expr::BinaryOp { left, op, right } => {
                let op = match op {
                    BinaryOperator::Eq => CompareOp::Eq,
                    BinaryOperator::NotEq => CompareOp::NotEq,
                    BinaryOperator::Lt => CompareOp::Lt,
                    BinaryOperator::LtEq => CompareOp::LtEq,
                    BinaryOperator::Gt => CompareOp::Gt,
                    BinaryOperator::GtEq => CompareOp::GtEq,
                    _ => return Err(not_a_rule(expr)),
                };
                match (self.column(left), self.column(right)) {
                    (Some(column), None) => self.compare(column?, op, right),
                    (None, Some(column)) => self.compare(column?, mirrored(op), left),
                    _ => Err(not_a_rule(expr)),
                }
            }
            Expr::InList { expr: column, list, negated: false } => {
                let Some(column) = self.column(column) else {
                    return Err(not_a_rule(expr));
                };
                let column = column?;
                let equal = |value| self.compare(column, CompareOp::Eq, value);
                one_of(list.iter().map(equal).collect::<Result<_>>()?).ok_or_else(|| not_a_rule(expr))
            }
            Expr::Between { expr: column, negated: false, low, high } => {
                let Some(column) = self.column(column) else {
                    return Err(not_a_rule(expr));
                };
                let column = column?;
                let low = self.compare(column, CompareOp::GtEq, low)?;
                let high = self.compare(column, CompareOp::LtEq, high)?;
                Ok(PartitionExpr::And(Box::new(low), Box::new(high)))
            }
            _ => Err(not_a_rule(expr)),
        }
    }

    /// The column that `expr` is; none if it is no name.
    fn column(&self, expr: &Expr) -> Option<Result<&Column>> {
        let ident = match expr {
            Expr::Identifier(ident) => ident,
            Expr::Nested(inner) => return self.column(inner),
            _ => return None,
        };
        let name = fold(ident);
        if !self.columns.contains(&name) {
            let known = suggest(&name, self.columns.iter().map(String::as_str));
            let message = format!("{name:?} is no partition column{known}");
            return Some(Err(Error::invalid(Invalid::PartitionRule, message)));
        }
        Some(Ok(self.schema.column(&name).expect("partition columns are columns").1))
    }

    fn compare(&self, column: &Column, op: CompareOp, expr: &Expr) -> Result<PartitionExpr> {
        let value = self.constant(column, expr)?;
        Ok(PartitionExpr::Compare { column: column.name.clone(), op, value })
    }

    /// The constant `expr` exactly: `a < 1.5` must not become `a < 1`.
    fn constant(&self, column: &Column, expr: &Expr) -> Result<Value> {
        let refuse = |message: String| Error::invalid(Invalid::PartitionRule, message);
        let scalar = self
            .evaluator
            .constant(&for_column(expr.clone(), column.column_type))?
            .ok_or_else(|| refuse(format!("{expr} is no constant; a partition compares columns with constants")))?;
        if scalar.is_null() {
            let message = format!("{expr} is NULL, which no key column is; compare {:?} with a value", column.name);
            return Err(refuse(message));
        }
        let before = repeat(&scalar, 1);
        let cell = to_column(&before, column, "the partition")?;
        let exact = match (&scalar, column.column_type) {
            (ScalarValue::Utf8(Some(text)), ColumnType::Decimal { scale, .. }) => {
                let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction).trim_end_matches('0');
                fraction.len() <= scale as usize
            }
            (ScalarValue::Utf8(_), _) => true,
            _ => {
                let back = arrow::compute::cast(&cell, before.data_type());
                to_value(&scalar, column.column_type).is_some() || back.is_ok_and(|back| *back == *before)
            }
        };
        if !exact {
            let message = format!("{expr} is no {}, which partition column {:?} is", column.column_type, column.name);
            return Err(Error::invalid(Invalid::WrongType, message));
        }
        Ok(Value::of_cell(&cell, 0))
    }
}

/// Whether one of `all` holds: a tree that is as flat as can be, since a list may be long. None for none.
fn one_of(mut all: Vec<PartitionExpr>) -> Option<PartitionExpr> {
    let right = match all.len() {
        0 | 1 => return all.pop(),
        len => all.split_off(len / 2),
    };
    Some(PartitionExpr::Or(Box::new(one_of(all)?), Box::new(one_of(right)?)))
}

fn mirrored(op: CompareOp) -> CompareOp {
    match op {
        CompareOp::Eq | CompareOp::NotEq => op,
        CompareOp::Lt => CompareOp::Gt,
        CompareOp::LtEq => CompareOp::GtEq,
        CompareOp::Gt => CompareOp::Lt,
        CompareOp::GtEq => CompareOp::LtEq,
    }
}

fn not_a_rule(expr: &ast::Expr) -> Error {
    let message = format!(
        "{expr}: a partition compares columns with constants by =, <>, <, <=, >, >=, BETWEEN, IN, and joins that by AND, OR"
    );
    Error::invalid(Invalid::PartitionRule, message)
}

/// Finds gaps and overlaps, and expressions that hold of nothing.
fn check(columns: &[String], expressions: &[PartitionExpr], schema: &Schema) -> Result<()> {
    let definitions: Vec<&Column> =
        columns.iter().map(|name| schema.column(name).expect("partition columns are columns").1).collect();
    let mut constants = vec![BTreeSet::new(); columns.len()];
    for expr in expressions {
        collect(expr, columns, &mut constants);
    }
    let examples: Vec<Vec<Value>> = definitions
        .iter()
        .zip(constants)
        .map(|(column, constants)| examples(column, constants.into_iter().collect()))
        .collect();
    let cells = examples.iter().try_fold(1usize, |cells, examples| cells.checked_mul(examples.len()));
    let comparisons: usize = expressions.iter().map(PartitionExpr::comparisons).sum();
    let is_much = |cells: &usize| cells.checked_mul(comparisons).is_none_or(|work| work > WORK);
    let Some(cells) = cells.filter(|cells| !is_much(cells)) else {
        let message = format!(
            "the partition has {comparisons} comparisons and too many combinations of intervals to check that no row is \
             left out; use fewer constants and columns"
        );
        return Err(Error::invalid(Invalid::PartitionRule, message));
    };
    let mut used = vec![false; expressions.len()];
    let mut cell = vec![0usize; columns.len()];
    for _ in 0..cells {
        let cells: Vec<(&str, &Value)> =
            (0..cell.len()).map(|at| (columns[at].as_str(), &examples[at][cell[at]])).collect();
        let example = || {
            let show = |(column, (name, value)): (&&Column, &(&str, &Value))| {
                format!("{name} = {}", show_value(value, column.column_type))
            };
            definitions.iter().zip(&cells).map(show).collect::<Vec<_>>().join(", ")
        };
        let mut covering = expressions.iter().enumerate().filter(|(_, expr)| holds(expr, &cells));
        match (covering.next(), covering.next()) {
            (Some((at, _)), None) => used[at] = true,
            (None, _) => {
                let message = format!("no partition covers {}; add one that does", example());
                return Err(Error::invalid(Invalid::PartitionGap, message));
            }
            (Some((_, a)), Some((_, b))) => {
                let (a, b) = (show(a, schema), show(b, schema));
                let message = format!("{} is covered twice, by ({a}) and by ({b}); narrow one of them", example());
                return Err(Error::invalid(Invalid::PartitionOverlap, message));
            }
        }
        // The next combination: the last column turns fastest.
        for at in (0..cell.len()).rev() {
            cell[at] += 1;
            if cell[at] < examples[at].len() {
                break;
            }
            cell[at] = 0;
        }
    }
    if let Some(at) = used.iter().position(|used| !used) {
        let message = format!("partition ({}) holds of no row; leave it out", show(&expressions[at], schema));
        return Err(Error::invalid(Invalid::PartitionRule, message));
    }
    Ok(())
}

fn collect(expr: &PartitionExpr, columns: &[String], constants: &mut [BTreeSet<Value>]) {
    match expr {
        PartitionExpr::Compare { column, value, .. } => {
            let at = columns.iter().position(|name| name == column).expect("expressions name partition columns");
            constants[at].insert(value.clone());
        }
        PartitionExpr::And(a, b) | PartitionExpr::Or(a, b) => {
            collect(a, columns, constants);
            collect(b, columns, constants);
        }
    }
}

/// One value of each elementary interval that `constants` (ascending) cut the type into; intervals that have no value have
/// none. NULL compares like a value below all constants: where no value is there, a column that has NULLs still has that.
fn examples(column: &Column, constants: Vec<Value>) -> Vec<Value> {
    let column_type = column.column_type;
    let (Some(first), Some(last)) = (constants.first(), constants.last()) else {
        return vec![zero(column_type)];
    };
    let null = column.nullable.then_some(Value::Null);
    let mut examples: Vec<Value> = below(first, column_type).or(null).into_iter().collect();
    for (at, constant) in constants.iter().enumerate() {
        examples.push(constant.clone());
        if let Some(next) = constants.get(at + 1) {
            examples.extend(between(constant, next, column_type));
        }
    }
    examples.extend(above(last, column_type));
    examples
}

fn zero(column_type: ColumnType) -> Value {
    match column_type {
        ColumnType::String => Value::String(String::new()),
        ColumnType::Binary => Value::Binary(Vec::new()),
        _ => from_rank(0, column_type),
    }
}

fn below(first: &Value, column_type: ColumnType) -> Option<Value> {
    match first {
        Value::String(text) => (!text.is_empty()).then(|| Value::String(String::new())),
        Value::Binary(bytes) => (!bytes.is_empty()).then(|| Value::Binary(Vec::new())),
        _ => {
            let least = *ranks(column_type).start();
            let rank = rank(first, column_type);
            let nice = nice(rank, -1, column_type);
            if nice < rank {
                Some(from_rank(nice, column_type))
            } else {
                (least < rank).then(|| from_rank(rank - 1, column_type))
            }
        }
    }
}

fn above(last: &Value, column_type: ColumnType) -> Option<Value> {
    match last {
        Value::String(text) => Some(Value::String(format!("{text}a"))),
        Value::Binary(bytes) => Some(Value::Binary([bytes.as_slice(), &[0]].concat())),
        _ => {
            let most = *ranks(column_type).end();
            let rank = rank(last, column_type);
            let nice = nice(rank, 1, column_type);
            if nice > rank {
                Some(from_rank(nice, column_type))
            } else {
                (most > rank).then(|| from_rank(rank + 1, column_type))
            }
        }
    }
}

fn between(low: &Value, high: &Value, column_type: ColumnType) -> Option<Value> {
    match (low, high) {
        // Readable where possible; with a zero character behind it, a text has its direct successor.
        (Value::String(low), Value::String(_)) => {
            ["a", "0", " ", "\0"].iter().map(|more| Value::String(format!("{low}{more}"))).find(|value| value < high)
        }
        (Value::Binary(low), Value::Binary(_)) => {
            Some(Value::Binary([low.as_slice(), &[0]].concat())).filter(|value| value < high)
        }
        _ => {
            let (low, high) = (rank(low, column_type), rank(high, column_type));
            if high - low < 2 {
                return None;
            }
            let nice = nice(low, 1, column_type);
            Some(from_rank(if nice > low && nice < high { nice } else { low + 1 }, column_type))
        }
    }
}

/// The ranks of all values of a type: integers in the order of the values, so that neighbours differ by one.
fn ranks(column_type: ColumnType) -> std::ops::RangeInclusive<i128> {
    let signed = |bits: u32| -(1i128 << (bits - 1))..=(1i128 << (bits - 1)) - 1;
    match column_type {
        ColumnType::Boolean => 0..=1,
        ColumnType::Int8 => signed(8),
        ColumnType::Int16 => signed(16),
        ColumnType::Int32 | ColumnType::Date | ColumnType::Float32 => signed(32),
        ColumnType::Int64 | ColumnType::Timestamp(_) | ColumnType::Float64 => signed(64),
        ColumnType::UInt8 => 0..=(1 << 8) - 1,
        ColumnType::UInt16 => 0..=(1 << 16) - 1,
        ColumnType::UInt32 => 0..=(1 << 32) - 1,
        ColumnType::UInt64 => 0..=(1 << 64) - 1,
        ColumnType::Decimal { precision, .. } => {
            let most = 10i128.pow(u32::from(precision)) - 1;
            -most..=most
        }
        ColumnType::String | ColumnType::Binary => unreachable!("texts have no ranks"),
    }
}

fn rank(value: &Value, column_type: ColumnType) -> i128 {
    match value {
        Value::Boolean(v) => i128::from(*v),
        Value::Int(v) | Value::Timestamp(v) => i128::from(*v),
        Value::UInt(v) => i128::from(*v),
        Value::Decimal(v) => *v,
        Value::Date(v) => i128::from(*v),
        // The order of floats is that of their bits as integers, with the bits of negative ones turned round.
        Value::Float(v) if column_type == ColumnType::Float32 => {
            let bits = (*v as f32).to_bits() as i32;
            i128::from(bits ^ ((bits >> 31) as u32 >> 1) as i32)
        }
        Value::Float(v) => {
            let bits = v.to_bits() as i64;
            i128::from(bits ^ ((bits >> 63) as u64 >> 1) as i64)
        }
        Value::Null | Value::String(_) | Value::Binary(_) => unreachable!("a constant of {column_type} has a rank"),
    }
}

fn from_rank(rank: i128, column_type: ColumnType) -> Value {
    match column_type {
        ColumnType::Boolean => Value::Boolean(rank != 0),
        ColumnType::Int8 | ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => Value::Int(rank as i64),
        ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64 => Value::UInt(rank as u64),
        ColumnType::Float32 => {
            let bits = rank as i32;
            Value::Float(f32::from_bits((bits ^ ((bits >> 31) as u32 >> 1) as i32) as u32).into())
        }
        ColumnType::Float64 => {
            let bits = rank as i64;
            Value::Float(f64::from_bits((bits ^ ((bits >> 63) as u64 >> 1) as i64) as u64))
        }
        ColumnType::Decimal { .. } => Value::Decimal(rank),
        ColumnType::Date => Value::Date(rank as i32),
        ColumnType::Timestamp(_) => Value::Timestamp(rank as i64),
        ColumnType::String | ColumnType::Binary => unreachable!("texts have no ranks"),
    }
}

/// A readable value near `rank` in direction `by`: one more or less where the neighbour has many digits.
fn nice(rank: i128, by: i128, column_type: ColumnType) -> i128 {
    match (from_rank(rank, column_type), column_type) {
        (Value::Float(value), _) => self::rank(&Value::Float(value + by as f64), column_type),
        _ => rank,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sql::{Planner, Statement, parse};
    use crate::types::{ColumnId, Timestamp};

    fn refused(columns: &str, key: &str, rule: &str) -> String {
        let sql = format!("CREATE TABLE t ({columns}, PRIMARY KEY ({key})) PARTITION ON COLUMNS ({key}) ({rule})");
        let Statement::CreateTable(table) = parse(&sql).unwrap() else { panic!("{sql}") };
        match table.resolve(&Planner::new().evaluator(Timestamp(0))) {
            Ok(_) => "fine".to_string(),
            Err(err) => err.to_string(),
        }
    }

    #[test]
    fn a_gap_is_shown_by_example() {
        assert_eq!(
            refused("a INT", "a", "a < 10, a > 10"),
            "[partition_gap] no partition covers a = 10; add one that does"
        );
        assert_eq!(
            refused("a INT", "a", "a < 10, a > 11"),
            "[partition_gap] no partition covers a = 10; add one that does"
        );
        assert_eq!(refused("a INT", "a", "a <= 10, a >= 11"), "fine");
        assert!(refused("a DECIMAL(5, 2)", "a", "a <= 10, a >= 10.02").contains("no partition covers a = 10.01"));
        assert_eq!(refused("a DECIMAL(5, 2)", "a", "a <= 10, a >= 10.01"), "fine");
        assert!(refused("a DOUBLE", "a", "a <= 10, a >= 11").contains("no partition covers a = 10.000000000000002"));
        assert!(refused("a STRING", "a", "a < 'm', a > 'm'").contains("no partition covers a = 'm'"));
        assert!(refused("a STRING", "a", "a <= 'm', a >= 'n'").contains("no partition covers a = 'ma'"));
        assert!(refused("a DATE", "a", "a < '2013-01-01', a > '2013-01-01'").contains("a = '2013-01-01'"));
        assert!(refused("a BOOLEAN", "a", "a = true").contains("no partition covers a = false"));
        assert_eq!(refused("a BOOLEAN", "a", "a = true, a = false"), "fine");
        assert_eq!(refused("a TINYINT UNSIGNED", "a", "a = 0, a BETWEEN 1 AND 254, a = 255"), "fine");
        assert!(refused("a INT, b STRING", "a, b", "a < 0, a >= 0 AND b < 'x'").contains("a = 0, b = 'x'"));
        assert!(refused("a INT", "a", "").contains("no partition covers a = 0"));
    }

    #[test]
    fn an_overlap_is_shown_by_example() {
        assert_eq!(
            refused("a INT", "a", "a <= 10, a >= 10"),
            "[partition_overlap] a = 10 is covered twice, by (a <= 10) and by (a >= 10); narrow one of them"
        );
        assert!(refused("a STRING", "a", "a <= 'n', a > 'm'").starts_with("[partition_overlap] a = 'ma'"));
        assert!(refused("a INT, b INT", "a, b", "a < 5, b < 5, a >= 5 AND b >= 5").contains("a = 4, b = 4"));
        assert!(refused("a INT", "a", "a < 5, a >= 5, a > 3 AND a < 2").contains("(a > 3 AND a < 2) holds of no row"));
    }

    #[test]
    fn a_rule_compares_key_columns_with_exact_constants() {
        assert!(
            refused("a INT", "a", "a + 1 < 5, a >= 4").starts_with("[partition_rule] a + 1 < 5: a partition compares")
        );
        assert!(refused("a INT", "a", "a < 1.5, a > 1.5").starts_with("[wrong_type] 1.5 is no INT"));
        assert_eq!(refused("a INT", "a", "a < 1.0, a >= 1.0"), "fine");
        assert!(refused("a INT", "a", "a < now(), a >= 1").contains("is no constant"));
        assert!(refused("a INT", "a", "a < NULL, a >= 1").contains("is NULL"));
        assert!(refused("a INT", "a", "a < 3000000000, a >= 1").starts_with("[out_of_range]"));
        assert!(refused("a INT, b INT", "a", "b < 1, b >= 1").contains("\"b\" is no partition column"));
        assert_eq!(refused("a TIMESTAMP", "a", "a < '2013-01-15', '2013-01-15 00:00:00' <= a"), "fine");
    }

    #[test]
    fn a_long_list_is_neither_too_deep_nor_checked_for_ever() {
        let list = |len: i32| (0..len).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
        assert_eq!(refused("a INT", "a", &format!("a IN ({}), a < 0, a >= 1000", list(1_000))), "fine");
        let long = refused("a INT", "a", &format!("a IN ({}), a < 0, a >= 100000", list(100_000)));
        assert!(long.starts_with("[partition_rule] the partition has 100002 comparisons"), "{long}");
    }

    proptest! {
        /// What the check lets through, every value satisfies exactly once; what it refuses, some value does not.
        #[test]
        fn the_check_is_exact(rule in proptest::collection::vec(rule(), 1..4)) {
            let column = Column {
                id: ColumnId(1), name: "a".into(), column_type: ColumnType::UInt8, nullable: false, default: None,
            };
            let schema = Schema::new(1, vec![column], &["a".into()], None).unwrap();
            let verdict = check(&["a".to_string()], &rule, &schema).map_err(|err| err.code());
            let holds = |expr: &PartitionExpr, a: u64| super::holds(expr, &[("a", &Value::UInt(a))]);
            let covers: Vec<usize> =
                (0..=255).map(|a| rule.iter().filter(|expr| holds(expr, a)).count()).collect();
            let used = |expr: &PartitionExpr| (0..=255).any(|a| holds(expr, a));
            match verdict {
                Ok(()) => prop_assert!(covers.iter().all(|count| *count == 1) && rule.iter().all(used)),
                Err("partition_gap") => prop_assert!(covers.contains(&0)),
                Err("partition_overlap") => prop_assert!(covers.iter().any(|count| *count > 1)),
                Err(other) => prop_assert!(other == "partition_rule" && !rule.iter().all(used)),
            }
        }
    }

    fn rule() -> impl Strategy<Value = PartitionExpr> {
        let op = prop_oneof![
            Just(CompareOp::Eq),
            Just(CompareOp::NotEq),
            Just(CompareOp::Lt),
            Just(CompareOp::LtEq),
            Just(CompareOp::Gt),
            Just(CompareOp::GtEq),
        ];
        let constant = prop_oneof![Just(0u64), Just(1), Just(2), Just(7), Just(254), Just(255)];
        let leaf = (op, constant).prop_map(|(op, constant)| PartitionExpr::Compare {
            column: "a".into(),
            op,
            value: Value::UInt(constant),
        });
        leaf.prop_recursive(2, 4, 2, |inner| {
            (inner.clone(), inner, any::<bool>()).prop_map(|(a, b, and)| match and {
                true => PartitionExpr::And(Box::new(a), Box::new(b)),
                false => PartitionExpr::Or(Box::new(a), Box::new(b)),
            })
        })
    }
}

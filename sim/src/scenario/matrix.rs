//! `[matrix]`: one file, many cells. Each axis is a list of values, or of tables of values; the cells are all combinations.
//! Where the file says `$axis` or `$axis.key` in a string, a cell has its value; a string that is nothing else becomes
//! the number or the truth value that the axis has there. Every cell is a whole scenario: all of them are checked, a seed
//! runs one. Cells take turns by seed, so that consecutive seeds run each equally often.
//!
//! The words are replaced in the text, before anything is read; places of problems are those of the file as it is.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::{Spanned, Value};

use super::position::{Problems, Source, one_of, toml_problems};

/// More cells than that are a mistake: no sweep gets around.
const MANY: usize = 1_000;

/// One combination of values, and the file as it is for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// The values, axis by axis, for reports; empty without a matrix.
    pub name: String,
    /// The text of the scenario.
    pub text: String,
    /// Where it is another than the file's.
    pub edits: Vec<Edit>,
}

/// A word that was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edit {
    /// Where the value begins in the new text.
    at: usize,
    /// Length of the value.
    new: usize,
    /// Length of what stood there.
    old: usize,
}

/// Where the byte at `at` of the new text is in the old one.
pub(crate) fn original(edits: &[Edit], at: usize) -> usize {
    let mut place = at;
    for edit in edits.iter().rev() {
        if at >= edit.at + edit.new {
            place = place - edit.new + edit.old;
        } else if at > edit.at {
            place -= at - edit.at;
        }
    }
    place
}

/// Only the matrix; what else there is is read for each cell.
#[derive(Deserialize)]
struct File {
    matrix: Option<Spanned<BTreeMap<Spanned<String>, Spanned<Value>>>>,
}

/// The name of an axis, with its points: by key (none: the point is one value) what stands there.
type Axis = (String, Vec<BTreeMap<String, Value>>);

/// The cells of a file; one without a name if it has no matrix.
pub(super) fn cells(text: &str, shown: &str) -> Result<Vec<Cell>, Problems> {
    let whole = || Cell { name: String::new(), text: text.to_string(), edits: Vec::new() };
    let file: File = toml::from_str(text).map_err(|err| toml_problems(shown, text, &[], &err))?;
    let Some(matrix) = file.matrix else { return Ok(vec![whole()]) };
    let mut source = Source::new(shown, text, &[]);
    let span = matrix.span();
    let axes = axes(matrix, &mut source);
    let count = axes.iter().try_fold(1usize, |count, (_, points)| count.checked_mul(points.len()));
    if count.is_none_or(|count| count > MANY) {
        source.wrong(span.clone(), format!("expected at most {MANY} cells: fewer values, or fewer axes"));
    }
    let places = places(text, &axes, &mut source);
    for (name, points) in &axes {
        let used = |key: &str| places.iter().any(|place| place.axis == *name && place.key == key);
        // `name` is for people.
        let mut unused = points.iter().flat_map(BTreeMap::keys).filter(|key| *key != "name" && !used(key));
        if let Some(key) = unused.next() {
            let word = if key.is_empty() { format!("${name}") } else { format!("${name}.{key}") };
            source.wrong(span.clone(), format!("expected \"{word}\" somewhere: else all its values are the same"));
        }
    }
    source.finish()?;

    let mut chosen: Vec<Vec<&BTreeMap<String, Value>>> = vec![Vec::new()];
    for (_, points) in &axes {
        let longer =
            |cell: &Vec<_>| points.iter().map(|point| [cell.as_slice(), &[point]].concat()).collect::<Vec<_>>();
        chosen = chosen.iter().flat_map(longer).collect();
    }
    Ok(chosen.iter().map(|points| cell(text, &axes, points, &places)).collect())
}

fn axes(matrix: Spanned<BTreeMap<Spanned<String>, Spanned<Value>>>, source: &mut Source<'_>) -> Vec<Axis> {
    let span = matrix.span();
    let mut axes: Vec<(usize, Axis)> = Vec::new();
    for (name, values) in matrix.into_inner() {
        let at = values.span();
        if !name.get_ref().chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            source.wrong(name.span(), "expected a name of small letters and _");
        }
        let Value::Array(values) = values.into_inner() else {
            source.wrong(at, "expected a list of values, or of tables of values");
            continue;
        };
        let points: Vec<BTreeMap<String, Value>> = values
            .into_iter()
            .map(|value| match value {
                Value::Table(table) => table.into_iter().collect(),
                value => BTreeMap::from([(String::new(), value)]),
            })
            .collect();
        let plain = |value: &Value| match value {
            Value::String(text) => !text.contains(['"', '\'', '\\', '$']) && !text.contains(char::is_control),
            // A pair of numbers, say: what a list may hold is for its place to tell.
            Value::Array(items) => items.iter().all(|item| matches!(item, Value::Integer(_))),
            value => matches!(value, Value::Integer(_) | Value::Boolean(_)),
        };
        if points.is_empty() {
            source.wrong(at, "expected at least one value");
        } else if points.iter().flat_map(BTreeMap::values).any(|value| !plain(value)) {
            source.wrong(at, "expected whole numbers, truth values, and text without quotes, \\ and $");
        } else if points.iter().any(|point| !point.keys().eq(points[0].keys())) {
            source.wrong(at, "expected the same keys in each table of the list");
        } else {
            axes.push((name.span().start, (name.into_inner(), points)));
        }
    }
    if axes.is_empty() {
        source.wrong(span, "expected at least one list, like `when = [\"before\", \"after\"]`");
    }
    // As they stand in the file.
    axes.sort_by_key(|(at, _)| *at);
    axes.into_iter().map(|(_, axis)| axis).collect()
}

/// A word of the file that stands for a value.
struct Place {
    /// With the quotes around it, if the string is nothing else.
    span: Range<usize>,
    axis: String,
    key: String,
    /// The string is nothing else.
    whole: bool,
}

fn places(text: &str, axes: &[Axis], source: &mut Source<'_>) -> Vec<Place> {
    let mut places = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let from = start;
        start += line.len();
        if line.trim_start().starts_with('#') {
            continue;
        }
        for (dollar, _) in line.match_indices('$') {
            let word = &line[dollar + 1..];
            let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
            let axis = &word[..word.find(|c| !is_word(c)).unwrap_or(word.len())];
            if axis.is_empty() {
                continue;
            }
            let rest = &word[axis.len()..];
            let known = axes.iter().find(|(name, _)| name == axis);
            let here = from + dollar..from + dollar + 1 + axis.len();
            let Some((_, points)) = known else {
                let names: Vec<&str> = axes.iter().map(|(name, _)| name.as_str()).collect();
                source.wrong(here, one_of("an axis of the matrix", axis, &names));
                continue;
            };
            let has_keys = points.iter().flat_map(BTreeMap::keys).any(|key| !key.is_empty());
            let key = match rest.strip_prefix('.').filter(|_| has_keys) {
                Some(key) => &key[..key.find(|c| !is_word(c)).unwrap_or(key.len())],
                None => "",
            };
            if !points[0].contains_key(key) {
                let keys: Vec<&str> = points[0].keys().map(String::as_str).collect();
                source.wrong(here, one_of(&format!("a key of ${axis}"), key, &keys));
                continue;
            }
            let end = here.end + if key.is_empty() { 0 } else { 1 + key.len() };
            let whole = text[..here.start].ends_with('"') && text[end..].starts_with('"');
            let span = if whole { here.start - 1..end + 1 } else { here.start..end };
            places.push(Place { span, axis: axis.to_string(), key: key.to_string(), whole });
        }
    }
    places
}

fn cell(text: &str, axes: &[Axis], points: &[&BTreeMap<String, Value>], places: &[Place]) -> Cell {
    let shown = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut new = String::with_capacity(text.len());
    let mut edits = Vec::new();
    let mut done = 0;
    for place in places {
        let at = axes.iter().position(|(name, _)| *name == place.axis);
        let Some(value) = at.and_then(|at| points[at].get(&place.key)) else { continue };
        new.push_str(&text[done..place.span.start]);
        let word = if place.whole { value.to_string() } else { shown(value) };
        edits.push(Edit { at: new.len(), new: word.len(), old: place.span.len() });
        new.push_str(&word);
        done = place.span.end;
    }
    new.push_str(&text[done..]);
    let of_axis = |point: &&BTreeMap<String, Value>| match point.get("name") {
        Some(name) => shown(name),
        None => point.values().map(shown).collect::<Vec<_>>().join(" "),
    };
    let name = points.iter().map(of_axis).collect::<Vec<_>>().join(", ");
    Cell { name, text: new, edits }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# $5 and $nothing.\n[matrix]\nwhen = [\"before\", \"after\"]\nat = [{ file = \"sst\", nth = 3 }, \
                        { file = \"log\", nth = 40 }]\n[[on]]\nname = \"$when of $at.file\"\nnth = \"$at.nth\"\n\
                        \"$when\" = \"$at.file\"\n";

    #[test]
    fn the_cells_are_all_combinations_and_a_string_alone_becomes_the_value() {
        let cells = cells(FILE, "f").unwrap_or_else(|err| panic!("{err}"));
        let names: Vec<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(names, ["before, sst 3", "before, log 40", "after, sst 3", "after, log 40"]);
        let body = cells[1].text.split_once("[[on]]\n").unwrap().1;
        assert_eq!(body, "name = \"before of log\"\nnth = 40\n\"before\" = \"log\"\n");
        assert!(cells[1].text.starts_with("# $5 and $nothing."));
    }

    #[test]
    fn a_place_is_that_of_the_file() {
        for cell in cells(FILE, "f").unwrap_or_else(|err| panic!("{err}")) {
            for word in ["[[on]]", "nth = ", "name"] {
                let (new, old) = (cell.text.rfind(word).unwrap(), FILE.rfind(word).unwrap());
                assert_eq!(original(&cell.edits, new), old, "{word} in {}", cell.name);
            }
            // What is wrong with a value is wrong where the word stands.
            let new = cell.text.find("nth = ").map(|_| cell.text.rfind("nth = ").unwrap() + 6).unwrap();
            assert_eq!(original(&cell.edits, new), FILE.find("\"$at.nth\"").unwrap());
        }
    }

    #[test]
    fn a_file_without_a_matrix_is_its_one_cell() {
        let text = "a = \"costs $when\"\n";
        assert_eq!(cells(text, "f").map(|cells| cells.len()), Ok(1));
        assert_eq!(cells(text, "f").map(|cells| cells[0].text.clone()), Ok(text.to_string()));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (matrix, body, told) in [
            ("a = 1", "", "f:2:5: expected a list"),
            ("a = []", "", "f:2:5: expected at least one value"),
            ("", "", "f:1:1: expected at least one list"),
            ("a = [1.5]", "x = \"$a\"", "f:2:5: expected whole numbers"),
            ("a = [\"x\\\"y\"]", "x = \"$a\"", "f:2:5: expected whole numbers"),
            ("a = [{ b = 1 }, { c = 1 }]", "", "f:2:5: expected the same keys"),
            ("when = [1]", "x = \"$wehn\"", "f:4:6: expected an axis of the matrix"),
            ("at = [{ file = 1 }]", "x = \"$at.fiel\"", "did you mean \"file\"?"),
            ("a = [1]\nb = [2]", "x = \"$a\"", "expected \"$b\" somewhere"),
            ("aB = [1]", "x = \"$a\"", "f:2:1: expected a name of small letters"),
        ] {
            let text = format!("[matrix]\n{matrix}\n[x]\n{body}\n");
            let problems = cells(&text, "f").unwrap_err().to_string();
            assert!(problems.contains(told), "{text}: {problems}");
        }
        let long: Vec<String> = (0..40).map(|n| n.to_string()).collect();
        let text = format!("[matrix]\na = [{0}]\nb = [{0}]\n[x]\nx = \"$a $b\"\n", long.join(","));
        assert!(cells(&text, "f").unwrap_err().to_string().contains("at most 1000 cells"));
    }
}

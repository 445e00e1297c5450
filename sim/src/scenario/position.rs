//! Errors of a scenario file: where they are and what would be right.

use std::fmt;
use std::ops::Range;

use super::matrix::{Edit, original};

/// Something wrong at a place of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as the user named it.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// `expected ..; did you mean ..`.
    pub message: String,
}

/// Everything that is wrong with a file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problem {
    /// Something wrong with a whole file.
    pub fn of_file(path: &str, message: String) -> Problem {
        Problem { path: path.to_string(), line: 1, column: 1, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.path, self.line, self.column, self.message)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A file that is being read, and what was found wrong with it so far.
pub(crate) struct Source<'a> {
    path: &'a str,
    text: &'a str,
    edits: &'a [Edit],
    problems: Vec<Problem>,
}

impl<'a> Source<'a> {
    /// `text` is the file as it is; spans are of the text that `edits` made of it.
    pub(crate) fn new(path: &'a str, text: &'a str, edits: &'a [Edit]) -> Source<'a> {
        Source { path, text, edits, problems: Vec::new() }
    }

    /// Puts down a problem at the byte where `span` starts.
    pub(crate) fn wrong(&mut self, span: Range<usize>, message: impl Into<String>) {
        let at = original(self.edits, span.start);
        let before = self.text.get(..at.min(self.text.len())).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        self.problems.push(Problem { path: self.path.to_string(), line, column, message: message.into() });
    }

    /// The value, or a problem at `span`.
    pub(crate) fn take<T>(&mut self, span: Range<usize>, value: Result<T, String>) -> Option<T> {
        value.map_err(|message| self.wrong(span, message)).ok()
    }

    /// The place of a character of the string at `span`, by line and column of what it says; the string itself where that
    /// cannot be told from how it is written.
    pub(crate) fn within(&self, span: Range<usize>, value: &str, line: usize, column: usize) -> Range<usize> {
        let start = original(self.edits, span.start);
        let written = self.text.get(start..).unwrap_or_default();
        let open = written.len() - written.trim_start_matches('"').len();
        let open = open + usize::from(open == 3 && written[open..].starts_with('\n'));
        let before: usize = value.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        let rest = value.get(before..).unwrap_or_default();
        let inside = before + rest.chars().take(column.saturating_sub(1)).map(char::len_utf8).sum::<usize>();
        // Only where it is written as it is read: no escapes, and no word of a matrix.
        if open > 0 && written[open..].starts_with(value) { span.start + open + inside..span.end } else { span }
    }

    /// The line of a byte, from 1.
    pub(crate) fn line(&self, at: usize) -> u32 {
        let at = original(self.edits, at);
        let lines = self.text.get(..at.min(self.text.len())).unwrap_or(self.text).matches('\n').count();
        u32::try_from(lines + 1).unwrap_or(u32::MAX)
    }

    /// All problems in the order of the file; none: all is well.
    pub(crate) fn finish(mut self) -> Result<(), Problems> {
        if self.problems.is_empty() {
            return Ok(());
        }
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        Err(Problems(self.problems))
    }
}

/// What serde or the parser of TOML says, in our form: an unknown key gets its nearest relative.
pub(crate) fn toml_problems(path: &str, text: &str, edits: &[Edit], err: &toml::de::Error) -> Problems {
    let mut source = Source::new(path, text, edits);
    source.wrong(err.span().unwrap_or(0..0), reworded(err.message()));
    Problems(source.problems)
}

fn reworded(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    let Some((kind, rest)) = ["unknown field `", "unknown variant `"]
        .iter()
        .find_map(|start| Some((&start[8..start.len() - 2], message.strip_prefix(start)?)))
    else {
        return in_words(message);
    };
    let Some((given, known)) = rest.split_once('`') else { return message };
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    one_of(if kind == "field" { "a key" } else { "a word" }, given, &known)
}

/// Types as people call them, not as the parser does.
fn in_words(message: String) -> String {
    const WORDS: &[(&str, &str)] = &[
        ("expected i64", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected a string", "expected text"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected a table"),
    ];
    let message = WORDS.iter().fold(message, |message, (theirs, ours)| message.replace(theirs, ours));
    // `expected struct Load` names what nobody knows.
    match message.split_once("expected struct ") {
        Some((before, _)) => format!("{before}expected a table"),
        None => message,
    }
}

/// `expected WHAT, found "given"; did you mean ..? (..)`: the near miss before the list of all.
pub(crate) fn one_of(what: &str, given: &str, known: &[&str]) -> String {
    let near = nearest(given, known).map_or(String::new(), |near| format!("; did you mean \"{near}\"?"));
    let known = if known.is_empty() { "there is none".to_string() } else { known.join(", ") };
    format!("expected {what}, found \"{given}\"{near} ({known})")
}

/// The known name that a person most likely meant: at most a third of its letters are wrong, or one is the beginning of the
/// other.
pub(crate) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let given = given.to_lowercase();
    let length = given.chars().count();
    let begins = |name: &str| length >= 3 && (name.starts_with(&given) || (name.len() >= 3 && given.starts_with(name)));
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&given, &name.to_lowercase()), *name))
        .filter(|(distance, name)| {
            *distance <= name.chars().count().max(length).max(3) / 3 && *distance < length.max(1)
                || begins(&name.to_lowercase())
        })
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_in_characters_from_one() {
        let mut source = Source::new("a.toml", "äöü\nx = ß = 1\n", &[]);
        source.wrong(13..14, "here");
        source.wrong(0..1, "first");
        source.wrong(999..1000, "behind");
        let problems = source.finish().unwrap_err();
        assert_eq!(problems.to_string(), "a.toml:1:1: first\na.toml:2:6: here\na.toml:3:1: behind");
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("powerloss", &["pause", "power_loss"]), Some("power_loss"));
        assert_eq!(nearest("pwoer_loss", &["pause", "power_loss"]), Some("power_loss"));
        assert_eq!(nearest("nht", &["name", "nth", "times"]), Some("nth"));
        assert_eq!(nearest("restart_aft", &["start", "restart_after"]), Some("restart_after"));
        assert_eq!(nearest("xyz", &["nth", "on"]), None);
        assert_eq!(nearest("elephant", &["pause", "power_loss"]), None);
        assert_eq!(nearest("", &["pause"]), None);
    }
}

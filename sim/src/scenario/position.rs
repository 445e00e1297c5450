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
        return message;
    };
    let Some((given, known)) = rest.split_once('`') else { return message };
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    one_of(if kind == "field" { "a key" } else { "a word" }, given, &known)
}

/// `expected WHAT (one of ..), found "given"; did you mean ..?`
pub(crate) fn one_of(what: &str, given: &str, known: &[&str]) -> String {
    let known_ones = if known.is_empty() { "there is none".to_string() } else { known.join(", ") };
    let mut message = format!("expected {what} ({known_ones}), found \"{given}\"");
    if let Some(near) = nearest(given, known) {
        message.push_str(&format!("; did you mean \"{near}\"?"));
    }
    message
}

/// The known name that a person most likely meant: at most a third of its letters are wrong.
pub(crate) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let given = given.to_lowercase();
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&given, &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= name.chars().count().max(3) / 3)
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
        assert_eq!(nearest("elephant", &["pause", "power_loss"]), None);
        assert_eq!(nearest("", &["pause"]), None);
    }
}

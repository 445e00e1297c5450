//! A type as SQL writes it: `INT`, `DECIMAL(10, 2)`, `TIMESTAMP(3)`.

use std::fmt;
use std::str::FromStr;

use engine::sql::Statement;
use engine::types::ColumnType;

use super::period::as_text;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqlType(pub ColumnType);

impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SqlType {
    type Err = String;

    fn from_str(text: &str) -> Result<SqlType, String> {
        let expected =
            || format!("expected a type like \"BIGINT\", \"DECIMAL(10, 2)\" or \"TIMESTAMP(3)\", found \"{text}\"");
        // The product knows its types; only what stands for one and nothing else is let through to it.
        let is_type = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '(' | ')' | ',' | '_');
        if text.trim().is_empty() || !text.chars().all(is_type) {
            return Err(expected());
        }
        match engine::sql::parse(&format!("CREATE TABLE t (c {text}, PRIMARY KEY (c))")) {
            Ok(Statement::CreateTable(table)) => match table.columns.as_slice() {
                [column] if column.nullable.is_none() && column.default.is_none() => Ok(SqlType(column.column_type)),
                _ => Err(expected()),
            },
            Ok(_) => Err(expected()),
            Err(err) => Err(format!("{} ({err})", expected())),
        }
    }
}

as_text!(SqlType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again() {
        for text in ["INT", "BIGINT UNSIGNED", "DECIMAL(10, 2)", "STRING", "BINARY", "DATE", "TIMESTAMP(6)", "DOUBLE"] {
            assert_eq!(text.parse::<SqlType>().map(|found| found.to_string()), Ok(text.to_string()));
        }
        assert_eq!("integer".parse::<SqlType>().map(|found| found.to_string()), Ok("INT".to_string()));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "INTT", "INT NOT NULL", "INT DEFAULT 3", "INT, d INT", "INT); DROP", "TIMESTAMP(4)"] {
            let message = text.parse::<SqlType>().unwrap_err();
            assert!(message.contains("expected a type like"), "{text}: {message}");
        }
    }
}

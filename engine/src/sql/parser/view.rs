//! The statements of materialized views, indexes and the jobs that fill them.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::{
    Layout, check_query, expected, fold, layout, option_name, option_value, syntax, unsupported, word, words,
    written_table,
};
use crate::error::{Error, Invalid, Result};
use crate::sql::names::suggest;
use crate::sql::setting::duration;
use crate::sql::view::CreateView;
use crate::sql::{JobVerb, Statement, WaitFor};

/// Behind CREATE MATERIALIZED VIEW: `[IF NOT EXISTS] name [PARTITION ON COLUMNS ..] [WITH (..)] AS query`.
pub(super) fn create_view(parser: &mut Parser) -> Result<Statement> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = written_table(&parser.parse_object_name(false).map_err(syntax)?)?;
    if parser.peek_token().token == Token::LParen {
        return Err(unsupported("a list of columns of a view", "name them in its query: SELECT a AS b"));
    }
    let Layout { partition, options } = layout(parser)?;
    if !parser.parse_keyword(Keyword::AS) {
        return Err(expected("PARTITION ON COLUMNS, WITH or AS and a query", &parser.peek_token()));
    }
    let query = parser.parse_query().map_err(syntax)?;
    check_query(&query)?;
    Ok(Statement::CreateView(Box::new(CreateView { name, if_not_exists, partition, options, query })))
}

/// Behind DROP MATERIALIZED VIEW: `[IF EXISTS] name [CASCADE]`.
pub(super) fn drop_view(parser: &mut Parser) -> Result<Statement> {
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let name = written_table(&parser.parse_object_name(false).map_err(syntax)?)?;
    if parser.consume_token(&Token::Comma) {
        return Err(unsupported("DROP MATERIALIZED VIEW of several views", "drop one view a statement"));
    }
    Ok(Statement::DropView { name, if_exists, cascade: parser.parse_keyword(Keyword::CASCADE) })
}

/// `MATERIALIZED VIEW name`
pub(super) fn view_name(parser: &mut Parser) -> Result<String> {
    words(parser, &["MATERIALIZED", "VIEW"])?;
    written_table(&parser.parse_object_name(false).map_err(syntax)?)
}

/// Behind CREATE INDEX: `[IF NOT EXISTS] name ON table (a, b)`.
pub(super) fn create_index(parser: &mut Parser) -> Result<Statement> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let (name, table) = index(parser)?;
    if parser.parse_keyword(Keyword::USING) {
        return Err(unsupported("CREATE INDEX .. USING", "there is one kind of index; leave USING out"));
    }
    parser.expect_token(&Token::LParen).map_err(syntax)?;
    let mut columns: Vec<String> = Vec::new();
    loop {
        let column = index_column(parser)?;
        if columns.contains(&column) {
            let message = format!("column {column:?} is named twice in index {name}");
            return Err(Error::invalid(Invalid::DuplicateColumn, message));
        }
        columns.push(column);
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen).map_err(syntax)?;
    if let Token::Word(word) = parser.peek_token().token {
        let message = format!("CREATE INDEX .. {}", word.value.to_uppercase());
        return Err(unsupported(message, "an index is over the columns of all rows"));
    }
    Ok(Statement::CreateIndex { name, table, columns, if_not_exists })
}

/// A bare column: whatever else may stand in the parentheses of an index is refused in its own words.
fn index_column(parser: &mut Parser) -> Result<String> {
    const INSTEAD: &str = "an index is over columns; SELECT the expression in a materialized view and index that";
    let Token::Word(_) = parser.peek_token().token else {
        let found = parser.peek_token();
        return Err(match found.token {
            Token::LParen | Token::Number(..) | Token::SingleQuotedString(_) | Token::Minus => {
                unsupported("an index over an expression", INSTEAD)
            }
            _ => expected("the name of a column", &found),
        });
    };
    let column = fold(&parser.parse_identifier().map_err(syntax)?);
    let next = parser.peek_token();
    match &next.token {
        Token::Comma | Token::RParen => Ok(column),
        Token::Word(word) if matches!(word.keyword, Keyword::ASC | Keyword::DESC | Keyword::NULLS) => {
            let message = format!("{} of an index column", word.value.to_uppercase());
            Err(unsupported(message, "write the columns only"))
        }
        Token::EOF | Token::SemiColon => Err(expected("a comma or )", &next)),
        _ => Err(unsupported("an index over an expression", INSTEAD)),
    }
}

/// Behind DROP INDEX: `[IF EXISTS] name ON table`.
pub(super) fn drop_index(parser: &mut Parser) -> Result<Statement> {
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let (name, table) = index(parser)?;
    Ok(Statement::DropIndex { name, table, if_exists })
}

/// `name ON table`
pub(super) fn index(parser: &mut Parser) -> Result<(String, String)> {
    let found = parser.peek_token();
    if matches!(&found.token, Token::Word(word) if word.keyword == Keyword::ON && word.quote_style.is_none()) {
        return Err(expected("the name of the index", &found));
    }
    let name = fold(&parser.parse_identifier().map_err(syntax)?);
    word(parser, "ON")?;
    Ok((name, written_table(&parser.parse_object_name(false).map_err(syntax)?)?))
}

/// `JOB n`
pub(super) fn job(parser: &mut Parser) -> Result<u64> {
    word(parser, "JOB")?;
    let found = parser.peek_token();
    parser.parse_literal_uint().map_err(|_| expected("the number of a job, see SHOW JOBS", &found))
}

/// Behind ALTER: `JOB n SET rate_limit = m` or `JOB n UNSET rate_limit`.
pub(super) fn alter_job(parser: &mut Parser) -> Result<Statement> {
    let id = job(parser)?;
    let verb = parser.parse_one_of_keywords(&[Keyword::SET, Keyword::UNSET]);
    let Some(verb) = verb else { return Err(expected("SET or UNSET", &parser.peek_token())) };
    let name = option_name(parser)?;
    if name != "rate_limit" {
        let message = format!("a job has no option {name:?}{}", suggest(&name, ["rate_limit"]));
        return Err(Error::invalid(Invalid::UnknownOption, message));
    }
    let limit = match verb {
        Keyword::SET => {
            let value = option_value(parser, &name)?;
            let limit = value.parse().ok().filter(|limit: &u64| *limit >= 1);
            Some(limit.ok_or_else(|| {
                let message = format!(
                    "job option rate_limit = {value}: must be rows a second, at least 1; UNSET rate_limit takes it away"
                );
                Error::invalid(Invalid::Option, message)
            })?)
        }
        _ => None,
    };
    Ok(Statement::Job { id, verb: JobVerb::RateLimit(limit) })
}

/// Behind WAIT: `FOR MATERIALIZED VIEW v [TIMEOUT '30s']` or `FOR INDEX i ON t [TIMEOUT '30s']`.
pub(super) fn wait_for(parser: &mut Parser) -> Result<Statement> {
    word(parser, "FOR")?;
    let what = if parser.parse_keyword(Keyword::INDEX) {
        let (name, table) = index(parser)?;
        WaitFor::Index { name, table }
    } else if parser.peek_keyword(Keyword::MATERIALIZED) {
        WaitFor::View(view_name(parser)?)
    } else {
        return Err(expected("MATERIALIZED VIEW or INDEX", &parser.peek_token()));
    };
    let timeout = match parser.peek_token().token {
        Token::Word(_) => {
            word(parser, "TIMEOUT")?;
            let found = parser.next_token();
            match &found.token {
                Token::SingleQuotedString(text) => Some(duration(text)?),
                _ => return Err(expected("a time like '30s'", &found)),
            }
        }
        _ => None,
    };
    Ok(Statement::WaitFor { what, timeout })
}

/// Behind ADMIN CHECK: `MATERIALIZED VIEW v` or `INDEX i ON t`.
pub(super) fn check(parser: &mut Parser) -> Result<Statement> {
    if parser.parse_keyword(Keyword::INDEX) {
        let (name, table) = index(parser)?;
        return Ok(Statement::CheckIndex { name, table });
    }
    if !parser.peek_keyword(Keyword::MATERIALIZED) {
        return Err(expected("MATERIALIZED VIEW or INDEX", &parser.peek_token()));
    }
    Ok(Statement::CheckView { name: view_name(parser)? })
}

#[cfg(test)]
mod tests {
    //! Golden scripts: what each line is parsed to.

    use std::error::Error as StdError;

    use goldenscript::{Command, Context, Runner};

    use crate::sql::{CreateView, Statement, parse};

    #[test]
    fn scripts() {
        crate::testscripts::run_all::<Script>("statements");
    }

    #[derive(Default)]
    struct Script;

    impl Runner for Script {
        type Command = Command;

        fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn StdError>> {
            Ok(match parse(&command.name) {
                Err(err) => format!("Error: {err}\n"),
                Ok(Statement::CreateView(view)) => {
                    let CreateView { name, if_not_exists, partition, options, query } = *view;
                    let partition = partition.map_or_else(
                        || "by hash".to_string(),
                        |partition| {
                            let expressions: Vec<String> =
                                partition.expressions.iter().map(|expr| expr.to_string()).collect();
                            format!("on {:?} {expressions:?}", partition.columns)
                        },
                    );
                    format!(
                        "CreateView {name:?}, if_not_exists: {if_not_exists}, {partition}, {options:?}\n    {query}\n"
                    )
                }
                Ok(Statement::Query(query)) => format!("{query}\n"),
                Ok(statement) => format!("{statement:?}\n"),
            })
        }
    }
}

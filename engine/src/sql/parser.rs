//! From text to [`Statement`].
//!
//! sqlparser parses expressions, types and queries; `CREATE TABLE` is parsed here, token by token, because of `TIME INDEX`
//! and `PARTITION ON COLUMNS`, and what its grammar knows but the engine does not is refused by name. The statements of
//! materialized views, indexes and jobs are in [`view`].

mod view;

use datafusion::sql::sqlparser::ast::{
    self, AssignmentTarget, ColumnOption, FromTable, Ident, ObjectName, SetExpr, TableFactor, TableObject,
    TableWithJoins,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::alter::{AlterTable, Written};
use super::create::{ColumnDef, CreateTable, Partition};
use super::names::{nearest, suggest};
use super::types::column_type;
use super::{AdminVerb, Change, Insert, JobVerb, Setting, Source, Statement, Values};
use crate::error::{Error, Invalid, Result};
use crate::types::{NodeId, Place};

/// How deep a statement may be. Operators make a tree as deep as their chain is long, and everything that walks the tree
/// recurses; what this lets through fits a stack of 2 MiB (see `deep_statements_are_refused`).
const DEPTH: usize = 600;
/// What a parenthesis, a cast, IS, LIKE, a join or a UNION adds to the depth, where a plain word adds one: DataFusion needs
/// more stack for them.
const STEP: usize = 15;
/// Tables of one FROM, for the same reason.
const FROM_TABLES: usize = 64;

/// The one statement in `sql`.
pub fn parse(sql: &str) -> Result<Statement> {
    let dialect = GenericDialect {};
    let tokens = Tokenizer::new(&dialect, sql)
        .tokenize_with_location()
        .map_err(|err| Error::invalid(Invalid::Syntax, err.to_string()))?;
    limit_depth(&tokens)?;
    let mut parser = Parser::new(&dialect).with_recursion_limit(DEPTH / STEP).with_tokens_with_locations(tokens);
    let statement = statement(&mut parser)?;
    let _ = parser.consume_token(&Token::SemiColon);
    match parser.peek_token() {
        TokenWithSpan { token: Token::EOF, .. } => Ok(statement),
        found => Err(expected("the end of the statement (one statement a call)", &found)),
    }
}

/// The one expression in `text`, which a catalog keeps.
pub(super) fn expression(text: &str) -> Result<ast::Expr> {
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).with_recursion_limit(DEPTH / STEP).try_with_sql(text).map_err(syntax)?;
    parser.parse_expr().map_err(syntax)
}

/// The name that an identifier stands for: as written in quotes, otherwise in lower case.
pub(super) fn fold(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
}

fn syntax(err: ParserError) -> Error {
    let message = match err {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => "nested too deeply; write it in several statements".to_string(),
    };
    Error::invalid(Invalid::Syntax, message)
}

fn expected(what: &str, found: &TokenWithSpan) -> Error {
    Error::invalid(Invalid::Syntax, format!("expected {what}, found: {found}{}", found.span.start))
}

fn unsupported(construct: impl std::fmt::Display, instead: &str) -> Error {
    let instead = if instead.is_empty() { String::new() } else { format!("; {instead}") };
    Error::invalid(Invalid::Unsupported, format!("{construct} is not supported{instead}"))
}

/// What was read of one level of parentheses, since the last comma.
#[derive(Default)]
struct Level {
    words: usize,
    /// The operand at hand: the parentheses in it, and what follows them.
    inner: usize,
    suffixes: usize,
    /// The deepest operand before it.
    operand: usize,
    /// The deepest of what stood before the comma.
    before: usize,
}

impl Level {
    fn depth(&self) -> usize {
        self.words + self.operand.max(self.inner + self.suffixes)
    }

    fn next_operand(&mut self) {
        self.operand = self.operand.max(self.inner + self.suffixes);
        (self.inner, self.suffixes) = (0, 0);
    }

    fn next_item(&mut self) {
        *self = Level { before: self.before.max(self.depth()), ..Level::default() };
    }

    /// Back to `outer`.
    fn close(self, outer: Level) -> Level {
        let inside = self.before.max(self.depth()) + STEP;
        Level { inner: outer.inner.max(inside), ..outer }
    }
}

fn limit_depth(tokens: &[TokenWithSpan]) -> Result<()> {
    let check = |level: &Level, at: &TokenWithSpan| {
        if level.depth() <= DEPTH {
            return Ok(());
        }
        let message = format!(
            "too many operators inside and behind each other{}; write IN (..) or several statements",
            at.span.start
        );
        Err(Error::invalid(Invalid::Syntax, message))
    };
    let mut outer: Vec<Level> = Vec::new();
    let mut level = Level::default();
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => continue,
            Token::Placeholder(name) => return Err(unsupported(format!("the parameter {name}"), "write the value")),
            Token::LParen => outer.push(std::mem::take(&mut level)),
            Token::RParen => level = level.close(outer.pop().unwrap_or_default()),
            Token::Comma => level.next_item(),
            Token::DoubleColon | Token::LBracket => level.suffixes += STEP,
            Token::Word(word) => match word.keyword {
                Keyword::AND | Keyword::OR => {
                    level.next_operand();
                    level.words += 1;
                }
                Keyword::JOIN | Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT => level.words += STEP,
                Keyword::IS
                | Keyword::IN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::COLLATE
                | Keyword::AT => level.suffixes += STEP,
                _ => level.words += 1,
            },
            _ => level.words += 1,
        }
        check(&level, token)?;
    }
    // What is not closed is refused later; but what was parsed until then is a tree already.
    while let (Some(before), Some(last)) = (outer.pop(), tokens.last()) {
        level = level.close(before);
        check(&level, last)?;
    }
    Ok(())
}

fn statement(parser: &mut Parser) -> Result<Statement> {
    let first = parser.peek_token();
    let Token::Word(word) = &first.token else {
        return match first.token {
            Token::LParen => query(parser),
            _ => Err(expected("a statement", &first)),
        };
    };
    match word.keyword {
        Keyword::CREATE => {
            parser.next_token();
            create(parser)
        }
        Keyword::DROP => {
            parser.next_token();
            drop_object(parser)
        }
        Keyword::ALTER => {
            parser.next_token();
            if is_word(&parser.peek_token(), "JOB") {
                return view::alter_job(parser);
            }
            if !parser.parse_keyword(Keyword::TABLE) {
                return Err(unsupported(keywords("ALTER", parser), "there are ALTER TABLE and ALTER JOB"));
            }
            alter_table(parser)
        }
        Keyword::TRUNCATE => {
            parser.next_token();
            let _ = parser.parse_keyword(Keyword::TABLE);
            let name = parser.parse_object_name(false).map_err(syntax)?;
            if parser.consume_token(&Token::Comma) {
                return Err(unsupported("TRUNCATE of several tables", "truncate one table a statement"));
            }
            Ok(Statement::TruncateTable { name: written_table(&name)? })
        }
        Keyword::EXPLAIN => {
            parser.next_token();
            let option = parser.peek_token();
            if let Token::Word(word) = &option.token
                && matches!(word.keyword, Keyword::ANALYZE | Keyword::VERBOSE | Keyword::FORMAT)
            {
                let option = word.value.to_uppercase();
                return Err(unsupported(format!("EXPLAIN {option}"), "write EXPLAIN and the statement"));
            }
            match statement(parser)? {
                Statement::Insert(Insert { source: Source::Values(_), .. }) => {
                    Err(unsupported("EXPLAIN of INSERT .. VALUES", "it reads nothing"))
                }
                inner @ (Statement::Query(_)
                | Statement::Change(_)
                | Statement::Insert(_)
                | Statement::CreateView(_)) => Ok(Statement::Explain(Box::new(inner))),
                _ => Err(unsupported("EXPLAIN of a statement that reads no table", "")),
            }
        }
        Keyword::SHOW => {
            parser.next_token();
            if parser.parse_keyword(Keyword::TABLES) {
                return Ok(Statement::ShowTables);
            }
            let what = parser.next_token();
            if is_word(&what, "JOBS") {
                return Ok(Statement::ShowJobs);
            }
            let what = what.token.to_string().to_uppercase();
            let instead = "there are SHOW TABLES and SHOW JOBS, and SELECT from sys.tables";
            Err(unsupported(format!("SHOW {what}"), instead))
        }
        Keyword::ADMIN => {
            parser.next_token();
            admin(parser)
        }
        Keyword::SET => {
            parser.next_token();
            set(parser)
        }
        Keyword::SELECT | Keyword::WITH | Keyword::VALUES | Keyword::FROM => query(parser),
        Keyword::INSERT => match parser.parse_statement().map_err(syntax)? {
            ast::Statement::Insert(insert) => self::insert(insert),
            other => Err(unsupported(first_words(&other), "")),
        },
        Keyword::UPDATE => match parser.parse_statement().map_err(syntax)? {
            ast::Statement::Update(update) => self::update(update),
            other => Err(unsupported(first_words(&other), "")),
        },
        Keyword::DELETE => match parser.parse_statement().map_err(syntax)? {
            ast::Statement::Delete(delete) => self::delete(delete),
            other => Err(unsupported(first_words(&other), "")),
        },
        keyword => {
            const KNOWN: [&str; 18] = [
                "SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "CREATE", "ALTER", "DROP", "EXPLAIN", "SHOW",
                "VALUES", "ADMIN", "SET", "REFILL", "PAUSE", "RESUME", "CANCEL", "WAIT",
            ];
            let written = word.value.to_uppercase();
            if word.quote_style.is_none() && KNOWN[13..].contains(&written.as_str()) {
                parser.next_token();
                return of_jobs(&written, parser);
            }
            if keyword == Keyword::NoKeyword || nearest(&written, KNOWN).is_some() {
                let message =
                    format!("expected a statement, found: {first}{}{}", first.span.start, { suggest(&written, KNOWN) });
                return Err(Error::invalid(Invalid::Syntax, message));
            }
            parser.next_token();
            Err(unsupported(keywords(&written, parser), &format!("there are {}", KNOWN.join(", "))))
        }
    }
}

/// What no keyword of sqlparser begins: `REFILL MATERIALIZED VIEW v`, `WAIT FOR ..`, `PAUSE | RESUME | CANCEL JOB n`.
fn of_jobs(verb: &str, parser: &mut Parser) -> Result<Statement> {
    let verb = match verb {
        "REFILL" => return Ok(Statement::RefillView { name: view::view_name(parser)? }),
        "WAIT" => return view::wait_for(parser),
        "PAUSE" => JobVerb::Pause,
        "RESUME" => JobVerb::Resume,
        _ => JobVerb::Cancel,
    };
    Ok(Statement::Job { id: view::job(parser)?, verb })
}

/// Behind CREATE.
fn create(parser: &mut Parser) -> Result<Statement> {
    if parser.parse_keyword(Keyword::TABLE) {
        return create_table(parser);
    }
    if parser.parse_keywords(&[Keyword::MATERIALIZED, Keyword::VIEW]) {
        return view::create_view(parser);
    }
    if parser.parse_keyword(Keyword::INDEX) {
        return view::create_index(parser);
    }
    let instead = match parser.peek_token().token {
        Token::Word(word) if word.keyword == Keyword::VIEW => {
            "there is CREATE MATERIALIZED VIEW, which keeps the result of its query up to date"
        }
        Token::Word(word) if word.keyword == Keyword::UNIQUE => {
            "only the row key is unique; CREATE INDEX makes an index of rows that may be equal in its columns"
        }
        Token::Word(word) if word.keyword == Keyword::OR => "DROP what is there, then CREATE it",
        _ => "there are CREATE TABLE, CREATE MATERIALIZED VIEW and CREATE INDEX",
    };
    Err(unsupported(keywords("CREATE", parser), instead))
}

/// Behind DROP.
fn drop_object(parser: &mut Parser) -> Result<Statement> {
    if parser.parse_keywords(&[Keyword::MATERIALIZED, Keyword::VIEW]) {
        return view::drop_view(parser);
    }
    if parser.parse_keyword(Keyword::INDEX) {
        return view::drop_index(parser);
    }
    if !parser.parse_keyword(Keyword::TABLE) {
        let instead = "there are DROP TABLE, DROP MATERIALIZED VIEW and DROP INDEX";
        return Err(unsupported(keywords("DROP", parser), instead));
    }
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let name = parser.parse_object_name(false).map_err(syntax)?;
    if parser.consume_token(&Token::Comma) {
        return Err(unsupported("DROP TABLE of several tables", "drop one table a statement"));
    }
    let cascade = parser.parse_keyword(Keyword::CASCADE);
    Ok(Statement::DropTable { name: written_table(&name)?, if_exists, cascade })
}

/// `name change, ..`, behind ALTER TABLE.
fn alter_table(parser: &mut Parser) -> Result<Statement> {
    let name = written_table(&parser.parse_object_name(false).map_err(syntax)?)?;
    let mut changes = Vec::new();
    loop {
        match parser.parse_one_of_keywords(&[Keyword::SET, Keyword::UNSET]) {
            Some(verb) => set_options(parser, verb == Keyword::SET, &mut changes)?,
            None => changes.push(alteration(parser)?),
        }
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    Ok(Statement::AlterTable(AlterTable { name, changes }))
}

/// `(name = value, ..)` behind SET, `(name, ..)` behind UNSET.
fn set_options(parser: &mut Parser, to_set: bool, changes: &mut Vec<Written>) -> Result<()> {
    parser.expect_token(&Token::LParen).map_err(syntax)?;
    loop {
        let name = option_name(parser)?;
        let value = if to_set { Some(option_value(parser, &name)?) } else { None };
        changes.push(Written::SetOption { option: name, value });
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen).map_err(syntax).map(drop)
}

const ALTERATIONS: &str = "ADD, DROP, RENAME, ALTER, MODIFY, SET or UNSET";

fn alteration(parser: &mut Parser) -> Result<Written> {
    let verb = parser.next_token();
    let Token::Word(word) = &verb.token else { return Err(expected(ALTERATIONS, &verb)) };
    let _ = matches!(word.keyword, Keyword::ADD | Keyword::DROP | Keyword::RENAME | Keyword::ALTER | Keyword::MODIFY)
        && parser.parse_keyword(Keyword::COLUMN);
    let column = |parser: &mut Parser| parser.parse_identifier().map(|name| fold(&name)).map_err(syntax);
    Ok(match word.keyword {
        Keyword::ADD => {
            let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
            let mut holder = CreateTable::named("");
            element(parser, &mut holder)?;
            let Some(added) =
                holder.columns.pop().filter(|_| holder.primary_key.is_empty() && holder.time_index.is_none())
            else {
                return Err(unsupported("ADD of a PRIMARY KEY or TIME INDEX", "the row key never changes"));
            };
            let place = match (parser.parse_keyword(Keyword::FIRST), parser.parse_keyword(Keyword::AFTER)) {
                (true, _) => Place::First,
                (_, true) => Place::After(column(parser)?),
                _ => Place::Last,
            };
            Written::Add { column: added, if_not_exists, place }
        }
        Keyword::DROP => {
            let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
            Written::Drop { column: column(parser)?, if_exists }
        }
        Keyword::RENAME => {
            let from = column(parser)?;
            parser.expect_keyword(Keyword::TO).map_err(syntax)?;
            Written::Rename { column: from, to: column(parser)? }
        }
        Keyword::MODIFY => {
            let column = column(parser)?;
            Written::SetType { column, to: column_type(&parser.parse_data_type().map_err(syntax)?)? }
        }
        Keyword::ALTER => {
            let column = column(parser)?;
            if parser.parse_keywords(&[Keyword::SET, Keyword::DEFAULT]) {
                Written::SetDefault { column, default: Some(parser.parse_expr().map_err(syntax)?) }
            } else if parser.parse_keywords(&[Keyword::DROP, Keyword::DEFAULT]) {
                Written::SetDefault { column, default: None }
            } else if parser.parse_keyword(Keyword::TYPE)
                || parser.parse_keywords(&[Keyword::SET, Keyword::DATA, Keyword::TYPE])
            {
                Written::SetType { column, to: column_type(&parser.parse_data_type().map_err(syntax)?)? }
            } else {
                return Err(expected("SET DEFAULT, DROP DEFAULT or TYPE", &parser.peek_token()));
            }
        }
        _ => return Err(expected(ALTERATIONS, &verb)),
    })
}

/// Behind ADMIN: `FLUSH TABLE name`, `COMPACT TABLE name [STRICT WINDOW]`, `PIN TABLE name AS name`, `UNPIN TABLE name AS name`,
/// `TRANSFER LEADER OF TABLE name REGION n TO NODE n`, `MOVE REPLICA OF TABLE name REGION n FROM NODE n TO NODE n`,
/// `CHECK MATERIALIZED VIEW name`, `CHECK INDEX name ON name` or `CHECKSUM TABLE name`.
fn admin(parser: &mut Parser) -> Result<Statement> {
    let verb = parser.next_token();
    let written = verb.token.to_string().to_uppercase();
    match written.as_str() {
        "CHECK" => return view::check(parser),
        "FLUSH" | "COMPACT" | "PIN" | "UNPIN" | "CHECKSUM" => {}
        "TRANSFER" => words(parser, &["LEADER", "OF"])?,
        "MOVE" => {
            words(parser, &["REPLICA", "OF"])?;
            if parser.peek_token().token.to_string().eq_ignore_ascii_case("META") {
                return Err(unsupported("MOVE REPLICA OF META", "meta has a replica on each node of the cluster"));
            }
        }
        _ => {
            return Err(expected(
                "FLUSH, COMPACT, PIN, UNPIN or CHECKSUM TABLE, CHECK, TRANSFER LEADER or MOVE REPLICA behind ADMIN",
                &verb,
            ));
        }
    }
    words(parser, &["TABLE"])?;
    let table = written_table(&parser.parse_object_name(false).map_err(syntax)?)?;
    let verb = match written.as_str() {
        "FLUSH" => AdminVerb::Flush,
        "COMPACT" => {
            let is_strict = matches!(parser.peek_token().token, Token::Word(_));
            if is_strict {
                words(parser, &["STRICT", "WINDOW"])?;
            }
            AdminVerb::Compact { is_strict }
        }
        "PIN" => AdminVerb::Pin { name: pin_name(parser)? },
        "UNPIN" => AdminVerb::Unpin { name: pin_name(parser)? },
        "CHECKSUM" => return Ok(Statement::Checksum { table }),
        "TRANSFER" => AdminVerb::Transfer { region: region(parser)?, to: node(parser, "TO")? },
        _ => {
            let (region, from, to) = (region(parser)?, node(parser, "FROM")?, node(parser, "TO")?);
            return Ok(Statement::MoveReplica { table, region, from, to });
        }
    };
    Ok(Statement::Admin { verb, table })
}

/// `AS name`
fn pin_name(parser: &mut Parser) -> Result<String> {
    word(parser, "AS")?;
    parser.parse_identifier().map(|name| fold(&name)).map_err(syntax)
}

/// `REGION n`
fn region(parser: &mut Parser) -> Result<u32> {
    words(parser, &["REGION"])?;
    let at = parser.peek_token();
    let region = parser.parse_literal_uint().map_err(syntax)?;
    u32::try_from(region).map_err(|_| expected("the number of a region", &at))
}

/// `FROM NODE n` or `TO NODE n`
fn node(parser: &mut Parser, preposition: &str) -> Result<NodeId> {
    words(parser, &[preposition, "NODE"])?;
    parser.parse_literal_uint().map(NodeId).map_err(syntax)
}

/// Takes these words, keywords or not.
fn words(parser: &mut Parser, expected_words: &[&str]) -> Result<()> {
    expected_words.iter().try_for_each(|expected_word| word(parser, expected_word))
}

/// Takes the word `expected_word`, keyword or not.
fn word(parser: &mut Parser, expected_word: &str) -> Result<()> {
    let token = parser.next_token();
    if is_word(&token, expected_word) { Ok(()) } else { Err(expected(expected_word, &token)) }
}

/// Whether `token` is `word`, keyword or not.
fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

/// `first` and the keywords that follow it: `CREATE OR REPLACE`.
fn keywords(first: &str, parser: &mut Parser) -> String {
    let mut words = vec![first.to_string()];
    while let Token::Word(word) = parser.next_token().token
        && word.keyword != Keyword::NoKeyword
        && words.len() < 3
    {
        words.push(word.value.to_uppercase());
    }
    words.join(" ")
}

/// `MERGE INTO` of `MERGE INTO t ..`: what is refused, in its own words.
fn first_words(statement: &ast::Statement) -> String {
    let text = statement.to_string();
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// The table that a statement writes to: a bare name.
fn written_table(name: &ObjectName) -> Result<String> {
    let idents: Option<Vec<&Ident>> = name.0.iter().map(|part| part.as_ident()).collect();
    match idents.as_deref() {
        Some([table]) => Ok(fold(table)),
        Some([schema, _]) if fold(schema) == "sys" => {
            Err(unsupported(format!("writing to {name}"), "tables of schema sys can only be read"))
        }
        _ => Err(Error::invalid(Invalid::UnknownTable, format!("there is no table {name}: tables have no schema"))),
    }
}

fn column(name: &ObjectName) -> Result<String> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(fold),
        _ => None,
    }
    .ok_or_else(|| Error::invalid(Invalid::UnknownColumn, format!("{name}: name the column without its table")))
}

fn query(parser: &mut Parser) -> Result<Statement> {
    let query = parser.parse_query().map_err(syntax)?;
    check_query(&query)?;
    Ok(Statement::Query(query))
}

/// Refuses what DataFusion would ignore, and trees too wide to be safe.
fn check_query(query: &ast::Query) -> Result<()> {
    if !query.locks.is_empty() {
        return Err(unsupported("SELECT .. FOR UPDATE", "an UPDATE reads and writes without losing a change"));
    }
    if query.format_clause.is_some() || query.settings.is_some() || query.for_clause.is_some() {
        return Err(unsupported("FORMAT, SETTINGS or FOR behind a query", ""));
    }
    if let Some(with) = &query.with {
        with.cte_tables.iter().try_for_each(|cte| check_query(&cte.query))?;
    }
    check_body(&query.body)
}

fn check_body(body: &SetExpr) -> Result<()> {
    match body {
        SetExpr::Select(select) => {
            if select.into.is_some() {
                return Err(unsupported("SELECT INTO", "write CREATE TABLE, then INSERT INTO .. SELECT"));
            }
            if select.from.len() > FROM_TABLES {
                let message = format!("{} tables in one FROM, more than {FROM_TABLES}", select.from.len());
                return Err(Error::invalid(Invalid::Syntax, message));
            }
            for table in &select.from {
                let relations = std::iter::once(&table.relation).chain(table.joins.iter().map(|join| &join.relation));
                for relation in relations {
                    if let TableFactor::Derived { subquery, .. } = relation {
                        check_query(subquery)?;
                    }
                }
            }
            Ok(())
        }
        SetExpr::Query(query) => check_query(query),
        SetExpr::SetOperation { left, right, .. } => {
            check_body(left)?;
            check_body(right)
        }
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            Err(unsupported("a statement that writes inside a query", "write it on its own"))
        }
        _ => Ok(()),
    }
}

fn insert(insert: ast::Insert) -> Result<Statement> {
    let table = match &insert.table {
        TableObject::TableName(name) => written_table(name)?,
        other => return Err(unsupported(format!("INSERT INTO {other}"), "name a table")),
    };
    if insert.on.is_some() {
        return Err(unsupported("INSERT .. ON CONFLICT", "an INSERT replaces the row that has its key"));
    }
    if insert.returning.is_some() || insert.output.is_some() {
        return Err(unsupported("INSERT .. RETURNING", "SELECT the rows afterwards"));
    }
    if insert.replace_into || insert.overwrite || insert.or.is_some() || insert.ignore {
        return Err(unsupported(
            "INSERT with OVERWRITE, IGNORE, OR or REPLACE",
            "write INSERT INTO: it replaces the row that has its key",
        ));
    }
    if insert.table_alias.is_some() || insert.insert_alias.is_some() {
        return Err(unsupported("an alias of the table of an INSERT", ""));
    }
    if insert.partitioned.is_some() || !insert.after_columns.is_empty() {
        return Err(unsupported("INSERT .. PARTITION", "rows find their region by themselves"));
    }
    if !insert.assignments.is_empty() {
        return Err(unsupported("INSERT .. SET", "write INSERT INTO t (columns) VALUES (..)"));
    }
    if insert.multi_table_insert_type.is_some() || insert.settings.is_some() || insert.format_clause.is_some() {
        return Err(unsupported("INSERT with ALL, FIRST, SETTINGS or FORMAT", ""));
    }
    let columns = insert.columns.iter().map(column).collect::<Result<Vec<_>>>()?;
    let columns = if columns.is_empty() { None } else { Some(columns) };
    let Some(source) = insert.source else {
        return Err(unsupported("INSERT .. DEFAULT VALUES", "write VALUES (DEFAULT, ..)"));
    };
    check_query(&source)?;
    let bare = source.with.is_none()
        && source.order_by.is_none()
        && source.limit_clause.is_none()
        && source.fetch.is_none()
        && source.pipe_operators.is_empty();
    let source = match *source.body {
        SetExpr::Values(values) if bare => Source::Values(Values::new(values)?),
        _ => Source::Query(source),
    };
    Ok(Statement::Insert(Insert { table, columns, source }))
}

/// The table and alias of an UPDATE or DELETE.
fn target(table: &TableWithJoins, verb: &str) -> Result<(String, String)> {
    let TableFactor::Table { name, alias, args: None, sample: None, version: None, .. } = &table.relation else {
        return Err(unsupported(format!("{verb} {}", table.relation), "name one table"));
    };
    if !table.joins.is_empty() {
        return Err(unsupported(format!("{verb} of a join"), "put the other table into a subquery of WHERE"));
    }
    let table = written_table(name)?;
    let alias = match alias {
        Some(alias) if !alias.columns.is_empty() => {
            return Err(unsupported("an alias with columns", "write AS and a name"));
        }
        Some(alias) => fold(&alias.name),
        None => table.clone(),
    };
    Ok((table, alias))
}

fn update(update: ast::Update) -> Result<Statement> {
    let (table, alias) = target(&update.table, "UPDATE")?;
    if update.from.is_some() {
        return Err(unsupported("UPDATE .. FROM", "put the other table into a subquery of SET or WHERE"));
    }
    if update.returning.is_some() || update.output.is_some() {
        return Err(unsupported("UPDATE .. RETURNING", "SELECT the rows afterwards"));
    }
    if update.or.is_some() || !update.order_by.is_empty() || update.limit.is_some() {
        return Err(unsupported("UPDATE with OR, ORDER BY or LIMIT", "name the rows in WHERE"));
    }
    let mut set: Vec<(String, ast::Expr)> = Vec::with_capacity(update.assignments.len());
    for assignment in update.assignments {
        let column = match &assignment.target {
            AssignmentTarget::ColumnName(name) => {
                let idents: Option<Vec<&Ident>> = name.0.iter().map(|part| part.as_ident()).collect();
                match idents.as_deref() {
                    Some([qualifier, part]) if fold(qualifier) == alias => fold(part),
                    _ => column(name)?,
                }
            }
            AssignmentTarget::Tuple(_) => {
                return Err(unsupported("SET (a, b) = (..)", "write SET a = .., b = .."));
            }
        };
        if set.iter().any(|(other, _)| *other == column) {
            return Err(Error::invalid(Invalid::DuplicateColumn, format!("column {column:?} is SET twice")));
        }
        set.push((column, assignment.value));
    }
    Ok(Statement::Change(Box::new(Change { table, alias, selection: update.selection, set: Some(set) })))
}

fn delete(delete: ast::Delete) -> Result<Statement> {
    let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
    let [table] = from.as_slice() else {
        return Err(unsupported("DELETE from several tables", "delete from one table a statement"));
    };
    let (table, alias) = target(table, "DELETE FROM")?;
    if !delete.tables.is_empty() || delete.using.is_some() {
        return Err(unsupported("DELETE .. USING", "put the other table into a subquery of WHERE"));
    }
    if delete.returning.is_some() || delete.output.is_some() {
        return Err(unsupported("DELETE .. RETURNING", "SELECT the rows before"));
    }
    if !delete.order_by.is_empty() || delete.limit.is_some() {
        return Err(unsupported("DELETE with ORDER BY or LIMIT", "name the rows in WHERE"));
    }
    Ok(Statement::Change(Box::new(Change { table, alias, selection: delete.selection, set: None })))
}

/// `SET name {= | TO} {'text' | number | DEFAULT}`
fn set(parser: &mut Parser) -> Result<Statement> {
    let name = fold(&parser.parse_identifier().map_err(syntax)?);
    if !parser.consume_token(&Token::Eq) && !parser.parse_keyword(Keyword::TO) {
        return Err(expected("= and a value", &parser.peek_token()));
    }
    if parser.parse_keyword(Keyword::DEFAULT) {
        return Setting::new(&name, None).map(Statement::Set);
    }
    let value = parser.next_token();
    match &value.token {
        Token::SingleQuotedString(text) | Token::Number(text, _) => Setting::new(&name, Some(text)).map(Statement::Set),
        _ => Err(expected("a text, a number or DEFAULT", &value)),
    }
}

fn create_table(parser: &mut Parser) -> Result<Statement> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = written_table(&parser.parse_object_name(false).map_err(syntax)?)?;
    if parser.parse_keyword(Keyword::AS) {
        return Err(unsupported("CREATE TABLE .. AS", "write CREATE TABLE, then INSERT INTO .. SELECT"));
    }
    let mut table = CreateTable { if_not_exists, ..CreateTable::named(&name) };
    parser.expect_token(&Token::LParen).map_err(syntax)?;
    loop {
        element(parser, &mut table)?;
        let next = parser.next_token();
        match next.token {
            Token::Comma => {}
            Token::RParen => break,
            _ => return Err(unknown_column_option(&next, &table)),
        }
    }
    Layout { partition: table.partition, options: table.options } = layout(parser)?;
    let next = parser.peek_token();
    if !matches!(next.token, Token::EOF | Token::SemiColon) {
        return Err(expected("PARTITION ON COLUMNS, WITH or the end of the statement", &next));
    }
    Ok(Statement::CreateTable(Box::new(table)))
}

/// What stands behind the columns of a table, and behind the name of a view.
struct Layout {
    partition: Option<Partition>,
    options: Vec<(String, String)>,
}

/// `[PARTITION ON COLUMNS ..] [WITH (name = value, ..)]`, in any order.
fn layout(parser: &mut Parser) -> Result<Layout> {
    let mut partition = None;
    let mut options: Vec<(String, String)> = Vec::new();
    loop {
        if parser.parse_keyword(Keyword::PARTITION) {
            if partition.is_some() {
                return Err(twice("PARTITION ON COLUMNS"));
            }
            partition = Some(self::partition(parser)?);
        } else if parser.parse_keyword(Keyword::WITH) {
            parser.expect_token(&Token::LParen).map_err(syntax)?;
            if parser.consume_token(&Token::RParen) {
                continue;
            }
            loop {
                let option = option(parser)?;
                if options.iter().any(|(name, _)| *name == option.0) {
                    return Err(twice(&format!("option {}", option.0)));
                }
                options.push(option);
                if !parser.consume_token(&Token::Comma) {
                    break;
                }
            }
            parser.expect_token(&Token::RParen).map_err(syntax)?;
        } else {
            break;
        }
    }
    Ok(Layout { partition, options })
}

fn twice(what: &str) -> Error {
    Error::invalid(Invalid::Schema, format!("{what} is given twice"))
}

/// A column, `PRIMARY KEY (..)` or `TIME INDEX (..)`.
fn element(parser: &mut Parser, table: &mut CreateTable) -> Result<()> {
    if parser.parse_keywords(&[Keyword::PRIMARY, Keyword::KEY]) {
        let names = names(parser)?;
        return primary_key(table, names);
    }
    if time_index_follows(parser) && parser.peek_nth_token(2).token == Token::LParen {
        parser.next_token();
        parser.next_token();
        return match names(parser)?.as_slice() {
            [name] => time_index(table, name.clone()),
            _ => Err(Error::invalid(Invalid::Schema, "TIME INDEX is one column")),
        };
    }
    if let Token::Word(word) = parser.peek_token().token
        && word.quote_style.is_none()
        && matches!(
            word.keyword,
            Keyword::CONSTRAINT | Keyword::UNIQUE | Keyword::FOREIGN | Keyword::CHECK | Keyword::INDEX | Keyword::KEY
        )
        // A column may be called so; then a type follows and no parenthesis or name of a constraint.
        && matches!(parser.peek_nth_token(1).token, Token::LParen | Token::Word(_))
        && (parser.peek_nth_token(1).token == Token::LParen || matches!(word.keyword, Keyword::CONSTRAINT | Keyword::FOREIGN))
    {
        return Err(unsupported(word.value.to_uppercase(), "constraints are PRIMARY KEY, TIME INDEX and NOT NULL"));
    }
    let name = fold(&parser.parse_identifier().map_err(syntax)?);
    let column_type = column_type(&parser.parse_data_type().map_err(syntax)?)?;
    let mut column = ColumnDef { name, column_type, nullable: None, default: None };
    loop {
        if time_index_follows(parser) {
            parser.next_token();
            parser.next_token();
            time_index(table, column.name.clone())?;
            continue;
        }
        match parser.parse_optional_column_option().map_err(syntax)? {
            None => break,
            Some(ColumnOption::NotNull) => nullable(&mut column, false)?,
            Some(ColumnOption::Null) => nullable(&mut column, true)?,
            Some(ColumnOption::PrimaryKey(_)) => primary_key(table, vec![column.name.clone()])?,
            Some(ColumnOption::Default(expr)) => {
                if column.default.replace(expr).is_some() {
                    return Err(twice(&format!("DEFAULT of column {:?}", column.name)));
                }
            }
            Some(other) => {
                let message = format!("{other} of column {:?}", column.name);
                return Err(unsupported(message, "columns have NOT NULL, NULL, DEFAULT, PRIMARY KEY, TIME INDEX"));
            }
        }
    }
    table.columns.push(column);
    Ok(())
}

fn nullable(column: &mut ColumnDef, nullable: bool) -> Result<()> {
    match column.nullable.replace(nullable) {
        Some(before) if before != nullable => {
            let message = format!("column {:?} is both NULL and NOT NULL", column.name);
            Err(Error::invalid(Invalid::Schema, message))
        }
        _ => Ok(()),
    }
}

fn primary_key(table: &mut CreateTable, names: Vec<String>) -> Result<()> {
    if !table.primary_key.is_empty() {
        return Err(twice("PRIMARY KEY"));
    }
    table.primary_key = names;
    Ok(())
}

fn time_index(table: &mut CreateTable, name: String) -> Result<()> {
    match table.time_index.replace(name) {
        Some(_) => Err(twice("TIME INDEX")),
        None => Ok(()),
    }
}

fn time_index_follows(parser: &Parser) -> bool {
    let word = |token: Token, keyword: Keyword| matches!(token, Token::Word(word) if word.keyword == keyword);
    word(parser.peek_token().token, Keyword::TIME) && word(parser.peek_nth_token(1).token, Keyword::INDEX)
}

fn unknown_column_option(found: &TokenWithSpan, table: &CreateTable) -> Error {
    const KNOWN: [&str; 5] = ["NOT NULL", "NULL", "DEFAULT", "PRIMARY KEY", "TIME INDEX"];
    match (&found.token, table.columns.last()) {
        (Token::Word(word), Some(column)) => {
            let written = word.value.to_uppercase();
            let nearest = nearest(&written, ["NOT", "NULL", "DEFAULT", "PRIMARY", "TIME"])
                .and_then(|near| KNOWN.iter().find(|known| known.starts_with(near)));
            let hint = match nearest {
                Some(known) => format!("; did you mean {known}?"),
                None => format!("; there are: {}", KNOWN.join(", ")),
            };
            let message = format!("column {:?} has an unknown option {written}{}{hint}", column.name, found.span.start);
            Error::invalid(Invalid::UnknownOption, message)
        }
        _ => expected("a comma or )", found),
    }
}

/// `(a, b)`
fn names(parser: &mut Parser) -> Result<Vec<String>> {
    parser.expect_token(&Token::LParen).map_err(syntax)?;
    let names = parser.parse_comma_separated(Parser::parse_identifier).map_err(syntax)?;
    parser.expect_token(&Token::RParen).map_err(syntax)?;
    Ok(names.iter().map(fold).collect())
}

/// `ON COLUMNS (a, b) (expr, expr, ..)`, behind PARTITION.
fn partition(parser: &mut Parser) -> Result<Partition> {
    if !parser.parse_keywords(&[Keyword::ON, Keyword::COLUMNS]) {
        let found = parser.peek_token();
        return Err(expected("ON COLUMNS behind PARTITION", &found));
    }
    let columns = names(parser)?;
    parser.expect_token(&Token::LParen).map_err(syntax)?;
    let expressions = if parser.peek_token().token == Token::RParen {
        Vec::new()
    } else {
        parser.parse_comma_separated(Parser::parse_expr).map_err(syntax)?
    };
    parser.expect_token(&Token::RParen).map_err(syntax)?;
    Ok(Partition { columns, expressions })
}

/// `name = value`
fn option(parser: &mut Parser) -> Result<(String, String)> {
    let name = option_name(parser)?;
    let value = option_value(parser, &name)?;
    Ok((name, value))
}

fn option_word(token: &TokenWithSpan) -> Option<String> {
    match &token.token {
        Token::Word(word) => Some(word.value.to_lowercase()),
        Token::SingleQuotedString(text) => Some(text.to_lowercase()),
        _ => None,
    }
}

fn option_name(parser: &mut Parser) -> Result<String> {
    let token = parser.next_token();
    option_word(&token).ok_or_else(|| expected("the name of an option", &token))
}

/// `= value`
fn option_value(parser: &mut Parser, name: &str) -> Result<String> {
    parser.expect_token(&Token::Eq).map_err(syntax)?;
    let token = parser.next_token();
    Ok(match &token.token {
        Token::Number(number, _) => number.clone(),
        Token::Minus => {
            let number = parser.next_token();
            match &number.token {
                Token::Number(digits, _) => format!("-{digits}"),
                _ => return Err(expected("a number", &number)),
            }
        }
        _ => option_word(&token).ok_or_else(|| expected(&format!("the value of option {name}"), &token))?,
    })
}

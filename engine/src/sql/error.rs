//! DataFusion's errors as those of a statement.

use arrow::error::ArrowError;
use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;

use super::names::nearest;
use crate::error::{Error, Invalid};

/// What DataFusion refused, with the code of the rule that the statement breaks. An error of the engine that only passed
/// through DataFusion (a scan's) comes out as it was.
pub fn invalid(err: DataFusionError) -> Error {
    match err {
        DataFusionError::Context(_, err) | DataFusionError::Diagnostic(_, err) => invalid(*err),
        DataFusionError::Collection(errors) => match errors.into_iter().next() {
            Some(err) => invalid(err),
            None => Error::invalid(Invalid::Evaluation, "the query failed without saying why"),
        },
        DataFusionError::External(err) => match err.downcast::<Error>() {
            Ok(err) => *err,
            Err(err) => Error::invalid(Invalid::Evaluation, err.to_string()),
        },
        DataFusionError::Shared(err) => match find(&err) {
            Some(err) => err,
            None => classify(&err),
        },
        err => classify(&err),
    }
}

/// The engine's error inside a shared one, which cannot be taken apart.
fn find(err: &DataFusionError) -> Option<Error> {
    match err {
        DataFusionError::External(err) => err.downcast_ref::<Error>().cloned(),
        DataFusionError::Context(_, err) | DataFusionError::Diagnostic(_, err) => find(err),
        DataFusionError::Shared(err) => find(err),
        DataFusionError::Collection(errors) => errors.iter().find_map(find),
        _ => None,
    }
}

fn classify(err: &DataFusionError) -> Error {
    match err {
        DataFusionError::Context(_, err) | DataFusionError::Diagnostic(_, err) => classify(err),
        DataFusionError::Shared(err) => classify(err),
        DataFusionError::Collection(errors) if !errors.is_empty() => classify(&errors[0]),
        DataFusionError::SchemaError(err, _) => schema(err),
        DataFusionError::SQL(err, _) => Error::invalid(Invalid::Syntax, err.to_string()),
        DataFusionError::NotImplemented(message) => Error::invalid(Invalid::Unsupported, message.clone()),
        DataFusionError::Plan(message) => match plan(message) {
            Invalid::WrongType => {
                let message = format!("{}; CAST the values to types that fit", first_line(message));
                Error::invalid(Invalid::WrongType, message)
            }
            code => Error::invalid(code, first_line(message)),
        },
        // The pool is the query's own: that it is used up is no matter of when it runs.
        DataFusionError::ResourcesExhausted(_) => {
            let message = "the query needs more memory than it may have; select fewer rows or columns (WHERE, LIMIT), \
                           aggregate them, or use several statements";
            Error::invalid(Invalid::QueryTooLarge, message)
        }
        DataFusionError::ArrowError(err, _) => match err.as_ref() {
            ArrowError::ArithmeticOverflow(message) => Error::invalid(Invalid::OutOfRange, message.clone()),
            err => Error::invalid(Invalid::Evaluation, err.to_string()),
        },
        DataFusionError::Execution(message) => Error::invalid(Invalid::Evaluation, message.clone()),
        err => Error::invalid(Invalid::Evaluation, err.strip_backtrace()),
    }
}

fn schema(err: &SchemaError) -> Error {
    match err {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let named = |field: &&Column| !field.name.starts_with("__");
            let known: Vec<&str> = valid_fields.iter().filter(named).map(|field| field.name.as_str()).collect();
            let column = match &field.relation {
                Some(relation) => format!("{relation}.{}", field.name),
                None => field.name.clone(),
            };
            let hint = match nearest(&field.name, known.iter().copied()) {
                // The name is right, so the table before it is not.
                Some(nearest) if nearest == field.name => match valid_fields.iter().find(|known| known.name == nearest)
                {
                    Some(known) => format!("; did you mean {}?", known.flat_name()),
                    None => String::new(),
                },
                Some(nearest) => format!("; did you mean {nearest:?}?"),
                None if known.is_empty() => "; no column can be named here".to_string(),
                None => format!("; there are: {}", known.join(", ")),
            };
            Error::invalid(Invalid::UnknownColumn, format!("there is no column {column:?} here{hint}"))
        }
        SchemaError::AmbiguousReference { field } => {
            let message = format!("column {:?} is in several tables; write table.{0}", field.name);
            Error::invalid(Invalid::UnknownColumn, message)
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            Error::invalid(Invalid::DuplicateColumn, format!("column {name:?} is there twice; give one an alias"))
        }
    }
}

/// DataFusion has one kind of error for everything that planning refuses and says in the text only what it was. The texts
/// are pinned by `testscripts/sql/errors`.
fn plan(message: &str) -> Invalid {
    const TYPES: &[&str] = &[
        "Cannot coerce",
        "Cannot infer common",
        "Cannot get result type",
        "Cannot cast",
        "Unsupported CAST",
        "Failed to coerce",
        "coercion",
        "Function '",
        "type must be",
        "must be boolean",
        "Cannot create filter with non-boolean",
        "argument types",
    ];
    if message.starts_with("Invalid function") {
        return Invalid::UnknownFunction;
    }
    if TYPES.iter().any(|text| message.contains(text)) {
        return Invalid::WrongType;
    }
    Invalid::Plan
}

/// DataFusion lists all signatures behind the first line.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.replace("Internal error: ", "").replace("Error during planning: ", "");
    match message.lines().nth(1) {
        Some(hint) if hint.starts_with("Did you mean") => format!("{line} {}", hint.trim()),
        _ => line,
    }
}

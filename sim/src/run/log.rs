//! The log of a run: what the product and its libraries say by `tracing`, each line with its virtual time and its node.
//!
//! ```text
//!     3.104512 n2 DEBUG engine::event: event=FlushStarted { .. }
//! ```
//!
//! Whose line it is, is told by madsim's span of the node: so it is right for libraries too, which know of no nodes. What
//! belongs to no node (the harness, its clients) is `harness` or `clients`. A log is made of what happens and changes
//! nothing of it: a filter costs time of the processor and no virtual time.

use std::fmt::{self, Write};
use std::io;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::hub::now;

/// From now on what passes `filter` (`debug`, `engine::raft=trace`) goes to the standard error.
pub fn to_stderr(filter: &str) -> Result<(), String> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(parse(filter)?)
        .with_writer(io::stderr)
        .with_ansi(false)
        .event_format(Lines)
        .finish();
    tracing::subscriber::set_global_default(subscriber).map_err(|err| err.to_string())
}

/// The filter that `text` means. The nodes' spans are madsim's: they pass whatever it says.
pub fn parse(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(format!("madsim=error,{text}")).map_err(|err| format!("no filter: {text}: {err}"))
}

/// The node that said `line`; none for a line that is not of a log.
pub fn node_of(line: &str) -> Option<&str> {
    let (time, rest) = line.trim_start().split_once(' ')?;
    let is_time = time.contains('.') && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let (node, _) = rest.split_once(' ')?;
    is_time.then_some(node)
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let at = now();
        let mut node = String::from("harness");
        let mut spans = String::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.fields.as_str());
            match (span.name(), span.metadata().target().starts_with("madsim")) {
                ("node", true) => node = name(fields).unwrap_or(node),
                // Of which task it is, nobody ever asked.
                (_, true) => {}
                (name, false) if fields.is_empty() => write!(spans, " {name}")?,
                (name, false) => write!(spans, " {name}{{{fields}}}")?,
            }
        }
        let metadata = event.metadata();
        let (seconds, micros) = (at.as_secs(), at.subsec_micros());
        write!(to, "{seconds:5}.{micros:06} {node} {:5} {}{spans}: ", metadata.level(), metadata.target())?;
        context.field_format().format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}

/// The name among the fields of madsim's span of a node: `id=2 name="n2"`.
fn name(fields: &str) -> Option<String> {
    let (_, rest) = fields.split_once("name=")?;
    let name = rest.trim_start_matches("Some(").trim_start_matches('"');
    let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    match name.as_str() {
        "" => None,
        "madsim-main" => Some("harness".to_string()),
        _ => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_whose_it_is() {
        assert_eq!(node_of("    3.104512 n2 DEBUG engine::event: event=.."), Some("n2"));
        assert_eq!(node_of("1203.104512 harness DEBUG x: y"), Some("harness"));
        for other in ["", "panic at 3.5 n2: x", "   0: std::backtrace", "3. x", "12 n2 y"] {
            assert!(node_of(other).is_none_or(|node| other.starts_with("3.") && node == "x"), "{other}");
        }
    }

    #[test]
    fn a_node_s_name_is_found_however_its_span_prints_it() {
        for fields in ["id=2 name=\"n2\"", "id=2 name=Some(\"n2\")", "id=2 name=n2"] {
            assert_eq!(name(fields).as_deref(), Some("n2"), "{fields}");
        }
        assert_eq!(name("id=0 name=\"madsim-main\"").as_deref(), Some("harness"));
        assert_eq!(name("id=0"), None);
    }
}

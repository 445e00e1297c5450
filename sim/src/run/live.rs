//! What a run says while it goes: events, for whoever records them, and how far it got, for when it panics.

use std::fmt;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use super::report::SeedReport;
use crate::trace::Seen;
use crate::worker::Message;

type Known = Box<dyn Fn() -> SeedReport + Send>;

/// The ear of the worker.
pub struct Live {
    /// Where recorded events go; none: they are not recorded.
    record: Option<Mutex<Box<dyn Write + Send>>>,
    known: Mutex<Option<Known>>,
}

impl Live {
    /// Records events to `record`, if there is one.
    pub fn new(record: Option<Box<dyn Write + Send>>) -> Live {
        Live { record: record.map(Mutex::new), known: Mutex::new(None) }
    }

    /// Whether events are recorded: else a line need not be made.
    pub fn records(&self) -> bool {
        self.record.is_some()
    }

    /// Records an event as one line: virtual time in seconds, node, kind, digest of the payload, and what it is in words.
    /// Where two runs part is the first line that differs.
    pub fn event(&self, seen: &Seen<'_>) {
        let Some(record) = &self.record else { return };
        let Seen { at, node, kind, payload, text } = seen;
        let (seconds, nanos) = (at.as_secs(), at.subsec_nanos());
        let line = format!("{seconds}.{nanos:09} n{node} {kind} {payload} {text}").replace('\n', " ");
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        // A runner that does not listen any more kills the worker; there is nobody to tell.
        let _ = Message::Event(line).write(&mut **record);
    }

    /// Says who knows how far the run got. Called once, early; `known` must not wait for anything that the simulation
    /// holds while it runs a task.
    pub fn on_panic(&self, known: impl Fn() -> SeedReport + Send + 'static) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(known));
    }

    /// How far a run got that panicked.
    pub fn known(&self) -> Option<SeedReport> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|known| known())
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("records", &self.records()).finish_non_exhaustive()
    }
}

//! Backfills indexes: whoever leads a region logs its rows, in key order, for each index that does not have them yet.
//!
//! Nothing is decided here but how fast it goes. Where the backfill is, and what of a chunk counts, the log says
//! ([`region::index`](crate::region::index)); so a chunk that is sent twice, or late, or of which nobody knows what became of it,
//! does no harm, and a new leader needs nothing of the old one.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Reader;
use crate::error::{Error, Result};
use crate::region::command::{Command, decode_outcome};
use crate::region::index::Backfill;
use crate::types::IndexDef;

impl Reader<'_> {
    /// One index after the other, until another one leads.
    pub(super) async fn backfill_all(&self) {
        let mut changes = self.region.watch_legs();
        let mut pauses = self.node.options().pauses();
        loop {
            changes.borrow_and_update();
            let done = match self.region.open_index() {
                Some((index, backfill)) => self.backfill(&index, backfill).await,
                None if changes.changed().await.is_err() => return,
                None => Ok(()),
            };
            match done {
                Ok(()) => pauses = self.node.options().pauses(),
                Err(err) => {
                    tracing::debug!(region = %self.region.region(), %err, "a backfill was interrupted");
                    sleep(pauses.next_pause()).await;
                }
            }
        }
    }

    /// Logs the chunk that is due.
    async fn backfill(&self, index: &IndexDef, backfill: Backfill) -> Result<()> {
        let (options, started) = (self.node.options(), Instant::now());
        // What takes longer than a second at the rate that it may have is cut: another rate, or a pause, is heard of in between.
        let rows = index.rate_limit.map_or(options.fill_chunk_rows, |rate| rate.min(options.fill_chunk_rows));
        let bytes = options.fill_chunk_bytes.min(options.rpc_frame_bytes / 4);
        let [rows, bytes] = [rows, bytes].map(|limit| usize::try_from(limit).unwrap_or(usize::MAX).max(1));
        let (chunk, read) = self.region.index_chunk(index, self.term, backfill.cursor, (rows, bytes)).await?;
        let within = Duration::from_millis(options.statement_timeout_ms);
        let deposed = async {
            self.group.deposed().await;
            Error::Stopped
        };
        let _admitted = self.region.admit(chunk.entries.len(), within, deposed).await?;
        decode_outcome(&self.group.propose(Command::Backfill(chunk).encode()).await?)?;
        if let Some(rate) = index.rate_limit {
            sleep_until(started + Duration::from_secs_f64(read as f64 / rate.max(1) as f64)).await;
        }
        Ok(())
    }
}

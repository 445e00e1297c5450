//! Everything that can be tuned, as plain data. No handles, no clocks; nothing of it is a constant in code.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Invalid, Result};

/// Tunables of a node, the same on all nodes of a cluster. Sizes are in bytes, times in milliseconds, as the names say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How often a leader tells its followers that it is there.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for a time between these two bounds stands for election.
    pub election_min_ms: u64,
    /// Upper bound, see `election_min_ms`.
    pub election_max_ms: u64,
    /// Entries that one message to a follower carries at most.
    pub raft_batch_entries: u64,
    /// Entries that stay in the log behind a flush, so that a follower that lags a little needs no snapshot.
    pub raft_keep_entries: u64,
    /// A log segment is closed when it is larger than this.
    pub log_segment_bytes: u64,
    /// Payloads of recent entries that are kept in memory, per node.
    pub log_cache_bytes: u64,
    /// A region flushes when its memtable holds more versions than this.
    pub memtable_rows: u64,
    /// A region flushes when its memtable takes more memory than this.
    pub memtable_bytes: u64,
    /// Memory of all memtables of a node: above it the biggest ones are flushed.
    pub write_buffer_bytes: u64,
    /// Memtables of a node and writes under way: above it writes wait until memory is flushed, half of their time at most.
    pub write_buffer_stall_bytes: u64,
    /// The same with the writes that wait: above it writes are refused at once.
    pub write_buffer_reject_bytes: u64,
    /// As `write_buffer_stall_bytes`, of one region.
    pub region_buffer_stall_bytes: u64,
    /// As `write_buffer_reject_bytes`, of one region.
    pub region_buffer_reject_bytes: u64,
    /// A region with rows or entries in memory flushes at least this often.
    pub flush_interval_ms: u64,
    /// A version of a row that a newer one replaced is kept at least this long, so that a scan that takes several requests
    /// goes on; one that takes longer begins anew.
    pub version_keep_ms: u64,
    /// Sets of overlapping files that the time window of the newest rows may have; with more of them it is compacted.
    pub compaction_active_runs: u64,
    /// The same for all other time windows.
    pub compaction_inactive_runs: u64,
    /// So many small files side by side are put together.
    pub compaction_small_files: u64,
    /// Files that one compaction merges at most.
    pub compaction_max_inputs: u64,
    /// Size of a file that a compaction makes, about.
    pub compaction_output_bytes: u64,
    /// Compactions that a node runs at the same time.
    pub compaction_jobs: u64,
    /// How often a leader looks whether rows of its tables with a TTL have expired.
    pub expire_interval_ms: u64,
    /// The time up to which rows have expired goes on by this much at a time, at most.
    pub expire_step_ms: u64,
    /// Rows that a fill of a view reads, and sends on, at a time.
    pub fill_chunk_rows: u64,
    /// Memory of such rows at most.
    pub fill_chunk_bytes: u64,
    /// A fill follows what is written, and needs no further round, when no more rows than that were written since its last one
    /// began.
    pub fill_live_rows: u64,
    /// How often the log of a region that a view reads is told how far the view is, so that older versions may go.
    pub fill_advance_ms: u64,
    /// So many times rows are read that are nothing to a region of the view before it is told so: a leader that takes over does
    /// not read them again.
    pub fill_silent_pages: u64,
    /// When writes outrun a fill, they wait for this long, each; and for twice as long when that does not help.
    pub fill_slow_min_ms: u64,
    /// Upper bound, see `fill_slow_min_ms`.
    pub fill_slow_max_ms: u64,
    /// A view for which a region keeps more versions than these behind the newest one has failed. 0: there is no bound.
    pub fill_stale_rows: u64,
    /// A view for which a region keeps versions that are older than this has failed. 0: there is no bound.
    pub fill_stale_ms: u64,
    /// A query looks for rows in an index if that finds no more of them in a region than these; otherwise the region is read.
    pub index_keys: u64,
    /// A manifest is checkpointed after this many edits.
    pub manifest_checkpoint_edits: u64,
    /// Rows of a row group of an SST: the unit of pruning.
    pub sst_row_group_rows: u64,
    /// Rows of the batches that a scan answers with.
    pub scan_batch_rows: u64,
    /// Piece of a file that a snapshot is sent in.
    pub snapshot_chunk_bytes: u64,
    /// A request to a peer that is not answered within this time has an unknown outcome.
    pub rpc_timeout_ms: u64,
    /// Requests that one connection has under way at most; further ones wait.
    pub rpc_window: u64,
    /// A frame larger than this is refused.
    pub rpc_frame_bytes: u64,
    /// A statement without a deadline of its own gives up after this time.
    pub statement_timeout_ms: u64,
    /// Memory that the operators of one query (sorts, joins, aggregates) and its result may take together. UPDATE, DELETE and
    /// INSERT of a query read by one.
    pub query_memory_bytes: u64,
    /// Rows of one write to one region; a larger INSERT is cut.
    pub write_batch_rows: u64,
    /// Writes that a region has proposed and not yet applied at most; further ones wait.
    pub write_window: u64,
    /// A session is expired after this many other sessions wrote to the region since its last request.
    pub session_window: u64,
    /// Requests of one session that a region remembers at most above the mark that the client acknowledged.
    pub session_requests: u64,
    /// Names of ingested files that a region remembers, so that none is applied twice.
    pub ingested_files: u64,
    /// Results of statements that create and drop tables which meta remembers, so that a resent one is answered and not
    /// run again. Counts when the cluster is bootstrapped.
    pub meta_results: u64,
    /// Regions of one table at most. Counts when the cluster is bootstrapped.
    pub table_regions: u64,
    /// The catalog is written to its file after this many entries.
    pub meta_flush_entries: u64,
    /// A node that does not answer meta's leader for so long is dead: its replicas are made elsewhere, where there is a node
    /// that has none of the region. 0: never.
    pub node_dead_ms: u64,
    /// Replicas of dead nodes that are made elsewhere at the same time.
    pub node_repairs: u64,
    /// A step of a move that does not get on for so long is given up, as long as the new replica has no vote. It bounds how
    /// long the new replica may take to receive its region, too.
    pub move_patience_ms: u64,
    /// Pause before the first retry of a step of a procedure; doubles up to `retry_max_ms`.
    pub retry_min_ms: u64,
    /// Upper bound, see `retry_min_ms`.
    pub retry_max_ms: u64,
    /// A replica that was mended and is damaged again is mended after `retry_max_ms`, the next time after twice as long, and so
    /// on, up to this: a disk that damages whatever it is given must not keep the others busy.
    pub mend_pause_max_ms: u64,
}

/// The pauses between attempts: the first is [`Options::retry_min_ms`] long, each further one twice as long as the one
/// before, none longer than [`Options::retry_max_ms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// How long to wait before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

impl Default for Options {
    /// For production: GreptimeDB's orders of magnitude.
    fn default() -> Self {
        Options {
            heartbeat_ms: 200,
            election_min_ms: 1_000,
            election_max_ms: 2_000,
            raft_batch_entries: 512,
            raft_keep_entries: 1_000,
            log_segment_bytes: 64 << 20,
            log_cache_bytes: 64 << 20,
            memtable_rows: 1_000_000,
            memtable_bytes: 64 << 20,
            write_buffer_bytes: 1 << 30,
            write_buffer_stall_bytes: 3 << 29,
            write_buffer_reject_bytes: 2 << 30,
            region_buffer_stall_bytes: 256 << 20,
            region_buffer_reject_bytes: 512 << 20,
            flush_interval_ms: 3_600_000,
            version_keep_ms: 60_000,
            compaction_active_runs: 4,
            compaction_inactive_runs: 1,
            compaction_small_files: 8,
            compaction_max_inputs: 32,
            compaction_output_bytes: 512 << 20,
            compaction_jobs: 2,
            expire_interval_ms: 60_000,
            expire_step_ms: 3_600_000,
            fill_chunk_rows: 8_192,
            fill_chunk_bytes: 1 << 20,
            fill_live_rows: 8_192,
            fill_advance_ms: 1_000,
            fill_silent_pages: 16,
            fill_slow_min_ms: 2,
            fill_slow_max_ms: 500,
            fill_stale_rows: 0,
            fill_stale_ms: 7 * 24 * 3_600_000,
            index_keys: 65_536,
            manifest_checkpoint_edits: 10,
            sst_row_group_rows: 100_000,
            scan_batch_rows: 8_192,
            snapshot_chunk_bytes: 1 << 20,
            rpc_timeout_ms: 2_000,
            rpc_window: 256,
            rpc_frame_bytes: 64 << 20,
            statement_timeout_ms: 30_000,
            query_memory_bytes: 256 << 20,
            write_batch_rows: 8_192,
            write_window: 64,
            session_window: 10_000,
            session_requests: 1_024,
            ingested_files: 10_000,
            meta_results: 10_000,
            table_regions: 1_024,
            meta_flush_entries: 100,
            node_dead_ms: 600_000,
            node_repairs: 4,
            move_patience_ms: 3_600_000,
            retry_min_ms: 20,
            retry_max_ms: 1_000,
            mend_pause_max_ms: 3_600_000,
        }
    }
}

impl Options {
    /// The pauses of something that was not tried yet.
    pub fn pauses(&self) -> Pauses {
        let longest = Duration::from_millis(self.retry_max_ms);
        Pauses { next: Duration::from_millis(self.retry_min_ms).min(longest), longest }
    }

    /// The pauses before a replica is mended once more, see `mend_pause_max_ms`.
    pub fn mend_pauses(&self) -> Pauses {
        Pauses {
            next: Duration::from_millis(self.retry_max_ms),
            longest: Duration::from_millis(self.mend_pause_max_ms),
        }
    }

    /// Checks each value and those that depend on each other. The error names the option and its legal range.
    pub fn validate(&self) -> Result<()> {
        let least = |name: &str, value: u64, least: u64| {
            if value >= least {
                return Ok(());
            }
            Err(Error::invalid(Invalid::Option, format!("{name} = {value}: must be at least {least}")))
        };
        least("heartbeat_ms", self.heartbeat_ms, 1)?;
        least("election_min_ms", self.election_min_ms, self.heartbeat_ms * 2)?;
        least("election_max_ms", self.election_max_ms, self.election_min_ms + 1)?;
        least("raft_batch_entries", self.raft_batch_entries, 1)?;
        least("log_segment_bytes", self.log_segment_bytes, 4_096)?;
        least("memtable_rows", self.memtable_rows, 1)?;
        least("memtable_bytes", self.memtable_bytes, 1_024)?;
        least("write_buffer_bytes", self.write_buffer_bytes, 1_024)?;
        least("write_buffer_stall_bytes", self.write_buffer_stall_bytes, self.write_buffer_bytes)?;
        least("write_buffer_reject_bytes", self.write_buffer_reject_bytes, self.write_buffer_stall_bytes)?;
        least("region_buffer_stall_bytes", self.region_buffer_stall_bytes, 1_024)?;
        least("region_buffer_reject_bytes", self.region_buffer_reject_bytes, self.region_buffer_stall_bytes)?;
        least("flush_interval_ms", self.flush_interval_ms, 1)?;
        least("expire_interval_ms", self.expire_interval_ms, 1)?;
        least("expire_step_ms", self.expire_step_ms, 1)?;
        least("fill_chunk_rows", self.fill_chunk_rows, 1)?;
        least("fill_chunk_bytes", self.fill_chunk_bytes, 1)?;
        least("fill_advance_ms", self.fill_advance_ms, 1)?;
        least("compaction_active_runs", self.compaction_active_runs, 1)?;
        least("compaction_inactive_runs", self.compaction_inactive_runs, 1)?;
        least("compaction_small_files", self.compaction_small_files, 2)?;
        least("compaction_max_inputs", self.compaction_max_inputs, 2)?;
        least("compaction_output_bytes", self.compaction_output_bytes, 1)?;
        least("compaction_jobs", self.compaction_jobs, 1)?;
        least("manifest_checkpoint_edits", self.manifest_checkpoint_edits, 1)?;
        least("sst_row_group_rows", self.sst_row_group_rows, 1)?;
        least("scan_batch_rows", self.scan_batch_rows, 1)?;
        least("snapshot_chunk_bytes", self.snapshot_chunk_bytes, 64)?;
        least("rpc_timeout_ms", self.rpc_timeout_ms, 1)?;
        least("rpc_window", self.rpc_window, 1)?;
        least("rpc_frame_bytes", self.rpc_frame_bytes, 1 << 16)?;
        least("statement_timeout_ms", self.statement_timeout_ms, 1)?;
        least("query_memory_bytes", self.query_memory_bytes, 1 << 16)?;
        least("write_batch_rows", self.write_batch_rows, 1)?;
        least("write_window", self.write_window, 1)?;
        least("session_window", self.session_window, 1)?;
        least("session_requests", self.session_requests, 1)?;
        least("ingested_files", self.ingested_files, 1)?;
        least("meta_results", self.meta_results, 1)?;
        least("table_regions", self.table_regions, 1)?;
        least("meta_flush_entries", self.meta_flush_entries, 1)?;
        least("node_repairs", self.node_repairs, 1)?;
        least("move_patience_ms", self.move_patience_ms, 1)?;
        least("retry_min_ms", self.retry_min_ms, 1)?;
        least("retry_max_ms", self.retry_max_ms, self.retry_min_ms)?;
        least("mend_pause_max_ms", self.mend_pause_max_ms, self.retry_max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_wrong_value_is_named() {
        Options::default().validate().unwrap();
        let options = Options { election_min_ms: 100, ..Options::default() };
        let err = options.validate().unwrap_err();
        assert_eq!(err.to_string(), "[option] election_min_ms = 100: must be at least 400");
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut pauses = Options { retry_min_ms: 20, retry_max_ms: 100, ..Options::default() }.pauses();
        let pauses: Vec<u128> = (0..5).map(|_| pauses.next_pause().as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 100, 100]);
    }

    #[test]
    fn an_unknown_option_is_an_error() {
        let err = toml::from_str::<Options>("memtable_row = 3").unwrap_err();
        assert!(err.message().contains("memtable_row"), "{err}");
    }
}

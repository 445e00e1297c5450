//! Seedbed: a region engine; each region is a raft group with an LSM tree of its own; and materialized views that are filled and
//! kept up to date through every failure.
//!
//! # The life of a statement
//!
//! `INSERT INTO flights VALUES (..)`, from the client to the files. Names without a link are private to their module.
//!
//! 1. [`Session::execute`](frontend::Session::execute) gives the statement its deadline, [`sql::parse`] makes a
//!    [`sql::Statement`] of the text, `Session::run` chooses what to do. Should a table turn out to be another one than it
//!    was thought to be, `Session::again_if_changed` begins anew, as long as nothing is written.
//! 2. `Session::insert_statement` finds the table by `Routes::table`: in the cache, or at the leader of meta, which answers
//!    in [`meta::Service::handle`] after a ReadIndex.
//! 3. [`sql::Values::column`] computes the cells and casts them, `insert::complete` adds the defaults
//!    ([`sql::Evaluator::default`]) and refuses NULL where the table does. Now there are whole rows.
//! 4. `Session::begin` numbers the statement within its session: a resent part of it will be told from a new one.
//!    `partition::split` gives each row to its region, `Frontend::write` sends each region's rows, all regions at the same
//!    time, in pieces that a frame can carry.
//! 5. `Routes::region` asks whoever it takes for the region's leader, follows hints, goes through the replicas, pauses, until
//!    there is an answer that no retry would change, or the deadline.
//! 6. [`Router::call`](server::router::Router::call) calls its own node directly and the others by
//!    [`Peers::call`](server::rpc::Peers::call): a checksummed frame on the connection of its [`Lane`](server::rpc::Lane).
//!    There, [`rpc::serve`](server::rpc::serve) reads it and `node::Shared::answer` takes it to the replica.
//! 7. `Store::write` refuses it if the replica does not lead. [`Region::admit`](region::Region::admit) waits for memory (the
//!    node's [`Buffer`](region::Buffer)) and for a place among the writes under way, [`Region::validate`](region::Region::validate) checks the rows and makes a
//!    [`Command`](region::command::Command) of them, [`Group::propose`](raft::Group::propose) gives it to raft.
//! 8. openraft appends the entry by `raft::store::Store::append`. [`ReplicaLog::append`](log::ReplicaLog::append) finds its
//!    place in the node's one log, where it can be read at once; `log::writer::write` writes what has gathered meanwhile, of
//!    all groups, as one batch with one fsync; then [`Flushed`](log::Flushed) resolves and raft hears of it.
//! 9. At the same time `raft::network::Link::append_entries` sends the entry to the other replicas, where
//!    [`Group::answer`](raft::Group::answer) takes it and answers when it is durable. With a majority it is committed;
//!    [`ReplicaLog::save_committed`](log::ReplicaLog::save_committed) notes that, without an fsync of its own. A leader whose
//!    own log does not get on hands over ([`Group::hand_over_when_stalled`](raft::Group::hand_over_when_stalled)).
//! 10. `raft::machine::Driver::apply`, on each replica and in the order of the log, calls
//!     [`Machine::apply`](raft::Machine::apply) of the [`Region`](region::Region). `Region::judge` answers a repeated
//!     request from memory and refuses one for another schema or whose rows changed since they were read.
//! 11. `Region::finish` does the rest in one step of the state: `State::write` gives each row its
//!     [`Sequence`](types::Sequence) and puts it into the [`Memtable`](storage::memtable::Memtable::write), the session's
//!     request gets its answer, the entry is noted. Then it publishes the sequence (from now on the rows are read) and says so by [`Event::Applied`](event::Event::Applied). Raft hands the outcome to `Group::propose`, and the answer
//!     goes back the way that the request came.
//!
//! Later, on each replica by itself:
//!
//! 12. `region::flush::work` wakes when the memtable is full or the interval is over. [`Region::flush`](region::Region::flush)
//!     freezes the memtable together with the side state as of that entry, and writes the rows to a Parquet file by
//!     [`sst::write`](storage::sst::write): durable, but nobody knows of it.
//! 13. [`Manifest::commit`](storage::manifest::Manifest::commit) makes the file, the entry and the side state durable in one
//!     edit. `Region::publish` exchanges the [`Version`](storage::version::Version) that reads see.
//! 14. `server::store` hears of it ([`Region::watch_flushed`](region::Region::watch_flushed)) and tells raft
//!     ([`Group::flushed`](raft::Group::flushed)): a flush is raft's snapshot. openraft purges the log behind it
//!     ([`ReplicaLog::purge`](log::ReplicaLog::purge)), and `log::writer::delete` removes the segments that nobody needs.
//! 15. `region::compact::work` wakes too. [`compaction::pick`](storage::compaction::pick) chooses files,
//!     [`Merge::retained`](storage::merge::Merge::retained) leaves out the versions that no read can see any more, and one
//!     manifest edit puts the outputs in the place of the inputs, which go when their last reader does.
//!
//! Whoever reads a byte that is not the one that was written says so by [`Region::noticed`](region::Region::noticed); then
//! `server::mend` gets the state of another replica and puts it in the place of the damaged files (`region::damage` has the steps).
//!
//! `SELECT .. FROM flights WHERE ..`:
//!
//! 16. `Frontend::query` plans it by [`Planner::plan`](sql::Planner::plan) and [`Planner::physical`](sql::Planner::physical);
//!     `RegionTable::scan` keeps the conditions that regions understand and leaves out the regions that cannot match;
//!     `RegionScan::page` asks for the first page of each region, the way of steps 5 and 6.
//! 17. `server::store::Store::scan` makes sure by [`Group::read_index`](raft::Group::read_index) that the replica has applied
//!     all that was answered before. [`Region::scan`](region::Region::scan) takes the visible sequence and then the version,
//!     and reads one page through [`Version::scan`](storage::version::Version::scan): a [`Merge`](storage::merge::Merge) of
//!     memtables and files that lets the newest version at or below the sequence through. Further pages of the region are
//!     read at the same sequence; DataFusion filters again, joins, sorts and aggregates at the frontend.
//!     A session that said `SET read_staleness` asks the nearest replica instead: one that does not lead answers by what it
//!     heard of the leader not longer ago than that (`server::follower`).
//!
//! `ADMIN MOVE REPLICA OF TABLE flights REGION 0 FROM NODE 2 TO NODE 4`, and likewise, without a statement, whatever is on a node
//! that has been dead for long (`meta::detector`):
//!
//! 18. [`meta::MetaState`] gives out a replica id that never was and starts a [`meta::Procedure`] of kind `move_replica`. Its
//!     steps are states in the log; [`meta::Runner`] asks the nodes for each.
//! 19. The new replica is made (`Store::create_replica`), and the region's leader sends it the log, or a snapshot where the log
//!     does not reach back ([`Group::add_learner`](raft::Group::add_learner)). When it is as good as caught up, it gets the vote
//!     of the old one, by way of a membership in which both have a say
//!     ([`Group::change_members`](raft::Group::change_members)).
//! 20. Now, and not before, the catalog has the new replica, and the statement is answered. Frontends that still ask the old
//!     one find out by `Routes::places`. The old replica is dropped (`Store::drop_replica`) when its node is there: its id has a
//!     tombstone and votes nowhere.
//!
//! `CREATE MATERIALIZED VIEW delays AS SELECT carrier, avg(dep_delay) FROM flights GROUP BY carrier`, and how a row gets there:
//!
//! 21. [`sql::CreateView::resolve`] takes the query apart into legs and a fold, and lays out the view's rows: a view is a table
//!     with a [`ViewDef`](meta::catalog::ViewDef), and steps 1 to 4 of its creation are a table's. The entry that makes it visible
//!     starts its fill, a procedure of its own ([`meta::view`]): the view's regions hear that they are to be filled
//!     ([`Command::Begin`](region::command::Command::Begin)), then the regions that it reads
//!     ([`Command::Attach`](region::command::Command::Attach)).
//! 22. From then on whoever leads such a region reads for the view (`server::fill`). It logs its term for the leg and says hello to
//!     each region of the view, through the logs of both; the answers say how far each of them is. `fill::plan::next` says what is
//!     due: a window of sequences, for those that have not got it.
//! 23. [`Region::leg_page`](region::Region::leg_page) reads a page of what changed in the window
//!     ([`Version::changes`](storage::version::Version::changes)), [`view::Leg::run`] filters, computes and sums up by group,
//!     [`frontend::split`] gives each region of the view its share.
//! 24. The share arrives as [`Command::Absorb`](region::command::Command::Absorb). `Region::apply_absorb` takes it if it begins where
//!     the region is, adds it to the state of the groups ([`view::Fold::apply`]), and writes rows and position in one entry.
//! 25. When all have the window, the leader logs that: the next round begins, or the leg is live and follows what is written. When
//!     all legs are, the view's regions hear that they may be read ([`Command::Ready`](region::command::Command::Ready)), and the
//!     catalog has the view as ready; or as failed, if a region says that it has a group which cannot be computed.
//!
//! `CREATE INDEX by_dest ON flights (dest)`:
//!
//! 26. It is an ALTER: the schema has the index ([`types::IndexDef`]), and each region gets it by an entry. From that entry on
//!     `Region::judge` of step 10 finds the rows that a write replaces, and `State::write` writes the entries of the index into a
//!     tree of its own ([`Version::indexes`](storage::version::Version)) along with the rows ([`region::index`]).
//! 27. Whoever leads the region logs the rows of before in chunks ([`Command::Backfill`](region::command::Command::Backfill)), each
//!     with the cursor that follows it; what was changed since it was read is left out when the chunk is applied. When all regions
//!     are through, which a procedure of meta watches, the catalog has the index as ready.
//! 28. A query then names it to the regions (`frontend::index`), which find keys by it, and the rows by the keys as in step 17.
//!
//! # Modules, in reading order
//!
//! What they may use of each other is checked by the test `directions`.
//!
//! * [`types`], [`error`], [`event`], [`options`]: the vocabulary. Data, nothing that runs. [`metrics`] counts events.
//! * [`disk`], [`net`], [`clock`]: the three seams to the world; everything that may differ between a machine and a simulation
//!   of one is behind them.
//! * [`log`]: one log per node for all groups.
//! * [`storage`]: the LSM tree of a replica.
//! * [`raft`]: groups; the only place that names openraft.
//! * [`view`]: what a materialized view does with changes of its feeders; pure.
//! * [`region`]: a replica of a region: what an entry does, flushes, scans, snapshots.
//! * [`meta`]: the catalog, and the procedures that change it: the state machine of group 0.
//! * [`server`]: the node: its store, its messages, the way to its peers.
//! * [`sql`]: what a statement means; pure.
//! * [`frontend`]: statements of clients, through the regions.
#![warn(missing_docs)]

pub mod clock;
pub mod disk;
pub mod error;
pub mod event;
pub mod frontend;
pub mod log;
pub mod meta;
pub mod metrics;
pub mod net;
pub mod options;
pub mod raft;
pub mod region;
pub mod server;
pub mod sql;
pub mod storage;
#[cfg(test)]
mod testscripts;
pub mod types;
pub mod view;

pub use error::{Error, Result};

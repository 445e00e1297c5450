//! Statements of clients: from text to rows, through the regions.
//!
//! A statement on its way:
//!
//! 1. [`Session::execute`] parses it ([`sql::parse`](crate::sql::parse)) and gives it a deadline.
//! 2. [`Routes::table`](route::Routes::table) finds the tables that it names, in the cache or at meta.
//! 3. A query is planned by DataFusion over [`RegionTable`](scan::RegionTable)s; each reads pages of its regions, each
//!    region at one sequence, with projection and filters pushed down and regions that cannot match left out.
//! 4. Rows to write are completed (casts, defaults, NOT NULL) and [split](partition::split) by the table's rule; each
//!    region's rows are sent as parts of the statement, regions at the same time, under ids that make a resent part apply
//!    once ([`OpenStatement`](session::OpenStatement)).
//! 5. UPDATE and DELETE read rows with their sequences, and write on condition that nobody wrote since; rows that somebody
//!    did write are read and decided anew ([`change`]).
//!
//! Invariants: a write that may have been applied is resent under the same id with the same rows, or reported as `Unknown`,
//! never given a new id. A cached route or table that turns out wrong costs a retry within the deadline, never an answer.
//!
//! Not here: what statements mean ([`sql`](crate::sql)), who leads a region, and atomicity over regions: there is none, the
//! error [`Partial`](crate::Error::Partial) says what was written.

mod admin;
mod change;
mod check;
mod checksum;
mod deadline;
mod index;
mod insert;
mod jobs;
mod partition;
mod query;
mod route;
mod scan;
#[cfg(test)]
mod scripts;
mod session;
mod system;
#[cfg(test)]
mod testing;
mod view;
mod write;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use self::deadline::Deadline;
pub use self::partition::split;
use self::route::Routes;
pub use self::session::Session;
use crate::clock::Clock;
use crate::error::Result;
use crate::event::Events;
use crate::meta::catalog::RegionDef;
use crate::meta::request::{MetaAnswer, MetaRequest};
use crate::options::Options;
use crate::server::message::{Request, Response};
use crate::server::router::Router;
use crate::sql::Planner;
use crate::types::NodeId;

/// What a statement gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The rows of a query.
    Rows {
        /// Their columns.
        schema: SchemaRef,
        /// The rows, in the order of the query.
        batches: Vec<RecordBatch>,
    },
    /// How many rows were written.
    Affected(u64),
    /// The statement has no other result.
    Done,
}

/// Runs the statements of clients. One a node; clones share everything.
#[derive(Clone)]
pub struct Frontend {
    shared: Arc<Shared>,
}

struct Shared {
    routes: Routes,
    planner: Planner,
    clock: Arc<dyn Clock>,
    options: Arc<Options>,
}

impl Frontend {
    /// A frontend that reaches the cluster by `router`. `meta`: the nodes that group 0 has its replicas on.
    pub fn new(
        router: Arc<Router>,
        meta: Vec<NodeId>,
        clock: Arc<dyn Clock>,
        options: Arc<Options>,
        events: Events,
    ) -> Frontend {
        let routes = Routes::new(router, meta, options.clone(), events);
        Frontend { shared: Arc::new(Shared { routes, planner: Planner::new(), clock, options }) }
    }

    /// A new session. It costs nothing until it writes.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// What the leader of `region` answers, wherever it and the region's replicas are by now. Given up after `within`.
    pub async fn ask_leader(&self, region: &RegionDef, request: &Request, within: Duration) -> Result<Response> {
        self.routes().region(region, request, Deadline::after(within)).await.result
    }

    /// What the leader of meta answers. Given up after `within`.
    pub async fn ask_meta(&self, request: MetaRequest, within: Duration) -> Result<MetaAnswer> {
        self.routes().meta(request, Deadline::after(within)).await.result
    }

    fn routes(&self) -> &Routes {
        &self.shared.routes
    }

    fn planner(&self) -> &Planner {
        &self.shared.planner
    }

    fn options(&self) -> &Options {
        &self.shared.options
    }
}

impl fmt::Debug for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frontend").finish_non_exhaustive()
    }
}

//! Scans: pages of one version, as of one sequence.

use super::Region;
use super::request::{ScanAnswer, ScanRequest};
use crate::error::{Error, Invalid, Result};
use crate::storage::merge::Limit;
use crate::storage::scan::Scan;
use crate::storage::version::Version;
use crate::types::{Sequence, encode_batch};

impl Region {
    /// One page. The caller has made sure that this replica may answer: that it leads and has applied what was
    /// committed before, or that the page continues one that was read so.
    pub(super) async fn page(&self, request: ScanRequest) -> Result<ScanAnswer> {
        self.check_ready()?;
        // First the sequence, then the version: it has at least what was visible before.
        let visible = self.visible();
        let version = self.version();
        if request.schema_version != version.schema().version {
            return Err(Error::SchemaChanged { region: self.id, version: version.schema().version });
        }
        let upto = request.upto.unwrap_or(visible);
        if upto > visible {
            let what = format!("replica {} of region {} has not applied {upto} yet", self.spec.replica, self.id);
            return Err(Error::Busy { what });
        }
        if upto < version.readable() {
            return Err(Error::TooOld { region: self.id, oldest: version.readable() });
        }
        let options = &self.spec.options;
        let rows = match request.page_rows {
            0 => options.scan_batch_rows,
            rows => rows.min(options.scan_batch_rows),
        };
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        // Half a frame of cells leaves room for what the encoding adds.
        let bytes = usize::try_from(options.rpc_frame_bytes / 2).unwrap_or(usize::MAX);
        let only = match request.index.filter(|_| request.since.is_none() && !request.include_deleted) {
            Some(index) => self.find(&version, index, &request.predicates, upto).await?,
            None => None,
        };
        let scan = Scan {
            columns: request.columns,
            predicates: request.predicates,
            upto,
            after: request.after,
            include_deleted: request.include_deleted,
            only,
        };
        if let Some(since) = request.since {
            let taken = rows.saturating_mul(16);
            return self.scan_changes(&version, since, &scan, Limit { rows, bytes, taken }).await;
        }
        let page = version.scan(&scan, rows)?.page(Limit { rows, bytes, taken: rows.saturating_mul(16) }).await?;
        let encoded = |rows: &crate::storage::rows::Rows| {
            encode_batch(&rows.with_version_columns(request.with_sequence, request.include_deleted))
        };
        Ok(ScanAnswer {
            batches: page.batches.iter().map(encoded).collect(),
            rows: page.rows as u64,
            sequence: upto,
            next: page.next,
        })
    }

    /// One page of what changed behind `since`.
    async fn scan_changes(&self, version: &Version, since: Sequence, scan: &Scan, limit: Limit) -> Result<ScanAnswer> {
        if since > scan.upto {
            let message = format!("what changed behind {since} is asked for as of {}, which is before", scan.upto);
            return Err(Error::invalid(Invalid::Request, message));
        }
        if since < version.readable() {
            return Err(Error::TooOld { region: self.id, oldest: version.readable() });
        }
        let page = version.changes(Some(since), scan, limit, limit.rows).await?;
        let rows = page.keys.len() as u64;
        let batches = if rows == 0 { Vec::new() } else { vec![encode_batch(&page.batch)] };
        Ok(ScanAnswer { batches, rows, sequence: scan.upto, next: page.next })
    }
}

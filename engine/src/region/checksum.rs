//! Checksums: what all replicas of a region must agree on, as of one entry of its log.
//!
//! The rows that are visible at a sequence are a function of the log, whatever memtables and files a replica has them in. So the
//! leader names a moment (the last entry that it applied, and the newest sequence then), and every replica that has come that far
//! reads the rows as of that sequence. All of them count: of a view those too that SELECT does not show.

use super::Region;
use super::request::{Checksum, Moment};
use crate::error::{Error, Result};
use crate::storage::scan::Scan;
use crate::types::Value;

/// Rows that are read in one go.
const ROWS: usize = 1_000;

impl Region {
    /// What it has applied.
    pub fn moment(&self) -> Moment {
        let state = self.state.lock().expect("no panic holds the lock");
        Moment {
            applied: state.side.applied,
            sequence: state.side.sequence,
            schema_version: state.version.schema().version,
        }
    }

    /// The checksum of the rows at `moment`, which the caller has made sure that this replica has applied.
    pub async fn checksum(&self, moment: Moment) -> Result<Checksum> {
        // First the sequence, then the version: it has at least what was visible before.
        let visible = self.visible();
        let version = self.version();
        if version.schema().version != moment.schema_version {
            return Err(Error::SchemaChanged { region: self.id, version: version.schema().version });
        }
        if moment.sequence > visible {
            let (replica, sequence) = (self.spec.replica, moment.sequence);
            let what = format!("replica {replica} of region {} has not applied {sequence} yet", self.id);
            return Err(Error::Busy { what });
        }
        if moment.sequence < version.readable() {
            return Err(Error::TooOld { region: self.id, oldest: version.readable() });
        }
        let columns = version.schema().columns().iter().map(|column| column.name.clone()).collect();
        let scan = Scan { columns, upto: moment.sequence, ..Scan::default() };
        let mut merge = version.scan(&scan, ROWS)?;
        let mut checksum = Checksum { replica: self.spec.replica, moment, rows: 0, checksum: Hash::default().0 };
        let mut hash = Hash::default();
        while let Some(rows) = merge.next().await? {
            for row in 0..rows.batch.num_rows() {
                for cells in rows.batch.columns() {
                    hash.add(&Value::of_cell(cells, row));
                }
            }
            checksum.rows += rows.batch.num_rows() as u64;
        }
        checksum.checksum = hash.0;
        Ok(checksum)
    }
}

/// 64-bit FNV-1a of cells: each says how long it is, so no two rows run into each other.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn add(&mut self, cell: &Value) {
        let bytes = postcard::to_allocvec(cell).expect("a cell has an encoding");
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

//! The words that every other module speaks: ids, positions in a log, values, schemas, keys.
//!
//! Nothing here does I/O, reads a clock or knows of a node; this module depends on no other.

mod alter;
mod batch;
mod column;
mod fill;
mod id;
mod key;
mod options;
mod predicate;
mod value;

pub use alter::{AlterError, Alteration, Place, widens};
pub use batch::{ColumnarError, decode_batch, encode_batch};
pub use column::{
    Column, ColumnDefault, ColumnId, ColumnType, IndexDef, Schema, SchemaError, TimeUnit, index_column, key_column,
};
pub use fill::{FillPosition, LegId, Source};
pub use id::{
    Incarnation, IndexId, LogId, NodeId, Op, ProcedureId, RegionId, ReplicaId, RequestId, Sequence, SessionId, TableId,
    Timestamp, Vote,
};
pub use key::{Key, KeyError, Position, decode_key, encode_key, encode_keys};
pub use options::{MergeMode, OptionError, TableOptions};
pub use predicate::{Condition, Predicate};
pub use value::Value;

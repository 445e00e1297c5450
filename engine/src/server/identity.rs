//! Who a store is: written once when the store is made, read at every start.
//!
//! A store that lost its identity must not vote: an empty disk under a known name would make promises that contradict
//! those it forgot. So a store is made explicitly ([`Identity::create`]), and a node without one stops.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, read_whole, write_atomically};
use crate::error::{Error, Result};
use crate::types::{Incarnation, NodeId, ReplicaId};

const IDENTITY: &str = "identity";
const INCARNATION: &str = "incarnation";
const DROPPED: &str = "dropped";

/// What a store knows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The node that it is the store of.
    pub node: NodeId,
    /// The replicas of the meta group and their nodes, as the cluster was set up.
    pub meta: BTreeMap<ReplicaId, NodeId>,
}

impl Identity {
    /// Makes an empty disk the store of `node`. Refuses a disk that is a store already.
    pub async fn create(disk: &dyn Disk, node: NodeId, meta: &BTreeMap<ReplicaId, NodeId>) -> Result<Identity> {
        let taken = disk.list("").await.map_err(|err| Error::io(&err, "list the store"))?;
        // A temporary file is what a crash left of an earlier attempt.
        if let Some(name) = taken.iter().find(|name| !name.ends_with(".tmp")) {
            let message = format!("the store is not empty (it holds {name:?}); a store is made once, on an empty disk");
            return Err(Error::invalid(crate::error::Invalid::Mismatch, message));
        }
        let identity = Identity { node, meta: meta.clone() };
        store(disk, IDENTITY, &identity).await?;
        Ok(identity)
    }

    /// The identity of the store. An error if the disk is no store, or another node's.
    pub async fn load(disk: &dyn Disk, node: NodeId) -> Result<Identity> {
        let identity: Identity = load(disk, IDENTITY).await?.ok_or_else(|| Error::Damaged {
            file: IDENTITY.into(),
            message: "it is missing: this disk is no store, or its content was lost; a lost store is replaced, not \
                      started again under its old name"
                .into(),
        })?;
        if identity.node != node {
            let message = format!("this is the store of node {}, not of {node}", identity.node);
            return Err(Error::Damaged { file: IDENTITY.into(), message });
        }
        Ok(identity)
    }

    /// This node's replica of the meta group; none if it has none.
    pub fn meta_replica(&self) -> Option<ReplicaId> {
        self.meta.iter().find(|(_, node)| **node == self.node).map(|(replica, _)| *replica)
    }
}

/// Counts a start of the process, durably.
pub async fn next_incarnation(disk: &dyn Disk) -> Result<Incarnation> {
    let last: Option<Incarnation> = load(disk, INCARNATION).await?;
    let next = Incarnation(last.unwrap_or_default().0 + 1);
    store(disk, INCARNATION, &next).await?;
    Ok(next)
}

/// Replicas that were dropped from this store. A request to make one of them comes too late and is refused.
pub async fn load_dropped(disk: &dyn Disk) -> Result<BTreeSet<ReplicaId>> {
    Ok(load(disk, DROPPED).await?.unwrap_or_default())
}

/// Remembers the dropped replicas, durably.
pub async fn store_dropped(disk: &dyn Disk, dropped: &BTreeSet<ReplicaId>) -> Result<()> {
    store(disk, DROPPED, dropped).await
}

/// Writes a small value with its checksum, atomically.
pub(super) async fn store<T: Serialize>(disk: &dyn Disk, path: &str, value: &T) -> Result<()> {
    let mut bytes = postcard::to_allocvec(value).expect("plain data has an encoding");
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    write_atomically(disk, path, bytes.into()).await.map_err(|err| Error::io(&err, format!("write {path}")))
}

/// Reads what [`store`] wrote. None: there is no such file.
pub(super) async fn load<T: DeserializeOwned>(disk: &dyn Disk, path: &str) -> Result<Option<T>> {
    let bytes = match read_whole(disk, path).await {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(Error::io(&err, format!("read {path}"))),
    };
    let damaged = |message: &str| Error::Damaged { file: path.into(), message: message.into() };
    let (content, checksum) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged("shorter than its checksum"))?;
    if crc32fast::hash(content) != u32::from_le_bytes(*checksum) {
        return Err(damaged("its checksum is wrong"));
    }
    postcard::from_bytes(content).map(Some).map_err(|_| damaged("its content is of another kind"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::MemoryDisk;

    fn members() -> BTreeMap<ReplicaId, NodeId> {
        [(ReplicaId(1), NodeId(1)), (ReplicaId(2), NodeId(2))].into()
    }

    #[tokio::test]
    async fn a_store_is_made_once_and_known_again() {
        let disk = MemoryDisk::default();
        let err = Identity::load(&disk, NodeId(2)).await.unwrap_err();
        assert_eq!(err.code(), "damaged");
        let identity = Identity::create(&disk, NodeId(2), &members()).await.unwrap();
        assert_eq!(identity.meta_replica(), Some(ReplicaId(2)));
        disk.lose_power();
        assert_eq!(Identity::load(&disk, NodeId(2)).await.unwrap(), identity);
        assert_eq!(Identity::load(&disk, NodeId(1)).await.unwrap_err().code(), "damaged");
        assert_eq!(Identity::create(&disk, NodeId(2), &members()).await.unwrap_err().code(), "mismatch");
    }

    #[tokio::test]
    async fn incarnations_never_repeat() {
        let disk = MemoryDisk::default();
        assert_eq!(next_incarnation(&disk).await.unwrap(), Incarnation(1));
        disk.lose_power();
        assert_eq!(next_incarnation(&disk).await.unwrap(), Incarnation(2));
        disk.damage(INCARNATION, |bytes| bytes[0] ^= 1);
        assert_eq!(next_incarnation(&disk).await.unwrap_err().code(), "damaged");
    }
}

//! The meta group's state on one replica: entries are applied to it, and who waits for a change is woken.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::command::Entry;
use super::state::MetaState;
use crate::error::Result;

/// What one replica of the meta group has applied.
#[derive(Debug)]
pub struct Machine {
    state: Mutex<MetaState>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

impl Default for Machine {
    fn default() -> Self {
        Machine::new()
    }
}

impl Machine {
    /// Before the first entry.
    pub fn new() -> Machine {
        Machine { state: Mutex::new(MetaState::new()), changes: watch::Sender::new(0) }
    }

    /// Applies a committed [`Entry`] and returns its encoded [`Outcome`](super::Outcome), the same on every replica.
    ///
    /// An error (`Damaged`): the entry cannot be read. Nothing was applied, and nothing may be applied after it.
    pub fn apply(&self, entry: &[u8]) -> Result<Bytes> {
        let entry = Entry::decode(entry)?;
        let outcome = self.state().apply_entry(entry);
        self.changes.send_modify(|count| *count += 1);
        Ok(outcome.encode())
    }

    /// What `look` sees of the state as applied here, which is behind the leader's on other replicas.
    pub fn read<T>(&self, look: impl FnOnce(&MetaState) -> T) -> T {
        look(&self.state())
    }

    /// Hears of every change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The whole state, for [`Machine::restore`] on another replica or after a restart.
    pub fn snapshot(&self) -> Bytes {
        self.state().encode()
    }

    /// Replaces the state. An error (`Damaged`): it cannot be read, the state is as it was.
    pub fn restore(&self, snapshot: &[u8]) -> Result<()> {
        let state = MetaState::decode(snapshot)?;
        *self.state() = state;
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Equal for equal states, on every replica: 64-bit FNV-1a of the snapshot.
    pub fn digest(&self) -> u64 {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        self.snapshot().iter().fold(0xcbf2_9ce4_8422_2325, step)
    }

    fn state(&self) -> MutexGuard<'_, MetaState> {
        // A panic in `apply` ends the replica; a reader meanwhile sees whatever was there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Command;
    use crate::meta::tests::{bootstrap, create};
    use crate::types::Timestamp;

    #[test]
    fn a_snapshot_is_the_state_and_damage_leaves_it_alone() {
        let machine = Machine::new();
        let empty = machine.digest();
        let heard = machine.changes();
        for command in [bootstrap(3), Command::OpenSession, create("flights", 4, (1, 1))] {
            machine.apply(&command.at(Timestamp(7)).encode()).unwrap();
        }
        assert_ne!(machine.digest(), empty);
        assert_eq!(*heard.borrow(), 3, "who waits is not woken");

        let other = Machine::new();
        let mut changes = other.changes();
        let snapshot = machine.snapshot();
        assert_eq!(other.restore(&snapshot[..snapshot.len() - 1]).unwrap_err().code(), "damaged");
        assert_eq!(other.apply(b"no entry").unwrap_err().code(), "damaged");
        assert_eq!((other.digest(), changes.has_changed().unwrap()), (empty, false));
        other.restore(&snapshot).unwrap();
        assert_eq!(other.digest(), machine.digest());
        assert!(changes.borrow_and_update().gt(&0));
    }
}

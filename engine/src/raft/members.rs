//! How one replica takes the place of another one, as a pure function of where the membership stands.
//!
//! ```text
//! Outside --add--> Learner --(caught up) switch--> Joint --finish--> Switched
//!    ^---remove-------/
//! ```
//!
//! One change at a time: each is made of the membership that was looked at, and refused if another one came between. While it
//! is joint, a decision needs a majority of both sets, so no moment lets the two of them decide apart. A replica gets a vote
//! only when its log reaches (nearly) as far as the leader's: otherwise the loss of one more voter would stop the group until
//! it has caught up.

use std::collections::BTreeSet;

use super::types::Membership;
use crate::server::message::Replacement;
use crate::types::{LogId, ReplicaId};

/// Where a group stands on the way of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Who joins is not known yet.
    Outside,
    /// It gets the log and has no vote.
    Learner,
    /// Both have a vote.
    Joint,
    /// It has the vote, the other one has left.
    Switched,
    /// The voters are others than those that the replacement is meant of: it is late.
    Elsewhere,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is so.
    Done,
    /// Add the learner, and remove these, which nobody waits for any more.
    Add { strays: BTreeSet<ReplicaId> },
    /// Make these the voters.
    Vote { voters: BTreeSet<ReplicaId> },
    /// Remove the learner.
    Remove,
    /// Not yet: it is behind.
    Behind,
    /// It cannot be done of this membership.
    Refused,
    /// There is no way back: it has a vote.
    Votes,
}

/// Where `membership` stands.
pub fn place(membership: &Membership, change: &Replacement) -> Place {
    let (old, new) = sets(change);
    match membership.voters.as_slice() {
        [one] if *one == new => Place::Switched,
        [one] if *one == old && membership.replicas.contains_key(&change.joins.0) => Place::Learner,
        [one] if *one == old => Place::Outside,
        [one, other] if *one == old && *other == new => Place::Joint,
        _ => Place::Elsewhere,
    }
}

/// What makes the one that joins a learner.
pub fn to_learner(membership: &Membership, change: &Replacement) -> Step {
    match place(membership, change) {
        Place::Outside => {
            let (old, _) = sets(change);
            let strays: BTreeSet<ReplicaId> =
                membership.replicas.keys().filter(|id| !old.contains(id)).copied().collect();
            // Ids only grow: where a later one is, this is a late copy of a change that was given up.
            match strays.last() > Some(&change.joins.0) {
                true => Step::Refused,
                false => Step::Add { strays },
            }
        }
        Place::Learner | Place::Joint | Place::Switched => Step::Done,
        Place::Elsewhere => Step::Refused,
    }
}

/// What makes it a voter in the place of the one that leaves. `is_close`: whether its log reaches as far as the leader's.
pub fn to_voter(membership: &Membership, change: &Replacement, is_close: bool) -> Step {
    match place(membership, change) {
        Place::Learner if !is_close => Step::Behind,
        Place::Learner | Place::Joint => Step::Vote { voters: sets(change).1 },
        Place::Switched => Step::Done,
        Place::Outside | Place::Elsewhere => Step::Refused,
    }
}

/// What makes it no member. Its id is no other change's, so it may go whoever the others are by now, unless it votes.
pub fn to_nothing(membership: &Membership, change: &Replacement) -> Step {
    let joins = change.joins.0;
    match place(membership, change) {
        Place::Joint | Place::Switched => Step::Votes,
        Place::Elsewhere if membership.voters.iter().any(|set| set.contains(&joins)) => Step::Refused,
        _ if membership.replicas.contains_key(&joins) => Step::Remove,
        _ => Step::Done,
    }
}

/// Whether a log that the leader knows to agree with its own up to `matched` is close behind its end: one message is enough.
pub fn is_close(matched: Option<LogId>, last: Option<u64>, added: Option<LogId>, batch: u64) -> bool {
    let (Some(matched), Some(last)) = (matched, last) else { return false };
    // Who has not even what made it a learner has nothing at all, or what is left of something else.
    Some(matched) >= added && last.saturating_sub(matched.index) <= batch
}

/// The voters before and after.
fn sets(change: &Replacement) -> (BTreeSet<ReplicaId>, BTreeSet<ReplicaId>) {
    let (mut old, mut new) = (change.stay.clone(), change.stay.clone());
    old.insert(change.leaves.0);
    new.insert(change.joins.0);
    (old, new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn ids<const N: usize>(ids: [u64; N]) -> BTreeSet<ReplicaId> {
        ids.map(ReplicaId).into()
    }

    fn membership(voters: &[BTreeSet<ReplicaId>], replicas: BTreeSet<ReplicaId>) -> Membership {
        let log_id = Some(LogId { term: 2, index: 9 });
        let replicas = replicas.into_iter().map(|id| (id, NodeId(id.0))).collect();
        Membership { log_id, voters: voters.to_vec(), replicas }
    }

    /// 3 leaves, 7 joins.
    fn change() -> Replacement {
        let (leaves, joins) = ((ReplicaId(3), NodeId(3)), (ReplicaId(7), NodeId(4)));
        Replacement { leaves, joins, stay: ids([1, 2]) }
    }

    #[test]
    fn each_step_is_made_of_the_membership_that_it_is_meant_of_and_of_no_other() {
        let (old, new) = (ids([1, 2, 3]), ids([1, 2, 7]));
        let vote = || Step::Vote { voters: ids([1, 2, 7]) };
        let add = |strays| Step::Add { strays };
        let cases = [
            (membership(std::slice::from_ref(&old), ids([1, 2, 3])), add(ids([])), Step::Refused, Step::Done),
            // What was given up long ago, and added again by a late request.
            (membership(std::slice::from_ref(&old), ids([1, 2, 3, 6])), add(ids([6])), Step::Refused, Step::Done),
            (membership(std::slice::from_ref(&old), ids([1, 2, 3, 7])), Step::Done, vote(), Step::Remove),
            (membership(&[old.clone(), new.clone()], ids([1, 2, 3, 7])), Step::Done, vote(), Step::Votes),
            (membership(std::slice::from_ref(&new), ids([1, 2, 7])), Step::Done, Step::Done, Step::Votes),
            // Others: changed meanwhile, changing to something else, not formed.
            (membership(&[ids([1, 2, 9])], ids([1, 2, 9])), Step::Refused, Step::Refused, Step::Done),
            (membership(&[ids([1, 2, 9])], ids([1, 2, 9, 7])), Step::Refused, Step::Refused, Step::Remove),
            (membership(&[ids([1, 7, 9])], ids([1, 7, 9])), Step::Refused, Step::Refused, Step::Refused),
            (membership(&[old, ids([1, 3, 9])], ids([1, 2, 3, 9])), Step::Refused, Step::Refused, Step::Done),
            (membership(&[], ids([])), Step::Refused, Step::Refused, Step::Done),
        ];
        for (membership, learner, voter, nothing) in cases {
            assert_eq!(to_learner(&membership, &change()), learner, "{membership:?}");
            assert_eq!(to_voter(&membership, &change(), true), voter, "{membership:?}");
            assert_eq!(to_nothing(&membership, &change()), nothing, "{membership:?}");
        }
    }

    #[test]
    fn who_is_behind_gets_no_vote_and_who_has_begun_to_vote_is_not_held_up() {
        let (old, new) = (ids([1, 2, 3]), ids([1, 2, 7]));
        let learner = membership(std::slice::from_ref(&old), ids([1, 2, 3, 7]));
        assert_eq!(to_voter(&learner, &change(), false), Step::Behind);
        let joint = membership(&[old, new], ids([1, 2, 3, 7]));
        assert_eq!(to_voter(&joint, &change(), false), Step::Vote { voters: ids([1, 2, 7]) });

        let at = |index| Some(LogId { term: 2, index });
        assert!(is_close(at(90), Some(100), at(9), 10));
        assert!(!is_close(at(89), Some(100), at(9), 10), "it is behind");
        assert!(!is_close(at(8), Some(10), at(9), 10), "it has not even what made it a learner");
        assert!(!is_close(None, Some(3), at(2), 10), "nobody knows what it has");
        assert!(!is_close(at(3), None, at(2), 10));
    }
}

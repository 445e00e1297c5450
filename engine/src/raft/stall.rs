//! A leader whose log does not get on hands over.
//!
//! openraft commits what a majority of the others has made durable, and heartbeats need no log. So a leader whose disk hangs
//! would lead on for as long as it hangs: what it appends piles up in its memory, it can write no file, and the next thing that
//! its raft instance does wait for (a vote, a purge) stops it in the middle of whatever it leads. As a follower it does no harm:
//! it gets the next entries when it has answered for those before.
//!
//! [`Stall`] notices, from the appends themselves: no timer runs while nothing is appended. [`heir`] chooses.
//! [`Group::hand_over_when_stalled`](super::Group::hand_over_when_stalled) acts.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::types::{LogId, ReplicaId};

/// How many appends of a replica are late: not durable although they were made an election timeout ago.
pub struct Stall {
    patience: Duration,
    late: watch::Sender<u64>,
}

impl Stall {
    pub fn new(patience: Duration) -> Stall {
        Stall { patience, late: watch::Sender::new(0) }
    }

    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// What `append` gives; until then, once it took too long, it counts as late.
    pub async fn follow<T>(&self, append: impl Future<Output = T>) -> T {
        let mut append = pin!(append);
        tokio::select! {
            biased;
            done = &mut append => return done,
            () = sleep(self.patience) => {}
        }
        self.late.send_modify(|late| *late += 1);
        let done = append.await;
        self.late.send_modify(|late| *late -= 1);
        done
    }

    /// Waits until some are late, and says how many.
    pub async fn noticed(&self) -> u64 {
        let mut late = self.late.subscribe();
        *late.wait_for(|late| *late > 0).await.expect("the sender lives as long as this")
    }
}

/// A voter, as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    pub replica: ReplicaId,
    /// The last entry that it has as the leader has it.
    pub matched: Option<LogId>,
    /// How long it has not answered; none: never yet.
    pub silent: Option<Duration>,
}

/// Who should lead instead: of those that are there the one that has most, so that it is ready first. None: nobody could.
pub fn heir(followers: &[Follower], patience: Duration) -> Option<ReplicaId> {
    let there = followers.iter().filter(|follower| follower.silent.is_some_and(|silent| silent < patience));
    // Of equals the first.
    there.rev().max_by_key(|follower| follower.matched).map(|follower| follower.replica)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn an_append_is_late_from_the_timeout_until_it_is_durable() {
        let stall = Arc::new(Stall::new(Duration::from_millis(1_000)));
        let append = |stall: Arc<Stall>| {
            let (durable, waiting) = oneshot::channel::<()>();
            (durable, tokio::spawn(async move { stall.follow(waiting).await }))
        };
        let soon = |millis| timeout(Duration::from_millis(millis), stall.noticed());
        let (durable, done) = append(stall.clone());
        assert!(soon(900).await.is_err(), "it is not late yet");
        durable.send(()).unwrap();
        done.await.unwrap().unwrap();
        assert!(soon(5_000).await.is_err(), "it never was");

        let (first, one) = append(stall.clone());
        let (second, two) = append(stall.clone());
        sleep(Duration::from_millis(1_100)).await;
        assert_eq!(soon(0).await, Ok(2));
        first.send(()).unwrap();
        one.await.unwrap().unwrap();
        assert_eq!(soon(0).await, Ok(1));
        second.send(()).unwrap();
        two.await.unwrap().unwrap();
        assert!(soon(5_000).await.is_err(), "the log gets on again");
    }

    #[test]
    fn the_heir_is_there_and_has_most() {
        let follower = |replica, matched: Option<u64>, silent: Option<u64>| Follower {
            replica: ReplicaId(replica),
            matched: matched.map(|index| LogId { term: 1, index }),
            silent: silent.map(Duration::from_millis),
        };
        let chosen = |followers: &[Follower]| heir(followers, Duration::from_millis(1_000)).map(|replica| replica.0);
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[follower(1, Some(9), Some(10)), follower(2, Some(7), Some(10))]), Some(1));
        assert_eq!(
            chosen(&[follower(1, Some(9), Some(1_000)), follower(2, Some(7), Some(10))]),
            Some(2),
            "1 is silent"
        );
        assert_eq!(chosen(&[follower(1, Some(9), None), follower(2, None, Some(10))]), Some(2), "1 was never heard of");
        assert_eq!(chosen(&[follower(1, Some(9), None), follower(2, Some(7), Some(2_000))]), None);
        assert_eq!(chosen(&[follower(1, Some(9), Some(10)), follower(2, Some(9), Some(20))]), Some(1));
    }
}

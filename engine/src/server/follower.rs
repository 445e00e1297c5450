//! Reads of a replica that does not lead, for clients that are content with what was committed a while ago.
//!
//! It asks the leader what is committed, notes by its own timers *when it asked*, and waits until it has applied that. For as
//! long as the bound of a read allows it answers from what it has without asking again. So an answer has all writes that were
//! answered before the read began, less the bound: whatever is delayed on the way makes what it knows older, and never younger
//! than it is; clocks of others play no part. (Appends would tell a commit index too. But one that was under way for long tells
//! an old one, and one of a leader that was deposed and does not know it tells nothing of what the new leader commits.)
//!
//! A replica that is cut off answers until the bound is over, and is busy from then on: the frontend asks another one.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::message::{Request, Response};
use super::router::Router;
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::raft::Group;
use crate::types::LogId;

/// What a replica knows of what is committed.
#[derive(Default)]
pub(super) struct Follower {
    heard: Mutex<Option<Heard>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    /// When it asked.
    asked: Instant,
    /// Everything up to here was committed, and nothing behind it was answered, before it asked.
    committed: LogId,
}

impl Follower {
    /// Waits until the replica has applied everything that was answered `bound` ago; for the answer of the leader and for the
    /// entries half of `within` each at most.
    pub async fn catch_up(
        &self,
        group: &Group,
        router: &Router,
        events: &Events,
        bound: Duration,
        within: Duration,
    ) -> Result<()> {
        let (region, replica) = (group.region(), group.replica());
        let known = *self.heard.lock().expect("no panic holds the lock");
        let age = match known.filter(|heard| is_enough(*heard, Instant::now(), bound, group.standing().applied)) {
            Some(heard) => Ok(heard.asked.elapsed()),
            None => self.ask(group, router, within / 2).await,
        };
        match age {
            Ok(age) => {
                let age_ms = age.as_millis() as u64;
                events.emit(|| Event::FollowerRead { region, replica, age_ms });
                Ok(())
            }
            Err(err) => {
                let reason = err.to_string();
                events.emit(|| Event::FollowerReadRefused { region, replica, reason });
                let what = format!("replica {replica} of region {region} cannot know what is committed ({err})");
                Err(Error::Busy { what })
            }
        }
    }

    /// Hears what is committed, and waits until it is applied. Answers how old that is.
    async fn ask(&self, group: &Group, router: &Router, within: Duration) -> Result<Duration> {
        let region = group.region();
        let Some((_, leader)) = group.standing().leader else { return Err(Error::NotLeader { region, hint: None }) };
        let asked = Instant::now();
        let committed = match router.call(leader, Request::ReadIndex { region }, within).await? {
            Response::ReadIndex(committed) => committed,
            _ => return Err(Error::invalid(crate::error::Invalid::Mismatch, "another answer than to read_index")),
        };
        {
            let mut heard = self.heard.lock().expect("no panic holds the lock");
            // One that asked later may have been answered earlier.
            if heard.is_none_or(|heard| heard.asked < asked) {
                *heard = Some(Heard { asked, committed });
            }
        }
        let late = |_| Error::Deadline { waiting_for: format!("entry {committed} of region {region}") };
        timeout(within, group.applied(committed)).await.map_err(late)??;
        Ok(asked.elapsed())
    }
}

/// Whether a replica that has applied `applied` may answer at `now` by what it heard.
fn is_enough(heard: Heard, now: Instant, bound: Duration, applied: Option<LogId>) -> bool {
    now.saturating_duration_since(heard.asked) <= bound
        && applied.is_some_and(|applied| applied.index >= heard.committed.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_heard_is_enough_for_as_long_as_the_bound_and_once_it_is_applied() {
        let ms = Duration::from_millis;
        let entry = |index| LogId { term: 1, index };
        let heard = Heard { asked: Instant::now(), committed: entry(7) };
        let may = |after, bound, applied| is_enough(heard, heard.asked + ms(after), ms(bound), applied);
        assert!(may(500, 500, Some(entry(7))));
        assert!(may(0, 500, Some(entry(9))));
        assert!(!may(501, 500, Some(entry(7))), "too long ago");
        assert!(!may(10, 500, Some(entry(6))), "not there yet");
        assert!(!may(10, 500, None));
        // An entry of a newer term has a higher index than what was committed before.
        assert!(may(10, 500, Some(LogId { term: 2, index: 8 })));
    }
}

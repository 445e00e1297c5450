//! Reads of a replica that does not lead, for clients that are content with what was committed a while ago.
//!
//! It asks the leader what is committed, notes by its own timers *when it asked*, and waits until it has applied that. For as
//! long as the bound of a read allows it answers from what it has without asking again. So an answer has all writes that were
//! answered before the read began, less the bound: whatever is delayed on the way makes what it knows older, and never younger
//! than it is; clocks of others play no part.
//!
//! Timers stand still while a host is suspended, and so would the age of what it knows. Its wall clock is set anew when the host
//! goes on, so what it heard is as old as the one or the other says, whichever is more. A wall clock that is wrong, or jumps,
//! makes it ask once more, and never answer by what is older than its timers allow. (A clock that counts suspension, as
//! CLOCK_BOOTTIME does, would know of a host that sleeps, but not of a virtual machine that its hypervisor stops.) What stays:
//! until the wall clock of a machine that was stopped from outside is corrected, nothing there tells of the time. (Appends would tell a commit index too. But one that was under way for long tells
//! an old one, and one of a leader that was deposed and does not know it tells nothing of what the new leader commits.)
//!
//! A replica that is cut off answers until the bound is over, and is busy from then on: the frontend asks another one.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::message::{Request, Response};
use super::router::Router;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::raft::Group;
use crate::types::{LogId, Timestamp};

/// What a replica knows of what is committed.
#[derive(Default)]
pub(super) struct Follower {
    heard: Mutex<Option<Heard>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    /// When it asked.
    asked: Moment,
    /// Everything up to here was committed, and nothing behind it was answered, before it asked.
    committed: LogId,
}

/// By the timers and by the wall clock of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    timer: Instant,
    wall: Timestamp,
}

impl Moment {
    fn now(clock: &dyn Clock) -> Moment {
        Moment { timer: Instant::now(), wall: clock.now() }
    }

    /// How long ago it was at `now`, at least.
    fn age(self, now: Moment) -> Duration {
        let wall = now.wall.0.saturating_sub(self.wall.0).try_into().unwrap_or(0);
        now.timer.saturating_duration_since(self.timer).max(Duration::from_millis(wall))
    }
}

impl Follower {
    /// Waits until the replica has applied everything that was answered `bound` ago; for the answer of the leader and for the
    /// entries half of `within` each at most.
    pub async fn catch_up(
        &self,
        group: &Group,
        router: &Router,
        clock: &dyn Clock,
        events: &Events,
        bound: Duration,
        within: Duration,
    ) -> Result<()> {
        let (region, replica) = (group.region(), group.replica());
        let known = *self.heard.lock().expect("no panic holds the lock");
        let now = Moment::now(clock);
        let age = match known.filter(|heard| is_enough(*heard, now, bound, group.standing().applied)) {
            Some(heard) => Ok(heard.asked.age(now)),
            None => self.ask(group, router, clock, within / 2).await,
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
    async fn ask(&self, group: &Group, router: &Router, clock: &dyn Clock, within: Duration) -> Result<Duration> {
        let region = group.region();
        let Some((_, leader)) = group.standing().leader else { return Err(Error::NotLeader { region, hint: None }) };
        let asked = Moment::now(clock);
        let committed = match router.call(leader, Request::ReadIndex { region }, within).await? {
            Response::ReadIndex(committed) => committed,
            _ => return Err(Error::invalid(crate::error::Invalid::Mismatch, "another answer than to read_index")),
        };
        {
            let mut heard = self.heard.lock().expect("no panic holds the lock");
            // One that asked later may have been answered earlier.
            if heard.is_none_or(|heard| heard.asked.timer < asked.timer) {
                *heard = Some(Heard { asked, committed });
            }
        }
        let late = |_| Error::Deadline { waiting_for: format!("entry {committed} of region {region}") };
        timeout(within, group.applied(committed)).await.map_err(late)??;
        Ok(asked.age(Moment::now(clock)))
    }
}

/// Whether a replica that has applied `applied` may answer at `now` by what it heard.
fn is_enough(heard: Heard, now: Moment, bound: Duration, applied: Option<LogId>) -> bool {
    heard.asked.age(now) <= bound && applied.is_some_and(|applied| applied.index >= heard.committed.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_heard_is_enough_for_as_long_as_the_bound_and_once_it_is_applied() {
        let ms = Duration::from_millis;
        let entry = |index| LogId { term: 1, index };
        let asked = Moment { timer: Instant::now(), wall: Timestamp(50_000) };
        let heard = Heard { asked, committed: entry(7) };
        let at = |timer, wall| Moment { timer: asked.timer + ms(timer), wall: Timestamp(50_000 + wall) };
        let may = |after: u64, bound, applied| is_enough(heard, at(after, after as i64), ms(bound), applied);
        assert!(may(500, 500, Some(entry(7))));
        assert!(may(0, 500, Some(entry(9))));
        assert!(!may(501, 500, Some(entry(7))), "too long ago");
        assert!(!may(10, 500, Some(entry(6))), "not there yet");
        assert!(!may(10, 500, None));
        // The host slept, or its clock was put forward: it cannot know. A clock that was put back says nothing.
        assert!(!is_enough(heard, at(10, 501), ms(500), Some(entry(7))), "it slept");
        assert!(is_enough(heard, at(500, -90_000), ms(500), Some(entry(7))));
        assert!(!is_enough(heard, at(501, -90_000), ms(500), Some(entry(7))));
        // An entry of a newer term has a higher index than what was committed before.
        assert!(may(10, 500, Some(LogId { term: 2, index: 8 })));
    }
}

//! When a statement gives up.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::options::Pauses;

/// The moment at which nobody waits for a statement any more. Goes by timers, not by the wall clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// `within` from now; what is beyond the range of timers is far away.
    pub fn after(within: Duration) -> Deadline {
        const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
        Deadline(Instant::now() + within.min(FAR))
    }

    /// The time that is left.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether no time is left.
    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// Waits for the next pause if it ends before the deadline. False, at once: it does not.
    pub async fn pause(self, pauses: &mut Pauses) -> bool {
        let pause = pauses.next_pause();
        let fits = pause < self.left();
        if fits {
            sleep(pause).await;
        }
        fits
    }

    /// Waits for the next pause, but not beyond the deadline.
    pub async fn pause_at_most(self, pauses: &mut Pauses) {
        sleep(pauses.next_pause().min(self.left())).await;
    }
}

//! Cases are handed to threads, each thread has one worker at a time. Nothing is kept but what is under way.

use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

/// Runs `work` on each case on `jobs` threads; `done` hears the results on the caller's thread, in the order in which
/// they come. `work` may return nothing, for a case that was given up.
pub fn each<C: Send, R: Send>(
    jobs: usize,
    cases: impl Iterator<Item = C> + Send,
    work: impl Fn(C) -> R + Sync,
    mut done: impl FnMut(R),
) {
    let cases = Mutex::new(cases);
    std::thread::scope(|scope| {
        // Bounded: a slow reader slows the workers and not the machine.
        let (sender, results) = sync_channel(jobs.max(1) * 2);
        for _ in 0..jobs.max(1) {
            let (sender, cases, work) = (sender.clone(), &cases, &work);
            scope.spawn(move || {
                loop {
                    let case = cases.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(case) = case else { return };
                    if sender.send(work(case)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        results.into_iter().for_each(&mut done);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn each_case_is_worked_on_once_and_never_more_than_jobs_at_a_time() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut seen = Vec::new();
        let work = |case: u64| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(1));
            now.fetch_sub(1, Ordering::SeqCst);
            case
        };
        super::each(3, 0..100, work, |case| seen.push(case));
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert!((2..=3).contains(&most.load(Ordering::SeqCst)));
    }
}

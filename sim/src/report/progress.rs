//! How far a sweep is: a bar on a terminal, else a plain line now and then. Always on the standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Plain lines are so far apart.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// The progress of a sweep.
pub struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    last: Instant,
    total: Option<u64>,
}

impl Progress {
    /// Of `total` seeds, if that is known; silent if `quiet`.
    pub fn new(total: Option<u64>, quiet: bool) -> Progress {
        let now = Instant::now();
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = match total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::no_length(),
            };
            // No thread draws it: it moves when a seed ends.
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
            let template = "{bar:24} {human_pos}/{human_len} seeds  {per_sec}  {eta} left  {msg}";
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, started: now, last: now, total: if quiet { Some(0) } else { total } }
    }

    /// `done` seeds are over, `failed` of them not well.
    pub fn tick(&mut self, done: u64, failed: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(if failed > 0 { format!("{failed} failed") } else { String::new() });
            return;
        }
        if self.total == Some(0) || self.last.elapsed() < PLAIN_EVERY {
            return;
        }
        self.last = Instant::now();
        let elapsed = self.started.elapsed().as_secs_f64();
        let rate = done as f64 / elapsed.max(0.001);
        let (total, left) = match self.total {
            Some(total) => {
                (format!(" of {total}"), format!(", {:.0} s left", (total - done.min(total)) as f64 / rate.max(0.001)))
            }
            None => (String::new(), String::new()),
        };
        let _ = writeln!(std::io::stderr(), "{done}{total} seeds, {rate:.1}/s{left}, {failed} failed");
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

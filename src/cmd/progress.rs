//! Progress on stderr: a bar with bytes and ETA on a terminal, plain lines elsewhere.

use deepfuse_runtime::cli::human_bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Progress of one command.
pub struct Progress {
    terminal: bool,
    quiet: bool,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
    total: u64,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        let now = Instant::now();
        Self { terminal: std::io::stderr().is_terminal(), quiet, bar: None, started: now, last_line: now, total: 0 }
    }

    /// A stage without a known size has begun.
    pub fn stage(&mut self, name: &str) {
        if self.terminal && !self.quiet {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                bar.set_style(
                    ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is valid"),
                );
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            });
            bar.set_message(name.to_owned());
        }
    }

    /// Runs something that prints lines.
    pub fn above(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// `total` bytes will be written.
    pub fn bytes(&mut self, total: u64) {
        self.total = total;
        self.started = Instant::now();
        self.last_line = self.started;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.terminal && !self.quiet {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("pack weights {bar:32} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}");
            bar.set_style(style.expect("the template is valid").progress_chars("=> "));
            self.bar = Some(bar);
        }
    }

    /// `done` bytes are written.
    pub fn advance(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if !self.quiet && self.last_line.elapsed() > Duration::from_secs(2) {
            self.last_line = Instant::now();
            let rate = done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
            let left = (self.total.saturating_sub(done)) as f64 / rate.max(1.0);
            let (done, total) = (human_bytes(done), human_bytes(self.total));
            tell!("pack weights: {done} of {total}, {}/s, {left:.0} s left", human_bytes(rate as u64));
        }
    }

    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

//! A line on standard error that shows how far long work has come.
//!
//! Promised: nothing of it is left when the work has ended, and what the command prints is the same with and without it. Where
//! standard error isn't a terminal, there is nothing of it at any time.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::base::logging;
use crate::base::progress::Step;

/// Interval at which the line is drawn: a check of the audit can take minutes, and the clock goes on.
const INTERVAL: Duration = Duration::from_millis(100);

const WITH_TOTAL: &str = "{spinner} {elapsed} [{bar:24}] {pos}/{len} {wide_msg}";
const WITHOUT_TOTAL: &str = "{spinner} {elapsed} {wide_msg}";

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates are well-formed");
    style.tick_chars("-\\|/ ").progress_chars("=> ")
}

/// The line. Dropping it wipes it away.
pub struct Line(ProgressBar);

impl Line {
    /// Begins to draw, if `is_wanted`.
    pub fn new(is_wanted: bool) -> Self {
        let bar = if is_wanted { ProgressBar::no_length() } else { ProgressBar::hidden() };
        bar.set_style(style(WITHOUT_TOTAL));
        if !bar.is_hidden() {
            logging::note_drawing(true);
            bar.enable_steady_tick(INTERVAL);
        }
        Self(bar)
    }

    /// Shows a step.
    pub fn show(&self, step: Step<'_>) {
        let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let (template, message) = match (step.total, step.done) {
            (Some(_), _) => (WITH_TOTAL, step.what.to_owned()),
            (None, 0) => (WITHOUT_TOTAL, step.what.to_owned()),
            (None, done) => (WITHOUT_TOTAL, format!("{done} {}", step.what)),
        };
        self.0.set_style(style(template));
        self.0.set_length(number(step.total.unwrap_or_default()));
        self.0.set_position(number(step.done));
        self.0.set_message(message);
    }

    /// Writes something else to the terminal.
    pub fn beside(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        logging::note_drawing(false);
    }
}

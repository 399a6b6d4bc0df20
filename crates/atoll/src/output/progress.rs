//! Progress on standard error: a line that changes on a terminal, plain lines elsewhere, nothing when nobody should see any.

use std::{fmt::Write, time::Duration};

use atoll_contract::operation::{OperationView, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::{say, stderr_is_terminal, tables};
use crate::values::{human_age, human_size};

/// Lines of bytes are said at most this often where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// How an operation or a transfer goes.
pub struct Meter {
    form: Form,
}

enum Form {
    Silent,
    Bar(ProgressBar),
    Lines { last: String, next: Instant },
}

impl Meter {
    /// `silent`: with `--json` or `--quiet`.
    pub fn new(silent: bool) -> Self {
        let form = if silent {
            Form::Silent
        } else if stderr_is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            Form::Bar(bar)
        } else {
            Form::Lines { last: String::new(), next: Instant::now() + LINE_INTERVAL }
        };
        Self { form }
    }

    /// Shows where an operation is.
    pub fn operation(&mut self, operation: &OperationView) {
        let text = operation_line(operation);
        match &mut self.form {
            Form::Silent => {}
            Form::Bar(bar) => bar.set_message(text),
            Form::Lines { last, .. } => {
                // the numbers change all the time; a line for each step and phase is what a log wants
                let phase = format!("{} {:?} {}", operation.status.as_str(), operation.step, operation.progress.phase);
                if *last != phase {
                    *last = phase;
                    say(&text);
                }
            }
        }
    }

    /// Shows that `done` bytes of `total` (if it is known) of something are there.
    pub fn bytes(&mut self, what: &str, done: u64, total: Option<u64>) {
        match &mut self.form {
            Form::Silent => {}
            Form::Bar(bar) => {
                if let Some(total) = total {
                    if bar.length() != Some(total) {
                        bar.set_length(total);
                        bar.set_style(bytes_bar());
                    }
                    bar.set_position(done);
                    bar.set_message(what.to_owned());
                } else {
                    bar.set_message(format!("{what}  {}", human_size(done)));
                }
            }
            Form::Lines { next, .. } => {
                if Instant::now() >= *next {
                    *next = Instant::now() + LINE_INTERVAL;
                    let of = total.map(|total| format!(" of {}", human_size(total))).unwrap_or_default();
                    say(&format!("{what}: {}{of}", human_size(done)));
                }
            }
        }
    }

    /// Says a line without breaking the one that changes.
    pub fn say(&self, text: &str) {
        match &self.form {
            Form::Bar(bar) => bar.suspend(|| say(text)),
            Form::Lines { .. } => say(text),
            Form::Silent => {}
        }
    }

    /// As [`say`](Self::say), also when silent: the answer to something that a person did.
    pub fn say_always(&self, text: &str) {
        match &self.form {
            Form::Silent => say(text),
            _ => self.say(text),
        }
    }

    /// Ends a transfer: begins anew for the next one.
    pub fn reset(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.set_style(spinner());
            bar.reset();
            bar.unset_length();
            bar.set_message("");
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bytes_bar() -> ProgressStyle {
    let template = "{msg}  [{bar:24}] {bytes} of {total_bytes}  {bytes_per_sec}  {eta}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// `create thesis: image (3 of 4), pulling debian:12, 12.0M of 48.0M, 3s left`.
fn operation_line(operation: &OperationView) -> String {
    let mut text = format!("{} {}: {}", operation.kind.as_str(), operation.project_name, tables::step(operation.step));
    if let Some(at) = operation.steps.iter().position(|step| *step == operation.step) {
        let _ = write!(text, " ({} of {})", at + 1, operation.steps.len());
    }
    if operation.status == atoll_contract::operation::OperationStatus::Undoing {
        text.push_str(", undoing");
    }
    text.push_str(&progress_words(&operation.progress));
    if let Some(error) = operation.error.as_ref().filter(|_| operation.attempts > 0) {
        let _ = write!(text, ", trying again: {}", error.message);
    }
    crate::errors::plain(&text).replace('\n', " ")
}

fn progress_words(progress: &Progress) -> String {
    let mut text = String::new();
    if !progress.phase.is_empty() {
        let _ = write!(text, ", {}", progress.phase);
    }
    if let Some(done) = progress.bytes_done {
        let _ = write!(text, ", {}", human_size(done));
        if let Some(total) = progress.bytes_total {
            let _ = write!(text, " of {}", human_size(total));
        }
    }
    if let Some(eta) = progress.eta_seconds {
        let _ = write!(text, ", {} left", human_age(Duration::from_secs(eta)));
    }
    text
}

#[cfg(test)]
mod tests {
    use atoll_contract::{
        Timestamp,
        operation::{OperationKind, OperationStatus, Step},
    };

    use super::*;

    #[test]
    fn a_line_says_step_phase_and_bytes() {
        let id = "0198c0de-0000-7000-8000-000000000001";
        let operation = OperationView {
            id: id.parse().unwrap(),
            kind: OperationKind::Create,
            project: id.parse().unwrap(),
            project_name: "thesis".into(),
            account: id.parse().unwrap(),
            host: None,
            status: OperationStatus::Running,
            step: Step::Image,
            steps: vec![Step::Place, Step::Volumes, Step::Image, Step::Run],
            point_of_no_return: Step::Run,
            progress: Progress {
                phase: "pulling debian:12".into(),
                bytes_done: Some(12 << 20),
                bytes_total: Some(48 << 20),
                bytes_per_second: None,
                eta_seconds: Some(3),
            },
            error: None,
            attempts: 0,
            version: 1,
            created_at: Timestamp::from_millis(0),
            updated_at: Timestamp::from_millis(0),
        };
        assert_eq!(operation_line(&operation), "create thesis: image (3 of 4), pulling debian:12, 12.0M of 48.0M, 3s left");
        let error = atoll_contract::Error::new(atoll_contract::ErrorCode::HostUnavailable, "The host is away.");
        let trying = OperationView { error: Some(error), attempts: 2, progress: Progress::default(), ..operation };
        assert_eq!(operation_line(&trying), "create thesis: image (3 of 4), trying again: The host is away.");
    }
}

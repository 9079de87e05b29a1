//! Short tasks are reported some at a time.
//!
//! A report of its own for each task costs a message there, and those that follow from it back: where tasks are short
//! that is more than they take themselves. So while there is more to do here, the scheduler hears of short tasks a
//! little later, of several at once. Those who wait for such a result do not wait for the report: compute threads and
//! peers are given it directly ([`super::forwarding`]), and what a client waits for is told at once.

use super::{forwarding::SMALL, state::State};
use crate::protocol::{Finished, FromWorker};

/// Nanoseconds below which a task is short.
pub(super) const SHORT: u64 = 1_000_000;
/// Nanoseconds that a report waits for others.
const PATIENCE: u64 = 500_000;

impl State {
    /// Reports that a task is done: at once, or with the next ones.
    pub(super) fn report(&mut self, finished: Finished, wanted: bool) {
        let waits = self.config.chains && !wanted && finished.duration < SHORT && finished.nbytes <= SMALL;
        if !waits {
            return self.send(FromWorker::Finished(finished));
        }
        if self.reports.is_empty() {
            self.reports_since = self.now;
        }
        self.reports.push(finished);
    }

    /// Sends what waited long enough, or waits for tasks that are not there.
    pub(super) fn send_due_reports(&mut self) {
        let busy = self.assigned > self.config.nthreads;
        if !busy || self.now.saturating_sub(self.reports_since) >= PATIENCE {
            self.send_reports();
        }
    }

    /// Sends all reports, in order.
    pub(super) fn send_reports(&mut self) {
        let reports = self.reports.drain(..).map(FromWorker::Finished);
        self.out.extend(reports.map(super::Instruction::Send));
    }

    /// Whether there are reports that wait for others: should none come, [`super::Stimulus::Report`] is to.
    pub fn has_reports(&self) -> bool {
        !self.reports.is_empty()
    }
}

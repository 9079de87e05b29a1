//! Short tasks are reported some at a time.
//!
//! A report of its own for each task costs a message there, and those that follow from it back: where tasks are short
//! that is more than they take themselves. So while there is more to do here, the scheduler hears of short tasks a
//! little later, of several at once. Those who wait for such a result do not wait for the report: compute threads and
//! peers are given it directly ([`super::forwarding`]), and what a client waits for is told at once. Where all that need a
//! result follow already, here or at peers, the scheduler has the least to do about it, and hears of it last.
//!
//! Copies that came for a task and stay are reported together as well, unless a user waits for one: mostly several are asked for at
//! the same time, and each would be a message.

use super::{forwarding::SMALL, state::State};
use crate::protocol::{ComputeTask, Finished, FromWorker, TaskId};

/// Nanoseconds below which a task is short.
pub(super) const SHORT: u64 = 1_000_000;
/// Nanoseconds that a report waits for others.
const PATIENCE: u64 = 500_000;
/// The same where all that need the result follow.
const PATIENCE_FOLLOWED: u64 = 2_000_000;
/// Reports that wait for no more: a worker should hear of what is next before all that it was given is done.
const MANY: usize = 512;
/// Nanoseconds after which reports take along what fetches took.
const FETCHES_TOLD: u64 = 20_000_000;

impl State {
    /// Reports that a task is done: at once, or with the next ones.
    pub(super) fn report(&mut self, finished: Finished, wanted: bool, followed: bool) {
        let waits = self.config.chains && !wanted && finished.duration < SHORT && finished.nbytes <= SMALL;
        if !waits {
            return self.send(FromWorker::Finished(finished));
        }
        let due = self.now.saturating_add(if followed { PATIENCE_FOLLOWED } else { PATIENCE });
        self.reports_due = if self.reports.is_empty() { due } else { self.reports_due.min(due) };
        self.reports.push(finished);
    }

    /// Whether all that need a result follow, as far as they are known: tasks here, and peers that it is forwarded to.
    pub(super) fn is_followed(&self, spec: &ComputeTask) -> bool {
        let here = self.tasks.get(&spec.id).map_or(0, |task| task.dependents.len());
        let peers = if self.forwards.is_empty() { None } else { self.forwards.get(&spec.id) };
        here + peers.map_or(0, |peers| peers.len()) >= (spec.dependents as usize).max(1)
    }

    /// Reports that a copy is here: once no others are on their way, or with the next report.
    pub(super) fn report_copy(&mut self, id: TaskId) {
        if self.copies.is_empty() {
            self.copies_due = self.now.saturating_add(PATIENCE);
        }
        self.copies.push(id);
    }

    /// Sends what waited long enough, or waits for tasks or copies that are not to come.
    pub(super) fn send_due_reports(&mut self) {
        let busy = self.assigned > self.config.nthreads;
        let tasks = !busy || self.now >= self.reports_due || self.reports.len() >= MANY;
        let copies = self.asked.is_empty() || self.now >= self.copies_due;
        if tasks && !self.reports.is_empty() || copies && !self.copies.is_empty() {
            self.send_reports();
        }
    }

    /// Sends all reports, in order, and what fetches took lately.
    pub(super) fn send_reports(&mut self) {
        if !self.copies.is_empty() {
            let copies = FromWorker::Added(std::mem::take(&mut self.copies));
            self.out.push(super::Instruction::Send(copies));
        }
        let due = self.now.saturating_sub(self.fetches_told) >= FETCHES_TOLD;
        if due && !self.reports.is_empty() && !self.fetches.is_empty() {
            self.fetches_told = self.now;
            let fetches = FromWorker::Fetched(self.take_fetches());
            self.out.push(super::Instruction::Send(fetches));
        }
        let reports = self.reports.drain(..).map(FromWorker::Finished);
        self.out.extend(reports.map(super::Instruction::Send));
    }

    /// When reports that wait for others are to be sent, should nothing happen until then: [`super::Stimulus::Report`] does so.
    pub fn reports_due(&self) -> Option<u64> {
        let tasks = (!self.reports.is_empty()).then_some(self.reports_due);
        let copies = (!self.copies.is_empty()).then_some(self.copies_due);
        tasks.into_iter().chain(copies).min()
    }
}

//! What is hot of a task.

use super::task::TaskState;
use crate::protocol::WorkerId;

/// What steps of a task's neighbours look at. Of tasks whose places are next to each other two are in a line of a processor's
/// cache, and of a million tasks those that ten thousand workers are at are in a few megabytes: they stay in the caches from
/// one step to the next.
#[repr(C)]
pub(super) struct Hot {
    /// Bytes of the result.
    pub(super) nbytes: u64,
    /// Before it is in memory, the worker that it was assigned to; then the first that holds the result.
    /// [`WorkerId::NOBODY`] where there is none.
    pub(super) at: WorkerId,
    /// Which of those in its place it is; the next one, where that is vacant.
    pub(super) tenant: u32,
    /// Dependencies that are not in memory, while waiting or following others.
    pub(super) waiting_on: u32,
    /// Dependents that are to be computed and need its result.
    pub(super) waiters: u32,
    /// Dependents that are not forgotten.
    pub(super) live_dependents: u32,
    /// How often it was computed anew. It may begin from 0 again: whatever was said of what was computed so many times before,
    /// of the same task, has arrived since.
    age: u16,
    /// [`TaskState::Forgotten`] where the place is vacant.
    pub(super) state: TaskState,
    pub(super) flags: Flags,
}

const _: () = assert!(size_of::<Hot>() == 32);

/// What is true of a task, a bit each.
#[derive(Clone, Copy, Default)]
pub(super) struct Flags(u8);

impl Flags {
    /// It takes its time, as its worker said, or waits for one that does without a word: it counts neither for occupancy
    /// nor for slots.
    pub(super) const LONG_RUNNING: u8 = 1;
    /// Any client wants the result.
    pub(super) const WANTED: u8 = 2;
    /// There is [`Trouble`](super::task::Trouble).
    pub(super) const TROUBLED: u8 = 4;
    /// Several workers hold the result.
    pub(super) const SEVERAL: u8 = 8;
    /// The arguments own memory.
    pub(super) const BULKY: u8 = 16;
    /// It was computed so often that it is not counted how often.
    const AGED: u8 = 32;
    /// Without any of these [`Rest`](super::task::Rest) owns no memory.
    pub(super) const OWNING: u8 = Self::WANTED | Self::TROUBLED | Self::SEVERAL | Self::BULKY;

    /// Whether any of these is true.
    pub(super) fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    pub(super) fn set(&mut self, flag: u8, is: bool) {
        self.0 = if is { self.0 | flag } else { self.0 & !flag };
    }
}

impl Hot {
    /// What is in a vacant place, whose next tenant is the one of that number.
    pub(super) fn vacant(tenant: u32) -> Self {
        Self {
            nbytes: 0,
            at: WorkerId::NOBODY,
            tenant,
            waiting_on: 0,
            waiters: 0,
            live_dependents: 0,
            age: 0,
            state: TaskState::Forgotten,
            flags: Flags::default(),
        }
    }

    /// A task in state released.
    pub(super) fn new(tenant: u32) -> Self {
        Self { state: TaskState::Released, ..Self::vacant(tenant) }
    }

    /// Which of those in its place its present computation is.
    pub(super) fn generation(&self) -> u32 {
        self.tenant.wrapping_add(u32::from(self.age))
    }

    /// What workers say of its present computation from now on is about the past.
    pub(super) fn compute_anew(&mut self) {
        self.age = self.age.wrapping_add(1);
        if self.age == 0 {
            self.flags.set(Flags::AGED, true);
        }
    }

    /// Who comes to its place after it: no computation of one is called as one of the other was.
    pub(super) fn next_tenant(&self) -> u32 {
        let most = if self.flags.has(Flags::AGED) { u16::MAX } else { self.age };
        self.tenant.wrapping_add(u32::from(most) + 1)
    }

    /// Whether somebody needs the result.
    pub(super) fn needed(&self) -> bool {
        self.waiters > 0 || self.is_wanted()
    }

    /// Whether any client wants the result.
    pub(super) fn is_wanted(&self) -> bool {
        self.flags.has(Flags::WANTED)
    }

    /// Whether it counts neither for occupancy nor for slots: it takes its time, as its worker said, or waits for one that does
    /// without a word.
    pub(super) fn is_long_running(&self) -> bool {
        self.flags.has(Flags::LONG_RUNNING)
    }

    pub(super) fn set_long_running(&mut self, is: bool) {
        self.flags.set(Flags::LONG_RUNNING, is);
    }

    /// Whether several workers hold the result.
    pub(super) fn has_copies(&self) -> bool {
        self.flags.has(Flags::SEVERAL)
    }

    /// The worker that it was assigned to, while it is processing.
    pub(super) fn worker(&self) -> Option<WorkerId> {
        (self.state != TaskState::Memory && self.at != WorkerId::NOBODY).then_some(self.at)
    }

    pub(super) fn is_at(&self, worker: WorkerId) -> bool {
        self.at == worker && self.state != TaskState::Memory
    }

    pub(super) fn assign(&mut self, worker: WorkerId) {
        debug_assert_ne!(self.state, TaskState::Memory, "there, this is who holds its result");
        self.at = worker;
    }

    /// It is processing no more; gives the worker that it was assigned to.
    pub(super) fn take_worker(&mut self) -> Option<WorkerId> {
        debug_assert_ne!(self.state, TaskState::Memory, "there, this is who holds its result");
        let worker = self.worker();
        self.at = WorkerId::NOBODY;
        worker
    }

    /// The first that holds the result.
    pub(super) fn first_holder(&self) -> Option<WorkerId> {
        (self.state == TaskState::Memory && self.at != WorkerId::NOBODY).then_some(self.at)
    }

    pub(super) fn follows(&self) -> bool {
        self.worker().is_some() && self.waiting_on > 0 && !self.is_long_running()
    }

    /// Whether it is to be computed or being computed.
    pub(super) fn active(&self) -> bool {
        matches!(
            self.state,
            TaskState::Waiting | TaskState::NoWorker | TaskState::Queued | TaskState::Processing
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_computation_is_called_as_one_of_the_tenant_before_was() {
        for times in [0, 1, 0xffff, 0x1_0000, 200_000] {
            let mut hot = Hot::new(5);
            let mut latest = hot.generation();
            for _ in 0..times {
                let before = hot.generation();
                hot.compute_anew();
                assert_ne!(hot.generation(), before, "nor as the one before it");
                latest = latest.max(hot.generation());
            }
            assert!(hot.next_tenant() > latest);
        }
    }
}

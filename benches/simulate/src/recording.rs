//! All that a scheduler heard in a run, to be heard again by itself: what it costs where nothing else shares the
//! processor's caches, as in a process of its own.

use std::time::Duration;

use rankine::{protocol::WorkerInfo, scheduler::Stimulus};

use crate::Policy;

/// What a scheduler heard, turn by turn.
#[derive(Debug, Default)]
pub struct Recording {
    pub(crate) clients: usize,
    pub(crate) turns: Vec<(u64, Turn)>,
}

#[derive(Debug)]
pub(crate) enum Turn {
    Join(Box<WorkerInfo>),
    Stimuli(Vec<Stimulus>),
}

impl Recording {
    /// Has a new scheduler hear all of it; gives the processor's time that this took, and the number of instructions
    /// that came of it.
    pub fn replay(self, mut policy: impl Policy) -> (Duration, u64) {
        for _ in 0..self.clients {
            policy.add_client();
        }
        let mut instructions = 0;
        let start = processor_time();
        for (now, turn) in self.turns {
            instructions += match turn {
                Turn::Join(info) => policy.add_worker(*info, now).1.len(),
                Turn::Stimuli(stimuli) => policy.handle_many(stimuli, now).len(),
            } as u64;
        }
        (processor_time().saturating_sub(start), instructions)
    }
}

/// Time that the processor gave this thread: what others take of it does not count.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

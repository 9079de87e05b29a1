//! What a task does between its inputs and its output.

use std::{cell::RefCell, fmt, hint::black_box, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, pattern::uniform};

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kernel {
    /// Nothing.
    Empty,
    /// Multiplies and adds 64 numbers that stay in registers and the nearest cache.
    ComputeBound,
    /// Copies half of the scratch memory to the other half.
    MemoryBound,
    /// As `ComputeBound`, for a time that differs from task to task.
    LoadImbalance,
}

/// A kernel, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// What a task does.
    pub kernel: Kernel,
    /// How often.
    pub iterations: u64,
    /// Of `LoadImbalance`: between which shares of the iterations, 1 - imbalance / 2 and 1 + imbalance / 2, tasks are
    /// drawn.
    pub imbalance: f64,
    /// Bytes of memory that each thread has for `MemoryBound`.
    pub scratch: u64,
}

/// Numbers of the compute-bound kernel.
const NUMBERS: usize = 64;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Empty, Self::ComputeBound, Self::MemoryBound, Self::LoadImbalance];

    /// As Task Bench calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::ComputeBound => "compute_bound",
            Self::MemoryBound => "memory_bound",
            Self::LoadImbalance => "load_imbalance",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernel {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kernel| kernel.name() == name).ok_or_else(|| {
            format!("there is no kernel `{name}`; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

impl Work {
    /// Says what is wrong with it, if anything is.
    ///
    /// # Errors
    /// If there is no such work.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Usage(what));
        if self.kernel == Kernel::MemoryBound && self.scratch < 2 {
            return wrong("memory_bound needs memory: say -scratch BYTES, from 2 up".into());
        }
        if !(0.0..=2.0).contains(&self.imbalance) {
            return wrong(format!("-imbalance is from 0 to 2, not {}", self.imbalance));
        }
        Ok(())
    }

    /// Iterations of one task, of all that is to be done the share that falls to it.
    pub fn iterations_of(&self, graph: u64, step: u64, column: u64) -> u64 {
        match self.kernel {
            Kernel::Empty => 0,
            Kernel::LoadImbalance => {
                let share = 1.0 + (uniform(&[graph, step, column]) - 0.5) * self.imbalance;
                (share * self.iterations as f64).round() as u64
            }
            _ => self.iterations,
        }
    }

    /// Does so many iterations.
    pub fn execute(&self, iterations: u64) {
        match self.kernel {
            Kernel::Empty => {}
            Kernel::ComputeBound | Kernel::LoadImbalance => compute(iterations),
            Kernel::MemoryBound => SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(self.scratch as usize, 1);
                copy(scratch, iterations);
            }),
        }
    }

    /// What an iteration comes to, and in which unit.
    pub fn iteration(&self) -> (f64, &'static str) {
        match self.kernel {
            Kernel::Empty => (0.0, "FLOP"),
            Kernel::MemoryBound => ((self.scratch / 2 * 2) as f64, "B"),
            Kernel::ComputeBound | Kernel::LoadImbalance => (2.0 * NUMBERS as f64, "FLOP"),
        }
    }
}

fn compute(iterations: u64) {
    let mut numbers = [1.2345_f64; NUMBERS];
    for _ in 0..iterations {
        for number in &mut numbers {
            *number = *number * *number + *number;
        }
        // Else it would be seen that the numbers are all alike.
        black_box(&mut numbers);
    }
}

fn copy(scratch: &mut [u8], iterations: u64) {
    let half = scratch.len() / 2;
    for iteration in 0..iterations {
        let (low, high) = scratch.split_at_mut(half);
        let high = &mut high[..half];
        if iteration % 2 == 0 {
            high.copy_from_slice(low)
        } else {
            low.copy_from_slice(high)
        }
        black_box(&mut *scratch);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn work(kernel: Kernel, iterations: u64) -> Work {
        Work { kernel, iterations, imbalance: 1.0, scratch: 1 << 20 }
    }

    #[test]
    fn more_iterations_take_longer() {
        for kernel in [Kernel::ComputeBound, Kernel::MemoryBound, Kernel::LoadImbalance] {
            let least = |iterations| {
                let time = |_| {
                    let start = Instant::now();
                    work(kernel, iterations).execute(iterations);
                    start.elapsed()
                };
                (0..5).map(time).min().expect("five times")
            };
            least(10);
            assert!(least(2000) > 10 * least(20), "{kernel}");
        }
    }

    #[test]
    fn imbalance_draws_around_the_mean() {
        let work = work(Kernel::LoadImbalance, 1000);
        let drawn: Vec<u64> = (0..1000).map(|column| work.iterations_of(0, 1, column)).collect();
        assert!(drawn.iter().all(|iterations| (500..=1500).contains(iterations)));
        assert!(drawn.iter().any(|one| *one < 600) && drawn.iter().any(|one| *one > 1400));
        let mean = drawn.iter().sum::<u64>() / 1000;
        assert!((950..=1050).contains(&mean), "{mean}");
        assert_eq!(work.iterations_of(0, 1, 7), drawn[7]);
        assert_ne!(work.iterations_of(1, 1, 7), drawn[7]);
    }

    #[test]
    fn an_empty_kernel_has_no_iterations() {
        assert_eq!(work(Kernel::Empty, 1000).iterations_of(0, 0, 0), 0);
        let without = Work { scratch: 0, ..work(Kernel::MemoryBound, 1) };
        assert!(without.check().is_err());
        assert!(Work { imbalance: 3.0, ..without }.check().is_err());
    }
}

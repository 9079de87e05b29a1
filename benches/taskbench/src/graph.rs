//! A graph, and the task at each of its places.

use std::sync::Arc;

use rankine::serialize::Frame;
use serde::{Deserialize, Serialize};

use crate::{Error, Shape, Work};

/// Bytes by which an output says whose it is: step and column.
const STAMP: usize = 16;

/// All that there is to say of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// Which of the graphs that run at the same time it is.
    pub index: u64,
    /// Its tasks and who needs whom.
    pub shape: Shape,
    /// What each does.
    pub work: Work,
    /// Bytes that each gives.
    pub output: u64,
}

/// A task's place.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The graph.
    pub graph: Graph,
    /// The row.
    pub step: u64,
    /// The column.
    pub column: u64,
}

/// A task was given what its pattern does not ask for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongInput {
    /// Too many inputs or too few.
    #[error("task {step}, {column} needs {needed} inputs and was given {given}")]
    Count {
        /// The task's row.
        step: u64,
        /// The task's column.
        column: u64,
        /// How many its pattern asks for.
        needed: usize,
        /// How many there were.
        given: usize,
    },
    /// An input has another length than outputs have.
    #[error("an output of task {step}, {column} has {found} bytes and not {expected}")]
    Length {
        /// The row of whose output it should be.
        step: u64,
        /// Its column.
        column: u64,
        /// Bytes of an output.
        expected: u64,
        /// Bytes that there were.
        found: u64,
    },
    /// An input is another task's output.
    #[error(
        "what should be the output of task {step}, {column} says at byte {place} that it is of task {found:?}"
    )]
    Stamp {
        /// The row of whose output it should be.
        step: u64,
        /// Its column.
        column: u64,
        /// Where in the output.
        place: usize,
        /// Row and column that it says.
        found: (u64, u64),
    },
}

impl Graph {
    /// Says what is wrong with it, if anything is.
    ///
    /// # Errors
    /// If there is no such graph.
    pub fn check(&self) -> Result<(), Error> {
        self.shape.check()?;
        self.work.check()?;
        if self.output < STAMP as u64 || self.output > u32::MAX.into() {
            return Err(Error::Usage(format!(
                "-output is from {STAMP} bytes up to 4 GiB, since each output says whose it is; not {}",
                self.output
            )));
        }
        Ok(())
    }

    /// Iterations of all its tasks.
    pub fn iterations(&self) -> u64 {
        let of = |step| {
            self.shape.columns(step).map(move |column| self.work.iterations_of(self.index, step, column))
        };
        (0..self.shape.steps).flat_map(of).sum()
    }

    /// The output of a task: whose it is, over and over.
    pub fn output_of(&self, step: u64, column: u64) -> Vec<u8> {
        let mut output = vec![0; self.output as usize];
        let stamp = stamp(step, column);
        output.chunks_exact_mut(STAMP).for_each(|place| place.copy_from_slice(&stamp));
        output
    }

    /// Checks that an output is that of a task.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_output(&self, step: u64, column: u64, output: &[u8]) -> Result<(), WrongInput> {
        if output.len() as u64 != self.output {
            let (expected, found) = (self.output, output.len() as u64);
            return Err(WrongInput::Length { step, column, expected, found });
        }
        let stamp = stamp(step, column);
        match output.chunks_exact(STAMP).position(|place| place != stamp) {
            None => Ok(()),
            Some(place) => {
                let word = |from: usize| {
                    let bytes = &output[place * STAMP + from..][..8];
                    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
                };
                Err(WrongInput::Stamp { step, column, place: place * STAMP, found: (word(0), word(8)) })
            }
        }
    }
}

fn stamp(step: u64, column: u64) -> [u8; STAMP] {
    (u128::from(step) | u128::from(column) << 64).to_le_bytes()
}

/// The task: checks its inputs, works, and gives its output.
///
/// # Errors
/// If the inputs are not those that its pattern asks for.
pub fn point(call: Call, inputs: Vec<Arc<Frame>>) -> Result<Frame, WrongInput> {
    let Call { graph, step, column } = call;
    let needed = graph.shape.inputs(step, column);
    if needed.len() != inputs.len() {
        return Err(WrongInput::Count { step, column, needed: needed.len(), given: inputs.len() });
    }
    for (needed, input) in needed.into_iter().zip(&inputs) {
        graph.check_output(step - 1, needed, &input.0)?;
    }
    graph.work.execute(graph.work.iterations_of(graph.index, step, column));
    Ok(Frame(graph.output_of(step, column).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kernel, Pattern};

    fn graph(output: u64) -> Graph {
        let shape =
            Shape { pattern: Pattern::Stencil1d, steps: 4, width: 4, radix: 3, period: 3, fraction: 0.25 };
        let work = Work { kernel: Kernel::ComputeBound, iterations: 3, imbalance: 0.0, scratch: 0 };
        Graph { index: 0, shape, work, output }
    }

    fn input(graph: &Graph, step: u64, column: u64) -> Arc<Frame> {
        Arc::new(Frame(graph.output_of(step, column).into()))
    }

    #[test]
    fn the_right_inputs_give_the_tasks_own_output() {
        let graph = graph(40);
        let inputs = [1, 2, 3].map(|column| input(&graph, 1, column));
        let output = point(Call { graph, step: 2, column: 2 }, inputs.into()).expect("they are right");
        assert_eq!(graph.check_output(2, 2, &output.0), Ok(()));
        assert_eq!(output.0.len(), 40);
    }

    #[test]
    fn wrong_inputs_are_found() {
        let graph = graph(32);
        let call = Call { graph, step: 2, column: 0 };
        let give = |inputs: Vec<Arc<Frame>>| point(call, inputs).expect_err("they are wrong");
        let [first, second] = [0, 1].map(|column| input(&graph, 1, column));
        assert_eq!(give(vec![first.clone()]), WrongInput::Count { step: 2, column: 0, needed: 2, given: 1 });
        // Another's column, another's row, the wrong order.
        let of = |column, place, found| WrongInput::Stamp { step: 1, column, place, found };
        assert_eq!(give(vec![first.clone(), input(&graph, 1, 2)]), of(1, 0, (1, 2)));
        assert_eq!(give(vec![first.clone(), input(&graph, 0, 1)]), of(1, 0, (0, 1)));
        assert_eq!(give(vec![second.clone(), first.clone()]), of(0, 0, (1, 1)));
        // Damage that does not begin at the beginning.
        let mut damaged = graph.output_of(1, 1);
        damaged[16] = 7;
        assert_eq!(give(vec![first.clone(), Arc::new(Frame(damaged.into()))]), of(1, 16, (7, 1)));
        let short = Arc::new(Frame(vec![0; 31].into()));
        assert_eq!(
            give(vec![first, short]),
            WrongInput::Length { step: 1, column: 1, expected: 32, found: 31 }
        );
    }

    #[test]
    fn iterations_are_those_of_all_tasks() {
        assert_eq!(graph(16).iterations(), 4 * 4 * 3);
        assert!(graph(15).check().is_err());
    }
}

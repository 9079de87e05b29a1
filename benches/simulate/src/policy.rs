//! What decides where tasks run, as the simulation sees it.

use rankine::{
    protocol::{ClientId, WorkerId, WorkerInfo},
    scheduler::{Instruction, State, Stimulus},
};

/// A scheduler: it hears the protocol's messages and answers with them.
pub trait Policy {
    /// Takes a client in.
    fn add_client(&mut self) -> ClientId;
    /// Takes a worker in. Numbers follow each other.
    fn add_worker(&mut self, info: WorkerInfo, now: u64) -> (WorkerId, Vec<Instruction>);
    /// Takes in what happened in one turn and says what to do.
    fn handle_many(&mut self, stimuli: Vec<Stimulus>, now: u64) -> Vec<Instruction>;
    /// Something has come, and will be handled after so many others.
    fn expect(&self, _: &Stimulus, _: usize) {}
    /// Nanoseconds between its ticks: a second, as in the real server.
    fn tick(&self) -> u64 {
        1_000_000_000
    }
    /// How many tasks it knows.
    fn task_count(&self) -> usize;
    /// Panics where what must always hold does not.
    fn validate(&self);
}

impl Policy for State {
    fn add_client(&mut self) -> ClientId {
        State::add_client(self)
    }

    fn add_worker(&mut self, info: WorkerInfo, now: u64) -> (WorkerId, Vec<Instruction>) {
        State::add_worker(self, info, now)
    }

    fn expect(&self, stimulus: &Stimulus, others: usize) {
        State::expect(self, stimulus, others);
    }

    fn handle_many(&mut self, stimuli: Vec<Stimulus>, now: u64) -> Vec<Instruction> {
        State::handle_many(self, stimuli, now)
    }

    fn task_count(&self) -> usize {
        State::task_count(self)
    }

    fn validate(&self) {
        State::validate(self);
    }
}

//! A scheduler that died is restored from its journal; the workers and clients that it had are expected back.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{
    Config, Instruction, State, Stimulus,
    journal::{Entry, Journal, Written},
};
use crate::{
    Result,
    link::Kept,
    protocol::{ClientId, FromWorker, Numbered, ToClient, ToWorker, WorkerId},
};

/// A worker or client that has not come back yet.
pub(super) struct Absent<M> {
    /// What it may not have received.
    pub(super) kept: Kept<M>,
    /// How many of its numbered messages the journal has.
    pub(super) noted: u64,
}

impl<M> Default for Absent<M> {
    fn default() -> Self {
        Self { kept: Kept::default(), noted: 0 }
    }
}

/// Those that are expected back.
#[derive(Default)]
pub(super) struct Expected {
    pub(super) workers: BTreeMap<WorkerId, Absent<ToWorker>>,
    pub(super) clients: BTreeMap<ClientId, Absent<ToClient>>,
}

impl Expected {
    /// Whether all are back.
    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty() && self.clients.is_empty()
    }

    /// Keeps what is to be told to one who is away.
    pub(super) fn keep(&mut self, state: &State, instruction: Instruction) {
        match instruction {
            Instruction::ToWorker(id, message) => {
                if let Some(absent) = self.workers.get_mut(&id) {
                    absent.kept.put(message);
                }
            }
            Instruction::Introduce(id, peer) => {
                if let Some(introduction) = state.introduction(peer) {
                    self.keep(state, Instruction::ToWorker(id, introduction));
                }
            }
            Instruction::ToClient(id, message) => {
                if let Some(absent) = self.clients.get_mut(&id) {
                    absent.kept.put(message);
                }
            }
            Instruction::Drop(id) => drop(self.workers.remove(&id)),
        }
    }

    fn hear(&mut self, stimulus: &Stimulus) {
        match stimulus {
            Stimulus::Worker(id, message) => {
                let Some(absent) = self.workers.get_mut(id) else { return };
                absent.noted += u64::from(message.is_numbered());
                // Whoever has done something was told of it before.
                if let FromWorker::Finished(finished) = message {
                    absent.kept.received_up_to(
                        |told| matches!(told, ToWorker::Compute(task) if task.id == finished.id),
                    );
                }
            }
            Stimulus::Client(id, message) => {
                let absent = self.clients.get_mut(id).into_iter();
                absent.for_each(|absent| absent.noted += u64::from(message.is_numbered()));
            }
            Stimulus::RemoveWorker { worker, .. } => drop(self.workers.remove(worker)),
            Stimulus::RemoveClient(client) => drop(self.clients.remove(client)),
            Stimulus::Retire(_) | Stimulus::Tick => {}
        }
    }
}

/// What a scheduler begins with.
pub(crate) struct Past {
    pub(super) state: State,
    pub(super) expected: Expected,
    /// What the clock said last, in nanoseconds.
    pub(super) clock: u64,
    /// Where what happens from now on is noted.
    pub(super) journal: Option<Journal>,
}

/// How a scheduler begins.
pub(crate) enum Beginning {
    /// With nothing, and without a journal.
    Afresh(Config),
    /// With nothing; it notes what happens in a file.
    Journaled {
        config: Config,
        /// Where, which is nowhere yet.
        path: PathBuf,
        /// The cluster's secret, in hexadecimal digits.
        secret: String,
    },
    /// With what a journal tells of, which then goes on.
    Restored(Written),
}

impl Beginning {
    /// The past that this is, of a scheduler that is reached at `contact`.
    ///
    /// # Errors
    /// If the journal cannot be begun.
    pub(crate) fn past(self, contact: &str) -> Result<Past> {
        let afresh = |config, journal| Past {
            state: State::new(config),
            expected: Expected::default(),
            clock: 0,
            journal,
        };
        Ok(match self {
            Self::Afresh(config) => afresh(config, None),
            Self::Journaled { config, path, secret } => {
                let journal = Journal::create(&path, contact, &secret, &config)?;
                afresh(config, Some(journal))
            }
            Self::Restored(Written { header, entries, journal }) => {
                let (state, expected, clock) = replay(header.config, entries);
                Past { state, expected, clock, journal: Some(journal) }
            }
        })
    }
}

/// Brings a scheduler to where it stood: gives it, who was there, and what its clock said last.
fn replay(config: Config, entries: Vec<(u64, Entry)>) -> (State, Expected, u64) {
    let (mut state, mut expected, mut last) = (State::new(config), Expected::default(), 0);
    for (now, entry) in entries {
        last = now;
        let instructions = match entry {
            Entry::Worker(info) => {
                let (id, instructions) = state.add_worker(info, now);
                expected.workers.insert(id, Absent::default());
                instructions
            }
            Entry::Client => {
                let id = state.add_client();
                expected.clients.insert(id, Absent::default());
                Vec::new()
            }
            Entry::Stimuli(stimuli) => {
                stimuli.iter().for_each(|stimulus| expected.hear(stimulus));
                state.handle_many(stimuli, now)
            }
            Entry::Tick(silent) => {
                state.hear_all_but(&silent, now);
                state.handle(Stimulus::Tick, now)
            }
        };
        instructions.into_iter().for_each(|instruction| expected.keep(&state, instruction));
    }
    state.hear_all_but(&[], last);
    (state, expected, last)
}

impl State {
    /// What a worker is called and where it is reached.
    pub(super) fn name_and_address(&self, id: WorkerId) -> Option<(Arc<str>, Arc<str>)> {
        let worker = self.workers.get(id)?;
        Some((worker.info.name.clone(), worker.info.address.clone()))
    }
}

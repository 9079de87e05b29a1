//! Work stealing, every 100 ms: tasks of all workers lie in bins by what moving them costs beside what computing them
//! does, in powers of two. Bin by bin, the cheapest to move first, idle workers get the tasks of saturated ones, where
//! they would start sooner; the victim is asked first, so that no task runs twice.

use rankine::{
    graph::KeyMap,
    protocol::{TaskId, ToWorker, WorkerId},
    scheduler::Instruction,
};

use super::{Dask, LATENCY, State};

/// Nanoseconds between two rounds.
pub(super) const INTERVAL: u64 = 100_000_000;
/// Tasks that compute for less are not worth it.
const LEAST: u64 = 5_000_000;
/// There are this many bins: in the last one, moving costs 2^6 times as much as computing.
const BINS: usize = 15;
/// The bin of tasks that cost as much to move as to compute.
const EVEN: i32 = 8;

#[derive(Default)]
pub(super) struct Stealing {
    /// Who is to have what was asked back.
    thieves: KeyMap<u32, WorkerId>,
}

impl Dask {
    pub(super) fn balance(&mut self) {
        self.estimate_anew();
        let mut idle: Vec<WorkerId> =
            self.by_count.iter().take_while(|(count, _)| *count < 1 << 16).map(|(_, id)| *id).collect();
        let saturated: Vec<WorkerId> =
            self.by_occupancy.iter().rev().map(|(_, id)| *id).filter(|id| self.is_saturated(*id)).collect();
        if idle.is_empty() || saturated.is_empty() {
            return;
        }
        // What changes hands counts at once.
        let mut wait: KeyMap<WorkerId, u64> = KeyMap::default();
        for id in idle.iter().chain(&saturated) {
            wait.insert(*id, self.workers[id.0 as usize].occupancy);
        }
        let mut asked: Vec<(WorkerId, Vec<TaskId>)> = Vec::new();
        let mut bins: Vec<Vec<(WorkerId, u32)>> = vec![Vec::new(); BINS];
        for victim in saturated {
            for task in &self.workers[victim.0 as usize].processing {
                if let Some(bin) = self.bin(*task) {
                    bins[bin].push((victim, *task));
                }
            }
        }
        let mut next = 0;
        for (victim, place) in bins.into_iter().flatten() {
            if idle.is_empty() {
                break;
            }
            next %= idle.len();
            let (task, thief) = (&self.tasks[place as usize], idle[next]);
            let cost = self.duration(task) + self.transfer(task, thief) + LATENCY;
            let compute = self.duration(task);
            if wait[&thief] + cost > wait[&victim].saturating_sub(compute / 2) {
                continue;
            }
            *wait.entry(victim).or_default() -= task.estimate.min(wait[&victim]);
            let loaded = wait.entry(thief).or_default();
            *loaded += cost;
            let threads = self.workers[thief.0 as usize].threads();
            if *loaded >= compute * threads {
                idle.swap_remove(next);
            } else {
                next += 1;
            }
            self.stealing.thieves.insert(place, thief);
            match asked.iter_mut().find(|(known, _)| *known == victim) {
                Some((_, ids)) => ids.push(task.id),
                None => asked.push((victim, vec![task.id])),
            }
        }
        for (victim, ids) in asked {
            self.out.push(Instruction::ToWorker(victim, ToWorker::GiveBack(ids)));
        }
    }

    /// Occupancies follow what is known by now.
    fn estimate_anew(&mut self) {
        for number in 0..self.workers.len() {
            let (id, mut sum) = (WorkerId(number as u32), 0);
            for place in self.workers[number].processing.clone() {
                let task = &self.tasks[place as usize];
                let estimate = self.duration(task) + self.transfer(task, id);
                self.tasks[place as usize].estimate = estimate;
                sum += estimate;
            }
            self.change(id, |worker| worker.occupancy = sum);
        }
    }

    /// Whether a worker has more to do than it runs.
    fn is_saturated(&self, id: WorkerId) -> bool {
        let worker = &self.workers[id.0 as usize];
        worker.processing.len() as u64 > worker.threads()
    }

    fn bin(&self, place: u32) -> Option<usize> {
        let task = &self.tasks[place as usize];
        let compute = self.duration(task);
        if compute < LEAST || self.stealing.thieves.contains_key(&place) {
            return None;
        }
        let nbytes: u64 = task.dependencies.iter().map(|d| self.tasks[*d as usize].nbytes).sum();
        let transfer = nbytes as f64 / self.bandwidth * 1e9 + LATENCY as f64;
        let bin = (transfer / compute as f64).log2().round() as i32 + EVEN;
        usize::try_from(bin.max(0)).ok().filter(|bin| *bin < BINS)
    }

    /// A victim gave a task back: its thief gets it, under a new id.
    pub(super) fn given_back(&mut self, id: TaskId) {
        let place = id.index() as u32;
        let thief = self.stealing.thieves.remove(&place);
        let task = &self.tasks[place as usize];
        if task.id != id || task.state != State::Processing {
            return;
        }
        self.leave(place);
        self.tasks[place as usize].id = TaskId::new(place, id.generation() + 1);
        let worker = thief.unwrap_or_else(|| self.least_occupied());
        self.assign(place, worker);
    }

    /// A victim has started a task already.
    pub(super) fn kept(&mut self, id: TaskId) {
        self.stealing.thieves.remove(&(id.index() as u32));
    }
}

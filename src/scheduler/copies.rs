//! Copies of results: made where users want them, moved to where there is room, and dropped where nobody does.
//!
//! A copy of what few tasks need passes: the scheduler does not know of it ([`Dependency::passing`]), and asks for it when nobody
//! else is left ([`super::recall`]). A copy of what many need is kept and told of. What is left of those once who needed them
//! is done only takes room: at the next tick it goes (Dask's policy *ReduceReplicas*), but for what a user asked for. Dask
//! looks at all results each time; here only those are looked at of which something changed.

use smallvec::SmallVec;

use super::{
    Instruction, TaskState,
    bit_set::BitSet,
    placement::is_meant,
    state::{State, Worker},
    task::{Task, TaskRef},
};
use crate::{
    graph::{Key, KeyMap},
    protocol::{Answer, ClientId, Dependency, TaskId, ToClient, ToWorker, WorkerId},
    task::TaskError,
};

/// What is under way, and what is to be kept.
#[derive(Default)]
pub(super) struct Copies {
    /// Places of tasks of whose results there may be more copies than are needed since they were last looked at.
    changed: Vec<u32>,
    /// Those that are listed there.
    listed: BitSet<u32>,
    /// Of these computations' results as many copies are kept.
    kept: KeyMap<TaskRef, (TaskId, u32)>,
    /// What clients wait for.
    orders: Vec<Order>,
}

impl Copies {
    /// A result is to be looked at.
    fn look_at(&mut self, id: TaskRef) {
        if self.listed.insert(id.index) {
            self.changed.push(id.index);
        }
    }

    /// Whether a client waits until a worker has a copy of what that computation gave.
    pub(super) fn are_awaited(&self, id: TaskId, worker: WorkerId) -> bool {
        let mut pending = self.orders.iter().flat_map(|order| &order.pending);
        pending.any(|copy| (copy.id, copy.to) == (id, worker))
    }
}

/// Copies that a client wants made.
struct Order {
    client: ClientId,
    question: u64,
    pending: Vec<Copy>,
    failed: Vec<(Key, TaskError)>,
}

/// A result on its way to a worker.
struct Copy {
    task: TaskRef,
    id: TaskId,
    to: WorkerId,
    /// Who lets go of it once it is there.
    from: Option<WorkerId>,
}

impl State {
    /// Has results held by at least `count` workers, of those that `workers` names if it names any; by all of
    /// them for `None`. The client is told once that is so.
    pub(super) fn on_replicate(
        &mut self,
        (client, question): (ClientId, u64),
        keys: &[Key],
        count: Option<u32>,
        workers: &[String],
    ) {
        let meant = |worker: &Worker| workers.is_empty() || workers.iter().any(|name| is_meant(worker, name));
        let staying = self.workers.iter().filter(|(_, worker)| !worker.retiring && meant(worker));
        // Those that hold least are asked first.
        let mut room: std::collections::BTreeSet<(u64, WorkerId)> =
            staying.map(|(id, worker)| (worker.nbytes, id)).collect();
        let most = count.map_or(room.len(), |count| room.len().min(count as usize));
        let mut pending = Vec::new();
        for key in keys {
            let Some(task) = self.tasks.find(*key).and_then(|id| self.task(id)) else { continue };
            if task.state != TaskState::Memory {
                continue;
            }
            let held = room.iter().filter(|(_, worker)| task.is_held_by(*worker)).count();
            let free = room.iter().filter(|(_, worker)| !task.is_held_by(*worker));
            let chosen: Vec<(u64, WorkerId)> = free.take(most.saturating_sub(held)).copied().collect();
            let (this, id, nbytes) = (task.this, task.id(), task.nbytes);
            // Holders that were not meant stay: only what is surplus goes.
            let outside = task.holders().count() - held;
            self.copies.kept.insert(this, (id, (most + outside) as u32));
            self.copies.look_at(this);
            for entry in chosen {
                room.remove(&entry);
                room.insert((entry.0.saturating_add(nbytes), entry.1));
                pending.push(Copy { task: this, id, to: entry.1, from: None });
            }
        }
        self.order(client, question, pending);
    }

    /// Moves results from workers that hold more than most to those that hold less.
    pub(super) fn on_rebalance(&mut self, client: ClientId, question: u64) {
        let staying = self.workers.iter().filter(|(_, worker)| !worker.retiring);
        let mut held: Vec<(WorkerId, u64)> = staying.map(|(id, worker)| (id, worker.nbytes)).collect();
        let mean = held.iter().map(|(_, nbytes)| nbytes).sum::<u64>() / held.len().max(1) as u64;
        held.sort_unstable_by_key(|(id, nbytes)| (*nbytes, *id));
        let mut room: std::collections::BTreeSet<(u64, WorkerId)> =
            held.iter().filter(|(_, nbytes)| *nbytes < mean).map(|(id, nbytes)| (*nbytes, *id)).collect();
        let much = |id| self.workers.get(id).is_some_and(|worker| worker.nbytes > mean);
        let (mut pending, mut results) = (Vec::new(), self.held_by_each(much));
        for &(from, mut nbytes) in held.iter().rev().take_while(|(_, nbytes)| *nbytes > mean) {
            let results =
                results.remove(&from).unwrap_or_default().into_iter().filter_map(|id| self.task(id));
            let mut alone: Vec<Task<'_>> = results.filter(|task| task.who_has().len() == 1).collect();
            alone.sort_by_key(|task| std::cmp::Reverse(task.nbytes));
            for task in alone {
                let Some((least, to)) = room.first().copied().filter(|_| nbytes > mean) else { break };
                // A move after which the other has as much is none.
                if task.nbytes == 0 || least.saturating_add(task.nbytes) >= nbytes {
                    continue;
                }
                room.pop_first();
                room.insert((least + task.nbytes, to));
                nbytes -= task.nbytes;
                pending.push(Copy { task: task.this, id: task.id(), to, from: Some(from) });
            }
        }
        self.order(client, question, pending);
    }

    fn order(&mut self, client: ClientId, question: u64, pending: Vec<Copy>) {
        let mut asked = KeyMap::<WorkerId, Vec<Dependency>>::default();
        for copy in &pending {
            asked.entry(copy.to).or_default().extend(self.dependency(copy.task, copy.to));
        }
        self.ask_to_acquire(asked);
        self.copies.orders.push(Order { client, question, pending, failed: Vec::new() });
        self.end_orders();
    }

    /// Asks workers for copies.
    pub(super) fn ask_to_acquire(&mut self, asked: KeyMap<WorkerId, Vec<Dependency>>) {
        let mut asked: Vec<_> = asked.into_iter().collect();
        asked.sort_unstable_by_key(|(worker, _)| *worker);
        for (worker, wanted) in asked {
            self.introduce(worker, &wanted);
            self.out.push(Instruction::ToWorker(worker, ToWorker::Acquire(wanted)));
        }
    }

    /// A worker says that it holds a result: those who asked for that copy have it.
    pub(super) fn arrived(&mut self, id: TaskRef, worker: WorkerId) {
        if self.copies.orders.is_empty() {
            return;
        }
        let arrived = self.take_pending(id, worker);
        for from in arrived.into_iter().flatten() {
            let others =
                self.task(id).is_some_and(|task| task.who_has().iter().any(|holder| *holder != from));
            if others && self.task(id).is_some_and(|task| task.who_has().contains(&from)) {
                self.let_go(id, from);
            }
        }
        self.end_orders();
    }

    /// A result got a holder besides others, one of those that needed it needs it no more, or a holder is known to be one: there
    /// may be more copies than needed.
    pub(super) fn reconsider_copies(&mut self, id: TaskRef) {
        self.copies.look_at(id);
    }

    /// A worker cannot take a copy.
    pub(super) fn not_copied(&mut self, id: TaskRef, worker: WorkerId, error: &TaskError) {
        let Some(key) = self.task(id).map(|task| task.cold.key) else { return };
        for order in &mut self.copies.orders {
            if order.pending.iter().any(|copy| (copy.task, copy.to) == (id, worker)) {
                order.failed.push((key, error.clone()));
            }
        }
        self.take_pending(id, worker);
        self.end_orders();
    }

    /// Nobody waits any more for a copy; gives who was to let go of the result after it.
    fn take_pending(&mut self, id: TaskRef, worker: WorkerId) -> SmallVec<[Option<WorkerId>; 2]> {
        let arrived = |copy: &mut Copy| (copy.task, copy.to) == (id, worker);
        let orders = self.copies.orders.iter_mut();
        orders.flat_map(|order| order.pending.extract_if(.., arrived)).map(|copy| copy.from).collect()
    }

    /// Tells those whose copies are made.
    fn end_orders(&mut self) {
        let done = self.copies.orders.extract_if(.., |order| order.pending.is_empty());
        for Order { client, question, failed, .. } in done {
            let answer = ToClient::Answer { id: question, answer: Answer::Copied(failed).into() };
            self.out.push(Instruction::ToClient(client, answer));
        }
    }

    /// Drops copies that nobody needs, and gives up those that will never be made.
    pub(super) fn tidy_copies(&mut self) {
        let mut orders = std::mem::take(&mut self.copies.orders);
        for order in &mut orders {
            // A result that is lost is computed anew, and nobody asked for copies of that; a worker that leaves or is
            // gone takes none.
            order.pending.retain(|copy| {
                let stays = self.workers.get(copy.to).is_some_and(|worker| !worker.retiring);
                let there = self.task(copy.task).filter(|task| task.id() == copy.id);
                stays && there.is_some_and(|task| !task.is_held_by(copy.to))
            });
        }
        self.copies.orders = orders;
        self.end_orders();
        let mut kept = std::mem::take(&mut self.copies.kept);
        kept.retain(|task, (id, _)| self.task(*task).is_some_and(|task| task.id() == *id));
        self.copies.kept = kept;
        for place in std::mem::take(&mut self.copies.changed) {
            self.copies.listed.remove(place);
            let id = self.tasks.at(place).map(|task| task.this);
            if let Some(id) = id.filter(|_| self.config.reduce_replicas) {
                self.reduce(id);
            }
        }
    }

    /// Drops what is surplus of a result's copies, where most bytes are held first.
    fn reduce(&mut self, id: TaskRef) {
        let Some(task) = self.task(id) else { return };
        let asked_for = self.copies.kept.get(&id).map_or(1, |(_, count)| *count);
        // Those that will need it may run at as many places.
        let wanted = asked_for.max(task.waiters).max(1) as usize;
        let surplus = task.holders().count().saturating_sub(wanted);
        if surplus == 0 {
            return;
        }
        let users = self.tasks.dependents(task).filter_map(|dependent| dependent.worker());
        let mut users: SmallVec<[WorkerId; 8]> = users.collect();
        // Clients were told of the first holder.
        users.extend(task.who_has().first().copied().filter(|_| task.is_wanted()));
        let idle = task.holders().filter(|holder| !users.contains(holder));
        let mut idle: SmallVec<[(u64, WorkerId); 8]> =
            idle.filter_map(|holder| Some((self.workers.get(holder)?.nbytes, holder))).collect();
        idle.sort_unstable();
        for (_, holder) in idle.into_iter().rev().take(surplus) {
            self.let_go(id, holder);
        }
    }

    /// A client put data on several workers: it is to stay there.
    pub(super) fn keep_copies(&mut self, id: TaskRef) {
        if let Some(task) = self.task(id).filter(|task| task.who_has().len() > 1) {
            let kept = (task.id(), task.who_has().len() as u32);
            self.copies.kept.insert(id, kept);
        }
    }

    /// A client is gone: nobody waits for its copies.
    pub(super) fn forget_orders(&mut self, client: ClientId) {
        self.copies.orders.retain(|order| order.client != client);
    }

    /// A worker need not keep its copy of a result.
    pub(super) fn let_go(&mut self, id: TaskRef, holder: WorkerId) {
        let Some(computation) = self.task(id).map(|task| task.id()) else { return };
        self.free(holder, computation);
        self.drop_holder(id, holder, None);
    }
}

//! A graph comes in.

use super::{
    Instruction, TaskState,
    state::{FunctionInfo, State},
    task::{SCATTERED, TaskRef},
};
use crate::{
    graph::{Graph, Key, KeySet, Lists, Order, order},
    protocol::{ClientId, Priority, ToClient},
    task::{FailureKind, TaskError},
};

/// Tasks looked up at a time: enough that the memory they lie in is waited for once, not once each.
pub(super) const TOGETHER: usize = 256;

/// A task just made, and its place in the graph.
struct Fresh {
    order: u32,
    this: TaskRef,
}

impl State {
    pub(super) fn on_submit(&mut self, client: ClientId, mut graph: Graph, wants: Vec<Key>) {
        self.submissions += 1;
        let mut broken = Vec::new();
        // First all tasks, then what they depend on: a graph may come in any order.
        let (tasks, fresh) = self.create_all(&mut graph, &mut broken);
        let connected = graph.tasks.iter().any(|task| !task.dependencies.is_empty());
        if connected && self.connect(&graph, &fresh, &mut broken) {
            broken.extend(self.cycles(&fresh.iter().map(|fresh| fresh.this).collect::<Vec<_>>()));
        }
        let mut submitted = graph.tasks.iter().zip(&tasks);
        for key in wants {
            // What is wanted is mostly what is submitted, or some of it in the same order.
            let next = submitted.find(|(submitted, _)| submitted.key == key).map(|(_, task)| *task);
            let Some(id) = next.or_else(|| self.tasks.find(key)) else { continue };
            self.want(client, id);
        }
        // One may be broken in two ways: the first that was found is told.
        let mut refused = KeySet::default();
        broken.retain(|(key, _)| self.tasks.find(*key).is_some_and(|id| refused.insert(id)));
        self.unlink(&refused);
        for (key, why) in broken {
            let Some(id) = self.tasks.find(key) else { continue };
            let function = self.function_name(id);
            let error = TaskError::refused(why);
            self.fail(id, error.with(|r| (r.function, r.key) = (function, key.to_string())));
        }
        // What nobody wants and nothing wanted needs is not kept; what others depend on is looked at when they go.
        for Fresh { this, .. } in fresh {
            if self.task(this).is_some_and(|task| task.live_dependents == 0) {
                self.reconsider(this);
            }
        }
    }

    /// Makes the tasks of a graph, except those that are known already; gives all, and the new ones.
    fn create_all(
        &mut self,
        graph: &mut Graph,
        broken: &mut Vec<(Key, String)>,
    ) -> (Vec<TaskRef>, Vec<Fresh>) {
        let functions: Vec<u32> = graph
            .functions
            .iter()
            .map(|function| {
                *self.function_numbers.entry(function.entry).or_insert_with(|| {
                    let (entry, name) = (function.entry, function.name.clone());
                    self.functions.push(FunctionInfo { entry, name, duration: None, inner: 0 });
                    self.functions.len() as u32 - 1
                })
            })
            .collect();
        let options: Vec<u32> = graph.options.iter().map(|o| self.options_number(o)).collect();
        self.know_limits();
        let count = graph.tasks.len();
        let (mut tasks, mut fresh) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for order in 0..count {
            if order % TOGETHER == 0 {
                let next = &graph.tasks[order..count.min(order + TOGETHER)];
                self.tasks.prefetch(next.iter().map(|task| task.key));
            }
            let submitted = &mut graph.tasks[order];
            if let Some(known) = self.tasks.find(submitted.key) {
                // An equal call is known: its result serves both, unless it failed and is tried again.
                // What was refused would be again.
                let serious = |error: &TaskError| error.kind != FailureKind::Refused;
                if self.task(known).is_some_and(|task| task.error().is_some_and(serious)) {
                    self.forgive(known);
                }
                tasks.push(known);
                continue;
            }
            let Some(&function) = functions.get(submitted.function as usize) else {
                broken.push((submitted.key, "it names a function that the graph does not have".to_owned()));
                tasks.push(self.tasks.create(submitted.key, SCATTERED));
                continue;
            };
            if !submitted.dependencies.is_empty() {
                self.functions[function as usize].inner = self.submissions;
            }
            let this = self.tasks.create(submitted.key, function);
            let number = options.get(submitted.options as usize).copied().unwrap_or(0);
            let priority = self.options[number as usize].priority;
            let submission = self.submissions;
            if let Some(mut made) = self.task_mut(this) {
                made.set_arguments(std::mem::take(&mut submitted.arguments));
                made.cold.dependencies.reserve(submitted.dependencies.len());
                made.cold.options = number;
                made.cold.priority =
                    Priority { user: priority.saturating_neg(), submission, order: order as u32 };
            }
            tasks.push(this);
            fresh.push(Fresh { order: order as u32, this });
        }
        (tasks, fresh)
    }

    /// Connects new tasks with what they depend on, and puts them in order. Says whether there may be a cycle.
    fn connect(&mut self, graph: &Graph, fresh: &[Fresh], broken: &mut Vec<(Key, String)>) -> bool {
        let (links, backwards) = self.link_all(graph, fresh, broken);
        self.prioritise(fresh, links);
        backwards
    }

    /// Connects new tasks with what they depend on. Gives, for each of the graph's tasks, the new ones among
    /// what it depends on, and says whether one depends on another that does not come before it: then there
    /// may be a cycle.
    fn link_all(&mut self, graph: &Graph, fresh: &[Fresh], broken: &mut Vec<(Key, String)>) -> (Lists, bool) {
        let (mut links, mut backwards) = (Lists::new(graph.tasks.len()), false);
        let dependencies = |fresh: &Fresh| graph.tasks[fresh.order as usize].dependencies.as_slice();
        let mut found = Vec::new();
        for fresh in fresh.chunks(TOGETHER) {
            found.clear();
            let wanted = fresh.iter().flat_map(dependencies);
            self.tasks.prefetch(wanted.clone().take(8 * TOGETHER).copied());
            found.extend(wanted.map(|key| self.tasks.find(*key)));
            let mut found = found.iter();
            for task @ Fresh { order, this } in fresh {
                for (key, dependency) in dependencies(task).iter().zip(&mut found) {
                    let Some(dependency) = *dependency else {
                        let broken_one = self.task(*this).map_or(*key, |task| task.cold.key);
                        let why = format!(
                            "it depends on {key}, which the scheduler does not know; \
                             was its future dropped or cancelled?"
                        );
                        broken.push((broken_one, why));
                        continue;
                    };
                    // A new one's priority still says where in the graph it is.
                    let new = self.task(dependency).map(|other| other.cold.priority);
                    if let Some(Priority { order: other, .. }) =
                        new.filter(|p| p.submission == self.submissions)
                    {
                        backwards |= other >= *order;
                        links.add(other);
                    }
                    self.tasks.link(*this, dependency);
                }
                links.end(*order as usize);
            }
        }
        (links, backwards)
    }

    /// New tasks that depend on each other run in an order that lets results go soon.
    fn prioritise(&mut self, fresh: &[Fresh], links: Lists) {
        if links.are_empty() {
            return;
        }
        let Order { places, heights } = order(links);
        for Fresh { order, this } in fresh {
            let order = *order as usize;
            if let Some(task) = self.task_mut(*this) {
                (task.cold.priority.order, task.cold.height) = (places[order], heights[order]);
            }
        }
    }

    fn want(&mut self, client: ClientId, id: TaskRef) {
        let Some(mut task) = self.task_mut(id) else { return };
        task.want(client);
        let key = task.cold.key;
        match task.state {
            TaskState::Released => self.recommend(id, TaskState::Waiting),
            TaskState::Memory => self.report_memory(client, id, None),
            TaskState::Erred => {
                if let Some(error) = task.error().cloned() {
                    self.out.push(Instruction::ToClient(client, ToClient::Erred { key, error }));
                }
            }
            _ => {}
        }
    }

    fn options_number(&mut self, options: &crate::graph::TaskOptions) -> u32 {
        // Few different ones are in use at a time; the latest are the likeliest.
        let recent = self.options.iter().enumerate().rev().take(16).find(|(_, known)| *known == options);
        match recent {
            Some((number, _)) => number as u32,
            None => {
                self.options.push(options.clone());
                self.options.len() as u32 - 1
            }
        }
    }

    /// What will never run needs nothing: members of a cycle would keep each other for ever.
    fn unlink(&mut self, ids: &KeySet<TaskRef>) {
        let inputs: KeySet<TaskRef> = ids.iter().flat_map(|id| self.tasks.unlink(*id)).collect();
        inputs.into_iter().for_each(|dependency| self.reconsider(dependency));
    }

    /// A failed task is tried again, as if it never ran.
    fn forgive(&mut self, id: TaskRef) {
        if let Some(mut task) = self.task_mut(id) {
            task.absolve();
            self.set_state(id, TaskState::Released);
            self.recommend(id, TaskState::Waiting);
        }
    }
}

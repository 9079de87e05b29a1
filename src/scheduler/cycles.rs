//! Tasks that can never run, since they need each other.

use super::{state::State, task::TaskRef};
use crate::graph::{Key, KeyMap, KeySet};

impl State {
    /// The tasks of a graph that can never run because they need themselves, or others that do, each with why.
    pub(super) fn cycles(&self, ids: &[TaskRef]) -> Vec<(Key, String)> {
        let stuck = self.stuck(ids);
        // Each of them needs another one: whoever follows the first of these from any of them comes to a cycle.
        let next = |id: &TaskRef| {
            let mut needed = self.tasks.dependencies(self.task(*id)?).map(|other| other.this);
            needed.find(|other| stuck.contains(other))
        };
        // Of those that have been passed, the cycle they lead to.
        let mut leads: KeyMap<TaskRef, usize> = KeyMap::default();
        let mut cycles: Vec<Vec<TaskRef>> = Vec::new();
        for id in ids.iter().filter(|id| stuck.contains(*id)) {
            let (mut path, mut on_path) = (Vec::new(), KeySet::default());
            let mut at = Some(*id);
            while let Some(id) = at.filter(|id| !leads.contains_key(id) && on_path.insert(*id)) {
                path.push(id);
                at = next(&id);
            }
            let Some(end) = at else { continue };
            let cycle = leads.get(&end).copied().unwrap_or_else(|| {
                cycles.push(path.iter().copied().skip_while(|id| *id != end).collect());
                cycles.len() - 1
            });
            leads.extend(path.into_iter().map(|id| (id, cycle)));
        }
        let names: Vec<String> = cycles.iter().map(|cycle| self.way_around(cycle)).collect();
        let firsts: Vec<Option<TaskRef>> = cycles.iter().map(|cycle| cycle.first().copied()).collect();
        let members: KeySet<TaskRef> = cycles.into_iter().flatten().collect();
        let why = |id: &TaskRef| {
            let (key, cycle) = (self.task(*id)?.cold.key, *leads.get(id)?);
            if members.contains(id) {
                return Some((key, format!("it is part of a cycle: {}", names[cycle])));
            }
            // These may be very many: the way round is told by those on it.
            let first = self.task(firsts[cycle]?)?.cold.key;
            Some((key, format!("it depends on {first}, which is part of a cycle")))
        };
        ids.iter().filter_map(why).collect()
    }

    /// Those of a graph's tasks that nothing lets run, whatever is done (Kahn's algorithm).
    fn stuck(&self, ids: &[TaskRef]) -> KeySet<TaskRef> {
        let mut missing: KeyMap<TaskRef, usize> = ids.iter().map(|id| (*id, 0)).collect();
        for id in ids {
            let needed = self.task(*id).into_iter().flat_map(|task| self.tasks.dependencies(task));
            let inside = needed.filter(|other| missing.contains_key(&other.this)).count();
            missing.insert(*id, inside);
        }
        let mut free: Vec<TaskRef> = ids.iter().filter(|id| missing[*id] == 0).copied().collect();
        while let Some(id) = free.pop() {
            missing.remove(&id);
            for dependent in self.task(id).into_iter().flat_map(|task| self.tasks.dependents(task)) {
                if let Some(count) = missing.get_mut(&dependent.this) {
                    *count -= 1;
                    if *count == 0 {
                        free.push(dependent.this);
                    }
                }
            }
        }
        missing.into_keys().collect()
    }

    /// A cycle in words: each of its tasks, followed by one that it needs.
    fn way_around(&self, cycle: &[TaskRef]) -> String {
        const NAMED: usize = 8;
        let name = |id: &TaskRef| {
            let key = self.task(*id).map(|task| task.cold.key.to_string()).unwrap_or_default();
            format!("{key} ({})", self.function_name(*id))
        };
        let mut names: Vec<String> = cycle.iter().take(NAMED).map(name).collect();
        if cycle.len() > NAMED {
            names.push(format!("{} more, the last of which", cycle.len() - NAMED));
        }
        names.extend(cycle.first().map(name));
        names.join(" needs ")
    }
}

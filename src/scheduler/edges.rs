//! Which task depends on which.
//!
//! Tasks know each other by their places alone: so the neighbours of most tasks lie in one line of a processor's cache. What a
//! task depends on is not forgotten before it. One that is forgotten, though, is not looked for in the lists of all that it
//! depended on: there its place lingers, and another task may come to it, and be listed once more if it depends on the same.
//! A list as long as there are live dependents has no such; else those are meant that depend on the task whose list it is.

use std::ops::Deref;

use super::{
    arena::Arena,
    hot::Hot,
    task::{Cold, Task, TaskMut, TaskRef, View},
    transitions::SOON,
};

/// So many are listed before it matters that most of them only linger.
const FEW: usize = 16;

impl<H: Deref<Target = Hot>, C: Deref<Target = Cold>> View<H, C> {
    /// Whether none of those that are listed as dependents only lingers there.
    fn lists_dependents_alone(&self) -> bool {
        self.cold.dependents.len() == self.live_dependents as usize
    }

    fn depends_on(&self, place: u32) -> bool {
        self.cold.dependencies.contains(&place)
    }
}

impl Arena {
    /// What a task depends on.
    pub(super) fn dependencies<'a>(&'a self, task: Task<'a>) -> impl Iterator<Item = Task<'a>> {
        task.cold.dependencies.iter().filter_map(|place| self.at(*place))
    }

    /// What depends on a task; where any lingered there before, perhaps twice.
    pub(super) fn dependents<'a>(&'a self, task: Task<'a>) -> impl Iterator<Item = Task<'a>> {
        let (alone, this) = (task.lists_dependents_alone(), task.this.index);
        let any = if task.live_dependents > 0 { &task.cold.dependents[..] } else { &[] };
        let listed = any.iter().filter_map(|place| self.at(*place));
        listed.filter(move |dependent| alone || dependent.depends_on(this))
    }

    /// Of the first few that are listed as dependents of a task, those that wait for one result alone.
    pub(super) fn last_waiting<'a>(&'a self, task: Task<'a>) -> impl Iterator<Item = Task<'a>> {
        let listed = task.cold.dependents.iter().take(SOON).filter_map(|place| self.at(*place));
        listed.filter(|dependent| dependent.waiting_on == 1)
    }

    /// What a task depends on in that place of its list: for walks on which tasks change.
    pub(super) fn dependency_mut(&mut self, id: TaskRef, number: usize) -> Option<TaskMut<'_>> {
        let place = *self.get(id)?.cold.dependencies.get(number)?;
        self.at_mut(place)
    }

    /// What depends on a task, in that place of its list, after [`Self::tidy_dependents`]: for walks on which tasks change.
    pub(super) fn dependent_mut(&mut self, id: TaskRef, number: usize) -> Option<TaskMut<'_>> {
        let place = *self.get(id)?.cold.dependents.get(number)?;
        self.at_mut(place)
    }

    /// Has a task depend on another one.
    pub(super) fn link(&mut self, id: TaskRef, dependency: TaskRef) {
        let Some(task) = self.get_mut(id).filter(|task| !task.depends_on(dependency.index)) else { return };
        task.cold.dependencies.push(dependency.index);
        let Some(mut other) = self.get_mut(dependency) else { return };
        if other.live_dependents == 0 {
            // All that may be listed there are forgotten.
            other.cold.dependents.clear();
        }
        other.live_dependents += 1;
        other.cold.dependents.push(id.index);
        if other.cold.dependents.len() > FEW
            && other.cold.dependents.len() > 2 * other.live_dependents as usize
        {
            self.tidy_dependents(dependency);
        }
    }

    /// Has each dependent of a task listed once, and nobody else.
    pub(super) fn tidy_dependents(&mut self, id: TaskRef) {
        let Some(task) = self.get_mut(id).filter(|task| !task.lists_dependents_alone()) else { return };
        if task.live_dependents == 0 {
            return task.cold.dependents.clear();
        }
        let mut places = std::mem::take(&mut task.cold.dependents).to_vec();
        places.sort_unstable();
        places.dedup();
        let depends = |place: &u32| self.at(*place).is_some_and(|dependent| dependent.depends_on(id.index));
        let dependents = places.into_iter().filter(depends).collect();
        if let Some(task) = self.get_mut(id) {
            task.cold.dependents = dependents;
        }
    }

    /// Has a task depend on nothing any more; gives what it depended on.
    pub(super) fn unlink(&mut self, id: TaskRef) -> Vec<TaskRef> {
        let Some(task) = self.get_mut(id) else { return Vec::new() };
        let dependencies = std::mem::take(&mut task.cold.dependencies);
        let mut others = Vec::new();
        for place in dependencies.iter() {
            let Some(mut other) = self.at_mut(*place) else { continue };
            other.live_dependents -= 1;
            others.push(other.this);
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::graph::Key;

    fn forget(arena: &mut Arena, id: TaskRef) {
        for place in arena.remove(id).iter() {
            arena.at_mut(*place).expect("dependencies are not forgotten first").live_dependents -= 1;
        }
    }

    proptest! {
        /// Whoever comes to a place that lingers in some lists, and whether or not it belongs there too.
        #[test]
        fn dependents_are_those_that_depend_on_a_task_whoever_had_their_places_before(
            steps in prop::collection::vec((0u32..4, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..400),
        ) {
            let mut arena = Arena::default();
            // What each task depends on, and how many depended on it at most.
            let mut model = BTreeMap::<TaskRef, BTreeSet<TaskRef>>::new();
            let mut most = BTreeMap::<TaskRef, usize>::new();
            for (number, (step, one, other)) in steps.into_iter().enumerate() {
                let ids: Vec<TaskRef> = model.keys().copied().collect();
                if ids.is_empty() || step == 0 {
                    let id = arena.create(Key(number as u128), 0);
                    model.insert(id, BTreeSet::new());
                } else if step == 1 {
                    let free = |id: &&TaskRef| model.values().all(|others| !others.contains(id));
                    let free: Vec<TaskRef> = ids.iter().filter(free).copied().collect();
                    if let Some(id) = free.get(one.index(free.len().max(1))) {
                        forget(&mut arena, *id);
                        model.remove(id);
                    }
                } else {
                    // The newest depends on a few that many depend on, so that lists are long and lingered in.
                    let few = &ids[..ids.len().min(3)];
                    let newest = if step == 2 { ids[ids.len() - 1] } else { ids[one.index(ids.len())] };
                    let dependency = few[other.index(few.len())];
                    arena.link(newest, dependency);
                    model.get_mut(&newest).expect("it is known").insert(dependency);
                }
                for (id, dependencies) in &model {
                    let task = arena.get(*id).expect("it is known");
                    let listed: BTreeSet<TaskRef> = arena.dependencies(task).map(|task| task.this).collect();
                    prop_assert_eq!(&listed, dependencies);
                    let dependents: Vec<TaskRef> = arena.dependents(task).map(|task| task.this).collect();
                    let listed = (task.cold.dependents.len(), task.live_dependents as usize);
                    let expected = model.iter().filter(|(_, others)| others.contains(id));
                    let expected: BTreeSet<TaskRef> = expected.map(|(dependent, _)| *dependent).collect();
                    prop_assert_eq!(listed.1, expected.len());
                    let most = most.entry(*id).or_default();
                    *most = (*most).max(listed.1);
                    prop_assert!(listed.0 > listed.1 || dependents.len() == listed.1, "each once");
                    prop_assert_eq!(BTreeSet::from_iter(dependents), expected);
                    prop_assert!(listed.0 <= FEW.max(2 * *most), "few linger: {listed:?}");
                }
            }
            for id in model.keys() {
                arena.tidy_dependents(*id);
                let task = arena.get(*id).expect("it is known");
                prop_assert_eq!(arena.dependents(task).count(), task.cold.dependents.len());
                prop_assert_eq!(task.cold.dependents.len(), task.live_dependents as usize);
            }
        }
    }
}

//! In which order the tasks of a graph should run where nothing else decides: depth first, so that what is
//! begun is finished, and results are released, before more is begun.
//!
//! After the aims of Dask's `order`, by simpler means: among the dependencies of a task, those that need the most
//! results at once come first (R. Sethi and J. D. Ullman, "The Generation of Optimal Code for Arithmetic Expressions",
//! 1970, exact for trees); whatever can run and lets a result go runs at once. Each task and dependency is looked at
//! a bounded number of times; only the dependencies of one task are sorted.

/// What is said of each task of a graph.
pub(crate) struct Order {
    /// Its place in the order. Every task comes after those that it depends on; within a cycle, which never runs, the
    /// order is any.
    pub(crate) places: Vec<u32>,
    /// Its height: how many tasks of the graph depend on it, one after the other; 0 where none does. Within a cycle it is any.
    pub(crate) heights: Vec<u32>,
}

/// The order of the tasks of a graph, given the dependencies of each.
pub(crate) fn order(dependencies: Lists) -> Order {
    Ordering::new(dependencies).run()
}

/// A list of tasks for each task; the lists lie one after the other.
pub(crate) struct Lists {
    starts: Vec<u32>,
    members: Vec<u32>,
}

impl Lists {
    /// No lists yet; there is room for those of `count` tasks.
    pub(crate) fn new(count: usize) -> Self {
        let mut starts = Vec::with_capacity(count + 1);
        starts.push(0);
        Self { starts, members: Vec::new() }
    }

    /// Adds a task to the list of the present one.
    pub(crate) fn add(&mut self, member: u32) {
        self.members.push(member);
    }

    /// What was added is the list of `task`; those between the one before and this one have empty lists.
    pub(crate) fn end(&mut self, task: usize) {
        let before = self.starts.last().copied().unwrap_or(0);
        self.starts.resize(task + 1, before);
        self.starts.push(self.members.len() as u32);
    }

    /// Whether all lists are empty.
    pub(crate) fn are_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn count(&self) -> usize {
        self.starts.len() - 1
    }

    fn of(&self, task: u32) -> &[u32] {
        let list =
            &self.members[self.starts[task as usize] as usize..self.starts[task as usize + 1] as usize];
        #[cfg(test)]
        tests::look_at(list.len());
        list
    }

    fn get(&self, task: u32, place: u32) -> Option<u32> {
        #[cfg(test)]
        tests::look_at(1);
        let place = self.starts[task as usize] + place;
        (place < self.starts[task as usize + 1]).then(|| self.members[place as usize])
    }

    fn len(&self, task: u32) -> u32 {
        self.starts[task as usize + 1] - self.starts[task as usize]
    }
}

const NOWHERE: u32 = u32::MAX;

struct Ordering {
    /// The neediest first.
    dependencies: Lists,
    dependents: Lists,
    /// Dependencies of each task that are not placed.
    missing: Vec<u32>,
    /// Dependents of each task that are not placed.
    waiting: Vec<u32>,
    places: Vec<u32>,
    placed: u32,
    /// Tasks that can run and let a result go.
    due: Vec<u32>,
}

impl Ordering {
    fn new(dependencies: Lists) -> Self {
        let count = dependencies.count();
        let mut waiting = vec![0; count];
        for dependency in &dependencies.members {
            waiting[*dependency as usize] += 1;
        }
        let mut dependents =
            Lists { starts: vec![0; count + 1], members: vec![0; dependencies.members.len()] };
        for (task, waiting) in waiting.iter().enumerate() {
            dependents.starts[task + 1] = dependents.starts[task] + waiting;
        }
        let mut next = dependents.starts.clone();
        for task in 0..count as u32 {
            for dependency in dependencies.of(task) {
                let place = &mut next[*dependency as usize];
                dependents.members[*place as usize] = task;
                *place += 1;
            }
        }
        let missing = (0..count as u32).map(|task| dependencies.len(task)).collect();
        let mut ordering = Self {
            dependencies,
            dependents,
            missing,
            waiting,
            places: vec![NOWHERE; count],
            placed: 0,
            due: Vec::new(),
        };
        ordering.sort();
        ordering
    }

    /// Puts first, among the dependencies of each task, those that need most.
    fn sort(&mut self) {
        let count = self.places.len() as u32;
        let mut missing = self.missing.clone();
        let mut needs = vec![1u32; count as usize];
        let mut free: Vec<u32> = (0..count).filter(|task| missing[*task as usize] == 0).collect();
        while let Some(task) = free.pop() {
            let (start, end) =
                (self.dependencies.starts[task as usize], self.dependencies.starts[task as usize + 1]);
            let own = &mut self.dependencies.members[start as usize..end as usize];
            own.sort_by_key(|dependency| std::cmp::Reverse(needs[*dependency as usize]));
            // While one is made, those made before are held.
            let need = own.iter().zip(0..).map(|(dependency, held)| needs[*dependency as usize] + held).max();
            needs[task as usize] = need.unwrap_or(1);
            for dependent in self.dependents.of(task) {
                let missing = &mut missing[*dependent as usize];
                *missing -= 1;
                if *missing == 0 {
                    free.push(*dependent);
                }
            }
        }
    }

    fn run(mut self) -> Order {
        let count = self.places.len() as u32;
        // From each result that nobody needs down to what it needs; what is left then is part of cycles.
        let ends = (0..count).filter(|task| self.dependents.len(*task) == 0);
        let ends: Vec<u32> = ends.chain(0..count).collect();
        // A task, and how many of its dependencies were looked at.
        let mut stack: Vec<(u32, u32)> = Vec::new();
        let mut entered = vec![false; count as usize];
        for end in ends {
            if !std::mem::replace(&mut entered[end as usize], true) {
                stack.push((end, 0));
            }
            while let Some((task, looked)) = stack.last_mut() {
                match self.dependencies.get(*task, *looked) {
                    Some(dependency) => {
                        *looked += 1;
                        if self.places[dependency as usize] == NOWHERE
                            && !std::mem::replace(&mut entered[dependency as usize], true)
                        {
                            stack.push((dependency, 0));
                        }
                    }
                    None => {
                        let task = *task;
                        stack.pop();
                        self.place(task);
                        while let Some(due) = self.due.pop() {
                            self.place(due);
                        }
                    }
                }
            }
        }
        Order { heights: self.heights(), places: self.places }
    }

    /// From the last task to the first: those that depend on it have their heights before it has its own.
    fn heights(&self) -> Vec<u32> {
        let mut sequence = vec![0; self.places.len()];
        for (task, place) in (0u32..).zip(&self.places) {
            sequence[*place as usize] = task;
        }
        let mut heights = vec![0; self.places.len()];
        for task in sequence.into_iter().rev() {
            let higher = heights[task as usize] + 1;
            for dependency in self.dependencies.of(task) {
                let height = &mut heights[*dependency as usize];
                *height = higher.max(*height);
            }
        }
        heights
    }

    fn place(&mut self, task: u32) {
        if self.places[task as usize] != NOWHERE {
            return;
        }
        self.places[task as usize] = self.placed;
        self.placed += 1;
        let Self { dependencies, dependents, missing, waiting, places, due, .. } = self;
        let can_run =
            |missing: &[u32], task: u32| missing[task as usize] == 0 && places[task as usize] == NOWHERE;
        for dependent in dependents.of(task) {
            missing[*dependent as usize] -= 1;
            let lets_go = |d: &u32| waiting[*d as usize] == 1;
            if can_run(missing, *dependent) && dependencies.of(*dependent).iter().any(lets_go) {
                due.push(*dependent);
            }
        }
        for dependency in dependencies.of(task) {
            waiting[*dependency as usize] -= 1;
            // Looked for once for each result, when only one waits for it.
            if waiting[*dependency as usize] == 1 {
                due.extend(dependents.of(*dependency).iter().find(|last| can_run(missing, **last)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        /// Lists looked at, and their members.
        static LOOKED_AT: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn look_at(members: usize) {
        LOOKED_AT.with(|looked_at| looked_at.set(looked_at.get() + 1 + members));
    }

    fn order(graph: &[Vec<u32>]) -> Vec<u32> {
        ordered(graph).places
    }

    fn ordered(graph: &[Vec<u32>]) -> Order {
        let mut lists = Lists::new(graph.len());
        for (task, list) in graph.iter().enumerate() {
            list.iter().for_each(|dependency| lists.add(*dependency));
            lists.end(task);
        }
        super::order(lists)
    }

    /// How many results are held at once at most, if tasks run in this order one after the other.
    fn peak(dependencies: &[Vec<u32>], places: &[u32]) -> usize {
        let mut dependents = vec![0; places.len()];
        dependencies.iter().flatten().for_each(|d| dependents[*d as usize] += 1);
        let mut sequence: Vec<u32> = (0..places.len() as u32).collect();
        sequence.sort_by_key(|task| places[*task as usize]);
        let (mut held, mut peak) = (0usize, 0);
        for task in sequence {
            held += 1;
            peak = peak.max(held);
            for dependency in &dependencies[task as usize] {
                dependents[*dependency as usize] -= 1;
                held -= usize::from(dependents[*dependency as usize] == 0);
            }
            // What nobody needs goes to whoever wants it.
            held -= usize::from(dependents[task as usize] == 0);
        }
        peak
    }

    /// Leaves first, then level by level: how such graphs are written down.
    fn tree(leaves: u32) -> Vec<Vec<u32>> {
        let mut graph: Vec<Vec<u32>> = vec![vec![]; leaves as usize];
        let (mut first, mut width) = (0, leaves);
        while width > 1 {
            graph.extend((0..width / 2).map(|i| vec![first + 2 * i, first + 2 * i + 1]));
            (first, width) = (first + width, width / 2);
        }
        graph
    }

    #[test]
    fn a_tree_holds_a_result_a_level() {
        let graph = tree(1024);
        let level_by_level: Vec<u32> = (0..graph.len() as u32).collect();
        assert_eq!(peak(&graph, &level_by_level), 1025);
        assert_eq!(peak(&graph, &order(&graph)), 12);
    }

    #[test]
    fn independent_chains_are_run_one_after_the_other() {
        // 100 chains of ten, step by step, and a sum of their ends.
        let mut graph: Vec<Vec<u32>> = vec![vec![]; 100];
        (100..1000).for_each(|task| graph.push(vec![task - 100]));
        graph.push((900..1000).collect());
        let places = order(&graph);
        for chain in 0..100 {
            let steps: Vec<u32> = (0..10).map(|step| places[chain + 100 * step]).collect();
            assert!(steps.windows(2).all(|pair| pair[1] == pair[0] + 1), "{steps:?}");
        }
    }

    #[test]
    fn what_needs_most_is_made_first() {
        // A leaf and a tree of eight, both needed for one result: the leaf waits.
        let mut graph = tree(8);
        let root = graph.len() as u32 - 1;
        graph.push(vec![]);
        graph.push(vec![root + 1, root]);
        let places = order(&graph);
        assert!(places[root as usize] < places[root as usize + 1], "{places:?}");
    }

    #[test]
    fn what_lets_results_go_runs_as_soon_as_it_can() {
        // Each of 50 loads has a sum and a mean of its own; all sums are added up, so are all means.
        let mut graph: Vec<Vec<u32>> = vec![vec![]; 50];
        graph.extend((0..50).map(|load| vec![load]));
        graph.extend((0..50).map(|load| vec![load]));
        graph.push((50..100).collect());
        graph.push((100..150).collect());
        let places = order(&graph);
        // Were all sums made first, all loads would be held.
        assert!(peak(&graph, &places) <= 103, "{}", peak(&graph, &places));
        for load in 0..50 {
            assert!(places[100 + load] < places[load] + 4, "load {load}");
        }
    }

    #[test]
    fn a_stencil_in_time_needs_no_more_than_two_steps() {
        let (width, steps) = (32u32, 32u32);
        let mut graph: Vec<Vec<u32>> = vec![vec![]; width as usize];
        for step in 1..steps {
            for x in 0..width {
                let near = [x.wrapping_sub(1), x, x + 1].into_iter().filter(|x| *x < width);
                graph.push(near.map(|x| (step - 1) * width + x).collect());
            }
        }
        assert!(peak(&graph, &order(&graph)) <= 2 * width as usize);
    }

    /// A level of `width` tasks and `count` more; task `x` of each of these needs some of the level before.
    fn levels<I: IntoIterator<Item = u32>>(
        width: u32,
        count: u32,
        needs: impl Fn(u32, u32) -> I,
    ) -> Vec<Vec<u32>> {
        let level = |level| (0..width).map(move |x| (level, x));
        let before = |(level, x)| needs(level, x).into_iter().map(|x| (level - 1) * width + x).collect();
        vec![vec![]; width as usize].into_iter().chain((1..=count).flat_map(level).map(before)).collect()
    }

    #[test]
    fn how_often_a_task_is_looked_at_does_not_grow_with_the_graph() {
        let stencil = |width: u32| {
            levels(width, 10, move |_, x| {
                [x.wrapping_sub(1), x, x + 1].into_iter().filter(move |x| *x < width)
            })
        };
        let butterfly = |stages: u32| levels(1 << stages, stages, |stage, x| [x, x ^ 1 << (stage - 1)]);
        // All to all among each eight, of which the stages differ.
        let shuffle = |width: u32| {
            levels(width, 3, move |level, x| {
                let apart = 8u32.pow(level - 1);
                let first = x / (8 * apart) * (8 * apart) + x % apart;
                (0..8).map(move |n| (first + n * apart) % width)
            })
        };
        // All need the first, and the last needs all.
        let hub = |count: u32| {
            let mut graph = vec![vec![]];
            graph.extend(vec![vec![0]; count as usize]);
            graph.push((1..=count).collect());
            graph
        };
        let cases = [
            ("map", vec![vec![]; 1000], vec![vec![]; 10_000]),
            ("chain", levels(1, 1000, |_, _| [0]), levels(1, 10_000, |_, _| [0])),
            ("tree", tree(1024), tree(8192)),
            ("stencil", stencil(100), stencil(1000)),
            ("butterfly", butterfly(7), butterfly(10)),
            ("shuffle", shuffle(512), shuffle(4096)),
            ("hub", hub(1000), hub(10_000)),
        ];
        for (name, few, many) in cases {
            let each = |graph: &[Vec<u32>]| {
                LOOKED_AT.set(0);
                order(graph);
                let size = graph.len() + graph.iter().map(Vec::len).sum::<usize>();
                LOOKED_AT.get() as f64 / size as f64
            };
            let (few, many) = (each(&few), each(&many));
            assert!(many < 1.2 * few, "{name}: {few:.2} for each of few, {many:.2} of many");
        }
    }

    #[test]
    fn long_chains_wide_tasks_and_nothing_at_all_are_ordered() {
        assert!(order(&[]).is_empty());
        let chain: Vec<Vec<u32>> =
            (0..200_000).map(|i: u32| i.checked_sub(1).into_iter().collect()).collect();
        assert!(order(&chain).iter().zip(0..).all(|(place, task)| *place == task));
        let mut wide: Vec<Vec<u32>> = vec![vec![]; 100_000];
        wide.push((0..100_000).collect());
        assert_eq!(order(&wide)[100_000], 100_000);
    }

    #[test]
    fn a_task_is_as_high_as_the_longest_path_that_depends_on_it() {
        // 0 - 1 - 2 - 4, and 3 - 4; nobody needs 5.
        let graph = [vec![], vec![0], vec![1], vec![], vec![2, 3], vec![]];
        assert_eq!(ordered(&graph).heights, [3, 2, 1, 1, 0, 0]);
        let heights = ordered(&tree(1024)).heights;
        assert!(heights[..1024].iter().all(|height| *height == 10));
        assert_eq!(heights.last(), Some(&0));
    }

    #[test]
    fn a_cycle_gets_an_order_too() {
        let mut places = order(&[vec![1], vec![0], vec![2], vec![3]]);
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn every_task_comes_after_its_dependencies(
            graph in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..60),
        ) {
            let dependencies: Vec<Vec<u32>> = graph.iter().enumerate().map(|(i, wanted)| {
                let mut list: Vec<u32> =
                    if i == 0 { vec![] } else { wanted.iter().map(|w| w.index(i) as u32).collect() };
                list.sort_unstable();
                list.dedup();
                list
            }).collect();
            let places = order(&dependencies);
            let mut seen = places.clone();
            seen.sort_unstable();
            prop_assert!(seen.iter().zip(0..).all(|(place, i)| *place == i));
            for (task, list) in dependencies.iter().enumerate() {
                for dependency in list {
                    prop_assert!(places[*dependency as usize] < places[task]);
                }
            }
        }
    }
}

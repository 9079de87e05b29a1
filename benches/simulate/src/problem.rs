//! What is computed: families of task graphs, each from a seed and a size, and what is known of them beforehand.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, LogNormal};
use rankine::{
    graph::{Arguments, Function, Graph, GraphTask, Key},
    serialize::Frame,
    task::{EntryRef, Value},
};
use serde::{Deserialize, Serialize};

use crate::Error;

/// A family of graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Tasks without dependencies.
    Map,
    /// Chunks are made and summed up, eight at a time, until one sum is left.
    Tree,
    /// A grid of chunks over time: each step of a chunk needs the step before of itself and its four neighbours.
    Stencil,
    /// Each of log2(n) levels needs of the level before the same chunk and the one whose number differs in one bit,
    /// as a fast Fourier transform does.
    Butterfly,
    /// Each task needs up to four of those that come shortly before it.
    Random,
    /// Chunks are made, exchanged in two stages (each chunk is cut into eight pieces; pieces are joined) as Dask
    /// shuffles by tasks, and reduced.
    Shuffle,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Map, Self::Tree, Self::Stencil, Self::Butterfly, Self::Random, Self::Shuffle];

    /// Its name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Tree => "tree",
            Self::Stencil => "stencil",
            Self::Butterfly => "butterfly",
            Self::Random => "random",
            Self::Shuffle => "shuffle",
        }
    }
}

impl std::str::FromStr for Family {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|family| family.name() == name);
        found.ok_or_else(|| Error::Usage(format!("there is no family `{name}`; there are {}, all", names())))
    }
}

/// How long tasks take and how big their results are.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Mean nanoseconds that a task takes.
    pub duration: f64,
    /// Standard deviation of the logarithm of durations, which are log-normal: 0.25 has two of three tasks within a
    /// quarter of the median.
    pub spread: f64,
    /// Bytes of a chunk.
    pub nbytes: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { duration: 100e6, spread: 0.25, nbytes: 1_000_000 }
    }
}

/// One task.
#[derive(Debug, Clone)]
pub struct Task {
    /// Which of the problem's functions it calls.
    pub function: u32,
    /// Nanoseconds it takes on a worker of ordinary speed.
    pub duration: u64,
    /// Bytes of its result.
    pub nbytes: u64,
    /// Tasks that come before it.
    pub dependencies: Vec<u32>,
}

/// A result as workers hold and send it: what it is, and bytes that nobody looks at.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) number: u64,
    filler: Frame,
}

/// A graph, and what its results must be.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Every task comes after those that it depends on.
    pub tasks: Vec<Task>,
    functions: Vec<&'static str>,
    /// What all results share: memory that is never written, so it takes none.
    filler: Bytes,
}

impl Problem {
    /// A graph of about `size` tasks.
    pub fn new(family: Family, size: usize, sizes: Sizes, seed: u64) -> Self {
        let mut making = Making::new(sizes, seed);
        match family {
            Family::Map => {
                for _ in 0..size {
                    making.task("load", 1.0, 1.0, vec![]);
                }
            }
            Family::Tree => making.tree(size),
            Family::Stencil => making.stencil(size),
            Family::Butterfly => making.butterfly(size),
            Family::Random => making.random_graph(size),
            Family::Shuffle => making.shuffle(size),
        }
        making.problem
    }

    /// The key of a task: spread over all bits, as hashes are.
    pub fn key(task: usize) -> Key {
        Key((task as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
    }

    /// What is submitted.
    pub fn graph(&self) -> Graph {
        let function =
            |(number, name): (usize, &&str)| Function { entry: entry(number), name: (*name).into() };
        let task = |(number, task): (usize, &Task)| GraphTask {
            key: Self::key(number),
            function: task.function,
            options: u32::MAX,
            dependencies: task.dependencies.iter().map(|d| Self::key(*d as usize)).collect(),
            arguments: Arguments::copied(&(number as u64).to_le_bytes(), vec![]),
        };
        Graph {
            functions: self.functions.iter().enumerate().map(function).collect(),
            options: vec![],
            tasks: self.tasks.iter().enumerate().map(task).collect(),
        }
    }

    /// The task that was given these arguments.
    pub(crate) fn task_of(arguments: &Arguments) -> usize {
        let mut number = [0; 8];
        number.copy_from_slice(arguments.head());
        u64::from_le_bytes(number) as usize
    }

    /// A task's result, given those of its dependencies in their order: any other task, result or order would
    /// give another.
    pub fn evaluate(task: usize, dependencies: impl IntoIterator<Item = u64>) -> u64 {
        let mix = |sum: u64, value: u64| {
            (sum.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
        };
        dependencies.into_iter().fold(mix(0x5eed, task as u64), mix)
    }

    /// A task's result as workers hold it: of as many bytes as the task says.
    pub(crate) fn result(&self, task: usize, number: u64) -> Value {
        let nbytes = (self.tasks[task].nbytes as usize).min(self.filler.len());
        Value::new(Payload { number, filler: Frame(self.filler.slice(..nbytes)) })
    }

    /// All results, computed one after the other.
    pub fn results(&self) -> Vec<u64> {
        let mut results: Vec<u64> = Vec::with_capacity(self.tasks.len());
        for (number, task) in self.tasks.iter().enumerate() {
            let value = Self::evaluate(number, task.dependencies.iter().map(|d| results[*d as usize]));
            results.push(value);
        }
        results
    }

    /// Tasks that no other needs: what a client would ask for.
    pub fn ends(&self) -> Vec<u32> {
        let mut needed = vec![false; self.tasks.len()];
        self.tasks.iter().flat_map(|task| &task.dependencies).for_each(|d| needed[*d as usize] = true);
        (0..self.tasks.len() as u32).filter(|task| !needed[*task as usize]).collect()
    }

    /// Nanoseconds of the longest chain of tasks that need each other.
    pub fn critical_path(&self) -> u64 {
        let mut ends: Vec<u64> = Vec::with_capacity(self.tasks.len());
        for task in &self.tasks {
            let start = task.dependencies.iter().map(|d| ends[*d as usize]).max().unwrap_or(0);
            ends.push(start + task.duration);
        }
        ends.into_iter().max().unwrap_or(0)
    }

    /// Nanoseconds that one thread would take.
    pub fn work(&self) -> u64 {
        self.tasks.iter().map(|task| task.duration).sum()
    }
}

/// Functions are named by where their code lies; here by their number.
fn entry(number: usize) -> EntryRef {
    EntryRef { module: 0, offset: 8 * (number as u64 + 1), name: number as u64 + 1 }
}

/// Chunks that are summed up at a time.
const FAN_IN: usize = 8;
/// Pieces that a chunk is cut into in each stage of a shuffle.
const PIECES: usize = 8;

struct Making {
    problem: Problem,
    numbers: BTreeMap<&'static str, u32>,
    sizes: Sizes,
    durations: LogNormal<f64>,
    random: SmallRng,
}

impl Making {
    fn new(sizes: Sizes, seed: u64) -> Self {
        // Beyond a gibibyte a result is taken for one of that size.
        let filler = sizes.nbytes.min(1 << 30) as usize;
        // Its mean is 1.
        let durations = LogNormal::new(-sizes.spread * sizes.spread / 2.0, sizes.spread);
        Self {
            problem: Problem { tasks: Vec::new(), functions: Vec::new(), filler: vec![0; filler].into() },
            numbers: BTreeMap::new(),
            sizes,
            // A spread that is none is no spread.
            durations: durations.unwrap_or(LogNormal::new(0.0, 0.0).expect("no spread is a spread")),
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// Adds a task that takes and makes so much of what is usual; gives its number.
    fn task(&mut self, function: &'static str, duration: f64, nbytes: f64, dependencies: Vec<u32>) -> u32 {
        let Problem { tasks, functions, .. } = &mut self.problem;
        let function = *self.numbers.entry(function).or_insert_with(|| {
            functions.push(function);
            functions.len() as u32 - 1
        });
        let duration = self.sizes.duration * duration * self.durations.sample(&mut self.random);
        tasks.push(Task {
            function,
            duration: duration.max(1.0) as u64,
            nbytes: (self.sizes.nbytes as f64 * nbytes) as u64,
            dependencies,
        });
        tasks.len() as u32 - 1
    }

    fn tree(&mut self, size: usize) {
        // Of n chunks, n / 7 sums are made.
        let chunks = (size * (FAN_IN - 1) / FAN_IN).max(1);
        let mut level: Vec<u32> = (0..chunks).map(|_| self.task("load", 1.0, 1.0, vec![])).collect();
        while level.len() > 1 {
            level = level.chunks(FAN_IN).map(|part| self.task("sum", 1.0, 1.0, part.to_vec())).collect();
        }
    }

    fn stencil(&mut self, size: usize) {
        // Four times as wide as there are steps.
        let steps = (((size as f64).cbrt() / 4.0).round() as usize).max(3);
        let side = (((size / steps) as f64).sqrt() as usize).max(2);
        let mut before: Vec<u32> = (0..side * side).map(|_| self.task("load", 1.0, 1.0, vec![])).collect();
        for _ in 1..steps {
            let mut now = Vec::with_capacity(before.len());
            for (x, y) in (0..side).flat_map(|x| (0..side).map(move |y| (x, y))) {
                let near = [(x, y), (x.wrapping_sub(1), y), (x, y.wrapping_sub(1)), (x + 1, y), (x, y + 1)];
                let inside = near.into_iter().filter(|(x, y)| *x < side && *y < side);
                let needed = inside.map(|(x, y)| before[x * side + y]).collect();
                now.push(self.task("step", 1.0, 1.0, needed));
            }
            before = now;
        }
    }

    fn butterfly(&mut self, size: usize) {
        let levels = (1..40).find(|levels| (levels + 2) << (levels + 1) > size).unwrap_or(1);
        let mut before: Vec<u32> = (0..1 << levels).map(|_| self.task("load", 1.0, 1.0, vec![])).collect();
        for level in 0..levels {
            let needed = |i: usize| vec![before[i], before[i ^ (1 << level)]];
            let needed: Vec<Vec<u32>> = (0..before.len()).map(needed).collect();
            before = needed.into_iter().map(|needed| self.task("turn", 1.0, 1.0, needed)).collect();
        }
    }

    fn random_graph(&mut self, size: usize) {
        let window = (size / 20).max(4);
        let functions = ["f", "g", "h"];
        for task in 0..size {
            let count = if task == 0 { 0 } else { self.random.random_range(0..5) };
            let near = |random: &mut SmallRng| random.random_range(task.saturating_sub(window)..task) as u32;
            let mut needed: Vec<u32> = (0..count).map(|_| near(&mut self.random)).collect();
            needed.sort_unstable();
            needed.dedup();
            self.task(functions[task % functions.len()], 1.0, 1.0, needed);
        }
    }

    fn shuffle(&mut self, size: usize) {
        const STAGES: usize = 2;
        // Partitions are exchanged within blocks, wholly: a piece of each reaches each. Small graphs are one block,
        // of fewer pieces.
        let tasks = |pieces: usize| pieces * pieces * (2 + STAGES * (pieces + 1));
        let pieces = (2..=PIECES).rev().find(|pieces| tasks(*pieces) <= size).unwrap_or(2);
        let block = pieces * pieces;
        let blocks = (size / tasks(pieces)).max(1);
        for _ in 0..blocks {
            let mut partitions: Vec<u32> = (0..block).map(|_| self.task("load", 1.0, 1.0, vec![])).collect();
            for stride in [1, pieces] {
                let share = 1.0 / pieces as f64;
                let cut = |making: &mut Self, whole: u32| -> Vec<u32> {
                    (0..pieces).map(|_| making.task("split", 0.25, share, vec![whole])).collect()
                };
                let cuts: Vec<Vec<u32>> = partitions.iter().map(|whole| cut(self, *whole)).collect();
                let digit = |partition: usize| partition / stride % pieces;
                let joined = |to: usize| -> Vec<u32> {
                    let first = to - digit(to) * stride;
                    (0..pieces).map(|from| cuts[first + from * stride][digit(to)]).collect()
                };
                let joined: Vec<Vec<u32>> = (0..block).map(joined).collect();
                partitions = joined.into_iter().map(|needed| self.task("join", 1.0, 1.0, needed)).collect();
            }
            for partition in partitions {
                self.task("reduce", 1.0, 1.0, vec![partition]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_about_the_size_asked_for_and_their_tasks_an_order() {
        for family in Family::ALL {
            for size in [200, 5_000, 100_000] {
                let problem = Problem::new(family, size, Sizes::default(), 1);
                let count = problem.tasks.len();
                // A butterfly's size is a power of two times its levels; a shuffle has whole blocks.
                let least = if size == 200 { size / 3 } else { 2 * size / 5 };
                assert!((least..=size * 101 / 100).contains(&count), "{family:?}: {count} for {size}");
                for (number, task) in problem.tasks.iter().enumerate() {
                    assert!(task.dependencies.iter().all(|d| (*d as usize) < number), "{family:?}: {number}");
                }
            }
        }
    }

    #[test]
    fn durations_have_the_mean_that_is_asked_for() {
        let sizes = Sizes { spread: 0.5, ..Sizes::default() };
        let problem = Problem::new(Family::Map, 100_000, sizes, 7);
        let mean = problem.work() as f64 / 1e5;
        assert!((mean / sizes.duration - 1.0).abs() < 0.01, "{mean}");
    }

    #[test]
    fn a_result_is_of_its_task_and_its_dependencies_in_their_order() {
        let results = [(1, vec![2, 3]), (2, vec![2, 3]), (1, vec![3, 2]), (1, vec![2]), (1, vec![])]
            .map(|(task, dependencies)| Problem::evaluate(task, dependencies));
        for (i, result) in results.iter().enumerate() {
            assert!(!results[..i].contains(result), "{results:?}");
        }
    }

    #[test]
    fn a_shuffle_brings_a_part_of_each_partition_to_each() {
        let problem = Problem::new(Family::Shuffle, 1280, Sizes::default(), 1);
        let mut sources: Vec<std::collections::BTreeSet<u32>> = Vec::new();
        for (number, task) in problem.tasks.iter().enumerate() {
            let mut all: std::collections::BTreeSet<u32> =
                task.dependencies.iter().flat_map(|d| sources[*d as usize].iter().copied()).collect();
            if task.dependencies.is_empty() {
                all.insert(number as u32);
            }
            sources.push(all);
        }
        let ends = problem.ends();
        assert_eq!(ends.len(), 64);
        assert!(ends.iter().all(|end| sources[*end as usize].len() == 64));
    }
}

//! The command line: Task Bench's names, with one dash or two.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use crate::{Error, Graph, Kernel, Pattern, Shape, Work};

/// Over what scheduler, program and workers talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// All in this process: one worker with a thread a core.
    Inproc,
    /// Worker processes of one thread, a process a core, over TCP.
    Tcp,
    /// The ranks of an MPI job: start it with mpirun. One rank runs the program, the others are workers.
    Mpi,
}

impl Transport {
    /// As the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inproc => "inproc",
            Self::Tcp => "tcp",
            Self::Mpi => "mpi",
        }
    }
}

/// Task Bench for Rankine: how short may tasks be, and still be worth it?
///
/// Runs graphs as Task Bench (Slaughter et al., SC 2020) describes them: -steps rows of -width tasks, each of which needs
/// tasks of the row before as -type says, checks them, and does -iter iterations of -kernel. With -metg it makes the
/// tasks ever shorter, and finds the mean granularity (wall time x cores / tasks) at which half of the time is still
/// spent on useful work. Options may be written with one dash or two.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "taskbench",
    version,
    after_help = "Examples:\n  \
        taskbench -type stencil_1d -steps 1000 -width 2 -kernel compute_bound -iter 1000\n  \
        taskbench -metg -type stencil_1d -transport tcp -by-hand\n  \
        taskbench -metg -type all -transport tcp -csv metg.csv -plot metg.svg\n  \
        taskbench -type fft -width 8 -and -type nearest -radix 5 -width 4\n  \
        mpirun -n 3 taskbench -transport mpi -threads 1 -metg -type stencil_1d"
)]
pub struct Options {
    #[command(flatten)]
    first: GraphOptions,
    /// Over what it runs.
    #[arg(long, value_enum, default_value_t = Transport::Inproc)]
    pub transport: Transport,
    /// Workers; by default one in process, and a process a core over tcp.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Compute threads of each worker; by default the cores divided among the workers.
    #[arg(long)]
    pub threads: Option<u32>,
    /// Over tcp, lets worker processes run wherever the system puts them. Otherwise each is bound to cores of its own, as
    /// mpirun binds ranks.
    #[arg(long)]
    pub unbound: bool,
    /// Finds the minimum effective task granularity: halves -iter until too little of the time is useful.
    #[arg(long)]
    pub metg: bool,
    /// With -metg, also runs the graphs without Rankine, on threads that exchange outputs over channels (inproc) or sockets
    /// (tcp) and know what comes when: what the machine has to give.
    #[arg(long, requires = "metg")]
    pub by_hand: bool,
    /// Runs of each graph; figures are their medians.
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
    /// With -metg, seconds that a run may take where that needs fewer than -steps rows.
    #[arg(long, default_value_t = 0.3)]
    pub seconds: f64,
    /// Writes all points there, as CSV.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// With -metg, draws efficiency against granularity there, as SVG.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    #[arg(skip)]
    further: Vec<GraphOptions>,
}

/// What one graph is like.
#[derive(Debug, Clone, Args)]
pub struct GraphOptions {
    /// Rows; 1000 with -metg.
    #[arg(long)]
    steps: Option<u64>,
    /// Tasks of a row; by default the number of cores.
    #[arg(long)]
    width: Option<u64>,
    /// Patterns, one run each: trivial, no_comm, stencil_1d, stencil_1d_periodic, dom, tree, fft, all_to_all, nearest,
    /// spread, random_nearest, or all.
    #[arg(long = "type", value_name = "PATTERN", value_delimiter = ',', default_value = "trivial")]
    patterns: Vec<String>,
    /// What a task does: empty, compute_bound, memory_bound, load_imbalance; compute_bound with -metg, else empty.
    #[arg(long)]
    kernel: Option<Kernel>,
    /// Iterations of the kernel; with -metg where to begin (by default tasks of 2 ms).
    #[arg(long, value_name = "ITERATIONS")]
    iter: Option<u64>,
    /// Bytes that each task gives to those that need it.
    #[arg(long, default_value_t = 16)]
    output: u64,
    /// Of nearest, spread, random_nearest: how many columns there are to need; at most -width for spread.
    #[arg(long, default_value_t = 3)]
    radix: u64,
    /// Of spread, random_nearest: after how many rows dependencies repeat.
    #[arg(long, default_value_t = 3)]
    period: u64,
    /// Of random_nearest: the share of the columns that is needed.
    #[arg(long, default_value_t = 0.25)]
    fraction: f64,
    /// Of load_imbalance: tasks take from 1 - IMBALANCE / 2 to 1 + IMBALANCE / 2 of -iter.
    #[arg(long, default_value_t = 0.0)]
    imbalance: f64,
    /// Bytes of memory that each thread has for memory_bound.
    #[arg(long, default_value_t = 0)]
    scratch: u64,
    /// Begins a further graph, which runs at the same time; what is not of a graph is said before.
    #[arg(long = "and")]
    _and: bool,
}

/// A further graph's words alone.
#[derive(Parser)]
#[command(name = "taskbench ... -and")]
struct Further {
    #[command(flatten)]
    graph: GraphOptions,
}

impl Options {
    /// Reads a command line, the program's name not in it.
    ///
    /// # Errors
    /// What clap says of it, `--help` among them.
    pub fn read(words: impl IntoIterator<Item = String>) -> Result<Self, clap::Error> {
        let words: Vec<String> = words.into_iter().map(two_dashes).collect();
        // Of each graph's words the first one names the program, for clap.
        let mut graphs = words.split(|word| word == "--and").map(|words| {
            let mut named = vec!["taskbench".to_owned()];
            named.extend_from_slice(words);
            named
        });
        let mut options = Self::try_parse_from(graphs.next().unwrap_or_default())?;
        for words in graphs {
            options.further.push(Further::try_parse_from(words)?.graph);
        }
        Ok(options)
    }

    /// The graphs to run on so many cores: one after the other, and in each element those at the same time.
    ///
    /// # Errors
    /// If there is no such graph.
    pub fn graphs(&self, cores: u64) -> Result<Vec<Vec<Graph>>, Error> {
        if self.repetitions == 0 || !(self.seconds > 0.0 && self.seconds.is_finite()) {
            return Err(Error::Usage("-repetitions start at 1, and -seconds is a number above 0".into()));
        }
        let mut runs = Vec::new();
        for pattern in self.first.patterns()? {
            let mut together = vec![self.first.graph(pattern, 0, cores, self.metg)?];
            for further in &self.further {
                let patterns = further.patterns()?;
                let [pattern] = patterns[..] else {
                    return Err(Error::Usage("after -and there is one -type a graph".into()));
                };
                together.push(further.graph(pattern, together.len() as u64, cores, self.metg)?);
            }
            runs.push(together);
        }
        Ok(runs)
    }
}

/// `-steps` as `--steps`; negative numbers stay what they are.
fn two_dashes(word: String) -> String {
    match word.strip_prefix('-') {
        Some(name) if name.len() > 1 && name.starts_with(|first: char| first.is_ascii_alphabetic()) => {
            format!("-{word}")
        }
        _ => word,
    }
}

impl GraphOptions {
    fn patterns(&self) -> Result<Vec<Pattern>, Error> {
        if self.patterns.iter().any(|name| name == "all") {
            return Ok(Pattern::ALL.to_vec());
        }
        self.patterns.iter().map(|name| name.parse().map_err(Error::Usage)).collect()
    }

    fn graph(&self, pattern: Pattern, index: u64, cores: u64, metg: bool) -> Result<Graph, Error> {
        let usual = if metg { (1000, Kernel::ComputeBound) } else { (4, Kernel::Empty) };
        let width = self.width.unwrap_or(cores);
        let shape = Shape {
            pattern,
            steps: self.steps.unwrap_or(usual.0),
            width,
            // Fewer columns than the usual radix are no mistake of the user's.
            radix: if pattern == Pattern::Spread { self.radix.min(width) } else { self.radix },
            period: self.period,
            fraction: self.fraction,
        };
        let work = Work {
            kernel: self.kernel.unwrap_or(usual.1),
            iterations: self.iter.unwrap_or(0),
            imbalance: self.imbalance,
            scratch: self.scratch,
        };
        let graph = Graph { index, shape, work, output: self.output };
        graph.check()?;
        Ok(graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options, clap::Error> {
        Options::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_named_as_in_task_bench() {
        let line = "-steps 10 -width 4 -type nearest -kernel load_imbalance -iter 5 -output 64 -radix 5 -period 2 \
                    -fraction 0.5 -imbalance 0.1 -scratch 8";
        let one = read(line).expect("it is right").graphs(2).expect("it is a graph");
        let two = read(&line.replace(" -", " --")).expect("it is right").graphs(2).expect("it is a graph");
        assert_eq!(one, two);
        let graph = one[0][0];
        assert_eq!((graph.shape.steps, graph.shape.width, graph.shape.radix, graph.output), (10, 4, 5, 64));
        assert_eq!((graph.shape.period, graph.shape.fraction), (2, 0.5));
        let work = Work { kernel: Kernel::LoadImbalance, iterations: 5, imbalance: 0.1, scratch: 8 };
        assert_eq!(graph.work, work);
    }

    #[test]
    fn further_graphs_run_at_the_same_time() {
        let options = read("-type fft -width 8 -metg -and -type dom -and -steps 7").expect("it is right");
        let runs = options.graphs(2).expect("they are graphs");
        assert_eq!(runs.len(), 1);
        let shapes: Vec<_> =
            runs[0].iter().map(|g| (g.index, g.shape.pattern, g.shape.width, g.shape.steps)).collect();
        let expected = [(0, Pattern::Fft, 8, 1000), (1, Pattern::Dom, 2, 1000), (2, Pattern::Trivial, 2, 7)];
        assert_eq!(shapes, expected);
        assert_eq!(read("-type all").expect("it is right").graphs(2).expect("they are graphs").len(), 11);
    }

    #[test]
    fn mistakes_are_told() {
        for line in [
            "-steps",
            "-width -1",
            "-nonsense 3",
            "-kernel none",
            "-transport pigeon",
            "-and -metg",
            "-by-hand",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
        for line in ["-type nonsense", "-steps 0", "-output 3", "-kernel memory_bound", "-repetitions 0"] {
            assert!(read(line).expect("clap takes it").graphs(2).is_err(), "{line}");
        }
        for line in ["-and -type all", "-metg -seconds nan"] {
            assert!(read(line).expect("clap takes it").graphs(2).is_err(), "{line}");
        }
    }
}

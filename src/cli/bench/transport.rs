//! `rankine bench transport`: leads, or follows who leads.

use std::{fs, io::IsTerminal, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::ValueEnum;
use rankine_transport::{Address, Connection, bare::Bare};
use serde::{Deserialize, Serialize};

use super::{
    figures::{Row, Spread, Test},
    measure::{self, Batch},
    parse_sizes,
    party::{Mesh, Party},
    plot, report, show_size,
};
use crate::{Error, Result, output::print, settings::Settings};

/// Batches of a figure, in turn over Rankine and the bare fabric.
const BATCHES: usize = 5;
/// Messages under way at once may fill this much memory in a batch.
const MOST_BYTES: u64 = 4 << 30;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Tests to run
    #[arg(long, value_enum, value_delimiter = ',', default_value = "latency,bandwidth,rate")]
    test: Vec<Test>,
    /// Sizes of messages: a list, or a range in powers of two
    #[arg(long, default_value = "8,1KiB,64KiB,1MiB,4MiB,64MiB", value_name = "1..1GiB")]
    sizes: String,
    /// Processes: 2 for all tests but pairs and alltoall
    #[arg(long, default_value_t = 2)]
    processes: usize,
    /// Seconds that each figure takes, half of it for the bare fabric
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// How to write the figures
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write a report with plots, one file for a browser or a printer
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Wait for a process on another host, at tcp://HOST:PORT (tcp://*:0 for any)
    #[arg(long, value_name = "ADDRESS", conflicts_with = "connect")]
    listen: Option<Address>,
    /// Join the process that waits at this address; it leads
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<Address>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Csv,
    Json,
}

/// What the leader says comes next.
#[derive(Serialize, Deserialize)]
enum Step {
    /// Listen on the transport.
    Open { scheme: String, local: bool },
    /// Connect by these pairs of ranks.
    Connect { addresses: Vec<String>, pairs: Vec<(usize, usize)> },
    /// Measure over the connections.
    Measure(Batch),
    /// Set up the bare fabric between the first two processes.
    OpenBare { scheme: String },
    /// Measure over that.
    Bare(Batch),
    /// Let go of all that was opened.
    Close,
    /// Nothing more comes.
    End,
}

/// What each process answers.
#[derive(Default, Serialize, Deserialize)]
struct Answer {
    /// Why it could not.
    failed: Option<String>,
    /// Where it listens, or what the bare fabric is called.
    said: String,
    /// Nanoseconds of what it measured.
    times: Vec<u64>,
    /// Part of a core that it used meanwhile.
    cpu: f64,
}

/// What a process has open while one transport is measured.
struct Session {
    party: Party,
    mesh: Option<Mesh>,
    bare: Option<Box<dyn Bare>>,
    payload: Bytes,
}

/// Leads a benchmark, or takes part in one.
pub(super) fn run(options: Options, settings: Settings) -> Result<()> {
    let sizes = parse_sizes(&options.sizes)?;
    if let Some(leader) = &options.connect {
        let party = Party::join(&settings, leader)?;
        return Session::new(party).follow();
    }
    if options.processes < 2 {
        return Err(Error::Usage("--processes must be 2 or more: a message goes from one to another".into()));
    }
    let wide = options.test.iter().any(|test| matches!(test, Test::Pairs | Test::Alltoall));
    let processes = if wide { options.processes.max(4) } else { options.processes };
    let (party, local) = match &options.listen {
        Some(address) => (Party::listen(&settings, address)?, false),
        None => match ranks(&settings)? {
            Some(party) if party.rank > 0 => return Session::new(party).follow(),
            Some(party) => (party, false),
            None => (Party::start(&settings, processes)?, settings.interface.is_none()),
        },
    };
    let schemes: Vec<String> = party.registry.schemes().map(String::from).collect();
    let chosen = settings.transport != "auto";
    let mut session = Session::new(party);
    let (mut rows, mut absent) = (Vec::new(), Vec::new());
    let measure = || {
        for scheme in schemes {
            let measured = session.transport(&scheme, &options, &sizes, local, &mut rows);
            progress_done();
            match measured {
                Ok(()) => {}
                Err(error) if chosen => return Err(error),
                Err(error) => absent.push((scheme, error.to_string())),
            }
            session.lead(&Step::Close)?;
        }
        Ok(())
    };
    let measured = measure();
    // Whoever is still there need not wait, however it went.
    let _ = session.party.tell(&Step::End);
    measured?;
    let text = report::write(&rows, &absent, options.format)?;
    print(text)?;
    if let Some(path) = &options.html {
        let context = format!(
            "rankine {} on {}: {} processes on {} cores, {} s a figure",
            env!("CARGO_PKG_VERSION"),
            crate::worker::server::hostname(),
            session.party.size,
            std::thread::available_parallelism().map_or(1, usize::from),
            options.seconds,
        );
        let page = plot::page(&context, &rows, &absent)?;
        fs::write(path, page).map_err(Error::io(format!("write {}", path.display())))?;
        eprintln!("report: {}", path.display());
    }
    Ok(())
}

/// The ranks of an MPI job, where this is one.
fn ranks(_settings: &Settings) -> Result<Option<Party>> {
    #[cfg(feature = "mpi")]
    return Party::ranks(_settings);
    #[cfg(not(feature = "mpi"))]
    Ok(None)
}

impl Session {
    fn new(party: Party) -> Self {
        Self { party, mesh: None, bare: None, payload: Bytes::new() }
    }

    /// Does what the leader says until nothing more comes.
    ///
    /// # Errors
    /// If the leader goes before that.
    fn follow(mut self) -> Result<()> {
        loop {
            let step = self.party.hear::<Step>()?;
            if matches!(step, Step::End) {
                return Ok(());
            }
            let answer = self
                .perform(&step)
                .unwrap_or_else(|e| Answer { failed: Some(e.to_string()), ..Answer::default() });
            self.party.tell(&answer)?;
        }
    }

    /// Has all processes do a step; gives their answers, the own first.
    fn lead(&mut self, step: &Step) -> Result<Vec<Answer>> {
        self.party.tell(step)?;
        let own = self.perform(step);
        if own.is_err() {
            // Those on the other side would wait for this one.
            (self.mesh, self.bare) = (None, None);
        }
        let mut answers = vec![Answer::default()];
        answers.extend(self.party.answers::<Answer>()?);
        answers[0] = own?;
        match answers.iter().position(|answer| answer.failed.is_some()) {
            Some(rank) => {
                let reason = answers[rank].failed.take().unwrap_or_default();
                Err(Error::Usage(format!("process {rank} of the benchmark: {reason}")))
            }
            None => Ok(answers),
        }
    }

    fn perform(&mut self, step: &Step) -> Result<Answer> {
        match step {
            Step::Open { scheme, local } => {
                let (mesh, said) = self.party.open(scheme, *local)?;
                self.mesh = Some(mesh);
                Ok(Answer { said, ..Answer::default() })
            }
            Step::Connect { addresses, pairs } => {
                let mesh = self.mesh.as_mut().ok_or_else(|| Error::closed("nothing is open"))?;
                self.party.connect(mesh, addresses, pairs)?;
                Ok(Answer::default())
            }
            Step::Measure(batch) => self.measure(*batch),
            Step::OpenBare { scheme } => self.open_bare(scheme),
            Step::Bare(batch) => self.measure_bare(*batch),
            Step::Close | Step::End => {
                (self.mesh, self.bare) = (None, None);
                Ok(Answer::default())
            }
        }
    }

    fn payload(&mut self, size: u64) -> Result<Bytes> {
        if self.payload.len() as u64 != size {
            self.payload = measure::payload(size)?;
        }
        Ok(self.payload.clone())
    }

    fn measure(&mut self, batch: Batch) -> Result<Answer> {
        let (rank, size) = (self.party.rank, self.party.size);
        let (leads, partner) = match batch.test {
            Test::Alltoall => (true, None),
            Test::Pairs => (rank < size / 2, Some((rank + size / 2) % size)),
            _ if rank < 2 => (rank == 0, Some(1 - rank)),
            _ => return Ok(Answer::default()),
        };
        let payload = self.payload(batch.size)?;
        let mesh = self.mesh.as_mut().ok_or_else(|| Error::closed("nothing is open"))?;
        let mut connections: Vec<&mut Connection> = mesh
            .connections
            .iter_mut()
            .filter(|(with, _)| partner.is_none_or(|p| p == *with))
            .map(|(_, c)| c)
            .collect();
        let used = measure::Used::from_now();
        let times = match (&mut connections[..], partner) {
            ([connection], Some(_)) => {
                self.party.runtime.block_on(measure::pair(batch, leads, &payload, connection))?
            }
            (_, None) => self.party.runtime.block_on(measure::all_to_all(batch, &payload, connections))?,
            _ => return Err(Error::closed("there is no connection to measure")),
        };
        Ok(Answer { times: nanos(&times), cpu: used.part_of_a_core(), ..Answer::default() })
    }

    fn open_bare(&mut self, scheme: &str) -> Result<Answer> {
        let rank = self.party.rank;
        if rank > 1 {
            return Ok(Answer::default());
        }
        // A clone of the registry shares its transports.
        let registry = self.party.registry.clone();
        let transport = registry.transports().find(|transport| transport.scheme() == scheme);
        let transport = transport.ok_or_else(|| Error::closed("the transport is gone"))?;
        let bare = transport.bare(&mut self.party.with_partner()?, rank == 0);
        match bare {
            Ok(bare) => {
                let said = bare.name().to_owned();
                self.bare = Some(bare);
                Ok(Answer { said, ..Answer::default() })
            }
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(Answer::default()),
            Err(error) => Err(Error::io(format!("set up the bare fabric below {scheme}"))(error)),
        }
    }

    fn measure_bare(&mut self, batch: Batch) -> Result<Answer> {
        let Some(bare) = &mut self.bare else { return Ok(Answer::default()) };
        let size = usize::try_from(batch.size).map_err(|_| Error::Usage("too big a size".into()))?;
        let times = match batch.test {
            Test::Latency => bare.ping_pong(size, batch.count),
            _ => bare.stream(size, batch.count).map(|took| vec![took]),
        };
        let times = times.map_err(Error::io("measure the bare fabric"))?;
        Ok(Answer { times: nanos(&times), ..Answer::default() })
    }

    /// Measures all of one transport.
    fn transport(
        &mut self,
        scheme: &str,
        options: &Options,
        sizes: &[u64],
        local: bool,
        rows: &mut Vec<Row>,
    ) -> Result<()> {
        if scheme == "inproc" {
            return self.within(scheme, options, sizes, rows);
        }
        let opened = self.lead(&Step::Open { scheme: scheme.into(), local })?;
        let addresses: Vec<String> = opened.into_iter().map(|answer| answer.said).collect();
        let pairs = pairs(&options.test, self.party.size);
        self.lead(&Step::Connect { addresses, pairs })?;
        let name = self.lead(&Step::OpenBare { scheme: scheme.into() })?.swap_remove(0).said;
        // A name in a report lives as long as the program.
        let baseline: &'static str = if name.is_empty() { "memcpy" } else { name.leak() };
        for &test in &options.test {
            for &size in sizes {
                progress(scheme, test, size);
                rows.push(self.row(scheme, test, size, baseline, options.seconds)?);
            }
        }
        Ok(())
    }

    /// One figure of a transport, and the one it is compared with.
    fn row(
        &mut self,
        scheme: &str,
        test: Test,
        size: u64,
        baseline: &'static str,
        seconds: f64,
    ) -> Result<Row> {
        let half = self.party.size / 2;
        let senders = match test {
            Test::Bibandwidth => 2,
            Test::Pairs => half.max(1),
            _ => 1,
        };
        let compares = !matches!(test, Test::Bibandwidth | Test::Pairs | Test::Alltoall);
        let share = Duration::from_secs_f64((seconds / 2.0 / BATCHES as f64).max(1e-3));
        let ours = |session: &mut Self, count: usize| -> Result<(Vec<Duration>, [f64; 2])> {
            let answers = session.lead(&Step::Measure(Batch { test, size, count }))?;
            let cpu = [answers[0].cpu, answers.get(1).map_or(0.0, |answer| answer.cpu)];
            let times = if test == Test::Pairs {
                // All pairs together are as fast as the slowest lets them be.
                answers.iter().take(half).flat_map(|a| &a.times).max().copied().into_iter().collect()
            } else {
                answers.into_iter().next().map(|answer| answer.times).unwrap_or_default()
            };
            Ok((times.into_iter().map(Duration::from_nanos).collect(), cpu))
        };
        let bare = |session: &mut Self, count: usize| -> Result<Vec<Duration>> {
            if baseline == "memcpy" {
                return if test == Test::Latency {
                    Ok(Vec::new())
                } else {
                    Ok(vec![measure::copies(size, count)?])
                };
            }
            let answers = session.lead(&Step::Bare(Batch { test, size, count }))?;
            let times = answers.into_iter().next().map(|answer| answer.times).unwrap_or_default();
            Ok(times.into_iter().map(Duration::from_nanos).collect())
        };
        let our_count = calibrate(share, size, |count| Ok(ours(self, count)?.0))?;
        let bare_count = if compares { calibrate(share, size, |count| bare(self, count))? } else { 0 };
        let per_round = matches!(test, Test::Latency | Test::Alltoall);
        let figures = |times: &[Duration], count: usize| -> Vec<f64> {
            let count = if per_round { 1 } else { count };
            times.iter().map(|took| test.figure(*took, size, count, senders)).collect()
        };
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        let mut cpu = [0.0; 2];
        for _ in 0..BATCHES {
            let (times, used) = ours(self, our_count)?;
            cpu = [cpu[0] + used[0] / BATCHES as f64, cpu[1] + used[1] / BATCHES as f64];
            mine.push(figures(&times, our_count));
            if compares {
                theirs.push(figures(&bare(self, bare_count)?, bare_count));
            }
        }
        make_row(scheme, test, size, &mine, &theirs, baseline, cpu)
    }

    /// Both ends in this process.
    fn within(&mut self, scheme: &str, options: &Options, sizes: &[u64], rows: &mut Vec<Row>) -> Result<()> {
        let mut ends = self.party.both_ends(scheme)?;
        // Chunks change hands: what they weigh is nothing that passes, so their bandwidth would tell nothing.
        for &test in options.test.iter().filter(|test| matches!(test, Test::Latency | Test::Rate)) {
            for &size in sizes {
                progress(scheme, test, size);
                let payload = self.payload(size)?;
                let share = Duration::from_secs_f64((options.seconds / 2.0 / BATCHES as f64).max(1e-3));
                let mut ours = |count| {
                    let batch = Batch { test, size, count };
                    self.party.runtime.block_on(measure::within(batch, &payload, &mut ends))
                };
                let count = calibrate(share, 0, &mut ours)?;
                let mut mine = Vec::new();
                let used = measure::Used::from_now();
                for _ in 0..BATCHES {
                    let times = ours(count)?;
                    let each = if test == Test::Latency { 1 } else { count };
                    mine.push(times.iter().map(|took| test.figure(*took, size, each, 1)).collect());
                }
                rows.push(make_row(scheme, test, size, &mine, &[], "", [used.part_of_a_core(); 2])?);
            }
        }
        Ok(())
    }
}

fn make_row(
    scheme: &str,
    test: Test,
    size: u64,
    mine: &[Vec<f64>],
    theirs: &[Vec<f64>],
    baseline: &'static str,
    cpu: [f64; 2],
) -> Result<Row> {
    let rankine = Spread::of(mine, test.is_time()).ok_or_else(|| Error::closed("nothing was measured"))?;
    let bare = Spread::of(theirs, test.is_time());
    Ok(Row {
        transport: scheme.into(),
        test,
        size,
        unit: test.unit(),
        rankine,
        baseline: bare.map(|_| baseline),
        bare,
        ratio: bare.map(|bare| rankine.p50 / bare.p50),
        cpu,
    })
}

fn nanos(times: &[Duration]) -> Vec<u64> {
    times.iter().map(|time| time.as_nanos() as u64).collect()
}

/// Which processes talk to each other in these tests.
fn pairs(tests: &[Test], size: usize) -> Vec<(usize, usize)> {
    let mut pairs = vec![(0, 1)];
    for test in tests {
        match test {
            Test::Pairs => pairs.extend((0..size / 2).map(|rank| (rank, rank + size / 2))),
            Test::Alltoall => pairs.extend((0..size).flat_map(|a| (a + 1..size).map(move |b| (a, b)))),
            _ => {}
        }
    }
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// How many messages take about `share`, found by trying; the trials are the warm-up.
fn calibrate(
    share: Duration,
    size: u64,
    mut measure: impl FnMut(usize) -> Result<Vec<Duration>>,
) -> Result<usize> {
    let most = usize::try_from((MOST_BYTES / size.max(1)).clamp(2, 1_000_000)).unwrap_or(2);
    let mut count = 2;
    loop {
        let took: Duration = measure(count)?.iter().sum();
        if took * 4 > share || count >= most {
            let each = (took.as_secs_f64() / count as f64).max(1e-10);
            return Ok(((share.as_secs_f64() / each) as usize).clamp(2, most));
        }
        count = (count * 4).min(most);
    }
}

fn progress(scheme: &str, test: Test, size: u64) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{scheme}: {} of {}", test.name(), show_size(size));
    }
}

fn progress_done() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

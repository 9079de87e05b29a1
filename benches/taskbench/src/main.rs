//! Runs Task Bench's graphs on Rankine: in this process, on worker processes, or as ranks under mpirun.

use std::{env, fs, process::ExitCode};

use futures::executor::block_on;
use rankine::Client;
use rankine_taskbench::{
    ByHand, Error, Options, Place, Report, Transport,
    metg::{Runner, Sweep},
    plot, run,
};

/// What a task takes is mostly allocated by one thread and given back by another: the system's allocator takes twice
/// the time of this one for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rankine::init();
    let words: Vec<String> = env::args().skip(1).collect();
    if cfg!(feature = "mpi") && asks_for_ranks(&words) {
        // Which rank plays which role is Rankine's to say; that of the program comes back with its words.
        return rankine::run(|client| async move {
            ended(match options(rankine::args()) {
                Ok(options) => program(&client, &options, Transport::Mpi).await,
                Err(code) => return code,
            })
        });
    }
    let options = match options(words) {
        Ok(options) => options,
        Err(code) => return code,
    };
    ended(
        Place::start(&options)
            .and_then(|place| block_on(program(place.client(), &options, options.transport))),
    )
}

/// Whether a command line has `-transport mpi` in it: asked before it is read, since under mpirun only one of
/// the ranks reads it.
fn asks_for_ranks(words: &[String]) -> bool {
    let named = |word: &str| matches!(word, "-transport" | "--transport");
    words.windows(2).any(|pair| named(&pair[0]) && pair[1] == "mpi")
        || words.iter().any(|word| word.split_once('=').is_some_and(|(name, of)| named(name) && of == "mpi"))
}

fn options(words: Vec<String>) -> Result<Options, ExitCode> {
    Options::read(words).map_err(|error| {
        let _ = error.print();
        ExitCode::from(error.exit_code() as u8)
    })
}

fn ended(outcome: Result<(), Error>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taskbench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn program(client: &Client, options: &Options, transport: Transport) -> Result<(), Error> {
    let workers = client.scheduler_info().await?.workers;
    let cores: u64 = workers.iter().map(|worker| u64::from(worker.info.nthreads)).sum();
    let runs = options.graphs(cores)?;
    let mut report = Report::new(transport.name(), options.csv.as_deref())?;
    if !options.metg {
        for graphs in &runs {
            let mut seen = Vec::with_capacity(options.repetitions);
            for _ in 0..options.repetitions {
                seen.push(run(client, graphs).await?);
            }
            report.run(graphs, cores, &seen)?;
        }
        return Ok(());
    }
    let sweep = Sweep { cores, repetitions: options.repetitions, seconds: options.seconds };
    let by_hand = options.by_hand.then(|| ByHand::new(cores, transport)).transpose()?;
    let runners: Vec<_> =
        [Runner::Rankine(client)].into_iter().chain(by_hand.as_ref().map(Runner::ByHand)).collect();
    report.head(cores)?;
    let mut sweeps = Vec::with_capacity(runs.len());
    for graphs in runs {
        let swept = sweep.run(&runners, &graphs).await?;
        swept.iter().try_for_each(|swept| report.sweep(swept))?;
        sweeps.extend(swept);
    }
    if let Some(path) = &options.plot {
        let title = format!("Task Bench on Rankine over {}, {cores} cores", transport.name());
        fs::write(path, plot(&title, &sweeps)?)
            .map_err(|error| Error::Write { path: path.display().to_string(), error })?;
    }
    Ok(())
}

//! Graphs of all patterns and kernels, in process and over worker processes; the sweep and what it draws.
//!
//! The binary is its own worker, so `main` begins with `rankine::init()`.

use futures::executor::block_on;
use libtest_mimic::{Arguments, Failed, Trial};
use rankine::{Client, TaskFuture, serialize::Frame};
use rankine_taskbench::{
    ByHand, Call, Error, Graph, Kernel, Options, Pattern, Place, Report, Shape, Transport, Work,
    metg::{Runner, Sweep, metg},
    plot, point, run,
};

type Outcome = Result<(), Failed>;

fn main() {
    rankine::init();
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    macro_rules! both {
        ($($name:ident),* $(,)?) => {$(
            for transport in ["inproc", "tcp"] {
                trials.push(Trial::test(format!("{}::{transport}", stringify!($name)), move || {
                    let place = Place::start(&read(&format!("-transport {transport} -workers 2 -threads 1")))?;
                    block_on($name(place.client()))
                }));
            }
        )*};
    }
    both!(
        every_pattern_runs_with_every_kernel,
        outputs_may_be_big,
        graphs_run_at_the_same_time,
        a_wrong_input_errs,
        a_sweep_gives_a_figure_a_table_and_a_plot,
    );
    trials.push(Trial::test("every_pattern_runs_by_hand", every_pattern_runs_by_hand));
    libtest_mimic::run(&arguments, trials).exit();
}

fn read(line: &str) -> Options {
    Options::read(line.split_whitespace().map(str::to_owned)).expect("the line is right")
}

fn graph(pattern: Pattern, kernel: Kernel) -> Graph {
    let shape = Shape { pattern, steps: 9, width: 5, radix: 3, period: 3, fraction: 0.5 };
    let work = Work { kernel, iterations: 20, imbalance: 0.5, scratch: 4096 };
    Graph { index: 0, shape, work, output: 32 }
}

async fn every_pattern_runs_with_every_kernel(client: &Client) -> Outcome {
    for pattern in Pattern::ALL {
        for kernel in Kernel::ALL {
            let graph = graph(pattern, kernel);
            let ran = run(client, &[graph]).await?;
            assert_eq!(ran.tasks, graph.shape.tasks(), "{pattern}, {kernel}");
            assert!(ran.wall.as_nanos() > 0);
        }
    }
    Ok(())
}

/// Each task checks its inputs here too.
fn every_pattern_runs_by_hand() -> Outcome {
    for transport in [Transport::Inproc, Transport::Tcp] {
        // More threads than columns, as many, and fewer.
        for threads in [1, 2, 3, 5, 7] {
            let by_hand = ByHand::new(threads, transport)?;
            let graphs: Vec<Graph> = Pattern::ALL
                .into_iter()
                .zip(0..)
                .map(|(pattern, index)| {
                    let mut graph = Graph { index, ..graph(pattern, Kernel::LoadImbalance) };
                    graph.shape.steps += index;
                    graph
                })
                .collect();
            let tasks: u64 = graphs.iter().map(|graph| graph.shape.tasks()).sum();
            assert_eq!(by_hand.run(&graphs)?.tasks, tasks);
        }
    }
    let big = Graph { output: 100_000, ..graph(Pattern::AllToAll, Kernel::Empty) };
    assert!(matches!(ByHand::new(2, Transport::Tcp)?.run(&[big]), Err(Error::Usage(_))));
    assert_eq!(ByHand::new(2, Transport::Inproc)?.run(&[big])?.tasks, 45);
    assert!(matches!(ByHand::new(2, Transport::Mpi), Err(Error::Usage(_))));
    Ok(())
}

async fn outputs_may_be_big(client: &Client) -> Outcome {
    let graph = Graph { output: 100_001, ..graph(Pattern::AllToAll, Kernel::Empty) };
    assert_eq!(run(client, &[graph]).await?.tasks, 45);
    Ok(())
}

async fn graphs_run_at_the_same_time(client: &Client) -> Outcome {
    let options = read(
        "-type fft -width 8 -steps 20 -and -type dom -width 3 -steps 5 -and -type tree -steps 6 -width 4",
    );
    let graphs = options.graphs(2)?.remove(0);
    let tasks = 8 * 20 + (1 + 2 + 3 + 2 + 1) + (1 + 2 + 4 + 4 + 4 + 4);
    assert_eq!(run(client, &graphs).await?.tasks, tasks);
    Ok(())
}

async fn a_wrong_input_errs(client: &Client) -> Outcome {
    let graph = graph(Pattern::Stencil1d, Kernel::Empty);
    let call = |step, column| Call { graph, step, column };
    let nothing = Vec::<&TaskFuture<Frame>>::new();
    let first: Vec<_> =
        (0..3).map(|column| client.submit(point, (call(0, column), nothing.clone()))).collect();
    let good = client.submit(point, (call(1, 1), first.iter().collect::<Vec<_>>()));
    assert_eq!(&good.await?.0[..], graph.output_of(1, 1));
    let swapped = client.submit(point, (call(1, 1), vec![&first[0], &first[2], &first[1]]));
    let error = swapped.await.expect_err("two inputs are swapped").to_string();
    assert!(error.contains("output of task 0, 1 says at byte 0 that it is of task (0, 2)"), "{error}");
    let missing = client.submit(point, (call(1, 1), vec![&first[0]]));
    let error = missing.await.expect_err("inputs are missing").to_string();
    assert!(error.contains("needs 3 inputs and was given 1"), "{error}");
    // And who depends on it has no result either.
    let wrong = Graph { output: 3, ..graph };
    assert!(matches!(run(client, &[wrong]).await, Err(Error::Usage(_))));
    Ok(())
}

async fn a_sweep_gives_a_figure_a_table_and_a_plot(client: &Client) -> Outcome {
    let directory = tempfile::tempdir()?;
    let csv = directory.path().join("points.csv");
    let graphs = read("-metg -type stencil_1d -steps 20 -iter 400").graphs(2)?.remove(0);
    let sweep = Sweep { cores: 2, repetitions: 1, seconds: 0.1 };
    let by_hand = ByHand::new(2, Transport::Inproc)?;
    let swept = sweep.run(&[Runner::Rankine(client), Runner::ByHand(&by_hand)], &graphs).await?;
    let [ours, theirs] = &swept[..] else { return Err("there are two runners".into()) };
    assert_eq!((ours.label(), theirs.label()), ("stencil_1d".to_owned(), "stencil_1d by hand".to_owned()));
    assert_eq!(theirs.points[0].iterations, 400);
    let points = &ours.points;
    assert!(points.windows(2).all(|pair| pair[1].iterations == pair[0].iterations.div_ceil(2)));
    // A busy machine may leave no point effective, but never more than there is.
    assert!(points.iter().all(|point| point.granularity > 0.0 && point.efficiency > 0.0));
    assert!(points.last().is_some_and(|point| point.efficiency < 0.2 || point.iterations == 1));
    assert!(metg(points).is_none_or(|metg| metg <= points[0].granularity));
    let mut report = Report::new("inproc", Some(&csv))?;
    swept.iter().try_for_each(|swept| report.sweep(swept))?;
    let lines: Vec<String> = std::fs::read_to_string(&csv)?.lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 1 + points.len() + theirs.points.len());
    assert!(lines.iter().all(|line| line.split(',').count() == 12), "{lines:?}");
    let svg = plot("a title", &swept)?;
    assert!(svg.starts_with("<svg") && svg.contains("stencil_1d") && svg.contains("a title"));
    let empty = read("-metg -kernel empty").graphs(2)?.remove(0);
    assert!(matches!(sweep.run(&[Runner::Rankine(client)], &empty).await, Err(Error::Usage(_))));
    Ok(())
}

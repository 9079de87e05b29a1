//! Thousands of small clusters on which everything goes wrong: each must end, with right results and nothing left.
//!
//! What a scenario is follows from its seed alone. A failure names it; `RANKINE_SIMULATE_SEED=n` runs that one alone
//! and writes its events to standard error.

use std::io::Seek;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rankine_simulate::{
    Dask, Error, Family, Fault, Network, Outcome, Problem, Recording, Request, Run, Setting, Simulation,
    Sizes, replay,
};

/// Scenarios of each family.
const SCENARIOS: u64 = 700;
const SECOND: u64 = 1_000_000_000;

struct Scenario {
    problem: Problem,
    setting: Setting,
}

impl Scenario {
    fn new(family: Family, seed: u64) -> Self {
        let random = &mut SmallRng::seed_from_u64(seed);
        let sizes = Sizes {
            duration: one_of(random, &[50e3, 2e6, 100e6]),
            spread: one_of(random, &[0.0, 0.25, 1.0]),
            nbytes: one_of(random, &[8, 1_000_000, 100_000_000]),
        };
        let problem = Problem::new(family, random.random_range(1..60), sizes, seed);
        let workers = random.random_range(2..=40);
        // In every fourth one memory is short, if results are worth a file.
        let limit = random.random_range(3..10) * sizes.nbytes;
        let limited = sizes.nbytes > 8 && random.random_bool(0.25);
        let mut setting = Setting {
            threads: random.random_range(1..4),
            network: Network {
                per_process: random.random_range(1..3),
                per_node: random.random_range(1..3) * 2,
                ..Network::default()
            },
            saturation: one_of(random, &[1.1, 2.0, f64::INFINITY]),
            stragglers: one_of(random, &[0, 0, 200]),
            memory_limit: if limited { limit } else { 0 },
            worker_ttl: 3 * SECOND,
            patience: 2 * SECOND,
            ..Setting::new(workers, &problem)
        };
        // Something happens in all of the run, and somewhat beyond.
        let span = 2 * setting.lower_bound(&problem);
        setting.requests[0].cancels = cancels(random, &setting.requests[0].wants, span);
        if random.random_bool(0.3) {
            let all: Vec<u32> = (0..problem.tasks.len() as u32).collect();
            let wants = some_of(random, &all, 0.3);
            let cancels = cancels(random, &wants, span);
            setting.requests.push(Request { at: random.random_range(0..span), wants, cancels });
        }
        for _ in 0..random.random_range(0..6) {
            let number = random.random_range(0..40);
            let fault = one_of(
                random,
                &[
                    Fault::Join,
                    Fault::Kill(number),
                    Fault::Vanish(number),
                    Fault::VanishHost(number),
                    Fault::Retire(number),
                ],
            );
            setting.faults.push((random.random_range(0..span), fault));
        }
        Self { problem, setting }
    }

    fn run(&self, logged: bool) -> Result<(Outcome, Vec<String>), Error> {
        let simulation = Simulation::new(&self.problem, &self.setting, self.setting.rankine());
        let simulation = if logged { simulation.logged() } else { simulation };
        simulation.run().map(|Run { outcome, log, .. }| (outcome, log))
    }

    /// Whether all that is computed is computed once.
    fn goes_well(&self) -> bool {
        let quiet = |(_, fault): &(u64, Fault)| matches!(fault, Fault::Join | Fault::Retire(_));
        self.setting.faults.iter().all(quiet)
            && self.setting.requests.len() == 1
            && self.setting.requests[0].cancels.is_none()
    }
}

fn one_of<T: Copy>(random: &mut SmallRng, choices: &[T]) -> T {
    choices[random.random_range(0..choices.len())]
}

fn some_of(random: &mut SmallRng, tasks: &[u32], share: f64) -> Vec<u32> {
    tasks.iter().copied().filter(|_| random.random_bool(share)).collect()
}

fn cancels(random: &mut SmallRng, wants: &[u32], span: u64) -> Option<(u64, Vec<u32>)> {
    let at = random.random_range(0..span);
    random.random_bool(0.3).then(|| (at, some_of(random, wants, 0.5)))
}

/// Runs all scenarios of a family, or the one asked for.
fn all_end_well(family: Family) {
    let seeds = match std::env::var("RANKINE_SIMULATE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("RANKINE_SIMULATE_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..SCENARIOS,
    };
    let asked_for = seeds.end - seeds.start == 1;
    let mut sum = Outcome::default();
    for seed in seeds.clone() {
        let scenario = Scenario::new(family, seed);
        // A panic of the machines' own checks names the seed too.
        let run = std::panic::catch_unwind(|| scenario.run(asked_for));
        let again = format!("RANKINE_SIMULATE_SEED={seed} runs it again; {:?}", scenario.setting);
        let (outcome, log) = match run {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => panic!("{family:?}, seed {seed}: {error}; {again}"),
            Err(_) => panic!("{family:?}, seed {seed}: a machine's own check failed; {again}"),
        };
        log.iter().for_each(|line| eprintln!("{line}"));
        if scenario.goes_well() {
            assert_eq!(outcome.executed as usize, outcome.tasks, "{family:?}, seed {seed}; {again}");
        }
        sum.tasks += outcome.tasks;
        sum.executed += outcome.executed;
        sum.steals += outcome.steals;
        sum.forwarded += outcome.forwarded;
        sum.spilled += outcome.spilled;
    }
    let Outcome { tasks, executed, steals, forwarded, spilled, .. } = sum;
    println!(
        "{family:?}: {} scenarios, {tasks} tasks, {executed} executions, {steals} given back, {forwarded} forwarded, \
         {spilled} written to disk",
        seeds.end - seeds.start
    );
    // All that may go wrong was there to go wrong.
    let depends = family != Family::Map;
    assert!(asked_for || steals > 0 && spilled > 0 && (forwarded > 0) == depends);
}

#[test]
fn maps_end_well_whatever_goes_wrong() {
    all_end_well(Family::Map);
}

#[test]
fn trees_end_well_whatever_goes_wrong() {
    all_end_well(Family::Tree);
}

#[test]
fn stencils_end_well_whatever_goes_wrong() {
    all_end_well(Family::Stencil);
}

#[test]
fn butterflies_end_well_whatever_goes_wrong() {
    all_end_well(Family::Butterfly);
}

#[test]
fn random_graphs_end_well_whatever_goes_wrong() {
    all_end_well(Family::Random);
}

#[test]
fn shuffles_end_well_whatever_goes_wrong() {
    all_end_well(Family::Shuffle);
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for seed in 0..60 {
        let family = Family::ALL[seed as usize % Family::ALL.len()];
        let run = || Scenario::new(family, seed).run(true).map_err(|e| format!("seed {seed}: {e}")).unwrap();
        let ((one, first), (other, second)) = (run(), run());
        assert!(first == second, "{family:?}, seed {seed}: two runs differ");
        assert_eq!((one.makespan, one.moved, one.messages), (other.makespan, other.moved, other.messages));
    }
    let log = |seed| Scenario::new(Family::Random, seed).run(true).unwrap().1;
    assert_ne!(log(1), log(2));
}

/// Seeds over which schedules are compared: one by itself differs by chance.
const SEEDS: std::ops::Range<u64> = 1..5;

/// For each family the means of makespan / lower bound, on twenty workers: ours, and Dask's.
fn mean_ratios(change: impl Fn(&mut Setting)) -> Vec<(Family, f64, f64)> {
    let of_family = |family: Family| {
        let (mut ours, mut theirs) = (0.0, 0.0);
        for seed in SEEDS {
            let problem = Problem::new(family, 2000, Sizes::default(), seed);
            let mut setting = Setting::new(20, &problem);
            change(&mut setting);
            let outcome = Simulation::new(&problem, &setting, setting.rankine()).run().unwrap().outcome;
            let dask = Simulation::new(&problem, &setting, Dask::new(&setting)).run().unwrap().outcome;
            assert_eq!((outcome.executed, dask.executed), (outcome.tasks as u64, outcome.tasks as u64));
            let bound = setting.lower_bound(&problem) as f64 * SEEDS.count() as f64;
            ours += outcome.makespan as f64 / bound;
            theirs += dask.makespan as f64 / bound;
        }
        println!("{family:?}: {ours:.3} times the lower bound, Dask's policies {theirs:.3}");
        (family, ours, theirs)
    };
    Family::ALL.into_iter().map(of_family).collect()
}

/// Each family, up to what four seeds differ by, and all together.
fn no_worse_than_dasks(ratios: &[(Family, f64, f64)], at_most: f64) {
    for (family, ours, theirs) in ratios {
        assert!(*ours <= theirs * 1.004, "{family:?}: {ours:.4}, Dask's {theirs:.4}");
    }
    let mean = ratios.iter().map(|(_, ours, _)| ours).sum::<f64>() / ratios.len() as f64;
    assert!(mean <= at_most, "{mean:.3}");
}

#[test]
fn what_a_scheduler_heard_makes_another_do_the_same() {
    let Scenario { problem, setting } = Scenario::new(Family::Random, 3);
    let recording = Recording::new(tempfile::tempfile().unwrap());
    let run = Simulation::new(&problem, &setting, setting.rankine()).recorded(recording).run().unwrap();
    let heard = run.outcome.messages;
    let mut recording = run.recording.unwrap().finish().unwrap();
    // Whether it knows what comes next or not.
    for pauses in [false, true] {
        recording.rewind().unwrap();
        let (_, instructions) = replay(&recording, setting.rankine(), pauses).unwrap();
        assert!((1..heard).contains(&instructions), "{instructions} of {heard} messages");
        assert_eq!(instructions, run.outcome.told);
    }
}

#[test]
fn schedules_are_near_the_bound_and_no_worse_than_dasks() {
    no_worse_than_dasks(&mean_ratios(|_| {}), 1.06);
}

#[test]
fn stragglers_are_relieved_by_others_who_take_over() {
    let with = mean_ratios(|setting| setting.stragglers = 100);
    no_worse_than_dasks(&with, 1.08);
    let without = mean_ratios(|setting| (setting.stragglers, setting.stealing) = (100, false));
    // All together gain; stencils alone gain nothing on average, and four seeds differ by as much as this.
    for ((family, stealing, _), (_, alone, _)) in with.iter().zip(&without) {
        assert!(*stealing < alone * 1.015, "{family:?}: {stealing:.3}, without stealing {alone:.3}");
    }
    let mean = |ratios: &[(Family, f64, f64)]| {
        ratios.iter().map(|(_, ours, _)| ours).sum::<f64>() / ratios.len() as f64
    };
    let (stealing, alone) = (mean(&with), mean(&without));
    assert!(stealing + 0.01 < alone, "{stealing:.3}, without stealing {alone:.3}");
}

#[test]
fn a_reduction_holds_few_of_its_chunks() {
    let problem = Problem::new(Family::Tree, 1143, Sizes::default(), 1);
    let chunks = problem.tasks.iter().filter(|task| task.dependencies.is_empty()).count();
    assert_eq!(chunks, 1000);
    let peak = |saturation| {
        let setting = Setting { saturation, ..Setting::new(10, &problem) };
        let outcome = Simulation::new(&problem, &setting, setting.rankine()).run().unwrap().outcome;
        outcome.peak / Sizes::default().nbytes
    };
    let (queued, at_once) = (peak(1.1), peak(f64::INFINITY));
    println!("of {chunks} chunks at most {queued} are held with queuing, {at_once} without");
    assert!(queued < 100, "{queued}");
    assert!(10 * at_once >= 13 * queued, "{at_once} and {queued}");
}

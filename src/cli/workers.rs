//! `rankine workers`: what each worker of a running cluster does, and where its memory went.

use super::{Cluster, columns, or_none};
use crate::{
    Result, amounts::Bytes, client::block_on, output::print, protocol::WorkerStatus, settings::Settings,
};

#[derive(clap::Args)]
#[command(after_help = "\
Of memory, `results` are those that the worker holds for others, `other` is what its process occupies besides (the
program's own data, what tasks allocate, libraries), `spilled` are results that lie on disk alone.")]
pub(super) struct Options {
    #[command(flatten)]
    cluster: Cluster,
}

/// Asks the scheduler and prints a line a worker.
pub(super) fn show(options: &Options, settings: &Settings) -> Result<()> {
    let client = options.cluster.observe(settings)?;
    let info = block_on(client.scheduler_info())?;
    let heads =
        ["worker", "host", "threads", "running", "assigned", "limit", "results", "other", "spilled", ""];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(info.workers.iter().map(row));
    print(columns(&rows, |column| (2..9).contains(&column)))
}

fn row(worker: &WorkerStatus) -> Vec<String> {
    let metrics = &worker.metrics;
    let notes = [(worker.paused, "paused: its memory is short"), (worker.retiring, "leaves")];
    vec![
        worker.info.name.to_string(),
        worker.info.host.to_string(),
        worker.info.nthreads.to_string(),
        metrics.executing.to_string(),
        worker.processing.to_string(),
        or_none(worker.info.memory_limit),
        Bytes(metrics.managed).to_string(),
        Bytes(metrics.unmanaged()).to_string(),
        Bytes(metrics.spilled).to_string(),
        notes.iter().filter(|(so, _)| *so).map(|(_, note)| *note).collect::<Vec<_>>().join(", "),
    ]
}

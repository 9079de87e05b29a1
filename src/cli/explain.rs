//! `rankine explain`: why a running cluster's tasks are where they are.

use super::Cluster;
use crate::{Result, client::block_on, graph::Key, output::print, settings::Settings};

#[derive(clap::Args)]
#[command(after_help = "\
A task's key is what `TaskFuture::key` shows, 32 hexadecimal digits, or the name given with
`client.options().key(name)`. Without a key the tasks that do not run are told of, those first that no worker may run.")]
pub(super) struct Options {
    /// Keys or names of tasks
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    cluster: Cluster,
}

/// Asks the scheduler and prints what it says, a line a task.
pub(super) fn explain(options: &Options, settings: &Settings) -> Result<()> {
    let client = options.cluster.observe(settings)?;
    let keys: Vec<Key> = options.keys.iter().map(|word| key(word)).collect();
    let told = block_on(client.explain_all(keys))?;
    if told.is_empty() {
        return print("No task waits for anything.\n");
    }
    print(told.iter().map(|one| format!("{one}\n")).collect::<String>())
}

fn key(word: &str) -> Key {
    match u128::from_str_radix(word, 16) {
        Ok(number) if word.len() == 32 => Key(number),
        _ => Key::named(word),
    }
}

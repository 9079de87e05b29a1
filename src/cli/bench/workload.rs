//! `rankine bench workload`: the same task graphs over each transport.

use crate::{Result, settings::Settings};

#[derive(clap::Args)]
pub(crate) struct Options {}

pub(super) fn run(_: Options, _: Settings) -> Result<()> {
    Ok(())
}

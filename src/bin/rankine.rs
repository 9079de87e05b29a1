//! The command `rankine`: settings, transports and benchmarks of a machine. `rankine --help` tells more.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The workers of the clusters that a benchmark starts are processes of this very file.
    rankine::init();
    rankine::cli::main()
}

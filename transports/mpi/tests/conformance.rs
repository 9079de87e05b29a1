//! The suite that every transport passes, both ends in one rank: `mpirun -n 1`.
//!
//! All of it runs on one thread, the one that joins; so it has no test harness.

use std::process::ExitCode;

use rankine_transport::conformance;
use rankine_transport_mpi::Mpi;
use tokio::runtime::Builder;

fn main() -> ExitCode {
    let membership = match Mpi::join() {
        Ok(membership) => membership,
        Err(error) => {
            println!("SKIPPED conformance over mpi://: {error}");
            return ExitCode::SUCCESS;
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let failed = conformance::run(&runtime, &Mpi::default(), "mpi://*");
    membership.leave().expect("it leaves");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

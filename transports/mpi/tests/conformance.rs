//! The suite that every transport passes, both ends in one rank: `mpirun -n 1`.
//!
//! All of it runs on one thread, the one that joins; so it has no test harness.

use std::time::{Duration, Instant};

use rankine_transport::conformance as suite;
use rankine_transport_mpi::Mpi;
use tokio::{runtime, time::timeout};

macro_rules! behaviours {
    ($runtime:expr; $($behaviour:ident)*) => {$(
        let start = Instant::now();
        let run = async {
            timeout(Duration::from_secs(60), suite::$behaviour(&Mpi::default(), "mpi://*")).await
        };
        $runtime.block_on(run).expect(concat!(stringify!($behaviour), " ends in time"));
        println!("{} ... ok ({:.2?})", stringify!($behaviour), start.elapsed());
    )*};
}

fn main() {
    let membership = match Mpi::join() {
        Ok(membership) => membership,
        Err(error) => return println!("SKIPPED conformance over mpi://: {error}"),
    };
    let runtime = || runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Several runtimes, one after the other, as a program may have them.
    behaviours! { runtime();
        messages_arrive_in_order frames_of_all_sizes_arrive_whole many_connections_do_not_mix
        both_directions_work_at_once a_slow_reader_bounds_its_writer a_closed_direction_leaves_the_other_open
        a_peer_that_goes_without_closing_is_an_error a_cancelled_receive_loses_nothing
        a_cancelled_send_corrupts_nothing connecting_to_nobody_is_an_error
        listening_on_a_taken_address_is_an_error strangers_may_send_only_handshakes
        who_shares_the_secret_is_let_in who_does_not_share_the_secret_is_refused
    }
    membership.leave().expect("it leaves");
}

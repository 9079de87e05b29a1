//! The tests that every transport passes: one function a behaviour, one macro for all.
//!
//! `conformance_suite!(Transport::default(), "scheme://place")` in a transport's tests expands to one
//! test a behaviour. The place must be one that can be listened on many times (port 0, `*`). For a
//! program that is no test harness, [`run`] runs them one after the other.

mod arriving;
mod ending;
mod opening;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::timeout;

pub use arriving::*;
pub use ending::*;
pub use opening::*;

use crate::{Address, Connection, Limits, Listener, Message, Transport};

/// Each behaviour is given this long.
pub const TIMEOUT: Duration = Duration::from_secs(180);

macro_rules! behaviours {
    ($($behaviour:ident)*) => {
        /// Runs the whole suite over a transport: see [the module](self).
        #[macro_export]
        macro_rules! conformance_suite {
            ($transport:expr, $place:expr) => {$(
                #[tokio::test]
                async fn $behaviour() {
                    let transport = $transport;
                    let run = $crate::conformance::$behaviour(&transport, $place);
                    tokio::time::timeout($crate::conformance::TIMEOUT, run).await.expect("it ends in time");
                }
            )*};
        }

        /// All behaviours, by name.
        pub const BEHAVIOURS: &[(&str, Behaviour)] = &[$(
            (stringify!($behaviour), |transport, place| Box::pin($behaviour(transport, place))),
        )*];
    };
}

/// One behaviour, to be run over a transport; it panics where the transport does not behave so.
pub type Behaviour = for<'a> fn(&'a dyn Transport, &'a str) -> BoxFuture<'a, ()>;

behaviours! {
    messages_arrive_in_order messages_that_wait_together_arrive_in_order frames_of_all_sizes_arrive_whole
    tens_of_thousands_of_frames_arrive_whole frames_beyond_4_gib_arrive_whole many_connections_do_not_mix
    both_directions_work_at_once values_travel_only_within_a_process what_exceeds_the_limits_is_refused
    a_slow_reader_bounds_its_writer a_receiver_holds_a_window_and_no_more a_closed_direction_leaves_the_other_open nothing_follows_a_close
    who_closes_and_goes_is_no_error a_peer_that_goes_without_closing_is_an_error
    a_writer_hears_that_its_reader_went a_cancelled_receive_loses_nothing a_cancelled_send_corrupts_nothing
    connections_that_end_leave_nothing_behind connecting_to_nobody_is_an_error
    a_listener_that_goes_takes_its_visitors_with_it a_cancelled_accept_loses_nobody
    a_cancelled_connect_harms_nobody listening_on_a_taken_address_is_an_error
    a_listener_is_within_reach strangers_may_send_only_handshakes who_shares_the_secret_is_let_in
    who_speaks_another_version_is_refused who_does_not_share_the_secret_is_refused
}

/// Runs all behaviours over a transport, one after the other, and says of each how it went; for
/// programs that are no test harness. Gives how many failed.
///
/// Each runs on the calling thread, on a runtime that lives as long as all of them.
pub fn run(runtime: &tokio::runtime::Runtime, transport: &dyn Transport, place: &str) -> usize {
    let mut failed = 0;
    for (name, behaviour) in BEHAVIOURS {
        let start = std::time::Instant::now();
        let run = || runtime.block_on(async { timeout(TIMEOUT, behaviour(transport, place)).await });
        let went = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(Ok(())) => "ok",
            Ok(Err(_)) => "FAILED: it does not end",
            Err(_) => "FAILED",
        };
        failed += usize::from(went != "ok");
        println!("test {name} ... {went} ({:.2} s)", start.elapsed().as_secs_f64());
    }
    failed
}

fn address(place: &str) -> Address {
    place.parse().expect("the suite's place is an address")
}

/// A listener and both ends of a connection to it, which take any message.
async fn pair(transport: &dyn Transport, place: &str) -> (Box<dyn Listener>, Connection, Connection) {
    let (listener, mut ours, mut theirs) = strangers(transport, place).await;
    ours.receiver.set_limits(Limits::PEER);
    theirs.receiver.set_limits(Limits::PEER);
    (listener, ours, theirs)
}

async fn strangers(transport: &dyn Transport, place: &str) -> (Box<dyn Listener>, Connection, Connection) {
    let mut listener = transport.listen(&address(place)).await.expect("it listens");
    let at = listener.address().clone();
    let (ours, theirs) = tokio::join!(transport.connect(&at), listener.accept());
    (listener, ours.expect("it connects"), theirs.expect("it accepts"))
}

async fn expect(connection: &mut Connection) -> Message {
    connection.receiver.recv().await.expect("it receives").expect("a message")
}

/// Bytes that tell their place.
fn pattern(length: usize, seed: usize) -> Bytes {
    (0..length).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

/// Bytes of memory that programs may still take, as far as the system tells.
fn available_memory() -> u64 {
    let told = || {
        let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    told().unwrap_or(0) << 10
}

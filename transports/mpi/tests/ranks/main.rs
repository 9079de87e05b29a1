//! What holds between ranks: `mpirun -n RANKS ranks [NAME...]`, with two ranks or more.
//!
//! All ranks run the same behaviours in the same order, in step. A rank that finds one not to hold
//! panics, and so ends the job.

mod delivery;
mod ending;
mod waiting;
mod zero_copy;

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rankine_transport::{Connection, Error, Limits, Listener, Message, Transport};
use rankine_transport_mpi::{Membership, Mpi};
use tokio::{
    runtime::Builder,
    time::{sleep, timeout},
};

/// The port that ranks keep in step over.
const STEPS: u32 = 1;
/// The port that behaviours use, one at a time.
const PORT: u32 = 2;

fn main() {
    let membership = match Mpi::join() {
        Ok(membership) if membership.size() > 1 => membership,
        Ok(_) => return println!("SKIPPED what holds between ranks: this is one rank"),
        Err(error) => return println!("SKIPPED what holds between ranks: {error}"),
    };
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let asked: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    runtime.block_on(async {
        let mut ranks = Ranks::meet(&membership).await;
        macro_rules! behaviours {
            ($($module:ident::$name:ident)*) => {$(
                if asked.is_empty() || asked.iter().any(|asked| asked == stringify!($name)) {
                    ranks.run(stringify!($name), async |ranks| $module::$name(ranks).await).await;
                }
            )*};
        }
        behaviours! {
            delivery::messages_arrive_in_order_both_ways_at_once
            delivery::messages_of_all_sizes_arrive_whole
            delivery::many_connections_among_all_ranks_do_not_mix
            delivery::a_slow_reader_bounds_its_writer
            delivery::frames_beyond_what_an_int_counts_arrive_whole
            delivery::what_each_rank_gives_all_have
            zero_copy::frames_leave_from_and_arrive_in_their_own_memory
            ending::a_closed_direction_leaves_the_other_open
            ending::a_dropped_connection_is_lost_to_the_other_side
            ending::a_sender_that_goes_amid_a_frame_is_lost_and_its_number_used_again
            ending::a_receiver_that_goes_amid_a_frame_is_lost_and_its_number_used_again
            ending::an_abandoned_connect_leaves_nothing_behind
            ending::nobody_is_there_is_an_error
            ending::another_thread_is_told_whose_turn_it_is
            waiting::idle_ranks_use_next_to_nothing
            waiting::an_idle_rank_wakes_in_time
        }
        if asked.iter().any(|asked| asked == "a_rank_is_killed") {
            ending::a_rank_is_killed(&mut ranks).await;
        }
    });
    if asked.iter().any(|asked| asked == "the_guard_is_forgotten") {
        // Then the end of this thread leaves.
        return std::mem::forget(membership);
    }
    let here = membership.address(membership.rank(), STEPS);
    assert!(Mpi::default().reaches(&here));
    membership.leave().expect("it leaves");
    assert!(!Mpi::default().reaches(&here));
    let error = runtime.block_on(Mpi::default().connect(&here)).expect_err("MPI is finalized");
    assert!(error.to_string().contains("finalized"), "{error}");
}

/// All ranks, seen from one of them.
struct Ranks<'a> {
    membership: &'a Membership,
    /// To keep in step: rank 0 has one to each other, in their order; the others have one to rank 0.
    steps: Vec<Connection>,
}

impl<'a> Ranks<'a> {
    async fn meet(membership: &'a Membership) -> Self {
        let mut steps = Vec::new();
        if membership.rank() == 0 {
            let mut listener = listen(STEPS).await;
            for _ in 1..membership.size() {
                let mut connection = listener.accept().await.expect("it accepts");
                connection.receiver.set_limits(Limits::PEER);
                steps.push(connection);
            }
            steps.sort_by_key(peer);
        } else {
            steps.push(connect(membership, 0, STEPS).await);
        }
        Self { membership, steps }
    }

    fn rank(&self) -> usize {
        self.membership.rank()
    }

    fn size(&self) -> usize {
        self.membership.size()
    }

    /// Runs a behaviour on all ranks at once.
    async fn run(&mut self, name: &str, behaviour: impl AsyncFnOnce(&mut Self)) {
        let start = Instant::now();
        timeout(Duration::from_secs(90), behaviour(self)).await.expect(name);
        self.step().await;
        if self.rank() == 0 {
            println!("{name} ... ok ({:.2?})", start.elapsed());
        }
    }

    /// Waits until all ranks are here.
    async fn step(&mut self) {
        let first = self.rank() == 0;
        for turn in [!first, first] {
            for Connection { sender, receiver, .. } in &mut self.steps {
                if turn {
                    sender.send(Message::new("here", vec![])).await.expect("it sends");
                } else {
                    receiver.recv().await.expect("it receives").expect("a step");
                }
            }
        }
    }

    /// The ends of a connection between ranks 0 and 1; none on others.
    async fn pair(&mut self) -> Option<Connection> {
        match self.rank() {
            0 => {
                let mut connection = listen(PORT).await.accept().await.expect("it accepts");
                connection.receiver.set_limits(Limits::PEER);
                Some(connection)
            }
            1 => Some(connect(self.membership, 0, PORT).await),
            _ => None,
        }
    }
}

async fn listen(port: u32) -> Box<dyn Listener> {
    let address = format!("mpi://*:{port}").parse().expect("an address");
    Mpi::default().listen(&address).await.expect("it listens")
}

/// Connects to a listener that may be about to be there.
async fn connect(membership: &Membership, rank: usize, port: u32) -> Connection {
    let address = membership.address(rank, port);
    for _ in 0..10_000 {
        match Mpi::default().connect(&address).await {
            Ok(mut connection) => {
                connection.receiver.set_limits(Limits::PEER);
                return connection;
            }
            Err(Error::Connect { source, .. }) if source.kind() == std::io::ErrorKind::ConnectionRefused => {
                sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("nobody came to listen at {address}");
}

/// The rank at the other end.
fn peer(connection: &Connection) -> usize {
    let place = connection.peer.place().split(['/', ':', '#']).nth(1);
    place.and_then(|rank| rank.parse().ok()).expect("an address with a rank")
}

async fn receive(connection: &mut Connection) -> Message {
    connection.receiver.recv().await.expect("it receives").expect("a message")
}

async fn send(connection: &mut Connection, head: impl Into<Bytes>, frames: Vec<Bytes>) {
    connection.sender.send(Message::new(head, frames)).await.expect("it sends");
}

/// Bytes that tell their place, by a period that no size of the transport's is a multiple of.
fn pattern(length: usize, seed: usize) -> Bytes {
    const PERIOD: usize = 65_521;
    static BYTES: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..PERIOD as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect());
    let start = seed * 7919 % PERIOD;
    let mut bytes = Vec::with_capacity(start + length + PERIOD);
    while bytes.len() < start + length {
        bytes.extend_from_slice(&BYTES);
    }
    Bytes::from(bytes).slice(start..start + length)
}

//! The same graphs without any runtime: what a program reaches that was written by hand for one graph.
//!
//! A thread a core computes its columns, row by row, and gives each output to the threads whose tasks need it: through
//! channels, or through sockets as processes on one machine would. Everybody knows what comes from whom and when, so
//! nothing is said but the outputs.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use rankine::serialize::Frame;

use crate::{Call, Error, Graph, Run, Transport, point};

/// Bytes of a row of all graphs at most, over sockets: a thread writes its outputs before it reads what others wrote.
const ROW: u64 = 32 << 10;

/// Threads that run graphs.
#[derive(Debug, Clone, Copy)]
pub struct ByHand {
    threads: u64,
    transport: Transport,
}

enum Sender {
    Channel(mpsc::Sender<Arc<Frame>>),
    Socket(TcpStream),
}

enum Receiver {
    Channel(mpsc::Receiver<Arc<Frame>>),
    Socket(TcpStream),
}

impl Sender {
    fn send(&mut self, output: &Arc<Frame>) -> io::Result<()> {
        match self {
            Self::Channel(sender) => {
                sender.send(output.clone()).map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
            Self::Socket(socket) => socket.write_all(&output.0),
        }
    }
}

impl Receiver {
    fn receive(&mut self, length: u64) -> io::Result<Arc<Frame>> {
        match self {
            Self::Channel(receiver) => receiver.recv().map_err(|_| io::ErrorKind::UnexpectedEof.into()),
            Self::Socket(socket) => {
                let mut output = vec![0; length as usize];
                socket.read_exact(&mut output)?;
                Ok(Arc::new(Frame(output.into())))
            }
        }
    }
}

/// A thread's ends of its links with all others; with itself it has none.
struct Links {
    to: Vec<Option<Sender>>,
    from: Vec<Option<Receiver>>,
}

impl ByHand {
    /// So many threads, which exchange outputs over `transport`.
    ///
    /// # Errors
    /// If that is MPI's.
    pub fn new(threads: u64, transport: Transport) -> Result<Self, Error> {
        match transport {
            Transport::Mpi => {
                Err(Error::Usage("-by-hand is for -transport inproc and -transport tcp".into()))
            }
            Transport::Inproc | Transport::Tcp => Ok(Self { threads, transport }),
        }
    }

    /// As [`crate::run`].
    ///
    /// # Errors
    /// If a task found a wrong input, rows are too big for sockets, or there are no more threads or sockets.
    pub fn run(&self, graphs: &[Graph]) -> Result<Run, Error> {
        graphs.iter().try_for_each(Graph::check)?;
        let row = graphs.iter().map(|graph| graph.shape.width.saturating_mul(graph.output));
        if self.transport == Transport::Tcp && row.fold(0, u64::saturating_add) > ROW {
            return Err(Error::Usage(format!("-by-hand over tcp is for rows of {ROW} bytes at most")));
        }
        let links = self.links().map_err(Error::ByHand)?;
        let start = Instant::now();
        let outcomes: Vec<Result<(), Error>> = thread::scope(|scope| -> Result<Vec<_>, Error> {
            let mut threads = Vec::with_capacity(links.len());
            // Where there are no more threads, the others find their links gone.
            for (me, links) in (0..).zip(links) {
                let work = move || self.work(me, graphs, links);
                threads.push(thread::Builder::new().spawn_scoped(scope, work).map_err(Error::ByHand)?);
            }
            let gone = || Err(Error::ByHand(io::Error::other("a thread panicked")));
            Ok(threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect())
        })?;
        let wall = start.elapsed();
        // Whoever found something wrong is gone for the others.
        let (wrong, gone): (Vec<_>, Vec<_>) =
            outcomes.into_iter().filter_map(Result::err).partition(|error| matches!(error, Error::Wrong(_)));
        match wrong.into_iter().chain(gone).next() {
            Some(error) => Err(error),
            None => Ok(Run { tasks: graphs.iter().map(|graph| graph.shape.tasks()).sum(), wall }),
        }
    }

    fn links(&self) -> io::Result<Vec<Links>> {
        let threads = self.threads as usize;
        let none =
            || Links { to: (0..threads).map(|_| None).collect(), from: (0..threads).map(|_| None).collect() };
        let mut links: Vec<Links> = (0..threads).map(|_| none()).collect();
        for (one, other) in (0..threads).flat_map(|one| (0..threads).map(move |other| (one, other))) {
            if one == other {
                continue;
            }
            let (sender, receiver) = match self.transport {
                Transport::Tcp => {
                    let listener = TcpListener::bind("127.0.0.1:0")?;
                    let near = TcpStream::connect(listener.local_addr()?)?;
                    near.set_nodelay(true)?;
                    (Sender::Socket(near), Receiver::Socket(listener.accept()?.0))
                }
                Transport::Inproc | Transport::Mpi => {
                    let (sender, receiver) = mpsc::channel();
                    (Sender::Channel(sender), Receiver::Channel(receiver))
                }
            };
            links[one].to[other] = Some(sender);
            links[other].from[one] = Some(receiver);
        }
        Ok(links)
    }

    /// Whose column it is: neighbours are together.
    fn owner(&self, graph: &Graph, column: u64) -> usize {
        (u128::from(column) * u128::from(self.threads) / u128::from(graph.shape.width)) as usize
    }

    fn work(&self, me: usize, graphs: &[Graph], mut links: Links) -> Result<(), Error> {
        // Outputs of the row before, by column: those that tasks here need.
        let mut rows = vec![Vec::<Option<Arc<Frame>>>::new(); graphs.len()];
        for step in 0..graphs.iter().map(|graph| graph.shape.steps).max().unwrap_or(0) {
            for (graph, before) in graphs.iter().zip(&mut rows) {
                let shape = &graph.shape;
                if step >= shape.steps {
                    continue;
                }
                let needed_here = |step, column| {
                    shape.users(step, column).into_iter().any(|user| self.owner(graph, user) == me)
                };
                let theirs = step.checked_sub(1).into_iter().flat_map(|step| {
                    shape.columns(step).filter(move |column| needed_here(step, *column)).collect::<Vec<_>>()
                });
                for column in theirs {
                    if let Some(from) = &mut links.from[self.owner(graph, column)] {
                        before[column as usize] = Some(from.receive(graph.output).map_err(Error::ByHand)?);
                    }
                }
                let mut row = vec![None; shape.width as usize];
                for column in shape.columns(step).filter(|column| self.owner(graph, *column) == me) {
                    let inputs = shape.inputs(step, column);
                    let inputs = inputs.iter().filter_map(|input| before[*input as usize].clone());
                    let output = Arc::new(point(Call { graph: *graph, step, column }, inputs.collect())?);
                    let mut users: Vec<usize> =
                        shape.users(step, column).into_iter().map(|user| self.owner(graph, user)).collect();
                    users.dedup();
                    for to in users {
                        if let Some(to) = &mut links.to[to] {
                            to.send(&output).map_err(Error::ByHand)?;
                        }
                    }
                    row[column as usize] = Some(output);
                }
                *before = row;
            }
        }
        Ok(())
    }
}

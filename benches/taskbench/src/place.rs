//! Where graphs run: a cluster in this process, or worker processes of this executable.

use std::thread;

use rankine::{Client, LocalCluster, Settings};

use crate::{Error, Options, Transport};

/// A cluster of its own, and a client of it.
pub struct Place {
    client: Client,
    _cluster: LocalCluster,
}

impl Place {
    /// Starts it. The program's `main` must begin with [`rankine::init`].
    ///
    /// # Errors
    /// If it cannot be started, or ranks are asked for.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (processes, workers, transports) = match options.transport {
            Transport::Inproc => (false, 1, "inproc"),
            // The program shares its process with the scheduler, as it does when a user asks for processes.
            Transport::Tcp => (true, cores, "inproc,tcp"),
            Transport::Mpi => {
                return Err(Error::Usage(
                    "-transport mpi is for ranks: start it with mpirun -n RANKS, built with --features mpi"
                        .into(),
                ));
            }
        };
        let mut settings = Settings::default();
        settings.transport = transports.into();
        let workers = options.workers.unwrap_or(workers);
        let mut builder = LocalCluster::builder().workers(workers).processes(processes).settings(settings);
        builder = builder.bind_cores(processes && !options.unbound);
        if let Some(threads) = options.threads {
            builder = builder.threads(threads);
        }
        let cluster = builder.start()?;
        Ok(Self { client: cluster.client()?, _cluster: cluster })
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

//! Clusters and roles: who runs where, and how they find each other.
//!
//! [`LocalCluster`] starts one on this machine; [`run`] (which `#[rankine::main]` calls) finds out
//! from the command line which role a process plays; [`SchedulerFile`] carries address and secret.

pub(crate) mod cores;
mod file;
mod flags;
mod fleet;
mod io_thread;
pub(crate) mod launch;
mod lifetime;
mod local;
mod meeting;
pub(crate) mod memory;
mod nanny;
mod ranks;
mod roles;
mod services;
mod slurm;
mod transports;
#[cfg(feature = "mpi")]
mod world;

use std::sync::Arc;

pub use file::SchedulerFile;
pub use local::{Builder, LocalCluster};
pub use roles::{args, init, run};
pub use slurm::{SlurmBuilder, SlurmCluster};
pub use transports::transports;

use crate::{
    Result,
    client::{Client, Shared, core},
    link::Endpoint,
    protocol::Hello,
    settings::Settings,
};
use io_thread::IoThread;
use transports::endpoint;

/// Where processes of one machine listen on TCP.
const LOOPBACK: &str = "tcp://127.0.0.1:0";

/// A client's connection, closed and waited for when the last clone of the client goes.
struct Link {
    shared: Arc<Shared>,
    _io: IoThread,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.begin_close();
    }
}

impl Client {
    /// Connects to the cluster that a scheduler file tells of.
    ///
    /// # Errors
    /// If its scheduler cannot be reached or refuses this program, or the settings are not right.
    pub fn connect(file: &SchedulerFile) -> Result<Self> {
        Self::connect_with(file, &Settings::load()?)
    }

    /// The same with settings of the program's own.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(file: &SchedulerFile, settings: &Settings) -> Result<Self> {
        Self::linked(file, settings, Hello::Client)
    }

    /// Connects somebody who only asks, and may be another executable than the cluster's.
    #[cfg(feature = "cli")]
    pub(crate) fn observe(file: &SchedulerFile, settings: &Settings) -> Result<Self> {
        Self::linked(file, settings, Hello::Observer { version: crate::link::VERSION.into() })
    }

    fn linked(file: &SchedulerFile, settings: &Settings, hello: Hello) -> Result<Self> {
        let io = IoThread::start()?;
        let endpoint = endpoint(settings, file.secret()?)?;
        let shared = connect_as(hello, &io, endpoint, file.contact().to_owned())?;
        Ok(Self::new(shared.clone(), Some(Arc::new(Link { shared, _io: io }))))
    }
}

/// Connects a client that is served on `io`.
fn connect(io: &IoThread, endpoint: Endpoint, address: String) -> Result<Arc<Shared>> {
    connect_as(Hello::Client, io, endpoint, address)
}

fn connect_as(hello: Hello, io: &IoThread, endpoint: Endpoint, address: String) -> Result<Arc<Shared>> {
    let shared = Shared::new();
    let served = shared.clone();
    io.serve(move |ready| async move {
        match endpoint.join(&address, hello).await {
            Ok((connection, scheduler)) => {
                let _ = ready.send(Ok(()));
                let journals = matches!(scheduler, Hello::Scheduler { journals: true });
                core::serve(served, endpoint, address, connection, journals).await;
            }
            Err(error) => {
                core::end(&served, error.to_string().into());
                let _ = ready.send(Err(error));
            }
        }
    })?;
    Ok(shared)
}

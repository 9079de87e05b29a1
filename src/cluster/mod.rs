//! Clusters and roles: who runs where, and how they find each other.
//!
//! [`LocalCluster`] starts one on this machine; [`run`] (which `#[rankine::main]` calls) finds out
//! from the command line which role a process plays; [`SchedulerFile`] carries address and secret.

mod bytes;
mod file;
mod io_thread;
mod local;
mod nanny;
mod roles;

use std::sync::Arc;

use rankine_transport::{Registry, Secret};
use rankine_transport_inproc::Inproc;
use rankine_transport_tcp::Tcp;

pub use bytes::parse_bytes;
pub use file::SchedulerFile;
pub use local::{Builder, LocalCluster};
pub use roles::{args, init, run};

use crate::{
    Result,
    client::{Client, Shared, core},
    link::Endpoint,
    protocol::Hello,
};
use io_thread::IoThread;

/// All transports of this build.
fn endpoint(secret: Secret) -> Endpoint {
    // A transport more is a line more.
    let registry = Registry::new().with(Inproc).with(Tcp::default());
    Endpoint { registry: Arc::new(registry), secret: Arc::new(secret) }
}

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
    /// If its scheduler cannot be reached or refuses this program.
    pub fn connect(file: &SchedulerFile) -> Result<Self> {
        let io = IoThread::start()?;
        let shared = connect(&io, endpoint(file.secret()?), file.address.clone())?;
        Ok(Self::new(shared.clone(), Some(Arc::new(Link { shared, _io: io }))))
    }
}

/// Connects a client that is served on `io`.
fn connect(io: &IoThread, endpoint: Endpoint, address: String) -> Result<Arc<Shared>> {
    let shared = Shared::new();
    let served = shared.clone();
    io.serve(move |ready| async move {
        match endpoint.connect(&address, Hello::Client).await {
            Ok(connection) => {
                let _ = ready.send(Ok(()));
                core::serve(served, endpoint, connection).await;
            }
            Err(error) => {
                core::end(&served, error.to_string().into());
                let _ = ready.send(Err(error));
            }
        }
    })?;
    Ok(shared)
}

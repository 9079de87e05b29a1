//! The transports of a program.

use std::{io, sync::Arc, time::Duration};

use tokio::time;

use crate::{Address, Connection, Error, Listener, Result, Transport};

/// Connecting takes no longer than this, unless another bound is set.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The transports of a program, by scheme. Adding one is one line.
#[derive(Clone)]
pub struct Registry {
    transports: Vec<Arc<dyn Transport>>,
    patience: Duration,
}

impl Default for Registry {
    fn default() -> Self {
        Self { transports: Vec::new(), patience: CONNECT_TIMEOUT }
    }
}

impl Registry {
    /// A registry without transports.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more transport.
    #[must_use]
    pub fn with(mut self, transport: impl Transport + 'static) -> Self {
        self.transports.push(Arc::new(transport));
        self
    }

    /// The same with another bound on how long connecting takes.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Only the transports of these schemes, in this order.
    ///
    /// # Errors
    /// If one is not there.
    pub fn only(self, schemes: &[&str]) -> Result<Self> {
        let mut transports = Vec::new();
        for scheme in schemes {
            let address = Address::new(scheme, "*");
            self.find(&address)?;
            transports.extend(self.transports.iter().find(|t| t.scheme() == *scheme).cloned());
        }
        Ok(Self { transports, ..self })
    }

    /// The transports there are, those that are to be preferred first.
    pub fn transports(&self) -> impl Iterator<Item = &dyn Transport> {
        self.transports.iter().map(|transport| &**transport)
    }

    /// Bytes of other processes' memory that are mapped here: see [`Transport::borrowed`].
    pub fn borrowed(&self) -> u64 {
        self.transports.iter().map(|transport| transport.borrowed()).sum()
    }

    /// The schemes there are.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> {
        self.transports.iter().map(|transport| transport.scheme())
    }

    /// Connects to a listener. Prove the secret next.
    ///
    /// # Errors
    /// If no transport has the scheme, or nobody answers within 30 s (or what [`patience`](Self::patience) says).
    pub async fn connect(&self, address: &Address) -> Result<Connection> {
        let connecting = self.find(address)?.connect(address);
        time::timeout(self.patience, connecting).await.unwrap_or_else(|_| {
            let source = io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {:?}", self.patience));
            Err(Error::Connect { address: address.clone(), source })
        })
    }

    /// Listens.
    ///
    /// # Errors
    /// If no transport has the scheme, or the address is taken or not this host's.
    pub async fn listen(&self, address: &Address) -> Result<Box<dyn Listener>> {
        self.find(address)?.listen(address).await
    }

    /// Of one peer's addresses those that this process may reach, over the preferred transport first.
    pub fn within_reach<'a>(&self, addresses: &'a [Address]) -> Vec<&'a Address> {
        let reached = |t: &'_ Arc<dyn Transport>| {
            let transport = t.clone();
            addresses
                .iter()
                .filter(move |address| address.scheme() == transport.scheme() && transport.reaches(address))
        };
        self.transports.iter().flat_map(reached).collect()
    }

    /// Why a peer at this address cannot be reached.
    pub fn unreachable(&self, address: &Address) -> Error {
        self.find(address).err().unwrap_or_else(|| {
            let reason =
                "it is not within reach: it is in another process, on another host or in another job";
            Error::Unavailable { address: address.clone(), reason: reason.into() }
        })
    }

    fn find(&self, address: &Address) -> Result<&dyn Transport> {
        let found = self.transports.iter().find(|t| t.scheme() == address.scheme());
        found.map(|t| &**t).ok_or_else(|| Error::Scheme {
            address: address.clone(),
            present: self.schemes().map(|s| format!("{s}://")).collect::<Vec<_>>().join(", "),
            hint: match address.scheme() {
                "mpi" => "; build it with the cargo feature `mpi` where an MPI library is",
                "verbs" => "; build it with the cargo feature `verbs` where libibverbs is",
                _ => "",
            },
        })
    }
}

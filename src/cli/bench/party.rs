//! The processes of a benchmark: how they come together, and what one says to the others.
//!
//! The first leads. It has a control connection to each of the others, over which it says what comes next;
//! all do that, and the others answer. What is measured goes over connections of its own.

use std::{
    env, io,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rankine_transport::{
    Address, Connection, Limits, Listener, Message, Registry, Secret, Side, authenticate, bare::Control,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{runtime, time::timeout};

use crate::{Error, Result, cluster::transports, settings::Settings};

/// Where rank 0 of an MPI job listens for the others.
#[cfg(feature = "mpi")]
const CONTROL_PORT: u32 = 1;
/// Where the secret of a benchmark's processes is said.
pub(super) const TOKEN: &str = "RANKINE_BENCH_TOKEN";
/// How long a process that was started or announced may take to come.
const COMING: Duration = Duration::from_secs(60);
/// How long one step may take.
const STEP: Duration = Duration::from_secs(300);

/// This process's part in a benchmark.
pub(super) struct Party {
    /// Its number; 0 leads.
    pub(super) rank: usize,
    /// How many there are.
    pub(super) size: usize,
    /// Left while the runtime is still there.
    #[cfg(feature = "mpi")]
    membership: Option<rankine_transport_mpi::Membership>,
    pub(super) runtime: runtime::Runtime,
    pub(super) registry: Registry,
    pub(super) secret: Secret,
    /// To all others where this one leads, else to the leader.
    controls: Vec<Connection>,
    children: Vec<Child>,
}

impl Party {
    fn new(settings: &Settings, secret: Secret) -> Result<Self> {
        // As the I/O thread of a cluster's process is.
        let runtime = runtime::Builder::new_current_thread().enable_all().event_interval(7).build();
        let runtime = runtime.map_err(Error::io("start a runtime"))?;
        let registry = transports(settings)?;
        Ok(Self {
            rank: 0,
            size: 1,
            #[cfg(feature = "mpi")]
            membership: None,
            runtime,
            registry,
            secret,
            controls: Vec::new(),
            children: Vec::new(),
        })
    }

    /// Processes of this machine, started by this one.
    ///
    /// # Errors
    /// If one cannot be started or does not come.
    pub(super) fn start(settings: &Settings, size: usize) -> Result<Self> {
        let mut party = Self::new(settings, Secret::random())?;
        let mut listener =
            party.runtime.block_on(control(settings)?.listen(&"tcp://127.0.0.1:0".parse()?))?;
        let program = env::current_exe().map_err(Error::io("find this program's file"))?;
        for _ in 1..size {
            let child = Command::new(&program)
                .args(["bench", "transport", "--connect", listener.address().as_str()])
                .envs(settings.variables())
                .env(TOKEN, party.secret.to_hex())
                .stdin(Stdio::null())
                .spawn()
                .map_err(Error::io(format!("start another process of {}", program.display())))?;
            party.children.push(child);
        }
        party.gather(&mut *listener, size)?;
        Ok(party)
    }

    /// Two hosts, of which this one listens for the other.
    ///
    /// # Errors
    /// If the address cannot be listened on, or nobody comes.
    pub(super) fn listen(settings: &Settings, address: &Address) -> Result<Self> {
        let mut party = Self::new(settings, Secret::random())?;
        let mut listener = party.runtime.block_on(control(settings)?.listen(address))?;
        eprintln!(
            "on the other host, within {COMING:?}:\n  {TOKEN}={} rankine bench transport --connect {}",
            party.secret.to_hex(),
            listener.address()
        );
        party.gather(&mut *listener, 2)?;
        Ok(party)
    }

    /// Joins the process that listens at `address`.
    ///
    /// # Errors
    /// If it cannot be reached or does not share the token.
    pub(super) fn join(settings: &Settings, address: &Address) -> Result<Self> {
        let token = env::var(TOKEN).ok().and_then(|hex| Secret::from_hex(&hex));
        let token = token.ok_or_else(|| {
            Error::Usage(format!(
                "say {TOKEN}=... as the process at {address} told, so that it knows this one"
            ))
        })?;
        let mut party = Self::new(settings, token)?;
        party.visit(&control(settings)?, address, None)?;
        Ok(party)
    }

    /// The ranks of an MPI job; `None` where no launcher started this process.
    ///
    /// # Errors
    /// If there is only one, or they do not find each other.
    #[cfg(feature = "mpi")]
    pub(super) fn ranks(settings: &Settings) -> Result<Option<Self>> {
        use rankine_transport::Transport;
        use rankine_transport_mpi::Mpi;

        if Mpi::default().survey().is_err() {
            return Ok(None);
        }
        let mut party = Self::new(settings, Secret::random())?;
        let membership = Mpi::join()?;
        let together = || Error::io("agree with the other ranks on a secret");
        let hex = membership.broadcast(party.secret.to_hex().as_bytes()).map_err(together())?;
        let secret = String::from_utf8(hex).ok().and_then(|hex| Secret::from_hex(&hex));
        party.secret = secret.ok_or_else(|| Error::closed("what rank 0 said is no secret"))?;
        let (rank, size) = (membership.rank(), membership.size());
        if size < 2 {
            return Err(Error::Usage(
                "this job has one rank, and a message goes from one to another: mpirun -n 2".into(),
            ));
        }
        let registry = Registry::new().with(Mpi::default());
        let leader = membership.address(0, CONTROL_PORT);
        let listener = if rank == 0 { Some(party.runtime.block_on(registry.listen(&leader))?) } else { None };
        // From here on rank 0 listens.
        membership.broadcast(b"come").map_err(together())?;
        party.membership = Some(membership);
        match listener {
            Some(mut listener) => party.gather(&mut *listener, size)?,
            None => party.visit(&registry, &leader, Some(rank))?,
        }
        Ok(Some(party))
    }

    /// Comes to who leads, as the rank that this process has or is given.
    fn visit(&mut self, registry: &Registry, leader: &Address, rank: Option<usize>) -> Result<()> {
        let mut connection = self.runtime.block_on(registry.connect(leader))?;
        self.runtime.block_on(authenticate(&mut connection, &self.secret, Side::Connecting))?;
        self.controls.push(connection);
        self.tell(&rank)?;
        (self.rank, self.size) = self.hear()?;
        Ok(())
    }

    /// Takes in all the others.
    fn gather(&mut self, listener: &mut (dyn Listener + 'static), size: usize) -> Result<()> {
        self.size = size;
        let mut visitors: Vec<(usize, Connection)> = Vec::new();
        while visitors.len() + 1 < size {
            let coming = async { timeout(COMING, listener.accept()).await };
            let mut visitor = self.runtime.block_on(coming).map_err(|_| {
                Error::Usage(format!("the other process of the benchmark did not come within {COMING:?}"))
            })??;
            let known = self.runtime.block_on(authenticate(&mut visitor, &self.secret, Side::Accepting));
            if let Err(error) = known {
                eprintln!("rankine: {error}");
                continue;
            }
            let own: Option<usize> = self.runtime.block_on(hear(&mut visitor))?;
            let rank = own.unwrap_or(visitors.len() + 1);
            self.runtime.block_on(say(&mut visitor, &(rank, size)))?;
            visitors.push((rank, visitor));
        }
        visitors.sort_by_key(|(rank, _)| *rank);
        self.controls.extend(visitors.into_iter().map(|(_, visitor)| visitor));
        Ok(())
    }

    /// Says something to all others.
    pub(super) fn tell(&mut self, what: &impl Serialize) -> Result<()> {
        for control in &mut self.controls {
            self.runtime.block_on(say(control, what))?;
        }
        Ok(())
    }

    /// What all others answer, in the order of their ranks.
    pub(super) fn answers<T: DeserializeOwned>(&mut self) -> Result<Vec<T>> {
        self.controls.iter_mut().map(|control| self.runtime.block_on(hear(control))).collect()
    }

    /// What the leader says.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let leader = self.controls.first_mut().ok_or_else(|| Error::closed("nobody leads"))?;
        self.runtime.block_on(hear(leader))
    }

    /// What the first two processes tell each other of the bare fabric.
    pub(super) fn with_partner(&mut self) -> Result<impl Control> {
        let connection =
            self.controls.first_mut().ok_or_else(|| Error::closed("there is no other process"))?;
        Ok(Partner { connection, runtime: &self.runtime })
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        // They end when their control connection does.
        self.controls.clear();
        for child in &mut self.children {
            let start = std::time::Instant::now();
            while matches!(child.try_wait(), Ok(None)) {
                if start.elapsed() > Duration::from_secs(3) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// The transports that control connections go over, whatever is measured.
fn control(settings: &Settings) -> Result<Registry> {
    let mut settings = settings.clone();
    settings.transport = "tcp".into();
    transports(&settings)
}

async fn say(connection: &mut Connection, what: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(what).map_err(|e| Error::Usage(e.to_string()))?;
    Ok(connection.sender.send(Message::new(text, Vec::new())).await?)
}

async fn hear<T: DeserializeOwned>(connection: &mut Connection) -> Result<T> {
    let gone = || Error::closed("another process of the benchmark left");
    let message = match timeout(STEP, connection.receiver.recv()).await {
        Ok(message) => message?.ok_or_else(gone)?,
        Err(_) => return Err(Error::closed(format!("another process did not answer within {STEP:?}"))),
    };
    let peer = connection.peer.to_string();
    serde_json::from_slice(&message.head).map_err(|e| Error::Refused { peer, reason: e.to_string() })
}

struct Partner<'a> {
    connection: &'a mut Connection,
    runtime: &'a runtime::Runtime,
}

impl Control for Partner<'_> {
    fn exchange(&mut self, mine: &[u8]) -> io::Result<Vec<u8>> {
        let exchange = async {
            self.connection.sender.send(Message::new(mine.to_vec(), Vec::new())).await?;
            self.connection.receiver.recv().await
        };
        let message = self.runtime.block_on(exchange).map_err(io::Error::other)?;
        Ok(message.ok_or(io::ErrorKind::UnexpectedEof)?.head.to_vec())
    }
}

/// Connections of one transport to some of the others, by their rank.
pub(super) struct Mesh {
    listener: Option<Box<dyn Listener>>,
    pub(super) connections: Vec<(usize, Connection)>,
}

impl Party {
    /// Listens on a transport; gives where.
    ///
    /// # Errors
    /// If it does not work here.
    pub(super) fn open(&mut self, scheme: &str, local: bool) -> Result<(Mesh, String)> {
        let found = self.registry.transports().find(|transport| transport.scheme() == scheme);
        let transport = match found {
            Some(transport) => transport,
            None => return Err(self.registry.unreachable(&Address::new(scheme, "*")).into()),
        };
        transport
            .survey()
            .map_err(|reason| Error::Usage(format!("{scheme}:// does not work here: {reason}")))?;
        let on_loopback = local && matches!(scheme, "tcp" | "verbs");
        let anywhere = if on_loopback { Address::new(scheme, "127.0.0.1:0") } else { transport.anywhere() };
        let listener = self.runtime.block_on(transport.listen(&anywhere))?;
        let address = listener.address().to_string();
        Ok((Mesh { listener: Some(listener), connections: Vec::new() }, address))
    }

    /// Connects this process with those that the pairs name it with: the lower rank connects.
    ///
    /// # Errors
    /// If one cannot be reached.
    pub(super) fn connect(
        &self,
        mesh: &mut Mesh,
        addresses: &[String],
        pairs: &[(usize, usize)],
    ) -> Result<()> {
        let rank = self.rank;
        let Some(listener) = &mut mesh.listener else { return Ok(()) };
        let connect = async {
            let mut made = Vec::new();
            for &(_, to) in pairs.iter().filter(|(from, _)| *from == rank) {
                let address: Address = addresses.get(to).map_or("", String::as_str).parse()?;
                let mut connection = self.registry.connect(&address).await?;
                authenticate(&mut connection, &self.secret, Side::Connecting).await?;
                say(&mut connection, &rank).await?;
                made.push((to, connection));
            }
            Ok::<_, Error>(made)
        };
        let accept = async {
            let mut taken = Vec::new();
            while taken.len() < pairs.iter().filter(|(_, to)| *to == rank).count() {
                let mut connection = listener.accept().await?;
                authenticate(&mut connection, &self.secret, Side::Accepting).await?;
                let from: usize = hear(&mut connection).await?;
                taken.push((from, connection));
            }
            Ok::<_, Error>(taken)
        };
        let both = async { timeout(COMING, futures::future::try_join(connect, accept)).await };
        let (made, taken) = self
            .runtime
            .block_on(both)
            .map_err(|_| Error::Usage(format!("the processes could not all connect within {COMING:?}")))??;
        mesh.connections.extend(made);
        mesh.connections.extend(taken);
        mesh.connections.sort_by_key(|(rank, _)| *rank);
        Ok(())
    }

    /// Both ends of a connection within this process.
    ///
    /// # Errors
    /// If the transport does not work here.
    pub(super) fn both_ends(&mut self, scheme: &str) -> Result<[Connection; 2]> {
        let (mesh, address) = self.open(scheme, true)?;
        let address: Address = address.parse()?;
        let mut listener = mesh.listener.ok_or_else(|| Error::closed("it does not listen"))?;
        let both = async { futures::future::join(self.registry.connect(&address), listener.accept()).await };
        let (ours, theirs) = self.runtime.block_on(both);
        let (mut ours, mut theirs) = (ours?, theirs?);
        ours.receiver.set_limits(Limits::PEER);
        theirs.receiver.set_limits(Limits::PEER);
        Ok([ours, theirs])
    }
}

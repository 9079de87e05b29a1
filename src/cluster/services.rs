//! The servers of a process: a scheduler, workers, each served on the I/O thread.

use std::sync::{
    Arc,
    mpsc::{Receiver, channel},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

use super::IoThread;
use crate::{
    Error, Result,
    link::Endpoint,
    scheduler::{
        self, Config,
        restoring::Beginning,
        server::{Deaths, End},
    },
    settings::Settings,
    worker::{
        self,
        server::{Departure, Ended, Listen, Options, addresses},
    },
};

/// A scheduler that is served. Dropping it ends the cluster.
pub(super) struct Scheduler {
    end: Arc<End>,
    over: Arc<Notify>,
    /// Where it is reached, over the most general of its transports.
    pub(super) address: Arc<str>,
    /// All its addresses, with spaces between.
    pub(super) contact: Arc<str>,
}

/// What a scheduler is told by the settings.
pub(super) fn rules(settings: &Settings) -> Config {
    Config {
        allowed_failures: settings.allowed_failures,
        worker_ttl: settings.dead_after().as_nanos() as u64,
        saturation: settings.worker_saturation.times(),
        stealing: settings.work_stealing,
        ..Config::default()
    }
}

/// How a scheduler begins that nobody says more of.
pub(super) fn afresh(settings: &Settings) -> Beginning {
    Beginning::Afresh(rules(settings))
}

impl Scheduler {
    /// Starts one that may have a past.
    ///
    /// # Errors
    /// If it cannot listen, or its journal cannot be written.
    pub(super) fn start(
        io: &IoThread,
        endpoint: Endpoint,
        listen: Listen,
        deaths: Deaths,
        beginning: Beginning,
    ) -> Result<Self> {
        // A connection each for workers and clients: often this is 1024 unless somebody asks for what is allowed.
        match rlimit::increase_nofile_limit(u64::MAX) {
            Ok(limit) => tracing::debug!(limit, "open files"),
            Err(error) => {
                tracing::warn!(%error, "cannot ask for more open files: many workers may not connect")
            }
        }
        let (end, over) = (Arc::new(End::default()), Arc::new(Notify::new()));
        let (ended, done) = (end.clone(), over.clone());
        let (address, contact) = io.serve(move |ready| async move {
            match listen.begin(&endpoint).await {
                Ok(listeners) => match beginning.past(&addresses(&listeners).1) {
                    Ok(past) => {
                        let _ = ready.send(Ok(addresses(&listeners)));
                        let _ = scheduler::server::serve(endpoint, listeners, ended, deaths, past).await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                },
                Err(error) => drop(ready.send(Err(error))),
            }
            done.notify_one();
        })?;
        Ok(Self { end, over, address, contact })
    }

    /// Waits until a client has ended the cluster.
    pub(super) async fn over(&self) {
        self.over.notified().await;
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.end.now(None);
    }
}

/// A worker that is served.
pub(super) struct Worker {
    over: Arc<Notify>,
    ended: Receiver<Result<Ended>>,
    departure: Arc<Departure>,
}

impl Worker {
    /// Starts one of the scheduler that is reached at `contact`.
    ///
    /// # Errors
    /// If the I/O thread ended.
    pub(super) fn start(io: &IoThread, endpoint: Endpoint, contact: &str, options: Options) -> Result<Self> {
        let (over, departure) = (Arc::new(Notify::new()), Arc::new(Departure::default()));
        let (done, told, contact) = (over.clone(), departure.clone(), contact.to_owned());
        let (tell, ended) = channel();
        io.serve(move |ready| async move {
            let _ = ready.send(Ok(()));
            let end = worker::server::serve(endpoint, &contact, options, told).await;
            if let Err(error) = &end {
                tracing::info!(%error, "a worker ended");
            }
            let _ = tell.send(end);
            done.notify_one();
        })?;
        Ok(Self { over, ended, departure })
    }

    /// How it is told to go.
    pub(super) fn departure(&self) -> Arc<Departure> {
        self.departure.clone()
    }

    /// Waits for its end. SIGTERM and SIGUSR1, by which launchers and batch systems announce the end, make
    /// it hand its results over first; Ctrl-C, or a second signal, makes it leave at once.
    ///
    /// # Errors
    /// Why it ended, if not in order.
    pub(super) async fn until_over(self) -> Result<Ended> {
        let mut signals = Signals::listen()?;
        let mut announced = false;
        loop {
            let signal = tokio::select! {
                () = self.over.notified() => break,
                signal = signals.next() => signal,
            };
            if announced || signal == SignalKind::interrupt() {
                self.departure.at_once();
            } else {
                self.departure.in_order();
            }
            announced = true;
        }
        self.ended.try_recv().unwrap_or(Ok(Ended::WithAll))
    }
}

/// The signals that ask a process to end.
pub(super) struct Signals([(SignalKind, Signal); 3]);

impl Signals {
    /// From now on they do not end the process.
    ///
    /// # Errors
    /// If the system does not let it.
    pub(super) fn listen() -> Result<Self> {
        let listen = |kind| match signal(kind) {
            Ok(signal) => Ok((kind, signal)),
            Err(error) => Err(Error::io("listen for signals")(error)),
        };
        let user = SignalKind::user_defined1();
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(user)?]))
    }

    /// The next of them.
    pub(super) async fn next(&mut self) -> SignalKind {
        let [(interrupt, a), (terminate, b), (user, c)] = &mut self.0;
        tokio::select! {
            _ = a.recv() => *interrupt,
            _ = b.recv() => *terminate,
            _ = c.recv() => *user,
        }
    }
}

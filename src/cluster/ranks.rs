//! One program, started as many ranks: who plays which role, and how they find each other.
//!
//! Rank 0 serves the scheduler and tells the others where it is ([`Meeting`]). From there on a rank is like any
//! other process of a cluster.

use std::{
    future::Future,
    process::{ExitCode, Termination},
    thread,
    time::{Duration, Instant},
};

use rankine_transport::Secret;
use tokio::time;

use super::{
    Builder, IoThread, SchedulerFile, connect, endpoint,
    flags::Flags,
    meeting::{Meeting, Ranks},
    memory::Part,
    roles::{self, EVERY_INTERFACE},
    services::{Scheduler, Worker, afresh},
};
use crate::{
    Error, Result,
    client::{Client, block_on},
    scheduler::server::Deaths,
    settings::Settings,
    worker::server::{Ended, Listen, Options},
};

/// How long the program waits for workers to come.
const COMING: Duration = Duration::from_secs(60);
/// How long other ranks wait before they fail for a reason that the first one tells.
pub(super) const TELLING: Duration = Duration::from_millis(700);
/// How long a rank waits for the others at the end.
const PARTING: Duration = Duration::from_secs(4);

/// What a command line says to a rank.
struct Said {
    /// The rank that runs the program.
    client: usize,
    /// Whether the scheduler's rank computes too.
    worker_on_scheduler: bool,
    builder: Builder,
    settings: Settings,
    listen: Listen,
}

impl Said {
    fn read(flags: &mut Flags, meeting: &Meeting) -> Result<Self> {
        let client = flags.whole("--client-rank")?.unwrap_or(0) as usize;
        if client != 0 && meeting.deaths() == Deaths::CostTasks {
            return Err(Error::Usage(
                "--client-rank is for ranks of MPI: without it the first task runs the program, since its end is \
                 that of the job"
                    .into(),
            ));
        }
        let worker_on_scheduler = flags.switch("--worker-on-scheduler-rank");
        let listen = flags.listen(EVERY_INTERFACE)?;
        let mut builder = flags.builder(meeting.defaults())?;
        if builder.processes || builder.workers.is_some() || builder.bind_cores {
            return Err(Error::Usage(
                "--workers, --processes and --bind-cores are for a cluster within one machine; here a launcher started \
                 several ranks, of which each but the first is a worker: leave them out, or start one rank"
                    .into(),
            ));
        }
        let settings = builder.settings.take().map_or_else(Settings::load, Ok)?;
        Ok(Self { client, worker_on_scheduler, builder, settings, listen })
    }

    /// How many of `size` ranks are workers.
    ///
    /// # Errors
    /// If none is, or nobody runs the program.
    fn workers(&self, size: usize) -> Result<usize> {
        if self.client >= size {
            let rank = self.client;
            return Err(Error::Usage(format!(
                "--client-rank {rank} is none of the {size} ranks, which count from 0"
            )));
        }
        let others = size - 1 - usize::from(self.client != 0) + usize::from(self.worker_on_scheduler);
        if others == 0 {
            return Err(Error::Usage(format!(
                "none of the {size} ranks would be a worker: start one more, or say --worker-on-scheduler-rank"
            )));
        }
        Ok(others)
    }
}

/// Plays the role of rank `rank`.
///
/// # Errors
/// What this rank could not do. A mistake on the command line, which all ranks see, is told by the first.
pub(super) fn play<F, Running, T>(
    body: F,
    meeting: Meeting,
    rank: usize,
    mut flags: Flags,
) -> Result<ExitCode>
where
    F: FnOnce(Client) -> Running,
    Running: Future<Output = T>,
    T: Termination,
{
    // A settings file may be wrong on one node alone.
    let own = |error: &Error| Settings::load().is_err_and(|own| own.to_string() == error.to_string());
    let told_by_the_first = |error| {
        if rank == 0 || own(&error) {
            return Err(error);
        }
        // Launchers kill the others when one fails: the first is to have told before.
        thread::sleep(TELLING);
        Ok(ExitCode::FAILURE)
    };
    let said = match Said::read(&mut flags, &meeting) {
        Ok(said) => said,
        Err(error) => return told_by_the_first(error),
    };
    said.settings.start_log();
    roles::keep_arguments(flags.words);
    let io = Parting { io: Some(IoThread::start()?), patience: PARTING, tells: rank == 0 };
    let ranks = meeting.meet(io.thread()?)?;
    let workers = match said.workers(ranks.size) {
        Ok(workers) => workers,
        Err(error) => return told_by_the_first(error),
    };
    let place = Place { meeting, ranks, said, workers, io };
    match place.ranks.rank {
        0 => place.schedule(body),
        rank if rank == place.said.client => place.run(body),
        _ => place.work(),
    }
}

/// A rank's place among the others.
struct Place {
    meeting: Meeting,
    ranks: Ranks,
    said: Said,
    /// How many ranks are workers.
    workers: usize,
    io: Parting,
}

impl Place {
    /// The first rank serves the scheduler, and mostly runs the program.
    fn schedule<F, Running, T>(mut self, body: F) -> Result<ExitCode>
    where
        F: FnOnce(Client) -> Running,
        Running: Future<Output = T>,
        T: Termination,
    {
        let secret = Secret::random();
        let started = endpoint(&self.said.settings, secret.clone()).and_then(|endpoint| {
            let listen = self.said.listen.clone();
            let deaths = self.meeting.deaths();
            let beginning = afresh(&self.said.settings);
            Ok((Scheduler::start(self.io.thread()?, endpoint.clone(), listen, deaths, beginning)?, endpoint))
        });
        let file = started.as_ref().ok().map(|(s, _)| SchedulerFile::new(&s.address, &s.contact, &secret));
        let announced = self.meeting.announce(self.io.thread()?, file.as_ref());
        // Dropped before the I/O thread, however this ends: then the others hear of the end first.
        let (scheduler, endpoint) = started?;
        announced?;
        let io = self.io.thread()?;
        if self.said.worker_on_scheduler {
            Worker::start(io, endpoint.clone(), &scheduler.contact, self.options())?;
        }
        if self.said.client != 0 {
            return roles::runtime()?.block_on(async {
                tokio::select! {
                    () = scheduler.over() => Ok(ExitCode::SUCCESS),
                    code = roles::interrupted() => code,
                }
            });
        }
        let client = Client::new(connect(io, endpoint, scheduler.contact.to_string())?, None);
        if let Some(interrupted) = self.wait_for_workers(&client)? {
            return Ok(interrupted);
        }
        roles::serve_body(body, client)
    }

    /// Another rank runs the program.
    fn run<F, Running, T>(self, body: F) -> Result<ExitCode>
    where
        F: FnOnce(Client) -> Running,
        Running: Future<Output = T>,
        T: Termination,
    {
        /// The cluster ends with its program, however that ends.
        struct End(Client);
        impl Drop for End {
            fn drop(&mut self) {
                let _ = block_on(self.0.shutdown());
            }
        }
        let Some(file) = self.meeting.learn(self.io.thread()?, &self.ranks)? else {
            thread::sleep(TELLING);
            return Ok(ExitCode::FAILURE);
        };
        let endpoint = endpoint(&self.said.settings, file.secret()?)?;
        let client = Client::new(connect(self.io.thread()?, endpoint, file.contact().to_owned())?, None);
        let _end = End(client.clone());
        if let Some(interrupted) = self.wait_for_workers(&client)? {
            return Ok(interrupted);
        }
        roles::serve_body(body, client)
    }

    /// All others compute.
    fn work(mut self) -> Result<ExitCode> {
        // Where there is no scheduler, the first rank says why.
        let Some(file) = self.meeting.learn(self.io.thread()?, &self.ranks)? else {
            thread::sleep(TELLING);
            return Ok(ExitCode::FAILURE);
        };
        let endpoint = endpoint(&self.said.settings, file.secret()?)?;
        let worker = Worker::start(self.io.thread()?, endpoint, file.contact(), self.options())?;
        if roles::runtime()?.block_on(worker.until_over())? == Ended::Alone {
            // Under MPI all ranks leave together: this one has nothing more to do, and waits for the others.
            self.io.patient();
        }
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> Options {
        let Said { builder, settings, listen, .. } = &self.said;
        // A rank that is a worker alone, and whose death is not that of all.
        let expendable = self.ranks.rank > 0
            && self.ranks.rank != self.said.client
            && self.meeting.deaths() == Deaths::CostTasks;
        Options {
            name: Some(format!("rank-{}", self.ranks.rank)),
            listen: listen.clone(),
            nthreads: builder.threads.unwrap_or(self.ranks.threads),
            memory: builder.allowance_of(settings, Part::one_of(self.ranks.neighbours), expendable),
            resources: builder.resources.clone(),
            lifetime: None,
            handover: settings.handover(),
        }
    }

    /// Waits until all ranks that are workers have come. Where they may die and the job goes on, those that
    /// did in time are enough. Gives the exit status if a signal comes first.
    fn wait_for_workers(&self, client: &Client) -> Result<Option<ExitCode>> {
        roles::runtime()?.block_on(async {
            tokio::select! {
                came = self.workers_come(client) => came.map(|()| None),
                code = roles::interrupted() => code.map(Some),
            }
        })
    }

    async fn workers_come(&self, client: &Client) -> Result<()> {
        let start = Instant::now();
        loop {
            let there = client.scheduler_info().await?.workers.len();
            if there >= self.workers {
                return Ok(());
            }
            if start.elapsed() > COMING {
                let missing = format!("{there} of {} workers came within {COMING:?}", self.workers);
                if there == 0 || self.meeting.deaths() != Deaths::CostTasks {
                    return Err(Error::Usage(format!("{missing}; what do the other ranks say?")));
                }
                tracing::warn!("{missing}: the program begins without the others");
                return Ok(());
            }
            time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The I/O thread of a rank: at the end it waits for the other ranks, but not for ever.
struct Parting {
    io: Option<IoThread>,
    patience: Duration,
    /// Whether it is this rank that says so: one does.
    tells: bool,
}

impl Parting {
    fn thread(&self) -> Result<&IoThread> {
        self.io.as_ref().ok_or_else(|| Error::closed("the I/O thread ended"))
    }

    /// The others are waited for, however long they take.
    fn patient(&mut self) {
        self.patience = Duration::MAX;
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        if let Some(io) = self.io.take()
            && !io.end(self.patience)
            && self.tells
        {
            eprintln!("rankine: not all ranks ended within {PARTING:?}; this one ends without them");
        }
    }
}

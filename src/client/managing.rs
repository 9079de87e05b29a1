//! What a client asks of the cluster, and says to it, besides submitting tasks and fetching results.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_timer::Delay;

use super::{Client, Command, TaskFuture, immediate, strange_answer};
use crate::{
    Result,
    graph::Key,
    protocol::{Answer, Explanation, Query, SchedulerInfo, StoryEvent},
    task::{Entry, HasEntry, IntoArgs, TaskFn},
};

impl Client {
    /// The addresses of the workers that hold each result.
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn who_has<T>(&self, futures: &[TaskFuture<T>]) -> Result<HashMap<Key, Vec<Arc<str>>>> {
        let keys = futures.iter().map(TaskFuture::key).collect();
        match self.shared.ask(Query::WhoHas(keys)).await? {
            Answer::WhoHas(holders) => Ok(holders.into_iter().collect()),
            _ => Err(strange_answer()),
        }
    }

    /// The results that each worker holds, by address.
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn has_what(&self) -> Result<BTreeMap<Arc<str>, Vec<Key>>> {
        match self.shared.ask(Query::HasWhat).await? {
            Answer::HasWhat(held) => Ok(held.into_iter().collect()),
            _ => Err(strange_answer()),
        }
    }

    /// The compute threads of each worker, by address.
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn nthreads(&self) -> Result<BTreeMap<Arc<str>, u32>> {
        let info = self.scheduler_info().await?;
        Ok(info.workers.into_iter().map(|w| (w.info.address, w.info.nthreads)).collect())
    }

    /// The cluster as the scheduler sees it.
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn scheduler_info(&self) -> Result<SchedulerInfo> {
        match self.shared.ask(Query::SchedulerInfo).await? {
            Answer::SchedulerInfo(info) => Ok(info),
            _ => Err(strange_answer()),
        }
    }

    /// Waits until the cluster has `count` workers.
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn wait_for_workers(&self, count: usize) -> Result<()> {
        while self.scheduler_info().await?.workers.len() < count {
            Delay::new(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Lets workers go, after what they run is done and what they hold has moved to others; gives the
    /// addresses of those that left. Waits for as long as that takes, for another worker to hold the
    /// results too where there is none.
    ///
    /// `workers` are names or addresses; unknown ones are left out.
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn retire_workers<W: Into<String>>(
        &self,
        workers: impl IntoIterator<Item = W>,
    ) -> Result<Vec<Arc<str>>> {
        let workers = workers.into_iter().map(Into::into).collect();
        match self.shared.ask(Query::Retire { workers }).await? {
            Answer::Retired(left) => Ok(left),
            _ => Err(strange_answer()),
        }
    }

    /// Has tasks run even if this program drops their futures or ends: for what they do, not for what they return.
    pub fn fire_and_forget<T>(&self, futures: &[TaskFuture<T>]) {
        self.shared.commands.put(Command::FireAndForget(futures.iter().map(TaskFuture::key).collect()));
    }

    /// Lets at most `most` tasks of a name run at once in the whole cluster (any number for `None`), say those
    /// that ask one database. Tasks that run already go on.
    ///
    /// `name` is a function's, or the end of its path (`load` means `program::io::load`), or what tasks were called
    /// by [`Options::key`](super::Options::key).
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn limit(&self, name: impl Into<String>, most: Option<u32>) -> Result<()> {
        match self.shared.ask(Query::Limit { name: name.into(), most }).await? {
            Answer::Done => Ok(()),
            _ => Err(strange_answer()),
        }
    }

    /// Waits until the results are there, and has each held by at least `count` workers (by all for `None`),
    /// so that those who need it find it near, and a death costs nothing. Of all workers, or of those that `workers`
    /// names by name, address or host.
    ///
    /// # Errors
    /// If a task failed, a result cannot leave the process it is in, or the cluster is gone.
    pub async fn replicate<T>(
        &self,
        futures: &[TaskFuture<T>],
        count: Option<usize>,
        workers: &[&str],
    ) -> Result<()> {
        for future in futures {
            future.done().await;
            if let Some(error) = future.error() {
                return Err(error.into());
            }
        }
        let keys = futures.iter().map(TaskFuture::key).collect();
        let count = count.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let workers = workers.iter().map(|name| (*name).to_owned()).collect();
        self.copied(Query::Replicate { keys, count, workers }).await
    }

    /// Moves results from workers that hold more bytes than most to those that hold less.
    ///
    /// # Errors
    /// If a result cannot leave the process it is in, or the cluster is gone.
    pub async fn rebalance(&self) -> Result<()> {
        self.copied(Query::Rebalance).await
    }

    async fn copied(&self, query: Query) -> Result<()> {
        match self.shared.ask(query).await? {
            Answer::Copied(failed) => match failed.into_iter().next() {
                Some((_, error)) => Err(error.into()),
                None => Ok(()),
            },
            _ => Err(strange_answer()),
        }
    }

    /// What happened to a task on the scheduler, oldest first, as far as it remembers.
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn story(&self, key: Key) -> Result<Vec<StoryEvent>> {
        match self.shared.ask(Query::Story(key)).await? {
            Answer::Story(events) => Ok(events),
            _ => Err(strange_answer()),
        }
    }

    /// Why a task does not run, or why it ran where it did.
    ///
    /// ```no_run
    /// # async fn example(client: rankine::Client) -> rankine::Result<()> {
    /// let future = client.options().resource("gpu", 1.0).submit(|x: f64| x.sqrt(), (2.0,));
    /// println!("{}", client.explain(&future).await?);
    /// // ... is no-worker. It needs 1 of gpu, and none of the 8 workers supplies so much.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the cluster is gone.
    pub async fn explain<T>(&self, future: &TaskFuture<T>) -> Result<Explanation> {
        self.explain_all(vec![future.key()]).await?.pop().ok_or_else(strange_answer)
    }

    /// The same of several tasks, or of those that do not run if none is named.
    pub(crate) async fn explain_all(&self, keys: Vec<Key>) -> Result<Vec<Explanation>> {
        match self.shared.ask(Query::Explain(keys)).await? {
            Answer::Explained(told) => Ok(told),
            _ => Err(strange_answer()),
        }
    }

    /// Runs a function once on every worker, outside of the task graph; gives the results by
    /// worker address.
    ///
    /// # Errors
    /// If the function failed on one of them, or the cluster is gone.
    pub async fn run<F, P, A, M>(&self, function: F, arguments: A) -> Result<BTreeMap<Arc<str>, F::Output>>
    where
        F: TaskFn<P, M>,
        F::Output: Clone,
        A: IntoArgs<P>,
        Entry<F, P, A::Repr, M>: HasEntry,
    {
        let (entry, arguments) = immediate::<F, P, A, M>(function, arguments)?;
        match self.shared.ask(Query::Run { entry, arguments, workers: Vec::new() }).await? {
            Answer::Ran(results) => {
                results.into_iter().map(|(worker, result)| Ok((worker, result?.into_inner()?))).collect()
            }
            _ => Err(strange_answer()),
        }
    }

    /// Runs a function in the scheduler's process.
    ///
    /// # Errors
    /// If the function failed, or the cluster is gone.
    pub async fn run_on_scheduler<F, P, A, M>(&self, function: F, arguments: A) -> Result<F::Output>
    where
        F: TaskFn<P, M>,
        F::Output: Clone,
        A: IntoArgs<P>,
        Entry<F, P, A::Repr, M>: HasEntry,
    {
        let (entry, arguments) = immediate::<F, P, A, M>(function, arguments)?;
        match self.shared.ask(Query::RunOnScheduler { entry, arguments }).await? {
            Answer::RanOnScheduler(result) => Ok(result?.into_inner()?),
            _ => Err(strange_answer()),
        }
    }
}

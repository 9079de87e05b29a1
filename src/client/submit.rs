//! Submitting tasks, with options where wanted.

use std::sync::Arc;

use super::{Client, Submission, TaskFuture, future::Standing};
use crate::{
    graph::{GraphTask, Key, TaskOptions},
    task::{
        ArgEncoder, Entry, EntryRef, HasEntry, IntoArg, IntoArgs, TaskEntry, TaskError, TaskFn, entry_of,
    },
};

/// How tasks are to be run, gathered before they are submitted; from [`Client::options`].
///
/// ```no_run
/// # fn train(epochs: u32) -> f64 { 0.0 }
/// # fn example(client: &rankine::Client) {
/// let model = client.options().priority(10).retries(2).resource("gpu", 1.0).submit(train, (100,));
/// # }
/// ```
#[derive(Clone)]
#[must_use = "options do nothing until something is submitted with them"]
pub struct Options<'a> {
    client: &'a Client,
    options: TaskOptions,
}

impl<'a> Options<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self { client, options: TaskOptions::default() }
    }

    /// Names the task and its result. Of several tasks (`map`), each gets `name-0`, `name-1`, ...
    pub fn key(mut self, name: impl Into<String>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// Higher runs first; 0 otherwise.
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = priority;
        self
    }

    /// Tries again this often after the task failed.
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// Runs only on these workers, told by name, address or host.
    pub fn workers<S: Into<String>>(mut self, workers: impl IntoIterator<Item = S>) -> Self {
        self.options.workers = workers.into_iter().map(Into::into).collect();
        self
    }

    /// Runs elsewhere when none of [`workers`](Self::workers) is there.
    pub fn allow_other_workers(mut self) -> Self {
        self.options.allow_other_workers = true;
        self
    }

    /// Holds `amount` of an abstract resource while it runs.
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Self {
        self.options.resources.push((name.into(), amount));
        self
    }

    /// Whether equal calls share one result (they do unless this says `false`).
    pub fn pure(mut self, pure: bool) -> Self {
        self.options.pure = pure;
        self
    }

    /// As [`Client::submit`].
    pub fn submit<F, P, A, M>(self, function: F, arguments: A) -> TaskFuture<F::Output>
    where
        F: TaskFn<P, M>,
        A: IntoArgs<P>,
        Entry<F, P, A::Repr, M>: HasEntry,
    {
        let mut call = Call::new(&self, entry_of::<F, P, A::Repr, M>(function));
        let (submission, future) = call.make(|encoder| arguments.write(encoder));
        self.client.shared.submit(submission.into_iter().collect());
        future
    }

    /// As [`Client::map`].
    pub fn map<F, P, A, M, I>(self, function: F, arguments: I) -> Vec<TaskFuture<F::Output>>
    where
        F: TaskFn<(P,), M>,
        A: IntoArg<P>,
        I: IntoIterator<Item = A>,
        Entry<F, (P,), (A::Repr,), M>: HasEntry,
    {
        let mut call = Call::new(&self, entry_of::<F, (P,), (A::Repr,), M>(function));
        call.many(arguments, |argument, encoder| argument.write(encoder))
    }

    /// As [`Client::starmap`].
    pub fn starmap<F, P, A, M, I>(self, function: F, arguments: I) -> Vec<TaskFuture<F::Output>>
    where
        F: TaskFn<P, M>,
        A: IntoArgs<P>,
        I: IntoIterator<Item = A>,
        Entry<F, P, A::Repr, M>: HasEntry,
    {
        let mut call = Call::new(&self, entry_of::<F, P, A::Repr, M>(function));
        call.many(arguments, |arguments, encoder| arguments.write(encoder))
    }
}

/// Of many calls so many are submitted together, and run while the others are still being made.
const BATCH: usize = 4096;

/// Calls of one function about to be submitted.
struct Call<'a> {
    client: &'a Client,
    options: &'a TaskOptions,
    shared_options: Option<Arc<TaskOptions>>,
    entry: &'static TaskEntry,
    several: bool,
    count: usize,
}

impl<'a> Call<'a> {
    fn new(options: &'a Options<'a>, entry: &'static TaskEntry) -> Self {
        // Whether equal calls share a key is settled here.
        let told = TaskOptions { pure: true, ..options.options.clone() };
        let shared_options = (told != TaskOptions::default()).then(|| Arc::new(told));
        Self {
            client: options.client,
            options: &options.options,
            shared_options,
            entry,
            several: false,
            count: 0,
        }
    }

    fn many<T, O>(
        &mut self,
        arguments: impl IntoIterator<Item = T>,
        write: impl Fn(T, &mut ArgEncoder) -> Result<(), TaskError>,
    ) -> Vec<TaskFuture<O>> {
        self.several = true;
        let mut submissions = Vec::new();
        let futures = arguments
            .into_iter()
            .map(|argument| {
                let (submission, future) = self.make(|encoder| write(argument, encoder));
                submissions.extend(submission);
                if submissions.len() == BATCH {
                    self.client.shared.submit(std::mem::take(&mut submissions));
                }
                future
            })
            .collect();
        self.client.shared.submit(submissions);
        futures
    }

    /// A future, and what to submit unless it is known already or its arguments cannot be sent.
    fn make<O>(
        &mut self,
        write: impl FnOnce(&mut ArgEncoder) -> Result<(), TaskError>,
    ) -> (Option<Submission>, TaskFuture<O>) {
        let mut encoder = ArgEncoder::default();
        if let Err(error) = write(&mut encoder) {
            let key = self.client.shared.unique_key();
            let error = error.with(|report| {
                report.function = self.entry.name().to_owned();
                report.key = key.to_string();
            });
            let (_, future) = self.client.shared.future(key);
            future.state.set(Standing::Erred(error));
            return (None, future);
        }
        let (arguments, dependencies, kept) = encoder.finish();
        let key = match &self.options.name {
            Some(name) if self.several => Key::named(&format!("{name}-{}", self.count)),
            Some(name) => Key::named(name),
            None if self.options.pure => {
                let entry = EntryRef::of(self.entry);
                let parts = [entry.module, entry.offset, entry.name];
                let dependencies: Vec<u8> = dependencies.iter().flat_map(|k| k.0.to_le_bytes()).collect();
                let head: [&[u8]; 3] = [bytemuck::cast_slice(&parts), &dependencies, arguments.head()];
                Key::of_call(head.into_iter().chain(arguments.frames().iter().map(|frame| &*frame.0)))
            }
            None => self.client.shared.unique_key(),
        };
        self.count += 1;
        let (new, future) = self.client.shared.future(key);
        let submission = new.then(|| Submission {
            entry: self.entry,
            options: self.shared_options.clone(),
            task: GraphTask { key, function: 0, options: 0, dependencies, arguments },
            kept,
        });
        (submission, future)
    }
}

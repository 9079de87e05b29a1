//! The engine of this process, in the hands of the thread that joined: found there, and nowhere else.

use std::{
    cell::RefCell,
    io, mem,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::{
    connection::Half,
    engine::Engine,
    fabric::{self, Fabric, Joined},
    launch::Launch,
};

/// The world that this process joined. It stays known when it was left.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) token: u64,
    pub(crate) rank: i32,
    pub(crate) size: i32,
    /// The host of each rank.
    pub(crate) hosts: Vec<String>,
    /// The thread level that the library provides.
    pub(crate) level: &'static str,
    thread: thread::Thread,
}

static WORLD: OnceLock<Result<World, String>> = OnceLock::new();
static LEFT: AtomicBool = AtomicBool::new(false);
/// Halves that were dropped where the engine could not be told.
static STRAYS: Mutex<Vec<(u32, Half)>> = Mutex::new(Vec::new());
static STRAYED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static ENGINE: RefCell<Home> = const { RefCell::new(Home(None)) };
}

/// Where the engine lives; what ends it if the thread ends first.
struct Home(Option<Engine>);

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(engine) = self.0.take()
            && let Err(error) = end(engine)
        {
            tracing::warn!(%error, "could not leave MPI in order");
        }
    }
}

/// The world, if this process has joined one and not left it.
pub(crate) fn world() -> Option<&'static World> {
    WORLD.get().and_then(|world| world.as_ref().ok()).filter(|_| !LEFT.load(Ordering::Acquire))
}

/// Joins, on this thread, if that has not been tried in this process.
///
/// # Errors
/// Why there is no world to be in for this thread, and what to do.
pub(crate) fn join() -> Result<&'static World, String> {
    let launch = match WORLD.get() {
        Some(_) => None,
        None => Some(Launch::detect(|name| std::env::var(name).ok())?),
    };
    let mut joined = None;
    let world = WORLD.get_or_init(|| {
        let engine = match &launch {
            Some(launch) => enter(launch)?,
            None => return Err("MPI was joined by another thread just now".into()),
        };
        let (engine, world) = engine;
        joined = Some(engine);
        Ok(world)
    });
    if let Some(engine) = joined {
        ENGINE.with_borrow_mut(|home| home.0 = Some(engine));
    }
    let world = world.as_ref().map_err(Clone::clone)?;
    with(|_| world).map_err(|error| error.to_string())
}

fn enter(launch: &Launch) -> Result<(Engine, World), String> {
    let joined = Fabric::join(rand::random()).map_err(|error| error.to_string())?;
    let Joined { fabric, token, hosts } = joined;
    let size = usize::try_from(fabric.size()).unwrap_or(0);
    if let Err(reason) = launch.agrees(size, &fabric::library()) {
        return Err(match fabric.finalize() {
            Ok(()) => reason,
            Err(error) => format!("{reason} ({error})"),
        });
    }
    let (rank, size, level) = (fabric.rank(), fabric.size(), fabric.level());
    let engine = Engine::new(fabric).map_err(|error| error.to_string())?;
    Ok((engine, World { token, rank, size, hosts, level, thread: thread::current() }))
}

/// Does something with the engine.
///
/// # Errors
/// If it is not this thread's, or was left.
pub(crate) fn with<R>(work: impl FnOnce(&mut Engine) -> R) -> io::Result<R> {
    let missing = |why: String| Err(io::Error::other(why));
    let worked = ENGINE.try_with(|home| {
        let mut home = home.try_borrow_mut().ok()?;
        let engine = home.0.as_mut()?;
        if STRAYED.load(Ordering::Relaxed) {
            STRAYED.store(false, Ordering::Relaxed);
            let strays = mem::take(&mut *STRAYS.lock().unwrap_or_else(PoisonError::into_inner));
            strays.into_iter().for_each(|(id, half)| engine.drop_half(id, half));
        }
        Some(work(engine))
    });
    match (worked, WORLD.get()) {
        (Ok(Some(worked)), _) => Ok(worked),
        _ if LEFT.load(Ordering::Acquire) => missing("this process has left MPI: it is finalized".into()),
        (_, Some(Ok(world))) if world.thread.id() != thread::current().id() => missing(format!(
            "all calls of mpi:// are made by the thread that joined, {}, not by this one",
            world.thread.name().unwrap_or("without a name")
        )),
        (_, Some(Ok(_))) => missing("the engine of mpi:// is in use by whoever calls this".into()),
        (_, Some(Err(why))) => missing(why.clone()),
        (_, None) => missing("MPI was not joined".into()),
    }
}

/// Tells the engine that a half of a connection went, now or at its next turn.
pub(crate) fn drop_half(id: u32, half: Half) {
    if with(|engine| engine.drop_half(id, half)).is_err() && !LEFT.load(Ordering::Acquire) {
        STRAYS.lock().unwrap_or_else(PoisonError::into_inner).push((id, half));
        STRAYED.store(true, Ordering::Release);
    }
}

/// Leaves the world: see [`Engine::leave`].
///
/// # Errors
/// MPI's, or if this thread did not join.
pub(crate) fn leave() -> io::Result<()> {
    with(|_| ())?;
    match ENGINE.with_borrow_mut(|home| home.0.take()) {
        Some(engine) => end(engine),
        None => Ok(()),
    }
}

fn end(engine: Engine) -> io::Result<()> {
    LEFT.store(true, Ordering::Release);
    // A rank that fails must not wait for the others: the launcher ends the job when it exits.
    if thread::panicking() {
        return Ok(());
    }
    engine.leave()
}

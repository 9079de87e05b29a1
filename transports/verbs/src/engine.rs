//! How completions wake whoever waits for them.
//!
//! All connections of a runtime share one completion channel, a file that tokio watches. Each has a completion queue of
//! its own, which it looks into by itself; only where it finds nothing for a while does it ask to be told (it
//! arms the queue), and then the channel's task wakes it.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, RawFd},
    ptr::{self, NonNull},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use ibverbs_sys as ffi;
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::{self, Handle},
    task::AbortHandle,
};

use crate::{Verbs, connection::Shared, device::Device, registrations::Registrations};

/// What the connections of one runtime share.
pub(crate) struct Engine {
    pub(crate) registrations: Arc<Registrations>,
    pub(crate) channel: Arc<Channel>,
    connections: Arc<Connections>,
    next: AtomicUsize,
    driver: AbortHandle,
}

/// Connections by the number that their completion queue bears.
#[derive(Default)]
struct Connections(Mutex<HashMap<usize, Weak<Shared>>>);

impl Connections {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Weak<Shared>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// The engine of the runtime that this is called in.
    ///
    /// # Errors
    /// Why there is no device.
    pub(crate) fn open(choice: &Verbs) -> Result<Arc<Self>, String> {
        type Open = (Verbs, runtime::Id, Weak<Engine>);
        static OPEN: Mutex<Vec<Open>> = Mutex::new(Vec::new());
        let here = Handle::current().id();
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(.., engine)| engine.strong_count() > 0);
        let open = all.iter().find(|(of, runtime, _)| of == choice && *runtime == here);
        if let Some(open) = open.and_then(|(.., engine)| engine.upgrade()) {
            return Ok(open);
        }
        let registrations = Registrations::open(choice)?;
        let failed = |error: io::Error| {
            format!("cannot create a completion channel on {}: {error}", registrations.device().name())
        };
        let channel = Arc::new(Channel::new(&registrations).map_err(failed)?);
        // SAFETY: the file is open as long as the channel lives, which the value holds.
        let file =
            unsafe { AsyncFd::register_with_interest(ChannelFile(channel.clone()), Interest::READABLE) };
        let file = file.map_err(|error| failed(error.into_parts().1))?;
        let connections = Arc::<Connections>::default();
        let driver = tokio::spawn(drive(file, connections.clone())).abort_handle();
        let engine =
            Arc::new(Self { registrations, channel, connections, next: AtomicUsize::new(1), driver });
        all.push((choice.clone(), here, Arc::downgrade(&engine)));
        Ok(engine)
    }

    /// A number for a new connection.
    pub(crate) fn number(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// From now on the connection is told of its events.
    pub(crate) fn enter(&self, number: usize, connection: &Arc<Shared>) {
        self.connections.lock().insert(number, Arc::downgrade(connection));
    }

    pub(crate) fn leave(&self, number: usize) {
        self.connections.lock().remove(&number);
    }

    #[cfg(test)]
    pub(crate) fn connections(&self) -> Vec<Arc<Shared>> {
        self.connections.lock().values().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Wakes connections as their events come, until it is aborted.
async fn drive(file: AsyncFd<ChannelFile>, connections: Arc<Connections>) {
    loop {
        let mut ready = match file.readable().await {
            Ok(ready) => ready,
            // The runtime is ending.
            Err(_) => return,
        };
        // Until there is no event left, as the file tells only of new ones.
        while let Ok(event) = ready.try_io(|file| file.get_ref().0.event()) {
            match event {
                Ok(number) => {
                    let connection = connections.lock().get(&number).and_then(Weak::upgrade);
                    connection.inspect(|connection| connection.on_event());
                }
                Err(error) => {
                    tracing::error!("the completion channel failed: {error}");
                    return;
                }
            }
        }
    }
}

/// A completion channel.
pub(crate) struct Channel {
    raw: NonNull<ffi::ibv_comp_channel>,
    _device: Arc<Device>,
}

// SAFETY: libibverbs' objects may be used from any thread, several at once.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Channel {
    fn new(registrations: &Registrations) -> io::Result<Self> {
        let device = registrations.device().clone();
        // SAFETY: the device's context is open.
        let raw = unsafe { ffi::ibv_create_comp_channel(device.context().as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let channel = Self { raw, _device: device };
        // SAFETY: changes a flag of a file that this value owns.
        let status = unsafe {
            let fd = channel.fd();
            libc::fcntl(fd, libc::F_SETFL, libc::fcntl(fd, libc::F_GETFL) | libc::O_NONBLOCK)
        };
        if status == -1 { Err(io::Error::last_os_error()) } else { Ok(channel) }
    }

    pub(crate) fn as_ptr(&self) -> *mut ffi::ibv_comp_channel {
        self.raw.as_ptr()
    }

    fn fd(&self) -> RawFd {
        // SAFETY: lives as long as this value.
        unsafe { self.raw.as_ref() }.fd
    }

    /// The next event: the number of a completion queue that has something.
    fn event(&self) -> io::Result<usize> {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel lives. A queue that is given out is not destroyed before it is acknowledged, and
        // is not used after; its context is a number.
        unsafe {
            if ffi::ibv_get_cq_event(self.raw.as_ptr(), &mut queue, &mut context) != 0 {
                return Err(io::Error::last_os_error());
            }
            ffi::ibv_ack_cq_events(queue, 1);
        }
        Ok(context.addr())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: created in `new`; every queue that tells it holds it and is gone.
        unsafe { ffi::ibv_destroy_comp_channel(self.raw.as_ptr()) };
    }
}

/// The channel as a file that tokio watches.
struct ChannelFile(Arc<Channel>);

impl AsRawFd for ChannelFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd()
    }
}

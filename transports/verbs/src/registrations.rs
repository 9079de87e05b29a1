//! Which memory is registered, kept for the next transfer where that is safe.
//!
//! Registering pins every page and tells the device of it, which takes about as long as sending it. Frames that
//! Rankine received or made lie in blocks that are used again and again: such a block is registered whole and stays so
//! until it is given back to the system (`rankine_transport::blocks` tells), or until others need the room. Any other
//! memory, a program's own vector or a mapped file, can go without a word, so it is registered for one
//! transfer, while its owner is held.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use rankine_transport::blocks::{self, Watcher};

use crate::{
    Verbs,
    device::Device,
    region::{self, Access, Region},
};

/// The registrations of a device.
pub(crate) struct Registrations {
    device: Arc<Device>,
    kept: Arc<Kept>,
}

/// Blocks that are registered, by address.
struct Kept {
    state: Mutex<State>,
    /// Bytes at most.
    bound: u64,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<usize, Block>,
    /// The blocks' addresses by when they were last used.
    order: BTreeMap<u64, usize>,
    clock: u64,
    bytes: u64,
}

struct Block {
    length: usize,
    region: Arc<Region>,
    used: u64,
}

impl Registrations {
    /// Those of the device that the configuration asks for, shared by all of this process that use it.
    ///
    /// # Errors
    /// Why there is no such device.
    pub(crate) fn open(choice: &Verbs) -> Result<Arc<Self>, String> {
        static OPEN: Mutex<Vec<(Verbs, Weak<Registrations>)>> = Mutex::new(Vec::new());
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, registrations)| registrations.strong_count() > 0);
        let open = all.iter().find(|(of, _)| of == choice).and_then(|(_, open)| open.upgrade());
        if let Some(open) = open {
            return Ok(open);
        }
        let bound = choice.registered_bytes.unwrap_or_else(default_bound);
        let opened = Arc::new(Self::new(Arc::new(Device::open(choice)?), bound));
        all.push((choice.clone(), Arc::downgrade(&opened)));
        Ok(opened)
    }

    /// Keeps blocks of up to `bound` bytes together.
    pub(crate) fn new(device: Arc<Device>, bound: u64) -> Self {
        let kept = Arc::new(Kept { state: Mutex::default(), bound });
        let watcher: Weak<dyn Watcher> = Arc::downgrade(&(kept.clone() as Arc<dyn Watcher>));
        blocks::watch(watcher);
        Self { device, kept }
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// A region over memory that the caller owns and keeps for as long as it holds the region.
    ///
    /// # Errors
    /// If it cannot be registered, with what to do.
    pub(crate) fn cover(&self, memory: &Range<usize>, access: Access) -> io::Result<Arc<Region>> {
        if let Some(block) = blocks::block_of(memory).filter(|block| block.len() as u64 <= self.kept.bound) {
            if let Some(region) = self.kept.find(&block) {
                return Ok(region);
            }
            let region = Arc::new(self.register(&block, Access::Both)?);
            self.kept.keep(&block, region.clone());
            return Ok(region);
        }
        Ok(Arc::new(self.register(memory, access)?))
    }

    /// Registers; where too much is locked already, once more without what is only kept.
    fn register(&self, memory: &Range<usize>, access: Access) -> io::Result<Region> {
        let first = Region::register(&self.device, memory, access);
        let registered = match first {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && self.kept.release_all() => {
                Region::register(&self.device, memory, access)
            }
            other => other,
        };
        registered.map_err(|error| match error.raw_os_error() {
            // A caller may have a way around these.
            Some(libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP) => error,
            _ => region::explain(&self.device, memory.len(), &error),
        })
    }

    /// How many blocks are registered, and their bytes.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> (usize, u64) {
        let state = self.kept.lock();
        (state.blocks.len(), state.bytes)
    }
}

/// A quarter of the memory that may be locked and of the machine's.
fn default_bound() -> u64 {
    // SAFETY: asks the system for figures and touches no memory.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let machine = u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(size).unwrap_or(0));
    region::locked_memory().unwrap_or(u64::MAX).min(machine) / 4
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, block: &Range<usize>) -> Option<Arc<Region>> {
        let mut state = self.lock();
        let State { blocks, order, clock, .. } = &mut *state;
        let found = blocks.get_mut(&block.start).filter(|found| found.length == block.len())?;
        *clock += 1;
        order.remove(&found.used);
        order.insert(*clock, block.start);
        found.used = *clock;
        Some(found.region.clone())
    }

    fn keep(&self, block: &Range<usize>, region: Arc<Region>) {
        let mut state = self.lock();
        let mut gone = Vec::new();
        while state.bytes + block.len() as u64 > self.bound {
            let Some((_, oldest)) = state.order.pop_first() else { break };
            gone.extend(state.remove(oldest));
        }
        gone.extend(state.remove(block.start));
        state.clock += 1;
        state.bytes += block.len() as u64;
        let used = state.clock;
        state.order.insert(used, block.start);
        state.blocks.insert(block.start, Block { length: block.len(), region, used });
        // Deregistering takes a while: not under the lock.
        drop(state);
    }

    /// Whether there was anything.
    fn release_all(&self) -> bool {
        let state = std::mem::take(&mut *self.lock());
        !state.blocks.is_empty()
    }
}

impl State {
    fn remove(&mut self, start: usize) -> Option<Block> {
        let block = self.blocks.remove(&start)?;
        self.order.remove(&block.used);
        self.bytes -= block.length as u64;
        Some(block)
    }
}

impl Watcher for Kept {
    fn pins(&self, block: &Range<usize>) -> bool {
        self.lock().blocks.contains_key(&block.start)
    }

    fn forget(&self, block: &Range<usize>) {
        // Whoever used it for a transfer held the memory, so this is the last one to hold the region.
        let gone = self.lock().remove(block.start);
        drop(gone);
    }
}

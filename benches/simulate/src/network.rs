//! The virtual network: how long a message, and a chunk, is on its way.
//!
//! Within a process and a node only handles travel (`inproc://`, `shm://`), in a time that does not depend on the
//! size. Between nodes, chunks pass the sender's and the receiver's link, each of which carries its transfers one
//! after the other: whoever shares a link with others waits as long as with a fair share of it, on average.

/// What the network can do.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Nanoseconds that a message between nodes is on its way.
    pub latency: u64,
    /// Bytes a second of each worker's link, in each direction.
    pub bandwidth: f64,
    /// Workers that share a node.
    pub per_node: u32,
    /// Workers that share a process.
    pub per_process: u32,
}

impl Default for Network {
    fn default() -> Self {
        Self { latency: 5_000, bandwidth: 10e9, per_node: 1, per_process: 1 }
    }
}

/// Nanoseconds for a handle from one process of a node to another, as measured (`benches/README.md`).
const SAME_NODE: u64 = 10_000;
/// Nanoseconds for a handle within a process.
const SAME_PROCESS: u64 = 1_000;

/// The two directions of a worker's link, each busy until then.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    out: u64,
    into: u64,
}

impl Network {
    /// When `nbytes` that `sender` begins to send at `now` have arrived at `receiver`.
    pub(crate) fn send(
        &self,
        links: &mut [Link],
        sender: usize,
        receiver: usize,
        nbytes: u64,
        now: u64,
    ) -> u64 {
        if let Some(time) = self.near(sender, receiver) {
            return now + time;
        }
        let time = (nbytes as f64 / self.bandwidth * 1e9) as u64;
        let start = links[sender].out.max(now);
        links[sender].out = start + time;
        let arrival = links[receiver].into.max(start) + time;
        links[receiver].into = arrival;
        arrival + self.latency
    }

    /// Nanoseconds that a request is on its way.
    pub(crate) fn reach(&self, from: usize, to: usize) -> u64 {
        self.near(from, to).unwrap_or(self.latency)
    }

    /// Nanoseconds between workers that share memory.
    fn near(&self, one: usize, other: usize) -> Option<u64> {
        let same = |share: u32| one / share.max(1) as usize == other / share.max(1) as usize;
        if same(self.per_process) { Some(SAME_PROCESS) } else { same(self.per_node).then_some(SAME_NODE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_share_the_links_that_they_pass() {
        let network = Network { latency: 100, bandwidth: 1e9, per_node: 2, per_process: 1 };
        let mut links = [Link::default(); 8];
        // Two senders to one receiver: the second transfer waits for the first.
        assert_eq!(network.send(&mut links, 2, 0, 1000, 0), 1100);
        assert_eq!(network.send(&mut links, 4, 0, 1000, 0), 2100);
        // The first sender is free again, and so is who receives now.
        assert_eq!(network.send(&mut links, 2, 6, 500, 1000), 1600);
        // Within a node the size does not matter.
        assert_eq!(network.send(&mut links, 0, 1, 1 << 40, 0), SAME_NODE);
        assert_eq!(network.send(&mut links, 0, 0, 1 << 40, 0), SAME_PROCESS);
    }
}

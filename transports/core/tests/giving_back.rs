//! Memory that is kept for frames to come, given back where it is short. A process of its own, since tests of one
//! process share what is kept.

use std::fs;

use rankine_transport::{AlignedBuffer, give_back};

fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn what_is_kept_goes_back_to_the_system() {
    for (count, size) in [(1, 48 << 20), (48, 1 << 20)] {
        let mut buffers: Vec<AlignedBuffer> = (0..count).map(|_| AlignedBuffer::new(size).unwrap()).collect();
        // Touched, since the system counts only what was.
        buffers.iter_mut().for_each(|buffer| buffer.zeroed().fill(1));
        drop(buffers);
        let before = resident();
        assert!(give_back() >= 48 << 20, "they were kept");
        let after = resident();
        assert!(before - after >= 40 << 20, "{before} before, {after} after");
        assert_eq!(give_back(), 0);
    }
}

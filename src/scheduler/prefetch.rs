//! What is looked at soon is asked for.
//!
//! Of what a scheduler of ten thousand workers looks at hardly anything is in a processor's caches when its turn comes. Whoever
//! loads it there and then waits, and with it all that comes after. To ask for it takes an instruction and waits for nothing:
//! where it is known what comes next, and something else is done until then, that is on its way meanwhile. It changes nothing of
//! what is decided.

use prefetch_index::prefetch_index;

/// Asks for the line of a processor's cache that something begins in.
pub(super) fn prefetch<T>(it: &T) {
    prefetch_index(std::slice::from_ref(it), 0);
}

//! Names of tasks and their results.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The name of a task and of its result, the same on every rank.
///
/// 128 bits: of a pure call the hash of function and arguments, so that equal calls share one
/// result; of a key that a user chose, the hash of the text; else a number that no other has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(pub u128);

impl Key {
    /// The key of a name that a user chose.
    pub fn named(name: &str) -> Self {
        Self(xxh3_128(name.as_bytes()))
    }

    /// The `counter`th unique key of the owner of `seed`, a random number.
    pub fn unique(seed: u128, counter: u64) -> Self {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&seed.to_le_bytes());
        bytes[16..].copy_from_slice(&counter.to_le_bytes());
        Self(xxh3_128(&bytes))
    }

    /// The key of a pure call: `parts` are what makes it that call.
    pub fn of_call<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Xxh3::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.digest128())
    }
}

// A key is uniformly distributed: half of it is hash enough.
impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.0 as u64);
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

/// A hasher for keys and ids, which need none.
#[derive(Default, Clone, Copy)]
pub struct KeyHasher(u64);

impl std::hash::Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        // Fibonacci hashing: dense ids spread over the high bits that hash tables look at too.
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A map from keys or ids.
pub type KeyMap<K, V> = hashbrown::HashMap<K, V, std::hash::BuildHasherDefault<KeyHasher>>;
/// A set of keys or ids.
pub type KeySet<K> = hashbrown::HashSet<K, std::hash::BuildHasherDefault<KeyHasher>>;

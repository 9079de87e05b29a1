//! Functions named by where their code lies.
//!
//! Of every function and way of passing its arguments there is one constant [`TaskEntry`]. What
//! travels is its offset within its module and a hash of the function's name. A receiver never
//! jumps where it was told: [`EntryRef::resolve`] looks first.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{ArgDecoder, TaskError, Value, modules};

/// A constant by which a function is called with encoded arguments.
#[repr(C)]
pub struct TaskEntry {
    magic: [u64; 2],
    name: fn() -> &'static str,
    call: fn(&mut ArgDecoder<'_>) -> Result<Value, TaskError>,
}

/// Random; what bears it in read-only memory is an entry.
const MAGIC: [u64; 2] = [0x8f3d_52c6_1b70_e94b, 0x2ac9_d417_6e05_b3f8];

impl TaskEntry {
    /// The entry of the function called `name`.
    pub(super) const fn new(
        name: fn() -> &'static str,
        call: fn(&mut ArgDecoder<'_>) -> Result<Value, TaskError>,
    ) -> Self {
        Self { magic: MAGIC, name, call }
    }

    /// The function's name.
    pub fn name(&self) -> &'static str {
        (self.name)()
    }

    /// Calls the function.
    ///
    /// # Errors
    /// If the arguments cannot be read, or the function returned one.
    pub fn call(&self, arguments: &mut ArgDecoder<'_>) -> Result<Value, TaskError> {
        (self.call)(arguments)
    }
}

/// Where a task's entry lies: an offset in a module of the executable, and a hash of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EntryRef {
    /// Hash of the module's file name; 0 for the executable itself.
    pub module: u64,
    /// Bytes from the module's base to the entry.
    pub offset: u64,
    /// Hash of the function's name.
    pub name: u64,
}

impl EntryRef {
    /// Where `entry` lies.
    pub fn of(entry: &'static TaskEntry) -> Self {
        let address = std::ptr::from_ref(entry) as usize;
        // An entry is a constant of some module; were it in none, nobody could resolve it, and
        // the zero offset says so.
        let (module, offset) = modules::containing(address).map_or((0, 0), |m| (m.id, address - m.base));
        Self { module, offset: offset as u64, name: xxh3_64(entry.name().as_bytes()) }
    }

    /// The entry, once it is sure to be one.
    ///
    /// # Errors
    /// If no module of this process has an entry of that name there.
    pub fn resolve(self) -> Result<&'static TaskEntry, TaskError> {
        let refuse = |why: &str| {
            Err(TaskError::refused(format!(
                "no function at offset {:#x} of module {:x}: {why}; do all ranks run the same executable?",
                self.offset, self.module
            )))
        };
        let Some(module) = modules::by_id(self.module) else {
            return refuse("no such module is loaded");
        };
        let Some(address) = usize::try_from(self.offset).ok().and_then(|o| module.base.checked_add(o)) else {
            return refuse("the offset lies beyond memory");
        };
        if !module.is_read_only(address, size_of::<TaskEntry>()) {
            return refuse("it does not lie in the module's read-only memory");
        }
        if !address.is_multiple_of(align_of::<TaskEntry>()) {
            return refuse("it is not aligned");
        }
        // SAFETY: two aligned words in mapped, read-only memory of a module; modules stay loaded.
        if unsafe { *(address as *const [u64; 2]) } != MAGIC {
            return refuse("there is no entry there");
        }
        // SAFETY: what bears the magic in read-only memory is an entry that `TaskEntry::new` made.
        let entry: &'static TaskEntry = unsafe { &*(address as *const TaskEntry) };
        if xxh3_64(entry.name().as_bytes()) != self.name {
            return refuse(&format!("the function there is {}", entry.name()));
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Entry, Plain};

    fn inc(x: i64) -> i64 {
        x + 1
    }

    fn of<F, P, R>(_: F) -> EntryRef
    where
        Entry<F, P, R, Plain>: super::super::function::HasEntry,
    {
        EntryRef::of(<Entry<F, P, R, Plain> as super::super::function::HasEntry>::ENTRY)
    }

    fn inc_entry() -> EntryRef {
        of::<_, (i64,), (crate::task::ByValue,)>(inc)
    }

    #[test]
    fn an_entry_is_found_where_it_lies() {
        let entry = inc_entry().resolve().unwrap();
        assert!(entry.name().ends_with("inc"));
    }

    #[test]
    fn a_wrong_name_is_refused() {
        let entry = EntryRef { name: 1, ..inc_entry() };
        let error = entry.resolve().err().unwrap().to_string();
        assert!(error.contains("the function there is"), "{error}");
    }

    #[test]
    fn every_offset_around_an_entry_and_at_random_is_refused() {
        let good = inc_entry();
        let offsets = (0..4096u64)
            .map(|i| good.offset.wrapping_sub(2048).wrapping_add(i))
            .chain((0..64).map(|i| 1u64 << i))
            .chain([0, u64::MAX, u64::MAX - 7, i64::MAX as u64]);
        for offset in offsets.filter(|&o| o != good.offset) {
            // Other functions' entries lie there too: their names must differ.
            assert!(EntryRef { offset, ..good }.resolve().is_err(), "{offset:#x}");
        }
    }

    #[test]
    fn an_unknown_module_is_refused() {
        assert!(EntryRef { module: 77, ..inc_entry() }.resolve().is_err());
    }

    #[test]
    fn an_entry_in_writable_memory_is_refused() {
        // A forged entry on the heap, with the right magic.
        let forged: &'static TaskEntry =
            Box::leak(Box::new(TaskEntry::new(|| "forged", |_| Ok(Value::new(1)))));
        let address = std::ptr::from_ref(forged) as usize;
        let base = modules::executable().base;
        let entry =
            EntryRef { module: 0, offset: address.wrapping_sub(base) as u64, name: xxh3_64(b"forged") };
        assert!(entry.resolve().is_err());
    }

    #[test]
    fn the_build_id_is_stable() {
        assert_eq!(modules::build_id(), modules::build_id());
        assert!(modules::build_id().len() >= 16);
    }
}

//! What cannot leave its process.

use std::{any::type_name, fmt, ops::Deref, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// A value that lives only within its process: a lock, an open file, a handle of a library.
///
/// It can be scattered, be a result and an argument as long as scheduler and workers are in this
/// process; anything that would send it elsewhere is an error that names it.
///
/// ```
/// use std::sync::Mutex;
/// use rankine::serialize::Local;
/// let lock = Local::new(Mutex::new(1));
/// *lock.clone().lock().unwrap() += 1;
/// assert_eq!(*lock.lock().unwrap(), 2);
/// ```
pub struct Local<T>(Arc<T>);

impl<T> Local<T> {
    /// Holds `value`, which all clones share.
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Clone for Local<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Local<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Local<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn stays<T>() -> String {
    format!("a {} lives only within its process", type_name::<T>())
}

impl<T> Serialize for Local<T> {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom(stays::<T>()))
    }
}

impl<'de, T> Deserialize<'de> for Local<T> {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom(stays::<T>()))
    }
}

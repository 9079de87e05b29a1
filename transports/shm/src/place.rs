//! Where a listener is: a host, and a name on it.
//!
//! The host is told by its boot id, together with the network namespace: sockets without a file have names of
//! their own in each.

use std::{fs, io, os::unix::fs::MetadataExt, sync::LazyLock};

use rankine_transport::Address;

/// This host and network namespace, until the next boot.
fn host() -> Option<&'static str> {
    static HOST: LazyLock<Option<String>> = LazyLock::new(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let network = fs::metadata("/proc/self/ns/net").ok()?.ino();
        (boot.len() == 16).then(|| format!("{boot}-{network:x}"))
    });
    HOST.as_deref()
}

fn known_host() -> io::Result<&'static str> {
    host().ok_or_else(|| {
        io::Error::new(io::ErrorKind::Unsupported, "the host's boot id cannot be read: is /proc mounted?")
    })
}

/// A name for a listener on this host: the one that is asked for, or for `*` a new one.
pub(crate) fn resolve(asked: &Address) -> io::Result<Address> {
    let host = known_host()?;
    let name = match asked.place().split_once('/') {
        None if asked.place() == "*" => format!("{:016x}", rand::random::<u64>()),
        None => asked.place().to_owned(),
        Some((place, name)) if place == host => name.to_owned(),
        Some((place, _)) => {
            let reason = format!("{place} is another host, or was this one before it was booted");
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason));
        }
    };
    if name.is_empty() || name.len() > 64 {
        let reason = "a listener's name has 1 to 64 bytes; or write shm://* for a new one";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(Address::new("shm", format_args!("{host}/{name}")))
}

/// The name of a listener's socket, which is no file's.
///
/// # Errors
/// If it is not on this host.
pub(crate) fn socket_name(address: &Address) -> io::Result<String> {
    let host = known_host()?;
    match address.place().split_once('/') {
        Some((place, name)) if place == host => Ok(format!("\0rankine/{name}")),
        _ => {
            let reason = format!("it is not on this host in this network namespace, which is shm://{host}/");
            Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason))
        }
    }
}

/// Whether an address is on this host.
pub(crate) fn is_here(address: &Address) -> bool {
    socket_name(address).is_ok()
}

/// How a process that connected is called.
pub(crate) fn process(id: Option<i32>) -> Address {
    let host = host().unwrap_or("here");
    match id {
        Some(id) => Address::new("shm", format_args!("{host}/process-{id}")),
        None => Address::new("shm", format_args!("{host}/process")),
    }
}

//! A proxy between a worker and the scheduler, for who may have no network of his own: it can be cut off and slowed.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use libtest_mimic::Failed;

/// What is done to the link.
#[derive(Default)]
pub struct Trouble {
    pub cut: AtomicBool,
    pub slow: AtomicBool,
}

/// Serves as the scheduler at `to` for whoever connects; gives its own address.
pub fn begin(to: String, trouble: Arc<Trouble>) -> Result<String, Failed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    thread::spawn(move || {
        while let Ok((near, _)) = listener.accept() {
            let Ok(far) = TcpStream::connect(&to) else { continue };
            let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { continue };
            let (one, other) = (trouble.clone(), trouble.clone());
            thread::spawn(move || pass(near, far, &one));
            thread::spawn(move || pass(far_too, near_too, &other));
        }
    });
    Ok(address)
}

fn pass(mut from: TcpStream, mut to: TcpStream, trouble: &Trouble) {
    let mut buffer = vec![0; 65536];
    while let Ok(count) = from.read(&mut buffer) {
        // What comes while the link is cut arrives when it is whole again, as TCP would have it.
        while trouble.cut.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if trouble.slow.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(20));
        }
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

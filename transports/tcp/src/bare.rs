//! Bare sockets, to compare with: a tokio echo for round trips, a blocking socket for streams.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rankine_transport::bare::{Bare, Control};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
};

use crate::{Tcp, host_name};

/// Two connected sockets, one in each process.
struct Sockets {
    stream: TcpStream,
    leads: bool,
    buffer: Vec<u8>,
    runtime: Runtime,
}

pub(crate) fn connect(tcp: &Tcp, control: &mut dyn Control, leads: bool) -> io::Result<Box<dyn Bare>> {
    let stream = if leads {
        let places = futures::executor::block_on(tcp.resolve("*"))?;
        let listener = TcpListener::bind(&places[..])?;
        let mut at = listener.local_addr()?;
        if at.ip().is_unspecified() {
            at.set_ip([127, 0, 0, 1].into());
        }
        control.exchange(format!("{} {at} {}", host_name(), at.port()).as_bytes())?;
        listener.accept()?.0
    } else {
        let told = String::from_utf8_lossy(&control.exchange(&[])?).into_owned();
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, format!("not a socket's place: {told}"));
        let [host, at, port] = told.split(' ').collect::<Vec<_>>()[..] else { return Err(malformed()) };
        if at.starts_with("127.") && host != host_name() {
            TcpStream::connect((host, port.parse().map_err(|_| malformed())?))?
        } else {
            TcpStream::connect(at)?
        }
    };
    stream.set_nodelay(true)?;
    let runtime = Builder::new_current_thread().enable_io().build()?;
    Ok(Box::new(Sockets { stream, leads, buffer: Vec::new(), runtime }))
}

impl Bare for Sockets {
    fn name(&self) -> &'static str {
        "bare socket"
    }

    fn ping_pong(&mut self, size: usize, rounds: usize) -> io::Result<Vec<Duration>> {
        self.buffer.resize(size.max(1), 1);
        let (leads, buffer) = (self.leads, &mut self.buffer);
        let stream = self.stream.try_clone()?;
        stream.set_nonblocking(true)?;
        let times = self.runtime.block_on(async {
            let mut stream = tokio::net::TcpStream::from_std(stream)?;
            let mut times = Vec::with_capacity(rounds);
            for _ in 0..rounds {
                let start = Instant::now();
                if leads {
                    stream.write_all(buffer).await?;
                    stream.read_exact(buffer).await?;
                } else {
                    stream.read_exact(buffer).await?;
                    stream.write_all(buffer).await?;
                }
                times.push(start.elapsed());
            }
            io::Result::Ok(times)
        })?;
        self.stream.set_nonblocking(false)?;
        Ok(times)
    }

    fn stream(&mut self, size: usize, count: usize) -> io::Result<Duration> {
        self.buffer.resize(size.max(1), 1);
        let mut answer = [0];
        let start = Instant::now();
        for _ in 0..count {
            if self.leads {
                self.stream.write_all(&self.buffer)?;
            } else {
                self.stream.read_exact(&mut self.buffer)?;
            }
        }
        if self.leads {
            self.stream.read_exact(&mut answer)?;
        } else {
            self.stream.write_all(&answer)?;
        }
        Ok(start.elapsed())
    }
}

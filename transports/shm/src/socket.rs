//! Bytes and descriptors over a UNIX socket.
//!
//! No call blocks, whatever a peer that shares the open socket has done to its flags.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Descriptors that travel at once.
pub(crate) const DESCRIPTORS: usize = 64;

/// Sends some of the bytes, and with the first of them all the descriptors.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        let reason = format!("{} descriptors do not travel at once", descriptors.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(rustix::net::sendmsg(socket, bytes, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Receives some bytes, 0 at the end, and the descriptors that came with them.
pub(crate) fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut impl Extend<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let mut count = 0;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            descriptors.extend(files.inspect(|_| count += 1));
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(if count >= DESCRIPTORS {
            io::Error::new(io::ErrorKind::InvalidData, "more descriptors than travel at once")
        } else {
            io::Error::other(
                "no file descriptor is free for a memory segment; allow this process more open files \
                 (ulimit -n)",
            )
        });
    }
    Ok(received.bytes)
}

//! Completions: what tells that work is done, or why it failed.

use std::{
    ffi::CStr,
    fmt, io,
    ptr::{self, NonNull},
    sync::Arc,
};

use ibverbs_sys as ffi;

use crate::{device::Device, engine::Channel};

/// What a completion tells of.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A message came into a segment.
    Received { slot: u16, length: usize, word: u32 },
    /// A segment was sent, and the peer has it.
    Sent,
    /// A message without content was sent.
    Signalled,
    /// The oldest READ or WRITE is done.
    Transferred,
    /// Work failed, and the queue pair with it.
    Failed(Failure),
}

/// Why work failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    what: &'static str,
    status: ffi::ibv_wc_status::Type,
    vendor: u32,
}

impl Failure {
    pub(crate) fn new(what: &'static str, (status, vendor): (ffi::ibv_wc_status::Type, u32)) -> Self {
        Self { what, status, vendor }
    }

    /// Whether it only followed from an earlier one.
    pub(crate) fn is_flush(&self) -> bool {
        self.status == ffi::ibv_wc_status::IBV_WC_WR_FLUSH_ERR
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ffi::ibv_wc_status as status;
        // SAFETY: gives a constant string for any status.
        let text = unsafe { CStr::from_ptr(ffi::ibv_wc_status_str(self.status)) };
        write!(f, "{} failed: {} (vendor error {:#x})", self.what, text.to_string_lossy(), self.vendor)?;
        f.write_str(match self.status {
            status::IBV_WC_RETRY_EXC_ERR => {
                "; the peer's device does not answer: it, its link or its switch went"
            }
            status::IBV_WC_LOC_QP_OP_ERR => "; this side's device cannot send: it or its link went",
            status::IBV_WC_REM_ACCESS_ERR => "; the peer's device does not let this memory be read",
            status::IBV_WC_WR_FLUSH_ERR => "; the queue pair had failed before",
            _ => "",
        })
    }
}

/// Where completions come.
pub(crate) struct CompletionQueue {
    raw: NonNull<ffi::ibv_cq>,
    _channel: Option<Arc<Channel>>,
}

impl CompletionQueue {
    /// A queue for so many completions. It tells `channel`, if there is one, under the number `id`.
    ///
    /// # Errors
    /// If there is no room for one.
    pub(crate) fn new(
        device: &Arc<Device>,
        channel: Option<&Arc<Channel>>,
        id: usize,
        entries: u32,
    ) -> io::Result<Self> {
        let entries = i32::try_from(entries).unwrap_or(i32::MAX);
        let context = ptr::without_provenance_mut(id);
        let teller = channel.map_or(ptr::null_mut(), |channel| channel.as_ptr());
        // SAFETY: the device's context and the channel live; the queue's context is a number, never followed.
        let raw = unsafe { ffi::ibv_create_cq(device.context().as_ptr(), entries, context, teller, 0) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            let error = io::Error::last_os_error();
            let text = format!("cannot create a completion queue on {}: {error}", device.name());
            io::Error::new(error.kind(), text)
        })?;
        Ok(Self { raw, _channel: channel.cloned() })
    }

    /// The next completion.
    ///
    /// # Errors
    /// If the queue is broken.
    pub(crate) fn poll(&mut self) -> io::Result<Option<ffi::ibv_wc>> {
        let mut done = ffi::ibv_wc::default();
        // SAFETY: the queue lives, and the library writes at most one entry.
        let count = unsafe {
            let context = self.raw.as_ref().context;
            let poll = (*context).ops.poll_cq.ok_or(io::ErrorKind::Unsupported)?;
            poll(self.raw.as_ptr(), 1, &mut done)
        };
        match count {
            0 => Ok(None),
            1 => Ok(Some(done)),
            _ => Err(io::Error::other("the completion queue is broken")),
        }
    }

    /// Has the channel told of the next completion: of any, or of messages and failures alone.
    ///
    /// # Errors
    /// If the device refuses.
    pub(crate) fn arm(&self, any: bool) -> io::Result<()> {
        // SAFETY: the queue lives.
        let status = unsafe {
            let context = self.raw.as_ref().context;
            let arm = (*context).ops.req_notify_cq.ok_or(io::ErrorKind::Unsupported)?;
            arm(self.raw.as_ptr(), i32::from(!any))
        };
        if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(status)) }
    }

    pub(crate) fn as_ptr(&self) -> *mut ffi::ibv_cq {
        self.raw.as_ptr()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: created in `new`, and its queue pair is destroyed. Waits for events that are being taken.
        unsafe { ffi::ibv_destroy_cq(self.raw.as_ptr()) };
    }
}

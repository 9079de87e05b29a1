//! A queue pair with its completion queue and its segments: the safe face of posting work.
//!
//! It knows which segment is with the device and which is not, and holds what a READ writes into until it
//! completes, so that no order of calls lets the device and this process use the same memory at the same time.

use std::{
    collections::VecDeque,
    io,
    mem::{self, ManuallyDrop},
    ops::Range,
    ptr::{self, NonNull},
    sync::Arc,
};

use ibverbs_sys as ffi;

use crate::{
    completion::{Completion, CompletionQueue, Failure},
    device::{Device, Link},
    engine::Channel,
    exchange::Endpoint,
    region::{Landing, Region, Segments},
};

/// How much room a queue pair has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Segments that receive.
    pub(crate) receives: u16,
    /// Segments that send.
    pub(crate) sends: u16,
    /// Messages without content that may be under way.
    pub(crate) signals: u16,
    /// READs or WRITEs that may be under way.
    pub(crate) transfers: u16,
    /// Bytes of a segment.
    pub(crate) segment: usize,
}

/// Work is told apart by the high half of its id; the low one is the segment's index.
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const SIGNAL: u64 = 3;
const TRANSFER: u64 = 4;

/// A reliable connection, once it is connected.
pub(crate) struct QueuePair {
    raw: NonNull<ffi::ibv_qp>,
    // Everything below goes after the queue pair, and so after the device's last use of it.
    queue: CompletionQueue,
    segments: ManuallyDrop<Segments>,
    shape: Shape,
    inline: usize,
    /// Which receiving segments are with the device.
    receiving: Vec<bool>,
    /// Sending segments that are not with the device.
    free: Vec<u16>,
    signalling: u16,
    /// What READs and WRITEs under way use, oldest first.
    transfers: VecDeque<Transfer>,
    device: Arc<Device>,
}

/// What a transfer uses; held until it is done.
struct Transfer {
    _region: Arc<Region>,
    /// The landing of a READ, and the bytes of it that are written; none for a WRITE.
    landing: Option<(Arc<Landing>, u64)>,
    /// What a WRITE reads.
    _source: bytes::Bytes,
}

// SAFETY: libibverbs' objects may be used from any thread; what changes them takes `&mut self`.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// A queue pair that is not connected. Its completion queue tells `channel`, if there is one, under the
    /// number `id`.
    ///
    /// # Errors
    /// If there is no room for one.
    pub(crate) fn new(
        device: &Arc<Device>,
        channel: Option<&Arc<Channel>>,
        id: usize,
        shape: Shape,
    ) -> io::Result<Self> {
        let sends = u32::from(shape.sends) + u32::from(shape.signals) + u32::from(shape.transfers);
        let receives = u32::from(shape.receives);
        let queue = CompletionQueue::new(device, channel, id, sends + receives)?;
        let count = usize::from(shape.receives) + usize::from(shape.sends);
        let segments = Segments::new(device, count, shape.segment)?;
        let mut failed = io::Error::other("no size of inline messages is taken");
        // Devices differ in how much they take inline, and tell only by refusing.
        for inline in [256, 128, 64, 0] {
            let mut attributes = ffi::ibv_qp_init_attr {
                send_cq: queue.as_ptr(),
                recv_cq: queue.as_ptr(),
                cap: ffi::ibv_qp_cap {
                    max_send_wr: sends,
                    max_recv_wr: receives,
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: inline,
                },
                qp_type: ffi::ibv_qp_type::IBV_QPT_RC,
                sq_sig_all: 1,
                ..Default::default()
            };
            // SAFETY: the domain and the queue live; the library reads the attributes and writes the limits back.
            let raw = unsafe { ffi::ibv_create_qp(device.domain().as_ptr(), &mut attributes) };
            let Some(raw) = NonNull::new(raw) else {
                failed = io::Error::last_os_error();
                continue;
            };
            let mut pair = Self {
                raw,
                queue,
                segments: ManuallyDrop::new(segments),
                shape,
                inline: attributes.cap.max_inline_data as usize,
                receiving: vec![false; usize::from(shape.receives)],
                free: (0..shape.sends).rev().collect(),
                signalling: 0,
                transfers: VecDeque::new(),
                device: device.clone(),
            };
            pair.initialise()?;
            for slot in 0..shape.receives {
                pair.post_receive(slot)?;
            }
            return Ok(pair);
        }
        Err(io::Error::new(
            failed.kind(),
            format!("cannot create a queue pair on {} for {sends} sends: {failed}", device.name()),
        ))
    }

    /// What peers know it by.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: lives as long as this value.
        unsafe { self.raw.as_ref() }.qp_num
    }

    fn modify(
        &mut self,
        what: &str,
        attributes: &mut ffi::ibv_qp_attr,
        mask: ffi::ibv_qp_attr_mask,
    ) -> io::Result<()> {
        let mask = i32::try_from(mask.0).unwrap_or(0);
        // SAFETY: the queue pair lives, the library reads the attributes that the mask names.
        match unsafe { ffi::ibv_modify_qp(self.raw.as_ptr(), attributes, mask) } {
            0 => Ok(()),
            status => {
                let error = io::Error::from_raw_os_error(status);
                let text = format!("cannot make a queue pair on {} {what}: {error}", self.device.name());
                Err(io::Error::new(error.kind(), text))
            }
        }
    }

    fn initialise(&mut self) -> io::Result<()> {
        use ffi::{ibv_access_flags as access, ibv_qp_attr_mask as attribute};
        let allowed =
            access::IBV_ACCESS_LOCAL_WRITE | access::IBV_ACCESS_REMOTE_READ | access::IBV_ACCESS_REMOTE_WRITE;
        let mut attributes = ffi::ibv_qp_attr {
            qp_state: ffi::ibv_qp_state::IBV_QPS_INIT,
            port_num: self.device.port.number,
            qp_access_flags: allowed.0,
            ..Default::default()
        };
        let mask = attribute::IBV_QP_STATE
            | attribute::IBV_QP_PKEY_INDEX
            | attribute::IBV_QP_PORT
            | attribute::IBV_QP_ACCESS_FLAGS;
        self.modify("ready to be set up", &mut attributes, mask)
    }

    /// Connects it to the peer's.
    ///
    /// # Errors
    /// If the fabric knows no way to the peer.
    pub(crate) fn connect(&mut self, mine: &Endpoint, peer: &Endpoint) -> io::Result<()> {
        use ffi::ibv_qp_attr_mask as mask;
        let port = &self.device.port;
        let mut attributes = ffi::ibv_qp_attr {
            qp_state: ffi::ibv_qp_state::IBV_QPS_RTR,
            path_mtu: u32::from(mine.mtu.min(peer.mtu)),
            dest_qp_num: peer.number,
            rq_psn: peer.packet,
            max_dest_rd_atomic: mine.serves.min(peer.issues),
            // 0.64 ms until a sender tries again that found no segment posted.
            min_rnr_timer: 12,
            ..Default::default()
        };
        attributes.ah_attr.port_num = port.number;
        attributes.ah_attr.dlid = peer.lid;
        if let Some(gid) = &self.device.gid {
            attributes.ah_attr.is_global = 1;
            attributes.ah_attr.grh.dgid = ffi::ibv_gid { raw: peer.gid };
            attributes.ah_attr.grh.sgid_index = u8::try_from(gid.index).unwrap_or(0);
            attributes.ah_attr.grh.hop_limit = 64;
        }
        let reason = match port.link {
            Link::Ethernet => "find the peer (is its GID of the same kind and network as this one's?)",
            Link::InfiniBand => "find the peer",
        };
        let receive = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(reason, &mut attributes, receive)?;
        let mut attributes = ffi::ibv_qp_attr {
            qp_state: ffi::ibv_qp_state::IBV_QPS_RTS,
            sq_psn: mine.packet,
            max_rd_atomic: mine.issues.min(peer.serves),
            // 4.096 µs * 2^17 = 0.54 s without an answer, seven times: a link that went is found in some 4 s. One
            // time more would be the most there is, but soft-RoCE takes 7 for always.
            timeout: 17,
            retry_cnt: 6,
            // For ever: a peer that is busy is not dead. The side channel tells of those that are.
            rnr_retry: 7,
            ..Default::default()
        };
        let send = mask::IBV_QP_STATE
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify("send", &mut attributes, send)
    }

    /// A free segment to write into, kept aside for [`post_send`](Self::post_send).
    pub(crate) fn segment(&mut self) -> Option<(u16, &mut [u8])> {
        let slot = *self.free.last()?;
        let index = usize::from(self.shape.receives) + usize::from(slot);
        // SAFETY: what is free is with no work request.
        Some((slot, unsafe { self.segments.bytes_mut(index) }))
    }

    /// How many segments may be sent now.
    pub(crate) fn free_segments(&self) -> usize {
        self.free.len()
    }

    /// Sends the beginning of the free segment that [`segment`](Self::segment) gives, with a word beside it.
    ///
    /// # Errors
    /// If the device refuses, or no segment is free.
    pub(crate) fn post_send(&mut self, length: usize, word: u32) -> io::Result<()> {
        let slot = self.free.pop().ok_or(io::ErrorKind::WouldBlock)?;
        let index = usize::from(self.shape.receives) + usize::from(slot);
        let mut element = self.segments.element(index, length);
        let posted = self.post(SEND << 32 | u64::from(slot), Some(&mut element), |work| {
            work.opcode = ffi::ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
            work.send_flags = ffi::ibv_send_flags::IBV_SEND_SOLICITED.0;
            if length <= self.inline {
                work.send_flags |= ffi::ibv_send_flags::IBV_SEND_INLINE.0;
            }
            work.__bindgen_anon_1.imm_data = word.to_be();
        });
        if posted.is_err() {
            self.free.push(slot);
        }
        posted
    }

    /// Sends a word alone; false while too many are under way.
    ///
    /// # Errors
    /// If the device refuses.
    pub(crate) fn post_signal(&mut self, word: u32) -> io::Result<bool> {
        if self.signalling == self.shape.signals {
            return Ok(false);
        }
        self.post(SIGNAL << 32, None, |work| {
            work.opcode = ffi::ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
            work.send_flags = ffi::ibv_send_flags::IBV_SEND_SOLICITED.0;
            work.__bindgen_anon_1.imm_data = word.to_be();
        })?;
        self.signalling += 1;
        Ok(true)
    }

    /// Whether another READ or WRITE may be posted.
    pub(crate) fn may_transfer(&self) -> bool {
        self.transfers.len() < usize::from(self.shape.transfers)
    }

    /// Reads the next bytes of a frame, at most `length`, from a peer's memory into its landing. Gives how many.
    ///
    /// # Errors
    /// If the device refuses.
    pub(crate) fn post_read(
        &mut self,
        landing: &Arc<Landing>,
        region: &Arc<Region>,
        length: u32,
        remote: (u64, u32),
    ) -> io::Result<u32> {
        if !self.may_transfer() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let memory = landing.take(u64::from(length));
        let count = memory.len() as u64;
        let read = ffi::ibv_wr_opcode::IBV_WR_RDMA_READ;
        self.post_transfer(read, memory, region, remote)?;
        let (_region, landing) = (region.clone(), Some((landing.clone(), count)));
        self.transfers.push_back(Transfer { _region, landing, _source: bytes::Bytes::new() });
        Ok(count as u32)
    }

    /// Writes bytes to a peer's memory.
    ///
    /// # Errors
    /// If the device refuses.
    pub(crate) fn post_write(
        &mut self,
        source: &bytes::Bytes,
        region: &Arc<Region>,
        remote: (u64, u32),
    ) -> io::Result<()> {
        if !self.may_transfer() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let write = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        self.post_transfer(write, crate::region::addresses(source), region, remote)?;
        self.transfers.push_back(Transfer {
            _region: region.clone(),
            landing: None,
            _source: source.clone(),
        });
        Ok(())
    }

    fn post_transfer(
        &mut self,
        opcode: ffi::ibv_wr_opcode::Type,
        memory: Range<usize>,
        region: &Region,
        (remote_addr, rkey): (u64, u32),
    ) -> io::Result<()> {
        let length = u32::try_from(memory.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut element = ffi::ibv_sge { addr: memory.start as u64, length, lkey: region.local_key() };
        self.post(TRANSFER << 32, Some(&mut element), |work| {
            work.opcode = opcode;
            work.wr.rdma = ffi::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr, rkey };
        })
    }

    fn post(
        &self,
        id: u64,
        element: Option<&mut ffi::ibv_sge>,
        fill: impl FnOnce(&mut ffi::ibv_send_wr),
    ) -> io::Result<()> {
        // SAFETY: a struct of integers, pointers and unions of such, for which zero is a value.
        let mut work: ffi::ibv_send_wr = unsafe { mem::zeroed() };
        work.wr_id = id;
        work.num_sge = i32::from(element.is_some());
        work.sg_list = element.map_or(ptr::null_mut(), |element| element);
        fill(&mut work);
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives, and the library copies the request. The memory it names is a segment
        // that is not free until it completes, or is held in `transfers` so long.
        let status = unsafe {
            let context = self.raw.as_ref().context;
            let post = (*context).ops.post_send.ok_or(io::ErrorKind::Unsupported)?;
            post(self.raw.as_ptr(), &mut work, &mut bad)
        };
        if status == 0 { Ok(()) } else { Err(self.refused(status)) }
    }

    /// Gives a segment to the device to receive into.
    ///
    /// # Errors
    /// If the device refuses.
    pub(crate) fn post_receive(&mut self, slot: u16) -> io::Result<()> {
        let index = usize::from(slot);
        if self.receiving.get(index) != Some(&false) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut element = self.segments.element(index, self.shape.segment);
        let wr_id = RECEIVE << 32 | u64::from(slot);
        let mut work = ffi::ibv_recv_wr { wr_id, next: ptr::null_mut(), sg_list: &mut element, num_sge: 1 };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives, the library copies the request, and the segment is marked as the
        // device's until the receive completes.
        let status = unsafe {
            let context = self.raw.as_ref().context;
            let post = (*context).ops.post_recv.ok_or(io::ErrorKind::Unsupported)?;
            post(self.raw.as_ptr(), &mut work, &mut bad)
        };
        if status != 0 {
            return Err(self.refused(status));
        }
        self.receiving[index] = true;
        Ok(())
    }

    /// What came into a segment, until it is posted again.
    pub(crate) fn received(&self, slot: u16, length: usize) -> &[u8] {
        if self.receiving.get(usize::from(slot)) != Some(&false) {
            return &[];
        }
        // SAFETY: the segment is not posted.
        unsafe { self.segments.bytes(usize::from(slot), length) }
    }

    /// The next thing that completed.
    ///
    /// # Errors
    /// If the completion queue is broken.
    pub(crate) fn poll(&mut self) -> io::Result<Option<Completion>> {
        let Some(done) = self.queue.poll()? else { return Ok(None) };
        let (kind, slot) = (done.wr_id() >> 32, done.wr_id() as u16);
        let what = match kind {
            RECEIVE => {
                if let Some(receiving) = self.receiving.get_mut(usize::from(slot)) {
                    *receiving = false;
                }
                "a receive"
            }
            SEND => {
                self.free.push(slot);
                "a send"
            }
            SIGNAL => {
                self.signalling = self.signalling.saturating_sub(1);
                "a signal"
            }
            _ => "a transfer of a frame",
        };
        let transfer = if kind == TRANSFER { self.transfers.pop_front() } else { None };
        if let Some(failure) = done.error() {
            return Ok(Some(Completion::Failed(Failure::new(what, failure))));
        }
        Ok(Some(match kind {
            RECEIVE => {
                let word = u32::from_be(done.imm_data().unwrap_or(0));
                Completion::Received { slot, length: done.len(), word }
            }
            SEND => Completion::Sent,
            SIGNAL => Completion::Signalled,
            _ => {
                if let Some((landing, length)) = transfer.and_then(|transfer| transfer.landing) {
                    // SAFETY: the READ of so many bytes succeeded; it was the oldest, as those of one queue
                    // pair complete in order.
                    unsafe { landing.came(length) };
                }
                Completion::Transferred
            }
        }))
    }

    /// Has the channel told of the next completion: of any, or of messages and failures alone.
    ///
    /// # Errors
    /// If the device refuses.
    pub(crate) fn arm(&self, any: bool) -> io::Result<()> {
        self.queue.arm(any)
    }

    /// Whether nothing that was sent is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == usize::from(self.shape.sends) && self.signalling == 0
    }

    fn refused(&self, status: i32) -> io::Error {
        let error = io::Error::from_raw_os_error(status);
        io::Error::new(error.kind(), format!("{} takes no more work: {error}", self.device.name()))
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: created in `new`.
        let status = unsafe { ffi::ibv_destroy_qp(self.raw.as_ptr()) };
        if status == 0 {
            // SAFETY: dropped once, here; the device uses it no more.
            unsafe { ManuallyDrop::drop(&mut self.segments) };
        } else {
            // The device may go on writing: what it writes to is nobody's from now on.
            mem::forget(mem::take(&mut self.transfers));
            tracing::warn!("cannot destroy a queue pair of {}: error {status}", self.device.name());
        }
    }
}

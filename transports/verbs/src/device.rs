//! RDMA devices: which there are, which one is used, and by what peers find it on the fabric.

use std::{ffi::CStr, fmt, fs::File, io, mem, net::Ipv4Addr, ptr::NonNull};

use ibverbs_sys as ffi;

use crate::{Verbs, region};

/// What makes a device where there is none.
const NO_DEVICE: &str = "an adapter needs its driver and ib_uverbs loaded; without an adapter, \
    `modprobe rdma_rxe` and `rdma link add rxe0 type rxe netdev eth0` make a soft-RoCE device of a network interface";

/// An open device, one port of it, and a protection domain there.
pub(crate) struct Device {
    domain: NonNull<ffi::ibv_pd>,
    context: Context,
    pub(crate) port: Port,
    pub(crate) gid: Option<Gid>,
    /// Outstanding READs that this device issues, and that it serves, on one queue pair.
    pub(crate) read_depth: [u8; 2],
}

// SAFETY: libibverbs' objects may be used from any thread, several at once.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// The device that the configuration asks for, or the fastest that is ready.
    ///
    /// # Errors
    /// Why there is none, and what would change that.
    pub(crate) fn open(choice: &Verbs) -> Result<Self, String> {
        let (context, port, gid) = choose(choice)?;
        Self::new(context, port, gid)
    }

    fn new(context: Context, port: Port, gid: Option<Gid>) -> Result<Self, String> {
        let mut attributes = ffi::ibv_device_attr::default();
        // SAFETY: the context is open, and the library fills the struct in.
        let status = unsafe { ffi::ibv_query_device(context.raw.as_ptr(), &mut attributes) };
        let failed =
            |what: &str, error: io::Error| format!("cannot {what} of device {}: {error}", context.name);
        if status != 0 {
            return Err(failed("ask for the limits", io::Error::from_raw_os_error(status)));
        }
        // SAFETY: the context is open.
        let domain = NonNull::new(unsafe { ffi::ibv_alloc_pd(context.raw.as_ptr()) })
            .ok_or_else(|| failed("allocate a protection domain", io::Error::last_os_error()))?;
        let depth = |most: i32| u8::try_from(most.clamp(1, 16)).unwrap_or(1);
        let read_depth = [depth(attributes.max_qp_init_rd_atom), depth(attributes.max_qp_rd_atom)];
        Ok(Self { domain, context, port, gid, read_depth })
    }

    pub(crate) fn name(&self) -> &str {
        &self.context.name
    }

    pub(crate) fn context(&self) -> NonNull<ffi::ibv_context> {
        self.context.raw
    }

    pub(crate) fn domain(&self) -> NonNull<ffi::ibv_pd> {
        self.domain
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; all that was made in the domain holds this device and is gone.
        unsafe { ffi::ibv_dealloc_pd(self.domain.as_ptr()) };
    }
}

/// Closed when it goes.
struct Context {
    raw: NonNull<ffi::ibv_context>,
    name: String,
}

impl Context {
    /// # Errors
    /// With what to do about it.
    fn open(device: NonNull<ffi::ibv_device>) -> Result<Self, String> {
        // SAFETY: the list that the device is from is held by the caller; the names are strings in it.
        let (name, file) = unsafe {
            let device = device.as_ref();
            (CStr::from_ptr(device.name.as_ptr()), CStr::from_ptr(device.dev_name.as_ptr()))
        };
        let (name, file) = (name.to_string_lossy().into_owned(), file.to_string_lossy());
        // SAFETY: as above.
        if unsafe { device.as_ref() }.transport_type == ffi::IBV_TRANSPORT_IWARP {
            return Err(format!(
                "{name} is an iWARP device, which connects through rdma_cm alone: use tcp there"
            ));
        }
        // SAFETY: as above.
        let raw = NonNull::new(unsafe { ffi::ibv_open_device(device.as_ptr()) });
        let raw = raw.ok_or_else(|| {
            let error = io::Error::last_os_error();
            // The library tries other ways before it gives up, and tells why the last one failed.
            let path = format!("/dev/infiniband/{file}");
            let error = File::options().read(true).write(true).open(&path).err().unwrap_or(error);
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "; the user must be allowed to read and write that file, whose group is often `rdma`"
                }
                io::ErrorKind::NotFound => "; a container must be given it, as by --device=/dev/infiniband",
                _ => "",
            };
            format!("cannot open device {name} ({path}): {error}{hint}")
        })?;
        Ok(Self { raw, name })
    }

    /// How many ports it has, and each one's state.
    fn ports(&self) -> Vec<Port> {
        let mut attributes = ffi::ibv_device_attr::default();
        // SAFETY: the context is open, and the library fills the struct in.
        if unsafe { ffi::ibv_query_device(self.raw.as_ptr(), &mut attributes) } != 0 {
            return Vec::new();
        }
        let query = |number| {
            let mut port = ffi::ibv_port_attr::default();
            // SAFETY: as above. The exported function knows the struct by an older and shorter form of it.
            let status = unsafe { ffi::ibv_query_port(self.raw.as_ptr(), number, (&raw mut port).cast()) };
            (status == 0).then(|| Port::new(number, &port))
        };
        (1..=attributes.phys_port_cnt).filter_map(query).collect()
    }

    /// The GIDs of a port.
    fn gids(&self, port: &Port) -> Vec<Gid> {
        let mut entries = vec![ffi::ibv_gid_entry::default(); 1024];
        // SAFETY: the context is open; the library writes at most as many entries as there are, of this size.
        let count = unsafe {
            ffi::_ibv_query_gid_table(
                self.raw.as_ptr(),
                entries.as_mut_ptr(),
                entries.len(),
                0,
                mem::size_of::<ffi::ibv_gid_entry>(),
            )
        };
        entries.truncate(usize::try_from(count).unwrap_or(0));
        let of_port = entries.iter().filter(|entry| entry.port_num == u32::from(port.number));
        of_port.map(Gid::new).collect()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened in `open`; what was made of it holds it and is gone.
        unsafe { ffi::ibv_close_device(self.raw.as_ptr()) };
    }
}

/// A port, as it was when it was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Port {
    pub(crate) number: u8,
    state: u32,
    pub(crate) link: Link,
    /// InfiniBand's address in its subnet, 0 elsewhere.
    pub(crate) lid: u16,
    /// As verbs write it: 1 is 256 bytes, 5 is 4096.
    pub(crate) mtu: u8,
    /// Bytes of the longest message.
    pub(crate) max_message: u32,
    gigabits: f64,
}

/// What carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    InfiniBand,
    /// RoCE.
    Ethernet,
}

impl Port {
    fn new(number: u8, port: &ffi::ibv_port_attr) -> Self {
        let ethernet = u32::from(port.link_layer) == ffi::IBV_LINK_LAYER_ETHERNET;
        let lane = match port.active_speed {
            1 => 2.5,
            2 => 5.0,
            4 | 8 => 10.0,
            16 => 14.0,
            32 => 25.0,
            64 => 50.0,
            128 => 100.0,
            _ => 0.0,
        };
        let lanes = match port.active_width {
            1 => 1.0,
            2 => 4.0,
            4 => 8.0,
            8 => 12.0,
            16 => 2.0,
            _ => 0.0,
        };
        Self {
            number,
            state: port.state,
            link: if ethernet { Link::Ethernet } else { Link::InfiniBand },
            lid: port.lid,
            mtu: u8::try_from(port.active_mtu).unwrap_or(1),
            max_message: port.max_msg_sz,
            gigabits: lane * lanes,
        }
    }

    fn state(&self) -> &'static str {
        match self.state {
            ffi::ibv_port_state::IBV_PORT_NOP => "no state",
            ffi::ibv_port_state::IBV_PORT_DOWN => "down",
            ffi::ibv_port_state::IBV_PORT_INIT => "initialising: no subnet manager has set it up",
            ffi::ibv_port_state::IBV_PORT_ARMED => "armed",
            ffi::ibv_port_state::IBV_PORT_ACTIVE => "active",
            ffi::ibv_port_state::IBV_PORT_ACTIVE_DEFER => "active, deferred",
            _ => "in an unknown state",
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InfiniBand => "InfiniBand",
            Self::Ethernet => "RoCE",
        })
    }
}

/// A global address of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gid {
    pub(crate) index: u32,
    pub(crate) raw: [u8; 16],
    kind: u32,
}

impl Gid {
    fn new(entry: &ffi::ibv_gid_entry) -> Self {
        // SAFETY: every view of the union is 16 bytes of any value.
        let raw = unsafe { entry.gid.raw };
        Self { index: entry.gid_index, raw, kind: entry.gid_type }
    }

    /// The IPv4 address that it stands for.
    fn ipv4(&self) -> Option<Ipv4Addr> {
        std::net::Ipv6Addr::from(self.raw).to_ipv4_mapped()
    }

    /// How early it is chosen: RoCE v2 before v1, since v1 is not routed; IPv4 first, then what is valid beyond
    /// the link.
    fn rank(&self) -> u32 {
        match (self.kind == ffi::IBV_GID_TYPE_ROCE_V2, self.ipv4(), self.raw[0]) {
            (true, Some(_), _) => 0,
            (true, None, 0xfe) => 2,
            (true, None, _) => 1,
            (false, ..) => 3,
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ffi::IBV_GID_TYPE_ROCE_V2 => "RoCE v2",
            ffi::IBV_GID_TYPE_ROCE_V1 => "RoCE v1",
            _ => "InfiniBand",
        };
        match self.ipv4() {
            Some(address) => write!(f, "GID {} {address} ({kind})", self.index),
            None => write!(f, "GID {} {} ({kind})", self.index, std::net::Ipv6Addr::from(self.raw)),
        }
    }
}

/// All devices that open, and why others do not.
fn contexts() -> Result<(Vec<Context>, Vec<String>), String> {
    // Harmless where the kernel copies pinned pages at a fork by itself (5.12 and later); where not, it keeps a
    // child's first write from taking pages away from under the device.
    // SAFETY: may be called at any time; fails where memory was registered before, which is no harm either.
    unsafe { ffi::ibv_fork_init() };
    let mut count = 0;
    // SAFETY: gives a list of `count` devices, which is freed below.
    let list = unsafe { ffi::ibv_get_device_list(&mut count) };
    if list.is_null() {
        let error = io::Error::last_os_error();
        return Err(format!("no RDMA device: {error}; {NO_DEVICE}"));
    }
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for i in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` devices.
        let device = unsafe { *list.add(i) };
        match NonNull::new(device).map(Context::open) {
            Some(Ok(context)) => open.push(context),
            Some(Err(reason)) => closed.push(reason),
            None => {}
        }
    }
    // SAFETY: from `ibv_get_device_list`; contexts that were opened outlive the list.
    unsafe { ffi::ibv_free_device_list(list) };
    if open.is_empty() && closed.is_empty() {
        return Err(format!("no RDMA device: libibverbs finds none; {NO_DEVICE}"));
    }
    Ok((open, closed))
}

/// Whether the port is what was asked for and can be used, and by which GID.
fn usable(choice: &Verbs, context: &Context, port: &Port) -> Result<Option<Gid>, String> {
    let this = format!("{} port {}", context.name, port.number);
    if choice.device.as_ref().is_some_and(|name| *name != context.name)
        || choice.port.is_some_and(|number| number != port.number)
    {
        return Err(format!("{this} is not the one asked for"));
    }
    if port.state != ffi::ibv_port_state::IBV_PORT_ACTIVE {
        return Err(format!("{this} is {}", port.state()));
    }
    let gids = context.gids(port);
    let all = || gids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(index) = choice.gid_index {
        let gid = gids.iter().find(|gid| gid.index == index).copied();
        return match gid {
            Some(gid) => Ok(Some(gid)),
            None => Err(format!("{this} has no GID {index}; it has {}", all())),
        };
    }
    match port.link {
        Link::InfiniBand if port.lid != 0 => Ok(None),
        Link::InfiniBand => Err(format!("{this} has no LID: is a subnet manager running?")),
        Link::Ethernet => {
            let best = gids.iter().min_by_key(|gid| gid.rank()).copied();
            best.map(Some).ok_or_else(|| format!("{this} has no GID: its network interface needs an address"))
        }
    }
}

/// The fastest port that can be used.
fn choose(choice: &Verbs) -> Result<(Context, Port, Option<Gid>), String> {
    let (open, mut reasons) = contexts()?;
    let mut best: Option<(Context, Port, Option<Gid>)> = None;
    for context in open {
        let mut found = None;
        for port in context.ports() {
            let fastest =
                [found.as_ref().map(|(port, _): &(Port, _)| port), best.as_ref().map(|(_, port, _)| port)];
            match usable(choice, &context, &port) {
                Ok(_) if fastest.iter().flatten().any(|other| other.gigabits >= port.gigabits) => {}
                Ok(gid) => found = Some((port, gid)),
                Err(reason) => reasons.push(reason),
            }
        }
        if let Some((port, gid)) = found {
            best = Some((context, port, gid));
        }
    }
    best.ok_or_else(|| format!("no RDMA port can be used: {}", reasons.join("; ")))
}

/// A line for each port, and the limit on locked memory.
///
/// # Errors
/// If none can be used, with the reasons.
pub(crate) fn survey(choice: &Verbs) -> Result<Vec<String>, String> {
    let chosen = Device::open(choice)?;
    let (open, closed) = contexts()?;
    let mut lines = closed;
    for context in open {
        for port in context.ports() {
            let used = context.name == chosen.name() && port.number == chosen.port.number;
            let mut line = format!("{} port {}: {}, {}", context.name, port.number, port.link, port.state());
            if port.gigabits > 0.0 {
                line += &format!(", {} Gb/s", port.gigabits);
            }
            if port.lid != 0 {
                line += &format!(", LID {}", port.lid);
            }
            for gid in context.gids(&port) {
                let this = used && chosen.gid.is_some_and(|chosen| chosen.index == gid.index);
                line += &format!(", {gid}{}", if this { " (used)" } else { "" });
            }
            lines.push(if used { format!("{line}; used") } else { line });
        }
    }
    lines.push(format!("memory that may be locked: {}", region::locked_memory_limit()));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(kind: u32, raw: [u8; 16]) -> Gid {
        Gid { index: 0, raw, kind }
    }

    #[test]
    fn an_ipv4_gid_of_roce_v2_comes_first_and_v1_last() {
        let ipv4 = Ipv4Addr::new(10, 9, 0, 1).to_ipv6_mapped().octets();
        let global = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let link = "fe80::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let v2 = ffi::IBV_GID_TYPE_ROCE_V2;
        let order = [gid(v2, ipv4), gid(v2, global), gid(v2, link), gid(ffi::IBV_GID_TYPE_ROCE_V1, ipv4)];
        assert!(order.is_sorted_by_key(Gid::rank));
        assert_eq!(order[0].to_string(), "GID 0 10.9.0.1 (RoCE v2)");
    }
}

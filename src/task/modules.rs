//! The modules (executable and shared libraries) of this process, as the loader tells of them.

use std::{
    borrow::Cow,
    ffi::{CStr, c_int, c_void},
    os::unix::ffi::OsStrExt,
    path::Path,
    slice,
    sync::{OnceLock, RwLock},
};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A loaded module.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// Hash of the file name; 0 for the executable.
    pub(super) id: u64,
    /// What addresses within the file are relative to.
    pub(super) base: usize,
    /// All that it maps.
    whole: (usize, usize),
    /// What nobody can write: read-only segments, and those made read-only after relocation.
    read_only: Vec<(usize, usize)>,
    /// Its build id, where the linker wrote one.
    build_note: Option<Vec<u8>>,
}

impl Module {
    /// Whether `size` bytes at `address` lie in memory that nobody can write.
    pub(super) fn is_read_only(&self, address: usize, size: usize) -> bool {
        let Some(end) = address.checked_add(size) else { return false };
        self.read_only.iter().any(|&(from, to)| from <= address && end <= to)
    }

    fn contains(&self, address: usize) -> bool {
        (self.whole.0..self.whole.1).contains(&address)
    }
}

/// The module whose memory holds `address`.
pub(super) fn containing(address: usize) -> Option<Cow<'static, Module>> {
    let main = executable();
    if main.contains(address) {
        return Some(Cow::Borrowed(main));
    }
    find(|module| module.contains(address)).map(Cow::Owned)
}

/// The module of that id.
pub(super) fn by_id(id: u64) -> Option<Cow<'static, Module>> {
    if id == 0 {
        return Some(Cow::Borrowed(executable()));
    }
    find(|module| module.id == id).map(Cow::Owned)
}

/// The executable itself.
pub(super) fn executable() -> &'static Module {
    static EXECUTABLE: OnceLock<Module> = OnceLock::new();
    EXECUTABLE.get_or_init(|| loaded().swap_remove(0))
}

/// What tells one build of the executable from another: the linker's build id, or else a hash of
/// all code and constants.
pub fn build_id() -> &'static str {
    static BUILD_ID: OnceLock<String> = OnceLock::new();
    BUILD_ID.get_or_init(|| {
        let main = executable();
        if let Some(note) = &main.build_note {
            return note.iter().map(|byte| format!("{byte:02x}")).collect();
        }
        let mut hasher = Xxh3::new();
        for &(from, to) in constant_segments().iter() {
            // SAFETY: the loader mapped these bytes readable for the life of the process, and
            // segments without PF_W are not relocated or written.
            hasher.update(unsafe { slice::from_raw_parts(from as *const u8, to - from) });
        }
        format!("{:032x}", hasher.digest128())
    })
}

fn find(wanted: impl Fn(&Module) -> bool) -> Option<Module> {
    static KNOWN: RwLock<Vec<Module>> = RwLock::new(Vec::new());
    if let Ok(known) = KNOWN.read()
        && let Some(module) = known.iter().find(|m| wanted(m))
    {
        return Some(module.clone());
    }
    // A library may have been loaded since.
    let now = loaded();
    let found = now.iter().find(|m| wanted(m)).cloned();
    if let Ok(mut known) = KNOWN.write() {
        *known = now;
    }
    found
}

fn constant_segments() -> Vec<(usize, usize)> {
    let mut segments = Vec::new();
    visit(|info, first| {
        if first {
            for header in headers(info) {
                if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
                    let from = info.dlpi_addr as usize + header.p_vaddr as usize;
                    segments.push((from, from + header.p_filesz as usize));
                }
            }
        }
    });
    segments
}

/// All modules, the executable first.
fn loaded() -> Vec<Module> {
    let mut modules = Vec::new();
    visit(|info, first| {
        let base = info.dlpi_addr as usize;
        let mut module =
            Module { id: 0, base, whole: (usize::MAX, 0), read_only: Vec::new(), build_note: None };
        if !first {
            // SAFETY: the loader hands over a terminated string that lives during the visit.
            let path = unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes();
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            let name = path.file_name().unwrap_or(path.as_os_str());
            module.id = xxh3_64(name.as_bytes()).max(1);
        }
        for header in headers(info) {
            let from = base.wrapping_add(header.p_vaddr as usize);
            let to = from + header.p_memsz as usize;
            match header.p_type {
                libc::PT_LOAD => {
                    module.whole = (module.whole.0.min(from), module.whole.1.max(to));
                    if header.p_flags & libc::PF_W == 0 {
                        module.read_only.push((from, to));
                    }
                }
                libc::PT_GNU_RELRO => module.read_only.push((from, to)),
                libc::PT_NOTE => {
                    // SAFETY: a note segment of a loaded module is mapped readable.
                    let notes = unsafe { slice::from_raw_parts(from as *const u8, header.p_filesz as usize) };
                    module.build_note = module.build_note.take().or_else(|| build_note(notes));
                }
                _ => {}
            }
        }
        modules.push(module);
    });
    modules
}

/// The build id among a segment's notes (ELF: name size, description size, type, then both padded to 4).
fn build_note(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let word = |at: usize| Some(u32::from_le_bytes(notes.get(at..at + 4)?.try_into().ok()?));
        let (name, description, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let start = 12 + name.next_multiple_of(4);
        if kind == NT_GNU_BUILD_ID && notes.get(12..16)? == b"GNU\0" {
            return Some(notes.get(start..start + description)?.to_vec());
        }
        notes = notes.get(start + description.next_multiple_of(4)..)?;
    }
}

fn headers(info: &libc::dl_phdr_info) -> &[libc::Elf64_Phdr] {
    // SAFETY: the loader hands over `dlpi_phnum` program headers that live as long as the module.
    unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize) }
}

/// Calls `visitor` with each module and whether it is the first, the executable.
fn visit(mut visitor: impl FnMut(&libc::dl_phdr_info, bool)) {
    struct Visit<'a> {
        visitor: &'a mut dyn FnMut(&libc::dl_phdr_info, bool),
        first: bool,
    }
    unsafe extern "C" fn each(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
        // SAFETY: `data` is the `Visit` below, which outlives the call; the loader hands over a valid `info`.
        let (visit, info) = unsafe { (&mut *data.cast::<Visit<'_>>(), &*info) };
        (visit.visitor)(info, visit.first);
        visit.first = false;
        0
    }
    let mut visit = Visit { visitor: &mut visitor, first: true };
    // SAFETY: `each` has the signature asked for, and `visit` lives through the call.
    unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut visit).cast()) };
}

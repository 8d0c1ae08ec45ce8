//! Anonymous memory that takes no room until it is touched, and how much of it there is.

use crate::Error;
use std::ptr::NonNull;

/// Alignment of every region: a page of memory.
const PAGE_BYTES: u64 = 4096;

/// Zeroed memory of a fixed size.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    mapped: usize,
}

// SAFETY: the region is plain memory that it owns; who may touch which bytes when is the business of the launch order.
unsafe impl Send for Region {}
// SAFETY: as above: the region itself hands out nothing but its address.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves `bytes` and one page more, so that a vector load at the very end stays inside.
    ///
    /// Errors: the address space or the system's limit is exhausted.
    pub fn new(what: &'static str, bytes: u64, huge_pages: bool) -> Result<Self, Error> {
        let refused = || Error::Memory { what, needed: bytes, available: available_bytes() };
        let mapped = bytes.checked_next_multiple_of(PAGE_BYTES).and_then(|n| n.checked_add(PAGE_BYTES));
        let mapped = mapped.and_then(|n| usize::try_from(n).ok()).ok_or_else(refused)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the system's choice touches nothing that exists.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(refused());
        }
        if huge_pages {
            // SAFETY: advice about our own mapping; a refusal changes nothing.
            unsafe { libc::madvise(start, mapped, libc::MADV_HUGEPAGE) };
        }
        Ok(Self { start: NonNull::new(start.cast()).expect("mmap does not return address 0"), mapped })
    }

    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Usable bytes.
    pub fn bytes(&self) -> u64 {
        self.mapped as u64 - PAGE_BYTES
    }

    /// `count` f32 numbers from `offset` bytes on.
    pub fn floats(&self, offset: u64, count: usize) -> &[f32] {
        assert!(offset.is_multiple_of(4) && offset + 4 * count as u64 <= self.bytes(), "inside the region");
        // SAFETY: inside the mapping, aligned, and any bits are an f32; kernels write only during a step, which borrows the session mutably.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset as usize).cast(), count) }
    }

    /// Copies `bytes` to `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.bytes(), "inside the region");
        // SAFETY: inside the mapping, which is borrowed mutably, so that `bytes` are others'.
        unsafe {
            let to = self.start.as_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// `count` bytes from `offset` on.
    pub fn bytes_at(&self, offset: u64, count: usize) -> &[u8] {
        assert!(offset + count as u64 <= self.bytes(), "inside the region");
        // SAFETY: inside the mapping, and any bits are bytes; kernels write only during a step, which borrows the memory's owner mutably.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset as usize), count) }
    }

    /// Copies bytes inside the region.
    pub fn copy_within(&mut self, from: u64, to: u64, bytes: u64) {
        assert!(from + bytes <= self.bytes() && to + bytes <= self.bytes(), "inside the region");
        // SAFETY: both ranges lie inside the mapping, which is borrowed mutably; `copy` allows overlap.
        unsafe {
            let base = self.start.as_ptr();
            std::ptr::copy(base.add(from as usize), base.add(to as usize), bytes as usize);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody can hold a reference into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

/// Memory that can still be used: what the system has left, and no more than a control group allows.
pub fn available_bytes() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let system = field_kib(&info, "MemAvailable:").map_or(u64::MAX, |kib| kib * 1024);
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    let group = read("memory.max").map_or(u64::MAX, |max| max.saturating_sub(read("memory.current").unwrap_or(0)));
    system.min(group)
}

/// Anonymous memory of this process that is resident, in bytes.
pub fn resident_anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    field_kib(&status, "RssAnon:").unwrap_or(0) * 1024
}

/// The number of a line `Name:  123 kB`.
pub fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_huge_region_costs_nothing_until_touched() {
        let before = resident_anonymous_bytes();
        let mut region = Region::new("a test", 1 << 36, false).unwrap();
        assert_eq!(region.floats((1 << 36) - 4, 1), [0.0]);
        region.copy_within(0, 64, 64);
        region.write((1 << 36) - 2, &[1, 2]);
        assert_eq!(region.bytes_at((1 << 36) - 3, 3), [0, 1, 2]);
        assert!(resident_anonymous_bytes() < before + (64 << 20));
        assert!(matches!(Region::new("a test", u64::MAX - 10, false), Err(Error::Memory { .. })));
        assert!(available_bytes() > 0);
    }
}

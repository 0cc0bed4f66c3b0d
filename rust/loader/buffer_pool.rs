//! Reusable batch buffers, divided into disjoint slots that many threads can write.
//!
//! Page faults of a new 100 MB buffer cost as much as writing the images, so a [`BufferPool`] keeps
//! returned buffers. A [`PooledBuffer`] returns to its pool when its last owner drops it. A Python
//! tensor that shares the memory is an owner, so a batch is not overwritten while in use.

use std::alloc::{Layout, alloc_zeroed};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;

/// Alignment of buffers in bytes: one cache line.
pub const ALIGNMENT: usize = 64;

/// Free buffers, and the memory usage of all buffers.
#[derive(Debug)]
pub struct BufferPool {
    free: Mutex<Vec<Vec<u128>>>,
    keep: usize,
    bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
}

/// Bytes aligned to [`ALIGNMENT`], owned by a pool.
pub struct PooledBuffer {
    memory: Vec<u128>,
    offset: usize,
    bytes: usize,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    /// Create a pool that keeps at most `keep` free buffers.
    pub fn new(keep: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(Vec::new()),
            keep,
            bytes: AtomicUsize::new(0),
            peak_bytes: AtomicUsize::new(0),
        })
    }

    /// Take a buffer of `bytes` bytes; `what` describes it in the error. It contains zeros or data
    /// from an earlier use.
    pub fn take(
        self: &Arc<Self>,
        bytes: usize,
        what: impl FnOnce() -> String,
    ) -> Result<PooledBuffer, Error> {
        let words = bytes.saturating_add(ALIGNMENT).div_ceil(size_of::<u128>());
        let memory = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = (0..free.len())
                .filter(|&at| free[at].len() >= words)
                .min_by_key(|&at| free[at].len());
            match fitting {
                Some(at) => Some(free.swap_remove(at)),
                None if free.len() >= self.keep.max(1) => {
                    // Replace the smallest free buffer with a larger one.
                    let smallest = (0..free.len()).min_by_key(|&at| free[at].len());
                    let dropped = smallest.map(|at| free.swap_remove(at));
                    self.forget(dropped.as_ref());
                    None
                }
                None => None,
            }
        };
        let memory = match memory {
            Some(memory) => memory,
            None => self.make(words).ok_or_else(|| Error::Memory {
                bytes,
                what: what(),
            })?,
        };
        let offset = memory.as_ptr().addr().wrapping_neg() % ALIGNMENT;
        Ok(PooledBuffer {
            memory,
            offset,
            bytes,
            pool: Arc::clone(self),
        })
    }

    /// Allocate a buffer; if that fails, release the free buffers and try again.
    fn make(&self, words: usize) -> Option<Vec<u128>> {
        let memory = zeroed(words).or_else(|| {
            let kept = {
                let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *free)
            };
            for memory in &kept {
                self.forget(Some(memory));
            }
            drop(kept);
            zeroed(words)
        })?;
        let bytes = words * size_of::<u128>();
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak_bytes.fetch_max(held, Ordering::Relaxed);
        Some(memory)
    }

    /// Total bytes of all buffers, used or free.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    fn forget(&self, dropped: Option<&Vec<u128>>) {
        let bytes = dropped.map_or(0, |memory| memory.len() * size_of::<u128>());
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, memory: Vec<u128>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.keep {
            free.push(memory);
        } else {
            self.forget(Some(&memory));
        }
    }
}

/// Like `vec![0; words]`, zeroed by the OS on first touch; `None` if allocation fails.
fn zeroed(words: usize) -> Option<Vec<u128>> {
    let layout = Layout::array::<u128>(words).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout has a nonzero size. The memory comes from the global allocator, as a box's
    // would, with the layout of `words` values, all of which are initialized to zero.
    unsafe {
        #[allow(clippy::cast_ptr_alignment)] // The layout has the alignment of u128.
        let start = alloc_zeroed(layout).cast::<u128>();
        if start.is_null() {
            return None;
        }
        let values = ptr::slice_from_raw_parts_mut(start, words);
        let mut memory = Box::from_raw(values).into_vec();
        #[cfg(target_os = "linux")]
        prefer_large_pages(&mut memory);
        Some(memory)
    }
}

/// Request 2 MiB pages: batch rows are far apart, so small pages cause many TLB misses. A no-op if
/// the OS does not support them.
#[cfg(target_os = "linux")]
fn prefer_large_pages(memory: &mut [u128]) {
    const LARGE: usize = 2 << 20;
    let bytes = size_of_val(memory);
    let start = memory.as_mut_ptr().cast::<u8>();
    let skipped = start.align_offset(LARGE);
    let length = bytes.saturating_sub(skipped) / LARGE * LARGE;
    if length > 0 {
        // SAFETY: the range is inside this allocation, and the advice does not change its
        // contents.
        unsafe { libc::madvise(start.add(skipped).cast(), length, libc::MADV_HUGEPAGE) };
    }
}

impl fmt::Debug for PooledBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&**self).finish()
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.memory));
    }
}

impl Deref for PooledBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `take` made the memory at least `offset + bytes` bytes long, all of it is
        // initialized, and bytes need no alignment; `truncate` only shortens them.
        unsafe {
            let start = self.memory.as_ptr().cast::<u8>().add(self.offset);
            std::slice::from_raw_parts(start, self.bytes)
        }
    }
}

impl DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the memory is as long and initialized as in `deref`; the buffer is borrowed
        // mutably, so nothing else accesses it.
        unsafe {
            let start = self.memory.as_mut_ptr().cast::<u8>().add(self.offset);
            std::slice::from_raw_parts_mut(start, self.bytes)
        }
    }
}

impl PooledBuffer {
    pub fn truncate(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
    }
}

/// A buffer divided into equal slots, each of which can be written by one thread at a time.
#[derive(Debug)]
pub struct Slots {
    start: *mut u8,
    block: PooledBuffer,
    slot_bytes: usize,
    taken: Box<[AtomicBool]>,
}

// SAFETY: the memory is plain bytes of the buffer that the same value owns. It is accessed only
// through `SlotMut`s, of which `taken` allows one per slot, and by value once there is one owner.
unsafe impl Send for Slots {}
// SAFETY: threads that share the value access different slots only, since `taken` is atomic.
unsafe impl Sync for Slots {}

/// Exclusive access to one of the [`Slots`].
#[derive(Debug)]
pub struct SlotMut {
    slots: Arc<Slots>,
    index: usize,
}

impl Slots {
    /// Divide a buffer from the pool into `count` slots; `what` describes it in the error.
    pub fn new(
        pool: &Arc<BufferPool>,
        count: usize,
        slot_bytes: usize,
        what: impl FnOnce() -> String,
    ) -> Result<Arc<Self>, Error> {
        // If the product wrapped around, too little would be allocated.
        let mut block = pool.take(count.saturating_mul(slot_bytes), what)?;
        Ok(Arc::new(Self {
            start: block.as_mut_ptr(),
            block,
            slot_bytes,
            taken: (0..count).map(|_| AtomicBool::new(false)).collect(),
        }))
    }

    /// Take a slot for writing; `None` if it does not exist or is taken.
    pub fn take(self: &Arc<Self>, index: usize) -> Option<SlotMut> {
        let free = !self.taken.get(index)?.swap(true, Ordering::Acquire);
        free.then(|| SlotMut {
            slots: Arc::clone(self),
            index,
        })
    }

    /// The buffer, once no slot is taken.
    pub fn into_block(self: Arc<Self>) -> Option<PooledBuffer> {
        Arc::into_inner(self).map(|slots| slots.block)
    }
}

impl SlotMut {
    fn start(&self) -> *mut u8 {
        // SAFETY: `Slots::new` made the buffer long enough for every slot, and `take` returns only
        // slots that exist.
        unsafe { self.slots.start.add(self.index * self.slots.slot_bytes) }
    }
}

impl Drop for SlotMut {
    fn drop(&mut self) {
        if let Some(taken) = self.slots.taken.get(self.index) {
            taken.store(false, Ordering::Release);
        }
    }
}

impl Deref for SlotMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the slot is inside the buffer, whose memory does not move, and is written only
        // through this value.
        unsafe { std::slice::from_raw_parts(self.start(), self.slots.slot_bytes) }
    }
}

impl DerefMut for SlotMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the slot is inside the buffer, whose memory does not move; slots do not overlap,
        // and `taken` allows one value per slot, which is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.slots.slot_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pool: &Arc<BufferPool>, bytes: usize) -> PooledBuffer {
        pool.take(bytes, String::new).unwrap()
    }

    #[test]
    fn empty_buffers_are_allowed() {
        let pool = BufferPool::new(1);
        assert!(take(&pool, 0).is_empty());
    }

    #[test]
    fn buffers_are_aligned_and_reused() {
        let pool = BufferPool::new(2);
        for bytes in [1, 63, 64, 1000, 100_000] {
            let block = take(&pool, bytes);
            assert_eq!(block.len(), bytes);
            assert_eq!(block.as_ptr().addr() % ALIGNMENT, 0);
        }
        let pool = BufferPool::new(2);
        let mut block = take(&pool, 1000);
        block.fill(7);
        let sample_ref = block.as_ptr().addr();
        let held = pool.bytes();
        drop(block);
        let block = take(&pool, 900);
        assert_eq!((block.as_ptr().addr(), pool.bytes()), (sample_ref, held));
        assert!(block.iter().all(|&byte| byte == 7));
        // The first buffer is in use, so another is allocated.
        assert_ne!(take(&pool, 900).as_ptr().addr(), sample_ref);
    }

    #[test]
    fn at_most_keep_buffers_are_kept() {
        let pool = BufferPool::new(2);
        let blocks: Vec<PooledBuffer> = (0..5).map(|_| take(&pool, 1 << 12)).collect();
        let one = pool.bytes() / 5;
        drop(blocks);
        assert_eq!((pool.bytes(), pool.peak_bytes()), (2 * one, 5 * one));
        // A larger buffer replaces a free one.
        let larger = take(&pool, 1 << 16);
        assert!(larger.len() == 1 << 16 && pool.bytes() < 2 * one + (1 << 16));
    }

    #[test]
    fn a_failed_allocation_releases_free_buffers() {
        let pool = BufferPool::new(2);
        drop(take(&pool, 1 << 12));
        assert!(pool.bytes() >= 1 << 12);
        for bytes in [1 << 60, isize::MAX as usize, usize::MAX] {
            let error = pool.take(bytes, || "a test".to_owned()).unwrap_err();
            let expected = format!("out of memory: {bytes} bytes for a test");
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!(pool.bytes(), 0);
        assert_eq!(take(&pool, 100).len(), 100);
        // The total size overflows.
        assert!(Slots::new(&pool, usize::MAX / 2, 3, String::new).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn large_buffers_request_huge_pages() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        let block = take(&BufferPool::new(1), 64 << 20);
        let middle = block.as_ptr().addr() + (32 << 20);
        let mappings = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_ours = false;
        for line in mappings.lines() {
            let first = line.split(' ').next().unwrap();
            if let Some((start, end)) = first.split_once('-') {
                let [start, end] = [start, end].map(|it| usize::from_str_radix(it, 16).unwrap());
                is_ours = (start..end).contains(&middle);
            } else if is_ours && first == "VmFlags:" {
                assert!(line.split(' ').any(|flag| flag == "hg"), "{line}");
                return;
            }
        }
        panic!("the buffer is in no mapping");
    }

    #[test]
    fn threads_write_disjoint_slots() {
        let pool = BufferPool::new(1);
        let slots = Slots::new(&pool, 8, 1000, String::new).unwrap();
        std::thread::scope(|scope| {
            for index in 0..8_u8 {
                let slots = Arc::clone(&slots);
                scope.spawn(move || slots.take(index.into()).unwrap().fill(index));
            }
        });
        let block = slots.into_block().unwrap();
        for (index, part) in (0..).zip(block.chunks_exact(1000)) {
            assert!(part.iter().all(|&byte| byte == index));
        }
    }

    #[test]
    fn a_slot_is_taken_once_at_a_time() {
        let slots = Slots::new(&BufferPool::new(1), 2, 10, String::new).unwrap();
        let first = slots.take(0).unwrap();
        assert!(slots.take(0).is_none() && slots.take(2).is_none());
        drop(first);
        let again = slots.take(0);
        assert!(again.is_some());
        assert!(slots.into_block().is_none());
    }
}

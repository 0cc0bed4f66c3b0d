//! Parallel loops, run on OpenMP's threads if an OpenMP runtime is loaded.
//!
//! torch's OpenMP threads spin for a while after each operation. Separate threads would compete
//! with them for cores, while work that OpenMP distributes runs on the same threads.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::head::HeadScratch;

thread_local! {
    /// Kept between calls, since page faults in new memory take as long as the work.
    static SCRATCH: RefCell<HeadScratch> = RefCell::default();
}

/// Run `body` for every index below `tasks`, on up to `threads` threads including the caller.
pub(super) fn run(tasks: usize, threads: usize, body: &(dyn Fn(usize, &mut HeadScratch) + Sync)) {
    let next = AtomicUsize::new(0);
    let work = || {
        SCRATCH.with_borrow_mut(|scratch| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                body(task, scratch);
            }
        });
    };
    fork(threads.min(tasks), &work);
}

/// Run `work` on several threads at once.
fn fork(threads: usize, work: &(dyn Fn() + Sync)) {
    if threads < 2 {
        work();
    } else if !openmp::fork(threads, work) {
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
    }
}

#[cfg(target_os = "linux")]
mod openmp {
    use std::ffi::{c_char, c_uint, c_void};
    use std::mem;
    use std::ptr;
    use std::sync::OnceLock;

    unsafe extern "C" {
        /// # Safety
        /// The name must end with a zero byte.
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    /// `GOMP_parallel` of GNU's runtime, also provided by LLVM's and Intel's.
    type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

    /// Run `work` on a team of threads; false if no loaded library provides one.
    pub(super) fn fork(threads: usize, work: &(dyn Fn() + Sync)) -> bool {
        static PARALLEL: OnceLock<Option<Parallel>> = OnceLock::new();
        let parallel = *PARALLEL.get_or_init(|| {
            // SAFETY: the name is a C string, and a null handle (`RTLD_DEFAULT`) searches all
            // globally loaded libraries.
            let found = unsafe { dlsym(ptr::null_mut(), c"GOMP_parallel".as_ptr()) };
            // SAFETY: the pointer is not null, and a function of this name has this type by GNU's
            // interface, which OpenMP runtimes of other vendors implement for its sake.
            (!found.is_null()).then(|| unsafe { mem::transmute::<*mut c_void, Parallel>(found) })
        });
        let (Some(parallel), Ok(threads)) = (parallel, c_uint::try_from(threads)) else {
            return false;
        };
        let mut data: &(dyn Fn() + Sync) = work;
        // SAFETY: `enter` expects a pointer to `data`, and may run on several threads since `work`
        // is `Sync`. The call returns when all threads are done, so both outlive them.
        unsafe { parallel(enter, ptr::from_mut(&mut data).cast(), threads, 0) };
        true
    }

    /// Abort the process on a panic, which must not unwind through C frames.
    extern "C" fn enter(data: *mut c_void) {
        // SAFETY: `fork` passes a pointer to a reference of this type, which lives until all
        // threads are done and which no thread writes.
        let work = unsafe { *data.cast::<&(dyn Fn() + Sync)>() };
        work();
    }
}

#[cfg(not(target_os = "linux"))]
mod openmp {
    pub(super) fn fork(_: usize, _: &(dyn Fn() + Sync)) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let done = Mutex::new(Vec::new());
            run(7, threads, &|task, _| done.lock().unwrap().push(task));
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert_eq!(done, [0, 1, 2, 3, 4, 5, 6]);
        }
        run(0, 2, &|_, _| panic!("no such task"));
    }
}

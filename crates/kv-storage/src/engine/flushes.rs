//! Which flushes of sled have begun and not ended, and whether one of its threads has died.
//!
//! A panic in one of sled's own threads leaves every later `flush()` of the process waiting for ever, and no caller sees
//! it. So whoever flushes says so here, and the host's watchdog looks from outside.

use std::collections::BTreeMap;
use std::panic::{set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// How the names of sled's own threads begin.
const SLED_THREAD: &str = "sled-";

static THREAD_DIED: AtomicBool = AtomicBool::new(false);

/// A flush under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flush {
    /// Names it; never used again.
    pub number: u64,
    /// The engine's directory, relative to the data directory.
    pub dir: PathBuf,
}

/// The flushes of one factory's engines.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    begun: u64,
    dirs: BTreeMap<u64, PathBuf>,
}

impl Flushes {
    /// Runs a flush of the engine in `dir`.
    pub(super) fn watched<T>(&self, dir: &Path, flush: impl FnOnce() -> T) -> T {
        let number = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.begun += 1;
            let number = running.begun;
            running.dirs.insert(number, dir.to_owned());
            number
        };
        let result = flush();
        self.running.lock().unwrap_or_else(PoisonError::into_inner).dirs.remove(&number);
        result
    }

    /// Those that have begun and not ended.
    pub(super) fn running(&self) -> Vec<Flush> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.dirs.iter().map(|(number, dir)| Flush { number: *number, dir: dir.clone() }).collect()
    }
}

/// Takes note of panics in sled's own threads from now on; whatever else was to happen on a panic still does.
pub(super) fn watch_threads() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if std::thread::current().name().is_some_and(|name| name.starts_with(SLED_THREAD)) {
                THREAD_DIED.store(true, Ordering::Release);
            }
            before(panic);
        }));
    });
}

/// Whether one of sled's own threads has panicked in this process.
pub(super) fn thread_died() -> bool {
    THREAD_DIED.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_seen_while_it_runs() {
        let flushes = Flushes::default();
        let dir = Path::new("shard-1/gen-0");
        let seen = flushes.watched(dir, || flushes.running());
        assert_eq!(seen, [Flush { number: 1, dir: dir.to_owned() }]);
        assert!(flushes.running().is_empty());
        assert_eq!(flushes.watched(dir, || flushes.running())[0].number, 2);
    }

    #[test]
    fn only_a_panic_in_a_thread_of_sled_counts() {
        watch_threads();
        let panicking = |name: &str| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            assert!(thread.spawn(|| panic!("for the test")).unwrap().join().is_err());
        };
        panicking("another");
        assert!(!thread_died());
        panicking("sled-io-7");
        assert!(thread_died());
    }
}

//! One cluster at a time on this machine, or two of those that do not mind.

use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;

/// Clusters that run beside each other; more would be slower than one after the other.
const SHARERS_MAX: usize = 2;

static SEATS: Mutex<Seats> = Mutex::new(Seats { sharing: 0, waiting: 0, alone: false });

/// A seat was given back.
static FREED: Condvar = Condvar::new();

/// Who has a turn in this process. A lock of the kernel alone would let those that share overtake those that do not, until
/// every thread but one waits.
struct Seats {
    sharing: usize,
    /// How many wait to be alone.
    waiting: usize,
    alone: bool,
}

/// The right to run a cluster. Tests of all processes wait for one another: five nodes and their clients have all the
/// cores to themselves, so that a limit in milliseconds says something about the nodes. Tests whose clusters wait most of
/// the time, and which assert no limit that another cluster could break, share it.
#[derive(Debug)]
pub struct Turn {
    /// Holds the lock; the kernel lets go of it when the process ends, however it ends.
    _lock: File,
    _seat: Seat,
}

impl Turn {
    /// Waits until no other test has it. Blocks the thread, which has nothing else to do.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn take() -> anyhow::Result<Self> {
        let seat = Seat::alone();
        let lock = lock_file()?;
        lock.lock().context("cannot lock the turn")?;
        Ok(Self { _lock: lock, _seat: seat })
    }

    /// Waits until no other test has it or waits for it alone, and at most one shares it. Blocks the thread as well.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn share() -> anyhow::Result<Self> {
        let seat = Seat::shared();
        let lock = lock_file()?;
        lock.lock_shared().context("cannot share the turn")?;
        Ok(Self { _lock: lock, _seat: seat })
    }
}

fn lock_file() -> anyhow::Result<File> {
    let path = std::env::temp_dir().join("quorate-e2e.turn");
    File::create(&path).with_context(|| format!("cannot create {}", path.display()))
}

/// One of [`Seats`].
#[derive(Debug)]
struct Seat {
    alone: bool,
}

impl Seat {
    fn alone() -> Self {
        let mut seats = seats();
        seats.waiting += 1;
        let mut seats = until_not(seats, |seats| seats.alone || seats.sharing > 0);
        seats.waiting -= 1;
        seats.alone = true;
        Self { alone: true }
    }

    fn shared() -> Self {
        let is_full = |seats: &Seats| seats.alone || seats.waiting > 0 || seats.sharing >= SHARERS_MAX;
        until_not(seats(), is_full).sharing += 1;
        Self { alone: false }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = seats();
        if self.alone {
            seats.alone = false;
        } else {
            seats.sharing -= 1;
        }
        FREED.notify_all();
    }
}

fn until_not(
    seats: MutexGuard<'static, Seats>,
    is_full: impl Fn(&Seats) -> bool,
) -> MutexGuard<'static, Seats> {
    FREED.wait_while(seats, |seats| is_full(seats)).unwrap_or_else(PoisonError::into_inner)
}

fn seats() -> MutexGuard<'static, Seats> {
    SEATS.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The memory of the whole bus: one number that everything which waits is charged to.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Bytes that may wait in all queues and buffers of a router together, beyond what each has free.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// No bound but what each queue has of its own: for a client's side.
    pub(crate) fn unlimited() -> Arc<Self> {
        Self::new(usize::MAX)
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one queue or buffer holds of the budget. The first [`FREE`] bytes cost nothing, so that small queues never touch what all share; beyond it
/// grows and shrinks by [`STEP`].
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    held: usize,
}

/// Bytes that every queue and every read buffer may have whatever the budget says.
pub(crate) const FREE: usize = 64 << 10;
const STEP: usize = 64 << 10;

impl Share {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), held: 0 }
    }

    /// Makes room for so many bytes in all. `false`, and nothing changed, if the budget hasn't got them.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        if bytes <= FREE + self.held {
            return true;
        }
        let more = (bytes - FREE - self.held).next_multiple_of(STEP);
        let taken = self.budget.take(more);
        if taken {
            self.held += more;
        }
        taken
    }

    /// Gives back what so many bytes don't need.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if self.held == 0 {
            return;
        }
        let needed = bytes.saturating_sub(FREE).next_multiple_of(STEP);
        if needed < self.held {
            self.budget.give_back(self.held - needed);
            self.held = needed;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_take_in_steps_and_give_back() {
        let budget = Budget::new(3 * STEP);
        let (mut a, mut b) = (Share::new(&budget), Share::new(&budget));
        assert!(a.grow(FREE) && budget.used() == 0, "the first bytes are free");
        assert!(a.grow(FREE + 1) && budget.used() == STEP);
        assert!(b.grow(FREE + 2 * STEP) && budget.used() == 3 * STEP);
        assert!(a.grow(FREE + STEP), "it has that already");
        assert!(!a.grow(FREE + STEP + 1) && budget.used() == 3 * STEP, "refused, and nothing taken");
        b.shrink(FREE + 1);
        assert_eq!(budget.used(), 2 * STEP);
        assert!(a.grow(FREE + STEP + 1));
        a.shrink(0);
        drop(b);
        assert_eq!(budget.used(), 0);
        assert!(Share::new(&Budget::unlimited()).grow(usize::MAX / 2));
    }
}

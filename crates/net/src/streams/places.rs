//! What is bounded for a host, and for each owner to a share of that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// So many for all owners together and so many for one: nobody takes what all others need.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    of_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<Arc<str>, usize>,
}

/// Places that are given back when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    owner: Arc<str>,
    count: usize,
}

impl Places {
    pub(super) fn new(all: usize, of_one: usize) -> Arc<Self> {
        Arc::new(Self { all, of_one, taken: Mutex::default() })
    }

    /// Takes so many for an owner, if that many are free.
    pub(super) fn take(self: &Arc<Self>, owner: &Arc<str>, count: usize) -> Option<Place> {
        let mut taken = self.lock();
        let of = taken.of.get(owner).copied().unwrap_or_default();
        if taken.all + count > self.all || of + count > self.of_one {
            return None;
        }
        taken.all += count;
        if count > 0 {
            taken.of.insert(owner.clone(), of + count);
        }
        Some(Place { places: self.clone(), owner: owner.clone(), count })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= self.count;
        if let Some(of) = taken.of.get_mut(&self.owner) {
            *of -= self.count;
            if *of == 0 {
                taken.of.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_and_one_are_bounded_and_what_is_given_back_can_be_taken_again() {
        let places = Places::new(10, 6);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let six = places.take(&a, 6).unwrap();
        assert!(places.take(&a, 1).is_none(), "one owner has no more");
        assert!(places.take(&a, 0).is_some());
        let four = places.take(&b, 4).unwrap();
        assert!(places.take(&b, 1).is_none(), "nor has anybody");
        drop(six);
        let two = places.take(&b, 2).unwrap();
        drop((four, two));
        let taken = places.lock();
        assert_eq!((taken.all, taken.of.len()), (0, 0), "owners without any aren't kept");
    }
}

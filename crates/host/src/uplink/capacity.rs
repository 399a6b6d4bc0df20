//! What the machine has and what of it is left.

use std::time::Duration;

use atoll_contract::host::Capacity;

use crate::{projects::Projects, storage::Storage};

/// A file system that doesn't answer in so long isn't one to place projects on.
const SPACE_WAIT: Duration = Duration::from_secs(2);

/// The host's bounds from its configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) max_running: u32,
    pub(crate) disk_reserve_bytes: u64,
}

/// The capacity now, and whether the storage answers.
pub(super) async fn capacity(storage: &dyn Storage, projects: &Projects, bounds: Bounds) -> (Capacity, bool) {
    let (memory_bytes, memory_available_bytes) = memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let (present, running) = projects.counts();
    let mut capacity = Capacity {
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        memory_bytes,
        memory_available_bytes,
        projects: present,
        projects_running: running,
        max_running: bounds.max_running,
        ..Capacity::default()
    };
    let space = tokio::time::timeout(SPACE_WAIT, storage.space()).await;
    let answered = match space {
        Ok(Ok(space)) => {
            capacity.disk_bytes = space.total;
            capacity.disk_used_bytes = space.total.saturating_sub(space.free);
            capacity.disk_headroom_bytes = space.free.saturating_sub(bounds.disk_reserve_bytes);
            true
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "the storage's space can't be read");
            false
        }
        Err(_) => {
            tracing::warn!("the storage's space can't be read in time");
            false
        }
    };
    (capacity, answered)
}

/// Total and available bytes from /proc/meminfo (proc_meminfo(5): values in kB, meaning KiB).
fn memory(text: &str) -> (u64, u64) {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let bytes = |name| value(name).unwrap_or(0).saturating_mul(1024);
    (bytes("MemTotal"), bytes("MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       16318480 kB\nMemFree:          524288 kB\nMemAvailable:    8159240 kB\n";
        assert_eq!(memory(text), (16_318_480 * 1024, 8_159_240 * 1024));
        assert_eq!(memory(""), (0, 0));
        assert_eq!(memory("MemTotal: many kB\nMemAvailable 5 kB\n"), (0, 0));
    }
}

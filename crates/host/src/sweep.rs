//! Tidies up after uploads that nobody goes on with: a few projects at a time, in turn, by one task for all.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{gate::Gate, projects::Projects};

/// All projects come in turn once in so long. An upload is given up a day after its last byte, so it is gone soon after that.
const ROUND: Duration = Duration::from_hours(6);
/// The first round begins when a host that has just started has done what is urgent.
const FIRST: Duration = Duration::from_mins(10);
/// Projects that are looked at in a row; each is a listing of a directory that is mostly empty or not there.
const AT_ONCE: usize = 32;
const PAUSE: Duration = Duration::from_secs(20);

/// Sweeps until `cancel` fires.
pub(crate) async fn uploads(gate: Arc<Gate>, projects: Projects, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = rounds(&gate, &projects) => {}
    }
}

async fn rounds(gate: &Gate, projects: &Projects) {
    sleep(FIRST).await;
    loop {
        let next = Instant::now() + ROUND;
        let mut after = None;
        loop {
            let some = projects.with_volumes(after, AT_ONCE);
            for project in &some {
                if let Err(error) = gate.sweep_uploads(*project).await {
                    // the next round looks again; a volume that can't be opened was told of when it was opened
                    tracing::debug!(%project, %error, "a project's stale uploads can't be removed");
                }
            }
            if some.len() < AT_ONCE {
                break;
            }
            after = some.last().copied();
            sleep(PAUSE).await;
        }
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use atoll_contract::{HostId, KeySet, ProjectId};
    use atoll_net::clock::TestClock;

    use super::*;
    use crate::{
        gate::{GateLimits, GateParts, Places, SharedKeys},
        projects::testing::{Rig, id},
    };

    #[tokio::test]
    async fn a_round_reaches_every_project_and_makes_nothing() {
        let rig = Rig::new().await;
        let count = AT_ONCE as u8 + 3;
        let state = |n: u8| rig.projects.home(id(n)).unwrap().state;
        for n in 1..=count {
            rig.create(id(n)).await;
        }
        let (swept, kept) = (state(count).join("uploads"), state(1).join("uploads"));
        std::fs::create_dir(&swept).unwrap();
        // begun and cut off before its record was there; by the host's clock that is 50 years ago
        let stale = swept.join(format!("{}.data", "a".repeat(26)));
        std::fs::write(&stale, "x").unwrap();
        let gate = Gate::new(GateParts {
            places: Arc::new(rig.projects.clone()),
            keys: SharedKeys::new(KeySet::default()),
            host: id::<atoll_contract::id::Host>(2) as HostId,
            clock: TestClock::at(atoll_contract::Timestamp::from_millis(4_000_000_000_000)),
            bus: rig.router.clone(),
            limits: GateLimits::default(),
            cancel: CancellationToken::new(),
        });
        let cancel = CancellationToken::new();
        let task = tokio::spawn(uploads(gate, rig.projects.clone(), cancel.clone()));
        tokio::time::pause();
        let gone = async {
            while stale.exists() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(2 * ROUND, gone).await.unwrap();
        assert!(!kept.exists(), "a project that nothing was uploaded to stays as it is");
        cancel.cancel();
        task.await.unwrap();
        let all: Vec<ProjectId> = rig.projects.with_volumes(None, 1000);
        assert_eq!(all.len(), usize::from(count));
    }
}

//! Compares what should run with what the runtime shows, and takes no other input. Runs at the start, when an agent is lost, and every
//! few seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use atoll_contract::{Error, ErrorCode, ProjectId, project::ObservedState};
use atoll_net::bus::BoxFuture;
use futures_util::{StreamExt, stream};
use tokio::time::MissedTickBehavior;

use super::{
    Projects,
    container::{ended_with, with_log},
    records::Record,
    state::{Decision, Seen, Wanted, decide},
    turn::{Own, Turn},
};
use crate::runtime::{Container, ContainerState};

/// Projects that are put right at once: after a crash of the machine all of them may need it, and each is a call or two of the runtime.
const AT_ONCE: usize = 4;

impl Projects {
    pub(super) async fn reconcile_always(&self) {
        self.log_orphans().await;
        let mut ticks = tokio::time::interval(self.0.parts.reconcile_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            tokio::join!(self.reconcile(None), self.open_all());
        }
    }

    /// Boxed, since an agent's socket leads here and adoption leads to an agent's socket.
    pub(crate) fn reconcile_one(&self, project: ProjectId) -> BoxFuture<'_, ()> {
        Box::pin(self.reconcile(Some(project)))
    }

    /// Compares one project or all and acts. A project that something is being done for, or that something was done for while the
    /// runtime was asked, is left for the next time: what was seen of it is out of date.
    pub(super) async fn reconcile(&self, only: Option<ProjectId>) {
        let (epoch, mut candidates) = {
            let table = self.0.lock();
            let idle = table
                .entries
                .iter()
                .filter(|(project, entry)| entry.work.is_none() && entry.told.is_some() && only.is_none_or(|only| only == **project));
            (table.epoch, idle.map(|(project, _)| *project).collect::<BTreeSet<_>>())
        };
        let containers = match self.0.parts.runtime.list().await {
            Ok(containers) => containers,
            Err(error) => {
                if self.0.answering.swap(false, Ordering::SeqCst) {
                    tracing::error!(%error, "the container runtime doesn't answer; states stay as they were last seen");
                    self.0.version.send_modify(|_| {}); // the report says so at once
                }
                return;
            }
        };
        if !self.0.answering.swap(true, Ordering::SeqCst) {
            tracing::info!("the container runtime answers again");
            self.0.version.send_modify(|_| {});
        }
        let mut seen: BTreeMap<ProjectId, Container> = BTreeMap::new();
        for container in containers.into_iter().filter(|container| only.is_none_or(|only| only == container.project)) {
            candidates.insert(container.project);
            // should there be several, a running one is what matters
            let better = |old: &Container| container.state == ContainerState::Running && old.state != ContainerState::Running;
            if seen.get(&container.project).is_none_or(better) {
                seen.insert(container.project, container);
            }
        }
        stream::iter(candidates)
            .for_each_concurrent(AT_ONCE, |project| {
                let container = seen.get(&project).cloned();
                async move { self.put_right(project, container, epoch).await }
            })
            .await;
        if only.is_none() {
            self.0.surveyed.store(true, Ordering::SeqCst);
        }
    }

    async fn put_right(&self, project: ProjectId, container: Option<Container>, epoch: u64) {
        let (wanted, generation, state, settled) = {
            let table = self.0.lock();
            match table.entries.get(&project) {
                Some(entry) => {
                    let settled = entry.agent.as_ref().is_some_and(|link| link.said_hello());
                    (entry.told.map(|told| told.wanted), entry.generation, entry.state, settled)
                }
                None => (None, atoll_contract::Generation(0), ObservedState::Absent, false),
            }
        };
        let seen = container.map_or(Seen::Nothing, |found| Seen::of(found.state, found.generation == generation));
        let decision = decide(seen, wanted);
        let nothing_to_do = match decision {
            Decision::Keep => state != ObservedState::Stopping,
            Decision::Adopt => settled && state == ObservedState::Running,
            Decision::Gone => state == ObservedState::Failed,
            _ => false,
        };
        if nothing_to_do {
            return;
        }
        let turn = loop {
            match self.own_turn(project, epoch, Own::Reconcile) {
                Ok(turn) => break turn,
                // its volumes are being opened; another reconciliation raises the epoch, so this doesn't go on for ever
                Err(Some(own)) => drop(own.ended().await),
                Err(None) => return,
            }
        };
        let result = tokio::select! {
            biased;
            () = self.0.halt.cancelled() => return,
            result = self.act(&turn, decision) => result,
        };
        if let Err(error) = &result {
            tracing::warn!(%project, ?decision, code = error.code.as_str(), %error, "a project can't be put right yet");
        }
        turn.end(result);
    }

    async fn act(&self, turn: &Turn, decision: Decision) -> Result<(), Error> {
        let project = turn.project;
        let record = self.0.parts.records.get(project).await?;
        let Some(record) = record else {
            tracing::warn!(%project, "removing a container that no record names");
            return self.remove_container(project).await;
        };
        match decision {
            Decision::Keep | Decision::Remove => {
                if decision == Decision::Remove {
                    self.remove_container(project).await?;
                }
                let state = if record.made { ObservedState::Stopped } else { ObservedState::Absent };
                self.0.set_state(project, state, None);
                Ok(())
            }
            Decision::Adopt => self.adopt(project, record).await,
            Decision::Died(code) => {
                let log = self.log_end(project).await;
                let error = with_log(Error::new(ErrorCode::StartFailed, format!("The project stopped. {}", ended_with(code))), &log);
                self.fail_and_remove(project, record, error.mend("Start it again.")).await
            }
            Decision::WrongGeneration => {
                let error = Error::new(ErrorCode::StartFailed, "A container of another generation ran in its place and was removed.");
                self.fail_and_remove(project, record, error.mend("Start it again.")).await
            }
            Decision::Gone => {
                let error = Error::new(ErrorCode::StartFailed, "The project's container is gone.").mend("Start it again.");
                self.drop_link(project).await;
                // the secret stays: should the container show up after all, it is adopted
                let kept = Record { failure: Some(error.clone()), ..record };
                self.save_or_log(project, &kept).await;
                self.0.set_state(project, ObservedState::Failed, Some(error));
                Ok(())
            }
        }
    }

    /// The container runs and should: it is running when its agent says hello, and starting until then.
    async fn adopt(&self, project: ProjectId, record: Record) -> Result<(), Error> {
        let unfit = |why| Error::new(ErrorCode::StartFailed, why).mend("Start it again.");
        let Some(secret) = record.secret.clone() else {
            return self.fail_and_remove(project, record, unfit("A container was left over from a start that had failed.")).await;
        };
        if record.failure.is_some() {
            self.save(project, &Record { failure: None, ..record.clone() }).await?;
        }
        let link = match self.0.link_of(project) {
            Some(link) => link,
            // the container has the old directory mounted; a new one of the same name would be another
            None if !self.agent_dir(project).is_dir() => {
                return self.fail_and_remove(project, record, unfit("The directory of its agent's socket is gone.")).await;
            }
            None => {
                let link = self.listen(project, secret).await?;
                self.0.change(|table| {
                    table.entry(project, record.generation).agent = Some(link.clone());
                });
                link
            }
        };
        let state = if link.said_hello() { ObservedState::Running } else { ObservedState::Starting };
        self.0.set_state(project, state, None);
        self.ask_agent(project, &link).await;
        Ok(())
    }

    /// Keeps the reason of a failure that is there already: the first is the one that explains.
    async fn fail_and_remove(&self, project: ProjectId, record: Record, error: Error) -> Result<(), Error> {
        debug_assert_eq!(record.wanted, Wanted::Running);
        let error = record.failure.clone().unwrap_or(error);
        self.save_failure(project, record, &error).await;
        let removed = self.remove_container(project).await;
        self.0.set_state(project, ObservedState::Failed, Some(error));
        removed
    }

    /// Volumes that no record names are told of and never deleted: only the master knows whose they are.
    pub(super) async fn log_orphans(&self) {
        let found = match self.0.parts.storage.list().await {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "the volumes can't be listed"),
        };
        for project in found {
            if self.generation_in_force(project).is_some() {
                continue;
            }
            match self.0.parts.records.buried(project).await {
                Ok(Some(generation)) => tracing::warn!(%project, %generation, "volumes of a deleted project are left over"),
                Ok(None) => tracing::warn!(%project, "volumes without a record; they are left as they are"),
                Err(error) => return tracing::error!(%error, "the records can't be read"),
            }
        }
    }
}

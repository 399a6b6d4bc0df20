//! The verbs about containers.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, OperationId, ProjectId,
    agent::{AgentConfig, HOME_PATH},
    project::ObservedState,
};
use atoll_net::clock::random_text;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Projects, agent::AgentLink, records::Record, state::Wanted, turn::Work};
use crate::runtime::{ContainerSpec, ContainerState};

/// A container whose agent hasn't said hello is looked at after these waits, in case it has died. A healthy start never gets there.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LAST_LOOK: Duration = Duration::from_secs(5);
/// Bytes of a container's log that an error carries.
const LOG_BYTES: usize = 4 << 10;

impl Projects {
    /// The container runs and its agent answers. See [`atoll_contract::command::Verb::EnsureRunning`].
    pub(super) async fn ensure_running(
        &self,
        project: ProjectId,
        operation: OperationId,
        restart: bool,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        let record = self.record(project).await?;
        let (state, reason) = self.0.seen(project);
        let link = self.0.link_of(project);
        let anew = restart && record.started_by != Some(operation) && state != ObservedState::Stopped;
        if !anew && state == ObservedState::Running && link.as_ref().is_some_and(|link| link.said_hello()) {
            return Ok(());
        }
        // a container that couldn't be removed, or that nobody has looked for since the start, isn't one whose agent knows the new secret
        let left_over = link.is_none() && (state != ObservedState::Stopped || !self.0.surveyed.load(Ordering::SeqCst));
        self.reserve(project)?;
        if anew || left_over {
            work.phase("removing the old container");
            if let Err(error) = self.halt_container(project).await {
                self.0.set_state(project, state, reason);
                return Err(error);
            }
            self.0.set_state(project, ObservedState::Starting, None);
        }
        // an adopted container's agent has the secret of its start, so that one stays good
        let link = self.0.link_of(project);
        let secret = link.as_ref().map_or_else(|| random_text(&*self.0.parts.clock), |link| link.secret.clone());
        let started_by = if link.is_some() { record.started_by } else { Some(operation) };
        let record = Record { wanted: Wanted::Running, secret: Some(secret), started_by, failure: None, ..record };
        if let Err(error) = self.save(project, &record).await {
            // a container that was removed for this is found to be gone by the next reconciliation
            self.0.set_state(project, state, reason);
            return Err(error);
        }
        match self.bring_up(project, &record, link, work).await {
            Ok(()) => {
                self.0.set_state(project, ObservedState::Running, None);
                Ok(())
            }
            Err(error) => {
                self.give_up(project, record, &error).await;
                Err(error)
            }
        }
    }

    /// No container runs. Volumes stay.
    pub(super) async fn ensure_stopped(&self, project: ProjectId) -> Result<(), Error> {
        let record = self.0.parts.records.get(project).await?;
        let after = match record {
            Some(record) => {
                let after = if record.made { ObservedState::Stopped } else { ObservedState::Absent };
                let stopped = Record { wanted: Wanted::Stopped, secret: None, started_by: None, failure: None, ..record };
                self.save(project, &stopped).await?;
                after
            }
            None => ObservedState::Absent,
        };
        self.halt_container(project).await?;
        self.0.set_state(project, after, None);
        Ok(())
    }

    /// Removes the container and shows the project as stopping meanwhile; the caller sets the state that follows. If it can't be removed
    /// the state is again what it was.
    pub(super) async fn halt_container(&self, project: ProjectId) -> Result<(), Error> {
        let (state, reason) = self.0.seen(project);
        if self.0.link_of(project).is_some() {
            self.0.set_state(project, ObservedState::Stopping, None);
        }
        let removed = self.remove_container(project).await;
        if removed.is_err() {
            self.0.set_state(project, state, reason);
        }
        removed
    }

    /// Removes a project's container, its agent's socket and directory.
    pub(super) async fn remove_container(&self, project: ProjectId) -> Result<(), Error> {
        let link = self.0.link_of(project);
        if let Some(link) = &link {
            link.set_leaving(true);
        }
        if let Err(error) = self.0.parts.runtime.ensure_removed(project).await {
            if let Some(link) = &link {
                link.set_leaving(false);
            }
            return Err(error);
        }
        self.drop_link(project).await;
        Ok(())
    }

    /// Closes the agent's socket and removes its directory.
    pub(super) async fn drop_link(&self, project: ProjectId) {
        let link = self.0.lock().entries.get_mut(&project).and_then(|entry| entry.agent.take());
        if let Some(link) = link {
            link.close();
        }
        self.remove_agent_dir(project).await;
    }

    /// Takes one of the host's places for running containers, and shows the project as starting.
    fn reserve(&self, project: ProjectId) -> Result<(), Error> {
        let most = self.0.parts.max_running;
        self.0.change(|table| {
            if table.running(Some(project)) >= most as usize {
                return Err(Error::new(ErrorCode::LimitExceeded, format!("This host runs {most} projects, its bound."))
                    .mend("Stop another project on this host, or raise its max_running."));
            }
            table.set_state(project, ObservedState::Starting, None);
            Ok(())
        })
    }

    async fn bring_up(&self, project: ProjectId, record: &Record, link: Option<Arc<AgentLink>>, work: &Arc<Work>) -> Result<(), Error> {
        let parts = &self.0.parts;
        let volumes = self.open_volumes(project, record).await?;
        let link = match link {
            Some(link) => link,
            None => {
                let link = self.open_link(project, record).await?;
                self.0.change(|table| {
                    table.entry(project, record.generation).agent = Some(link.clone());
                });
                link
            }
        };
        let spec = ContainerSpec {
            project,
            generation: record.generation,
            image: record.spec.image.clone(),
            hostname: record.spec.name.clone(),
            limits: record.spec.limits,
            env: Vec::new(), // the agent has the spec's
            home: volumes.home,
            agent_dir: self.agent_dir(project),
        };
        work.phase("starting the container");
        parts.runtime.ensure_running(&spec, work.cancel.clone()).await?;
        work.phase("waiting for the agent");
        self.wait_for_hello(project, &link, Instant::now() + parts.agent_wait, &work.cancel).await
    }

    async fn open_link(&self, project: ProjectId, record: &Record) -> Result<Arc<AgentLink>, Error> {
        let secret = record.secret.clone().unwrap_or_default();
        let home = HOME_PATH.to_owned();
        self.prepare_agent_dir(AgentConfig {
            project,
            generation: record.generation,
            secret: secret.clone(),
            home,
            env: record.spec.env.clone(),
        })
        .await?;
        self.listen(project, secret).await
    }

    /// Waits until the agent has said hello, its container has died, or the time is over.
    async fn wait_for_hello(
        &self,
        project: ProjectId,
        link: &AgentLink,
        deadline: Instant,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let mut hello = link.hello.subscribe();
        let mut wait = FIRST_LOOK;
        loop {
            let look = (Instant::now() + wait).min(deadline);
            tokio::select! {
                biased;
                said = hello.wait_for(|said| *said) => {
                    if said.is_ok() {
                        return Ok(());
                    }
                }
                () = cancel.cancelled() => return Err(cancelled()),
                () = link.lost.notified() => {}
                () = sleep_until(look) => wait = (wait * 2).min(LAST_LOOK),
            }
            if let Some(ended) = self.container_ended(project).await {
                return Err(self.start_failed(project, &ended).await);
            }
            if Instant::now() >= deadline {
                let why = format!("Its agent did not answer within {} s.", self.0.parts.agent_wait.as_secs());
                return Err(self.start_failed(project, &why).await);
            }
        }
    }

    /// How a container that should run has ended; none if it runs, or if the runtime doesn't answer.
    async fn container_ended(&self, project: ProjectId) -> Option<String> {
        let containers = self.0.parts.runtime.list().await.ok()?;
        match containers.iter().find(|container| container.project == project).map(|container| container.state) {
            Some(ContainerState::Running) => None,
            Some(ContainerState::Exited(code)) => Some(ended_with(code)),
            None => Some("Its container is gone.".into()),
        }
    }

    async fn start_failed(&self, project: ProjectId, why: &str) -> Error {
        let log = self.log_end(project).await;
        with_log(Error::new(ErrorCode::StartFailed, format!("The project did not start. {why}")), &log)
            .mend("See what its image runs at the start, and its memory and pids limits.")
    }

    pub(super) async fn log_end(&self, project: ProjectId) -> String {
        last_bytes(self.0.parts.runtime.log_tail(project).await, LOG_BYTES)
    }

    /// Leaves nothing of a start that failed or was cancelled.
    async fn give_up(&self, project: ProjectId, record: Record, error: &Error) {
        let wanted = if error.code == ErrorCode::Cancelled { Wanted::Stopped } else { Wanted::Running };
        let removed = self.remove_container(project).await;
        if let Err(error) = &removed {
            tracing::warn!(%project, %error, "what is left of a start can't be removed yet");
            self.drop_link(project).await;
        }
        match wanted {
            Wanted::Running => {
                self.save_failure(project, record, error).await;
                self.0.set_state(project, ObservedState::Failed, Some(error.clone()));
            }
            Wanted::Stopped => {
                let record = Record { wanted, secret: None, started_by: None, failure: None, ..record };
                self.save_or_log(project, &record).await;
                // what could not be removed is removed by the next reconciliation, which then says stopped
                let state = if removed.is_ok() { ObservedState::Stopped } else { ObservedState::Stopping };
                self.0.set_state(project, state, None);
            }
        }
    }

    /// Why it doesn't run although it should: said until the next command about it, also after a restart of the host program.
    pub(super) async fn save_failure(&self, project: ProjectId, record: Record, error: &Error) {
        let record = Record { secret: None, started_by: None, failure: Some(error.clone()), ..record };
        self.save_or_log(project, &record).await;
    }

    pub(super) async fn save_or_log(&self, project: ProjectId, record: &Record) {
        if let Err(error) = self.save(project, record).await {
            // what is observed is true all the same; after a restart it is found out again
            tracing::error!(%project, %error, "an observation can't be saved");
        }
    }
}

pub(super) fn ended_with(code: Option<i32>) -> String {
    match code {
        Some(137) => "Its container was killed (exit code 137), as for too much memory.".into(),
        Some(code) => format!("Its container ended with exit code {code}."),
        None => "Its container was made and never ran.".into(),
    }
}

/// Adds a log's end to an error: the last line for people, all of it for programs.
pub(super) fn with_log(mut error: Error, log: &str) -> Error {
    if let Some(line) = log.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        error.message = format!("{} The log ends with: {}", error.message, line.chars().take(200).collect::<String>());
    }
    if log.is_empty() { error } else { error.details(serde_json::json!({ "log": log })) }
}

fn last_bytes(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let from = (text.len() - most..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].to_owned()
}

fn cancelled() -> Error {
    Error::new(ErrorCode::Cancelled, "The start was cancelled.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_at_a_character() {
        assert_eq!(last_bytes("äöü".into(), 3), "ü");
        assert_eq!(last_bytes("abc".into(), 3), "abc");
        assert_eq!(last_bytes("abcd".into(), 0), "");
    }

    #[test]
    fn the_last_line_is_in_the_message_and_the_rest_in_the_details() {
        let error = with_log(Error::internal("Sentence."), "one\ntwo\n\n");
        assert_eq!(error.message, "Sentence. The log ends with: two");
        assert_eq!(error.details.unwrap()["log"], "one\ntwo\n\n");
        assert_eq!(with_log(Error::internal("Sentence."), ""), Error::internal("Sentence."));
    }
}

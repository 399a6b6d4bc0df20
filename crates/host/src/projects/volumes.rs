//! The verbs about volumes, images and records, and the way from a command to its verb.

use std::{sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode, Generation, ProjectId, VolumeId,
    command::{Command, Verb},
    project::{ObservedState, ProjectSpec},
};
use atoll_net::clock::Clock;
use futures_util::{StreamExt, stream};

use super::{
    Places, Projects,
    records::Record,
    state::{Ground, Wanted, fence},
    streams::owner,
    turn::{Own, Work},
};
use crate::{
    gate::{self, Home},
    storage::Volumes,
};

/// A usage that can't be had in so long is left for the next round.
const USAGE_WAIT: Duration = Duration::from_secs(2);

impl Projects {
    /// Does one verb, alone on its project.
    pub(super) async fn perform(&self, command: &Command, work: &Arc<Work>) -> Result<(), Error> {
        let Command { project, generation, operation, ref verb } = *command;
        let known = self.generation_in_force(project);
        let buried = if known.is_none() { self.0.parts.records.buried(project).await? } else { None };
        if fence(known, buried, generation, verb)? == Ground::Buried {
            return Ok(());
        }
        match verb {
            Verb::EnsureVolumes { spec, fresh } => self.ensure_volumes(project, generation, spec, *fresh).await,
            Verb::EnsureImage {} => self.ensure_image(project, work).await,
            Verb::EnsureRunning { restart } => self.ensure_running(project, operation, *restart, work).await,
            Verb::EnsureStopped {} => self.ensure_stopped(project).await,
            Verb::EnsureAbsent {} => self.ensure_absent(project, generation).await,
            Verb::Cancel {} => Ok(()), // has no work of its own
        }
    }

    async fn ensure_volumes(&self, project: ProjectId, generation: Generation, spec: &ProjectSpec, fresh: bool) -> Result<(), Error> {
        let parts = &self.0.parts;
        let old = parts.records.get(project).await?;
        let raised = old.as_ref().is_some_and(|old| old.generation < generation);
        let quota = spec.limits.disk_bytes;
        let mut record = match old {
            Some(old) => {
                let kept =
                    if raised { Record { wanted: Wanted::Stopped, secret: None, started_by: None, failure: None, ..old } } else { old };
                Record { generation, spec: spec.clone(), ..kept }
            }
            None if fresh => Record {
                generation,
                spec: spec.clone(),
                volume: new_volume(&*parts.clock),
                made: false,
                wanted: Wanted::Stopped,
                secret: None,
                started_by: None,
                failure: None,
            },
            None => {
                // volumes that are here although the record was lost: their receipt has the volume's id
                let found = parts.storage.open(project, generation, quota).await?;
                Record {
                    generation,
                    spec: spec.clone(),
                    volume: found.receipt.volume,
                    made: true,
                    wanted: Wanted::Stopped,
                    secret: None,
                    started_by: None,
                    failure: None,
                }
            }
        };
        self.save(project, &record).await?;
        // files of the older generation aren't written to any more when the volumes are opened for the newer one
        let closed = if raised { Some(parts.streams.close(&owner(project)).await) } else { None };
        if raised {
            // not before the newer generation is in force: until then a token of the older one opens a new connection
            parts.router.close_grant(&project.to_string());
            // a container of the older generation has no right to these volumes any more; if it can't be removed now, the
            // reconciliation does it, since the record says stopped
            self.0.set_state(project, ObservedState::Stopping, None);
            self.remove_container(project).await?;
            self.0.set_state(project, if record.made { ObservedState::Stopped } else { ObservedState::Absent }, None);
        }
        let volumes = if fresh {
            parts.storage.create(project, generation, record.volume, quota, parts.runtime.owner()).await?
        } else {
            parts.storage.open(project, generation, quota).await?
        };
        self.keep_places(project, Ok(&volumes));
        drop(closed);
        if !record.made || record.volume != volumes.receipt.volume {
            record.made = true;
            record.volume = volumes.receipt.volume;
            self.save(project, &record).await?;
        }
        if record.wanted == Wanted::Stopped {
            self.0.set_state(project, ObservedState::Stopped, None);
        }
        self.measure(project).await;
        Ok(())
    }

    async fn ensure_image(&self, project: ProjectId, work: &Arc<Work>) -> Result<(), Error> {
        let record = self.record(project).await?;
        let told = work.clone();
        let progress = Arc::new(move |progress| told.set_progress(progress));
        self.0.parts.runtime.ensure_image(&record.spec.image, progress, work.cancel.clone()).await
    }

    async fn ensure_absent(&self, project: ProjectId, generation: Generation) -> Result<(), Error> {
        let parts = &self.0.parts;
        parts.router.close_grant(&project.to_string());
        if let Some(record) = parts.records.get(project).await? {
            // from here on the volumes may be half gone, and nothing starts on them after a crash either
            let going = Record { wanted: Wanted::Stopped, made: false, secret: None, started_by: None, failure: None, ..record };
            self.save(project, &going).await?;
        }
        self.halt_container(project).await?;
        self.0.set_state(project, ObservedState::Absent, None);
        // kept closed until the project is forgotten: no file is open in a volume that goes, and none comes back
        let _closed = parts.streams.close(&owner(project)).await;
        parts.storage.delete(project).await?;
        parts.records.bury(project, generation).await?;
        self.0.change(|table| {
            if let Some(entry) = table.entries.get_mut(&project) {
                entry.told = None;
                entry.places = None;
                entry.outcomes.clear(); // what was done before holds no more
            }
            table.set_used(project, None);
        });
        // who came meanwhile: until here its tokens were good
        parts.router.close_grant(&project.to_string());
        Ok(())
    }

    /// The record, which a command that has passed the fence as `Known` has.
    pub(super) async fn record(&self, project: ProjectId) -> Result<Record, Error> {
        let found = self.0.parts.records.get(project).await?;
        found.ok_or_else(|| Error::internal(format!("Project {project} is known and has no record.")))
    }

    /// Saves a record and what of it is kept in memory.
    pub(super) async fn save(&self, project: ProjectId, record: &Record) -> Result<(), Error> {
        self.0.parts.records.put(project, record.clone()).await?;
        self.0.change(|table| table.tell(project, record));
        Ok(())
    }

    /// The project's volumes, checked against the record.
    pub(super) async fn open_volumes(&self, project: ProjectId, record: &Record) -> Result<Volumes, Error> {
        let opened = self.0.parts.storage.open(project, record.generation, record.spec.limits.disk_bytes).await;
        let opened = opened.and_then(|volumes| {
            if volumes.receipt.volume == record.volume {
                return Ok(volumes);
            }
            let (found, right) = (volumes.receipt.volume, record.volume);
            Err(Error::new(
                ErrorCode::WrongVolume,
                format!("The volume here is {found}, and {right} is the one that the project should have."),
            )
            .mend("Look at the host's storage directory: its volumes were exchanged."))
        });
        self.keep_places(project, opened.as_ref());
        opened
    }

    fn keep_places(&self, project: ProjectId, opened: Result<&Volumes, &Error>) {
        let places = opened
            .map(|volumes| Box::new(Places { home: volumes.home.as_path().into(), state: volumes.state.as_path().into() }))
            .map_err(|error| Box::new(error.clone()));
        if let Some(entry) = self.0.lock().entries.get_mut(&project) {
            entry.places = Some(places);
        }
    }

    /// Opens the volumes of projects that nothing was done for since the host program's start, so that their files can be served.
    /// Each is opened once; what is wrong with one is told to who asks for its files.
    pub(super) async fn open_all(&self) {
        const AT_ONCE: usize = 4;
        let closed: Vec<_> = {
            let table = self.0.lock();
            let closed = table.entries.iter().filter(|(_, entry)| entry.places.is_none() && entry.told.is_some_and(|told| told.made));
            closed.map(|(project, _)| *project).collect()
        };
        stream::iter(closed)
            .for_each_concurrent(AT_ONCE, |project| async move {
                // a project whose turn it isn't is opened by whoever has the turn, or the next time
                let Ok(turn) = self.own_turn(project, u64::MAX, Own::Open) else { return };
                let opened = match self.0.parts.records.get(project).await {
                    Ok(Some(record)) if record.made => self.open_volumes(project, &record).await.map(drop),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = &opened {
                    tracing::error!(%project, %error, "a project's volumes can't be opened");
                }
                turn.end(opened);
            })
            .await;
    }

    /// Reads what up to `at_most` projects use, going on where the last call ended, if the storage can tell cheaply.
    ///
    /// Returns where it ended; give it as `after` the next time.
    pub async fn measure_some(&self, after: Option<ProjectId>, at_most: usize) -> Option<ProjectId> {
        if !self.0.parts.storage.capabilities().cheap_usage {
            return None;
        }
        let next = self.with_volumes(after, at_most);
        for project in &next {
            self.measure(*project).await;
        }
        if next.len() < at_most { None } else { next.last().copied() }
    }

    /// Up to `at_most` projects with volumes, in the order of their ids, after this one.
    pub fn with_volumes(&self, after: Option<ProjectId>, at_most: usize) -> Vec<ProjectId> {
        use std::ops::Bound::{Excluded, Unbounded};
        let table = self.0.lock();
        let range = table.entries.range((after.map_or(Unbounded, Excluded), Unbounded));
        range.filter(|(_, entry)| entry.told.is_some_and(|told| told.made)).map(|(project, _)| *project).take(at_most).collect()
    }

    async fn measure(&self, project: ProjectId) {
        if !self.0.parts.storage.capabilities().cheap_usage {
            return;
        }
        match tokio::time::timeout(USAGE_WAIT, self.0.parts.storage.usage(project)).await {
            Ok(Ok(used)) => self.0.change(|table| {
                if table.entries.get(&project).is_some_and(|entry| entry.told.is_some()) {
                    table.set_used(project, used);
                }
            }),
            Ok(Err(error)) => tracing::debug!(%project, %error, "the volume's use can't be read"),
            Err(_) => tracing::debug!(%project, "the volume's use can't be read in time"),
        }
    }
}

impl gate::Places for Projects {
    fn generation(&self, project: ProjectId) -> Option<Generation> {
        self.generation_in_force(project)
    }

    /// Besides what the trait names, `unavailable` in the first moments after the host's start, and `wrong_volume`.
    fn home(&self, project: ProjectId) -> Result<Home, Error> {
        let table = self.0.lock();
        let entry = table.entries.get(&project).filter(|entry| entry.told.is_some_and(|told| told.made));
        match entry.ok_or_else(|| Error::not_found("project on this host"))?.places.as_ref() {
            Some(Ok(places)) => {
                let owner = self.0.parts.runtime.owner();
                Ok(Home { home: places.home.to_path_buf(), state: places.state.to_path_buf(), owner })
            }
            Some(Err(error)) => Err((**error).clone()),
            None => Err(Error::new(ErrorCode::Unavailable, "The host has just started and is still opening its volumes.")),
        }
    }
}

/// A volume's id is made where the volume is: UUIDv7 as all ids.
fn new_volume(clock: &dyn Clock) -> VolumeId {
    let mut random = [0u8; 10];
    clock.random(&mut random);
    let millis = u64::try_from(clock.now().millis()).unwrap_or(0);
    VolumeId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

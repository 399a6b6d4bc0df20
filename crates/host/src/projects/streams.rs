//! Where the logs and key-value stores of a project are: in its `state` volume, whether it runs or not.

use std::{path::Path, sync::Arc};

use atoll_contract::{Error, ProjectId, subject};
use atoll_net::streams::Roots;

use super::Projects;
use crate::gate::Places;

/// The folder below the volume.
const FOLDER: &str = "streams";

/// What the subjects of a project's streams begin with.
pub(super) fn owner(project: ProjectId) -> String {
    subject::project(project, "").trim_end_matches('.').to_owned()
}

impl Roots for Projects {
    /// # Errors
    /// As [`Places::home`].
    fn root(&self, owner: &str) -> Result<Arc<Path>, Error> {
        let project = owner.rsplit('.').next().and_then(|id| id.parse().ok());
        let project = project.ok_or_else(|| Error::not_found("project on this host"))?;
        Ok(self.home(project)?.state.join(FOLDER).into())
    }
}

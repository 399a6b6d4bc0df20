//! `project`: create, list, info, start, stop, restart, delete, place.

use std::{collections::BTreeMap, time::Duration};

use atoll_contract::{
    ErrorCode,
    api::{CreateProject, ProjectAccepted},
    placement::{Placement, PlacementRequest, Requirements},
    project::{Limits, ProjectSpec},
};

use super::{Context, operation, prompt};
use crate::{
    args::{CreateArgs, DeleteArgs, PlaceArgs, Project, ProjectWaitArgs},
    client::Master,
    errors::Result,
    output::{say, tables},
    values::Pair,
};

pub async fn run(context: &Context, command: Project) -> Result<()> {
    // a request that can't be right is refused before anything is asked
    let request = match &command {
        Project::Create(args) => Some(request(context, args)?),
        _ => None,
    };
    let master = context.master()?;
    match command {
        Project::Create(args) => match request {
            Some(request) => create(context, &master, request, args.no_wait).await,
            None => Ok(()),
        },
        Project::List => {
            let list = master.projects().await?;
            context.output.show(&list, |list| tables::projects(&list.projects, context.clock.now()))
        }
        Project::Info(args) => {
            let project = master.project(&args.project).await?;
            context.output.show(&project, tables::project)
        }
        Project::Start(args) => act(context, &master, args, "start", "runs").await,
        Project::Stop(args) => act(context, &master, args, "stop", "is stopped").await,
        Project::Restart(args) => act(context, &master, args, "restart", "runs").await,
        Project::Delete(args) => delete(context, &master, args).await,
        Project::Place(args) => {
            let placement = master.place(&PlacementRequest { limits: limits(&args), requirements: requirements(args) }).await?;
            context.output.show(&placement, tables::placement)
        }
    }
}

fn request(context: &Context, args: &CreateArgs) -> Result<CreateProject> {
    let place = &args.place;
    let spec = ProjectSpec { name: args.name.clone(), image: args.image.clone(), limits: limits(place), env: pairs(&args.env) };
    spec.check()?;
    Ok(CreateProject {
        spec,
        requirements: Requirements {
            host: place.host.clone(),
            region: place.region.clone(),
            labels: pairs(&place.label),
            snapshots: place.snapshots,
            quotas: place.quotas,
        },
        start: args.start,
        idempotency_key: Some(atoll_net::clock::random_text(&*context.clock)),
    })
}

async fn create(context: &Context, master: &Master, request: CreateProject, no_wait: bool) -> Result<()> {
    let accepted = send(master, &request).await?;
    if let Some(placement) = accepted.placement.as_ref().filter(|_| !context.output.json) {
        say(&why(placement));
    }
    let done = if request.start { "runs" } else { "is there, stopped" };
    finish(context, master, &accepted, no_wait, done).await
}

/// Sends the request again if its answer was lost: the key makes it the same project.
async fn send(master: &Master, request: &CreateProject) -> Result<ProjectAccepted> {
    let mut pause = Duration::from_millis(300);
    for _ in 0..2 {
        match master.create_project(request).await {
            Err(error) if matches!(error.code, ErrorCode::TimedOut | ErrorCode::Unavailable) => tokio::time::sleep(pause).await,
            other => return other,
        }
        pause *= 3;
    }
    master.create_project(request).await
}

/// Where it goes and what it was chosen from, in a line.
fn why(placement: &Placement) -> String {
    let chosen = placement.candidates.iter().find(|candidate| Some(candidate.host) == placement.chosen);
    let (name, share) = match chosen {
        Some(candidate) => (candidate.name.as_str(), candidate.score.as_ref().map(|score| score.free_after * 100.0)),
        None => ("?", None),
    };
    let could = placement.candidates.iter().filter(|candidate| candidate.refusals.is_empty()).count();
    let free = share.map(|share| format!(", where {share:.0} % stay free")).unwrap_or_default();
    format!("Goes to host {name}{free} ({could} of {} hosts could take it).", placement.candidates.len())
}

async fn act(context: &Context, master: &Master, args: ProjectWaitArgs, verb: &str, done: &str) -> Result<()> {
    let project = master.project_id(&args.project).await?;
    let accepted = master.act(project, verb).await?;
    finish(context, master, &accepted, args.no_wait, done).await
}

async fn delete(context: &Context, master: &Master, args: DeleteArgs) -> Result<()> {
    let project = master.project(&args.project).await?;
    if !args.yes {
        prompt::confirm(&format!("Delete the project {} ({}) with all of its data?", project.spec.name, project.id))?;
    }
    let accepted = master.delete_project(project.id).await?;
    finish(context, master, &accepted, args.no_wait, "is deleted").await
}

/// Waits for what was accepted, unless told not to.
async fn finish(context: &Context, master: &Master, accepted: &ProjectAccepted, no_wait: bool, done: &str) -> Result<()> {
    if no_wait {
        return operation::accepted(context, accepted);
    }
    let ended = operation::follow(context, master, accepted.operation).await?;
    context.output.show(&ended, |ended| format!("{} {done} ({})", ended.project_name, ended.project))
}

fn limits(args: &PlaceArgs) -> Limits {
    let default = Limits::default();
    Limits {
        memory_bytes: args.memory.map_or(default.memory_bytes, |size| size.0),
        cpu_millis: args.cpu.map_or(default.cpu_millis, |cpus| cpus.0),
        pids: args.pids.unwrap_or(default.pids),
        disk_bytes: args.disk.map_or(default.disk_bytes, |size| size.0),
    }
}

fn requirements(args: PlaceArgs) -> Requirements {
    Requirements { host: args.host, region: args.region, labels: pairs(&args.label), snapshots: args.snapshots, quotas: args.quotas }
}

fn pairs(pairs: &[Pair]) -> BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect()
}

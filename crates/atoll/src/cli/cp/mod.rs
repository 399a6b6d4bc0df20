//! `cp`: files and folders to and from a project, over its host's HTTP.

mod down;
mod pack;
mod plan;
mod resume;
mod unpack;
mod up;

use atoll_contract::{Error, ErrorCode, files::FileKind};

use self::plan::Plan;
pub use self::plan::RemotePath;
use super::Context;
use crate::{
    args::CpArgs,
    client::Files,
    errors::Result,
    output::{progress::Meter, say},
    values::human_size,
};

pub async fn run(context: &Context, args: CpArgs) -> Result<()> {
    let plan = plan::plan(&args.paths)?;
    let master = context.master()?;
    let (Plan::Upload { project, .. } | Plan::Download { project, .. }) = &plan;
    let project = master.project_id(project).await?;
    let mut job = Job {
        files: Files::open(master, project, context.clock.clone()).await?,
        meter: Meter::new(context.output.json || args.quiet),
        copied: Copied::default(),
    };
    match plan {
        Plan::Upload { sources, to, .. } => job.upload(&sources, &to).await?,
        Plan::Download { sources, to, .. } => job.download(&sources, &to).await?,
    }
    let Job { copied, meter, .. } = job;
    drop(meter);
    if context.output.json {
        return context.output.show(&serde_json::json!({ "files": copied.files, "bytes": copied.bytes }), |_| String::new());
    }
    if !args.quiet {
        let files = if copied.files == 1 { "file" } else { "files" };
        say(&format!("Copied {} {files}, {}.", copied.files, human_size(copied.bytes)));
    }
    Ok(())
}

/// A copy that is under way.
struct Job {
    files: Files,
    meter: Meter,
    copied: Copied,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Copied {
    files: u64,
    bytes: u64,
}

/// What is there under a name, on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    File,
    Directory,
}

impl There {
    fn of(kind: FileKind) -> Self {
        if kind == FileKind::Directory { Self::Directory } else { Self::File }
    }
}

/// A file never takes the place of a directory, nor a directory that of a file: one of the two names is a mistake.
fn fits(source_is_directory: bool, there: There, name: &str) -> Result<()> {
    match (source_is_directory, there) {
        (false, There::Directory) => {
            Err(Error::new(ErrorCode::Conflict, format!("{name} is a directory there; a file can't take its place."))
                .mend("Remove it first, or choose another name."))
        }
        (true, There::File) => Err(Error::new(ErrorCode::Conflict, format!("{name} is a file there; a directory can't take its place."))
            .mend("Remove it first, or choose another name.")),
        _ => Ok(()),
    }
}

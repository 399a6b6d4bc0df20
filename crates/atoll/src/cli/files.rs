//! `files`: list, mkdir, rm, mv.

use atoll_contract::files::FileList;

use super::{Context, cp::RemotePath};
use crate::{args, client::Files, errors::Result, output::tables};

pub async fn run(context: &Context, command: args::Files) -> Result<()> {
    let (args::Files::List(args::FilesListArgs { project, .. })
    | args::Files::Mkdir(args::FilesPathArgs { project, .. })
    | args::Files::Rm(args::FilesRmArgs { project, .. })
    | args::Files::Mv(args::FilesMvArgs { project, .. })) = &command;
    let master = context.master()?;
    let project = master.project_id(project).await?;
    let files = Files::open(master, project, context.clock.clone()).await?;
    match command {
        args::Files::List(args) => {
            let list = all(&files, &RemotePath::parse(&args.path)?.path).await?;
            context.output.show(&list, |list| tables::files(&list.entries, context.clock.now()))
        }
        args::Files::Mkdir(args) => files.mkdir(&RemotePath::parse(&args.path)?.path).await,
        args::Files::Rm(args) => {
            let paths: Vec<RemotePath> = args.paths.iter().map(|path| RemotePath::parse(path)).collect::<Result<_>>()?;
            for path in paths {
                files.remove(&path.path, args.recursive).await.map_err(|error| {
                    // the host speaks of its own parameter
                    let mends = !args.recursive && error.mend.contains("recursive");
                    if mends { error.mend("Give --recursive to remove it with all that is in it.") } else { error }
                })?;
            }
            Ok(())
        }
        args::Files::Mv(args) => {
            let (from, to) = (RemotePath::parse(&args.from)?, RemotePath::parse(&args.to)?);
            files.rename(&from.path, &to.path, args.replace).await
        }
    }
}

/// All pages of a directory.
async fn all(files: &Files, path: &str) -> Result<FileList> {
    let mut all = FileList { entries: Vec::new(), next: None };
    let mut after: Option<String> = None;
    loop {
        let page = files.list(path, after.as_deref()).await?;
        all.entries.extend(page.entries);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

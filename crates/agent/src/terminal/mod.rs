//! Terminals: they belong to the project and not to who looks at them, so they outlive every viewer and every connection.

mod scrollback;
mod session;
mod viewer;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use atoll_contract::{
    Error, ErrorCode, TerminalId,
    agent::{
        MAX_TERMINALS, Size, TerminalAttach, TerminalAttached, TerminalClose, TerminalDetach, TerminalOpen, TerminalResize, TerminalView,
    },
    project::check_name,
};

use self::session::Session;
use crate::{serve::Parts, spawn};

pub(crate) struct Terminals {
    parts: Parts,
    table: Mutex<HashMap<TerminalId, Arc<Session>>>,
    /// Held while one is opened, so that a name is opened once.
    opening: tokio::sync::Mutex<()>,
}

impl Terminals {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self { parts, table: Mutex::default(), opening: tokio::sync::Mutex::new(()) })
    }

    pub(crate) fn count(&self) -> usize {
        self.table().len()
    }

    /// Opens a terminal or finds the one of that name; one whose program has ended makes way for a new one.
    ///
    /// # Errors
    /// `invalid_argument`, `not_found`, `limit_exceeded`.
    pub(crate) async fn open(&self, request: TerminalOpen) -> Result<TerminalView, Error> {
        check_name(&request.name)?;
        check_size(request.size)?;
        let _opening = self.opening.lock().await;
        if self.parts.stop.is_cancelled() {
            return Err(Error::new(ErrorCode::Unavailable, "The project is being stopped."));
        }
        let found = self.table().values().find(|session| session.name == request.name).cloned();
        if let Some(session) = found {
            if !session.has_exited() {
                return Ok(session.view());
            }
            self.table().remove(&session.id);
        }
        self.make_room()?;
        let id = self.mint();
        let at = self.parts.clock.now();
        let (environment, reaper, size) = (self.parts.environment.clone(), self.parts.reaper.clone(), request.size);
        let (argv, child, pty) = self
            .parts
            .worker
            .run(move || {
                let launch = environment.terminal(&request.argv, &request.env, &request.cwd)?;
                let (child, pty) = spawn::on_terminal(&reaper, &launch, request.size)?;
                let argv = if request.argv.is_empty() { vec![launch.program.to_string_lossy().into_owned()] } else { request.argv };
                Ok((argv, child, pty))
            })
            .await?;
        let session = Session::start(self.parts.worker.clone(), session::Opened { id, name: request.name, argv, at, size, child, pty });
        let view = session.view();
        self.table().insert(id, session.clone());
        if self.parts.stop.is_cancelled() {
            self.parts.tasks.spawn(async move { session.end().await }); // it came after the last round
        }
        Ok(view)
    }

    /// The oldest first.
    pub(crate) fn list(&self) -> Vec<TerminalView> {
        let mut views: Vec<_> = self.table().values().map(|session| session.view()).collect();
        views.sort_by_key(|view| view.id);
        views
    }

    /// # Errors
    /// `not_found`, `invalid_argument`, `already_exists`, `limit_exceeded`.
    pub(crate) async fn attach(&self, request: TerminalAttach) -> Result<TerminalAttached, Error> {
        Parts::check_stream(&request.stream)?;
        let session = self.find(request.terminal)?;
        if let Some(size) = request.size {
            check_size(size)?;
        }
        let from = viewer::attach(&self.parts, &session, &request.stream, request.from).await?;
        if let Some(size) = request.size {
            session.resize(size)?;
        }
        Ok(TerminalAttached { terminal: session.view(), from })
    }

    /// # Errors
    /// `not_found`.
    pub(crate) fn detach(&self, request: &TerminalDetach) -> Result<(), Error> {
        self.find(request.terminal)?.detach(&request.stream)
    }

    /// # Errors
    /// `not_found`, `invalid_argument`.
    pub(crate) fn resize(&self, request: &TerminalResize) -> Result<TerminalView, Error> {
        check_size(request.size)?;
        let session = self.find(request.terminal)?;
        session.resize(request.size)?;
        Ok(session.view())
    }

    /// Ends a terminal's program and forgets it. Returns when it is gone, with how it ended.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) async fn close(&self, request: &TerminalClose) -> Result<TerminalView, Error> {
        let session = self.table().remove(&request.terminal).ok_or_else(|| Error::not_found("terminal"))?;
        // not cut short if whoever asked is cut off
        let task = self.parts.tasks.spawn(async move {
            session.end().await;
            session.view()
        });
        task.await.map_err(|error| Error::internal(format!("The agent failed: {error}.")))
    }

    /// Begins to end all programs; the tasks' tracker knows when they are gone.
    pub(crate) fn close_all(&self) {
        for (_, session) in self.table().drain() {
            self.parts.tasks.spawn(async move { session.end().await });
        }
    }

    fn find(&self, id: TerminalId) -> Result<Arc<Session>, Error> {
        self.table().get(&id).cloned().ok_or_else(|| Error::not_found("terminal"))
    }

    /// When the table is full, the terminal that ended its program and is oldest makes way.
    fn make_room(&self) -> Result<(), Error> {
        let mut table = self.table();
        if table.len() < MAX_TERMINALS {
            return Ok(());
        }
        let ended = table.values().filter(|session| session.has_exited()).map(|session| session.id).min();
        match ended {
            Some(id) => {
                table.remove(&id);
                Ok(())
            }
            None => Err(Error::new(ErrorCode::LimitExceeded, format!("{MAX_TERMINALS} terminals are open in this project already."))
                .mend("Close one.")),
        }
    }

    fn mint(&self) -> TerminalId {
        let mut random = [0; 10];
        self.parts.clock.random(&mut random);
        let millis = u64::try_from(self.parts.clock.now().millis()).unwrap_or(0);
        TerminalId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    fn table(&self) -> MutexGuard<'_, HashMap<TerminalId, Arc<Session>>> {
        // every change of the map is one call, so a panic elsewhere leaves it whole
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_size(size: Size) -> Result<(), Error> {
    if size.rows == 0 || size.cols == 0 {
        return Err(Error::invalid("A terminal has at least one row and one column."));
    }
    Ok(())
}

//! A stream's turn: opens it if need be, writes all that waits in one transaction, then reads, and answers.

use std::sync::Arc;

use atoll_contract::{Error, ErrorCode};

use super::{
    ask::{Answer, Ask, Done, StreamId},
    db::Db,
    engine::{Engine, Event, Job, Turn},
    fault::Fault,
    files::Files,
    write::{Write, check_config},
};
use crate::clock::random_text;

/// Does a turn. Gives the open file back, unless it was closed, and the last sequence.
pub(super) fn run(engine: &Engine, turn: Turn) -> (Option<Box<Db>>, Option<u64>) {
    let Turn { id, dir, jobs, db, close } = turn;
    let mut desk = Desk { engine, files: Files::new(&dir, id.kind, &id.name), id, db };
    if close && jobs.is_empty() {
        desk.close();
        return (None, None);
    }
    let (mut writes, mut others) = (Vec::new(), Vec::new());
    for Job { ask, done } in jobs {
        match ask {
            Ask::Write(write) => writes.push((write, done)),
            ask => others.push((ask, done)),
        }
    }
    if !writes.is_empty() {
        desk.write(writes);
    }
    for (ask, done) in others {
        let answer = desk.other(ask);
        done(answer);
    }
    // what can be done after the answers is done after them
    if let Some(db) = &mut desk.db
        && let Err(fault) = db.prune(engine.clock.now()).and_then(|()| db.read_ahead(|| engine.ahead.clone().try_acquire_owned().ok()))
    {
        desk.told(&fault);
    }
    if close {
        desk.close();
    }
    let last = desk.db.as_ref().map(|db| db.state.last);
    (desk.db, last)
}

struct Desk<'a> {
    engine: &'a Engine,
    id: StreamId,
    files: Files,
    db: Option<Box<Db>>,
}

impl Desk<'_> {
    fn open(&mut self, create: bool) -> Result<&mut Db, Error> {
        if self.db.is_none() {
            let now = self.engine.clock.now();
            let stream = random_text(&*self.engine.clock);
            let opened = Db::open(self.files.clone(), self.id.kind, &self.id.name, create.then_some((&*stream, now)));
            self.db = Some(Box::new(opened.map_err(|fault| self.told(&fault))?));
        }
        match &mut self.db {
            Some(db) => Ok(db),
            None => Err(Error::internal("A stream that was opened isn't open.")),
        }
    }

    /// All in one transaction; each has its own answer.
    fn write(&mut self, writes: Vec<(Write, Done)>) {
        let (mut fit, mut rest) = (Vec::with_capacity(writes.len()), Vec::new());
        for (write, done) in writes {
            match write.check() {
                Ok(()) => fit.push((write, done)),
                Err(error) => rest.push((done, Err(error))),
            }
        }
        let now = self.engine.clock.now();
        // a deletion in a store that isn't there doesn't make it
        let create = fit.iter().any(|(write, _)| !write.delete);
        let written = match self.open(create) {
            Ok(db) => db.write(&fit.iter().map(|(write, _)| write).collect::<Vec<_>>(), now).map_err(|fault| self.told(&fault)),
            Err(error) => Err(error),
        };
        match written {
            Ok(outcomes) => {
                let mut events = Vec::with_capacity(outcomes.len());
                for ((write, done), outcome) in fit.into_iter().zip(outcomes) {
                    if let Ok(outcome) = &outcome
                        && !outcome.duplicate
                    {
                        events.push(Event::Written(write, outcome.clone()));
                    }
                    rest.push((done, outcome.map(Answer::Written)));
                }
                if !events.is_empty() {
                    (self.engine.sink)(&self.id, events);
                }
            }
            Err(error) => rest.extend(fit.into_iter().map(|(_, done)| (done, Err(error.clone())))),
        }
        rest.into_iter().for_each(|(done, answer)| done(answer));
    }

    fn other(&mut self, ask: Ask) -> Result<Answer, Error> {
        let now = self.engine.clock.now();
        match ask {
            Ask::Remove => return self.remove(),
            Ask::Reset => return self.reset(),
            Ask::Configure(config) => {
                check_config(&config, self.id.kind)?;
                let db = self.open(true)?;
                return match db.configure(&config, now).and_then(|()| db.info()) {
                    Ok(info) => Ok(Answer::Info(info)),
                    Err(fault) => Err(self.told(&fault)),
                };
            }
            _ => {}
        }
        let db = self.open(false)?;
        // what is too old isn't shown
        let pruned = db.prune(now);
        let answer = pruned.and_then(|()| match ask {
            Ask::Read(query) => Ok(db.read(&query)?.map(Answer::Page)),
            Ask::Get { key, revision } => Ok(Ok(Answer::Page(db.get(&key, revision)?))),
            Ask::Keys { pattern, after, max_count } => Ok(Ok(Answer::Keys(db.keys(pattern.as_deref(), &after, max_count)?))),
            _ => Ok(Ok(Answer::Info(db.info()?))),
        });
        match answer {
            Ok(answer) => answer,
            Err(fault) => Err(self.told(&fault)),
        }
    }

    fn remove(&mut self) -> Result<Answer, Error> {
        let stream: Arc<str> = self.open(false)?.stream.clone();
        self.db = None; // what is in its log needn't go into the file any more
        self.files.remove().map_err(|fault| self.told(&fault))?;
        (self.engine.sink)(&self.id, vec![Event::Removed(stream)]);
        Ok(Answer::Done)
    }

    fn reset(&mut self) -> Result<Answer, Error> {
        match self.open(false).err() {
            // only what is known to be damaged is given up
            Some(error) if error.code == ErrorCode::StorageFailed && self.files.quarantined().is_ok_and(|aside| aside.is_some()) => {
                self.files.reset().map_err(|fault| self.told(&fault))?;
                tracing::warn!(owner = %self.id.owner, stream = %self.id.what(), "a stream that was put aside begins anew");
                Ok(Answer::Done)
            }
            Some(error) => Err(error),
            None => Err(Error::new(ErrorCode::Conflict, format!("The {} isn't damaged.", self.id.what())).mend("To empty it, delete it.")),
        }
    }

    /// What went wrong, as it is told; a damaged file is put aside, and after any other fault it is opened anew, so that what is in memory is what is
    /// on the disk.
    fn told(&mut self, fault: &Fault) -> Error {
        let what = self.id.what();
        match fault {
            Fault::Missing | Fault::Limit(_) | Fault::Quarantined(_) | Fault::Newer => return fault.to_error(&what, self.files.dir()),
            Fault::Damaged(why) => {
                self.db = None;
                tracing::error!(owner = %self.id.owner, stream = %what, why, "a stream's file is damaged and put aside");
                match self.files.quarantine(self.engine.clock.now()) {
                    Ok(aside) => return Fault::Quarantined(aside).to_error(&what, self.files.dir()),
                    Err(error) => tracing::error!(stream = %what, %error, "a damaged stream can't be put aside"),
                }
            }
            Fault::Full | Fault::Io(_) => {
                self.db = None;
                tracing::error!(owner = %self.id.owner, stream = %what, %fault, "a stream can't be used");
            }
        }
        fault.to_error(&what, self.files.dir())
    }

    fn close(&mut self) {
        if let Some(db) = self.db.take()
            && let Err(fault) = db.close()
        {
            // everything acknowledged is in the log beside it, which the next opening reads
            tracing::warn!(owner = %self.id.owner, stream = %self.id.what(), %fault, "a stream's file isn't closed in order");
        }
    }
}

//! Calls about a project, wherever it is: from an account's request on the master's bus to the host that has the project, and back.
//!
//! Nothing is remembered between calls. Each looks up role and place in the store, asks the host, and if that says `stale_assignment` looks up once
//! more. A call is asked a second time only where it is certain that the first wasn't done: nobody was there to hear it, or the host refused it.

mod admission;
mod lanes;
mod places;
mod serve;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use atoll_contract::{
    AccountId, Error, ErrorCode, ProjectId,
    call::{self, HostCall},
    subject,
};
use atoll_net::bus::{Conn, Headers, Message};
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{admission::Admission, lanes::Lanes};
pub(crate) use self::{
    places::{Place, Places, StorePlaces},
    serve::serve,
};
use crate::hosts::Presence;

/// What calls may take of the master.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Calls that are asked at once.
    pub running: usize,
    /// Of one account.
    pub running_per_account: usize,
    /// Calls that are asked or wait for their turn; one more is refused.
    pub admitted: usize,
    /// Of one account.
    pub admitted_per_account: usize,
    /// Bytes of the requests that are asked or wait.
    pub bytes: usize,
    /// Of one account.
    pub bytes_per_account: usize,
    /// Bytes on their way to one host: half of what the bus lets wait for one connection.
    pub lane_bytes: u32,
    /// How long a call waits for a host that reports and isn't connected, having just lost its connection. For one that is expected, since this
    /// master has just started, it waits as long as it may, and for a silent one not at all.
    pub host_wait: Duration,
    /// How long a host may take before it is asked whether it is still there, and how long for the answer to that. A host that is gone is known
    /// after the sum.
    pub probe_after: Duration,
    pub probe_wait: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            running: 1024,
            running_per_account: 64,
            admitted: 4096,
            admitted_per_account: 512,
            bytes: 128 << 20,
            bytes_per_account: 16 << 20,
            lane_bytes: 4 << 20,
            host_wait: Duration::from_secs(3),
            probe_after: Duration::from_secs(1),
            probe_wait: Duration::from_secs(3),
        }
    }
}

/// Between two attempts to reach a host that isn't connected: doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LAST_PAUSE: Duration = Duration::from_millis(400);

/// What a call's own headers and the protocol add, at most about that.
const OVERHEAD: usize = 512;
/// A call from this size on shall not hold a part of its host's lane for as long as the project takes to answer.
const LARGE: usize = 16 << 10;

/// Refusals that are sent at once; each takes some milliseconds at the most.
const REFUSALS: usize = 4096;

/// In whose name a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    Account(AccountId),
    /// The master itself: may do what an owner may.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the master's own parts; none calls a project yet"))]
    System,
}

/// What is asked of a project.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub project: ProjectId,
    /// The subject without `project.<id>.`, such as `agent.info`.
    pub rest: String,
    /// Those of the [calls](call) themselves are taken out.
    pub headers: Headers,
    pub payload: Bytes,
    pub timeout: Duration,
}

impl Request {
    /// As [`Message::size`].
    fn size(&self) -> usize {
        atoll_net::bus::size(&self.headers, &self.payload)
    }
}

/// A handle; clones share the bounds.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Inner>);

struct Inner {
    places: Arc<dyn Places>,
    conn: Arc<dyn Conn>,
    bounds: Bounds,
    admission: Arc<Admission>,
    lanes: Lanes,
    /// Refusals that are being sent.
    refusals: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What came of asking one host.
enum Asked {
    /// The project's answer, as it is.
    Answered(Message),
    /// The host's own error, or ours: the call wasn't done, or nothing is known of it.
    Refused(Error),
    /// The host isn't connected: nobody has heard the call.
    Nobody,
    /// The host has heard the call, perhaps, and doesn't answer any more.
    Silent,
}

impl Calls {
    /// Ends with `stop` at the latest.
    pub(crate) fn new(places: Arc<dyn Places>, conn: Arc<dyn Conn>, bounds: Bounds, stop: &CancellationToken) -> Self {
        let (admission, lanes) = (Admission::new(&bounds), Lanes::new(bounds.lane_bytes));
        let (refusals, stop, tasks) = (Arc::new(Semaphore::new(REFUSALS)), stop.child_token(), TaskTracker::new());
        Self(Arc::new(Inner { places, conn, bounds, admission, lanes, refusals, stop, tasks }))
    }

    /// Asks a project, wherever it is, and gives its answer as it is.
    ///
    /// # Errors
    /// `not_found`, `forbidden` and `conflict` as the account's other requests about the project; `unsupported` for a byte stream;
    /// `host_unavailable` if the host isn't there; `no_responders` if nobody serves the subject on the host, because the project doesn't run;
    /// `stale_assignment` if the project has moved twice meanwhile; `timed_out`; `limit_exceeded`; `too_large`; `unavailable` if the master ends.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the master's own parts; none calls a project yet"))]
    pub(crate) async fn call(&self, caller: Caller, request: Request) -> Result<Message, Error> {
        let admitted = self.0.admission.admit(caller, request.size())?;
        self.admitted(caller, request, admitted).await
    }

    /// Answers all calls that wait with `unavailable` and takes no more.
    pub(crate) async fn stop(&self, patience: Duration) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(patience, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("some calls didn't end in time");
        }
    }

    async fn admitted(&self, caller: Caller, request: Request, admitted: admission::Admitted) -> Result<Message, Error> {
        let deadline = Instant::now() + request.timeout;
        let routed = async {
            let _turn = admitted.turn().await;
            self.route(caller, &request, deadline).await
        };
        tokio::select! {
            biased;
            () = self.0.stop.cancelled() => Err(Error::new(ErrorCode::Unavailable, "The master is shutting down.")),
            answer = timeout_at(deadline, routed) => answer.unwrap_or_else(|_| Err(late(&request))),
        }
    }

    async fn route(&self, caller: Caller, request: &Request, deadline: Instant) -> Result<Message, Error> {
        let place = self.find(caller, request).await?;
        match self.reach(caller, &place, request, deadline).await {
            Err(error) if error.code == ErrorCode::StaleAssignment => {
                let now = self.find(caller, request).await?;
                if (now.host, now.generation) == (place.host, place.generation) {
                    return Err(error);
                }
                tracing::debug!(project = %request.project, host = %now.host, generation = %now.generation, "a call follows its project");
                self.reach(caller, &now, request, deadline).await
            }
            other => other,
        }
    }

    /// The place, if the caller may ask this there: by the same table as on the host.
    async fn find(&self, caller: Caller, request: &Request) -> Result<Place, Error> {
        let place = self.0.places.find(caller, request.project).await?;
        call::host_subject(request.project, place.role, &request.rest)?;
        Ok(place)
    }

    /// Asks a host, and waits for it if it isn't connected and may be soon.
    async fn reach(&self, caller: Caller, place: &Place, request: &Request, deadline: Instant) -> Result<Message, Error> {
        let patience = Instant::now() + self.0.bounds.host_wait;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.ask(caller, place, request, deadline).await {
                Asked::Answered(answer) => return Ok(answer),
                Asked::Refused(error) => return Err(error),
                Asked::Silent => return Err(host_unavailable(place, "doesn't answer")),
                Asked::Nobody => {}
            }
            let until = match self.0.places.presence(place.host) {
                Presence::Expected => deadline,
                Presence::Reporting => patience.min(deadline),
                Presence::Silent => Instant::now(),
            };
            if Instant::now() >= until {
                return Err(host_unavailable(place, "isn't connected to the master"));
            }
            sleep_until(until.min(Instant::now() + pause)).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn ask(&self, caller: Caller, place: &Place, request: &Request, deadline: Instant) -> Asked {
        let bytes = request.size() + OVERHEAD;
        let lane = self.0.lanes.enter(place.host, bytes).await;
        let remaining = deadline.saturating_duration_since(Instant::now());
        let account = match caller {
            Caller::Account(account) => Some(account),
            Caller::System => None,
        };
        let (project, generation, role, rest) = (request.project, place.generation, place.role, request.rest.clone());
        let ask = HostCall { project, generation, account, role, rest, timeout: hosts_share(remaining) };
        let mut headers = Headers { fields: ask.headers(), ..Headers::default() };
        headers.fields.extend(request.headers.fields.iter().filter(|(name, _)| !call::is_own_header(name)).cloned());
        let message = Message { headers, ..Message::new(subject::host_call(place.host), request.payload.clone()) };
        let asked = tokio::select! {
            biased;
            asked = self.0.conn.request(message, remaining) => asked,
            () = self.until_gone(place, bytes, lane) => return Asked::Silent,
        };
        match asked {
            Ok(answer) => read(answer),
            Err(error) => match error.code {
                ErrorCode::NoResponders => Asked::Nobody,
                ErrorCode::TimedOut => Asked::Silent,
                _ => Asked::Refused(error),
            },
        }
    }

    /// Returns when the host doesn't answer the question whether it is there. An answer to that also says that it has taken in all that was sent
    /// before it, so the lane is free again; after much that is asked at once.
    async fn until_gone(&self, place: &Place, bytes: usize, lane: Option<OwnedSemaphorePermit>) {
        let mut lane = Some(lane);
        let mut pause = if bytes >= LARGE { Duration::ZERO } else { self.0.bounds.probe_after };
        loop {
            sleep(pause).await;
            let question = Message::new(subject::host_call(place.host), Bytes::new());
            match self.0.conn.request(question, self.0.bounds.probe_wait).await {
                Err(error) if matches!(error.code, ErrorCode::NoResponders | ErrorCode::TimedOut) => return,
                _ => drop(lane.take()),
            }
            pause = self.0.bounds.probe_after;
        }
    }
}

/// The part of the time that is left in which the host answers: a tenth, at most half a second, is for the way back. So a `timed_out` is the
/// host's word, and a host that says nothing until the deadline isn't there.
fn hosts_share(remaining: Duration) -> Duration {
    let share = remaining.saturating_sub((remaining / 10).min(Duration::from_millis(500)));
    share.max(Duration::from_millis(1))
}

/// What a host's answer is: see [`call::ERROR`] and [`call::STATUS`].
fn read(answer: Message) -> Asked {
    if answer.headers.get(call::ERROR).is_some() {
        return Asked::Refused(serde_json::from_slice(&answer.payload).unwrap_or_else(|error| {
            tracing::warn!(%error, "a host's error can't be understood; is the host of another version?");
            Error::internal("The host answered something that this master doesn't understand.")
                .mend("Check that host and master are of the same version.")
        }));
    }
    let (code, description) = match answer.headers.get(call::STATUS) {
        Some(line) => line.split_once(' ').unwrap_or((line, "")),
        None => ("", ""),
    };
    let status = code.parse().ok().filter(|code| (100..=999).contains(code));
    let description = if status.is_some() { description.to_owned() } else { String::new() };
    let fields = answer.headers.fields.iter().filter(|(name, _)| !call::is_own_header(name)).cloned().collect();
    Asked::Answered(Message { headers: Headers { status, description, fields }, reply: None, ..answer })
}

fn late(request: &Request) -> Error {
    let millis = request.timeout.as_millis();
    Error::new(ErrorCode::TimedOut, format!("No answer came to {:?} within {millis} ms.", request.rest))
        .mend(format!("Ask with a longer {}, and see whether the project is busy.", call::TIMEOUT))
}

fn host_unavailable(place: &Place, what: &str) -> Error {
    Error::new(ErrorCode::HostUnavailable, format!("The host {:?} of this project {what}.", place.host_name))
        .mend("Wait until it is back; atoll host list shows it.")
}

//! Who is calling: accounts, passwords, sessions, API keys, and the one-time setup.

mod attempts;
mod password;
mod setup;
mod token;

use std::{path::Path, sync::Arc, time::Duration};

use atoll_contract::{
    AccountId, ApiKeyId, Error, ErrorCode, Timestamp,
    api::{ApiKeyReply, ApiKeyRequest, ApiKeyView, LoginReply},
    project::check_name,
};
use atoll_net::clock::SharedClock;

pub(crate) use token::{Token, TokenHash, TokenKind, hex};

use crate::{
    edge::internal,
    mint,
    store::{AccountRow, KeyRow, NewAccount, NewKey, Proven, Store},
};
use attempts::Attempts;
use password::Passwords;
use setup::Setup;

const SESSION_LIFETIME: Duration = Duration::from_hours(30 * 24);
const MAX_SESSIONS: i64 = 100;
const MAX_KEYS: i64 = 100;
const MAX_KEY_DAYS: u32 = 3650;
/// A key's time of use is written at most so often: it is for people, who ask "is this one still used".
const TOUCH_EVERY: Duration = Duration::from_mins(1);

/// Who is calling, proven by a bearer credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub account: AccountId,
    pub name: String,
    pub admin: bool,
    pub created_at: Timestamp,
    pub means: Means,
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Means {
    Session(TokenHash),
    Key(ApiKeyId),
}

pub(crate) struct Auth {
    store: Store,
    clock: SharedClock,
    passwords: Passwords,
    attempts: Attempts,
    setup: Setup,
}

impl Auth {
    /// Makes the setup token if there is no account yet, and puts it into `<data_dir>/setup-token`.
    pub(crate) async fn load(store: Store, clock: SharedClock, data_dir: &Path) -> Result<Arc<Self>, Error> {
        let needed = !store.has_account().await.map_err(internal)?;
        let setup = Setup::load(data_dir, needed, &*clock)?;
        Ok(Arc::new(Self { passwords: Passwords::new(clock.clone()), attempts: Attempts::default(), store, clock, setup }))
    }

    /// The token with which the first account is made; none when there is one.
    pub(crate) fn setup_token(&self) -> Option<String> {
        self.setup.token()
    }

    /// Makes the first account, an admin, and logs it in.
    ///
    /// # Errors
    /// `conflict` if there is an account already, `unauthenticated` for a wrong token, `invalid_argument` for the name or password.
    pub(crate) async fn set_up(&self, token: &str, name: String, password: String) -> Result<LoginReply, Error> {
        let done = || Error::new(ErrorCode::Conflict, "This master is set up already.").mend("Log in, or ask an admin for an account.");
        if !self.setup.needed() {
            return Err(done());
        }
        if !self.setup.accepts(token) {
            return Err(Error::new(ErrorCode::Unauthenticated, "That isn't the setup token.")
                .mend("It is in the file setup-token in the master's data directory, and was printed at its start."));
        }
        let new = self.new_account(name, password, true).await?;
        let account = AccountRow { id: new.id, name: new.name.clone(), admin: true, created_at: new.now };
        if !self.store.create_first_account(new).await.map_err(internal)? {
            self.setup.finish();
            return Err(done());
        }
        self.setup.finish();
        self.open_session(account).await
    }

    /// # Errors
    /// `unauthenticated`, the same and after the same work whether the name or the password is wrong; `limit_exceeded` after too many
    /// failures for one name, or while too many log in at once.
    pub(crate) async fn log_in(&self, name: String, password: String) -> Result<LoginReply, Error> {
        self.attempts.begin(&name, self.clock.now())?;
        let found = self.store.credential(name.clone()).await.map_err(internal)?;
        let hash = found.as_ref().map(|found| found.password.clone());
        let good = self.passwords.verify(password, hash).await?;
        match found {
            Some(found) if good => {
                self.attempts.forget(&name);
                self.open_session(found.account).await
            }
            _ => Err(Error::new(ErrorCode::Unauthenticated, "The name or the password is wrong.")),
        }
    }

    /// # Errors
    /// `already_exists`, `invalid_argument`.
    pub(crate) async fn create_account(&self, name: String, password: String, admin: bool) -> Result<AccountRow, Error> {
        let new = self.new_account(name, password, admin).await?;
        let account = AccountRow { id: new.id, name: new.name.clone(), admin, created_at: new.now };
        if self.store.create_account(new).await.map_err(internal)? {
            Ok(account)
        } else {
            Err(Error::new(ErrorCode::AlreadyExists, format!("There is an account {:?} already.", account.name)))
        }
    }

    /// Ends the session; a key isn't ended by logging out.
    pub(crate) async fn log_out(&self, identity: &Identity) -> Result<(), Error> {
        match &identity.means {
            Means::Session(token) => self.store.end_session(token.clone()).await.map_err(internal),
            Means::Key(key) => Err(Error::invalid("An API key has no session to end.").mend(format!("Delete the key {key} to end it."))),
        }
    }

    /// Whom a bearer credential stands for.
    ///
    /// # Errors
    /// `unauthenticated` for one that isn't in force, whatever the reason.
    pub(crate) async fn identify(&self, bearer: &str) -> Result<Identity, Error> {
        let now = self.clock.now();
        let (kind, hash) = token::parse(bearer).ok_or_else(refused)?;
        let found = match kind {
            TokenKind::Session => self.store.session(hash.clone(), now).await,
            TokenKind::Key => self.store.key(hash.clone(), now).await,
            TokenKind::Join | TokenKind::Setup => return Err(refused()),
        };
        let proven = found.map_err(internal)?.ok_or_else(refused)?;
        if let Some(key) = proven.key
            && proven.used_at.is_none_or(|used| now.since(used) >= TOUCH_EVERY)
        {
            let store = self.store.clone();
            tokio::spawn(async move {
                if let Err(error) = store.touch_key(key, now).await {
                    tracing::warn!(%error, "a key's time of use wasn't saved");
                }
            });
        }
        Ok(identity(proven, hash))
    }

    /// As [`Auth::identify`] for a caller that isn't a task: the bus's authenticator. Reads one row on the calling thread.
    pub(crate) fn identify_now(&self, bearer: &str) -> Result<Identity, Error> {
        let now = self.clock.now();
        let (kind, hash) = token::parse(bearer).ok_or_else(refused)?;
        let found = match kind {
            TokenKind::Session => self.store.session_now(&hash, now),
            TokenKind::Key => self.store.key_now(&hash, now),
            TokenKind::Join | TokenKind::Setup => return Err(refused()),
        };
        Ok(identity(found.map_err(internal)?.ok_or_else(refused)?, hash))
    }

    /// # Errors
    /// `already_exists`, `limit_exceeded`, `invalid_argument`.
    pub(crate) async fn create_key(&self, identity: &Identity, request: ApiKeyRequest) -> Result<ApiKeyReply, Error> {
        check_name(&request.name)?;
        if request.days.is_some_and(|days| !(1..=MAX_KEY_DAYS).contains(&days)) {
            return Err(Error::invalid(format!("A key is good for 1 to {MAX_KEY_DAYS} days, or without end.")));
        }
        let now = self.clock.now();
        let token = Token::new(TokenKind::Key, &*self.clock);
        let expires_at = request.days.map(|days| now.saturating_add(Duration::from_secs(u64::from(days) * 24 * 3600)));
        let new = NewKey {
            id: mint::id(&*self.clock),
            account: identity.account,
            name: request.name.clone(),
            token: token.hash(),
            now,
            expires_at,
            most: MAX_KEYS,
        };
        let key = ApiKeyView { id: new.id, name: request.name, created_at: now, expires_at, used_at: None };
        match self.store.create_key(new).await.map_err(internal)? {
            Ok(()) => Ok(ApiKeyReply { key, token: token.reveal() }),
            Err(true) => Err(Error::new(ErrorCode::LimitExceeded, format!("An account has at most {MAX_KEYS} API keys."))
                .mend("Delete one that isn't used any more.")),
            Err(false) => Err(Error::new(ErrorCode::AlreadyExists, format!("You have a key {:?} already.", key.name))),
        }
    }

    pub(crate) async fn keys(&self, identity: &Identity) -> Result<Vec<ApiKeyView>, Error> {
        let rows = self.store.keys(identity.account).await.map_err(internal)?;
        let view = |KeyRow { id, name, created_at, expires_at, used_at }| ApiKeyView { id, name, created_at, expires_at, used_at };
        Ok(rows.into_iter().map(view).collect())
    }

    pub(crate) async fn delete_key(&self, identity: &Identity, key: ApiKeyId) -> Result<(), Error> {
        if self.store.delete_key(identity.account, key).await.map_err(internal)? { Ok(()) } else { Err(Error::not_found("API key")) }
    }

    async fn new_account(&self, name: String, password: String, admin: bool) -> Result<NewAccount, Error> {
        check_name(&name)?;
        password::check(&password)?;
        let password = self.passwords.hash(password).await?;
        Ok(NewAccount { id: mint::id(&*self.clock), name, admin, password, now: self.clock.now() })
    }

    async fn open_session(&self, account: AccountRow) -> Result<LoginReply, Error> {
        let now = self.clock.now();
        let token = Token::new(TokenKind::Session, &*self.clock);
        let expires_at = now.saturating_add(SESSION_LIFETIME);
        self.store.open_session(token.hash(), account.id, now, expires_at, MAX_SESSIONS).await.map_err(internal)?;
        Ok(LoginReply { account: account.id, name: account.name, token: token.reveal(), expires_at })
    }
}

fn identity(proven: Proven, hash: TokenHash) -> Identity {
    let Proven { account, key, expires_at, .. } = proven;
    let means = key.map_or(Means::Session(hash), Means::Key);
    Identity { account: account.id, name: account.name, admin: account.admin, created_at: account.created_at, means, expires_at }
}

fn refused() -> Error {
    Error::new(ErrorCode::Unauthenticated, "The credential isn't valid, or not any more.").mend("Log in again.")
}

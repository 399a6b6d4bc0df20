//! A host: gate > projects > { runtime, storage } > exec. Runs projects, serves their users, reports to the master.

pub mod runtime;
pub mod storage;

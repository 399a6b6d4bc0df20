//! `doctor`: what this machine can do for projects, without any server.

use atoll_contract::host::Severity;

use super::Context;
use crate::{
    args::DoctorArgs,
    config::{self, Machine},
    errors::Result,
    output::tables,
    roles,
};

/// Exits with 1 if a finding is an error.
pub async fn run(context: &Context, args: DoctorArgs) -> Result<u8> {
    let config = config::load(&args.config, &[], &Machine::examine())?;
    let mut findings = vec![roles::binary::finding()];
    findings.extend(roles::host::examine(&config.host).await);
    context.output.show(&findings, |findings| tables::findings(findings))?;
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if errors > 0 {
        context.output.note(&format!("{errors} of these must be mended before projects can run here."));
    }
    Ok(u8::from(errors > 0))
}

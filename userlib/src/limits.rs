//! What sessions weigh, and how much sessions, users and volumes may do in a second.

use wire::control::{LimitChange, LimitInfo, Limited, Reply, Request};

use crate::error::Error;
use crate::memory::unexpected;
use crate::session::Session;

impl Session {
    /// Changes what limits a volume, a user or a session, and what the sessions of a user or one session weigh against
    /// others. For administrators. It holds when this returns, also for what is open. Returns what holds then.
    ///
    /// # Errors
    /// [`Error::Refused`]: E_AUTH, E_NO_RESOURCE for an unknown volume or session, E_PARAM.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::{LimitChange, Limited, Rate};
    /// session.create_volume("v", 1 << 20)?;
    /// let change = LimitChange { requests: Some(Rate { rate: 2000, burst: 0 }), ..LimitChange::default() };
    /// session.set_limits(Limited::Volume("v".to_owned()), change)?;
    /// assert_eq!(session.volume_info("v")?.limits.requests, change.requests);
    /// # Ok(()) }
    /// ```
    pub fn set_limits(&self, of: Limited, change: LimitChange) -> Result<LimitInfo, Error> {
        match self.ask(&Request::SetLimits { of, change })? {
            Reply::Limits { mut limits, .. } if limits.len() == 1 => Ok(limits.remove(0)),
            other => Err(unexpected(&other)),
        }
    }

    /// All that is limited or weighs something else than usual: volumes, then users, then sessions. Who does not administer
    /// is told of volumes that it may see, and of its own.
    ///
    /// # Errors
    /// [`Error::Transport`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// use portcullis::{LimitChange, Limited};
    /// session.set_limits(Limited::User(1000), LimitChange { weight: Some(200), ..LimitChange::default() })?;
    /// assert_eq!(session.list_limits()?[0].weight, Some(200));
    /// # Ok(()) }
    /// ```
    pub fn list_limits(&self) -> Result<Vec<LimitInfo>, Error> {
        let mut all: Vec<LimitInfo> = Vec::new();
        loop {
            let after = all.last().map(|info| info.of.clone());
            let (page, more) = match self.ask(&Request::ListLimits { after: after.clone() })? {
                Reply::Limits { limits, more } => (limits, more),
                other => return Err(unexpected(&other)),
            };
            // Each page must lead on, or a broken adapter would keep us here for ever.
            let last = page.last().map(|info| info.of.clone());
            if more && last <= after {
                let text = "a page of limits does not go on after the last one";
                return Err(Error::Protocol(text.to_owned()));
            }
            all.extend(page);
            if !more {
                return Ok(all);
            }
        }
    }
}

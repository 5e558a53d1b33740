//! How a session is connected.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Link;
use super::lives::Lives;
use crate::error::Error;
use crate::session::Session;
use crate::transport::Transport;
use crate::unix::UnixTransport;

/// How a session is connected.
///
/// ```
/// use portcullis::ConnectOptions;
/// use std::time::Duration;
/// let options = ConnectOptions::new().patience(Duration::from_secs(30));
/// let error = options.connect("/nowhere/portcullis.sock").unwrap_err();
/// assert!(error.to_string().contains("portcullis serve"), "the first connection is not waited for");
/// ```
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    patience: Duration,
}

impl ConnectOptions {
    /// As [`Session::connect`] connects: when the adapter ends, so does the session.
    ///
    /// ```
    /// let options = portcullis::ConnectOptions::new();
    /// assert!(options.connect("/nowhere/portcullis.sock").is_err());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// When the adapter ends, another one is waited for so long, and the session goes on with it; docs/restart.md says what
    /// becomes of requests without an answer.
    ///
    /// ```
    /// use portcullis::ConnectOptions;
    /// let options = ConnectOptions::new().patience(std::time::Duration::from_secs(30));
    /// assert!(format!("{options:?}").contains("30s"));
    /// ```
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Connects to the adapter that listens on `path`.
    ///
    /// # Errors
    /// As [`Session::connect`].
    ///
    /// ```
    /// let error = portcullis::ConnectOptions::new().connect("/nowhere/portcullis.sock").unwrap_err();
    /// assert!(matches!(error, portcullis::Error::Connect { .. }));
    /// ```
    pub fn connect(&self, path: impl AsRef<Path>) -> Result<Session, Error> {
        let path: PathBuf = path.as_ref().to_owned();
        self.connect_by(move || Ok(Box::new(UnixTransport::connect(&path)?)))
    }

    /// Connects by `connect`, which is called again for each adapter after the first. It says by [`Error::Connect`] or
    /// [`crate::transport::TransportError::Gone`] that there is none now.
    ///
    /// # Errors
    /// Those of `connect`, and as [`Session::with_transport`].
    ///
    /// ```
    /// use portcullis::{ConnectOptions, TransportError};
    /// let options = ConnectOptions::new();
    /// let error = options.connect_by(|| Err(TransportError::Gone("closed".to_owned()).into())).unwrap_err();
    /// assert_eq!(error.status(), Some(portcullis::Status::E_PATH));
    /// ```
    pub fn connect_by(
        &self,
        connect: impl Fn() -> Result<Box<dyn Transport>, Error> + Send + Sync + 'static,
    ) -> Result<Session, Error> {
        let transport = connect()?;
        if self.patience.is_zero() || transport.embedded().is_some() {
            return Session::with_transport(transport);
        }
        let lives = Lives::new(Box::new(connect), self.patience);
        Ok(Session::over(Arc::new(Link::greet(transport, Some(lives))?)))
    }
}

//! Why a controller could not be driven.

use std::time::Duration;

use crate::hal::DmaError;
use crate::spec::nvme::Status;

/// An NVMe controller that does not do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// Memory for queues could not be mapped.
    #[error("memory for the controller: {0}")]
    Dma(#[from] DmaError),
    /// All registers read as all ones.
    #[error("the device is gone: its registers read as all ones")]
    Gone,
    /// CSTS.CFS (Base 2.0, 3.1.3.6).
    #[error("the controller reports a fatal error (CSTS.CFS)")]
    Fatal,
    /// The controller did not answer in time.
    #[error("the controller did not finish {what} within {} ms", after.as_millis())]
    Timeout {
        /// Waiting for what.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The controller was reset, failed or shut down; the call needs it running.
    #[error("the controller is not running")]
    NotRunning,
    /// Nothing proves that the controller has stopped: its memory stays mapped for ever.
    #[error("the controller cannot be stopped: neither disabling nor a function reset worked")]
    Stuck,
    /// The options make no sense.
    #[error("{0}")]
    Options(String),
    /// The controller is one that this driver cannot drive.
    #[error("the controller is not supported: {0}")]
    Unsupported(String),
    /// The namespace is one that this driver cannot use.
    #[error("namespace {nsid} cannot be used: {what}")]
    Namespace {
        /// Its id.
        nsid: u32,
        /// Why.
        what: String,
    },
    /// No such namespace is active.
    #[error("namespace {asked} is not active; active are: {active:?}")]
    NoNamespace {
        /// What was asked for; 0 for any.
        asked: u32,
        /// What there is.
        active: Vec<u32>,
    },
    /// The controller grants fewer I/O queue pairs.
    #[error("{asked} I/O queue pairs are needed, the controller grants {granted}; use fewer pollers")]
    Queues {
        /// Asked for.
        asked: u16,
        /// Granted.
        granted: u32,
    },
    /// After a reset the controller is another, or its namespace has another shape and has not only grown.
    #[error(
        "after the reset the device is not the one it was, or its namespace has another shape: open it again"
    )]
    Changed,
    /// An admin command failed.
    #[error("{command} failed: sct {:x}h sc {:02x}h", status.0 >> 8 & 7, status.0 & 0xff)]
    Admin {
        /// Which.
        command: &'static str,
        /// The controller's word.
        status: Status,
    },
}

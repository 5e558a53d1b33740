//! One packet with its descriptors over a `SOCK_SEQPACKET` Unix socket, and who is at the other end.
#![allow(unsafe_code)] // SO_PEERCRED and SO_PEERGROUPS by libc

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::control::{MAX_DESCRIPTORS, MAX_MESSAGE};
use crate::discard::{Owner, discard};

/// SCM_MAX_FD of net/scm.h: the kernel passes no more descriptors with one packet.
const SCM_MAX_FD: usize = 253;

/// Whether a call may sleep, whatever O_NONBLOCK of the description says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocking {
    /// Sleep as long as it takes.
    Wait,
    /// MSG_DONTWAIT: fail with WouldBlock. The adapter's way.
    Never,
}

/// Why there is no packet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The other side closed the connection, or sent an empty packet, which looks the same.
    #[error("the other side closed the connection")]
    Closed,
    /// There is nothing now.
    #[error("there is no packet now")]
    WouldBlock,
    /// Longer than the buffer; cut off and dropped.
    #[error("a packet of more than {0} bytes: messages are at most {MAX_MESSAGE} long")]
    TooLong(usize),
    /// More descriptors than may be, or more than this process has room for; all of them closed.
    #[error("more than {MAX_DESCRIPTORS} descriptors with one packet, or no room for them (`ulimit -n`)")]
    TooManyDescriptors,
    /// The kernel's.
    #[error("receiving from the socket: {0}")]
    Os(#[source] io::Error),
}

/// Receives one packet into `buffer` and gives its length and descriptors, close-on-exec. `buffer` should be
/// [`MAX_MESSAGE`] long.
///
/// # Errors
/// Any [`ReceiveError`]; descriptors that came along are closed then.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    blocking: Blocking,
) -> Result<(usize, Vec<OwnedFd>), ReceiveError> {
    receive_of(Owner::Nobody, socket, buffer, blocking)
}

/// As [`receive`], from the peer `owner`: what has to be closed is closed as its own.
///
/// # Errors
/// As [`receive`].
pub fn receive_of(
    owner: Owner,
    socket: impl AsFd,
    buffer: &mut [u8],
    blocking: Blocking,
) -> Result<(usize, Vec<OwnedFd>), ReceiveError> {
    // Room for all that can come: what the kernel drops for want of room it closes in the midst of this call, and that
    // may take as long as whoever sent it likes.
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SCM_MAX_FD))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if blocking == Blocking::Never {
        flags |= RecvFlags::DONTWAIT;
    }
    let room = buffer.len();
    let message = loop {
        match rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Ok(message) => break message,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(ReceiveError::WouldBlock),
            Err(Errno::CONNRESET) => return Err(ReceiveError::Closed),
            Err(error) => return Err(ReceiveError::Os(error.into())),
        }
    };
    let mut descriptors = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            descriptors.extend(rights);
        }
    }
    let error = if message.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
        ReceiveError::TooManyDescriptors
    } else if message.flags.contains(ReturnFlags::TRUNC) {
        ReceiveError::TooLong(room)
    } else if message.bytes == 0 {
        ReceiveError::Closed
    } else {
        return Ok((message.bytes, descriptors));
    };
    descriptors.into_iter().for_each(|fd| discard(owner, fd));
    Err(error)
}

/// Bytes sent that the peer has not received yet, with what the kernel adds to them; 0 if it has received all.
///
/// # Errors
/// The kernel's: not a socket.
pub fn unreceived(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one integer through the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Sends one packet with at most [`MAX_DESCRIPTORS`] descriptors, without SIGPIPE.
///
/// # Errors
/// WouldBlock with [`Blocking::Never`] and a full socket; BrokenPipe when the other side is gone; InvalidInput for an empty
/// packet or too many descriptors.
pub fn send(
    socket: impl AsFd,
    packet: &[u8],
    descriptors: &[BorrowedFd<'_>],
    blocking: Blocking,
) -> io::Result<()> {
    if packet.is_empty() || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a packet of {} bytes with {} descriptors: at least 1 byte, at most {MAX_DESCRIPTORS} descriptors",
                packet.len(),
                descriptors.len()
            ),
        ));
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL.into());
    }
    let mut flags = SendFlags::NOSIGNAL;
    if blocking == Blocking::Never {
        flags |= SendFlags::DONTWAIT;
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(packet)], &mut control, flags) {
            Ok(_) => return Ok(()), // a packet goes whole or not at all
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Who connected: as it was at connect(2), or at socketpair(2), whatever the process does later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id; 0 if it has none here. For display only.
    pub pid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// The credentials of the peer of a connected Unix socket: unix(7), SO_PEERCRED and SO_PEERGROUPS.
///
/// # Errors
/// The kernel's: not a Unix socket.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let socket = socket.as_fd();
    let mut cred = [0u32; 3]; // struct ucred: pid, uid, gid
    if socket_option(socket, libc::SO_PEERCRED, &mut cred)? != cred.len() {
        return Err(Errno::INVAL.into());
    }
    let [pid, uid, gid] = cred;
    // NGROUPS_MAX of linux/limits.h: no process has more.
    let mut groups = vec![0u32; 65536];
    let count = socket_option(socket, libc::SO_PEERGROUPS, &mut groups)?;
    groups.truncate(count);
    groups.shrink_to_fit();
    Ok(Credentials { uid, gid, pid, groups })
}

/// getsockopt(2) of SOL_SOCKET into 32-bit words; gives how many were written.
fn socket_option(socket: BorrowedFd<'_>, option: libc::c_int, words: &mut [u32]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(size_of_val(words)).map_err(|_| Errno::INVAL)?;
    // SAFETY: `words` is writable for `length` bytes, and any bytes are good integers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(length).map_err(|_| Errno::INVAL)? / size_of::<u32>())
}

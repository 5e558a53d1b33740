//! The two ends of a processing queue.
//!
//! [`ApplicationEnd`] writes requests and reads completions, [`AdapterEnd`] the other way round. Each end keeps its
//! counts in private memory and never reads back what it wrote: the other side may scribble over all of it.
//!
//! What orders what:
//!
//! | store (Release)                      | load (Acquire)                 | so that                                         |
//! |--------------------------------------|--------------------------------|-------------------------------------------------|
//! | `tail` in [`ApplicationEnd::ring`]   | [`AdapterEnd::poll_doorbell`]  | entries are whole before they are taken         |
//! | last word in [`AdapterEnd::complete`]| [`ApplicationEnd::pop`]        | a completion is whole before it is seen, and its request was copied before its slot is written again |
//! | `cq_head` in [`ApplicationEnd::pop`] | [`AdapterEnd::take_into`]      | a completion was copied before its slot is written again |
//!
//! The two sleeps are each a store, a SeqCst fence and a load on one side against a store, a SeqCst fence and a load on
//! the other; one of the two loads sees the other side's store:
//!
//! | who sleeps  | sleeper                                                        | waker                                             |
//! |-------------|----------------------------------------------------------------|---------------------------------------------------|
//! | adapter     | [`AdapterEnd::set_need_wake`], then [`AdapterEnd::has_rung`]   | [`ApplicationEnd::ring`]: tail, then need_wake    |
//! | application | [`ApplicationEnd::begin_wait`]: cq_wait, then the completion   | [`AdapterEnd::end_turn`]: completions, then cq_wait |
//!
//! One fence serves all queues that a poller posted to in a turn: [`fence_posts`], then [`AdapterEnd::find_sleeper`] of each.
//!
//! Room: an application has at most as many requests between push and pop as the queue has entries, so a completion
//! slot is always free for a request of an application that keeps to this, and the adapter never sleeps with such a
//! request in the ring. One that does not keep to it is held at the adapter's reservation and may wait until its next
//! doorbell.

mod adapter;
mod application;
#[cfg(all(test, not(loom)))]
mod tests;

pub use adapter::{AdapterEnd, Completion, Overrun, Violation, fence_posts};
pub use application::{ApplicationEnd, Full, raw_overwrite};

//! What every side has in common: the size of a request, and how time becomes time for each.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Bytes of a request.
pub const BLOCK: u32 = 4096;

/// Whether one who keeps requests in flight looks at the clock, after `found` more made it `ended` in all, or after so many
/// looks that found nothing: once in 64 requests, so that it does not weigh.
#[inline]
pub fn is_time_to_look(ended: u64, found: u64, idle: u32) -> bool {
    (ended & 0x3f) < found || idle > 1000
}

/// Does `batch`, which is `depth` requests there and back, again and again for about that time; nanoseconds for each request.
/// The clock is read once in some thousand nanoseconds, so that it does not weigh.
///
/// # Errors
/// Those of `batch`.
#[inline]
pub fn per_request(depth: u32, time: Duration, mut batch: impl FnMut() -> Result<()>) -> Result<f64> {
    let looks = (64 / depth.max(1)).max(1);
    let began = Instant::now();
    let mut batches = 0_u64;
    loop {
        for _ in 0..looks {
            batch()?;
        }
        batches += u64::from(looks);
        let took = began.elapsed();
        if took >= time {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let each = took.as_nanos() as f64 / (batches * u64::from(depth)) as f64;
            return Ok(each);
        }
    }
}

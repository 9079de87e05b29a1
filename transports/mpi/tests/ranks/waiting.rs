//! What an idle rank costs, and how soon it is awake.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use crate::{Ranks, receive, send};

/// With connections open: it sleeps nearly always, and is woken by its timer alone. The share of a core that
/// this takes is told, not asserted: it depends on what else the machine does.
pub(crate) async fn idle_ranks_use_next_to_nothing(ranks: &mut Ranks<'_>) {
    const WHILE: Duration = Duration::from_millis(700);
    let connection = ranks.pair().await;
    let (mut share, mut sleeps) = (f64::INFINITY, 0.0);
    for _ in 0..3 {
        sleep(Duration::from_millis(100)).await;
        let before = usage();
        sleep(WHILE).await;
        let after = usage();
        let now = (after.0 - before.0).as_secs_f64() / WHILE.as_secs_f64();
        if now < share {
            (share, sleeps) = (now, (after.1 - before.1) as f64 / WHILE.as_secs_f64());
        }
    }
    drop(connection);
    if ranks.rank() == 0 {
        println!("    an idle rank uses {:.2} % of a core, in {sleeps:.0} looks a second", 100.0 * share);
    }
    // Every 4 ms at last, and what the runtime does besides.
    assert!(sleeps > 10.0 && sleeps < 600.0, "it looks {sleeps} times a second");
    assert!(share < 0.3, "an idle rank uses {share:.3} of a core");
}

/// A message to a rank that has been idle for a while.
pub(crate) async fn an_idle_rank_wakes_in_time(ranks: &mut Ranks<'_>) {
    const TIMES: usize = 40;
    let Some(mut connection) = ranks.pair().await else { return };
    let mut times = Vec::new();
    for _ in 0..TIMES {
        if ranks.rank() == 1 {
            receive(&mut connection).await;
            // The other side is idle now for more than eight of the longest sleeps.
            sleep(Duration::from_millis(40)).await;
            send(&mut connection, now().to_le_bytes().to_vec(), vec![]).await;
        } else {
            send(&mut connection, "idle from here on", vec![]).await;
            let head = receive(&mut connection).await.head;
            let sent = u64::from_le_bytes(head[..].try_into().expect("eight bytes"));
            times.push(Duration::from_nanos(now().saturating_sub(sent)));
        }
    }
    times.sort_unstable();
    if let (Some(longest), Some(median)) = (times.last(), times.get(TIMES / 2)) {
        println!("    an idle rank wakes in {median:.2?} (median), {longest:.2?} (longest)");
        // A sleep is 4 ms at most; the rest is for a machine with more ranks than cores.
        assert!(*median < Duration::from_millis(6), "{times:?}");
    }
}

/// Nanoseconds on a clock that all ranks of a host share.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// What this process has used of its cores, and how often it went to sleep.
fn usage() -> (Duration, i64) {
    // SAFETY: plain figures, for which zero is good, and a valid place for them.
    let usage = unsafe {
        let mut usage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |t: libc::timeval| Duration::from_micros(t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64);
    (time(usage.ru_utime) + time(usage.ru_stime), usage.ru_nvcsw)
}

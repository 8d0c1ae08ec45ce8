//! A worker's turn on a CPU that it shares: it gives the CPU away between two parts, before the system takes it in the middle of one.
//!
//! A part that is held by a worker without CPU is finished by nobody: all others wait for it, for as long as the neighbour's turn takes.
//! While the worker holds none they do all the work. So a worker that was once taken off its CPU counts from then on how long its turn
//! lasts, and ends it itself; the neighbour has its turn then, and comes back from it as often as before. Alone on its CPU it looks at
//! the clock, which takes no system call, and no more.

use std::time::{Duration, Instant};

/// A worker that was away for less lost nothing that matters; Linux deals out turns of some milliseconds.
const AWAY: Duration = Duration::from_micros(500);
/// How long a turn lasts: less than the 4 ms from tick to tick (at 250 Hz) by a few parts.
const TURN: Duration = Duration::from_millis(3);

/// What a worker knows of its turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// When it began; `None` while nobody else seems to want the CPU.
    began: Option<Instant>,
    /// When the last part ended.
    last: Option<Instant>,
    /// Times that the system took the CPU of this thread, when it was last looked up.
    taken: u64,
}

impl Turn {
    /// Runs a part, and ends the turn after it if it has lasted long.
    pub fn part(&mut self, run: impl FnOnce()) {
        let start = Instant::now();
        self.waited(start, involuntary_switches);
        run();
        let end = Instant::now();
        if self.ran(start, end, involuntary_switches) {
            std::thread::yield_now();
            self.back(end, Instant::now());
        }
    }

    /// A part begins. Whoever waited long for it, asleep or without CPU, has a new turn.
    fn waited(&mut self, start: Instant, taken: impl Fn() -> u64) {
        let long = self.last.is_some_and(|last| start - last >= AWAY);
        if long && (self.was_taken(taken) || self.began.is_some()) {
            self.began = Some(start);
        }
    }

    /// A part ended. Whether the turn should too.
    fn ran(&mut self, start: Instant, end: Instant, taken: impl Fn() -> u64) -> bool {
        if end - start >= AWAY && self.was_taken(taken) {
            self.began = Some(end);
        }
        self.last = Some(end);
        self.began.is_some_and(|began| end - began >= TURN)
    }

    /// The CPU was given away at `end`. Back at once means that nobody wanted it.
    fn back(&mut self, end: Instant, now: Instant) {
        self.began = (now - end >= AWAY).then_some(now);
        self.last = Some(now);
    }

    /// Whether the system took the CPU since the last call.
    fn was_taken(&mut self, taken: impl Fn() -> u64) -> bool {
        let before = std::mem::replace(&mut self.taken, taken());
        self.taken != before
    }
}

/// Times that the system gave this thread's CPU to another one.
fn involuntary_switches() -> u64 {
    // SAFETY: the structure is plain data that the call fills.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nivcsw.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Duration = Duration::from_micros(100);

    /// Parts of [`PART`] one after the other, none of them disturbed, until the turn ends: how many.
    fn parts(turn: &mut Turn, mut now: Instant) -> Option<u32> {
        (1..1000).find(|_| {
            let start = now;
            turn.waited(start, || 1);
            now += PART;
            turn.ran(start, now, || 1)
        })
    }

    #[test]
    fn a_worker_alone_keeps_its_cpu() {
        let (mut turn, now) = (Turn { taken: 1, ..Turn::default() }, Instant::now());
        assert_eq!(parts(&mut turn, now), None);
        // A long part is no sign of a neighbour.
        assert!(!turn.ran(now, now + 5 * TURN, || 1));
        assert_eq!(parts(&mut turn, now + 5 * TURN), None);
    }

    #[test]
    fn a_worker_with_a_neighbour_ends_its_turns() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        assert!(!turn.ran(now, now + AWAY + PART, || 1), "it just came back");
        let now = now + AWAY + PART;
        let a_turn = Some(30);
        assert_eq!(parts(&mut turn, now), a_turn);
        let (end, back) = (now + TURN, now + 2 * TURN);
        turn.back(end, back);
        assert_eq!(parts(&mut turn, back), a_turn, "the neighbour was there");
        turn.back(back + TURN, back + TURN + PART / 100);
        assert_eq!(parts(&mut turn, back + TURN + PART), None, "the neighbour has gone");
    }

    #[test]
    fn waiting_begins_a_new_turn() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        turn.ran(now, now + AWAY, || 1);
        let later = now + AWAY + TURN;
        turn.waited(later, || 1);
        assert!(!turn.ran(later, later + PART, || 1));
    }
}

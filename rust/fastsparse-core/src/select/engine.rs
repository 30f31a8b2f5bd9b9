//! Selection by brackets: see the method in [`super`].

use super::bracket::{Rank, query, sample};
use super::buffers::Buffers;
use super::candidates::{Candidates, Segment, bracket_around, nth_largest};
use super::counting::{self, Near};
use super::scan::{Cut, Found, Mode, Query, ScanKeys, ScanWord, Seen};
use super::tasks::{Piece, TASK_BYTES, TASK_ITEMS, Tasks};
use crate::element::Word;
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::keys::first_nan;
use crate::memory;
use crate::parallel::{Exec, SharedMut, run, try_map, try_run_with};

/// Up to this many items the cut is found by counting, whatever the keys: a sample would be as
/// large.
const SMALL: usize = 1024;

/// Bytes up to which items with keys of 8 and 16 bits are counted too: a second-level cache holds
/// them.
const CACHED_BYTES: usize = 1 << 17;

/// Items that are written at a time as long as there are ties to keep.
const TIE_ITEMS: usize = 512;

/// Keys that are made rather than loaded are made this many at a time: they stay in the first-level
/// cache.
const FILL_ITEMS: usize = 2048;

/// Reach of the first bracket, in standard deviations of the sample's rank: it misses once in 2,000
/// times.
const FIRST_SIGMAS: f64 = 3.5;

/// Reach of the bracket that one row hands to the next, in standard deviations of the difference of
/// two rows' ranks: it misses once in 80 rows, and looking again in a row that is in the cache
/// costs less than collecting more in every row.
const HINT_SIGMAS: f64 = 2.5;

/// Reach of the last bracket before bisection.
const LAST_SIGMAS: f64 = 16.0;

/// A selection over the items of `tasks`.
pub struct Engine<'a, K: ScanKeys> {
    keys: &'a K,
    tasks: Tasks,
    exec: Exec,
}

/// What the threads of a pass bring back.
struct Pass<K> {
    seen: Seen<K>,
    workers: Vec<Worker<K>>,
}

/// Where the wanted rank lies, in terms of a pass.
enum Place<K> {
    /// Above the bracket.
    Above,
    /// Below the bracket.
    Below,
    /// Among the collected, so many of which are kept; but some are missing.
    Inside,
    /// Among the collected, so many of which are kept.
    Collected(usize),
    /// At this edge; so many of the items equal to it are kept.
    Edge(K, usize),
}

/// How the mask of a task is to be written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rewrite<K> {
    /// With this cut.
    Cut(Cut<K>),
    /// Keep what is above the key and the first so many of those equal to it.
    FirstTies(K, usize),
}

impl<K: ScanWord> Pass<K> {
    fn candidates(&self) -> impl Iterator<Item = &Candidates<K>> + Clone {
        self.workers.iter().map(|worker| &worker.candidates)
    }

    fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.candidates().flat_map(|part| &part.segments)
    }

    /// Keeps the working memory for the next pass.
    fn recycle(self) {
        for Worker { candidates: Candidates { keys, positions, .. }, found, made, .. } in self.workers {
            Buffers { keys, positions, found, made }.give_back();
        }
    }

    fn place(&self, keep: usize, query: &Query<K>) -> Place<K> {
        let collected: usize = self.candidates().map(|part| part.seen).sum();
        let from_hi = self.seen.above + self.seen.equal_hi;
        if keep < self.seen.above {
            Place::Above
        } else if query.mode == Mode::Edges && keep <= from_hi {
            Place::Edge(query.hi, keep - self.seen.above)
        } else if keep <= from_hi + collected {
            let complete = self.candidates().all(|part| !part.overflow);
            if complete { Place::Collected(keep - from_hi) } else { Place::Inside }
        } else if keep <= from_hi + collected + self.seen.equal_lo {
            Place::Edge(query.lo, keep - from_hi - collected)
        } else {
            Place::Below
        }
    }
}

/// What a thread of a pass works with.
struct Worker<K> {
    seen: Seen<K>,
    candidates: Candidates<K>,
    /// Room for the positions that one scan collects.
    found: Vec<u16>,
    /// Room for keys that are made.
    made: Vec<K>,
}

impl<'a, K: ScanKeys> Engine<'a, K> {
    /// Makes the keys of `tasks` ready to be selected from.
    pub fn new(keys: &'a K, tasks: Tasks, exec: Exec) -> Self {
        let exec = exec.for_work(tasks.items(), TASK_ITEMS);
        Engine { keys, tasks, exec }
    }

    /// Writes the mask of the `keep` largest. `hint` is what to try first; what to try for data
    /// that is alike is left there.
    pub fn select(&self, keep: usize, hint: &mut Option<Query<K::Key>>, bits: &mut [u8]) -> Result<()> {
        let (zero, max) = (K::Key::from_u64(0), self.keys.max_key());
        if keep == 0 {
            return self.write(Query::cut(Cut { at: max, ties: false }), bits);
        }
        if keep == self.tasks.items() {
            return self.write(Query::cut(Cut { at: zero, ties: true }), bits);
        }
        let rank = Rank { keep, items: self.tasks.items() };
        if self.counts() {
            return self.select_counting(keep, hint, bits);
        }
        let guesses = Guesses::new(self, rank, hint.take());
        *hint = self.search(guesses, bits)?;
        Ok(())
    }

    /// Tries one bracket after the other; returns what to try for data that is alike.
    fn search(&self, mut guesses: Guesses<'_, 'a, K>, bits: &mut [u8]) -> Result<Option<Query<K::Key>>> {
        let rank = guesses.rank;
        let mut bounds = (K::Key::from_u64(0), self.keys.max_key());
        loop {
            let query = guesses.next(bounds)?;
            let pass = self.pass(&query, bits)?;
            self.check_nan(&pass.seen)?;
            let hint = match pass.place(rank.keep, &query) {
                Place::Above if query.hi < bounds.1 => {
                    bounds.0 = next_key(query.hi);
                    continue;
                }
                Place::Below if query.lo > bounds.0 => {
                    bounds.1 = previous_key(query.lo);
                    continue;
                }
                Place::Above | Place::Below => return Err(Error::Changed),
                Place::Inside => {
                    if (query.lo, query.hi) == bounds {
                        guesses.bisect();
                    }
                    bounds = (query.lo, query.hi);
                    continue;
                }
                Place::Collected(kept) => {
                    let (key, equal) = self.finish_collected(&pass, &query, kept, bits)?;
                    match &pass.workers[..] {
                        _ if equal > reach(rank) => Some(Query::value(Cut { at: key, ties: false })),
                        [worker] => {
                            let (lo, hi) = bracket_around(&worker.candidates, key, reach(rank));
                            Some(Query::collect(lo, hi))
                        }
                        _ => None,
                    }
                }
                Place::Edge(at, kept) => {
                    let equal = self.finish_edge(&pass, &query, at, kept, bits)?;
                    (equal > reach(rank)).then(|| Query::value(Cut { at, ties: kept > equal / 2 }))
                }
            };
            pass.recycle();
            return Ok(hint);
        }
    }

    /// Whether the items are so few, or their codes and the bytes they take, that counting finds
    /// the cut sooner.
    fn counts(&self) -> bool {
        let bytes = self.tasks.items() * K::Key::BYTES;
        self.tasks.items() <= SMALL || K::Key::BYTES <= 2 && self.exec.threads == 1 && bytes <= CACHED_BYTES
    }

    /// Writes the mask of the `keep` largest of items that a cache holds.
    fn select_counting(&self, keep: usize, hint: &mut Option<Query<K::Key>>, bits: &mut [u8]) -> Result<()> {
        let (start, items) = (self.tasks.start(), self.tasks.items());
        let mut made;
        let (keys, and) = match self.keys.masked() {
            Some((data, and)) => (&data[start..start + items], and),
            None => {
                made = memory::zeros(items)?;
                self.keys.fill(start, &mut made)?;
                (&made[..], K::Key::MAX)
            }
        };
        let near = hint.map(|Query { lo, hi, .. }| Near::between(lo, hi));
        let cut = counting::cut(self.exec.isa, keys, and, keep, self.keys.max_key(), near);
        *hint = Some(cut.near.query());
        let mut ties = keep - cut.above;
        let mut seen = Seen::default();
        for task in 0..self.tasks.count() {
            let (first, _) = self.tasks.bytes(task);
            for Piece { item, len, byte, .. } in self.tasks.pieces(task) {
                let keys = &keys[item - start..][..len];
                let bits = &mut bits[first + byte..][..len.div_ceil(8)];
                seen.add(&write_ties(self.exec.isa, keys, and, cut.at, &mut ties, bits));
            }
        }
        self.check_nan(&seen)
    }

    /// Writes the mask of a cut.
    pub fn write(&self, query: Query<K::Key>, bits: &mut [u8]) -> Result<()> {
        let pass = self.pass(&query, bits)?;
        self.check_nan(&pass.seen)
    }

    fn check_nan(&self, seen: &Seen<K::Key>) -> Result<()> {
        if seen.max <= self.keys.max_key() {
            return Ok(());
        }
        let start = self.tasks.start();
        Err(first_nan(self.keys, start..start + self.tasks.items()))
    }

    fn sample(&self) -> Result<Vec<K::Key>> {
        sample(self.keys, self.tasks.start(), self.tasks.items(), self.tasks.cols())
    }

    fn worker(&self, query: &Query<K::Key>) -> Result<Worker<K::Key>> {
        let found = if query.mode == Mode::Cut { 0 } else { self.tasks.longest() + 64 };
        let made = if self.keys.masked().is_some() { 0 } else { FILL_ITEMS };
        let Buffers { keys, positions, found, made } = Buffers::take(found, made)?;
        // The bracket of the smallest sample holds a quarter of the items.
        let limit = self.tasks.items() / 4 + TASK_ITEMS;
        let candidates = Candidates::new(query, limit, keys, positions);
        Ok(Worker { seen: Seen::default(), candidates, found, made })
    }

    fn pass(&self, query: &Query<K::Key>, bits: &mut [u8]) -> Result<Pass<K::Key>> {
        let shared = SharedMut::new(bits);
        let workers = try_run_with(
            self.exec.threads,
            self.tasks.count(),
            || self.worker(query),
            |worker, task| {
                let (start, len) = self.tasks.bytes(task);
                // SAFETY: tasks own distinct bytes.
                self.scan_task(worker, task, query, unsafe { shared.slice(start, len) })
            },
        )?;
        let mut seen = Seen::default();
        workers.iter().for_each(|worker| seen.add(&worker.seen));
        Ok(Pass { seen, workers })
    }

    fn scan_task(
        &self,
        worker: &mut Worker<K::Key>,
        task: usize,
        query: &Query<K::Key>,
        bits: &mut [u8],
    ) -> Result<()> {
        let Worker { seen: total, candidates, found: positions, made } = worker;
        let mut seen = Seen::default();
        let mut scan = |data: &[K::Key], and: K::Key, local: usize, bits: &mut [u8]| {
            let mut found = Found { positions, len: 0 };
            seen.add(&ScanWord::scan(self.exec.isa, data, and, query, local, bits, &mut found));
            candidates.extend(&found.positions[..found.len], |position| {
                K::Key::from_u64(data[position as usize - local].to_u64() & and.to_u64())
            });
        };
        for Piece { item, local, len, byte } in self.tasks.pieces(task) {
            let bits = &mut bits[byte..byte + len.div_ceil(8)];
            if let Some((data, and)) = self.keys.masked() {
                scan(&data[item..item + len], and, local, bits);
                continue;
            }
            for (i, bits) in bits.chunks_mut(FILL_ITEMS / 8).enumerate() {
                let start = i * FILL_ITEMS;
                let made = &mut made[..FILL_ITEMS.min(len - start)];
                self.keys.fill(item + start, made)?;
                scan(made, K::Key::MAX, local + start, bits);
            }
        }
        candidates.end_task(task, seen.equal_hi, seen.equal_lo)?;
        total.add(&seen);
        Ok(())
    }

    /// Sets the bits of the `kept` largest of the collected items; returns the smallest kept key
    /// and how many equal it.
    fn finish_collected(
        &self,
        pass: &Pass<K::Key>,
        query: &Query<K::Key>,
        kept: usize,
        bits: &mut [u8],
    ) -> Result<(K::Key, usize)> {
        if query.mode == Mode::Edges {
            self.rewrite(pass, query, |_| Rewrite::Cut(Cut { at: query.hi, ties: true }), bits)?;
        }
        if kept == 0 {
            return Ok((query.hi, 0));
        }
        let parts = memory::collect(pass.candidates())?;
        let (key, ties) = nth_largest(&parts, kept, self.exec.threads)?.ok_or(Error::Changed)?;
        // Ties go to the lower positions: in the order of the tasks.
        let mut equal = memory::filled(self.tasks.count(), 0)?;
        for (part, found) in parts.iter().zip(try_map(self.exec.threads, parts.len(), |i| parts[i].equal(key))?) {
            part.segments.iter().zip(found).for_each(|(segment, found)| equal[segment.task] = found);
        }
        let quotas = quotas(&equal, ties)?;
        self.assert_distinct(parts.iter().flat_map(|part| &part.segments).map(|segment| segment.task))?;
        let shared = SharedMut::new(bits);
        run(self.exec.threads, parts.len(), |i| {
            for segment in &parts[i].segments {
                let (start, len) = self.tasks.bytes(segment.task);
                // SAFETY: tasks own distinct bytes, and no task has two segments (checked above).
                let bits = unsafe { shared.slice(start, len) };
                parts[i].set(segment, key, quotas[segment.task], equal[segment.task], &self.tasks, bits);
            }
        });
        let equal = equal.iter().sum();
        Ok((key, equal))
    }

    /// Keeps what is above `at`, an edge of the bracket, and the first `kept` of the items equal to
    /// it; returns how many are.
    fn finish_edge(
        &self,
        pass: &Pass<K::Key>,
        query: &Query<K::Key>,
        at: K::Key,
        kept: usize,
        bits: &mut [u8],
    ) -> Result<usize> {
        let equal = |segment: &Segment| if at == query.hi { segment.equal_hi } else { segment.equal_lo };
        let mut counts = memory::filled(self.tasks.count(), 0)?;
        for segment in pass.segments() {
            counts[segment.task] = equal(segment);
        }
        let quotas = quotas(&counts, kept)?;
        let required = |segment: &Segment| match quotas[segment.task] {
            0 => Rewrite::Cut(Cut { at, ties: false }),
            all if all == equal(segment) => Rewrite::Cut(Cut { at, ties: true }),
            some => Rewrite::FirstTies(at, some),
        };
        self.rewrite(pass, query, required, bits)?;
        Ok(pass.segments().map(equal).sum())
    }

    /// Panics where a task is named twice.
    fn assert_distinct(&self, tasks: impl Iterator<Item = usize>) -> Result<()> {
        if self.tasks.count() <= 1 {
            // A short row of many, for which nothing is to be allocated.
            assert!(tasks.take(2).count() <= 1);
            return Ok(());
        }
        let mut seen = memory::filled(self.tasks.count(), false)?;
        for task in tasks {
            assert!(!std::mem::replace(&mut seen[task], true));
        }
        Ok(())
    }

    /// Writes the masks of those tasks anew for which the pass wrote another than is required.
    fn rewrite(
        &self,
        pass: &Pass<K::Key>,
        query: &Query<K::Key>,
        required: impl Fn(&Segment) -> Rewrite<K::Key> + Sync,
        bits: &mut [u8],
    ) -> Result<()> {
        let required = pass.segments().map(|segment| (segment.task, required(segment)));
        let wrong = memory::collect(required.filter(|(_, required)| *required != Rewrite::Cut(query.cut)))?;
        self.assert_distinct(wrong.iter().map(|&(task, _)| task))?;
        let shared = SharedMut::new(bits);
        try_run_with(
            self.exec.threads,
            wrong.len(),
            || self.worker(&Query::cut(query.cut)),
            |worker, i| {
                let (task, required) = wrong[i];
                let (start, len) = self.tasks.bytes(task);
                // SAFETY: tasks own distinct bytes, and no task is there twice (checked above).
                let bits = unsafe { shared.slice(start, len) };
                match required {
                    Rewrite::Cut(cut) => self.scan_task(worker, task, &Query::cut(cut), bits),
                    Rewrite::FirstTies(at, count) => {
                        let mut with_ties = [0; TASK_BYTES];
                        let with_ties = &mut with_ties[..len];
                        self.scan_task(worker, task, &Query::cut(Cut { at, ties: true }), with_ties)?;
                        self.scan_task(worker, task, &Query::cut(Cut { at, ties: false }), bits)?;
                        add_first(bits, with_ties, count);
                        Ok(())
                    }
                }
            },
        )?;
        Ok(())
    }
}

/// How many of its equal items each task keeps, `kept` in all: the first ones.
fn quotas(equal: &[usize], mut kept: usize) -> Result<Vec<usize>> {
    let quota = |&equal: &usize| {
        let quota = kept.min(equal);
        kept -= quota;
        quota
    };
    memory::collect(equal.iter().map(quota))
}

/// Writes the mask of the keys above `at` and of the first `ties` of those equal to it; takes off
/// `ties` what it has found.
fn write_ties<K: ScanWord>(isa: Isa, keys: &[K], and: K, at: K, ties: &mut usize, bits: &mut [u8]) -> Seen<K> {
    let positions = &mut [0; TIE_ITEMS + 64];
    let mut scan = |keys: &[K], query: &Query<K>, bits: &mut [u8]| {
        ScanWord::scan(isa, keys, and, query, 0, bits, &mut Found { positions, len: 0 })
    };
    let mut seen = Seen::default();
    let mut done = 0;
    while *ties > 0 && done < keys.len() {
        let keys = &keys[done..keys.len().min(done + TIE_ITEMS)];
        let bits = &mut bits[done / 8..][..keys.len().div_ceil(8)];
        let part = scan(keys, &Query::value(Cut { at, ties: true }), bits);
        if part.equal_hi > *ties {
            let mut with_ties = [0; TIE_ITEMS / 8];
            let with_ties = &mut with_ties[..bits.len()];
            with_ties.copy_from_slice(bits);
            scan(keys, &Query::cut(Cut { at, ties: false }), bits);
            add_first(bits, with_ties, *ties);
        }
        *ties -= part.equal_hi.min(*ties);
        seen.add(&part);
        done += keys.len();
    }
    for (keys, bits) in keys[done..].chunks(TASK_ITEMS).zip(bits[done / 8..].chunks_mut(TASK_ITEMS / 8)) {
        seen.add(&scan(keys, &Query::cut(Cut { at, ties: false }), bits));
    }
    seen
}

/// Sets the first `count` of the bits that `more` has beyond `bits`.
fn add_first(bits: &mut [u8], more: &[u8], mut count: usize) {
    for (bits, more) in bits.iter_mut().zip(more) {
        let mut new = more & !*bits;
        while (new.count_ones() as usize) > count {
            // Drop the last one.
            new &= !(0x80 >> new.leading_zeros());
        }
        *bits |= new;
        count -= new.count_ones() as usize;
        if count == 0 {
            return;
        }
    }
}

/// The brackets to try, one after the other.
struct Guesses<'e, 'a, K: ScanKeys> {
    engine: &'e Engine<'a, K>,
    rank: Rank,
    hint: Option<Query<K::Key>>,
    sample: Vec<K::Key>,
    /// Standard deviations of the next bracket from the sample; beyond the last one comes
    /// bisection.
    sigmas: f64,
}

impl<'e, 'a, K: ScanKeys> Guesses<'e, 'a, K> {
    fn new(engine: &'e Engine<'a, K>, rank: Rank, hint: Option<Query<K::Key>>) -> Self {
        Guesses { engine, rank, hint, sample: Vec::new(), sigmas: FIRST_SIGMAS }
    }

    /// Only bisect from now on.
    fn bisect(&mut self) {
        self.sigmas = f64::INFINITY;
    }

    fn next(&mut self, bounds: (K::Key, K::Key)) -> Result<Query<K::Key>> {
        if let Some(hint) = self.hint.take() {
            return Ok(hint);
        }
        if self.sigmas <= LAST_SIGMAS {
            if self.sample.is_empty() {
                self.sample = self.engine.sample()?;
            }
            let query = query(&self.sample, self.rank, self.sigmas, bounds)?;
            self.sigmas *= 4.0;
            return Ok(query);
        }
        let middle = K::Key::from_u64(bounds.0.to_u64() + (bounds.1.to_u64() - bounds.0.to_u64()) / 2);
        Ok(Query::value(Cut { at: middle, ties: false }))
    }
}

/// Candidates to either side that a bracket taken from other data of the same size should have.
fn reach(rank: Rank) -> usize {
    let kept = rank.keep as f64 / rank.items as f64;
    // Both ranks are random: the one it was taken from and the one it is for.
    (HINT_SIGMAS * (2.0 * rank.items as f64 * kept * (1.0 - kept)).sqrt()) as usize + 1
}

fn next_key<K: Word>(key: K) -> K {
    K::from_u64(key.to_u64() + 1)
}

fn previous_key<K: Word>(key: K) -> K {
    K::from_u64(key.to_u64() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::F32;
    use crate::isa::Isa;
    use crate::keys::Magnitude;
    use crate::matrix::Matrix;

    /// Keys with ties at every rank.
    fn weights(len: usize) -> Vec<u32> {
        (0..len).map(|i| ((i * 7919 % 1009) as f32 * if i % 3 == 0 { -0.5 } else { 0.5 }).to_bits()).collect()
    }

    fn naive(weights: &[u32], keep: usize) -> Vec<u8> {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(weights[i] & 0x7fff_ffff));
        let mut bits = vec![0; weights.len().div_ceil(8)];
        order[..keep].iter().for_each(|&i| bits[i / 8] |= 1 << (i % 8));
        bits
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long there")]
    fn bisection_finds_every_rank() {
        let weights = weights(5000);
        let keys = Magnitude::<F32>(&weights);
        for isa in Isa::available() {
            let engine =
                Engine::new(&keys, Tasks::new(Matrix { rows: 1, cols: 5000 }, 0, true), Exec { isa, threads: 2 });
            for keep in [1, 2, 4, 5, 2499, 2500, 4995, 4999] {
                let mut bits = vec![0; 625];
                let mut guesses = Guesses::new(&engine, Rank { keep, items: 5000 }, None);
                guesses.bisect();
                engine.search(guesses, &mut bits).unwrap();
                assert_eq!(bits, naive(&weights, keep), "{keep} {isa:?}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long there")]
    fn wrong_hints_are_seen_to_be_wrong() {
        let weights = weights(70_000);
        let keys = Magnitude::<F32>(&weights);
        let key = |x: f32| x.to_bits();
        for isa in Isa::available() {
            let engine = Engine::new(&keys, Tasks::new(Matrix { rows: 1, cols: 70_000 }, 0, true), Exec::single(isa));
            let hints = [
                Query::collect(0, key(0.25)),
                Query::collect(key(10.0), key(11.0)),
                Query::collect(key(600.0), key(700.0)),
                Query::collect(0, key(f32::INFINITY)),
                Query::value(Cut { at: key(252.0), ties: true }),
                Query::value(Cut { at: key(1.0), ties: false }),
                Query::value(Cut { at: key(503.5), ties: true }),
            ];
            for keep in [1, 69, 35_000, 35_001, 69_999] {
                let expected = naive(&weights, keep);
                for hint in hints {
                    let mut bits = vec![0; 8750];
                    engine.select(keep, &mut Some(hint), &mut bits).unwrap();
                    assert_eq!(bits, expected, "{keep} {hint:?} {isa:?}");
                }
            }
        }
    }
}

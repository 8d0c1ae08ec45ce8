//! Nodes of a machine with several memories, and which bytes of the weights should lie on which.
//!
//! There is one copy of the weights, in the page cache. Workers are pinned node by node, and every worker reads the same rows of a matrix in
//! every step; so each matrix is cut by rows among the nodes, and each node gets the pages that its workers read. Where there is one node,
//! nothing is cut and nothing moves.

use crate::Artifact;
use crate::pool::{Cpus, Job, MOST_PARTS, Panicked, Part, Pool, parse_cpu_list};
use deepfuse_artifact::plan::Plan;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

/// Where the system describes its nodes.
pub const SYSTEM: &str = "/sys/devices/system/node";

/// A memory with the CPUs beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// As the system numbers it.
    pub id: u32,
    pub cpus: Vec<usize>,
    /// 0 if the system does not say.
    pub memory_bytes: u64,
}

/// The nodes of a directory like [`SYSTEM`] that have CPUs, in the order of their numbers; none where the system does not tell.
pub fn read(dir: &Path) -> Vec<Node> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut nodes: Vec<Node> = entries.filter_map(|e| node(&e.path())).collect();
    nodes.sort_by_key(|n| n.id);
    nodes
}

/// The nodes of this machine, read once.
pub fn nodes() -> &'static [Node] {
    static NODES: OnceLock<Vec<Node>> = OnceLock::new();
    NODES.get_or_init(|| read(SYSTEM.as_ref()))
}

fn node(dir: &Path) -> Option<Node> {
    let id = dir.file_name()?.to_str()?.strip_prefix("node")?.parse().ok()?;
    let cpus = parse_cpu_list(std::fs::read_to_string(dir.join("cpulist")).ok()?.trim());
    let info = std::fs::read_to_string(dir.join("meminfo")).unwrap_or_default();
    // `Node 0 MemTotal:       24638172 kB`
    let total = info.lines().find_map(|l| l.split_once("MemTotal:"))?.1;
    let kib: u64 = total.trim().trim_end_matches("kB").trim().parse().unwrap_or(0);
    (!cpus.is_empty()).then_some(Node { id, cpus, memory_bytes: kib * 1024 })
}

/// A CPU and the node of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub cpu: usize,
    /// As the system numbers it.
    pub node: u32,
}

/// Seats of `workers` workers: node by node, on every node a share of them like its share of the cores, so that all memories are read.
/// Cores before their sibling CPUs, as in `cpus`. Fewer if there are fewer CPUs.
pub fn seats(nodes: &[Node], cpus: &Cpus, workers: usize) -> Vec<Seat> {
    let node_of = |cpu: usize| nodes.iter().find(|n| n.cpus.contains(&cpu)).map_or(0, |n| n.id);
    let all: Vec<Seat> = cpus.ids.iter().map(|cpu| Seat { cpu: *cpu, node: node_of(*cpu) }).collect();
    let mut ids: Vec<u32> = all.iter().map(|s| s.node).collect();
    ids.sort_unstable();
    ids.dedup();
    let workers = workers.min(all.len());
    // As long as there are cores, siblings do not count.
    let pool = &all[..if workers <= cpus.cores { cpus.cores } else { all.len() }];
    let (mut seats, mut seen) = (vec![], 0);
    for id in ids {
        let here: Vec<Seat> = pool.iter().copied().filter(|s| s.node == id).collect();
        let cut = |n: usize| workers * n / pool.len();
        seats.extend(&here[..cut(seen + here.len()) - cut(seen)]);
        seen += here.len();
    }
    seats
}

/// Bytes of a weight that belong on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Index into [`Plan::weights`].
    pub weight: usize,
    pub bytes: Range<u64>,
    pub node: u32,
}

/// Smaller matrices lie where they happen to: they fit caches.
const LEAST_MATRIX_BYTES: u64 = 64 << 10;

/// Which bytes of the weights should lie on which node, for workers with these seats. Empty if all sit on one node.
pub fn placement(plan: &Plan, seats: &[Seat]) -> Vec<Slice> {
    let workers = seats.len() as u64;
    let mut runs: Vec<(u32, Range<u64>)> = vec![];
    for (i, seat) in (0u64..).zip(seats) {
        match runs.last_mut() {
            Some((node, range)) if *node == seat.node => range.end = i + 1,
            _ => runs.push((seat.node, i..i + 1)),
        }
    }
    if runs.len() < 2 {
        return vec![];
    }
    let mut slices = vec![];
    for (weight, w) in plan.weights.iter().enumerate() {
        let matrix = w.bytes / u64::from(w.matrices.max(1));
        if matrix < LEAST_MATRIX_BYTES {
            continue;
        }
        for start in (0..u64::from(w.matrices.max(1))).map(|i| i * matrix) {
            let cut = |worker: u64| start + matrix * worker / workers;
            slices.extend(runs.iter().map(|(node, of)| Slice {
                weight,
                bytes: cut(of.start)..cut(of.end),
                node: *node,
            }));
        }
    }
    slices
}

/// Moves the weights' pages to where [`placement`] wants them, all workers at once.
pub fn place(artifact: &Artifact, slices: &[Slice], pool: &mut Pool) -> Result<(), Panicked> {
    if slices.is_empty() {
        return Ok(());
    }
    pool.run(&Placing { artifact, slices, parts: (pool.workers() * 16).min(MOST_PARTS) })
}

struct Placing<'a> {
    artifact: &'a Artifact,
    slices: &'a [Slice],
    parts: u32,
}

impl Job for Placing<'_> {
    fn parts(&self, phase: u32) -> Option<u32> {
        (phase == 0).then_some(self.parts)
    }

    fn run(&self, part: Part, _worker: u32) {
        for slice in self.slices.iter().skip(part.index as usize).step_by(part.parts as usize) {
            let name = &self.artifact.plan().weights[slice.weight].name;
            let bytes = self.artifact.weights().get(name).expect("the reader compared plan and files");
            move_to(&bytes[slice.bytes.start as usize..slice.bytes.end as usize], slice.node);
        }
    }
}

/// Bytes of a page of memory.
const PAGE: usize = 4096;
/// Pages of one system call.
const AT_ONCE: usize = 4096;

/// Moves the pages of `bytes` to a node: those whose middle lies inside, so that neighbouring slices share no page. The number of pages
/// that are there afterwards; the system may refuse any of them, which is only slower.
pub fn move_to(bytes: &[u8], node: u32) -> usize {
    let range = bytes.as_ptr_range();
    let page_of = |address: usize| (address + PAGE / 2) / PAGE * PAGE;
    let pages: Vec<usize> = (page_of(range.start as usize)..page_of(range.end as usize)).step_by(PAGE).collect();
    pages.chunks(AT_ONCE).map(|pages| move_pages(pages, node)).sum()
}

fn move_pages(pages: &[usize], node: u32) -> usize {
    const MPOL_MF_MOVE: libc::c_int = 2;
    let nodes = vec![node as libc::c_int; pages.len()];
    let mut status = vec![-1 as libc::c_int; pages.len()];
    // SAFETY: the pages are those of a mapping of ours; the first may begin before the bytes that we were given, but holds some of them.
    // Populating reads them from the file, moving changes where they lie and not what they hold. The lists have the length that is named.
    unsafe {
        let length = pages.len() * PAGE;
        libc::madvise(pages[0] as *mut libc::c_void, length, libc::MADV_POPULATE_READ);
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        );
    }
    status.iter().filter(|s| **s == node as libc::c_int).count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use deepfuse_artifact::plan::Weight;

    /// A directory like `/sys/devices/system/node`.
    fn simulated(nodes: &[(u32, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (id, cpus) in nodes {
            let node = dir.path().join(format!("node{id}"));
            std::fs::create_dir(&node).unwrap();
            std::fs::write(node.join("cpulist"), format!("{cpus}\n")).unwrap();
            std::fs::write(node.join("meminfo"), format!("Node {id} MemTotal:  1024 kB\nNode {id} MemFree: 1 kB\n"))
                .unwrap();
        }
        std::fs::write(dir.path().join("online"), "0-9\n").unwrap();
        std::fs::create_dir(dir.path().join("power")).unwrap();
        dir
    }

    /// Two sockets of four cores with two threads each: siblings are 8 apart, as Linux numbers them.
    fn two_sockets() -> (Vec<Node>, Cpus) {
        let dir = simulated(&[(1, "4-7,12-15"), (0, "0-3,8-11"), (2, "")]);
        (read(dir.path()), Cpus { ids: (0..16).collect(), cores: 8 })
    }

    fn plan(weights: &[(u64, u32)]) -> Plan {
        let weight = |(bytes, matrices): &(u64, u32)| Weight {
            name: "w".into(),
            bytes: *bytes,
            matrices: *matrices,
            note: String::new(),
        };
        Plan {
            vocab: 1,
            states: vec![],
            weights: weights.iter().map(weight).collect(),
            kernels: vec![],
            buckets: vec![],
        }
    }

    #[test]
    fn topologies_are_read() {
        let (nodes, _) = two_sockets();
        assert_eq!(nodes.iter().map(|n| n.id).collect::<Vec<_>>(), [0, 1], "a node without CPUs has no workers");
        assert_eq!(nodes[1].cpus, [4, 5, 6, 7, 12, 13, 14, 15]);
        assert_eq!(nodes[1].memory_bytes, 1 << 20);
        assert!(read("/nowhere".as_ref()).is_empty());
    }

    #[test]
    fn workers_sit_node_by_node_cores_first() {
        let (nodes, cpus) = two_sockets();
        let cpu = |workers| seats(&nodes, &cpus, workers).iter().map(|s| s.cpu).collect::<Vec<_>>();
        assert_eq!(cpu(8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(cpu(4), [0, 1, 4, 5], "both memories are read");
        assert_eq!(cpu(1).len(), 1);
        assert_eq!(cpu(16), [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]);
        assert_eq!(cpu(99).len(), 16);
        let uneven = Cpus { ids: vec![0, 4, 5, 6], cores: 4 };
        assert_eq!(seats(&nodes, &uneven, 4).iter().map(|s| s.node).collect::<Vec<_>>(), [0, 1, 1, 1]);
        // Nothing known, or one node: the order of the CPUs, as without nodes.
        for nodes in [vec![], vec![Node { id: 0, cpus: (0..16).collect(), memory_bytes: 0 }]] {
            for workers in 1..=16 {
                let expected: Vec<usize> = (0..workers).collect();
                assert_eq!(seats(&nodes, &cpus, workers).iter().map(|s| s.cpu).collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn every_byte_of_a_matrix_has_one_node_and_it_is_that_of_its_reader() {
        let (nodes, cpus) = two_sockets();
        let plan = plan(&[(1 << 20, 1), (3 << 20, 3), (4096, 1), (64 * 4096, 64)]);
        for workers in [2, 4, 6, 8, 16] {
            let seats = seats(&nodes, &cpus, workers);
            let slices = placement(&plan, &seats);
            assert!(slices.iter().all(|s| s.weight < 2), "small ones stay where they are");
            for (weight, matrices) in [(0, 1), (1, 3)] {
                let mine: Vec<&Slice> = slices.iter().filter(|s| s.weight == weight).collect();
                assert_eq!(mine.len(), 2 * matrices, "one slice a node and matrix");
                assert_eq!((mine[0].bytes.start, mine.last().unwrap().bytes.end), (0, plan.weights[weight].bytes));
                assert!(mine.windows(2).all(|w| w[0].bytes.end == w[1].bytes.start));
            }
            // The first rows of each matrix are worker 0's, the last ones the last worker's.
            for (i, seat) in seats.iter().enumerate() {
                let at = (2 << 20) + (1 << 20) * (2 * i as u64 + 1) / (2 * workers as u64);
                let slice = slices.iter().find(|s| s.weight == 1 && s.bytes.contains(&at)).unwrap();
                assert_eq!(slice.node, seat.node, "worker {i} of {workers}");
            }
        }
        assert!(placement(&plan, &seats(&nodes, &cpus, 1)).is_empty());
        assert!(placement(&plan, &seats(&[], &cpus, 8)).is_empty());
    }

    #[test]
    fn pages_can_be_moved_to_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        std::fs::write(&path, vec![7u8; 64 * PAGE]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        // SAFETY: a read-only mapping of a file that nobody changes.
        let bytes: &[u8] = unsafe {
            use std::os::fd::AsRawFd;
            let flags = libc::MAP_SHARED;
            let start = libc::mmap(std::ptr::null_mut(), 64 * PAGE, libc::PROT_READ, flags, file.as_raw_fd(), 0);
            assert_ne!(start, libc::MAP_FAILED);
            std::slice::from_raw_parts(start.cast(), 64 * PAGE)
        };
        if read(SYSTEM.as_ref()).len() != 1 {
            return; // which page is where is not known beforehand
        }
        // Neighbouring slices that meet inside a page: each page is moved once.
        let middle = 10 * PAGE + 100;
        assert_eq!((move_to(&bytes[..middle], 0), move_to(&bytes[middle..], 0)), (10, 54));
        assert_eq!(move_to(&bytes[..middle], 63), 0, "there is no such node");
        assert!(bytes.iter().all(|b| *b == 7));
    }
}

//! CPUs that this process may use, and pinning of threads to them.

use std::mem::size_of;
use std::sync::OnceLock;

/// CPUs in the order in which workers take them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// All allowed CPUs: first one of each core, then their siblings.
    pub ids: Vec<usize>,
    /// How many cores those are.
    pub cores: usize,
}

/// The CPUs of the affinity mask when this was first called (pinning changes the mask); just CPU 0 where the system does not tell.
pub fn allowed_cpus() -> &'static Cpus {
    static CPUS: OnceLock<Cpus> = OnceLock::new();
    CPUS.get_or_init(find_cpus)
}

fn find_cpus() -> Cpus {
    let allowed = mask();
    let first_of_core = |cpu: &usize| siblings(*cpu).into_iter().find(|c| allowed.contains(c)) == Some(*cpu);
    let (mut ids, rest): (Vec<usize>, Vec<usize>) = allowed.iter().partition(|c| first_of_core(c));
    let cores = ids.len();
    ids.extend(rest);
    Cpus { ids, cores }
}

fn mask() -> Vec<usize> {
    // SAFETY: the set is plain data that the call fills; `CPU_ISSET` reads inside it.
    let list: Vec<usize> = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return vec![0];
        }
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    };
    if list.is_empty() { vec![0] } else { list }
}

/// CPUs of the same core, this one included, in ascending order.
fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    let parsed = parse_cpu_list(list.trim());
    if parsed.contains(&cpu) { parsed } else { vec![cpu] }
}

/// `0-2,8` is 0, 1, 2, 8; nothing for text of another form.
pub fn parse_cpu_list(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.trim().parse::<usize>().ok()?..=to.trim().parse::<usize>().ok()?)
    };
    list.split(',').filter_map(range).flatten().take(1 << 16).collect()
}

/// Keeps the calling thread on these CPUs; without permission it stays as it is, which is only slower.
pub fn pin_this_thread(cpus: &[usize]) {
    // SAFETY: the set is plain data; only CPU numbers inside it are set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().filter(|c| **c < libc::CPU_SETSIZE as usize).for_each(|c| libc::CPU_SET(*c, &mut set));
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(parse_cpu_list("3"), [3]);
        assert_eq!(parse_cpu_list("x,4-1,"), Vec::<usize>::new());
    }

    #[test]
    fn there_is_a_cpu() {
        let cpus = allowed_cpus();
        assert!(cpus.cores >= 1 && cpus.cores <= cpus.ids.len());
    }
}

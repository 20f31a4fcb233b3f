//! Limits on concurrent work, derived from the memory and the file descriptors that the server may use.

use std::fs;

use anyhow::ensure;

use crate::config::Config;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Memory of an idle connection: its buffers, its task, and the kernel's part.
const CONNECTION: usize = 16 * KIB;

/// Memory of an idle TLS connection, which has more buffers.
const TLS_CONNECTION: usize = 48 * KIB;

/// The least memory that a server needs.
const LEAST_MEMORY: usize = 128 * MIB;

/// Descriptors that are not for connections: files, timers, the listener, and the database's files.
const OTHER_DESCRIPTORS: usize = 64;

/// The fewest connections that a server must be able to keep.
const LEAST_CONNECTIONS: usize = 32;

/// The limits on concurrent work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// The most client connections.
    pub connections: usize,
    /// The most connections that are accepted, including those that wait until others are closed.
    pub accepted: usize,
    /// The most requests that wait for a message. The other connections stay free for short requests.
    pub waits: usize,
    /// The most connections whose clients do not receive the bytes that are sent.
    pub stalled: usize,
    /// The memory for answers that are being sent, in bytes.
    pub answers: usize,
    /// The memory for request bodies and the values parsed from them, in bytes.
    pub bodies: usize,
}

impl Capacity {
    /// Derives the limits from the memory and the descriptors of this process.
    ///
    /// # Errors
    /// When the process has too little memory or too few descriptors.
    pub(crate) fn of_process(config: &Config) -> anyhow::Result<Self> {
        let memory = config.memory.map_or_else(memory, |megabytes| megabytes as usize * MIB);
        ensure!(
            memory >= LEAST_MEMORY,
            "the server may use {} MiB of memory, and needs {}: raise the container's limit or KEYPOOL_MEMORY",
            memory / MIB,
            LEAST_MEMORY / MIB
        );
        let capacity = Self::of((memory, descriptors()), config);
        ensure!(
            capacity.connections >= LEAST_CONNECTIONS,
            "the process may open {} files, which leaves too few for connections: raise `ulimit -n`",
            descriptors()
        );
        let Self { connections, waits, .. } = capacity;
        tracing::info!(memory_mib = memory / MIB, connections, waits, "capacity: what is done at the same time");
        Ok(capacity)
    }

    fn of((memory, descriptors): (usize, usize), config: &Config) -> Self {
        let each = if config.tls_certificate.is_some() { TLS_CONNECTION } else { CONNECTION };
        // SQLite opens the database, its log and its index for each connection.
        let of_database = 3 * (config.database_connections as usize + 2);
        let connections = (memory / 4 / each).min(descriptors.saturating_sub(OTHER_DESCRIPTORS + of_database) / 9 * 8);
        Self {
            connections,
            accepted: connections + connections / 8,
            waits: connections / 4 * 3,
            stalled: (connections / 16).max(8),
            answers: (memory / 8).max(16 * MIB),
            bodies: memory / 4,
        }
    }
}

/// Returns the number of files that the process may open.
fn descriptors() -> usize {
    #[cfg(target_os = "linux")]
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(target_os = "linux"))]
    let limit = Some(256);
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Raises the number of files that the process may open to its hard limit.
///
/// Many systems, and Docker since version 29, give each process 1,024 until it asks for more.
pub fn raise_descriptors() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = Rlimit { current: maximum, maximum };
        let raised = current != maximum && setrlimit(Resource::Nofile, wanted).is_ok();
        let in_words = |limit: Option<u64>| limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
        let (before, now) = (in_words(current), descriptors());
        tracing::info!(before, now, raised, "file descriptors: one is needed for each connection");
    }
}

/// Returns the memory that this process may use, in bytes: the limit of its control group, or the machine's memory.
fn memory() -> usize {
    let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_meminfo(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    // If no limit is known, assume a small machine.
    limits.chain(of_machine).min().unwrap_or(1024 * MIB)
}

/// Returns the files that may contain the limit of this process's control group, from its `/proc/self/cgroup`. Inside a
/// container, its own group is the root.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files =
        vec!["/sys/fs/cgroup/memory.max".to_owned(), "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()];
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if controllers.is_empty() {
            files.push(format!("/sys/fs/cgroup{path}/memory.max"));
        } else if controllers.split(',').any(|controller| controller == "memory") {
            files.push(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"));
        }
    }
    files
}

fn of_meminfo(text: &str) -> Option<usize> {
    let kib: usize =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_descriptors_bound_what_is_done_at_once() {
        let config = Config::default();
        let small = Capacity::of((256 * MIB, usize::MAX), &config);
        assert_eq!((small.connections, small.waits, small.stalled), (4_096, 3_072, 256));
        assert_eq!((small.answers, small.bodies), (32 * MIB, 64 * MIB));
        let few_files = Capacity::of((256 * MIB, 1_024), &config);
        assert!(few_files.accepted < 1_024 && few_files.connections > 750, "{few_files:?}");
        assert!(few_files.waits < few_files.connections, "{few_files:?}");
        let config = Config { tls_certificate: Some("certificate.pem".into()), ..config };
        assert!(Capacity::of((256 * MIB, usize::MAX), &config).connections < small.connections);
    }

    #[test]
    fn too_little_memory_is_said() {
        let config = Config { memory: Some(64), ..Config::default() };
        let error = Capacity::of_process(&config).unwrap_err().to_string();
        assert!(error.contains("64 MiB") && error.contains("KEYPOOL_MEMORY"), "{error}");
    }

    #[test]
    fn the_limit_of_a_control_group_is_found_in_either_version() {
        let files = limit_files("9:name=systemd:/\n4:cpu,memory:/docker/1\n0::/system.slice/keypool.service\n");
        for file in [
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes",
            "/sys/fs/cgroup/system.slice/keypool.service/memory.max",
        ] {
            assert!(files.iter().any(|found| found == file), "{file} is not in {files:?}");
        }
        assert_eq!(of_meminfo("MemTotal:       24682672 kB\nMemFree: 1 kB\n"), Some(24_682_672 * 1024));
    }
}

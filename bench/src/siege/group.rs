//! A control group that limits a process's memory like a container.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

/// For each version of control groups: their directory, the file with the limit, and the file that disables swap.
const VERSIONS: [(&str, &str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max", "memory.swap.max", "0"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.swappiness", "0"),
];

/// Removed when dropped, after its process has ended.
#[derive(Debug)]
pub(super) struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Creates a group with so many MiB; `None` if control groups cannot be created, which needs root.
    pub(super) fn make(mebibytes: u32) -> Option<Self> {
        VERSIONS.iter().find_map(|(root, limit, swap, none)| {
            let group = Self(PathBuf::from(root).join(format!("keypool-bench-{}", std::process::id())));
            fs::create_dir(&group.0).ok()?;
            // Other directories do not have these files.
            fs::metadata(group.0.join("cgroup.procs")).ok()?;
            fs::write(group.0.join(limit), (u64::from(mebibytes) << 20).to_string()).ok()?;
            // Some kernels do not account swap.
            let _ = fs::write(group.0.join(swap), none);
            Some(group)
        })
    }

    /// Moves the process into the group.
    pub(super) fn take(&self, process: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), process.to_string())
            .with_context(|| format!("the server cannot be put into {}", self.0.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

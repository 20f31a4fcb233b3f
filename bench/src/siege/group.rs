//! A control group that bounds a process's memory, as a container does.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

/// Where each version of control groups has them, with the file that has the limit, and what keeps it from swapping.
const VERSIONS: [(&str, &str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max", "memory.swap.max", "0"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.swappiness", "0"),
];

/// Removed when it is dropped, after the process in it has ended.
#[derive(Debug)]
pub(super) struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// With so many MiB; `None` where control groups cannot be made, which takes root.
    pub(super) fn make(mebibytes: u32) -> Option<Self> {
        VERSIONS.iter().find_map(|(root, limit, swap, none)| {
            let group = Self(PathBuf::from(root).join(format!("keypool-bench-{}", std::process::id())));
            fs::create_dir(&group.0).ok()?;
            // In any other directory, none of these files is there.
            fs::metadata(group.0.join("cgroup.procs")).ok()?;
            fs::write(group.0.join(limit), (u64::from(mebibytes) << 20).to_string()).ok()?;
            // Some kernels have no accounting of swap.
            let _ = fs::write(group.0.join(swap), none);
            Some(group)
        })
    }

    /// From now on the process is in it.
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

//! The progress of long work, for a progress bar.

/// The progress of a refresh, or of a comparison of the trail with the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// KeyPackages are being generated.
    Generated {
        /// The number generated so far.
        done: usize,
        /// The total number to generate.
        total: usize,
    },
    /// KeyPackages are being uploaded.
    Uploaded {
        /// The number uploaded so far.
        done: usize,
        /// The total number to upload.
        total: usize,
    },
    /// The trail is being compared with the server's log.
    Compared {
        /// The number of KeyPackages compared so far.
        done: usize,
        /// The total number to compare.
        total: usize,
    },
}

/// What is called with the progress.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);

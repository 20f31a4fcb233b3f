//! Progress bars.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar with so many steps and a message.
pub(crate) fn bar(steps: u64, message: impl Into<String>) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("[{bar:32}] {pos}/{len} {msg}")?.progress_chars("=> ");
    Ok(ProgressBar::new(steps).with_style(style).with_message(message.into()))
}

/// Shows the progress of `work`.
pub(crate) async fn follow<T>(bar: ProgressBar, position: impl Fn() -> u64, work: impl Future<Output = T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                bar.finish_and_clear();
                return done;
            }
            _ = ticks.tick() => bar.set_position(position()),
        }
    }
}

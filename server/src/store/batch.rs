//! What is done in one transaction for many who ask.

/// What is asked for together. Where [`each`] does it, what is asked for meanwhile may join.
pub trait Batch<W> {
    /// What is asked for so far.
    fn wants(&self) -> &[W];
    /// Lets in what has come since; whether anything had.
    fn admit(&mut self) -> bool;
}

/// What is asked for at once, and joined by nothing.
impl<W> Batch<W> for &[W] {
    fn wants(&self) -> &[W] {
        self
    }

    fn admit(&mut self) -> bool {
        false
    }
}

/// Does one after the other, until nobody is left: what a commit costs is shared by all who come before it.
pub(super) fn each<W, T, E>(batch: &mut dyn Batch<W>, mut one: impl FnMut(&W) -> Result<T, E>) -> Result<Vec<T>, E> {
    let mut done = Vec::new();
    loop {
        for want in batch.wants().iter().skip(done.len()) {
            done.push(one(want)?);
        }
        if !batch.admit() {
            return Ok(done);
        }
    }
}

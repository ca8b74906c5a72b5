//! How far long work has come, told to whoever wants to show it.

/// A step of long work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// What begins now, or is counted.
    pub what: &'a str,
    /// Number of things that are done.
    pub done: usize,
    /// Number of all things, if it's known.
    pub total: Option<usize>,
}

/// Is told each step.
pub type Tell<'a> = &'a mut dyn FnMut(Step<'_>);

/// Wants to know nothing.
pub fn untold(_: Step<'_>) {}

//! The effect of a notice from the processor on an object.
//!
//! Notices come late, more than once, and in any order. For each state of the object, the code says whether a
//! notice changes it, repeats what is known, has come too early, or contradicts it.

/// Effect of a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The notice changed something.
    Applied,
    /// The object was in that state already.
    Unchanged,
    /// Our books contradict the notice and can't be changed to match it. People have to find out who is
    /// right.
    Contradicted(String),
    /// An earlier step of the object is still missing here.
    TooEarly(String),
}

impl Learned {
    /// The `object` has a status that the notice contradicts.
    pub fn contradicted(object: &str, status: &str) -> Self {
        Self::Contradicted(format!("The {object} is {status}."))
    }

    /// The `object` has a status that comes before the one the notice is about.
    pub fn too_early(object: &str, status: &str) -> Self {
        Self::TooEarly(format!("The {object} is {status}."))
    }
}

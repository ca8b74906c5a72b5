//! What comes of being told by the acquirer what has become of an object.
//!
//! Its word comes late, more than once, and in any order; so for each state of the object it's said whether the news
//! changes it, says what is known, has come too early, or can't be true.

/// What came of the news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    /// They have changed something.
    Applied,
    /// Things were so already.
    Unchanged,
    /// Our books say otherwise and can't be changed to that. For people to find out who is right.
    Contradicted(String),
    /// What comes before it hasn't happened here yet.
    TooEarly(String),
}

impl Learned {
    /// The `object` has a status that the news don't go with.
    pub fn contradicted(object: &str, status: &str) -> Self {
        Self::Contradicted(format!("The {object} is {status}."))
    }

    /// The `object` has a status that comes before the one that the news are about.
    pub fn too_early(object: &str, status: &str) -> Self {
        Self::TooEarly(format!("The {object} is {status}."))
    }
}

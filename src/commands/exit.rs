//! How a command ends: the exit statuses, in one place.

use std::process::ExitCode;

/// Why a command ends with another exit status than 0.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// The command did what it was asked, and found something that somebody must see to.
    Found(String),
    /// The arguments, or the variables that stand for them, aren't what the command takes. Clap ends the process with the
    /// same status where it notices that itself.
    Usage(String),
    /// The command couldn't do what it was asked.
    Failed(String),
}

/// All exit statuses, with what they mean.
pub const STATUSES: [(u8, &str); 4] = [
    (0, "done, and nothing was found"),
    (1, "done, and something was found that you should see to; `health`: the service isn't well"),
    (2, "the command, or one of its options, isn't what it takes"),
    (3, "failed: it couldn't do what it was asked, or find out"),
];

impl Stop {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Found(_) => 1,
            Self::Usage(_) => 2,
            Self::Failed(_) => 3,
        }
    }

    /// The same as a value that a program returns.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }
}

/// Most errors say why something couldn't be done.
impl From<String> for Stop {
    fn from(sentence: String) -> Self {
        Self::Failed(sentence)
    }
}

impl From<&str> for Stop {
    fn from(sentence: &str) -> Self {
        Self::Failed(sentence.to_owned())
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Found(sentence) | Self::Usage(sentence) | Self::Failed(sentence)) = self;
        f.write_str(sentence)
    }
}

/// The statuses, for the end of the help.
pub fn help() -> String {
    let lines = STATUSES.map(|(status, meaning)| format!("  {status}  {meaning}"));
    format!("Exit status:\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_a_status_of_its_own_that_the_table_has() {
        let ends = [Stop::Found(String::new()), Stop::Usage(String::new()), Stop::Failed(String::new())];
        let statuses: Vec<_> = std::iter::once(0).chain(ends.iter().map(Stop::status)).collect();
        assert_eq!(statuses, STATUSES.map(|(status, _)| status));
    }
}

//! What one response used, in tokens.

/// Tokens of one response. Cached ones are part of the input, reasoning ones of the output, as upstream
/// counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Read.
    pub input: u64,
    /// Of the input, from upstream's cache.
    pub cached: u64,
    /// Written.
    pub output: u64,
    /// Of the output, spent on reasoning.
    pub reasoning: u64,
}

impl Usage {
    /// Read and written.
    pub const fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

"""The paper's ablations at toy scale."""

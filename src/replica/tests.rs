//! Tests with several nodes in one process (they follow).

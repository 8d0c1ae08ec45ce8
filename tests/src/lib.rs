//! Differential and end-to-end tests of deepfuse.

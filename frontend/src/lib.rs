//! Reads DeepSeek checkpoints and builds the plain step graph.

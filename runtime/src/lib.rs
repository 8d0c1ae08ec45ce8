//! Loads an artifact and runs steps.

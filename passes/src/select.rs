//! Selects.

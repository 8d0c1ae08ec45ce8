//! Fusion by equality saturation, kernel selection and memory planning.

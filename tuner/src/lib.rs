//! Chooses a kernel variant: records first, else the estimate.

//! A look at what a launch is about to read: for calibration.

use crate::batch::BatchSizes;
use deepfuse_artifact::plan::{Action, Arg, Buffer};

/// Is shown every action of a batch before it runs.
pub type Observer<'a> = dyn FnMut(&Look<'_>) + 'a;

/// One action of a bucket's plan, with the memory of its arguments.
#[derive(Debug)]
pub struct Look<'a> {
    pub action: &'a Action,
    pub sizes: BatchSizes,
    buffers: &'a [Buffer],
    /// By argument.
    addresses: &'a [u64],
}

impl<'a> Look<'a> {
    pub(crate) fn new(action: &'a Action, buffers: &'a [Buffer], addresses: &'a [u64], sizes: BatchSizes) -> Self {
        Self { action, sizes, buffers, addresses }
    }

    /// Bytes of an argument of a launch from its start to the end of its buffer; `None` if it lies in no buffer.
    ///
    /// What the launch writes, and what only later launches read, is not there yet.
    pub fn bytes(&self, argument: usize) -> Option<&'a [u8]> {
        let Action::Launch(launch) = self.action else { return None };
        let Arg::Buffer { index, offset } = *launch.args.get(argument)? else { return None };
        let buffer = &self.buffers[index as usize];
        let bytes = buffer.bytes * buffer.arena.units(self.sizes.symbols()) as u64 - offset;
        // SAFETY: the runtime gave the buffer at least so many bytes after this address (`program::arena_bytes`), they were zeroed when they
        // were mapped, and no worker runs while somebody looks.
        Some(unsafe { std::slice::from_raw_parts(self.addresses[argument] as *const u8, bytes as usize) })
    }
}

//! The catalog that `passes` asks: which kernel a call is, and what it costs on the target.

use deepfuse_codegen::Backend;
use deepfuse_ir::kernel::spec_of;
use deepfuse_ir::{Answer, Bucket, Call, Catalog, KernelSpec, Target};
use std::collections::HashMap;
use std::sync::Mutex;

/// Answers from a back end: a kernel costs what its cheapest variant is estimated (or was measured) to take.
pub struct BackendCatalog<'a> {
    target: &'a Target,
    backend: &'a (dyn Backend + Sync),
    costs: Mutex<HashMap<KernelSpec, Option<f64>>>,
}

impl<'a> BackendCatalog<'a> {
    pub fn new(target: &'a Target, backend: &'a (dyn Backend + Sync)) -> Self {
        Self { target, backend, costs: Mutex::default() }
    }

    fn cost(&self, spec: &KernelSpec) -> Option<f64> {
        if let Some(known) = self.costs.lock().expect("no thread panics while it holds the costs").get(spec) {
            return *known;
        }
        let cost = deepfuse_tuner::choose(spec, self.target, self.backend).map(|c| c.nanos);
        self.costs.lock().expect("no thread panics while it holds the costs").insert(spec.clone(), cost);
        cost
    }
}

impl Catalog for BackendCatalog<'_> {
    fn answer(&self, call: &Call<'_>, bucket: &Bucket) -> Answer {
        match spec_of(call, bucket) {
            Answer::Kernel { spec, .. } => match self.cost(&spec) {
                Some(nanos) => Answer::Kernel { spec, nanos },
                None => Answer::None,
            },
            other => other,
        }
    }
}

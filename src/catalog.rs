//! The catalog that `passes` asks: which kernel a call is, and what it costs on the target.

use crate::pipeline::Request;
use deepfuse_codegen::Backend;
use deepfuse_codegen::x86::X86;
use deepfuse_ir::kernel::spec_of;
use deepfuse_ir::{Answer, Bucket, Call, Catalog, KernelSpec, Target};
use deepfuse_tuner::{Basis, Records};
use std::collections::HashMap;
use std::sync::Mutex;

/// Answers from a back end and records: a kernel costs what its variant was measured or, without a record, is estimated to take.
pub struct BackendCatalog<'a> {
    target: &'a Target,
    backend: &'a (dyn Backend + Sync),
    records: Option<&'a Records>,
    costs: Mutex<HashMap<KernelSpec, Option<(f64, Basis)>>>,
}

impl<'a> BackendCatalog<'a> {
    pub fn new(target: &'a Target, backend: &'a (dyn Backend + Sync)) -> Self {
        Self { target, backend, records: None, costs: Mutex::default() }
    }

    /// Of a request's target and records.
    pub fn of(req: &'a Request) -> Self {
        Self::new(&req.target, &X86).with(req.records.as_deref())
    }

    #[must_use]
    pub fn with(self, records: Option<&'a Records>) -> Self {
        Self { records, ..self }
    }

    /// What a kernel costs, and what that rests on; `None` if the target cannot run it.
    pub fn cost(&self, spec: &KernelSpec) -> Option<(f64, Basis)> {
        if let Some(known) = self.costs.lock().expect("no thread panics while it holds the costs").get(spec) {
            return *known;
        }
        let choice = deepfuse_tuner::choose(spec, self.target, self.backend, self.records);
        let cost = choice.map(|c| (c.nanos, c.basis));
        self.costs.lock().expect("no thread panics while it holds the costs").insert(spec.clone(), cost);
        cost
    }
}

impl Catalog for BackendCatalog<'_> {
    fn answer(&self, call: &Call<'_>, bucket: &Bucket) -> Answer {
        match spec_of(call, bucket) {
            Answer::Kernel { spec, .. } => match self.cost(&spec) {
                Some((nanos, _)) => Answer::Kernel { spec, nanos },
                None => Answer::None,
            },
            other => other,
        }
    }
}

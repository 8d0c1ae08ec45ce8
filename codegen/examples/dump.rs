use deepfuse_codegen::*;
use deepfuse_ir::*;
fn main() {
    let t = x86::targets::named("x86-avx512-bf16").unwrap();
    let x = TensorType::new(DType::Bf16, [Dim::symbol(Symbol::T), Dim::fixed(2048)]);
    let w = TensorType::new(DType::Bf16, [Dim::fixed(2816), Dim::fixed(2048)]);
    let a = Attrs::new();
    let swi = std::env::args().nth(1).as_deref() == Some("swiglu");
    let op = if swi { Op::Swiglu } else { Op::Linear };
    let mut list = vec![x, w.clone()];
    if swi {
        list.push(w)
    }
    let types: Vec<Type> = list.iter().map(|t| Type::Tensor(t.clone())).collect();
    let r = op.infer(&types.iter().collect::<Vec<_>>(), &a).unwrap();
    let ops: Vec<Operand> = types
        .iter()
        .enumerate()
        .map(|(i, t)| Operand { ty: t.clone(), layout: Layout::Dense, constant: i > 0 })
        .collect();
    let Answer::Kernel { spec, .. } =
        kernel::spec_of(&Call { op, attrs: &a, operands: &ops, results: &r }, &Bucket::decode())
    else {
        panic!()
    };
    println!("{}", emit_text(&[("k".into(), *spec, Variant::default())], &t, Form::Assembly, 1).unwrap());
}

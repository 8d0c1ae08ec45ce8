use deepfuse_codegen::*; use deepfuse_ir::*;
fn main(){
 let t=x86::targets::named("x86-avx512").unwrap();
 let x=TensorType::new(DType::Bf16,[Dim::symbol(Symbol::T),Dim::fixed(1)]);
 let w=TensorType::new(DType::Bf16,[Dim::fixed(1),Dim::fixed(1)]);
 let a=Attrs::new(); let types=[Type::Tensor(x.clone()),Type::Tensor(w.clone())];
 let r=Op::Linear.infer(&types.iter().collect::<Vec<_>>(),&a).unwrap();
 let ops=[Operand{ty:x.into(),layout:Layout::Strided(vec![4,1]),constant:false},Operand{ty:w.into(),layout:Layout::Dense,constant:true}];
 let Answer::Kernel{spec,..}=kernel::spec_of(&Call{op:Op::Linear,attrs:&a,operands:&ops,results:&r},&Bucket::decode()) else {panic!()};
 println!("{}", emit_text(&[("k".into(),*spec,Variant::default())],&t,Form::Assembly,1).unwrap());
}

#![allow(clippy::unwrap_used)]

use super::*;

const SIZES: Sizes = Sizes([5, 2, 3, 4, 100]);

#[test]
fn printed_types() {
    let zero_point = Quant { zero: true, ..Quant::FP8_B128 };
    let cases = [
        (DType::F32, "f32"),
        (DType::Quant(Quant::FP8_B128), "fp8b128"),
        (DType::Quant(Quant::INT8_R), "int8r"),
        (DType::Quant(zero_point), "quant<e4m3, f32, 128x128, zero>"),
        (DType::Quant(Quant::of(Code::E2m1, ScaleType::Ue8m0, [1, 16])), "quant<e2m1, ue8m0, 1x16>"),
    ];
    for (dtype, text) in cases {
        assert_eq!(dtype.to_string(), text);
        assert_eq!(DType::from_name(text), Some(dtype).filter(|_| !text.contains('<')));
    }
    let t = TensorType {
        device: Device::Gpu(1),
        ..TensorType::new(DType::Bf16, [Dim::symbol(Symbol::T), Dim::scaled(Symbol::P, 64)])
    };
    assert_eq!(t.to_string(), "bf16[T, 64*P] on gpu1");
    let kinds = [
        (StateKind::Paged, "paged"),
        (StateKind::PagedEvery { every: 4 }, "paged/4"),
        (StateKind::Window { window: 128 }, "window 128"),
        (StateKind::Fixed { rows: 3 }, "fixed 3"),
    ];
    for (kind, text) in kinds {
        let s = StateType { kind, dtype: DType::Bf16, width: 576, device: Device::DEFAULT };
        assert_eq!(s.to_string(), format!("{text} bf16[576]"));
    }
}

#[test]
fn every_alias_has_its_name() {
    for (name, q) in Quant::ALIASES {
        assert_eq!(DType::from_name(name), Some(DType::Quant(*q)));
        assert_eq!(DType::Quant(*q).to_string(), *name);
    }
}

#[test]
fn devices_by_name() {
    for device in [Device::Cpu(0), Device::Gpu(65_535)] {
        assert_eq!(Device::from_name(&device.to_string()), Some(device));
    }
    for wrong in ["", "cpu", "gpu-1", "gpu+1", "gpu65536", "tpu0", "größe"] {
        assert_eq!(Device::from_name(wrong), None, "{wrong}");
    }
}

#[test]
fn dims_print_and_evaluate() {
    let d = Dim { constant: 3, terms: [1, 0, 64, 0, 2] };
    assert_eq!((d.to_string().as_str(), d.eval(&SIZES)), ("T+64*P+2*C+3", 5 + 192 + 200 + 3));
    assert_eq!(Dim::fixed(0).to_string(), "0");
    assert_eq!(Dim::scaled(Symbol::S, 0), Dim::fixed(0));
    assert_eq!((d.as_fixed(), Dim::from(7).as_fixed()), (None, Some(7)));
    assert_eq!(Dim { constant: u64::MAX, terms: [1; 5] }.eval(&SIZES), u64::MAX);
}

#[test]
fn bytes_with_partial_blocks() {
    let bytes = |dtype, shape: &[u64]| TensorType::new(dtype, shape.iter().map(|d| Dim::fixed(*d))).bytes(&SIZES);
    assert_eq!(bytes(DType::Bf16, &[3, 5]), 30);
    assert_eq!(bytes(DType::F32, &[]), 4);
    // kv_a of V3: 4.5 blocks of rows, 56 of columns.
    assert_eq!(bytes(DType::Quant(Quant::FP8_B128), &[576, 7168]), 576 * 7168 + 5 * 56 * 4);
    assert_eq!(bytes(DType::Quant(Quant::FP8_B128E8), &[2, 129, 1]), 2 * (129 + 2));
    // One scale a row; 4-bit codes are packed.
    assert_eq!(bytes(DType::Quant(Quant::INT8_R), &[7, 9]), 7 * 9 + 7 * 4);
    assert_eq!(bytes(DType::Quant(Quant::INT4_G32), &[3, 33]), 50 + 3 * 2 * 2);
    assert_eq!(bytes(DType::Quant(Quant::FP8_R128), &[256]), 256 + 2 * 4);
    assert_eq!(bytes(DType::Quant(Quant::FP8_R128), &[u64::MAX, u64::MAX, 2]), u64::MAX);
    let symbolic = TensorType::new(DType::F32, [Dim::symbol(Symbol::T), Dim::fixed(8)]);
    assert_eq!((symbolic.bytes(&SIZES), symbolic.elements(&SIZES), symbolic.fixed_shape()), (160, 40, None));
}

#[test]
fn rows_of_codes_carry_their_scale() {
    let row = RowLayout::of(70);
    assert_eq!(row, RowLayout { depth: 128, offsets: 128, scale: 192, bytes: 256 });
    let t = |dtype| TensorType::new(dtype, [Dim::symbol(Symbol::T), Dim::fixed(3), Dim::fixed(70)]);
    assert_eq!(t(DType::Quant(Quant::INT8_R_BF16)).value_bytes(&SIZES), 5 * 3 * 256);
    assert_eq!(t(DType::Bf16).value_bytes(&SIZES), 5 * 3 * 70 * 2);
    assert_eq!(DType::Quant(Quant::INT8_R_BF16).expressed(), DType::Bf16);
}

#[test]
fn symbols_by_name() {
    for s in Symbol::ALL {
        assert_eq!(Symbol::from_name(s.name()), Some(s));
        assert_eq!(SIZES.get(s), SIZES.0[s as usize]);
    }
    assert_eq!(Symbol::from_name("X"), None);
}

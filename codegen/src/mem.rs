//! Typed memory: elements are stored as f32, bf16, f16, i32 or i8 and used as f32 (or as an index).

use crate::dsl::*;
use crate::math;

/// Stored element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    F32,
    Bf16,
    F16,
    I32,
    /// Codes of int8 rows; strides are bytes, tails included.
    I8,
}

impl Store {
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::I8 => 1,
        }
    }
}

/// An address with the type of what lies there.
#[derive(Clone, Copy)]
pub struct Mem<'a> {
    pub base: Val<'a>,
    pub store: Store,
}

impl<'a> Mem<'a> {
    pub fn new(base: Val<'a>, store: Store) -> Self {
        assert_eq!(base.ty, PTR, "memory starts at an address");
        Self { base, store }
    }

    /// `index` elements further.
    pub fn at(self, index: Val<'a>) -> Self {
        Self { base: self.base.at(index * self.store.bytes()), ..self }
    }

    pub fn plus(self, index: u64) -> Self {
        Self { base: self.base.plus(index * self.store.bytes()), ..self }
    }

    fn align(self) -> u32 {
        self.store.bytes() as u32
    }

    fn raw(self, lanes: u32) -> Ty {
        let elem = match self.store {
            Store::F32 => Elem::F32,
            Store::Bf16 | Store::F16 => Elem::I16,
            Store::I32 => Elem::I32,
            Store::I8 => Elem::I8,
        };
        Ty::vec(elem, lanes)
    }

    fn widen(self, raw: Val<'a>) -> Val<'a> {
        match self.store {
            Store::F32 => raw,
            Store::Bf16 => math::from_bf16(raw),
            Store::F16 => math::from_f16(raw),
            Store::I32 | Store::I8 => raw.to_float(Elem::F32),
        }
    }

    fn narrow(self, v: Val<'a>) -> Val<'a> {
        match self.store {
            Store::F32 => v,
            Store::Bf16 => math::to_bf16(v),
            Store::F16 => math::to_f16(v),
            Store::I32 => v.to_int(Elem::I32),
            Store::I8 => v.to_int(Elem::I8),
        }
    }

    /// `v` as it would come back from this memory.
    pub fn round(self, v: Val<'a>) -> Val<'a> {
        self.widen(self.narrow(v))
    }

    /// One element as f32.
    pub fn get(self) -> Val<'a> {
        self.widen(self.base.load(self.raw(1), self.align()))
    }

    pub fn set(self, v: Val<'a>) {
        self.base.store(self.narrow(v), self.align());
    }

    /// One i32 element as an index.
    pub fn index(self) -> Val<'a> {
        assert_eq!(self.store, Store::I32, "an index is stored as i32");
        self.base.load(I32, 4).sext(Elem::I64)
    }

    pub fn set_index(self, v: Val<'a>) {
        assert_eq!(self.store, Store::I32, "an index is stored as i32");
        self.base.store(v.trunc(Elem::I32), 4);
    }

    /// `lanes` elements as f32, of which the first `n` are in memory and the others zero.
    pub fn get_lanes(self, lanes: u32, n: u32) -> Val<'a> {
        let ty = self.raw(lanes);
        let raw = if n >= lanes {
            self.base.load(ty, self.align())
        } else if n == 1 {
            self.base.fx().zero(ty).with_lane(0, self.base.load(self.raw(1), self.align()))
        } else {
            self.base.load_first(ty, n, self.align())
        };
        self.widen(raw)
    }

    /// Stores the first `n` lanes of `v`.
    pub fn set_lanes(self, v: Val<'a>, n: u32) {
        if n == 1 {
            // Not a matter of speed: LLVM 22 turns a one-lane masked store of truncated lanes into a store of the wide lane.
            return self.set(v.lane(0));
        }
        let raw = self.narrow(v);
        if n >= v.ty.lanes {
            self.base.store(raw, self.align());
        } else {
            self.base.store_first(raw, n, self.align());
        }
    }

    /// 16 elements.
    pub fn get16(self, n: u32) -> Val<'a> {
        self.get_lanes(16, n)
    }
}

/// Calls `body(offset, lanes)` for `0..n` in steps of 16, the last one with fewer lanes. Long rows become a loop.
pub fn by16<'a>(f: &'a Fx, n: u64, mut body: impl FnMut(Val<'a>, u32)) {
    let full = n / 16;
    if full <= 2 {
        for i in 0..full {
            body(f.i(16 * i), 16);
        }
    } else {
        f.range(f.i(0), f.i(full * 16), 16, |i| body(i, 16));
    }
    if !n.is_multiple_of(16) {
        body(f.i(full * 16), (n % 16) as u32);
    }
}

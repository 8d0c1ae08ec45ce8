//! Bytes -> AMX instruction.
//!
//! All of them have a three-byte VEX prefix of map 0F38 with W = 0 and L = 0; the prefix `pp` and the opcode name the instruction:
//!
//! | opcode | none | 66 | F3 | F2 |
//! |---|---|---|---|---|
//! | 49, memory | `ldtilecfg` | `sttilecfg` | | |
//! | 49, register | `tilerelease` | | | `tilezero` |
//! | 4B | | `tileloaddt1` | `tilestored` | `tileloadd` |
//! | 5C | | | `tdpbf16ps` | |
//! | 5E | `tdpbuud` | `tdpbusd` | `tdpbsud` | `tdpbssd` |

/// Bytes of the longest x86 instruction.
pub const MAX_LENGTH: usize = 15;

/// An instruction with its operands. Tiles are 0..8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    LoadConfig(Address),
    StoreConfig(Address),
    Release,
    Zero(u8),
    /// `tileloadd` and `tileloaddt1`, which differ in a hint to the cache only.
    Load {
        tile: u8,
        rows: Address,
        once: bool,
    },
    Store {
        tile: u8,
        rows: Address,
    },
    /// `sums += a * b`
    Dot {
        product: Product,
        sums: u8,
        a: u8,
        b: u8,
    },
}

/// What the elements of a dot product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    Bf16,
    /// Bytes; whether the left and right ones have a sign.
    Int8 {
        a_signed: bool,
        b_signed: bool,
    },
}

/// `segment:[base + (index << shift) + displacement]`; for tile rows `index << shift` is the stride instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub segment: Option<Segment>,
    pub base: Base,
    /// Number of a general register.
    pub index: Option<u8>,
    pub shift: u8,
    pub displacement: i32,
    /// Addresses have 32 bits (prefix 67).
    pub narrow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    None,
    /// Number of a general register: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    Register(u8),
    /// The next instruction.
    Next,
}

/// Segments with a base of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    Fs,
    Gs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    pub instruction: Instruction,
    /// Bytes of the instruction.
    pub length: usize,
}

/// Why bytes are no AMX instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Something else.
    Other,
    /// The bytes end within the instruction.
    Truncated,
    /// An opcode of AMX in an encoding that raises #UD.
    Invalid(&'static str),
}

impl Instruction {
    /// Mnemonic.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LoadConfig(_) => "ldtilecfg",
            Self::StoreConfig(_) => "sttilecfg",
            Self::Release => "tilerelease",
            Self::Zero(_) => "tilezero",
            Self::Load { once: false, .. } => "tileloadd",
            Self::Load { once: true, .. } => "tileloaddt1",
            Self::Store { .. } => "tilestored",
            Self::Dot { product, .. } => match product {
                Product::Bf16 => "tdpbf16ps",
                Product::Int8 { a_signed: true, b_signed: true } => "tdpbssd",
                Product::Int8 { a_signed: true, b_signed: false } => "tdpbsud",
                Product::Int8 { a_signed: false, b_signed: true } => "tdpbusd",
                Product::Int8 { a_signed: false, b_signed: false } => "tdpbuud",
            },
        }
    }
}

/// Decodes the instruction that `bytes` start with.
pub fn decode(bytes: &[u8]) -> Result<Decoded, Rejected> {
    let mut rest = Bytes { bytes: &bytes[..bytes.len().min(MAX_LENGTH)], at: 0 };
    let prefixes = Prefixes::read(&mut rest)?;
    let vex = Vex::read(&mut rest)?;
    let opcode = rest.next()?;
    if vex.map != MAP_0F38 || !matches!(opcode, 0x49 | 0x4b | 0x5c | 0x5e) {
        return Err(Rejected::Other);
    }
    let modrm = rest.next()?;
    let instruction = Operands { prefixes, vex, modrm }.instruction(opcode, &mut rest)?;
    Ok(Decoded { instruction, length: rest.at })
}

struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn peek(&self) -> Result<u8, Rejected> {
        let ended = if self.at >= MAX_LENGTH { Rejected::Other } else { Rejected::Truncated };
        self.bytes.get(self.at).copied().ok_or(ended)
    }

    fn next(&mut self) -> Result<u8, Rejected> {
        let b = self.peek()?;
        self.at += 1;
        Ok(b)
    }

    fn i32(&mut self) -> Result<i32, Rejected> {
        Ok(i32::from_le_bytes([self.next()?, self.next()?, self.next()?, self.next()?]))
    }
}

/// Legacy prefixes that may stand before VEX.
#[derive(Clone, Copy)]
struct Prefixes {
    segment: Option<Segment>,
    narrow: bool,
}

impl Prefixes {
    fn read(rest: &mut Bytes<'_>) -> Result<Self, Rejected> {
        let mut p = Self { segment: None, narrow: false };
        loop {
            match rest.peek()? {
                0x64 => p.segment = Some(Segment::Fs),
                0x65 => p.segment = Some(Segment::Gs),
                // In 64-bit mode these segments start at 0. The last segment prefix counts.
                0x26 | 0x2e | 0x36 | 0x3e => p.segment = None,
                0x67 => p.narrow = true,
                _ => return Ok(p),
            }
            rest.next()?;
        }
    }
}

const MAP_0F38: u8 = 2;

/// The three-byte VEX prefix; register extensions and `vvvv` as numbers, not inverted.
#[derive(Clone, Copy)]
struct Vex {
    r: u8,
    x: u8,
    b: u8,
    map: u8,
    w: bool,
    vvvv: u8,
    long: bool,
    pp: u8,
}

impl Vex {
    fn read(rest: &mut Bytes<'_>) -> Result<Self, Rejected> {
        if rest.next()? != 0xc4 {
            return Err(Rejected::Other);
        }
        let (first, second) = (rest.next()?, rest.next()?);
        let extension = |bit: u8| (!first >> bit & 1) << 3;
        Ok(Self {
            r: extension(7),
            x: extension(6),
            b: extension(5),
            map: first & 0x1f,
            w: second & 0x80 != 0,
            vvvv: !second >> 3 & 0xf,
            long: second & 4 != 0,
            pp: second & 3,
        })
    }
}

struct Operands {
    prefixes: Prefixes,
    vex: Vex,
    modrm: u8,
}

const NONE: u8 = 0;
const P66: u8 = 1;
const F3: u8 = 2;
const F2: u8 = 3;

impl Operands {
    fn instruction(&self, opcode: u8, rest: &mut Bytes<'_>) -> Result<Instruction, Rejected> {
        if self.vex.w || self.vex.long {
            return Err(Rejected::Invalid("VEX.W and VEX.L must be 0"));
        }
        if opcode < 0x50 && self.vex.vvvv != 0 {
            return Err(Rejected::Invalid("VEX.vvvv must be 1111b"));
        }
        let (memory, reg, rm) = (self.modrm >> 6 != 3, self.modrm >> 3 & 7, self.modrm & 7);
        match (opcode, self.vex.pp, memory) {
            (0x49, NONE, true) if reg == 0 => Ok(Instruction::LoadConfig(self.address(rest)?)),
            (0x49, P66, true) if reg == 0 => Ok(Instruction::StoreConfig(self.address(rest)?)),
            (0x49, NONE, false) if (reg, rm) == (0, 0) => Ok(Instruction::Release),
            (0x49, F2, false) if rm == 0 => Ok(Instruction::Zero(tile(reg | self.vex.r)?)),
            (0x4b, F2 | P66 | F3, true) => self.rows(rest),
            (0x5c, F3, false) => self.dot(Product::Bf16),
            (0x5e, pp, false) => {
                self.dot(Product::Int8 { a_signed: pp == F2 || pp == F3, b_signed: pp == F2 || pp == P66 })
            }
            _ => Err(Rejected::Invalid("no instruction has this opcode, prefix and ModRM byte")),
        }
    }

    fn rows(&self, rest: &mut Bytes<'_>) -> Result<Instruction, Rejected> {
        if self.modrm & 7 != 4 {
            return Err(Rejected::Invalid("tile rows need a SIB byte"));
        }
        let rows = self.address(rest)?;
        let tile = tile(self.modrm >> 3 & 7 | self.vex.r)?;
        Ok(match self.vex.pp {
            F3 => Instruction::Store { tile, rows },
            pp => Instruction::Load { tile, rows, once: pp == P66 },
        })
    }

    fn dot(&self, product: Product) -> Result<Instruction, Rejected> {
        let sums = tile(self.modrm >> 3 & 7 | self.vex.r)?;
        let a = tile(self.modrm & 7 | self.vex.b)?;
        let b = tile(self.vex.vvvv)?;
        Ok(Instruction::Dot { product, sums, a, b })
    }

    /// The memory operand: SIB byte and displacement follow the ModRM byte.
    fn address(&self, rest: &mut Bytes<'_>) -> Result<Address, Rejected> {
        let (mode, rm) = (self.modrm >> 6, self.modrm & 7);
        let (mut index, mut shift) = (None, 0);
        let low = if rm == 4 {
            let sib = rest.next()?;
            let number = sib >> 3 & 7 | self.vex.x;
            // Number 4 would be rsp, which cannot be an index.
            index = (number != 4).then_some(number);
            shift = sib >> 6;
            sib & 7
        } else {
            rm
        };
        let base = match (mode, low) {
            (0, 5) if rm == 4 => Base::None,
            (0, 5) => Base::Next,
            _ => Base::Register(low | self.vex.b),
        };
        let displacement = match (mode, base) {
            (1, _) => i32::from(rest.next()? as i8),
            (2, _) | (_, Base::None | Base::Next) => rest.i32()?,
            _ => 0,
        };
        let Prefixes { segment, narrow } = self.prefixes;
        Ok(Address { segment, base, index, shift, displacement, narrow })
    }
}

fn tile(number: u8) -> Result<u8, Rejected> {
    if number < 8 { Ok(number) } else { Err(Rejected::Invalid("there are eight tiles")) }
}

//! Variants of a kernel, the default first.
//!
//! | name | what | values |
//! |---|---|---|
//! | `rows`, `panels` | highest register tile: rows of activations x panels of 16 columns | by the number of vector registers |
//! | `group` | panels that all rows pass before the next ones; their weights (or a block of them) stay in L2 | 2 to 8 |
//! | `prefetch` | passes over the rows fetch the next group's weights meanwhile | 0, 1 |
//! | `unroll` | times the pairs (quads of int8) of K that an iteration takes by the size of its tile | 1, 2 |
//! | `block` | KiB of a group's weights that a block of K has; what is not more than two of them stays whole | 128, 256, 512 |
//! | `chunk` | rows that a block passes before the next one, their sums in memory meanwhile | 48, 96, 192 |
//!
//! With AVX-512 also:
//!
//! | name | what | values |
//! |---|---|---|
//! | `few_panels` | panels side by side, one stream of memory each, for few rows | 1, 2, 4 |
//! | `streamed` | rows that are few: memory is what they wait for; of int4 four, else two by default | 1, 2, 4 |
//!
//! With AVX-512 BF16, for bf16 activations and fp8 weights, also:
//!
//! | name | what | values |
//! |---|---|---|
//! | `few_rows` | rows up to which a line is decoded in registers by each pass, not once to memory | 6, 12, 24 |
//! | `ahead` | bytes that lines decoded in registers are fetched ahead for three rows and more; 0: the hardware alone sees the streams | 0 to 4096 |
//!
//! With AMX, for bf16 activations and bf16 or fp8 weights, and for int8 both, also:
//!
//! | name | what | values |
//! |---|---|---|
//! | `tile_rows`, `tile_panels` | tiles of sums of a block: each of 16 rows x 16 columns; 0: no tiles | 2x2, 1x4, 4x1, 0 |
//! | `depth` | columns of K (of bf16; twice as many of int8) that a block goes over before its sums go to memory | 256 to 2048 |
//! | `few` | rows from which on tiles are used | 4, 8, 16 |
//!
//! Attention over the cache:
//!
//! | name | what | values |
//! |---|---|---|
//! | `heads` | absorbed: heads of a token that a page is read once for | 8 to 64; 64, 128 where the context is split |
//! | `tokens` | expanded: tokens of a head that a block of context rows is copied once for | 64 to 256 |
//!
//! In how many parts a context is split is no variant: each number is an operation of its own, which costs choose (rule `split-context`).
//! Other kernels have one variant without names.

use super::kernels::gemm::{AHEAD, BLOCK, CHUNK, FEW_ROWS, block_of};
use super::kernels::mla::{HEADS, SPLIT_HEADS, TOKENS};
use super::kernels::shapes::STREAMED_ROWS;
use deepfuse_ir::kernel::packed_operands;
use deepfuse_ir::{DType, KernelSpec, Op, Quant, Symbol, Target, TensorType, Variant};

/// A point of the space.
#[derive(Clone, Copy)]
struct Point {
    rows: u32,
    panels: u32,
    group: u32,
    prefetch: u32,
    /// 0 where one step of an iteration fills the registers.
    unroll: u32,
    /// `None` where K is not walked in blocks of any size.
    blocks: Option<Blocks>,
    /// 0 where a register holds fewer than 16 lanes: a panel is several lines there.
    few_panels: u32,
    /// 0 like `few_panels`.
    streamed: u32,
    /// `None` for weights other than fp8.
    decoded: Option<Decoded>,
    /// `None` where the target, or a type, has no use for tiles.
    tiles: Option<TilePoint>,
}

/// How a long K is walked.
#[derive(Clone, Copy)]
struct Blocks {
    /// KiB.
    block: u32,
    chunk: u32,
}

impl Blocks {
    const DEFAULT: Self = Self { block: BLOCK, chunk: CHUNK };

    /// A block and the rows it meets share L2, 1 to 2 MiB (512 KiB to a thread at least): smaller ones leave room for more rows, larger ones move sums less
    /// often. Of a chunk's rows, a block of columns and the sums must stay in L2 too: 192 rows of 1024 columns of bf16 are 384 KiB. Blocks of fp8 are those of its
    /// scales.
    fn others(spec: &KernelSpec, matrix: &TensorType, group: u32, target: &Target) -> Vec<Self> {
        let k = matrix.shape.last().and_then(deepfuse_ir::Dim::as_fixed).unwrap_or(0);
        let scaled = matrix.dtype == DType::Quant(Quant::FP8_B128) && dot_of_bf16(spec, target);
        let column = matrix.dtype.bytes().unwrap_or(1) * u64::from(group) * 16;
        let of = |block: u32| if scaled { Some(128) } else { block_of(k, column, u64::from(block) << 10) };
        // Whole, or in blocks of the same length: the same code. Rows that are one chunk anyway: the same order.
        let blocks = [128, 512].into_iter().filter(|block| of(*block) != of(BLOCK));
        let rows = spec.bucket.typical.get(Symbol::T);
        let chunks = [48, 192].into_iter().filter(|chunk| of(BLOCK).is_some() && rows > u64::from(CHUNK.min(*chunk)));
        let of_block = blocks.map(|block| Self { block, ..Self::DEFAULT });
        of_block.chain(chunks.map(|chunk| Self { chunk, ..Self::DEFAULT })).collect()
    }
}

/// How fp8 is widened.
#[derive(Clone, Copy)]
struct Decoded {
    few_rows: u32,
    ahead: u32,
}

impl Decoded {
    const DEFAULT: Self = Self { few_rows: FEW_ROWS, ahead: AHEAD };

    /// A line decoded in registers costs a pass as much as one or two rows of products, so 6 rows may already be too many; 24 are two passes,
    /// and more are better off with memory. A block of K is 2048 bytes of a panel: with less, lines come too late where four panels of two
    /// matrices are read, with more they may leave L1 before they are used.
    fn others() -> Vec<Self> {
        let few = [6, 24].map(|few_rows| Self { few_rows, ..Self::DEFAULT });
        let ahead = [0, 1024, 4096].map(|ahead| Self { ahead, ..Self::DEFAULT });
        [&few[..], &ahead].concat()
    }
}

#[derive(Clone, Copy)]
struct TilePoint {
    rows: u32,
    panels: u32,
    depth: u32,
    few: u32,
}

impl TilePoint {
    /// 2x2: of the shapes that fit the eight registers it loads the fewest tiles for each that it computes. 512 columns of 32 rows are
    /// 32 KiB: they stay in L1 while the group's panels come from L2. With fewer than four rows memory is what limits both.
    const DEFAULT: Self = Self { rows: 2, panels: 2, depth: 512, few: 4 };

    /// What else may be best: one row of tiles loads fewer of them for 16 rows or less, one column for many rows of few panels; deeper
    /// blocks move sums less often; AVX-512 does without tile loads and stores.
    fn others() -> Vec<Self> {
        let d = Self::DEFAULT;
        let shapes = [(1, 4), (4, 1), (0, 0)].map(|(rows, panels)| Self { rows, panels, ..d });
        let depths = [256, 1024, 2048].map(|depth| Self { depth, ..d });
        let few = [8, 16].map(|few| Self { few, ..d });
        [&shapes[..], &depths, &few].concat()
    }
}

impl Point {
    fn variant(self) -> Variant {
        let mut named =
            vec![("rows", self.rows), ("panels", self.panels), ("group", self.group), ("prefetch", self.prefetch)];
        if self.unroll > 0 {
            named.push(("unroll", self.unroll));
        }
        if let Some(b) = self.blocks {
            named.extend([("block", b.block), ("chunk", b.chunk)]);
        }
        if self.few_panels > 0 {
            named.extend([("few_panels", self.few_panels), ("streamed", self.streamed)]);
        }
        if let Some(d) = self.decoded {
            named.extend([("few_rows", d.few_rows), ("ahead", d.ahead)]);
        }
        if let Some(t) = self.tiles {
            named.extend([("tile_rows", t.rows), ("tile_panels", t.panels), ("depth", t.depth), ("few", t.few)]);
        }
        Variant::of(&named)
    }
}

/// What a worker keeps for a row of attention is a few KiB (queries, scores, sums): 64 heads, and 256 tokens of a head, are what L2 holds beside a block
/// of context. Fewer share a page among fewer rows, but give small batches more work items. A split context gives enough of them, and leaves parts to
/// merge for every group.
fn of_attention(op: Op, heads: Option<u64>) -> Option<Vec<Variant>> {
    let (name, default, others) = match op {
        Op::MlaAbsorbed => ("heads", HEADS, &[8, 32, 64][..]),
        Op::MlaAbsorbedSplit => ("heads", SPLIT_HEADS, &[64][..]),
        Op::MlaExpanded => ("tokens", TOKENS, &[64, 256][..]),
        _ => return None,
    };
    // A model of fewer heads has them in one group with any of the values beyond.
    let differs = |v: &u32| name == "tokens" || heads.is_none_or(|n| u64::from(*v.min(&default)) < n);
    let values = std::iter::once(default).chain(others.iter().copied().filter(differs));
    Some(values.map(|v| Variant::of(&[(name, v)])).collect())
}

pub fn variants(spec: &KernelSpec, target: &Target) -> Vec<Variant> {
    let heads = spec.inputs.first().and_then(deepfuse_ir::Operand::tensor).and_then(|t| t.shape.get(1)?.as_fixed());
    if let Some(of_attention) = of_attention(spec.op, heads) {
        return of_attention;
    }
    let Some(first) = packed_operands(spec.op).first().filter(|_| spec.op != Op::ExpertLinear) else {
        return vec![Variant::default()];
    };
    let default = default_point(spec, *first, target);
    let mut points = vec![default];
    let mut add = |p: Point| points.push(p);
    let int4 = spec.inputs[*first].tensor().is_some_and(|t| t.dtype == DType::Quant(Quant::INT4_G32));
    if default.tiles.is_some() {
        for tiles in TilePoint::others() {
            add(Point { tiles: Some(tiles), ..default });
        }
    } else if target.lanes == 16 && !int4 {
        // Fewer rows leave registers for more panels: better where the rows of an expert are few.
        for (rows, panels) in [(12, 2), (8, 2)] {
            if (rows, panels) != (default.rows, default.panels) {
                add(Point { rows, panels, ..default });
            }
        }
    }
    for group in [2, 4, 8] {
        if group != default.group {
            add(Point { group, ..default });
        }
    }
    add(Point { prefetch: 0, ..default });
    if default.unroll > 0 {
        add(Point { unroll: 2, ..default });
    }
    let matrix = spec.inputs[*first].tensor();
    for blocks in default.blocks.and(matrix).map_or(vec![], |m| Blocks::others(spec, m, default.group, target)) {
        add(Point { blocks: Some(blocks), ..default });
    }
    for few_panels in [1, 2, 4] {
        if default.few_panels > 0 && few_panels != default.few_panels {
            add(Point { few_panels, ..default });
        }
    }
    // Four rows of bf16 compute about as long as they wait; more are a pass of their own height.
    for streamed in [1, 2, 4] {
        if default.streamed > 0 && streamed != default.streamed {
            add(Point { streamed, ..default });
        }
    }
    for decoded in default.decoded.map_or(vec![], |_| Decoded::others()) {
        add(Point { decoded: Some(decoded), ..default });
    }
    points.into_iter().map(Point::variant).collect()
}

fn default_point(spec: &KernelSpec, matrix: usize, target: &Target) -> Point {
    let types = |i: usize| spec.inputs.get(i).and_then(deepfuse_ir::Operand::tensor);
    let weight = types(matrix).map_or(DType::F32, |t| t.dtype);
    let dot = matches!(weight, DType::Bf16 | DType::Quant(_)) && dot_of_bf16(spec, target);
    // Sums, one line of weights for each panel and one broadcast must fit the vector registers: 32 of 16 lanes with AVX-512,
    // 16 of 8 with AVX2 (a panel takes two), 16 of 4 below (a panel takes four).
    // int4 has two sums, of codes and of groups.
    let (rows, panels) = match (target.lanes, dot, weight) {
        (16, _, DType::Quant(Quant::INT8_R)) if target.has("avx512vnni") => (6, 4),
        (16, _, DType::Quant(Quant::INT4_G32)) if target.has("avx512vnni") => (6, 2),
        (_, _, DType::Quant(Quant::INT8_R | Quant::INT4_G32)) => (1, 1),
        (16, true, _) => (6, 4),
        (16, false, DType::F32) => (6, 2),
        (16, false, _) => (8, 2),
        (8, _, DType::F32) => (2, 1),
        (8, ..) => (4, 1),
        _ => (2, 1),
    };
    // A router has few columns, and its kernel configures no tiles.
    let int8 = weight == DType::Quant(Quant::INT8_R) && target.has("amx-int8");
    let tiles = (dot && target.has("amx-bf16") || int8) && spec.op != Op::Route;
    let tiles = tiles.then_some(TilePoint::DEFAULT);
    // Four streams of short panels end before the hardware has seen them: of int4 22 against 28 GB/s of one thread, of the heads' matrices, 128 columns of
    // bf16, 28 % less than one stream that goes on from panel to panel; of 512 columns as much.
    let panel = types(matrix).and_then(|t| Some(16 * t.shape.last()?.as_fixed()? * t.dtype.bytes().unwrap_or(1)));
    let few_panels = match weight {
        _ if target.lanes != 16 => 0,
        DType::Quant(Quant::INT4_G32) => 1,
        _ if panel.is_some_and(|bytes| bytes <= SHORT_PANEL) => 1,
        _ => 4,
    };
    let streamed = match weight {
        _ if few_panels == 0 => 0,
        DType::Quant(Quant::INT4_G32) => 2 * STREAMED_ROWS,
        _ => STREAMED_ROWS,
    };
    let decoded = (dot && weight == DType::Quant(Quant::FP8_B128)).then_some(Decoded::DEFAULT);
    // Tiles of activations are loaded again for every two panels: from L1 but for the first two of a group.
    let group = if tiles.is_some() { 8 } else { 4 };
    let codes = matches!(weight, DType::Quant(Quant::INT8_R | Quant::INT4_G32));
    let wide = target.lanes == 16 && tiles.is_none();
    let blocks = (wide && !codes).then_some(Blocks::DEFAULT);
    let unroll = u32::from(wide && weight != DType::Quant(Quant::INT4_G32));
    Point { rows, panels, group, prefetch: 1, unroll, blocks, few_panels, streamed, decoded, tiles }
}

/// Bytes of a panel that is over before the hardware fetches it ahead.
const SHORT_PANEL: u64 = 8 << 10;

/// Whether activations are bf16, and there is an instruction for their products.
fn dot_of_bf16(spec: &KernelSpec, target: &Target) -> bool {
    let activations = spec.inputs.first().and_then(deepfuse_ir::Operand::tensor);
    target.has("avx512bf16") && activations.is_some_and(|t| t.dtype == DType::Bf16)
}

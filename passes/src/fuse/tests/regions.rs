//! Regions of models at random sizes, in text form: each rule fires in some of them.

use deepfuse_ir::Quant;

/// splitmix64.
pub(crate) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

const BATCH: &str = "%pos: i32[T], %seq: i32[T], %pages: i32[P], %page_start: i32[S+1],";

/// A region of a model at random sizes, in text form.
pub(crate) fn region(seed: u64) -> String {
    let mut r = Random(seed);
    let act = r.of(&["f32", "bf16"]);
    let w = r.of(&["f32", "bf16", "fp8b128"]);
    let text = match r.below(8) {
        0 => attention(&mut r, act, w),
        1 => absorbed(&mut r, act, w),
        2 => cache(&mut r, act, w),
        3 => router(&mut r, act),
        4 => experts(&mut r, act, w),
        5 => queries(&mut r, act, w),
        6 => chains(&mut r, act, w),
        _ => mlp(&mut r, act, w),
    };
    let (rows, codes) = (r.below(3) == 0, r.below(4) == 0);
    let text = if codes { of_codes(&text, r.of(&[Quant::INT8_R, Quant::INT4_G32])) } else { text };
    if rows { of_rows(&text) } else { text }
}

/// The region with quantized projections.
fn of_codes(text: &str, q: Quant) -> String {
    crate::quantize(deepfuse_ir::text::parse(text).unwrap(), q, crate::Rounding::Nearest).unwrap().0.to_string()
}

/// The region with its results per token selected for the rows that want logits.
fn of_rows(text: &str) -> String {
    let graph = deepfuse_ir::text::parse(text).unwrap();
    let (head, results) = text.rsplit_once("return ").unwrap();
    let mut text = head.replacen('(', "(%rows: i32[R], ", 1);
    let mut names = vec![];
    for (i, (name, v)) in results.trim_end_matches(['}', '\n', ' ']).split(", ").zip(&graph.outputs).enumerate() {
        let ty = graph.ty(*v).to_string();
        if ty.contains("[T") {
            text = format!("{text}%rows{i} = gather_rows {name}, %rows : {}\n", ty.replace("[T", "[R"));
            names.push(format!("%rows{i}"));
        } else {
            names.push(name.to_owned());
        }
    }
    let types = graph.outputs.iter().map(|v| graph.ty(*v).to_string());
    let (old, new) = (types.clone().collect::<Vec<_>>(), types.map(|t| t.replace("[T", "[R")).collect::<Vec<_>>());
    let text = text.replacen(&format!("-> {}", old.join(", ")), &format!("-> {}", new.join(", ")), 1);
    format!("{text}return {}\n}}", names.join(", "))
}

fn attention(r: &mut Random, act: &str, w: &str) -> String {
    let (n, d, v, l, rot) = (r.of(&[1, 3]), r.of(&[2, 6]), r.of(&[4, 5]), r.of(&[8, 12]), r.of(&[2, 4]));
    let (row, each) = (l + rot, d + v);
    format!(
        "graph @attention(%qn: {act}[T, {n}, {d}], %qr: {act}[T, {n}, {rot}], {BATCH}
          weight %kv_b: {w}[{rows}, {l}] @ \"kv_b\", state @kv: paged {act}[{row}]) -> {act}[T, {n}, {v}] {{
          %0 = read @kv, %pages : {act}[64*P, {row}]
          %1 = slice %0 {{axis = 1, start = 0, len = {l}}} : {act}[64*P, {l}]
          %2 = slice %0 {{axis = 1, start = {l}, len = {rot}}} : {act}[64*P, {rot}]
          %3 = linear %1, %kv_b : {act}[64*P, {rows}]
          %4 = reshape %3 {{shape = [64*P, {n}, {each}]}} : {act}[64*P, {n}, {each}]
          %5 = slice %4 {{axis = 2, start = 0, len = {d}}} : {act}[64*P, {n}, {d}]
          %6 = slice %4 {{axis = 2, start = {d}, len = {v}}} : {act}[64*P, {n}, {v}]
          %7 = einsum %qn, %5 {{eq = \"tnd,xnd->tnx\"}} : {act}[T, {n}, 64*P]
          {scores}
          %12 = einsum %11, %6 {{eq = \"tnx,xnv->tnv\"}} : {act}[T, {n}, {v}]
          return %12
        }}",
        rows = n * each,
        scores = scores(act, n),
    )
}

fn scores(act: &str, n: u64) -> String {
    format!(
        "%a = einsum %qr, %2 {{eq = \"tnr,xr->tnx\"}} : {act}[T, {n}, 64*P]
          %8 = add %7, %a : {act}[T, {n}, 64*P]
          %9 = scale %8 {{value = 0.37}} : {act}[T, {n}, 64*P]
          %10 = causal_mask %9, %pos, %seq, %page_start : {act}[T, {n}, 64*P]
          %11 = softmax %10 : {act}[T, {n}, 64*P]"
    )
}

fn absorbed(r: &mut Random, act: &str, w: &str) -> String {
    let (n, d, v, l, rot) = (r.of(&[1, 3]), r.of(&[2, 6]), r.of(&[4, 5]), r.of(&[8, 12]), r.of(&[2, 4]));
    let (row, each) = (l + rot, d + v);
    let wide = if w == "fp8b128" { "f32" } else { w };
    format!(
        "graph @absorbed(%qn: {act}[T, {n}, {d}], %qr: {act}[T, {n}, {rot}], {BATCH}
          weight %kv_b: {w}[{rows}, {l}] @ \"kv_b\", state @kv: paged {act}[{row}]) -> {act}[T, {n}, {v}] {{
          %0 = read @kv, %pages : {act}[64*P, {row}]
          %1 = slice %0 {{axis = 1, start = 0, len = {l}}} : {act}[64*P, {l}]
          %2 = slice %0 {{axis = 1, start = {l}, len = {rot}}} : {act}[64*P, {rot}]
          %3 = head_rows %kv_b {{heads = {n}, start = 0, len = {d}}} : {wide}[{n}, {d}, {l}]
          %4 = permute %3 {{axes = [0, 2, 1]}} : {wide}[{n}, {l}, {d}]
          %5 = head_rows %kv_b {{heads = {n}, start = {d}, len = {v}}} : {wide}[{n}, {v}, {l}]
          %6 = head_linear %qn, %4 : {act}[T, {n}, {l}]
          %7 = einsum %6, %1 {{eq = \"tnl,xl->tnx\"}} : {act}[T, {n}, 64*P]
          {scores}
          %12 = einsum %11, %1 {{eq = \"tnx,xl->tnl\"}} : {act}[T, {n}, {l}]
          %13 = head_linear %12, %5 : {act}[T, {n}, {v}]
          return %13
        }}",
        rows = n * each,
        scores = scores(act, n),
    )
}

/// From token ids to queries as the absorbed form wants them, through every operation that only moves elements.
fn queries(r: &mut Random, act: &str, w: &str) -> String {
    let (h, n, d, rot, l) = (r.of(&[8, 20]), r.of(&[2, 3]), r.of(&[4, 6]), r.of(&[2, 4]), r.of(&[3, 8]));
    let each = d + rot;
    let x = "attn_factor = 1.1, beta_fast = 32.0, beta_slow = 1.0, factor = 40.0, original = 64.0, theta = 10000.0";
    format!(
        "graph @queries(%ids: i32[T], %pos: i32[T], weight %table: {act}[64, {h}] @ \"table\",
          weight %q: {w}[{rows}, {h}] @ \"q\", weight %gain: f32[{h}] @ \"gain\", weight %heads: {act}[{n}, {l}, {d}] @ \"heads\")
          -> {act}[T, {n}, {width}] {{
          %0 = embed %ids, %table : {act}[T, {h}]
          %g = mul %0, %gain : {act}[T, {h}]
          %1 = linear %g, %q : {act}[T, {rows}]
          %2 = reshape %1 {{shape = [T, {n}, {each}]}} : {act}[T, {n}, {each}]
          %3 = slice %2 {{axis = 2, start = 0, len = {d}}} : {act}[T, {n}, {d}]
          %4 = slice %2 {{axis = 2, start = {d}, len = {rot}}} : {act}[T, {n}, {rot}]
          %5 = rope %4, %pos {{{x}}} : {act}[T, {n}, {rot}]
          %6 = head_linear %3, %heads : {act}[T, {n}, {l}]
          %7 = concat %6, %5 {{axis = 2}} : {act}[T, {n}, {width}]
          %8 = permute %7 {{axes = [0, 2, 1]}} : {act}[T, {width}, {n}]
          %9 = silu %8 : {act}[T, {width}, {n}]
          %10 = permute %9 {{axes = [0, 2, 1]}} : {act}[T, {n}, {width}]
          return %10
        }}",
        rows = n * each,
        width = l + rot,
    )
}

/// Chains that rewrites leave behind and `canonicalize` would have removed; scales in front of and behind what they can pass.
fn chains(r: &mut Random, act: &str, w: &str) -> String {
    let (h, n, k) = (r.of(&[8, 20]), r.of(&[4, 128]), r.of(&[1, 3]));
    let kept = n + 2;
    format!(
        "graph @chains(%x: {act}[T, {h}], %c: {act}[64*P, {h}], %y: {act}[T, {k}, {h}], %p: {act}[T, {k}], %z: {act}[T, {n}],
          weight %w: {w}[{kept}, {h}] @ \"w\") -> {act}[T, {n}], {act}[T, 64*P], {act}[T, {h}], {act}[T, 2, 2], {act}[T, {n}] {{
          %0 = scale %x {{value = 0.5}} : {act}[T, {h}]
          %1 = scale %0 {{value = 2.0}} : {act}[T, {h}]
          %2 = linear %1, %w : {act}[T, {kept}]
          %3 = slice %2 {{axis = 1, start = 0, len = {n}}} : {act}[T, {n}]
          %4 = linear %x, %w : {act}[T, {kept}]
          %5 = scale %4 {{value = 0.37}} : {act}[T, {kept}]
          %6 = slice %5 {{axis = 1, start = 2, len = {n}}} : {act}[T, {n}]
          %7 = add %3, %6 : {act}[T, {n}]
          %8 = einsum %x, %c {{eq = \"th,xh->tx\"}} : {act}[T, 64*P]
          %9 = scale %8 {{value = 0.37}} : {act}[T, 64*P]
          %10 = combine %y, %p : {act}[T, {h}]
          %11 = scale %10 {{value = 2.5}} : {act}[T, {h}]
          %12 = slice %x {{axis = 1, start = 1, len = 6}} : {act}[T, 6]
          %13 = slice %12 {{axis = 1, start = 1, len = 4}} : {act}[T, 4]
          %14 = reshape %13 {{shape = [T, 4, 1]}} : {act}[T, 4, 1]
          %15 = reshape %14 {{shape = [T, 2, 2]}} : {act}[T, 2, 2]
          %16 = slice %x {{axis = 1, start = 0, len = 4}} : {act}[T, 4]
          %17 = concat %16, %z {{axis = 1}} : {act}[T, {joined}]
          %18 = slice %17 {{axis = 1, start = 4, len = {n}}} : {act}[T, {n}]
          %19 = slice %17 {{axis = 1, start = 0, len = 4}} : {act}[T, 4]
          %20 = convert %19 {{dtype = f32}} : f32[T, 4]
          %21 = convert %20 {{dtype = {act}}} : {act}[T, 4]
          %22 = concat %21, %18 {{axis = 1}} : {act}[T, {joined}]
          %23 = slice %22 {{axis = 1, start = 4, len = {n}}} : {act}[T, {n}]
          return %7, %9, %11, %15, %23
        }}",
        joined = n + 4,
    )
}

fn cache(r: &mut Random, act: &str, w: &str) -> String {
    let (h, q, l, rot) = (r.of(&[8, 20]), r.of(&[6, 128]), r.of(&[8, 12]), r.of(&[2, 4]));
    let row = l + rot;
    let x = "attn_factor = 1.1, beta_fast = 32.0, beta_slow = 1.0, factor = 40.0, original = 64.0, theta = 10000.0";
    format!(
        "graph @cache(%x: {act}[T, {h}], %d: {act}[T, {h}], {BATCH}
          weight %q_a: {w}[{q}, {h}] @ \"q_a\", weight %kv_a: {w}[{row}, {h}] @ \"kv_a\",
          weight %g: f32[{h}] @ \"g\", weight %gain: bf16[{l}] @ \"gain\",
          weight %q_norm: bf16[{q}] @ \"q_norm\", weight %q_b: {w}[7, {q}] @ \"q_b\",
          state @kv: paged {act}[{row}]) -> {act}[T, 7], {act}[T, {h}], {act}[64*P, {row}] {{
          %s = add %x, %d : {act}[T, {h}]
          %0 = rms_norm %s, %g {{eps = 1e-5}} : {act}[T, {h}]
          %1 = linear %0, %q_a : {act}[T, {q}]
          %2 = linear %0, %kv_a : {act}[T, {row}]
          %3 = slice %2 {{axis = 1, start = 0, len = {l}}} : {act}[T, {l}]
          %4 = rms_norm %3, %gain {{eps = 1e-6}} : {act}[T, {l}]
          %5 = slice %2 {{axis = 1, start = {l}, len = {rot}}} : {act}[T, {rot}]
          %6 = rope %5, %pos {{{x}}} : {act}[T, {rot}]
          %7 = concat %4, %6 {{axis = 1}} : {act}[T, {row}]
          %8 = write @kv, %7, %pos, %seq, %pages, %page_start : paged {act}[{row}]
          %9 = read %8, %pages : {act}[64*P, {row}]
          %10 = rms_norm %1, %q_norm {{eps = 1e-6}} : {act}[T, {q}]
          %11 = linear %10, %q_b : {act}[T, 7]
          return %11, %s, %9
        }}"
    )
}

fn router(r: &mut Random, act: &str) -> String {
    let (h, groups, size, mut k) = (r.of(&[5, 16]), r.of(&[2, 4]), r.of(&[2, 3]), r.of(&[1, 2]));
    let (e, keep) = (groups * size, r.of(&[1, 2]));
    let (by, fill, scoring) = (r.of(&["max", "top2"]), r.of(&["zero", "neg_inf"]), r.of(&["softmax", "sigmoid"]));
    let bias = scoring == "sigmoid";
    let mut text = format!(
        "graph @router(%x: {act}[T, {h}], weight %w: f32[{e}, {h}] @ \"w\", weight %b: f32[{e}] @ \"b\")
          -> RESULTS {{\n"
    );
    let mut line = |s: String| {
        text.push_str(&s);
        text.push('\n');
    };
    let mut x = "%x";
    if act == "bf16" {
        line(format!("%c = convert %x {{dtype = f32}} : f32[T, {h}]"));
        x = "%c";
    }
    line(format!("%l = linear {x}, %w : f32[T, {e}]"));
    line(format!("%s = {scoring} %l : f32[T, {e}]"));
    let mut choice = "%s";
    if bias {
        line(format!("%t = add %s, %b : f32[T, {e}]"));
        choice = "%t";
    }
    if r.below(2) == 0 {
        line(format!(
            "%u = group_limit {choice} {{by = {by}, fill = {fill}, groups = {groups}, keep = {keep}}} : f32[T, {e}]"
        ));
        choice = "%u";
    }
    line(format!("%v, %i = top_k {choice} {{k = {k}}} : f32[T, {k}], i32[T, {k}]"));
    line(format!("%g = gather %s, %i : f32[T, {k}]"));
    let mut weights = "%g";
    if r.below(2) == 0 {
        line(format!("%n = normalize %g {{eps = 1e-20}} : f32[T, {k}]"));
        weights = "%n";
    }
    if r.below(2) == 0 {
        line(format!("%m = scale {weights} {{value = 2.5}} : f32[T, {k}]"));
        weights = "%m";
    }
    let mut ids = "%i";
    if r.below(2) == 0 {
        line(format!("%ids = extend %i {{count = 2, start = {e}, step = 1}} : i32[T, {}]", k + 2));
        line(format!("%more = extend {weights} {{count = 2, start = 1, step = 0}} : f32[T, {}]", k + 2));
        (ids, weights, k) = ("%ids", "%more", k + 2);
    }
    line(format!("return {ids}, {weights}\n}}"));
    text.replace("RESULTS", &format!("i32[T, {k}], f32[T, {k}]"))
}

fn experts(r: &mut Random, act: &str, w: &str) -> String {
    let (h, i, e, k, n) = (r.of(&[5, 16]), r.of(&[3, 8]), r.of(&[64, 65]), r.of(&[1, 3]), r.of(&[1, 2]));
    let wide = n * i;
    format!(
        "graph @experts(%x: {act}[T, {h}], %ids: i32[T, {k}], %p: f32[T, {k}],
          weight %gate: {w}[{e}, {i}, {h}] @ \"e.{{0..{e}}}.gate\", weight %up: {w}[{e}, {i}, {h}] @ \"e.{{0..{e}}}.up\",
          weight %down: {w}[{e}, {h}, {i}] @ \"e.{{0..{e}}}.down\",
          weight %sg: {w}[{wide}, {h}] @ \"s.gate\", weight %su: {w}[{wide}, {h}] @ \"s.up\", weight %sd: {w}[{h}, {wide}] @ \"s.down\")
          -> {act}[T, {h}] {{
          %0 = expert_linear %x, %ids, %gate : {act}[T, {k}, {i}]
          %1 = silu %0 : {act}[T, {k}, {i}]
          %2 = expert_linear %x, %ids, %up : {act}[T, {k}, {i}]
          %3 = mul %1, %2 : {act}[T, {k}, {i}]
          %4 = expert_linear %3, %ids, %down : {act}[T, {k}, {h}]
          %5 = combine %4, %p : {act}[T, {h}]
          {shared}
        }}",
        shared = shared(r, act, h, wide),
    )
}

/// A shared expert beside the routed ones, or none.
fn shared(r: &mut Random, act: &str, h: u64, wide: u64) -> String {
    if r.below(3) == 0 {
        return "return %5".into();
    }
    format!(
        "%6 = linear %x, %sg : {act}[T, {wide}]
          %7 = silu %6 : {act}[T, {wide}]
          %8 = linear %x, %su : {act}[T, {wide}]
          %9 = mul %7, %8 : {act}[T, {wide}]
          %10 = linear %9, %sd : {act}[T, {h}]
          %11 = add %5, %10 : {act}[T, {h}]
          return %11"
    )
}

pub fn mlp(r: &mut Random, act: &str, w: &str) -> String {
    let (h, i) = (r.of(&[5, 16, 130]), r.of(&[3, 8, 128]));
    format!(
        "graph @mlp(%x: {act}[T, {h}], weight %gate: {w}[{i}, {h}] @ \"gate\", weight %up: {w}[{i}, {h}] @ \"up\",
          weight %down: {w}[{h}, {i}] @ \"down\") -> {act}[T, {h}] {{
          %0 = linear %x, %gate : {act}[T, {i}]
          %1 = silu %0 : {act}[T, {i}]
          %2 = linear %x, %up : {act}[T, {i}]
          %3 = mul %1, %2 : {act}[T, {i}]
          %4 = linear %3, %down : {act}[T, {h}]
          return %4
        }}"
    )
}

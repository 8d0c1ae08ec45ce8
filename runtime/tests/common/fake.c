// A model whose logits are a hash of everything that a token may see: any mistake in paging, batching or copying changes them.
// Linked without libc. Arguments: T, S, P, R, C, then pointers; see the plan in mod.rs.
typedef unsigned long long u64;
typedef unsigned int u32;
typedef int i32;
#define VOCAB 320

// x[t] = table[ids[t]]; two phases, the second one adds the position, so that a missing barrier shows.
// args: ids, pos, table i64 [V], x i64 [T]
void embed(const u64 *a, u32 phase, u32 worker, u32 workers) {
    const i32 *ids = (const i32 *)a[5], *pos = (const i32 *)a[6];
    const u64 *table = (const u64 *)a[7];
    u64 *x = (u64 *)a[8];
    for (u64 t = 0; t < a[0]; t++) {
        // Different workers take a token in the two phases.
        if (phase == 0 && t % workers == worker) x[t * 8] = table[ids[t]];
        if (phase == 1 && (t + 1) % workers == worker) x[t * 8] += 1000003ull * (u64)pos[t];
    }
}

// state[row(t)] = x[t]; args: x, pos, seq, pages, page_start, state i64 [64 pages, 2]
void write(const u64 *a, u32 phase, u32 worker, u32 workers) {
    const u64 *x = (const u64 *)a[5];
    const i32 *pos = (const i32 *)a[6], *seq = (const i32 *)a[7], *pages = (const i32 *)a[8], *start = (const i32 *)a[9];
    u64 *state = (u64 *)a[10];
    (void)phase;
    for (u64 t = worker; t < a[0]; t += workers) {
        u64 row = (u64)pages[start[seq[t]] + pos[t] / 64] * 64 + pos[t] % 64;
        state[row * 2] = x[t * 8];
        state[row * 2 + 1] = ~x[t * 8];
    }
}

// As write, but first tiles are used, which the last worker did not configure.
void faulty(const u64 *a, u32 phase, u32 worker, u32 workers) {
    static const unsigned char config[64] __attribute__((aligned(64))) = {1, [16] = 64, [48] = 16};
    if (worker + 1 < workers) __asm__ volatile(".byte 0xc4, 0xe2, 0x78, 0x49, 0x00" ::"a"(config) : "memory"); // ldtilecfg [rax]
    __asm__ volatile(".byte 0xc4, 0xe2, 0x7b, 0x49, 0xc0"); // tilezero tmm0
    __asm__ volatile(".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0"); // tilerelease
    write(a, phase, worker, workers);
}

// logits[r, v] = hash of the rows 0..=pos of the token's sequence, and v; args: rows, pos, seq, pages, page_start, state, logits
static void hash(const u64 *a, u32 worker, u32 workers, u64 salt) {
    const i32 *rows = (const i32 *)a[5], *pos = (const i32 *)a[6], *seq = (const i32 *)a[7], *pages = (const i32 *)a[8],
              *start = (const i32 *)a[9];
    const u64 *state = (const u64 *)a[10];
    float *logits = (float *)a[11];
    for (u64 r = worker; r < a[3]; r += workers) {
        i32 t = rows[r];
        u64 h = salt;
        for (i32 p = 0; p <= pos[t]; p++) {
            u64 row = (u64)pages[start[seq[t]] + p / 64] * 64 + p % 64;
            h = (h ^ state[row * 2]) * 0x100000001b3ull;
            h ^= h >> 29;
            if (state[row * 2 + 1] != ~state[row * 2]) h = 0; // a row that was never written, or copied in part
        }
        for (u64 v = 0; v < VOCAB; v++) {
            u64 x = (h + v) * 0x9e3779b97f4a7c15ull;
            logits[r * VOCAB + v] = (float)(x >> 40) / 16777216.0f;
        }
    }
}

void head(const u64 *a, u32 phase, u32 worker, u32 workers) {
    (void)phase;
    hash(a, worker, workers, 0);
}

// Of the bucket for long prompts: the same.
void head_long(const u64 *a, u32 phase, u32 worker, u32 workers) {
    (void)phase;
    hash(a, worker, workers, 0);
}

// Finishes the product [q, k, v]: bias, LoRA, norm over heads, rotation; q goes on, k and v go to the cache.

#define NO_SLOT 0xffffffffu

struct QkvArgs {
    const u16* y;         // [rows, y_stride]
    const u16* delta;     // like y: what LoRA adds, or null
    const float* bias;    // [(heads + 2 kv_heads) * d] or null
    const float* q_norm;  // [d] or null
    const float* k_norm;  // [d] or null
    const float* rope;    // [positions, d]: d/2 cosines, d/2 sines
    const u32* positions;
    const u32* slots;
    u16* q;        // [rows, q_stride]
    u16* k_cache;  // [blocks, kv_heads, block_size, d_padded]
    u16* v_cache;
    u32 y_stride;
    u32 q_stride;
    u32 heads;
    u32 kv_heads;
    u32 d;
    u32 d_padded;
    u32 block_size;
    float eps;
    u32 rows;
    u32 tiles;  // for `qkv_lora`: as many as there may be
    Lora lora;
};

#define MOST_HEAD 256

// Which head of which part a block or warp makes.
struct Head {
    u32 part;  // q, k, v
    u32 own;   // number among the part's heads

    DEVICE Head(const QkvArgs& args, u32 head) {
        part = head < args.heads ? 0 : head < args.heads + args.kv_heads ? 1 : 2;
        own = part == 0 ? head : part == 1 ? head - args.heads : head - args.heads - args.kv_heads;
    }

    // Where a row of it goes; null where nothing is kept.
    DEVICE u16* place(const QkvArgs& args, u32 row, u32 slot) const {
        if (part == 0) return args.q + (u64)row * args.q_stride + own * args.d;
        if (slot == NO_SLOT) return 0;
        u64 block = slot / args.block_size, offset = slot % args.block_size;
        u64 at = ((block * args.kv_heads + own) * args.block_size + offset) * args.d_padded;
        return (part == 1 ? args.k_cache : args.v_cache) + at;
    }
};

// A warp finishes a row of a head, whose element i is `at(i)`.
template <typename At>
DEVICE void finish_row(const QkvArgs& args, const Head& head, u32 row, u32 position, u32 slot, At at) {
    const u32 lane = threadIdx.x % 32, half = args.d / 2;
    u16* out = head.place(args, row, slot);
    const float* norm = head.part == 0 ? args.q_norm : head.part == 1 ? args.k_norm : 0;
    float factor = 1.0f;
    if (norm) {
        float sum = 0.0f;
        for (u32 i = lane; i < args.d; i += 32) sum += at(i) * at(i);
        factor = 1.0f / sqrtf(warp_sum(sum) / (float)args.d + args.eps);
    }
    if (!out) return;
    const float* angles = args.rope + (u64)position * args.d;
    for (u32 i = lane; i < half; i += 32) {
        float a = at(i), b = at(i + half), c = 1.0f, s = 0.0f;
        if (head.part != 2) c = angles[i], s = angles[i + half];
        if (norm) a *= factor * norm[i], b *= factor * norm[i + half];
        out[i] = to_bf16(a * c - b * s);
        out[i + half] = to_bf16(b * c + a * s);
    }
    // Attention reads whole groups of eight.
    if (head.part != 0 && args.d + lane < args.d_padded) out[args.d + lane] = 0;
}

// Grid: heads + 2 kv heads, rows / 4. A warp makes a row of a head.
KERNEL(128, 1) qkv(const QkvArgs args) {
    let_dependents_start();
    wait_for_primary();
    const u32 row = blockIdx.y * 4 + threadIdx.x / 32, first = blockIdx.x * args.d;
    if (row >= args.rows) return;
    const u16* y = args.y + (u64)row * args.y_stride + first;
    const u16* delta = args.delta ? args.delta + (u64)row * args.y_stride + first : 0;
    const float* bias = args.bias ? args.bias + first : 0;
    const Head head(args, blockIdx.x);
    finish_row(args, head, row, args.positions[row], args.slots[row], [=](u32 i) {
        return to_f32(y[i]) + (bias ? bias[i] : 0.0f) + (delta ? to_f32(delta[i]) : 0.0f);
    });
}

// A block makes up to sixteen rows of a head; `near` holds the first ranks of B for a warp's first columns.
DEVICE void qkv_rows(const QkvArgs& args, const Head& head, const TilePart& tile, u32 from, const FragmentsB& near,
                     float (&values)[16][MOST_HEAD + 4]) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 first = blockIdx.x * args.d, own = head.own * args.d, eights = (args.d + 7) / 8;
    const u32 row = tile.first_row + from, rows = min(tile.rows - from, 16u);
    const LoraPart& part = tile.part;
    for (u32 i = threadIdx.x; i < rows * eights; i += 128) {
        const u32 r = i / eights, c = i % eights * 8;
        float v[8];
        load8(args.y + (u64)(row + r) * args.y_stride + first + c, (int)(args.d - c), v);
#pragma unroll
        for (u32 k = 0; k < 8; k++) {
            if (args.bias && c + k < args.d) v[k] += args.bias[first + c + k];
            values[r][c + k] = v[k];
        }
    }
    __syncthreads();
    for (u32 c = warp * 32; part.rank && c < args.d; c += 128) {
        float delta[4][4] = {};
        for (u32 k = 0; k < part.rank; k += 16) {
            FragmentH h;
            h.load(args.lora, part, k, row, rows);
            FragmentsB b = near;
            if (k > 0 || c >= 128) b.load(part, k, first_column(own + c), own + args.d);
            multiply(h, b, delta);
        }
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            const u32 r = g + 8 * (i / 8), at = c + 8 * q + i % 8;
            if (r < rows && at < args.d) values[r][at] += delta[i % 8 / 2][2 * (i / 8) + i % 2] * part.scale;
        }
    }
    __syncthreads();
    for (u32 r = warp; r < rows; r += 4) {
        const float* of_row = values[r];
        finish_row(args, head, row + r, args.positions[row + r], args.slots[row + r],
                   [=](u32 i) { return of_row[i]; });
    }
    // Nobody still reads what the next rows replace.
    __syncthreads();
}

// The same with LoRA of its own. Grid: heads + 2 kv heads, tiles or fewer. A block goes from tile to tile, sixteen rows at a
// time, so that a load of B serves them all; B of the next tile is under way while it works on one.
KERNEL(128, 5) qkv_lora(const QkvArgs args) {
    __shared__ TilePart listed[LISTED_TILES];
    __shared__ float values[16][MOST_HEAD + 4];
    let_dependents_start();
    const Head head(args, blockIdx.x);
    const u32 warp = threadIdx.x / 32;
    const u32 own = head.own * args.d, end = own + args.d;
    for (u32 t = blockIdx.y; t < args.tiles; t += LISTED_TILES * gridDim.y) {
        __syncthreads();
        if (threadIdx.x < LISTED_TILES)
            listed[threadIdx.x].find(args.lora, args.tiles, t + threadIdx.x * gridDim.y, head.part);
        __syncthreads();
        FragmentsB b;
        b.load(listed[0].part, 0, first_column(own + warp * 32), end);
        // B lay there before; y and h come from the kernel before.
        wait_for_primary();
        for (u32 i = 0; i < LISTED_TILES && listed[i].rows; i++) {
            FragmentsB next;
            next.load(listed[min(i + 1, LISTED_TILES - 1u)].part, 0, first_column(own + warp * 32), end);
            for (u32 from = 0; from < listed[i].rows; from += 16) qkv_rows(args, head, listed[i], from, b, values);
            b = next;
        }
    }
}

// Finishes the product [q, k, v]: bias, LoRA, norm over heads, rotation; q goes on, k and v go to the cache.
//
// Grid: heads + 2 kv heads, tiles. A block makes 16 rows of one head at a time, in shared memory in f32.

#define MAX_HEAD 256
#define NO_SLOT 0xffffffffu

struct QkvArgs {
    Lora lora;
    const u16* y;         // [rows, y_stride]
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
};

// One row of q or k: norm and rotation of `t`, to `out`.
DEVICE void rotate_row(const QkvArgs& args, const float* t, const float* norm, u32 position, u16* out) {
    const u32 lane = threadIdx.x % 32, half = args.d / 2;
    float factor = 1.0f;
    if (norm) {
        float sum = 0.0f;
        for (u32 i = lane; i < args.d; i += 32) sum += t[i] * t[i];
        factor = 1.0f / sqrtf(warp_sum(sum) / (float)args.d + args.eps);
    }
    const float* angles = args.rope + (u64)position * args.d;
    for (u32 i = lane; i < half; i += 32) {
        float a = t[i], b = t[i + half], c = angles[i], s = angles[i + half];
        if (norm) a *= factor * norm[i], b *= factor * norm[i + half];
        out[i] = to_bf16(a * c - b * s);
        out[i + half] = to_bf16(b * c + a * s);
    }
}

template <bool LORA>
DEVICE void qkv_head(const QkvArgs& args) {
    __shared__ float rows_of_head[16][MAX_HEAD + 4];
    const Tile tile = tile_at<LORA>(args.lora, blockIdx.y);
    const LoraSite* site = LORA ? site_of(args.lora, tile) : 0;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 d = args.d, head = blockIdx.x;
    // Which part, and which head of it.
    const u32 part = head < args.heads ? 0 : head < args.heads + args.kv_heads ? 1 : 2;
    const u32 own = part == 0 ? head : part == 1 ? head - args.heads : head - args.heads - args.kv_heads;
    const u32 part_width = (part == 0 ? args.heads : args.kv_heads) * d;
    for (u32 from = 0; from < tile.rows; from += 16) {
        u32 row = tile.first_row + from, rows = min(tile.rows - from, 16u);
        for (u32 column = warp * 32; column < d; column += 128) {
            float delta[4][4] = {};
            if (LORA && site)
                expand(args.lora, site->parts[part], row, rows, own * d + column, part_width, delta);
            u32 i = column + q * 8;
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 r = g + 8 * half;
                if (r >= rows || i >= d) continue;
                float v[8];
                load8(args.y + (u64)(row + r) * args.y_stride + head * d + i, (int)(d - i), v);
#pragma unroll
                for (u32 k = 0; k < 8; k++) {
                    if (i + k >= d) continue;
                    float bias = args.bias ? args.bias[head * d + i + k] : 0.0f;
                    rows_of_head[r][i + k] = v[k] + bias + delta[k / 2][2 * half + k % 2];
                }
            }
        }
        __syncthreads();
        for (u32 r = warp; r < rows; r += 4) {
            const float* t = rows_of_head[r];
            u32 position = args.positions[row + r], slot = args.slots[row + r];
            if (part == 0) {
                rotate_row(args, t, args.q_norm, position,
                           args.q + (u64)(row + r) * args.q_stride + head * d);
            } else if (slot != NO_SLOT) {
                u64 block = slot / args.block_size, offset = slot % args.block_size;
                u64 at = ((block * args.kv_heads + own) * args.block_size + offset) * args.d_padded;
                u16* out = (part == 1 ? args.k_cache : args.v_cache) + at;
                if (part == 1) {
                    rotate_row(args, t, args.k_norm, position, out);
                } else {
                    for (u32 i = lane; i < d; i += 32) out[i] = to_bf16(t[i]);
                }
                // Attention reads whole groups of eight.
                if (d + lane < args.d_padded) out[d + lane] = 0;
            }
        }
        __syncthreads();
    }
}

KERNEL(128, 1) qkv(const QkvArgs args) { qkv_head<false>(args); }

KERNEL(128, 1) qkv_expand(const QkvArgs args) { qkv_head<true>(args); }

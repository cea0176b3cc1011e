// residual += y + bias + LoRA; normed = rms_norm(residual). Strides are multiples of 8; what lies past the width is zero.

#define MAX_ROW_RANK 64  // of `residual_norm_lora`

struct ResidualArgs {
    Lora lora;
    const u16* y;       // [rows, stride]: the product; null: the norm alone
    const float* bias;  // [width] or null
    float* residual;    // [rows, stride]
    const float* weight;
    u16* normed;  // [rows, stride]
    u32 stride;
    u32 width;
    float eps;
    u32 unused;
    const LoraSite* const* row_sites;  // the table of each row's adapter, or null; for `residual_norm_lora`
    const u16* delta;                  // like y, or null
};

DEVICE void add4(float4& x, const float4& y) { x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w; }

DEVICE float4 widen4(uint2 raw) {
    return make_float4(low_f32(raw.x), high_f32(raw.x), low_f32(raw.y), high_f32(raw.y));
}

// Eight ranks of B for four neighbouring columns: a column's ranks are neighbours too.
struct Ranks8 {
    uint4 raw[4];

    DEVICE void load(const LoraPart& part, u32 column, u32 k) {
        const u32 stride = (part.rank + 7) & ~7u;
        const u16* b = part.b + (u64)column * stride + k;
#pragma unroll
        for (u32 c = 0; c < 4; c++) raw[c] = k < stride ? __ldg((const uint4*)(b + c * stride)) : make_uint4(0, 0, 0, 0);
    }

    DEVICE void add(const float* h, float (&sums)[4]) const {
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            float v[8];
            widen8(raw[c], v);
#pragma unroll
            for (u32 i = 0; i < 8; i++) sums[c] += v[i] * h[i];
        }
    }
};

// LoRA of one row, four neighbouring columns a thread and pass.
struct RowLora {
    const LoraPart* part;   // null: nothing to add
    Ranks8 first[2][2];     // ranks below 16 of the first two passes' columns: they come from far, so they start early

    // h is [MAX_ROW_RANK] in shared memory, rounded as the tensor cores want it elsewhere.
    template <int PASSES>
    DEVICE void load(const ResidualArgs& args, u32 row, u32 from, float* h) {
        const LoraSite* sites = args.row_sites[row];
        const LoraSite* site = sites ? sites + args.lora.site : 0;
        part = site && site->parts[0].rank ? site->parts : 0;
        if (!part) return;
#pragma unroll
        for (u32 pass = 0; pass < PASSES; pass++) {
            u32 column = from + (pass * blockDim.x + threadIdx.x) * 4;
            if (column >= args.width) continue;
            first[pass][0].load(*part, column, 0);
            first[pass][1].load(*part, column, 8);
        }
        const u32 stride = (part->rank + 7) & ~7u;
        for (u32 i = threadIdx.x; i < MAX_ROW_RANK; i += blockDim.x) {
            float pair[2];
            sum_splits(args.lora, row, (part->lane + i) & ~1u, i < stride, pair);
            h[i] = to_f32(to_bf16(i & 1 ? pair[1] : pair[0]));
        }
        __syncthreads();
    }

    template <int PASS>
    DEVICE float4 columns(const float* h, u32 column) const {
        float sums[4] = {};
        if (PASS < 2) first[PASS][0].add(h, sums), first[PASS][1].add(h + 8, sums);
        for (u32 k = PASS < 2 ? 16 : 0; k < part->rank; k += 8) {
            Ranks8 more;
            more.load(*part, column, k);
            more.add(h + k, sums);
        }
        return make_float4(sums[0], sums[1], sums[2], sums[3]);
    }
};

// Grid: rows, `BLOCKS` blocks each, which are a cluster and hold a row in registers. Block: at least
// width / (4 KEPT BLOCKS) threads.
template <bool ADD, bool LORA, int KEPT, int BLOCKS>
DEVICE void norm_row(const ResidualArgs& args) {
    __shared__ float sums[32];
    __shared__ float h[MAX_ROW_RANK];
    const u32 index = blockIdx.x / BLOCKS;
    // Columns of this block.
    const u32 from = BLOCKS == 1 ? 0 : blockIdx.x % BLOCKS * (blockDim.x * 4 * KEPT);
    RowLora lora;
    if (LORA) lora.load<(KEPT < 2 ? 1 : 2)>(args, index, from, h);
    u64 row = (u64)index * args.stride;
    float4 kept[KEPT];
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
        u32 i = from + (k * blockDim.x + threadIdx.x) * 4;
        if (i < args.stride) {
            float4 x = *(const float4*)(args.residual + row + i);
            if (ADD) {
                add4(x, widen4(*(const uint2*)(args.y + row + i)));
                if (args.bias) add4(x, *(const float4*)(args.bias + i));
                if (args.delta) add4(x, widen4(*(const uint2*)(args.delta + row + i)));
                if (LORA && lora.part && i < args.width)
                    add4(x, k == 0 ? lora.columns<0>(h, i) : k == 1 ? lora.columns<1>(h, i) : lora.columns<2>(h, i));
                *(float4*)(args.residual + row + i) = x;
            }
            kept[k] = x;
            sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
    }
    sum = block_sum(sum, sums);
#ifdef CLUSTERS
    if (BLOCKS > 1) {
        __shared__ float own;
        if (threadIdx.x == 0) own = sum;
        cluster_sync();
        // In the same order in every block, so that all of them scale alike.
        sum = 0.0f;
#pragma unroll
        for (u32 block = 0; block < BLOCKS; block++) sum += cluster_load(&own, block);
        // A block that ended would take its shared memory along.
        cluster_sync();
    }
#endif
    float factor = 1.0f / sqrtf(sum / (float)args.width + args.eps);
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
        u32 i = from + (k * blockDim.x + threadIdx.x) * 4;
        if (i < args.stride) {
            float4 x = kept[k], w = *(const float4*)(args.weight + i);
            *(uint2*)(args.normed + row + i) =
                make_uint2(pack_bf16(x.x * (factor * w.x), x.y * (factor * w.y)),
                           pack_bf16(x.z * (factor * w.z), x.w * (factor * w.w)));
        }
    }
}

KERNEL(1024, 1) rms_norm(const ResidualArgs args) { norm_row<false, false, 4, 1>(args); }

KERNEL(1024, 1) residual_norm(const ResidualArgs args) { norm_row<true, false, 4, 1>(args); }

// With LoRA, for few rows: each row's block reads its adapter's B by itself. The width is a multiple of 4.
KERNEL(512, 1) residual_norm_lora(const ResidualArgs args) { norm_row<true, true, 4, 1>(args); }

#ifdef CLUSTERS
// The same by eight blocks a row: a block alone reads B at the speed of one multiprocessor.
KERNEL(256, 4) CLUSTER(8) residual_norm_lora8(const ResidualArgs args) { norm_row<true, true, 1, 8>(args); }
#endif

// The sum with LoRA, for many rows; `rms_norm` follows. Grid: columns / 128, tiles. A warp has 32 columns.
KERNEL(128, 4) residual_expand(const ResidualArgs args) {
    const Tile tile = args.lora.tiles[blockIdx.y];
    const LoraSite* site = site_of(args.lora, tile);
    const u32 lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 column = blockIdx.x * 128 + threadIdx.x / 32 * 32;
    const u32 i = column + q * 8;
    if (column >= args.width) return;
    for (u32 from = 0; from < tile.rows; from += 16) {
        u32 row = tile.first_row + from, rows = min(tile.rows - from, 16u);
        uint4 y[2];
        float4 x[2][2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 r = g + 8 * half;
            if (r >= rows || i >= args.width) continue;
            u64 at = (u64)(row + r) * args.stride + i;
            y[half] = *(const uint4*)(args.y + at);
            x[half][0] = *(const float4*)(args.residual + at);
            x[half][1] = *(const float4*)(args.residual + at + 4);
        }
        float delta[1][4][4] = {};
        if (site) expand<1>(args.lora, site->parts, row, rows, column, args.width, delta);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 r = g + 8 * half;
            if (r >= rows || i >= args.width) continue;
            u64 at = (u64)(row + r) * args.stride + i;
            const float(&d)[4][4] = delta[0];
#pragma unroll
            for (u32 part = 0; part < 2; part++) {
                u32 j = 2 * part;
                float4 sum = x[half][part];
                add4(sum, widen4(part ? make_uint2(y[half].z, y[half].w) : make_uint2(y[half].x, y[half].y)));
                if (args.bias) add4(sum, *(const float4*)(args.bias + i + 4 * part));
                add4(sum, make_float4(d[j][2 * half], d[j][2 * half + 1], d[j + 1][2 * half], d[j + 1][2 * half + 1]));
                *(float4*)(args.residual + at + 4 * part) = sum;
            }
        }
    }
}

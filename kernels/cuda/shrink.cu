// h = scale * (x Aᵀ) for all parts of a site. Grid: tiles, lanes / 16, splits of K. Eight warps share a split's K.

struct ShrinkArgs {
    Lora lora;
    const u16* x;  // [rows, x_stride]
    u32 x_stride;
    u32 inputs;  // rounded up to 8; what lies past the true number is zero
    u32 chunk;   // K of a split, a multiple of 256
    u32 prefetch;
    u32 widths[3];
    u32 unused;
};

DEVICE uint4 load16_or_zero(const u16* p, bool valid) {
    return valid ? __ldg((const uint4*)p) : make_uint4(0, 0, 0, 0);
}

DEVICE float scale_of(const LoraSite* site, u32 lane) {
    float scale = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 3; i++) {
        const LoraPart& part = site->parts[i];
        if (part.rank && lane >= part.lane && lane < part.lane + part.rank) scale = part.scale;
    }
    return scale;
}

// `GROUPS` times 16 rows share each load of A.
template <u32 GROUPS>
DEVICE void shrink_tile(const ShrinkArgs& args) {
    __shared__ float sums[8][GROUPS * 16][LORA_LANES];
    const Lora& lora = args.lora;
    const Tile tile = lora.tiles[blockIdx.x];
    const LoraSite* site = site_of(lora, tile);
    const u32 first_lane = blockIdx.y * LORA_LANES;
    if (!site || first_lane >= site->lanes) return;
    let_dependents_start();
    if (args.prefetch) {
        u32 blocks = (site->lanes + 15) / 16 * gridDim.z, own = blockIdx.z * ((site->lanes + 15) / 16) + blockIdx.y;
        for (u32 p = 0; p < 3; p++) {
            const LoraPart& part = site->parts[p];
            u64 bytes = (u64)args.widths[p] * ((part.rank + 7) & ~7u) * 2;
            for (u64 at = (u64)(own * 256 + threadIdx.x) * 128; at < bytes; at += (u64)blocks * 256 * 128)
                prefetch_l2((const u8*)part.b + at);
        }
    }
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 share = args.chunk / 8;
    const u32 start = blockIdx.z * args.chunk + warp * share;
    const u32 end = min(start + share, args.inputs);
    const bool low = first_lane + g < site->lanes, high = first_lane + 8 + g < site->lanes;
    const u16* a = site->a + (u64)(first_lane + g) * args.inputs + q * 8;
    const u16* x = args.x + (u64)(tile.first_row + g) * args.x_stride + q * 8;
    float acc[GROUPS][2][4] = {};
#pragma unroll 4
    for (u32 k = start; k < end; k += 32) {
        // `inputs` is a multiple of 8, so a lane's eight elements are all there or all past the end.
        bool inside = k + q * 8 < end;
        uint4 a0 = load16_or_zero(a + k, inside && low);
        uint4 a1 = load16_or_zero(a + (u64)8 * args.inputs + k, inside && high);
#pragma unroll
        for (u32 group = 0; group < GROUPS; group++) {
            u32 r = group * 16 + g;
            const u16* row = x + (u64)(group * 16) * args.x_stride + k;
            uint4 x0 = load16_or_zero(row, inside && r < tile.rows);
            uint4 x1 = load16_or_zero(row + (u64)8 * args.x_stride, inside && r + 8 < tile.rows);
            mma16(acc[group][0], x0.x, x1.x, x0.y, x1.y, a0.x, a0.y);
            mma16(acc[group][0], x0.z, x1.z, x0.w, x1.w, a0.z, a0.w);
            mma16(acc[group][1], x0.x, x1.x, x0.y, x1.y, a1.x, a1.y);
            mma16(acc[group][1], x0.z, x1.z, x0.w, x1.w, a1.z, a1.w);
        }
    }
#pragma unroll
    for (u32 group = 0; group < GROUPS; group++) {
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
            float* up = &sums[warp][group * 16 + g][n * 8 + 2 * q];
            float* down = &sums[warp][group * 16 + g + 8][n * 8 + 2 * q];
            up[0] = acc[group][n][0], up[1] = acc[group][n][1];
            down[0] = acc[group][n][2], down[1] = acc[group][n][3];
        }
    }
    __syncthreads();
    float* h = lora.h + blockIdx.z * lora.split_stride;
    for (u32 i = threadIdx.x; i < GROUPS * 16 * LORA_LANES; i += 256) {
        u32 r = i / LORA_LANES, n = i % LORA_LANES, l = first_lane + n;
        if (r >= tile.rows || l >= site->lanes) continue;
        float sum = 0.0f;
#pragma unroll
        for (u32 w = 0; w < 8; w++) sum += sums[w][r][n];
        h[(u64)(tile.first_row + r) * lora.lane_stride + l] = sum * scale_of(site, l);
    }
}

// Tiles of up to 16 rows.
KERNEL(256, 1) shrink16(const ShrinkArgs args) { shrink_tile<1>(args); }

// Tiles of up to 64 rows.
KERNEL(256, 1) shrink64(const ShrinkArgs args) { shrink_tile<4>(args); }

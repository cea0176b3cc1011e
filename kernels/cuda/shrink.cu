// h = scale * (x Aᵀ) for all parts of a site. Grid: tiles, lanes / 16, splits of K, which are a cluster. Eight warps share
// a split's K.

struct ShrinkArgs {
    Lora lora;
    const u16* x;  // [rows, x_stride]
    u32 x_stride;
    u32 inputs;  // rounded up to 8; what lies past the true number is zero
    u32 chunk;   // K of a split, a multiple of 256
    u32 unused;
};

DEVICE uint4 load16_or_zero(const u16* p, bool valid) {
    return valid ? __ldg((const uint4*)p) : make_uint4(0, 0, 0, 0);
}

// Of x, which is no constant: the kernel starts before it is there.
DEVICE uint4 load16_late(const u16* p, bool valid) {
    return valid ? __ldcg((const uint4*)p) : make_uint4(0, 0, 0, 0);
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

// Brings the block's share of A near: it lay there before x.
DEVICE void prefetch_a(const ShrinkArgs& args, const LoraSite* site, u32 first_lane) {
    const u32 lane = first_lane + threadIdx.x / 16, start = blockIdx.z * args.chunk;
    const u32 end = min(start + args.chunk, args.inputs);
    for (u32 k = start + threadIdx.x % 16 * 64; k < end; k += 16 * 64)
        prefetch_l2(site->a + (u64)lane * args.inputs + k);
}

// `GROUPS` times 16 rows share each load of A, of which a lane has twice `AT_ONCE` under way.
template <u32 GROUPS, u32 AT_ONCE>
DEVICE void shrink_tile(const ShrinkArgs& args) {
    __shared__ __align__(16) float sums[8][GROUPS * 16][LORA_LANES];
    let_dependents_start();
    const Lora& lora = args.lora;
    const Tile tile = lora.tiles[blockIdx.x];
    const LoraSite* site = site_of(lora, tile);
    const u32 first_lane = blockIdx.y * LORA_LANES;
    if (site && first_lane + threadIdx.x / 16 < site->lanes) prefetch_a(args, site, first_lane);
    wait_for_primary();
    if (!site || first_lane >= site->lanes) return;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 share = args.chunk / 8;
    const u32 start = blockIdx.z * args.chunk + warp * share;
    const u32 end = min(start + share, args.inputs);
    const bool low = first_lane + g < site->lanes, high = first_lane + 8 + g < site->lanes;
    const u16* a = site->a + (u64)(first_lane + g) * args.inputs + q * 8;
    const u16* x = args.x + (u64)(tile.first_row + g) * args.x_stride + q * 8;
    float acc[GROUPS][2][4] = {};
#pragma unroll(4 / AT_ONCE)
    for (u32 first = start; first < end; first += 32 * AT_ONCE) {
        // `inputs` is a multiple of 8, so a lane's eight elements are all there or all past the end.
        uint4 a0[AT_ONCE], a1[AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
            const u32 k = first + 32 * i;
            a0[i] = load16_or_zero(a + k, k + q * 8 < end && low);
            a1[i] = load16_or_zero(a + (u64)8 * args.inputs + k, k + q * 8 < end && high);
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
            const u32 k = first + 32 * i;
            const bool inside = k + q * 8 < end;
#pragma unroll
            for (u32 group = 0; group < GROUPS; group++) {
                u32 r = group * 16 + g;
                const u16* row = x + (u64)(group * 16) * args.x_stride + k;
                uint4 x0 = load16_late(row, inside && r < tile.rows);
                uint4 x1 = load16_late(row + (u64)8 * args.x_stride, inside && r + 8 < tile.rows);
                mma16(acc[group][0], x0.x, x1.x, x0.y, x1.y, a0[i].x, a0[i].y);
                mma16(acc[group][0], x0.z, x1.z, x0.w, x1.w, a0[i].z, a0[i].w);
                mma16(acc[group][1], x0.x, x1.x, x0.y, x1.y, a1[i].x, a1[i].y);
                mma16(acc[group][1], x0.z, x1.z, x0.w, x1.w, a1[i].z, a1[i].w);
            }
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
    for (u32 i = threadIdx.x; i < GROUPS * 16 * LORA_LANES; i += 256) {
        float& sum = sums[0][i / LORA_LANES][i % LORA_LANES];
#pragma unroll
        for (u32 w = 1; w < 8; w++) sum += sums[w][i / LORA_LANES][i % LORA_LANES];
    }
    sync_cluster();
    for (u32 i = threadIdx.x; blockIdx.z == 0 && i < GROUPS * 4 * LORA_LANES; i += 256) {
        const u32 r = i / (LORA_LANES / 4), n = i % (LORA_LANES / 4) * 4, l = first_lane + n;
        // Lanes come in eights.
        if (r >= tile.rows || l >= site->lanes) continue;
        float sum[4] = {};
        for (u32 split = 0; split < gridDim.z; split++) {
            const float4 part = load_of_peer(&sums[0][r][n], split);
            sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
        }
#pragma unroll
        for (u32 k = 0; k < 4; k++) sum[k] *= scale_of(site, l + k);
        *(uint2*)(lora.h + (u64)(tile.first_row + r) * lora.lane_stride + l) =
            make_uint2(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]));
    }
    // Nobody leaves while another reads its sums.
    sync_cluster();
}

// Tiles of up to 16 rows.
KERNEL(256, 3) shrink16(const ShrinkArgs args) { shrink_tile<1, 4>(args); }

// Tiles of up to 64 rows.
KERNEL(256, 1) shrink64(const ShrinkArgs args) { shrink_tile<4, 1>(args); }

// y = x Wᵀ for few rows: W streams once from memory to the tensor cores.
//
// A block has 128 outputs and a share of K; the blocks of a cluster have the other shares and add up through each other's
// shared memory. Its stages are a ring of copies of W and x. W lay there before the step, so its copies begin while the
// kernels before still run.
// Grid: outputs / 128, times the cluster's blocks.

#define OUTPUTS 128
#define CHUNK 128            // of K a stage: 256 bytes of a row are near each other in memory
#define PITCH (OUTPUTS + 4)  // of a row of sums: no two lanes of a store share a bank
#define PRODUCT_THREADS 256
#define MOST_SHARES 4

struct ProductArgs {
    const u16* x;  // [rows, inputs]
    const u16* w;  // [outputs, inputs]
    void* y;       // [rows, outputs]: bf16, or f32 if `wide`
    u32 rows;
    u32 inputs;  // a multiple of 8
    u32 outputs;  // a multiple of 8
    u32 shares;   // of K: the cluster's blocks
    u32 wide;
    u32 unused;
};

template <u32 ROWS, u32 STAGES>
struct Product {
    struct Stage {
        u16 w[OUTPUTS * CHUNK];
        u16 x[ROWS * CHUNK];
    };
    static constexpr u32 N = ROWS / 8;
    static constexpr u32 EIGHTS = CHUNK / 8;

    const ProductArgs& args;
    Stage* const ring;
    const u32 first;  // output
    const u32 share;
    const u32 first_k;
    u32 chunks;
    float acc[2][N][4] = {};

    DEVICE Product(const ProductArgs& args, u8* shared)
        : args(args), ring((Stage*)shared), first(blockIdx.x / args.shares * OUTPUTS), share(blockIdx.x % args.shares),
          first_k(share * each(args) * CHUNK) {
        const u32 all = (args.inputs + CHUNK - 1) / CHUNK, before = share * each(args);
        chunks = all > before ? min(all - before, each(args)) : 0;
    }

    DEVICE static u32 each(const ProductArgs& args) {
        return ((args.inputs + CHUNK - 1) / CHUNK + args.shares - 1) / args.shares;
    }

    // Where eight elements lie: neighbouring rows begin at different banks.
    DEVICE static u32 place(u32 row, u32 eight) { return row * CHUNK + ((eight ^ (row % 8)) * 8); }

    template <u32 COUNT>
    DEVICE void copy(u16* to, const u16* from, u32 rows, u32 stage) const {
        const u32 row = threadIdx.x / EIGHTS, eight = threadIdx.x % EIGHTS;
        constexpr u32 STEP = PRODUCT_THREADS / EIGHTS;
        const u32 k = first_k + stage * CHUNK + eight * 8;
        from += (u64)row * args.inputs + k;
#pragma unroll
        for (u32 i = 0; i < COUNT; i += STEP) {
            if (COUNT - i < STEP && row >= COUNT - i) break;
            const bool valid = row + i < rows && k < args.inputs;
            copy_async(to + place(row + i, eight), valid ? from + (u64)i * args.inputs : args.w, valid);
        }
    }

    DEVICE void copy_w(u32 stage) const {
        copy<OUTPUTS>(ring[stage % STAGES].w, args.w + (u64)first * args.inputs, args.outputs - first, stage);
    }

    DEVICE void copy_x(u32 stage) const { copy<ROWS>(ring[stage % STAGES].x, args.x, args.rows, stage); }

    // x comes later than W.
    DEVICE void begin() {
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++)
            if (i < chunks) copy_w(i);
        wait_for_primary();
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++) {
            if (i < chunks) copy_x(i);
            copy_commit();
        }
    }

    DEVICE void multiply_chunk(const Stage& stage) {
        const u32 warp = threadIdx.x / 32;
#pragma unroll
        for (u32 k = 0; k < EIGHTS / 2; k += 4) multiply_32(stage, warp % 4 * 32, warp / 4 * (EIGHTS / 2) + k);
    }

    // 32 outputs from `m` on, K from 8 `k` on.
    DEVICE void multiply_32(const Stage& stage, u32 m, u32 k) {
        const u32 lane = threadIdx.x % 32;
        // For each sixteen of K a pair of registers for each eight rows.
        u32 b[2][N][2];
#pragma unroll
        for (u32 n = 0; n < N; n += 2)
#pragma unroll
            for (u32 step = 0; step < 2; step++) {
                u32 r[4];
                if (N == 1) {
                    if (step == 1) break;
                    ldmatrix(r, stage.x + place(lane % 8, k + lane / 8));
                    b[0][0][0] = r[0], b[0][0][1] = r[1], b[1][0][0] = r[2], b[1][0][1] = r[3];
                } else {
                    ldmatrix(r, stage.x + place(n * 8 + lane % 8 + lane / 16 * 8, k + step * 2 + lane / 8 % 2));
                    b[step][n][0] = r[0], b[step][n][1] = r[1];
                    b[step][(n + 1) % N][0] = r[2], b[step][(n + 1) % N][1] = r[3];
                }
            }
#pragma unroll
        for (u32 step = 0; step < 2; step++)
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 a[4];
                ldmatrix(a, stage.w + place(m + i * 16 + lane % 16, k + step * 2 + lane / 16));
#pragma unroll
                for (u32 n = 0; n < N; n++)
                    mma16(acc[i][n], a[0], a[1], a[2], a[3], b[step][n][0], b[step][n][1]);
            }
    }

    DEVICE void run() {
        begin();
        for (u32 stage = 0; stage < chunks; stage++) {
            copy_wait<STAGES - 2>();
            __syncthreads();
            // Not sooner: blocks of the next product would lie where those of this one leave room, and so unevenly.
            if (stage == chunks / 2) let_dependents_start();
            const u32 next = stage + STAGES - 1;
            if (next < chunks) copy_w(next), copy_x(next);
            copy_commit();
            multiply_chunk(ring[stage % STAGES]);
        }
        copy_wait<0>();
        __syncthreads();
        finish((float*)ring);
    }

    // Adds up what the warps and the cluster's blocks have, and stores it.
    DEVICE void finish(float* sums) {
        const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const u32 m = warp % 4 * 32 + g;
        if (warp >= 4) put(sums, m, q);
        __syncthreads();
        if (warp < 4) {
#pragma unroll
            for (u32 i = 0; i < 2; i++)
#pragma unroll
                for (u32 n = 0; n < N; n++)
#pragma unroll
                    for (u32 e = 0; e < 4; e++) acc[i][n][e] += sums[place_of(m, q, i, n, e)];
            put(sums, m, q);
        }
        sync_cluster();
        const u32 width = OUTPUTS / args.shares, fours = width / 4;
        for (u32 at = threadIdx.x; at < args.rows * fours; at += PRODUCT_THREADS) {
            const u32 row = at / fours, column = share * width + at % fours * 4;
            // All loads are under way before the first sum.
            float4 parts[MOST_SHARES];
#pragma unroll
            for (u32 peer = 0; peer < MOST_SHARES; peer++)
                parts[peer] = load_of_peer(sums + row * PITCH + column, peer < args.shares ? peer : share);
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (u32 peer = 0; peer < MOST_SHARES; peer++) {
                const float4 part = parts[peer];
                if (peer < args.shares) sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
            }
            store(row, first + column, sum);
        }
        // Nobody leaves while another reads its sums.
        if (args.shares > 1) sync_cluster();
    }

    DEVICE static u32 place_of(u32 m, u32 q, u32 i, u32 n, u32 e) {
        return (n * 8 + 2 * q + e % 2) * PITCH + m + i * 16 + e / 2 * 8;
    }

    DEVICE void put(float* sums, u32 m, u32 q) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 n = 0; n < N; n++)
#pragma unroll
                for (u32 e = 0; e < 4; e++) sums[place_of(m, q, i, n, e)] = acc[i][n][e];
    }

    DEVICE void store(u32 row, u32 column, float4 sum) const {
        const u64 at = (u64)row * args.outputs + column;
        const float v[4] = {sum.x, sum.y, sum.z, sum.w};
        const bool whole = column + 4 <= args.outputs && at % 4 == 0;
        if (args.wide) {
            float* y = (float*)args.y + at;
            if (whole) *(float4*)y = sum;
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (!whole && column + i < args.outputs) y[i] = v[i];
        } else {
            u16* y = (u16*)args.y + at;
            if (whole) *(uint2*)y = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (!whole && column + i < args.outputs) y[i] = to_bf16(v[i]);
        }
    }
};

template <u32 ROWS, u32 STAGES>
DEVICE void product(const ProductArgs& args) {
    DYNAMIC_SHARED(shared);
    Product<ROWS, STAGES>(args, shared).run();
}

// As many stages as leave room for two blocks on a multiprocessor.
KERNEL(PRODUCT_THREADS, 2) product8(const ProductArgs args) { product<8, 3>(args); }
KERNEL(PRODUCT_THREADS, 2) product16(const ProductArgs args) { product<16, 3>(args); }

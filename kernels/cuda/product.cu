// y = x Wᵀ + h Bᵀ for few rows: W streams once from memory to the tensor cores, and what LoRA adds joins in the sums.
//
// A block has 128 outputs of one part and a share of K; the blocks of a cluster have the other shares and add up through
// each other's shared memory. Its stages are a ring of copies: first W with x, then B with h, up to eight adapters a stage.
// W and B lay there before the step, so their copies begin while the kernels before still run.
// Grid: outputs / 128 of each part, times the cluster's blocks.

#define OUTPUTS 128
#define CHUNK 128            // of K a stage: 256 bytes of a row are near each other in memory
#define SLOTS (CHUNK / 16)   // tasks a stage
#define LISTED 64            // tasks that a block knows at once, a multiple of SLOTS
#define PITCH (OUTPUTS + 4)  // of a row of sums: no two lanes of a store share a bank
#define PRODUCT_THREADS 256
#define MOST_SHARES 4

struct ProductArgs {
    Lora lora;
    const u16* x;  // [rows, inputs]
    const u16* w;  // [stride, inputs]
    void* y;       // [rows, stride]: bf16, or f32 if `wide`
    u32 rows;
    u32 inputs;  // a multiple of 8
    u32 stride;  // of y, a multiple of 8
    u32 shares;  // of K: the cluster's blocks
    u32 wide;
    u32 tiles;      // as many as there may be, 0 without LoRA
    u32 widths[3];  // of the parts; 0 past the last
    u32 unused;
};

// The outputs of a block.
struct Columns {
    u32 part;
    u32 start;  // of the part
    u32 first;  // of the block
    u32 end;    // of the part; what lies past the last is zero, as in W
    u32 width;  // of the part

    DEVICE Columns(const ProductArgs& args, u32 block) : part(0), start(0), width(args.widths[0]) {
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            u32 blocks = (args.widths[p] + OUTPUTS - 1) / OUTPUTS;
            if (part == p && block >= blocks && args.widths[p + 1])
                block -= blocks, start += width, part = p + 1, width = args.widths[p + 1];
        }
        first = start + block * OUTPUTS;
        const u32 after = part == 0 ? args.widths[1] : part == 1 ? args.widths[2] : 0;
        end = after ? start + width : args.stride;
    }
};

// Sixteen ranks of B and h.
struct OwnTask {
    const u16* b;
    u32 stride;
    u32 ranks;  // of the sixteen; 0: there is no such task
    u32 lane;
    u32 first_row;
    u32 rows;
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
    static constexpr u32 LISTED_STAGES = LISTED / SLOTS;

    const ProductArgs& args;
    const Columns columns;
    Stage* const ring;
    LoraTasks& tasks;
    OwnTask* const listed;
    const u32 share;
    const u32 first_k;
    u32 chunks;
    u32 stages;  // chunks, then B and h of the block's share of the tasks
    FoundTask found;
    float acc[2][N][4] = {};

    DEVICE Product(const ProductArgs& args, u8* shared, LoraTasks& tasks, OwnTask* listed)
        : args(args), columns(args, blockIdx.x / args.shares), ring((Stage*)shared), tasks(tasks),
          listed(listed), share(blockIdx.x % args.shares), first_k(share * each(args) * CHUNK) {
        const u32 all = (args.inputs + CHUNK - 1) / CHUNK, before = share * each(args);
        chunks = all > before ? min(all - before, each(args)) : 0;
        stages = chunks;
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
        const u16* from = args.w + (u64)columns.first * args.inputs;
        copy<OUTPUTS>(ring[stage % STAGES].w, from, columns.end - columns.first, stage);
    }

    DEVICE void copy_x(u32 stage) const { copy<ROWS>(ring[stage % STAGES].x, args.x, args.rows, stage); }

    // So many of the block's tasks, from number `first` on.
    DEVICE void list_tasks(u32 first) const {
        if (threadIdx.x >= LISTED) return;
        const u32 i = (first + threadIdx.x) * args.shares + share;
        OwnTask own = {0, 0, 0, 0, 0, 0, 0};
        if (i < tasks.count) {
            const u32 t = tasks.tile_of(i), k = (i - tasks.starts[t]) * 16;
            const LoraTask& task = tasks.tiles[t];
            own.b = task.b + (u64)(columns.first - columns.start) * task.ranks + k;
            own.stride = task.ranks, own.ranks = min(task.ranks - k, 16u), own.lane = task.lane + k;
            own.first_row = task.first_row, own.rows = task.rows;
        }
        listed[threadIdx.x] = own;
    }

    DEVICE const OwnTask& task(u32 stage, u32 slot) const { return listed[((stage - chunks) * SLOTS + slot) % LISTED]; }

    // B of a stage's tasks.
    DEVICE void copy_b(u32 stage) const {
        const u32 row = threadIdx.x / 2, half = threadIdx.x % 2 * 8;
        const bool inside = columns.first - columns.start + row < columns.width;
        u16* to = ring[stage % STAGES].w + row * 16 + half;
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; slot++) {
            const OwnTask& own = task(stage, slot);
            if (!own.ranks) break;
            const bool valid = inside && half < own.ranks;
            copy_async(to + slot * OUTPUTS * 16, valid ? own.b + (u64)row * own.stride + half : own.b, valid);
        }
    }

    // h of a stage's tasks, once it is there. A warp has a task.
    DEVICE void copy_h(u32 stage) const {
        const u32 slot = threadIdx.x / 32, half = threadIdx.x % 2 * 8;
        const OwnTask& own = task(stage, slot);
        if (!own.ranks) return;
        for (u32 i = threadIdx.x % 32 / 2; i < own.rows; i += 16) {
            const u32 row = own.first_row + i;
            const bool valid = half < own.ranks;
            const u16* h = args.lora.h + (u64)row * args.lora.lane_stride + own.lane + half;
            copy_async(ring[stage % STAGES].x + (slot * ROWS + row) * 16 + half, valid ? h : own.b, valid);
        }
    }

    // Steps 1 and 2, with a barrier before, between and behind: the tasks of the block, which take long to find.
    DEVICE void find_tasks(u32 step) {
        if (step == 1 && threadIdx.x < 32) tasks.set(found);
        if (step == 2) {
            const u32 own = tasks.count > share ? (tasks.count - share - 1) / args.shares + 1 : 0;
            stages += (own + SLOTS - 1) / SLOTS;
            list_tasks(0);
        }
    }

    // x comes later than W.
    DEVICE void begin() {
        if (threadIdx.x < 32) found.begin(args.lora, args.tiles);
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++)
            if (i < chunks) copy_w(i);
        if (threadIdx.x < 32) found.find(args.lora, columns.part);
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

    // The two halves of the block's warps take turns at the tasks.
    DEVICE void multiply_lora(u32 stage) {
        const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const u16* w = ring[stage % STAGES].w + (warp % 4 * 32 + g) * 16 + q * 4;
        const u16* x = ring[stage % STAGES].x + g * 16 + q * 4;
#pragma unroll
        for (u32 turn = 0; turn < SLOTS; turn += 2) {
            const u32 slot = turn + warp / 4;
            const OwnTask& own = task(stage, slot);
            if (!own.ranks) break;
            const u32 first = own.first_row, rows = own.rows;
            uint2 a[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) a[j] = *(const uint2*)(w + (slot * OUTPUTS + j * 8) * 16);
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                if (n * 8 + 8 <= first || n * 8 >= first + rows) continue;
                uint2 h = make_uint2(0, 0);
                if (n * 8 + g - first < rows) h = *(const uint2*)(x + (slot * ROWS + n * 8) * 16);
#pragma unroll
                for (u32 j = 0; j < 2; j++)
                    mma16(acc[j][n], a[2 * j].x, a[2 * j + 1].x, a[2 * j].y, a[2 * j + 1].y, h.x, h.y);
            }
        }
    }

    DEVICE void run() {
        begin();
        // B that is there or under way ends here.
        u32 next_b = chunks;
        for (u32 stage = 0; stage < chunks; stage++) {
            copy_wait<STAGES - 2>();
            __syncthreads();
            // Not sooner: blocks of the next product would lie where those of this one leave room, and so unevenly.
            if (stage == chunks / 2) let_dependents_start();
            const u32 next = stage + STAGES - 1;
            if (next < chunks) copy_w(next), copy_x(next);
            if (args.tiles) {
                find_tasks(stage);
                if (stage > 2)
                    for (; next_b < min(next + 1, stages); next_b++) copy_b(next_b);
            }
            copy_commit();
            multiply_chunk(ring[stage % STAGES]);
        }
        if (args.tiles) {
            for (u32 step = max(chunks, 1u); step < 3; step++) {
                __syncthreads();
                find_tasks(step);
            }
        }
        // h is there when the kernel before has ended.
        wait_for_primary();
        if (stages > chunks) add_lora(next_b);
        copy_wait<0>();
        __syncthreads();
        finish((float*)ring);
    }

    DEVICE void add_lora(u32 next_b) {
        // Nobody still reads the last chunk.
        __syncthreads();
        for (u32 first = chunks; first < stages; first += LISTED_STAGES) {
            const u32 end = min(stages, first + LISTED_STAGES), at_once = min(end, first + STAGES);
            if (first > chunks) {
                __syncthreads();
                list_tasks((first - chunks) * SLOTS);
                __syncthreads();
                next_b = first;
            }
            for (; next_b < at_once; next_b++) copy_b(next_b);
            for (u32 stage = first; stage < at_once; stage++) copy_h(stage);
            copy_commit();
            copy_wait<0>();
            __syncthreads();
            for (u32 stage = first; stage < end; stage++) {
                if (stage > first) {
                    copy_wait<STAGES - 1>();
                    __syncthreads();
                }
                multiply_lora(stage);
                if (stage + STAGES < end) {
                    __syncthreads();
                    copy_b(stage + STAGES), copy_h(stage + STAGES);
                }
                copy_commit();
            }
        }
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
            store(row, columns.first + column, sum);
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
        const u64 at = (u64)row * args.stride + column;
        const float v[4] = {sum.x, sum.y, sum.z, sum.w};
        const bool whole = column + 4 <= columns.end && at % 4 == 0;
        if (args.wide) {
            float* y = (float*)args.y + at;
            if (whole) *(float4*)y = sum;
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (!whole && column + i < columns.end) y[i] = v[i];
        } else {
            u16* y = (u16*)args.y + at;
            if (whole) *(uint2*)y = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (!whole && column + i < columns.end) y[i] = to_bf16(v[i]);
        }
    }
};

template <u32 ROWS, u32 STAGES>
DEVICE void product(const ProductArgs& args) {
    DYNAMIC_SHARED(shared);
    __shared__ LoraTasks tasks;
    __shared__ OwnTask listed[LISTED];
    Product<ROWS, STAGES>(args, shared, tasks, listed).run();
}

// As many stages as leave room for two blocks on a multiprocessor.
KERNEL(PRODUCT_THREADS, 2) product8(const ProductArgs args) { product<8, 3>(args); }
KERNEL(PRODUCT_THREADS, 2) product16(const ProductArgs args) { product<16, 3>(args); }
KERNEL(PRODUCT_THREADS, 2) product32(const ProductArgs args) { product<32, 2>(args); }

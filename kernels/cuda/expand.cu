// What LoRA adds to a product, made beside the product for the kernel that reads both: delta = h Bᵀ.
//
// Reading B is nearly all the work. A warp has 64 columns of one part and goes from tile to tile; the copies of the next
// tiles' B are under way while it multiplies.

#define WARP_COLUMNS 64
#define BLOCK_COLUMNS 256
#define STAGES 3

struct ExpandArgs {
    Lora lora;
    u16* delta;  // [rows, stride]
    u32 stride;
    u32 tiles;      // as many as there may be
    u32 widths[3];  // of the parts; 0 past the last
    u32 unused;
};

// A tile's rows, and its adapter's share of the part.
struct Task {
    LoraPart part;
    u32 first_row;
    u32 rows;  // 0: there is no such tile

    DEVICE void find(const ExpandArgs& args, u32 t, u32 index) {
        Tile tile = {0, 0, 0, 0};
        if (t < args.tiles) tile = args.lora.tiles[t];
        first_row = tile.first_row, rows = tile.rows;
        if (tile.sites)
            part = tile.sites[args.lora.site].parts[index];
        else
            part = LoraPart{0, 0, 0, 0.0f, 0};
    }
};

// Sixteen ranks of B for a warp's columns, in shared memory: [column][rank].
struct Stage {
    u16 b[WARP_COLUMNS][16];

    // Copies the first ranks, and brings the others near.
    DEVICE void fetch(const LoraPart& part, u32 first, u32 width) {
        const u32 lane = threadIdx.x % 32, stride = part.stride();
        if (stride) {
#pragma unroll
            for (u32 i = 0; i < WARP_COLUMNS / 16; i++) {
                u32 column = i * 16 + lane / 2, k = lane % 2 * 8;
                bool valid = first + column < width && k < stride;
                copy_async(&b[column][k], valid ? part.b + (u64)(first + column) * stride + k : part.b, valid);
            }
            const u32 columns = min(width - first, (u32)WARP_COLUMNS);
            for (u32 i = lane * 64; stride > 16 && i < columns * stride; i += 32 * 64)
                prefetch_l2(part.b + (u64)first * stride + i);
        }
        copy_commit();
    }

    // As `FragmentsB::load` does, with `column` among the warp's own.
    DEVICE void load(FragmentsB& to, const LoraPart& part, u32 column) const {
        const u32 q = threadIdx.x % 4;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u16* row = b[column + 2 * j];
            to.b[j] = make_uint2(0, 0);
            if (part.rank > 8)
                to.b[j] = *(const uint2*)(row + q * 4);
            else if (part.rank)
                to.b[j].x = *(const u32*)(row + q * 2);
        }
    }
};

// Grid: columns / 256 of each part, tiles or fewer.
KERNEL(128, 5) expand(const ExpandArgs args) {
    __shared__ Task tasks[128];
    __shared__ __align__(16) Stage stages[4][STAGES];
    const Lora& lora = args.lora;
    u32 block = blockIdx.x, index = 0, start = 0, width = args.widths[0];
#pragma unroll
    for (u32 p = 0; p < 2; p++) {
        u32 blocks = (args.widths[p] + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
        if (index == p && block >= blocks) block -= blocks, start += width, index = p + 1, width = args.widths[p + 1];
    }
    const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const u32 first = block * BLOCK_COLUMNS + warp * WARP_COLUMNS;
    const u32 column = first_column(0);
    // What lies past the last part is zero, as in the product.
    const u32 after = index == 0 ? args.widths[1] : index == 1 ? args.widths[2] : 0;
    const u32 end = after ? width : args.stride - start;
    for (u32 t = blockIdx.y; t < args.tiles; t += 128 * gridDim.y) {
        __syncthreads();
        tasks[threadIdx.x].find(args, t + threadIdx.x * gridDim.y, index);
        __syncthreads();
        if (first >= width || !tasks[0].rows) continue;
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++) stages[warp][i].fetch(tasks[i].part, first, width);
        // B lay there before the step; h comes from the kernel before.
        wait_for_primary();
        for (u32 i = 0; i < 128 && tasks[i].rows; i++) {
            // Nobody still reads the stage that is filled next.
            __syncwarp();
            if (i + STAGES - 1 < 128)
                stages[warp][(i + STAGES - 1) % STAGES].fetch(tasks[i + STAGES - 1].part, first, width);
            else
                copy_commit();
            copy_wait<STAGES - 1>();
            __syncwarp();
            const Task& task = tasks[i];
            for (u32 from = 0; from < task.rows; from += 16) {
                const u32 row = task.first_row + from, rows = min(task.rows - from, 16u);
                FragmentH h;
                h.load(lora, task.part, 0, row, rows);
                for (u32 n = 0; n < WARP_COLUMNS; n += 32) {
                    FragmentsB b;
                    stages[warp][i % STAGES].load(b, task.part, column + n);
                    float delta[4][4] = {};
                    multiply(h, b, delta);
                    for (u32 k = 16; k < task.part.rank; k += 16) {
                        FragmentH more;
                        b.load(task.part, k, first + n + column, width);
                        more.load(lora, task.part, k, row, rows);
                        multiply(more, b, delta);
                    }
#pragma unroll
                    for (u32 half = 0; half < 2; half++) {
                        const u32 r = g + 8 * half, c = first + n + 8 * q;
                        if (r >= rows || c >= end) continue;
                        float v[8];
#pragma unroll
                        for (u32 k = 0; k < 8; k++) v[k] = delta[k / 2][2 * half + k % 2];
                        store8(args.delta + (u64)(row + r) * args.stride + start + c, (int)(end - c), v);
                    }
                }
            }
        }
    }
}

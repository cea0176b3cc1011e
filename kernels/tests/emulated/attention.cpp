// Attention of single rows and of chunks of prompts against f64: heads of several sizes and groups, contexts of one item and of
// many, blocks of keys that sixteen divides and others, windows.
#include "check.hpp"

#include "../../cuda/prelude.cuh"

#include "../../cuda/paged.cuh"

#include "../../cuda/prefill.cuh"

#include "../../cuda/decode.cu"
#include "../../cuda/prefill.cu"
#include "../../cuda/prefill_hopper.cu"

struct Case {
    u32 d;
    u32 kv_heads;
    u32 group;
    u32 block_size;
    u32 window;
    u32 item_keys = 0;  // a multiple of 16
    float sharp = 1;    // how far scores are apart
};

// Rows of a sequence in this step, and how many keys there were before them.
struct Chunk {
    u32 context;
    u32 rows;
    u32 first_row = 0;
    u32 first_block = 0;
};

// What attention reads and writes of all chunks.
struct Data {
    const Case& job;
    const u32 heads = job.kv_heads * job.group, stride = heads * job.d;
    const float scale = job.sharp / std::sqrt((float)job.d);
    std::vector<u32> tables;
    std::vector<u16> k, v, q, out;

    Data(const Case& job, std::vector<Chunk>& chunks) : job(job) {
        u32 rows = 0;
        for (Chunk& span : chunks) {
            span.first_row = rows, span.first_block = tables.size();
            rows += span.rows;
            const u32 blocks = (span.context + span.rows + job.block_size - 1) / job.block_size;
            for (u32 n = 0; n < blocks; n++) tables.push_back(tables.size());
        }
        std::shuffle(tables.begin(), tables.end(), generator);
        const size_t elements = tables.size() * job.kv_heads * job.block_size * job.d;
        k = random_bf16(elements), v = random_bf16(elements), q = random_bf16(rows * stride);
        out.assign(q.size(), 0x7fc0);
    }

    Paged cache() const { return {k.data(), v.data(), tables.data(), job.kv_heads, job.block_size, job.d, job.d}; }

    void check(const Chunk& span) const {
        for (u32 row = 0; row < span.rows; row++)
            for (u32 head = 0; head < heads; head++) check(span, row, head);
    }

    void check(const Chunk& span, u32 row, u32 head) const {
        const u32 d = job.d, position = span.context + row;
        const u64 at = (u64)(span.first_row + row) * stride + head * d;
        const u32 least = job.window && position >= job.window ? position + 1 - job.window : 0;
        std::vector<double> sum(d);
        double weights = 0;
        for (u32 key = least; key <= position; key++) {
            const u64 block = tables[span.first_block + key / job.block_size];
            const u64 place = ((block * job.kv_heads + head / job.group) * job.block_size + key % job.block_size) * d;
            double score = 0;
            for (u32 i = 0; i < d; i++) score += value(q[at + i]) * value(k[place + i]);
            const double weight = std::exp(score * scale);
            weights += weight;
            for (u32 i = 0; i < d; i++) sum[i] += weight * value(v[place + i]);
        }
        for (u32 i = 0; i < d; i++) expect("attention", sum[i] / weights, value(out[at + i]));
    }
};

static void rows_agree(const Case& job, const std::vector<u32>& contexts) {
    std::vector<Chunk> chunks;
    for (u32 context : contexts) chunks.push_back({context, 1});
    Data data(job, chunks);
    std::vector<DecodeItem> items;
    for (const Chunk& span : chunks) {
        const u32 end = span.context + 1, place = items.size(), count = (end + job.item_keys - 1) / job.item_keys;
        for (u32 n = 0; n < count; n++) {
            const u32 first = n * job.item_keys, last = std::min(end, first + job.item_keys);
            items.push_back({span.first_row, span.context, span.first_block, first, last, n, count, place});
        }
    }
    std::vector<float> sums(items.size() * data.heads * job.d), stats(items.size() * data.heads * 2);
    const u32 splits = (job.group + COLUMNS - 1) / COLUMNS;
    std::vector<u32> arrived(items.size() * job.kv_heads * splits);
    // Some that only fill up a grid.
    items.insert(items.end(), 2, DecodeItem{});
    DecodeArgs args{};
    args.cache = data.cache(), args.items = items.data(), args.q = data.q.data(), args.out = data.out.data();
    args.sums = sums.data(), args.stats = stats.data(), args.arrived = arrived.data();
    args.stride = data.stride, args.group = job.group, args.scale = data.scale, args.window = job.window;
    args.early = job.window ? 64 : 256;
    launch({(u32)items.size(), job.kv_heads, splits}, 32 * WARPS,
           [&] { job.d <= 64 ? decode64(args) : job.d <= 128 ? decode128(args) : decode256(args); });
    for (u32 counter : arrived) expect("arrived", 0, counter);
    for (const Chunk& span : chunks) data.check(span);
}

static void chunks_agree(const Case& job, std::vector<Chunk> chunks, bool hopper = false) {
    Data data(job, chunks);
    std::vector<PrefillTile> tiles;
    const u32 pairs = job.d > 128 ? 64 : 128, d = job.d > 128 ? 256 : job.d > 64 ? 128 : 64;
    for (const Chunk& span : chunks)
        for (u32 first = 0; first < span.rows * job.group; first += pairs)
            tiles.push_back({span.first_row, span.rows, span.context, span.first_block, first, {}});
    PrefillArgs args{};
    args.cache = data.cache(), args.tiles = tiles.data(), args.q = data.q.data(), args.out = data.out.data();
    args.stride = data.stride, args.group = job.group, args.scale = data.scale, args.window = job.window;
    const u32 rows = pairs + 2 * (d > 128 ? 32 : 64);
    const Index grid{job.kv_heads, (u32)tiles.size(), 1};
    if (hopper)
        launch(grid, 256, [&] { prefill_hopper128(args); }, {1, 5 * 128 * 128 * 2 + 5 * 128 * 4});
    else
        launch(grid, 128, [&] { d == 64 ? prefill64(args) : d == 128 ? prefill128(args) : prefill256(args); },
               {1, rows * (d + 8) * 2});
    for (const Chunk& span : chunks) data.check(span);
}

int main() {
    rows_agree({128, 2, 4, 16, 0, 256}, {0, 17, 191, 300});
    rows_agree({128, 1, 12, 24, 0, 64}, {5, 150});
    rows_agree({64, 1, 8, 16, 100, 128}, {40, 420});
    rows_agree({80, 2, 1, 32, 0, 64}, {130});
    rows_agree({256, 1, 2, 16, 0, 64}, {90});
    chunks_agree({128, 2, 4, 16, 0, 0, 8}, {{0, 40}, {150, 5}});
    chunks_agree({80, 1, 3, 24, 0}, {{61, 50}});
    chunks_agree({64, 1, 1, 16, 70}, {{90, 150}});
    chunks_agree({256, 1, 5, 16, 0}, {{30, 20}});
    chunks_agree({128, 2, 4, 16, 0, 0, 8}, {{0, 40}, {300, 5}}, true);
    chunks_agree({128, 1, 1, 24, 150}, {{400, 130}}, true);
    chunks_agree({80, 1, 3, 16, 0}, {{200, 50}}, true);
    printf("%ld values, the worst off by %.4f\n", values, worst);
}

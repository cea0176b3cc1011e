// Attention of single rows against f64: heads of several sizes and groups, contexts of one item and of many, blocks of keys that
// sixteen divides and others, windows.
#include "check.hpp"

#include "../../cuda/prelude.cuh"

#include "../../cuda/paged.cuh"

#include "../../cuda/decode.cu"

struct Case {
    u32 d;
    u32 kv_heads;
    u32 group;
    u32 block_size;
    u32 item_keys;  // a multiple of 16
    u32 window;
    std::vector<u32> contexts;  // of each sequence: keys before its row
};

static void attention_agrees(const Case& job) {
    const u32 d = job.d, heads = job.kv_heads * job.group, stride = heads * d;
    std::vector<u32> tables;
    std::vector<DecodeItem> items;
    for (u32 row = 0; row < job.contexts.size(); row++) {
        const u32 end = job.contexts[row] + 1, first_block = tables.size(), place = items.size();
        const u32 count = (end + job.item_keys - 1) / job.item_keys;
        for (u32 n = 0; n < count; n++) {
            const u32 first = n * job.item_keys;
            items.push_back({row, job.contexts[row], first_block, first, std::min(end, first + job.item_keys), n, count, place});
        }
        for (u32 n = 0; n < (end + job.block_size - 1) / job.block_size; n++) tables.push_back(tables.size());
    }
    std::shuffle(tables.begin(), tables.end(), generator);
    const size_t elements = tables.size() * job.kv_heads * job.block_size * d;
    auto k = random_bf16(elements), v = random_bf16(elements), q = random_bf16(job.contexts.size() * stride);
    std::vector<u16> out(q.size(), 0x7fc0);
    std::vector<float> sums(items.size() * heads * d), stats(items.size() * heads * 2);
    const u32 splits = (job.group + COLUMNS - 1) / COLUMNS, used = items.size();
    std::vector<u32> arrived(used * job.kv_heads * splits);
    // Some that only fill up a grid.
    items.insert(items.end(), 2, DecodeItem{});
    DecodeArgs args{};
    args.cache = {k.data(), v.data(), tables.data(), job.kv_heads, job.block_size, d, d};
    args.items = items.data(), args.q = q.data(), args.out = out.data(), args.sums = sums.data(), args.stats = stats.data();
    args.arrived = arrived.data(), args.stride = stride, args.group = job.group, args.scale = 1 / std::sqrt((float)d);
    args.window = job.window;
    args.early = job.window ? 64 : 256;
    launch({(u32)items.size(), job.kv_heads, splits}, 32 * WARPS,
           [&] { d <= 64 ? decode64(args) : d <= 128 ? decode128(args) : decode256(args); });
    for (u32 counter : arrived) expect("arrived", 0, counter);
    for (u32 n = 0; n < used; n++) {
        if (items[n].item > 0) continue;
        const u32 row = items[n].row, context = items[n].context;
        const u32 least = job.window && context >= job.window ? context + 1 - job.window : 0;
        for (u32 head = 0; head < heads; head++) {
            auto place = [&](u32 key) {
                const u64 block = tables[items[n].first_block + key / job.block_size];
                return ((block * job.kv_heads + head / job.group) * job.block_size + key % job.block_size) * d;
            };
            std::vector<double> sum(d);
            double weights = 0;
            for (u32 key = least; key <= context; key++) {
                double score = 0;
                for (u32 i = 0; i < d; i++) score += value(q[row * stride + head * d + i]) * value(k[place(key) + i]);
                const double weight = std::exp(score * args.scale);
                weights += weight;
                for (u32 i = 0; i < d; i++) sum[i] += weight * value(v[place(key) + i]);
            }
            for (u32 i = 0; i < d; i++) expect("attention", sum[i] / weights, value(out[row * stride + head * d + i]));
        }
    }
}

int main() {
    attention_agrees({128, 2, 4, 16, 256, 0, {0, 17, 191, 300}});
    attention_agrees({128, 1, 12, 24, 64, 0, {5, 150}});
    attention_agrees({64, 1, 8, 16, 128, 100, {40, 420}});
    attention_agrees({80, 2, 1, 32, 64, 0, {130}});
    attention_agrees({256, 1, 2, 16, 64, 0, {90}});
    printf("%ld values, the worst off by %.4f\n", values, worst);
}

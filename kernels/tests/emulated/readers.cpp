// The kernels that read a product, against f64: with what LoRA adds to it worked out before, and with h that they multiply with B
// themselves: with B packed, for one slot and for several, and with B in the adapters' tables. And the kernel that lays adapters
// out for them.
//
// Adapters lie side by side in rows, some rows have none; ranks fill slots, leave some of them over, or are missing.
#include "check.hpp"

#include "../../cuda/prelude.cuh"

#include "../../cuda/lora.cuh"
#include "../../cuda/packed.cuh"

#include "../../cuda/norm.cuh"

#include "../../cuda/prompts.cuh"

#include "../../cuda/paged.cuh"

#include "../../cuda/gated_mlp.cu"
#include "../../cuda/qkv.cu"
#include "../../cuda/residual.cu"
#include "../../cuda/spread.cu"
#include "../../cuda/stack.cu"

// What runs: adapters by the ranks of their parts, and rows.
struct Case {
    std::vector<std::vector<u32>> ranks;
    u32 rows;
    bool prompts = false;
    bool norms = prompts;  // of q and k
    u32 pieces = 5;        // of a row's sums of squares
};

struct Adapter {
    std::vector<u16> a;
    std::vector<u16> b[3];
    LoraSite site{};
    u32 slot;
    u32 slots;
};

const u32 INPUTS = 24;

// A site with its adapters laid out by `stack`.
struct Site {
    const Case& job;
    const std::vector<u32> widths;
    const u32 slot_lanes;
    u32 slots = 1;
    std::vector<Adapter> adapters;
    std::vector<u8> packed;
    std::vector<Tile> tiles;
    std::vector<LoraPart> parts;

    Site(const Case& job, std::vector<u32> widths) : job(job), widths(widths), slot_lanes(LORA_LANES * widths.size()) {
        u32 taken = 0;
        for (const auto& ranks : job.ranks) {
            adapters.push_back(make(ranks));
            adapters.back().slot = taken;
            taken += adapters.back().slots;
        }
        while (slots < taken) slots *= 2;
        lay_out();
        // The first rows and the last have no adapter.
        const u32 shares = job.rows > 1 ? adapters.size() + 2 : 1;
        for (u32 row = 0; row < job.rows; row++) {
            const u32 share = row * shares / job.rows;
            const bool has = shares == 1 || (share > 0 && share <= adapters.size());
            const Adapter* adapter = has ? &adapters[shares == 1 ? 0 : share - 1] : 0;
            tiles.push_back(adapter ? Tile{&adapter->site, row, 1, (u8)adapter->slot, (u8)adapter->slots} : Tile{0, row, 1, 0, 0});
        }
        parts.assign(3 * job.rows, LoraPart{0, 99, 99, NAN, 99});
        launch({1, 1, 1}, 256, [&] { spread({tiles.data(), parts.data(), job.rows, 0}); });
    }

    Adapter make(const std::vector<u32>& ranks) const {
        Adapter made;
        u32 most = 1;
        for (u32 p = 0; p < widths.size(); p++) {
            LoraPart part{0, ranks[p], made.site.lanes, 0.3f + p, 0};
            const u32 stride = part.stride();
            for (u32 k = 0; k < stride; k++)
                for (u32 i = 0; i < INPUTS; i++) made.a.push_back(k < part.rank ? round_bf16(random_float()) : 0);
            for (u32 c = 0; c < widths[p]; c++)
                for (u32 k = 0; k < stride; k++) made.b[p].push_back(k < part.rank ? round_bf16(random_float()) : 0);
            part.b = made.b[p].data();
            made.site.parts[p] = part;
            made.site.lanes += stride;
            most = std::max(most, part.rank);
        }
        made.site.a = made.a.data();
        made.slots = (most + LORA_LANES - 1) / LORA_LANES;
        return made;
    }

    void lay_out() {
        u32 columns = 0;
        for (u32 width : widths) columns += packed_columns(width);
        // Memory that nobody has written holds NaN; what nobody may read, too.
        std::vector<u16> lanes(slots * slot_lanes * INPUTS, 0x7fc0);
        packed.assign(sizeof(PackedScales) + slots * columns * LORA_LANES * 2, 0xff);
        memset(packed.data(), 0, sizeof(PackedScales));
        for (const Adapter& adapter : adapters) {
            StackPlace place{lanes.data(), packed.data(), INPUTS, slot_lanes, {}, 0};
            std::copy(widths.begin(), widths.end(), place.widths);
            const StackArgs args{&adapter.site, &place, adapter.slot, adapter.slots};
            launch({1, 2, 1}, 256, [&] { stack(args); });
            for (u32 l = 0; l < adapter.slots * slot_lanes; l++) {
                const LoraPart& part = adapter.site.parts[l % slot_lanes / LORA_LANES];
                const u32 rank = l / slot_lanes * LORA_LANES + l % LORA_LANES;
                for (u32 i = 0; i < INPUTS; i++) {
                    const double a = rank < part.rank ? value(adapter.a[(part.lane + rank) * INPUTS + i]) : 0;
                    expect("A below W", a, value(lanes[(adapter.slot * slot_lanes + l) * INPUTS + i]));
                }
            }
        }
    }

    // Outputs of a product with the slots' lanes behind them.
    u32 stride(u32 outputs) const { return outputs + slots * slot_lanes; }

    Lora lora(u16* y, u32 outputs) const {
        return {tiles.data(), y + outputs, stride(outputs), 0, slot_lanes, job.rows, packed.data(), parts.data()};
    }

    // What LoRA adds to a column of a part.
    double delta(const u16* y, u32 outputs, u32 row, u32 p, u32 column) const {
        const Tile& tile = tiles[row];
        if (!tile.sites) return 0;
        const LoraPart& part = tile.sites->parts[p];
        const u16* h = y + row * stride(outputs) + outputs + tile.slot * slot_lanes + p * LORA_LANES;
        double sum = 0;
        for (u32 k = 0; k < part.rank; k++)
            sum += value(part.b[column * part.stride() + k]) * value(h[k / LORA_LANES * slot_lanes + k % LORA_LANES]);
        return sum * part.scale;
    }

    u32 groups_of(u32 rows) const { return (job.rows + rows - 1) / rows; }
};

enum Kind { WITHOUT, WORKED_OUT, PACKED, TABLES };

// Sums of squares, and what rows are multiplied with for them.
struct Factors {
    const u32 pieces;
    static constexpr float WIDTH = 64, EPS = 1e-5f;
    std::vector<float> squares;

    explicit Factors(const Case& job) : pieces(job.pieces), squares(random_floats(job.rows * pieces, 20)) {}

    Norm norm() { return {squares.data(), pieces, (u32)WIDTH, EPS, 1 / WIDTH}; }

    double of_row(u32 row) const {
        double sum = 0;
        for (u32 p = 0; p < pieces; p++) sum += squares[row * pieces + p];
        return 1 / std::sqrt(sum / WIDTH + EPS);
    }
};

static void residual_agrees(const Case& job, Kind kind) {
    const u32 width = 264, block = kind == TABLES ? 512 : 256, pieces = (width + block - 1) / block;
    Site site(job, {width});
    auto y = random_bf16(job.rows * site.stride(width)), delta = random_bf16(y.size());
    auto residual = random_floats(job.rows * width), weight = random_floats(width), bias = random_floats(width);
    const auto before = residual;
    std::vector<u16> x(job.rows * width);
    std::vector<float> squares(job.rows * pieces, NAN);
    ResidualArgs args{};
    args.lora = site.lora(y.data(), width);
    args.y = y.data(), args.bias = bias.data(), args.residual = residual.data(), args.weight = weight.data(), args.x = x.data();
    args.norm = {squares.data(), pieces, width, Factors::EPS, 1.0f / width};
    args.y_stride = site.stride(width), args.stride = width, args.rows = job.rows;
    args.columns = block;
    if (kind == WORKED_OUT) {
        args.delta = delta.data();
        launch({pieces, job.rows, 1}, 256, [&] { ::residual(args); });
    } else if (kind == TABLES)
        launch({pieces, job.rows, 1}, 128, [&] { residual_stacked(args); });
    else
        launch({pieces, site.groups_of(job.prompts ? 64 : 8), 1}, 256, [&] {
            if (job.prompts) return residual_prompts(args);
            site.slots == 1 ? residual_one(args) : residual_packed(args);
        });
    for (u32 row = 0; row < job.rows; row++) {
        double total = 0, found = 0;
        for (u32 c = 0; c < width; c++) {
            const u32 at = row * args.y_stride + c;
            const double added = kind == WORKED_OUT ? value(delta[at]) : site.delta(y.data(), width, row, 0, c);
            const double v = before[row * width + c] + value(y[at]) + added + bias[c];
            expect("residual", v, residual[row * width + c]);
            expect("x", v * weight[c], value(x[row * width + c]));
            total += v * v;
        }
        for (u32 p = 0; p < pieces; p++) found += squares[row * pieces + p];
        expect("sum of squares", 1, found / total);
    }
}

static void gate_agrees(const Case& job, Kind kind) {
    const u32 ffn = job.prompts ? 328 : 136;
    Site site(job, {ffn, ffn});
    Factors factors(job);
    auto y = random_bf16(job.rows * site.stride(2 * ffn)), delta = random_bf16(y.size());
    auto bias = random_floats(2 * ffn);
    std::vector<u16> out(job.rows * ffn);
    GatedArgs args{};
    args.lora = site.lora(y.data(), 2 * ffn);
    args.y = y.data(), args.bias = bias.data(), args.out = out.data();
    args.y_stride = site.stride(2 * ffn), args.out_stride = ffn, args.ffn = ffn, args.rows = job.rows;
    args.norm = factors.norm();
    args.row_warps = job.rows <= 8 ? 0 : job.rows <= 16 ? 1 : 2;
    if (kind == WORKED_OUT) {
        args.delta = delta.data();
        launch({1, job.rows, 1}, 256, [&] { gated_mlp(args); });
    } else if (kind == TABLES) {
        launch({(ffn + 255) / 256, site.groups_of(8), 1}, 128, [&] { gated_mlp_stacked(args); });
    } else {
        const u32 columns = job.prompts ? 256 : PACKED_COLUMNS * (4 >> args.row_warps);
        const u32 rows = job.prompts ? 64 : 8 << args.row_warps;
        launch({(ffn + columns - 1) / columns, site.groups_of(rows), 1}, 128, [&] {
            if (job.prompts) return gated_mlp_prompts(args);
            site.slots == 1 ? gated_mlp_one(args) : gated_mlp_packed(args);
        });
    }
    for (u32 row = 0; row < job.rows; row++)
        for (u32 c = 0; c < ffn; c++) {
            double both[2];
            for (u32 p = 0; p < 2; p++) {
                const u32 at = row * args.y_stride + p * ffn + c;
                const double added = kind == WORKED_OUT ? value(delta[at]) : site.delta(y.data(), 2 * ffn, row, p, c);
                both[p] = factors.of_row(row) * (value(y[at]) + added) + bias[p * ffn + c];
            }
            expect("gate", both[0] / (1 + std::exp(-both[0])) * both[1], value(out[row * ffn + c]));
        }
}

static void heads_agree(const Case& job, Kind kind, u32 d) {
    const u32 heads = 3, outputs = (heads + 2) * d, positions = 64, block = 16;
    Site site(job, {heads * d, d, d});
    Factors factors(job);
    auto y = random_bf16(job.rows * site.stride(outputs)), delta = random_bf16(y.size());
    auto bias = random_floats(outputs), q_norm = random_floats(d), k_norm = random_floats(d), rope = random_floats(positions * d);
    std::vector<u32> position, slot;
    for (u32 row = 0; row < job.rows; row++) {
        position.push_back(row * 7 % positions);
        slot.push_back(row % 11 == 10 ? NO_SLOT : row);
    }
    const size_t cache = (job.rows + block) / block * block * d;
    std::vector<u16> q(job.rows * heads * d), k(cache), v(cache);
    QkvArgs args{};
    args.y = y.data(), args.bias = bias.data(), args.rope = rope.data(), args.positions = position.data(), args.slots = slot.data();
    if (job.norms) args.q_norm = q_norm.data(), args.k_norm = k_norm.data();
    args.q = q.data(), args.k_cache = k.data(), args.v_cache = v.data();
    args.y_stride = site.stride(outputs), args.q_stride = heads * d, args.heads = heads, args.kv_heads = 1;
    args.d = args.d_padded = d, args.block_size = block, args.eps = Factors::EPS, args.rows = job.rows;
    args.lora = site.lora(y.data(), outputs), args.norm = factors.norm();
    if (kind == WORKED_OUT) {
        args.delta = delta.data();
        launch({heads + 2, site.groups_of(4), 1}, 128, [&] { qkv(args); });
    } else if (kind == TABLES)
        launch({heads + 2, site.groups_of(4), 1}, 128, [&] { qkv_stacked(args); });
    else
        launch({job.prompts ? (heads + 1 + PROMPT_HEADS) / PROMPT_HEADS : heads + 2, site.groups_of(job.prompts ? 16 : 8), 1}, d / 2,
               [&] {
            if (kind == WITHOUT) return qkv_prompts(args);
            if (job.prompts) return qkv_prompts_packed(args);
            site.slots == 1 ? qkv_one(args) : qkv_packed(args);
        });
    for (u32 row = 0; row < job.rows; row++)
        for (u32 head = 0; head < heads + 2; head++) {
            const u32 part = head < heads ? 0 : head - heads + 1, own = part == 0 ? head : 0;
            if (part > 0 && slot[row] == NO_SLOT) continue;
            std::vector<double> x(d);
            double sum = 0;
            for (u32 c = 0; c < d; c++) {
                const u32 at = row * args.y_stride + head * d + c;
                double added = 0;
                if (kind == WORKED_OUT)
                    added = value(delta[at]);
                else if (kind != WITHOUT)
                    added = site.delta(y.data(), outputs, row, part, own * d + c);
                x[c] = factors.of_row(row) * (value(y[at]) + added) + bias[head * d + c];
                sum += x[c] * x[c];
            }
            const float* norm = part == 0 ? args.q_norm : part == 1 ? args.k_norm : 0;
            for (u32 c = 0; norm && c < d; c++) x[c] *= norm[c] / std::sqrt(sum / d + Factors::EPS);
            const u16* found = part == 0 ? &q[row * args.q_stride + own * d] : part == 1 ? &k[slot[row] * d] : &v[slot[row] * d];
            for (u32 c = 0; c < d / 2; c++) {
                const float* angles = &rope[position[row] * d + c];
                const double cosine = part == 2 ? 1 : angles[0], sine = part == 2 ? 0 : angles[d / 2];
                expect("head", x[c] * cosine - x[c + d / 2] * sine, value(found[c]));
                expect("head", x[c + d / 2] * cosine + x[c] * sine, value(found[c + d / 2]));
            }
        }
}

int main() {
    const std::vector<std::vector<u32>> one = {{16, 9, 16}}, uneven = {{24, 4, 33}, {0, 12, 8}};
    const std::vector<std::vector<u32>> six = {{16, 16, 16}, {8, 8, 8}, {16, 0, 2}, {16, 16, 16}, {16, 5, 16}, {1, 1, 1}};
    const std::vector<std::vector<u32>> many(30, {16, 5, 1}), all_slots = {{1024, 7, 40}};
    const Case cases[] = {{one, 1},    {one, 19},           {one, 35, true},  {uneven, 7},
                          {uneven, 27, true, false, 8}, {six, 33}, {many, 90, true}, {all_slots, 9}};
    for (const Case& job : cases)
        for (Kind kind : {WORKED_OUT, PACKED, TABLES}) {
            // To those that get what LoRA adds the adapters make no difference.
            if (kind == WORKED_OUT && job.ranks != one) continue;
            residual_agrees(job, kind);
            gate_agrees(job, kind);
            for (u32 d : {64, 128}) heads_agree(job, kind, d);
        }
    for (Kind kind : {WITHOUT, PACKED}) heads_agree(cases[2], kind, 256);
    heads_agree(cases[2], WITHOUT, 64);
    printf("%ld values, the worst off by %.4f\n", values, worst);
}

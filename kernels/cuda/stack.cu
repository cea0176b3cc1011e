// Lays an adapter out where steps of few adapters find it: A below the base weights, whose product then gives h beside y,
// [y, h] = x [W, A]ᵀ, and B as the kernels that read y take it (`packed.cuh`).

struct StackPlace {
    u16* lanes;  // the first below W; null: there is no such weight
    u8* packed;
    u32 inputs;  // rounded up to 8
    u32 slot_lanes;
    u32 widths[3];  // of the parts
    u32 unused;
};

struct StackArgs {
    const LoraSite* sites;
    const StackPlace* places;  // one a site
    u32 slot;
    u32 slots;
};

// Sixteen ranks of each part a slot: slot after slot, part after part.
DEVICE void stack_a(const StackArgs& args, const LoraSite& site, const StackPlace& place, u32 first, u32 step) {
    const u32 eights = place.inputs / 8;
    uint4* to = (uint4*)(place.lanes + (u64)args.slot * place.slot_lanes * place.inputs);
    for (u32 i = first; i < args.slots * place.slot_lanes * eights; i += step) {
        const u32 lane = i / eights, in_slot = lane % place.slot_lanes;
        const LoraPart& part = site.parts[in_slot / LORA_LANES];
        const u32 rank = lane / place.slot_lanes * LORA_LANES + in_slot % LORA_LANES;
        uint4 a = make_uint4(0, 0, 0, 0);
        if (rank < part.rank) a = ((const uint4*)site.a)[(u64)(part.lane + rank) * eights + i % eights];
        to[i] = a;
    }
}

DEVICE uint2 four_ranks(const LoraPart& part, u32 column, u32 width, u32 k) {
    if (k >= part.rank || column >= width) return make_uint2(0, 0);
    return *(const uint2*)(part.b + (u64)column * part.stride() + k);
}

// B of the slot's ranks from `k` on.
DEVICE void pack_b(const LoraSite& site, const StackPlace& place, u32 slot, u32 k, u32 first, u32 step) {
    u32 all = 0;
    for (u32 p = 0; p < 3; p++) all += packed_columns(place.widths[p]);
    u16* to = (u16*)(place.packed + sizeof(PackedScales)) + (u64)slot * all * LORA_LANES;
    for (u32 p = 0; p < 3; p++) {
        const LoraPart& part = site.parts[p];
        const u32 width = place.widths[p], columns = packed_columns(width);
        if (first == 0) ((PackedScales*)place.packed)->scale[slot][p] = part.rank ? part.scale : 0.0f;
        for (u32 i = first; i < columns * 2; i += step) {
            const u32 lane = i % 32, g = lane / 4, q = lane % 4;
            const u32 column = i / 64 * PACKED_COLUMNS + 4 * g + i / 32 % 2 * 2;
            const uint2 a = four_ranks(part, column, width, k + 4 * q), b = four_ranks(part, column + 1, width, k + 4 * q);
            ((uint4*)to)[i] = make_uint4(a.x, b.x, a.y, b.y);
        }
        to += columns * LORA_LANES;
    }
}

// Grid: sites, shares of one.
KERNEL(256, 1) stack(const StackArgs args) {
    const LoraSite& site = args.sites[blockIdx.x];
    const StackPlace place = args.places[blockIdx.x];
    if (!place.lanes) return;
    const u32 first = blockIdx.y * 256 + threadIdx.x, step = gridDim.y * 256;
    stack_a(args, site, place, first, step);
    for (u32 n = 0; n < args.slots; n++) pack_b(site, place, args.slot + n, n * LORA_LANES, first, step);
}

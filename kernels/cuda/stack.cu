// Copies an adapter's A below the base weights, whose product then gives h beside y: [y, h] = x [W, A]ᵀ.

struct StackPlace {
    u16* lanes;  // the first below W; null: there is no such weight
    u32 inputs;  // rounded up to 8
    u32 slot_lanes;
};

struct StackArgs {
    const LoraSite* sites;
    const StackPlace* places;  // one a site
    u32 slot;
    u32 unused;
};

// Grid: sites, shares of one.
KERNEL(256, 1) stack(const StackArgs args) {
    const LoraSite& site = args.sites[blockIdx.x];
    const StackPlace place = args.places[blockIdx.x];
    if (!place.lanes) return;
    const uint4* from = (const uint4*)site.a;
    uint4* to = (uint4*)(place.lanes + (u64)args.slot * place.slot_lanes * place.inputs);
    const u32 count = site.lanes * (place.inputs / 8);
    for (u32 i = blockIdx.y * 256 + threadIdx.x; i < count; i += gridDim.y * 256) to[i] = from[i];
}

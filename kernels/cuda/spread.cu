// What every row's adapter has at every site, so that kernels that read a product find a row's B in one load: the way from
// tiles by a table of its adapter would be two, in each of them.

struct SpreadArgs {
    const Tile* tiles;  // one a row
    LoraPart* parts;    // [sites, 3, rows]
    u32 rows;
    u32 unused;
};

// Grid: sites, rows / 256.
KERNEL(256, 1) spread(const SpreadArgs args) {
    const u32 site = blockIdx.x, row = blockIdx.y * 256 + threadIdx.x;
    if (row >= args.rows) return;
    const Tile tile = args.tiles[row];
#pragma unroll
    for (u32 p = 0; p < 3; p++) {
        LoraPart part = {};
        if (tile.sites) part = tile.sites[site].parts[p];
        part.slot = tile.slot;
        args.parts[(u64)(site * 3 + p) * args.rows + row] = part;
    }
}

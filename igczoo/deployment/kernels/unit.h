// An IGC unit: for a tile of pixels at a time, the primary convolution goes into a buffer that stays in the cache, and from there a product
// for each plane to the output with bias, residual and ReLU.
#pragma once
#include <algorithm>

#include "amx.h"
#include "pairs.h"
#include "primary.h"
#include "product.h"
#include "threads.h"

namespace {

// The output is split in tiles of pixels, groups of planes and parts of a plane's columns.
struct Split {
    int64_t tiles, group, parts;
};

Split split(int64_t pixels, int64_t planes, int64_t channels, int64_t taps, bool by_pairs, int64_t threads) {
    constexpr int64_t CACHE = 1 << 17;                              // floats: half the smallest L2 cache of today's servers
    Split best = {};
    int64_t least = INT64_MAX;
    for (int64_t group = 1; group <= std::min<int64_t>(2, planes); ++group) {
        const int64_t groups = ceil_div(planes, group), most = std::clamp<int64_t>(CACHE / (group * channels), 6, 192);
        for (int64_t parts = 1; parts == 1 || parts * 64 <= channels; parts *= 2)
            for (int64_t tiles = ceil_div(pixels, most), last = tiles + threads; tiles < last; ++tiles) {
                // Of the thread with most items: taps, which two planes share, at a quarter of the product's speed, and the weights, read
                // anew for each tile, and packed where the product is by pairs.
                const int64_t items = ceil_div(tiles * groups * parts, threads), tile = ceil_div(pixels, tiles);
                const int64_t weights = (by_pairs ? 16 : 4) * group * channels;
                const int64_t cost = items * (tile * (4 * taps * parts + group * channels) + weights) / parts;
                if (cost < least) least = cost, best = {tiles, group, parts};
            }
    }
    return best;
}

// All columns of all pixels; by pairs, the rows are divided where they are. Where the weight is given in tiles, by those.
template <class T>
void multiply_tile(const Product<T>& p, T* rows, int64_t pixels, int64_t columns, bool by_pairs, const bfloat16* weight_tiles, T* copy) {
    if constexpr (std::is_same_v<T, bfloat16>)
        if (weight_tiles) return multiply_by_tiles(p, rows, weight_tiles, pixels, columns);
    if constexpr (PAIRS_PAY<T>)
        if (by_pairs) {
            Row* sums = scratch<Row>(pixels);
            divide_rows(rows, p.row, pixels, p.length, sums);
            return multiply(p, sums, pixels, columns, copy);
        }
    multiply(p, pixels, columns, copy);
}

// A tile of pixels at a time: the primary convolution, and the projection of a shortcut, then a product for each plane.
void unit(const Primary& p, const Primary& shortcut, const Number* secondary, const Number* bias, int64_t images, int64_t planes, bool relu,
          int64_t threads, Number* out) {
    const int64_t L = p.channels, pixels = images * p.out_height * p.out_width;
    const bfloat16* weight_tiles = in_tiles(secondary, planes, 1, L, L, threads);
    const int64_t whole = weight_tiles ? TILE_NUMBERS : 16, row = ceil_div(L, whole) * whole;
    const int64_t zeros = weight_tiles ? row - L : L % FACTORS<Number>;     // behind the end of a row
    // What dividing costs is a matter of a row for each of L columns, and of a column for each pixel. Of one image's pixels: how many
    // images there are makes no difference to any.
    const bool by_pairs = PAIRS_PAY<Number> && L >= 64 && p.out_height * p.out_width >= 32;
    const Split s = split(pixels, planes, L, p.in_planes * p.kernel * p.kernel, by_pairs, threads);
    const int64_t most = ceil_div(pixels, s.tiles), part = ceil_div(ceil_div(L, s.parts), 64) * 64;
    parallel(threads, s.tiles * s.parts * ceil_div(planes, s.group), [&](int64_t item) {
        const int64_t tile = item % s.tiles, begin = tile * pixels / s.tiles, end = (tile + 1) * pixels / s.tiles;
        const int64_t column = item / s.tiles % s.parts * part, first = item / s.tiles / s.parts * s.group;
        const int64_t group = std::min(s.group, planes - first);
        if (column >= L) return;
        const int64_t plane_rows = (most + (weight_tiles ? TILE_ROWS - 1 : 0)) * row, buffer = s.group * plane_rows;
        const int64_t room = weight_tiles ? 0 : packed(L);
        Number* rows = scratch<Number>((shortcut.weight ? 2 : 1) * buffer + room);
        Number* copy = rows + buffer;
        Number* added = copy + room;
        const TileRegisters registers(weight_tiles);
        convolve(p, begin, end, first, group, {rows, row, plane_rows});
        if (zeros)
            for (Number* end_of_row = rows + L; end_of_row < rows + buffer; end_of_row += row) std::fill_n(end_of_row, zeros, Number{});
        if (shortcut.weight) convolve(shortcut, begin, end, first, group, {added, row, plane_rows});
        for (int64_t j = 0; j < group; ++j) {
            const int64_t plane = first + j, at = begin * planes * L + plane * L;
            Product<Number> product = {rows + j * plane_rows, row, 0, 1, L, secondary + plane * L * L, L, bias + plane * L,
                                       shortcut.in, planes * L, out + at, planes * L, relu};
            if (shortcut.weight) product.residual = added + j * plane_rows, product.residual_pixel = row;
            else if (product.residual) product.residual += at;
            product.skip_columns(column);
            const bfloat16* in_tiles = weight_tiles ? weight_tiles + (plane * ceil_div(L, 16) + column / 16) * 16 * row : nullptr;
            multiply_tile(product, rows + j * plane_rows, end - begin, std::min(part, L - column), by_pairs, in_tiles, copy);
        }
    });
}

}  // namespace

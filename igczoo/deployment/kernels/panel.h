// Products of many pixels by a few columns of a matrix, with bias: as product.h, for rows that are short or whose numbers lie scattered.
#pragma once
#include <algorithm>

#include "product.h"

namespace {

constexpr int BLOCK = VECTORS * LANES;                              // columns at most, in whole vectors

// Of a weight (rows, step) the `columns` of a block, as (rows / FACTORS, padded, FACTORS) with zeros where there are none.
template <class T>
void pack_block(const T* weight, int64_t step, int64_t rows, int64_t columns, int64_t padded, T* copy) {
    constexpr int64_t factors = FACTORS<T>;
    std::fill(copy, copy + ceil_div(rows, factors) * factors * padded, T{});
    for (int64_t k = 0; k < rows; ++k)
        for (int64_t column = 0; column < columns; ++column)
            copy[k / factors * factors * padded + column * factors + k % factors] = weight[k * step + column];
}

// A row's next numbers: neighbours, or where `places` says.
inline float factor(const float* row, const int32_t* places) { return row[places[0]]; }
inline uint32_t factor(const bfloat16* row, const int32_t* places) { return row[places[0]].bits | uint32_t{row[places[1]].bits} << 16; }

// `height` pixels by `vectors` vectors of N columns, of whose last vector only `last` are there.
template <int N, int height, int vectors, bool scattered, class T>
__attribute__((always_inline)) inline void multiply_panel(const Product<T>& p, const int32_t* places, int last) {
    Vector<N> sum[height][vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
        const Vector<N> bias = p.bias ? load_some<N>(p.bias + v * N, v + 1 < vectors ? N : last) : Vector<N>{};
#pragma GCC unroll 12
        for (int h = 0; h < height; ++h) sum[h][v] = bias;
    }
    const T *weight = p.weight, *rows = p.rows;
    const auto add = [&](const auto& factor_of) __attribute__((always_inline)) {
        Bits<N> w[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) std::memcpy(&w[v], weight + v * N * FACTORS<T>, sizeof w[v]);
#pragma GCC unroll 12
        for (int h = 0; h < height; ++h) {
            const auto x = factor_of(rows + h * p.row);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sum[h][v] = multiply_add<N>(x, w[v], sum[h][v]);
        }
        weight += p.step;
    };
    for (int64_t k = 0; k < p.length / FACTORS<T> * FACTORS<T>; k += FACTORS<T>)
        add([&](const T* row) { return scattered ? factor(row, places + k) : factor(row + k); });
    if constexpr (FACTORS<T> > 1)
        if (p.length % 2) add([&](const T* row) { return uint32_t{row[scattered ? places[p.length - 1] : p.length - 1].bits}; });
#pragma GCC unroll 12
    for (int h = 0; h < height; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            const int count = v + 1 < vectors ? N : last;
            Vector<N> y = sum[h][v];
            if (p.residual) y += load_some<N>(p.residual + h * p.residual_pixel + v * N, count);
            if (p.relu) y = relu(y);
            store_some<N>(p.out + h * p.pixel + v * N, y, count);
        }
}

template <int N, int vectors, bool scattered, class T>
__attribute__((noinline)) void multiply_panels(Product<T> p, const int32_t* places, int64_t pixels, int last) {
    constexpr int HEIGHT = 2 * vectors <= VECTORS ? 2 * ROWS : ROWS;
    for (; pixels >= HEIGHT; pixels -= HEIGHT, p.skip_pixels(HEIGHT)) multiply_panel<N, HEIGHT, vectors, scattered>(p, places, last);
    for (int64_t height; pixels > 0; pixels -= height, p.skip_pixels(height)) {
        height = std::min<int64_t>(pixels, ROWS);
        with_constant<ROWS>(height, [&](auto height) { multiply_panel<N, height, vectors, scattered>(p, places, last); });
    }
}

// Calls run(lanes, vectors, block) for blocks of columns, few of them by shorter vectors where they leave longer ones in part.
template <class Run>
void over_panels(int64_t columns, const Run& run) {
    constexpr int SHORT = std::min(LANES, 8);
    for (int64_t block; columns > 0; columns -= block) {
        block = std::min<int64_t>(columns, BLOCK);
        const bool by_short = block % LANES && block <= VECTORS * SHORT;
        with_constant<VECTORS>(ceil_div(block, by_short ? SHORT : LANES), [&](auto vectors) {
            if (by_short) run(std::integral_constant<int, SHORT>{}, vectors, block);
            else run(std::integral_constant<int, LANES>{}, vectors, block);
        });
    }
}

// Numbers that multiply_blocks needs room for, to pack a weight of so many rows.
constexpr int64_t packed_block(int64_t rows) { return ceil_div(rows, 2) * 2 * BLOCK; }

// All columns of all pixels. `places` of a row's numbers where scattered.
template <bool scattered, class T>
void multiply_blocks(Product<T> p, const int32_t* places, int64_t pixels, int64_t columns, T* copy) {
    over_panels(columns, [&](auto lanes, auto vectors, int64_t block) {
        Product<T> q = p;
        if (FACTORS<T> > 1 || block % lanes) {
            pack_block(p.weight, p.step, p.length, block, vectors * lanes, copy);
            q.weight = copy;
            q.step = vectors * lanes * FACTORS<T>;
        }
        multiply_panels<lanes, vectors, scattered>(q, places, pixels, block - (vectors - 1) * lanes);
        p.skip_columns(block);
    });
}

// Numbers that a weight (rows, columns) takes where all its blocks are packed.
template <class T>
constexpr int64_t packed_panels(int64_t rows, int64_t columns) {
    return ceil_div(rows, FACTORS<T>) * FACTORS<T> * ceil_div(columns, LANES) * LANES;
}

// All its blocks, one after another.
template <class T>
void pack_panels(const T* weight, int64_t rows, int64_t columns, T* copy) {
    over_panels(columns, [&](auto lanes, auto vectors, int64_t block) {
        pack_block(weight, columns, rows, block, vectors * lanes, copy);
        weight += block, copy += ceil_div(rows, FACTORS<T>) * FACTORS<T> * vectors * lanes;
    });
}

}  // namespace

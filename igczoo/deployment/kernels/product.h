// Products of pixels by a matrix: the secondary convolution of a plane, and the stem's convolution.
#pragma once
#include <algorithm>

#include "vectors.h"

namespace {

constexpr int VECTORS = LANES == 8 ? 2 : 4;                         // a block of the output, in vectors of columns,
constexpr int ROWS = LANES > 4 ? 6 : REGISTERS == 32 ? 5 : 2;       // by pixels: with 32 short registers six leave none for their numbers

// A row's numbers that one multiplication takes: one of float, two of bfloat16.
template <class T>
constexpr int FACTORS = sizeof(float) / sizeof(T);

inline float factor(const float* from) { return *from; }

inline uint32_t factor(const bfloat16* from) {
    uint32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return pair;
}

template <int N>
inline Vector<N> multiply_add(float x, Bits<N> w, Vector<N> sum) {
    return x * (Vector<N>)w + sum;
}

template <int N>
inline Vector<N> multiply_add(uint32_t x, Bits<N> w, Vector<N> sum) {
    return add_pairs<N>(Bits<N>{} + x, w, sum);
}

// rows (pixels, pieces x length) by weight (pieces x length, columns): a pixel's row may lie in pieces, as the rows of its window do.
template <class T>
struct Product {
    const T* rows;
    int64_t row, piece;                                             // numbers from one pixel's to the next's; from one piece to the next
    int64_t pieces, length;                                         // for `multiply`, an odd row of bfloat16 has a zero behind its end
    const T* weight;
    int64_t step;                                                   // numbers from one of its rows to the next; packed, from FACTORS
    const T* bias;                                                  // (columns), or null
    const T* residual;                                              // (pixels, columns), or null
    int64_t residual_pixel;                                         // numbers from one of them to the next
    T* out;                                                         // (pixels, columns)
    int64_t pixel;                                                  // likewise
    bool relu;

    void skip_pixels(int64_t pixels) {
        rows += pixels * row;
        out += pixels * pixel;
        if (residual) residual += pixels * residual_pixel;
    }
    void skip_columns(int64_t columns) {
        weight += columns;
        if (bias) bias += columns;
        out += columns;
        if (residual) residual += columns;
    }
};

template <int N, int height, int vectors, class T>
__attribute__((always_inline)) inline void fetch_outputs(const Product<T>& p) {
#pragma GCC unroll 6
    for (int h = 0; h < height; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            __builtin_prefetch(p.out + h * p.pixel + v * N, 1);
            if (p.residual) __builtin_prefetch(p.residual + h * p.residual_pixel + v * N);
        }
}

// A vector of a pixel's sums, of which `count` are there.
template <int N, class T>
__attribute__((always_inline)) inline void put(const Product<T>& p, int h, int v, Vector<N> y, int count) {
    if (p.bias) y += load_some<N>(p.bias + v * N, count);
    if (p.residual) y += load_some<N>(p.residual + h * p.residual_pixel + v * N, count);
    if (p.relu) y = relu(y);
    store_some<N>(p.out + h * p.pixel + v * N, y, count);
}

// `height` pixels by `vectors` vectors of N columns; of a single vector perhaps only `count` columns are there.
template <int N, int height, int vectors, class T>
__attribute__((noinline)) void multiply_block(const Product<T>& p, int count) {
    fetch_outputs<N, height, vectors>(p);
    Vector<N> sum[height][vectors] = {};
    const T* weight = p.weight;
    for (int64_t piece = 0; piece < p.pieces; ++piece) {
        const T* rows = p.rows + piece * p.piece;
        for (int64_t k = 0; k < p.length; k += FACTORS<T>, weight += p.step) {
            Bits<N> w[vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) std::memcpy(&w[v], weight + v * N * FACTORS<T>, sizeof w[v]);
            // The next block's columns: a row of a wide weight is a page from the next, which the processor does not foresee by itself.
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) __builtin_prefetch(weight + (vectors + v) * N * FACTORS<T>, 0, 2);
#pragma GCC unroll 6
            for (int h = 0; h < height; ++h) {
                const auto x = factor(rows + h * p.row + k);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) sum[h][v] = multiply_add<N>(x, w[v], sum[h][v]);
            }
        }
    }
#pragma GCC unroll 6
    for (int h = 0; h < height; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) put<N>(p, h, v, sum[h][v], vectors == 1 ? count : N);
}

// The columns of a block of the weight as (pieces x length / FACTORS, vectors, N, FACTORS), with zeros beyond its own end.
template <int N, int vectors, class T>
void pack(const Product<T>& p, int count, T* copy) {
    const int64_t rows = p.pieces * p.length;
    for (int64_t k = 0; k < rows; k += FACTORS<T>)
        for (int v = 0; v < vectors; ++v, copy += N * FACTORS<T>) {
            const T* weight = p.weight + k * p.step + v * N;
            Bits<N> w = (Bits<N>)load_some<N>(weight, count);
            if constexpr (FACTORS<T> == 2) {
                w >>= 16;
                if (k + 1 < rows) w |= (Bits<N>)load_some<N>(weight + p.step, count);
            }
            std::memcpy(copy, &w, sizeof w);
        }
}

// `vectors` vectors of N columns of all pixels, from the weight itself where it has them as multiply_block reads them.
template <int N, int vectors, class T>
void multiply_columns(Product<T> p, int64_t pixels, int count, T* copy) {
    if (FACTORS<T> > 1 || count < N) {
        pack<N, vectors>(p, count, copy);
        p.weight = copy;
        p.step = vectors * N * FACTORS<T>;
    }
    for (int64_t height; pixels > 0; pixels -= height, p.skip_pixels(height)) {
        height = ceil_div(pixels, ceil_div(pixels, ROWS));
        with_constant<ROWS>(height, [&](auto height) { multiply_block<N, height, vectors>(p, count); });
    }
}

// Numbers that `multiply` needs room for, to pack a weight of so many rows, by fours at most.
constexpr int64_t packed(int64_t rows) { return ceil_div(rows, 4) * 4 * VECTORS * LANES; }

// Calls run(lanes, vectors, product, count) for vectors of columns, and for those left over.
template <class T, class Run>
void over_columns(Product<T> p, int64_t columns, const Run& run) {
    using One = std::integral_constant<int, 1>;
    for (int64_t vectors; columns >= LANES; columns -= vectors * LANES, p.skip_columns(vectors * LANES)) {
        vectors = ceil_div(columns / LANES, ceil_div(columns / LANES, VECTORS));
        with_constant<VECTORS>(vectors, [&](auto vectors) { run(std::integral_constant<int, LANES>{}, vectors, p, LANES); });
    }
    if (columns > 8) run(std::integral_constant<int, LANES>{}, One{}, p, columns);
    else if (columns > 4) run(std::integral_constant<int, std::min(LANES, 8)>{}, One{}, p, columns);
    else if (columns > 0) run(std::integral_constant<int, 4>{}, One{}, p, columns);
}

// All columns of all pixels.
template <class T>
void multiply(const Product<T>& p, int64_t pixels, int64_t columns, T* copy = nullptr) {
    over_columns(p, columns, [&](auto lanes, auto vectors, const Product<T>& p, int count) {
        multiply_columns<lanes, vectors>(p, pixels, count, copy);
    });
}

}  // namespace

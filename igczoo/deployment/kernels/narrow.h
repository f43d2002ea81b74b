// Products of the pixels of planes by a matrix a plane, and the matrices' gradients, where planes are too narrow for a library to be fast.
#pragma once
#include <algorithm>

#include "panel.h"
#include "threads.h"

namespace {

constexpr int NARROW_VECTORS = 3, NARROW_ROWS = REGISTERS == 32 ? 8 : 4;     // a block of sums: most registers

// Calls run(lanes, vectors, column) for blocks of columns, widest first.
template <class Run>
__attribute__((always_inline)) inline void over_blocks(int64_t columns, const Run& run) {
    int64_t c = 0;
    if constexpr (LANES > 8)
        if (columns == NARROW_VECTORS * 8) return run(std::integral_constant<int, 8>{}, std::integral_constant<int, NARROW_VECTORS>{}, c);
    over_lanes([&](auto lanes) __attribute__((always_inline)) {
        for (; c + NARROW_VECTORS * lanes <= columns; c += NARROW_VECTORS * lanes)
            run(lanes, std::integral_constant<int, NARROW_VECTORS>{}, c);
        for (; c + lanes <= columns; c += lanes) run(lanes, std::integral_constant<int, 1>{}, c);
    });
}

// Rows of a pixel's channels by columns of weight (L, L).
template <int N, int vectors, int height>
__attribute__((noinline)) void multiply_narrow_block(const Number* in, int64_t pixel, const Number* weight, int64_t L, Number* out) {
    Vector<N> sum[height][vectors] = {};
    for (int64_t k = 0; k < L; ++k, weight += L) {
        Vector<N> w[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) w[v] = load<N>(weight + v * N);
#pragma GCC unroll 8
        for (int h = 0; h < height; ++h) {
            const Real x = load<1>(in + h * pixel + k)[0];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sum[h][v] += w[v] * x;
        }
    }
#pragma GCC unroll 8
    for (int h = 0; h < height; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) store<N>(out + h * pixel + v * N, sum[h][v]);
}

// out (pixels, M, L) of in likewise, weight (M, L, L): [input][output].
void multiply_narrow(const Number* in, const Number* weight, int64_t pixels, int64_t planes, int64_t L, int64_t threads, Number* out) {
    const int64_t pixel = planes * L, tiles = ceil_div(pixels, std::clamp<int64_t>(16384 / pixel, 4, 256));
    parallel(threads, tiles, [&](int64_t tile) {
        const int64_t begin = tile * pixels / tiles, end = (tile + 1) * pixels / tiles;
        for (int64_t j = 0; j < planes; ++j) {
            if constexpr (!std::is_same_v<Number, double>)
                if (L % FACTORS<Number> == 0) {
                    const int64_t at = begin * pixel + j * L;
                    multiply_blocks<false, Number>({in + at, pixel, 0, 1, L, weight + j * L * L, L, nullptr, nullptr, 0, out + at, pixel, false},
                                                   nullptr, end - begin, L, scratch<Number>(packed_block(L)));
                    continue;
                }
            over_blocks(L, [&](auto lanes, auto vectors, int64_t c) __attribute__((always_inline)) {
                for (int64_t row = begin, height; row < end; row += height) {
                    height = std::min<int64_t>(NARROW_ROWS, end - row);
                    with_constant<NARROW_ROWS>(height, [&](auto height) {
                        multiply_narrow_block<lanes, vectors, height>(in + row * pixel + j * L, pixel, weight + j * L * L + c, L,
                                                                      out + row * pixel + j * L + c);
                    });
                }
            });
        }
    });
}

// sums (height, vectors of N) += products of `height` channels of grad by vectors of in, over rows.
template <int N, int vectors, int height>
__attribute__((noinline)) void sum_narrow_block(const Number* grad, const Number* in, int64_t pixel, int64_t rows, int64_t L, Real* sums) {
    Vector<N> sum[height][vectors] = {};
    for (int64_t row = 0; row < rows; ++row, grad += pixel, in += pixel) {
        Vector<N> x[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) x[v] = load<N>(in + v * N);
#pragma GCC unroll 8
        for (int h = 0; h < height; ++h) {
            const Real g = load<1>(grad + h)[0];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sum[h][v] += x[v] * g;
        }
    }
#pragma GCC unroll 8
    for (int h = 0; h < height; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) store<N>(sums + h * L + v * N, load<N>(sums + h * L + v * N) + sum[h][v]);
}

// Adds to grad_weight (M, L, L), [output][input], the products of grad (pixels, M, L) by in likewise.
void add_narrow_gradient(
    const Number* grad, const Number* in, int64_t pixels, int64_t planes, int64_t L, int64_t threads, Real* grad_weight) {
    const int64_t pixel = planes * L, size = pixel * L, parts = std::min<int64_t>(16, ceil_div(pixels, 256));
    Real* sums = scratch<Real>(parts * size);
    parallel(threads, parts, [&](int64_t part) {
        Real* own = sums + part * size;
        std::fill_n(own, size, Real{});
        const int64_t tile = std::clamp<int64_t>(4096 / L, 16, 256), end = (part + 1) * pixels / parts;
        for (int64_t row = part * pixels / parts; row < end; row += tile)
            for (int64_t j = 0; j < planes; ++j)
                for (int64_t o = 0, height; o < L; o += height) {
                    height = std::min<int64_t>(NARROW_ROWS, L - o);
                    with_constant<NARROW_ROWS>(height, [&](auto height) {
                        over_blocks(L, [&](auto lanes, auto vectors, int64_t c) __attribute__((always_inline)) {
                            const int64_t at = row * pixel + j * L;
                            sum_narrow_block<lanes, vectors, height>(grad + at + o, in + at + c, pixel, std::min(tile, end - row), L,
                                                                     own + (j * L + o) * L + c);
                        });
                    });
                }
    });
    parallel(threads, pixel, [&](int64_t row) {
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t l = row * L; l < (row + 1) * L; ++l) grad_weight[l] += sums[part * size + l];
    });
}

}  // namespace

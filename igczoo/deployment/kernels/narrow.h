// Products of the pixels of planes by matrices, and the matrices' gradients, where planes are too narrow for a library to be fast.
#pragma once
#include <algorithm>
#include <vector>

#include "panel.h"
#include "threads.h"

namespace {

// Matrix p goes from plane places[p][0], `inputs` wide, of a map to plane places[p][1], `outputs` wide, of another; where several go to one
// plane, it has their sum.
struct PlaneProducts {
    int64_t matrices, inputs, outputs;
    int64_t in_pixel, out_pixel;                                    // numbers from one pixel to the next
    const int64_t (*places)[2];

    int64_t in(int64_t p) const { return places[p][0] * inputs; }
    int64_t out(int64_t p) const { return places[p][1] * outputs; }
    std::vector<bool> additions() const {                           // whether another matrix has given to the plane of each before
        std::vector<bool> adds(matrices);
        for (int64_t p = 0; p < matrices; ++p)
            adds[p] = std::any_of(places, places + p, [&](const int64_t* place) { return place[1] == places[p][1]; });
        return adds;
    }
};

// Rows of `in` by a matrix (inputs, outputs), packed by `pack_panels`; `residual` may be null.
template <class T>
void multiply_rows(const PlaneProducts& s, const T* in, const T* packed, int64_t rows, const T* residual, T* out) {
    Product<T> p = {in, s.in_pixel, 0, 1, s.inputs, packed, 0, nullptr, residual, s.out_pixel, out, s.out_pixel, false};
    over_panels(s.outputs, [&](auto lanes, auto vectors, int64_t block) {
        p.step = vectors * lanes * FACTORS<T>;
        multiply_panels<lanes, vectors, false>(p, nullptr, rows, block - (vectors - 1) * lanes);
        p.weight += ceil_div(s.inputs, FACTORS<T>) * p.step, p.out += block;
        if (residual) p.residual += block;
    });
}

// In double, which only tests ask for.
void multiply_rows(const PlaneProducts& s, const double* in, const double* weight, int64_t rows, const double* residual, double* out) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t o = 0; o < s.outputs; ++o) {
            double sum = residual ? residual[row * s.out_pixel + o] : 0;
            for (int64_t i = 0; i < s.inputs; ++i) sum += in[row * s.in_pixel + i] * weight[i * s.outputs + o];
            out[row * s.out_pixel + o] = sum;
        }
}

// out (pixels, planes, outputs) of in (pixels, planes, inputs) and weight (matrices, inputs, outputs).
void multiply_planes(const PlaneProducts& s, const Number* in, const Number* weight, int64_t pixels, int64_t threads, Number* out) {
    const int64_t size = s.inputs * s.outputs;
    int64_t room = size;                                            // of a matrix as the products read it
    const Number* ready = weight;
    if constexpr (!std::is_same_v<Number, double>) {
        room = packed_panels<Number>(s.inputs, s.outputs);
        Number* packed = scratch<Number>(s.matrices * room);
        parallel(threads, s.matrices, [&](int64_t p) { pack_panels(weight + p * size, s.inputs, s.outputs, packed + p * room); });
        ready = packed;
    }
    const std::vector<bool> adds = s.additions();
    const int64_t tiles = ceil_div(pixels, std::clamp<int64_t>(16384 / std::max(s.in_pixel, s.out_pixel), 16, 256));
    parallel(threads, tiles, [&](int64_t tile) {
        const int64_t begin = tile * pixels / tiles, rows = (tile + 1) * pixels / tiles - begin;
        for (int64_t p = 0; p < s.matrices; ++p) {
            Number* to = out + begin * s.out_pixel + s.out(p);
            multiply_rows(s, in + begin * s.in_pixel + s.in(p), ready + p * room, rows, adds[p] ? to : nullptr, to);
        }
    });
}

// The gradients. A tile of both maps is copied into panels of a few channels each, in which the pixels follow one another: bfloat16 in pairs
// of pixels where the processor multiplies them, else every number as it is summed.
constexpr bool PAIRED = BY_PAIRS<std::min(LANES, 8)>;
constexpr int SUM_ROWS = REGISTERS == 32 ? 8 : 4, SUM_VECTORS = 3;  // a block of sums: most registers
using Operand = std::conditional_t<PAIRED, uint32_t, Real>;

// `rows` pixels of `width` channels as panels (width / N, steps, N). What a panel has beyond its channels is whatever the map has there, whose
// end is `end`.
template <int N>
void copy_panels(const Number* from, int64_t pixel, int64_t rows, int64_t width, const Number* end, Operand* to) {
    static constexpr Number zeros[N] = {};
    for (int64_t c = 0; c < width; c += N) {
        const Number* row = from + c;
        Number at_end[2][N] = {};
        const auto whole = [&](const Number* numbers, int which) {
            if (numbers + N <= end) return numbers;
            std::memcpy(at_end[which], numbers, (width - c) * sizeof(Number));
            return static_cast<const Number*>(at_end[which]);
        };
        for (int64_t at = 0; at < rows; at += PAIRED ? 2 : 1, to += N) {
            const Number* first = whole(row, 0);
            row += pixel;
            if constexpr (PAIRED) {
                const Bits<N> both = pairs<N>(first, at + 1 < rows ? whole(row, 1) : zeros);
                std::memcpy(to, &both, sizeof both);
                row += pixel;
            } else {
                store<N>(to, load<N>(first));
            }
        }
    }
}

template <int N>
inline Vector<N> add_products(uint32_t a, const uint32_t* b, Vector<N> sum) {
    Bits<N> x;
    std::memcpy(&x, b, sizeof x);
    return add_pairs<N>(Bits<N>{} + a, x, sum);
}

template <int N>
inline Vector<N> add_products(Real a, const Real* b, Vector<N> sum) {
    return load<N>(b) * a + sum;
}

// sums (SUM_ROWS, vectors of N) += the products of a panel of SUM_ROWS channels by panels of N, over so many steps.
template <int N, int vectors>
__attribute__((noinline)) void sum_panels(const Operand* a, const Operand* b, int64_t steps, Real* sums, int64_t sums_row) {
    Vector<N> sum[SUM_ROWS][vectors];
#pragma GCC unroll 8
    for (int h = 0; h < SUM_ROWS; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[h][v] = load<N>(sums + h * sums_row + v * N);
    for (int64_t step = 0; step < steps; ++step, a += SUM_ROWS, b += N)
#pragma GCC unroll 8
        for (int h = 0; h < SUM_ROWS; ++h)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sum[h][v] = add_products<N>(a[h], b + v * steps * N, sum[h][v]);
#pragma GCC unroll 8
    for (int h = 0; h < SUM_ROWS; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) store<N>(sums + h * sums_row + v * N, sum[h][v]);
}

// A plane of each of two maps.
struct PlanePair {
    const Number *a, *b, *a_end, *b_end;                            // of the maps
    int64_t a_pixel, b_pixel, a_width, b_width;
};

// sums (padded a_width, padded b_width) += a tile's products.
template <int N>
void sum_tile_of_planes(const PlanePair& g, int64_t rows, Operand* copy, Real* sums, int64_t sums_row) {
    const int64_t steps = PAIRED ? ceil_div(rows, 2) : rows;
    Operand *a = copy, *b = copy + steps * ceil_div(g.a_width, SUM_ROWS) * SUM_ROWS;
    copy_panels<SUM_ROWS>(g.a, g.a_pixel, rows, g.a_width, g.a_end, a);
    copy_panels<N>(g.b, g.b_pixel, rows, g.b_width, g.b_end, b);
    for (int64_t c = 0, vectors; c < g.b_width; c += vectors * N) {
        const int64_t left = ceil_div(g.b_width - c, N);
        vectors = ceil_div(left, ceil_div(left, SUM_VECTORS));
        with_constant<SUM_VECTORS>(vectors, [&](auto vectors) {
            for (int64_t row = 0; row < g.a_width; row += SUM_ROWS)
                sum_panels<N, vectors>(a + row * steps, b + c * steps, steps, sums + row * sums_row + c, sums_row);
        });
    }
}

// Adds to grad_weight (matrices, outputs, inputs) the products of grad (pixels, planes, outputs) by in (pixels, planes, inputs). The wider of
// both lies along the vectors.
void add_gradient_of_planes(
    const PlaneProducts& s, const Number* grad, const Number* in, int64_t pixels, int64_t threads, Real* grad_weight) {
    constexpr int SHORT = std::min(LANES, 8);
    const bool by_input = s.inputs >= s.outputs;
    const int64_t wide = std::max(s.inputs, s.outputs), narrow = std::min(s.inputs, s.outputs);
    const bool by_short = (wide - 1) % LANES < SHORT && wide <= SUM_VECTORS * SHORT;
    const int64_t lanes = by_short ? SHORT : LANES, sums_row = ceil_div(wide, lanes) * lanes;
    const int64_t height = ceil_div(narrow, SUM_ROWS) * SUM_ROWS, size = height * sums_row;
    const int64_t parts = std::min<int64_t>(16, ceil_div(pixels, 256)), tile = 2 * std::clamp<int64_t>(4096 / (height + sums_row), 32, 128);
    Real* sums = scratch<Real>(parts * s.matrices * size);
    parallel(threads, parts, [&](int64_t part) {
        Real* own = sums + part * s.matrices * size;
        std::fill_n(own, s.matrices * size, Real{});
        Operand* copy = scratch<Operand, 1>(tile * (height + sums_row));
        const int64_t end = (part + 1) * pixels / parts;
        for (int64_t row = part * pixels / parts; row < end; row += tile)
            for (int64_t p = 0; p < s.matrices; ++p) {
                const Number *g = grad + row * s.out_pixel + s.out(p), *x = in + row * s.in_pixel + s.in(p);
                PlanePair pair = {x, g, in + pixels * s.in_pixel, grad + pixels * s.out_pixel, s.in_pixel, s.out_pixel, narrow, wide};
                if (by_input) pair = {g, x, pair.b_end, pair.a_end, s.out_pixel, s.in_pixel, narrow, wide};
                const int64_t rows = std::min(tile, end - row);
                if (by_short) sum_tile_of_planes<SHORT>(pair, rows, copy, own + p * size, sums_row);
                else sum_tile_of_planes<LANES>(pair, rows, copy, own + p * size, sums_row);
            }
    });
    parallel(threads, s.matrices * s.outputs, [&](int64_t row) {
        const int64_t p = row / s.outputs, o = row % s.outputs;
        for (int64_t part = 0; part < parts; ++part) {
            const Real* from = sums + (part * s.matrices + p) * size;
            for (int64_t i = 0; i < s.inputs; ++i) grad_weight[row * s.inputs + i] += by_input ? from[o * sums_row + i] : from[i * sums_row + o];
        }
    });
}

}  // namespace

// The gradients of the primary convolution: of its input, and of its weight.
#pragma once
#include <algorithm>
#include <vector>

#include "primary.h"
#include "threads.h"

namespace {

// The input pixels of one phase, those as far from a multiple of the stride as (y, x), depend on the output's gradient by a convolution
// without a stride: weight (m, M, side, side, L), the taps of that phase, which are those of the flipped kernel where the stride is 1.
struct Phase {
    int64_t side, taps;

    Phase(const Primary& p, int64_t planes, int64_t y, int64_t x, Number* weight) {
        const int64_t k = p.kernel, radius = ceil_div(k / 2, p.stride);
        side = 2 * radius + 1, taps = 0;
        std::fill_n(weight, planes * p.pixel() * side * side, Number{});
        for (int64_t ky = 0; ky < k; ++ky)
            for (int64_t kx = 0; kx < k; ++kx) {
                const int64_t from_y = y + k / 2 - ky, from_x = x + k / 2 - kx;
                if (from_y % p.stride || from_x % p.stride) continue;
                ++taps;
                const int64_t tap = (from_y / p.stride + radius) * side + from_x / p.stride + radius;
                for (int64_t j = 0; j < planes; ++j)
                    for (int64_t i = 0; i < p.in_planes; ++i)
                        std::copy_n(p.weight + ((j * p.in_planes + i) * k * k + ky * k + kx) * p.channels, p.channels,
                                    weight + ((i * planes + j) * side * side + tap) * p.channels);
            }
    }
};

// grad_in (N, H, W, m, L) of grad (N, H', W', M, L). With a stride there must be no dilation.
void convolve_back(const Primary& p, int64_t images, int64_t planes, const Number* grad, int64_t threads, Number* grad_in) {
    const int64_t s = p.stride, radius = ceil_div(p.kernel / 2, s), size = planes * p.pixel() * (2 * radius + 1) * (2 * radius + 1);
    Number* weights = scratch<Number>(s * s * size);
    std::vector<int64_t> taps(s * s);
    for (int64_t phase = 0; phase < s * s; ++phase) taps[phase] = Phase(p, planes, phase / s, phase % s, weights + phase * size).taps;
    parallel(threads, images * p.height, [&](int64_t item) {
        const int64_t y = item % p.height, image = item / p.height, begin = (image * p.out_height + y / s) * p.out_width;
        for (int64_t x = 0; x < std::min(s, p.width); ++x) {
            const int64_t phase = y % s * s + x, count = ceil_div(p.width - x, s);
            Number* out = grad_in + (item * p.width + x) * p.pixel();
            if (taps[phase]) {
                const Primary back = {p.out_height, p.out_width, p.out_height, p.out_width, planes, p.channels, 2 * radius + 1, 1,
                                      p.dilation, grad, weights + phase * size, nullptr};
                convolve(back, begin, begin + count, 0, p.in_planes, {out, s * p.pixel(), p.channels});
            } else {
                for (int64_t at = 0; at < count; ++at) std::fill_n(out + at * s * p.pixel(), p.pixel(), Number{});
            }
        }
    });
}

struct Pair {
    int32_t out, in;                                                // pixels of the output and of the input that meet under a tap
};

// Tiles of the output's pixels: as many images as make up a tile, or parts of one image.
struct Tiles {
    static constexpr int64_t PIXELS = 64;
    int64_t images, tiles;

    Tiles(const Primary& p, int64_t most_images) {
        const int64_t pixels = p.out_height * p.out_width;
        images = std::min(ceil_div(PIXELS, pixels), most_images);
        tiles = images > 1 ? 1 : ceil_div(pixels, PIXELS);
    }
};

// Of a tile, for each tap in turn, the pairs of pixels.
struct Pairs {
    std::unique_ptr<Pair[]> pairs;
    std::unique_ptr<int64_t[]> begins;                              // (tiles, taps), and the end

    Pairs(const Primary& p, const Tiles& t) {
        const int64_t pixels = p.out_height * p.out_width, k = p.kernel, taps = k * k, images = t.images, tiles = t.tiles;
        pairs.reset(new Pair[images * pixels * taps]);
        begins.reset(new int64_t[tiles * taps + 1]);
        int64_t count = 0;
        for (int64_t tile = 0; tile < tiles; ++tile)
            for (int64_t tap = 0; tap < taps; ++tap) {
                begins[tile * taps + tap] = count;
                for (int64_t at = tile * images * pixels / tiles; at < (tile + 1) * images * pixels / tiles; ++at) {
                    const int64_t image = at / pixels, out_y = at % pixels / p.out_width, out_x = at % p.out_width;
                    const int64_t y = out_y * p.stride + tap / k * p.dilation - p.padding();
                    const int64_t x = out_x * p.stride + tap % k * p.dilation - p.padding();
                    if (0 <= y && y < p.height && 0 <= x && x < p.width)
                        pairs[count++] = {int32_t(at), int32_t((image * p.height + y) * p.width + x)};
                }
            }
        begins[tiles * taps] = count;
    }
};

// sums[j][i] += the products of plane j of grad and plane i of in, `vectors` vectors of N channels, over pairs of pixels.
template <int N, int vectors, int outs, int ins>
__attribute__((always_inline)) inline void sum_products(
    const Number* grad, int64_t grad_pixel, const Number* in, int64_t in_pixel, int64_t L, const Pair* pair, const Pair* end, Real* sums,
    int64_t sums_out, int64_t sums_in) {
    Vector<N> sum[outs][ins][vectors] = {};
    for (; pair < end; ++pair) {
        const Number* g = grad + pair->out * grad_pixel;
        const Number* x = in + pair->in * in_pixel;
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            Vector<N> value[ins];
#pragma GCC unroll 2
            for (int i = 0; i < ins; ++i) value[i] = load<N>(x + i * L + v * N);
#pragma GCC unroll 2
            for (int j = 0; j < outs; ++j) {
                const Vector<N> gradient = load<N>(g + j * L + v * N);
#pragma GCC unroll 2
                for (int i = 0; i < ins; ++i) sum[j][i][v] += gradient * value[i];
            }
        }
    }
#pragma GCC unroll 2
    for (int j = 0; j < outs; ++j)
#pragma GCC unroll 2
        for (int i = 0; i < ins; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) {
                Real* to = sums + j * sums_out + i * sums_in + v * N;
                store<N>(to, load<N>(to) + sum[j][i][v]);
            }
}

// A tile's share of the weight's gradient, added to sums (M, m, k, k, L).
template <int outs, int ins>
__attribute__((noinline)) void sum_tile(
    const Primary& p, int64_t planes, const Number* grad, const Number* in, const Pair* pairs, const int64_t* begins, int64_t images,
    int64_t of_images, Real* sums) {
    const int64_t L = p.channels, taps = p.kernel * p.kernel;
    int64_t c = 0;
    const auto at_channel = [&](auto lanes, auto vectors) __attribute__((always_inline)) {
        for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t count = (begins[tap + 1] - begins[tap]) / of_images * images;
            sum_products<lanes, vectors, outs, ins>(grad + c, planes * L, in + c, p.pixel(), L, pairs + begins[tap],
                                                    pairs + begins[tap] + count, sums + tap * L + c, p.plane_weight(), taps * L);
        }
    };
    over_lanes([&](auto lanes) __attribute__((always_inline)) {
        for (; c + 2 * lanes <= L; c += 2 * lanes) at_channel(lanes, std::integral_constant<int, 2>{});
        for (; c + lanes <= L; c += lanes) at_channel(lanes, std::integral_constant<int, 1>{});
    });
}

// Rows of the output, of so many images.
struct Part {
    int64_t images, begin, end;
};

template <int N, int vectors, int outs, int ins>
using Window = Vector<N>[outs][ins][3][vectors];                    // sums of a kernel's row that is three pixels wide and moves by one

// Adds the products of a row of gradients and of the row of the input beside it: a gradient serves three taps, and so does an input, which
// stays for its neighbours. `pixel` and `out_pixel` are numbers from one pixel to the next.
template <int N, int vectors, int outs, int ins>
__attribute__((always_inline)) inline void add_row(
    const Number* g, int64_t out_pixel, const Number* x, int64_t pixel, int64_t L, int64_t width, Window<N, vectors, outs, ins>& sum) {
    Vector<N> seen[ins][3][vectors] = {};                           // left of the pixel, its own, and right of it
#pragma GCC unroll 2
    for (int i = 0; i < ins; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) seen[i][1][v] = load<N>(x + i * L + v * N);
    const auto add_pixel = [&](bool last) __attribute__((always_inline)) {
#pragma GCC unroll 2
        for (int i = 0; i < ins; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) seen[i][2][v] = last ? Vector<N>{} : load<N>(x + pixel + i * L + v * N);
#pragma GCC unroll 2
        for (int j = 0; j < outs; ++j)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) {
                const Vector<N> gradient = load<N>(g + j * L + v * N);
#pragma GCC unroll 2
                for (int i = 0; i < ins; ++i)
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t) sum[j][i][t][v] += gradient * seen[i][t][v];
            }
#pragma GCC unroll 2
        for (int i = 0; i < ins; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) seen[i][0][v] = seen[i][1][v], seen[i][1][v] = seen[i][2][v];
        g += out_pixel, x += pixel;
    };
    for (int64_t at = 1; at < width; ++at) add_pixel(false);
    add_pixel(true);
}

// The same by pairs of pixels, of which the last may lack one.
template <int N, int vectors, int outs, int ins>
__attribute__((always_inline)) inline void add_row_by_pairs(
    const Number* g, int64_t out_pixel, const Number* x, int64_t pixel, int64_t L, int64_t width, Window<N, vectors, outs, ins>& sum) {
    static constexpr Number zeros[N] = {};
    for (int64_t at = 0; at < width; at += 2, g += 2 * out_pixel, x += 2 * pixel) {
        const bool two = at + 1 < width;
        Bits<N> seen[ins][3][vectors];                              // left of both pixels, their own, and right of them
#pragma GCC unroll 2
        for (int i = 0; i < ins; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) {
                const Number* own = x + i * L + v * N;
                const Number *left = at > 0 ? own - pixel : zeros, *next = two ? own + pixel : zeros;
                seen[i][0][v] = pairs<N>(left, two ? own : zeros);
                seen[i][1][v] = pairs<N>(own, next);
                seen[i][2][v] = pairs<N>(next, at + 2 < width ? own + 2 * pixel : zeros);
            }
#pragma GCC unroll 2
        for (int j = 0; j < outs; ++j)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) {
                const Number* own = g + j * L + v * N;
                const Bits<N> gradient = pairs<N>(own, two ? own + out_pixel : zeros);
#pragma GCC unroll 2
                for (int i = 0; i < ins; ++i)
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t) sum[j][i][t][v] = add_pairs<N>(gradient, seen[i][t][v], sum[j][i][t][v]);
            }
    }
}

// sums[j][i][ky][kx] += likewise over a part's pixels, for one row of a kernel.
template <int N, int vectors, int outs, int ins>
__attribute__((always_inline)) inline void sum_window(
    const Primary& p, int64_t planes, const Number* grad, const Number* in, Part part, int64_t ky, Real* sums) {
    const int64_t L = p.channels, pixel = p.pixel(), out_pixel = planes * L, width = p.width, height = p.height;
    Window<N, vectors, outs, ins> sum = {};
    for (int64_t image = 0; image < part.images; ++image)
        for (int64_t y = std::max(part.begin, 1 - ky); y < std::min(part.end, height + 1 - ky); ++y) {
            const Number* g = grad + (image * height + y) * width * out_pixel;
            const Number* x = in + (image * height + y + ky - 1) * width * pixel;
            if constexpr (BY_PAIRS<N>) add_row_by_pairs<N, vectors, outs, ins>(g, out_pixel, x, pixel, L, width, sum);
            else add_row<N, vectors, outs, ins>(g, out_pixel, x, pixel, L, width, sum);
        }
#pragma GCC unroll 2
    for (int j = 0; j < outs; ++j)
#pragma GCC unroll 2
        for (int i = 0; i < ins; ++i)
#pragma GCC unroll 3
            for (int t = 0; t < 3; ++t)
#pragma GCC unroll 2
                for (int v = 0; v < vectors; ++v) {
                    Real* to = sums + j * p.plane_weight() + (i * 9 + ky * 3 + t) * L + v * N;
                    store<N>(to, load<N>(to) + sum[j][i][t][v]);
                }
}

// A part's share of the weight's gradient, added to sums (M, m, 3, 3, L).
template <int outs, int ins>
__attribute__((noinline)) void sum_part(
    const Primary& p, int64_t planes, const Number* grad, const Number* in, Part part, Real* sums) {
    const int64_t L = p.channels;
    int64_t c = 0;
    const auto at_channel = [&](auto lanes, auto vectors) __attribute__((always_inline)) {
        for (int64_t ky = 0; ky < 3; ++ky) sum_window<lanes, vectors, outs, ins>(p, planes, grad + c, in + c, part, ky, sums + c);
    };
    over_lanes([&](auto lanes) __attribute__((always_inline)) {
        if constexpr (outs * ins == 1)                              // too few sums to keep the multipliers busy
            for (; c + 2 * lanes <= L; c += 2 * lanes) at_channel(lanes, std::integral_constant<int, 2>{});
        for (; c + lanes <= L; c += lanes) at_channel(lanes, std::integral_constant<int, 1>{});
    });
}

// Adds to grad_weight (M, m, k, k, L). What is summed in which order depends on shapes alone.
void add_weight_gradient(const Primary& p, int64_t images, int64_t planes, const Number* grad, int64_t threads, Real* grad_weight) {
    constexpr int64_t PARTS = 16;
    constexpr int INS = REGISTERS == 32 ? 2 : 1;                    // of a window, the planes whose sums the registers hold
    const int64_t L = p.channels, taps = p.kernel * p.kernel, rows = planes * p.in_planes * taps, out_image = p.out_height * p.out_width;
    const bool window = p.kernel == 3 && p.stride == 1 && p.dilation == 1;
    const Tiles t(p, images);
    const std::unique_ptr<const Pairs> pairs(window ? nullptr : new Pairs(p, t));
    const int64_t items = ceil_div(images, t.images) * t.tiles, parts = std::min(PARTS, items);
    Real* sums = scratch<Real>(parts * rows * L);
    parallel(threads, parts, [&](int64_t part) {
        Real* own = sums + part * rows * L;
        std::fill_n(own, rows * L, Real{});
        for (int64_t item = part * items / parts; item < (part + 1) * items / parts; ++item) {
            const int64_t tile = item % t.tiles, image = item / t.tiles * t.images, here = std::min(t.images, images - image);
            const Number* g = grad + image * out_image * planes * L;
            const Number* x = p.in + image * p.height * p.width * p.pixel();
            const Part of_rows = {here, tile * p.height / t.tiles, (tile + 1) * p.height / t.tiles};
            const int64_t step = window ? INS : 2;
            for (int64_t j = 0; j < planes; j += 2)
                for (int64_t i = 0; i < p.in_planes; i += step)
                    with_constant<2>(planes - j, [&](auto outs) {
                        with_constant<2>(std::min(p.in_planes - i, step), [&](auto ins) {
                            Real* to = own + (j * p.in_planes + i) * taps * L;
                            if (window) sum_part<outs, ins>(p, planes, g + j * L, x + i * L, of_rows, to);
                            else sum_tile<outs, ins>(p, planes, g + j * L, x + i * L, pairs->pairs.get(), pairs->begins.get() + tile * taps,
                                                     here, t.images, to);
                        });
                    });
        }
    });
    parallel(threads, rows, [&](int64_t row) {
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t l = row * L; l < (row + 1) * L; ++l) grad_weight[l] += sums[part * rows * L + l];
    });
}

}  // namespace

// IGCV3's inverted unit: for a band of rows, a block of channels at a time is expanded into a buffer that stays in the first cache, and
// filtered into another one; from there the projection goes to the output with bias and shortcut.
//
// Each group of the projection takes an equal part of each group of the expansion. So what lies between input and output falls apart into
// as many independent parts as the projection has groups, and in a part's own order every product reads neighbours in memory.
#pragma once
#include <algorithm>

#include "chain.h"
#include "filter.h"
#include "panel.h"
#include "threads.h"

namespace {

// As inverted.py and chain.py have it: g groups of the expansion, p parts of c channels from each group, C input, O output channels.
struct Inverted {
    const Number *expand, *expand_bias;                             // (p, g, C / g, c), (p, g, c)
    const Number *depthwise, *depthwise_bias;                       // (p, k, k, g, c), (p, g, c)
    const Number *project, *project_bias;                           // (p, g, c, O / p), (p, O / p)
    int64_t in_channels, out_channels, groups, parts, channels, residual;
    Geometry map;

    int64_t in_image() const { return map.height * map.width * in_channels; }
    int64_t out_image() const { return map.out_height() * map.out_width() * out_channels; }
    int64_t part() const { return groups * channels; }
    int64_t taps() const { return map.kernel * map.kernel; }
    bool keeps_shape() const { return in_image() == out_image(); }
    void run(int64_t images, const Number* x, int64_t threads, Number* out) const;
};

// Into how many bands of rows the output of each image is split: as few rows are expanded twice as threads and cache allow.
int64_t bands_of(const Inverted& u, int64_t images, int64_t threads) {
    constexpr int64_t CACHE = 1 << 16;                              // floats: half the smallest L2 cache
    int64_t best = 1, least = INT64_MAX;
    for (int64_t bands = 1, height = u.map.out_height(); bands <= height; ++bands) {
        const int64_t rows = ceil_div(height, bands), expanded = u.map.most_rows(rows) * u.map.width, filtered = rows * u.map.out_width();
        if (expanded * BLOCK + filtered * u.part() > CACHE && bands < height) continue;
        const int64_t work = expanded * (u.in_channels / u.groups) + filtered * (u.taps() + u.out_channels / u.parts);
        const int64_t cost = ceil_div(bands * u.parts * images, threads) * work;
        if (cost < least) least = cost, best = bands;
    }
    return best;
}

// Output rows [begin, end) of part p; x and out are an image's.
void run_band(const Inverted& u, int64_t p, int64_t begin, int64_t end, const Number* x, Number* out) {
    const int64_t C = u.in_channels, O = u.out_channels / u.parts, inputs = C / u.groups, c = u.channels, part = u.part();
    const Rows rows = u.map.rows(begin, end);
    const int64_t width = u.map.out_width(), pixels = (end - begin) * width, expanded_pixels = (rows.end - rows.begin) * u.map.width;
    const int64_t row = ceil_div(part + LANES, 16) * 16;            // whole vectors may be written behind the last channel
    Number* expanded = scratch<Number>(expanded_pixels * BLOCK + pixels * row + (u.taps() + 1) * BLOCK +
                                       packed_block(std::max(inputs, part)));
    Number* filtered = expanded + expanded_pixels * BLOCK;
    Number* filters = filtered + pixels * row;
    Number* copy = filters + (u.taps() + 1) * BLOCK;
    for (int64_t g = 0; g < u.groups; ++g) {
        const Number* in = x + rows.begin * u.map.width * C + g * inputs;
        const int64_t group = p * u.groups + g;
        for (int64_t first = 0; first < c; first += BLOCK) {
            const int64_t block = std::min<int64_t>(c - first, BLOCK), whole = ceil_div(block, LANES) * LANES;
            const auto put = [&](const Number* from, Number* to) { std::fill(std::copy(from, from + block, to), to + whole, Number{}); };
            Number* bias = filters + u.taps() * whole;
            put(u.expand_bias + group * c + first, bias);
            pack_block(u.expand + group * inputs * c + first, c, inputs, block, whole, copy);
            const Product<Number> expand = {in, C, 0, 1, inputs, copy, whole * FACTORS<Number>, bias, nullptr, 0, expanded, whole, false};
            with_constant<VECTORS>(whole / LANES, [&](auto vectors) {
                multiply_panels<LANES, vectors, false>(expand, nullptr, expanded_pixels, LANES);
            });
            for (int64_t tap = 0; tap < u.taps(); ++tap)
                put(u.depthwise + (p * u.taps() + tap) * part + g * c + first, filters + tap * whole);
            put(u.depthwise_bias + group * c + first, bias);
            const Filter filter = {u.map, whole, expanded - rows.begin * u.map.width * whole, filters, bias, true};
            for (int64_t y = begin; y < end; ++y) filter_row(filter, y, filtered + (y - begin) * width * row + g * c + first, row);
        }
    }
    const int64_t at = begin * width * u.out_channels + p * O;
    multiply_blocks<false, Number>({filtered, row, 0, 1, part, u.project + p * part * O, O, u.project_bias + p * O,
                                    u.residual ? x + at : nullptr, u.out_channels, out + at, u.out_channels, false},
                                   nullptr, pixels, O, copy);
}

// out = project(relu6(depthwise(expand(x)))) + x?
void Inverted::run(int64_t images, const Number* x, int64_t threads, Number* out) const {
    const int64_t bands = bands_of(*this, images, threads), height = map.out_height();
    parallel(threads, parts * images * bands, [&](int64_t item) {
        const int64_t band = item % bands, image = item / bands % images, part = item / bands / images;
        run_band(*this, part, band * height / bands, (band + 1) * height / bands, x + image * in_image(), out + image * out_image());
    });
}

}  // namespace

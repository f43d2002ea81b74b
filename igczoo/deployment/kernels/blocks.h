// Residual blocks of IGC units, as units of a chain.
#pragma once
#include "chain.h"
#include "unit.h"

namespace {

// relu(unit2(relu(unit1(x))) + shortcut(x)), as _Block in __init__.py lays it out.
struct Block {
    const Number *primary1, *secondary1, *bias1, *primary2, *secondary2, *bias2;
    const Number *projection, *projection_bias;                     // null where the shortcut is x itself
    int64_t height, width, in_planes, planes, channels;             // height and width of x
    int64_t kernel1, kernel2, stride, dilation1, dilation2;         // unit2 has no stride

    int64_t out_height() const { return ceil_div(height, stride); }
    int64_t out_width() const { return ceil_div(width, stride); }
    int64_t in_image() const { return height * width * in_planes * channels; }
    int64_t out_image() const { return out_height() * out_width() * planes * channels; }
    bool keeps_shape() const { return !projection; }
};

// out may be x where the shortcut is x itself.
void run_block(const Block& b, int64_t images, const Number* x, Number* between, Number* out, int64_t threads) {
    const int64_t height = b.out_height(), width = b.out_width(), L = b.channels;
    unit({b.height, b.width, height, width, b.in_planes, L, b.kernel1, b.stride, b.dilation1, x, b.primary1, nullptr}, {},
         b.secondary1, b.bias1, images, b.planes, true, threads, between);
    unit({height, width, height, width, b.planes, L, b.kernel2, 1, b.dilation2, between, b.primary2, nullptr},
         {b.height, b.width, height, width, b.in_planes, L, 1, b.stride, 1, x, b.projection, b.projection_bias},
         b.secondary2, b.bias2, images, b.planes, true, threads, out);
}

// Where the shortcuts are their inputs, blocks go one after another in place.
void run_units(const Block* begin, const Block* end, int64_t images, const Number* x, Number* const* maps, int64_t threads, Number* out) {
    for (const Block* b = begin; b < end; ++b, x = out) run_block(*b, images, x, maps[0], out, threads);
}

}  // namespace

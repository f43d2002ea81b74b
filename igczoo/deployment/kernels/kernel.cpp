// IGC units on a CPU, fused: what __init__.py describes, for contiguous numbers in channels_last memory. NUMBER is their type: float, or
// bfloat16.
//
// Every output is summed in one fixed order, so the result depends neither on how the work is shared nor on the number of threads. Sums
// are float32; of bfloat16, what goes to memory is rounded.
#include "blocks.h"
#include "inverted.h"
#include "sparse.h"
#include "stem.h"
#include "unit.h"

extern "C" {

// out = relu?(secondary(primary(in)) + bias + residual?), out and residual (N, H', W', M, L), which may be the same memory.
void igc_unit(Number* out, const Number* in, const Number* primary, const Number* secondary, const Number* bias,
              const Number* residual, int64_t images, int64_t height, int64_t width, int64_t in_planes, int64_t planes, int64_t channels,
              int64_t kernel, int64_t stride, int64_t dilation, int64_t relu, int64_t threads) {
    Primary identity = {};
    identity.in = residual;
    unit({height, width, ceil_div(height, stride), ceil_div(width, stride), in_planes, channels, kernel, stride, dilation, in, primary,
          nullptr}, identity, secondary, bias, images, planes, relu != 0, threads, out);
}

// out = the last block's output for `in`. About chunk_bytes of a map go through blocks of one shape at a time; `room` is for as many
// numbers as igc_room says.
void igc_residual_blocks(Number* out, const Number* in, Number* room, const Block* blocks, int64_t num_blocks, int64_t images,
                         int64_t chunk_bytes, int64_t threads) {
    Chain<Block>(blocks, num_blocks, images, chunk_bytes).run(images, in, out, room, threads);
}

int64_t igc_room(const Block* blocks, int64_t num_blocks, int64_t images, int64_t chunk_bytes) {
    return Chain<Block>(blocks, num_blocks, images, chunk_bytes).room;
}

// out = the last unit's output for `in`, likewise.
void igc_inverted_units(Number* out, const Number* in, Number* room, const Inverted* units, int64_t num_units, int64_t images,
                        int64_t chunk_bytes, int64_t threads) {
    Chain<Inverted>(units, num_units, images, chunk_bytes).run(images, in, out, room, threads);
}

int64_t igc_inverted_room(const Inverted* units, int64_t num_units, int64_t images, int64_t chunk_bytes) {
    return Chain<Inverted>(units, num_units, images, chunk_bytes).room;
}

void igc_sparse_units(Number* out, const Number* in, Number* room, const Sparse* units, int64_t num_units, int64_t images,
                      int64_t chunk_bytes, int64_t threads) {
    const std::vector<Joined> joint = joined(units, num_units);
    Chain<Joined>(joint.data(), joint.size(), images, chunk_bytes).run(images, in, out, room, threads);
}

int64_t igc_sparse_room(const Sparse* units, int64_t num_units, int64_t images, int64_t chunk_bytes) {
    const std::vector<Joined> joint = joined(units, num_units);
    return Chain<Joined>(joint.data(), joint.size(), images, chunk_bytes).room;
}

// out = maxpool(relu(conv(in) + bias)), out (N, H/4, W/4, C) rounded up, weight (7, 7, in_channels, C).
void igc_stem(Number* out, const Number* in, const Number* weight, const Number* bias, int64_t images, int64_t in_channels,
              int64_t height, int64_t width, int64_t in_image, int64_t in_channel, int64_t in_row, int64_t in_column, int64_t channels,
              int64_t threads) {
    const Stem stem(weight, bias, in_channels, channels, threads);
    const Image first = {height, width, in_channels, in, in_row, in_column, in_channel};
    run_stem(stem, first, images, in_image, threads, out);
}

// Why products of bfloat16 are not by tiles though the kernel is compiled for them, in one line; else ''.
const char* igc_why_no_tiles() { return why_no_tiles(); }

}

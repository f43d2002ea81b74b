// Blocks of IGC units in training on a CPU: the passes over maps that igczoo/training/fused.py describes, for contiguous numbers in
// channels_last memory. NUMBER is their type: float, bfloat16, or double. What is kept of each channel or weight is Real.
//
// Sums go over parts of the rows, or of the pixels, that depend on shapes alone: no result depends on the number of threads.
#include "gradients.h"
#include "narrow.h"
#include "norms.h"

namespace {

Primary primary(const Number* in, const Number* weight, const int64_t* shape) {
    const int64_t height = shape[1], width = shape[2], stride = shape[7];
    return {height, width, ceil_div(height, stride), ceil_div(width, stride), shape[3], shape[5], shape[6], stride, shape[8], in, weight,
            nullptr};
}

PlaneProducts plane_products(const int64_t* shape) {
    return {shape[0], shape[1], shape[2], shape[3], shape[4], reinterpret_cast<const int64_t(*)[2]>(shape + 5)};
}

}  // namespace

extern "C" {

// `shape` is: images, height and width of the input, m, M, L, kernel, stride, dilation.

void igc_primary(Number* out, const Number* in, const Number* weight, const int64_t* shape, int64_t threads) {
    const Primary p = primary(in, weight, shape);
    const int64_t pixels = shape[0] * p.out_height * p.out_width, planes = shape[4], pixel = planes * p.channels;
    const int64_t tiles = ceil_div(pixels, std::clamp<int64_t>(16384 / pixel, 4, 256));
    parallel(threads, tiles, [&](int64_t tile) {
        const int64_t begin = tile * pixels / tiles;
        convolve(p, begin, (tile + 1) * pixels / tiles, 0, planes, {out + begin * pixel, pixel, p.channels});
    });
}

void igc_primary_input(Number* grad_in, const Number* grad, const Number* weight, const int64_t* shape, int64_t threads) {
    convolve_back(primary(nullptr, weight, shape), shape[0], shape[4], grad, threads, grad_in);
}

// Adds to the gradient of the weight.
void igc_primary_weight(Real* grad_weight, const Number* grad, const Number* in, const int64_t* shape, int64_t threads) {
    add_weight_gradient(primary(in, nullptr, shape), shape[0], shape[4], grad, threads, grad_weight);
}

// `shape` is: matrices, inputs and outputs of each, numbers from one pixel to the next of the input and of the output, and then of each
// matrix the plane it takes and the plane it gives to.

// out (pixels, planes, outputs) = in (pixels, planes, inputs) by weight (matrices, inputs, outputs).
void igc_multiply(Number* out, const Number* in, const Number* weight, int64_t pixels, const int64_t* shape, int64_t threads) {
    multiply_planes(plane_products(shape), in, weight, pixels, threads, out);
}

// Adds to the gradient of a weight (matrices, outputs, inputs).
void igc_multiply_weight(Real* grad_weight, const Number* grad, const Number* in, int64_t pixels, const int64_t* shape, int64_t threads) {
    add_gradient_of_planes(plane_products(shape), grad, in, pixels, threads, grad_weight);
}

// Joins to moments (2, C), the mean and the sum of squared deviations of `count` rows, those of the rows of `in`.
void igc_moments(double* moments, int64_t count, const Number* in, int64_t rows, int64_t channels, int64_t threads) {
    join_moments(in, rows, channels, threads, count, moments);
}

// out = bound(in * scale + shift + residual * residual_scale), affine (2, C) the scale and the shift; residual and its scale may be null.
void igc_normalise(Number* out, const Number* in, const Real* affine, const Number* residual, const Real* residual_scale, double low,
                   double high, int64_t rows, int64_t channels, int64_t threads) {
    const Bounds bounds = {Real(low), Real(high)};
    over_rows(rows, channels, threads, [&](auto lanes, int64_t at, int64_t c) __attribute__((always_inline)) {
        auto v = load<lanes>(in + at) * load<lanes>(affine + c) + load<lanes>(affine + channels + c);
        if (residual) v += residual_scale ? load<lanes>(residual + at) * load<lanes>(residual_scale + c) : load<lanes>(residual + at);
        store<lanes>(out + at, bounds.bound(v));
    });
}

// Adds to sums (2 or 3, C): of the gradient before the activation, of its products with in - mean, and with the map `other` likewise. The
// activation's value is `out`, or where that is null, in * scale + shift bounded.
void igc_norm_sums(double* sums, const Number* grad, const Number* out, const Number* in, const Real* affine, const Real* mean,
                   const Number* other, const Real* other_mean, double low, double high, int64_t rows, int64_t channels, int64_t threads) {
    const Bounds bounds = {Real(low), Real(high)};
    const auto add = [&](auto lanes, int64_t at, int64_t c, auto sum) __attribute__((always_inline)) {
        const auto v = load<lanes>(in + at);
        const auto y = out ? load<lanes>(out + at) : v * load<lanes>(affine + c) + load<lanes>(affine + channels + c);
        const auto g = bounds.gradient(load<lanes>(grad + at), y);
        sum[0] += g;
        sum[1] += g * (v - load<lanes>(mean + c));
        return g;
    };
    if (!other) return sum_rows<2>(rows, channels, threads, sums, add);
    sum_rows<3>(rows, channels, threads, sums, [&](auto lanes, int64_t at, int64_t c, auto sum) __attribute__((always_inline)) {
        sum[2] += add(lanes, at, c, sum) * (load<lanes>(other + at) - load<lanes>(other_mean + c));
    });
}

// grad_in = gradient before the activation * factors[0] + (in - mean) * factors[1] + factors[2], factors (3, C); the rest as above.
void igc_norm_backward(Number* grad_in, const Number* grad, const Number* out, const Number* in, const Real* affine, const Real* mean,
                       const Real* factors, double low, double high, int64_t rows, int64_t channels, int64_t threads) {
    const Bounds bounds = {Real(low), Real(high)};
    over_rows(rows, channels, threads, [&](auto lanes, int64_t at, int64_t c) __attribute__((always_inline)) {
        const auto v = load<lanes>(in + at);
        const auto y = out ? load<lanes>(out + at) : v * load<lanes>(affine + c) + load<lanes>(affine + channels + c);
        const auto g = bounds.gradient(load<lanes>(grad + at), y);
        store<lanes>(grad_in + at, g * load<lanes>(factors + c) + (v - load<lanes>(mean + c)) * load<lanes>(factors + channels + c)
                                       + load<lanes>(factors + 2 * channels + c));
    });
}

// grad_in += the gradient before the activation, whose value is `out`.
void igc_add_gradient(Number* grad_in, const Number* grad, const Number* out, double low, double high, int64_t rows, int64_t channels,
                      int64_t threads) {
    const Bounds bounds = {Real(low), Real(high)};
    over_rows(rows, channels, threads, [&](auto lanes, int64_t at, int64_t) __attribute__((always_inline)) {
        store<lanes>(grad_in + at, load<lanes>(grad_in + at) + bounds.gradient(load<lanes>(grad + at), load<lanes>(out + at)));
    });
}

}

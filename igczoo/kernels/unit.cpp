// IGC units on a CPU, fused: what __init__.py describes, for contiguous numbers in channels_last memory. NUMBER is their type: float, or
// bfloat16.
//
// For a tile of pixels at a time, the primary convolution goes into a buffer that stays in the cache, and from there a matrix product
// for each plane, the secondary convolution, to the output with bias, residual and ReLU. Every output is summed in one fixed order, so
// the result depends neither on the tiles nor on the number of threads. Sums are float32; of bfloat16, what goes to memory is rounded.
// Vectors are the extension that GCC and Clang share: the file compiles for AVX-512, AVX2, SSE and NEON. The only intrinsics are those of
// AVX-512 for products of bfloat16.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

// The OpenMP library torch has loaded runs the threads. It is called by its own entry point: a pragma would compile to another library's
// with another compiler, and two libraries would keep two sets of threads.
extern "C" void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags);

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__ARM_NEON)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

constexpr int VECTORS = LANES == 8 ? 2 : 4;                         // a product's block of the output, in vectors of columns,
constexpr int ROWS = LANES == 4 && REGISTERS == 16 ? 2 : 6;         // by pixels
constexpr int RUN = REGISTERS == 32 ? 8 : 4;                        // pixels of a row the primary convolution does at once

struct bfloat16 {
    uint16_t bits;                                                  // the upper half of a float
};

using Number = NUMBER;

template <int N>
struct Vectors {
    typedef float Floats __attribute__((vector_size(N * 4)));
    typedef uint32_t Bits __attribute__((vector_size(N * 4)));
    typedef uint16_t Halves __attribute__((vector_size(N * 2)));
};
template <int N>
using Vector = typename Vectors<N>::Floats;
template <int N>
using Bits = typename Vectors<N>::Bits;
template <int N>
using Halves = typename Vectors<N>::Halves;

template <int N>
inline Vector<N> load(const float* from) {
    Vector<N> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <int N>
inline Vector<N> load(const bfloat16* from) {
    Halves<N> halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Vector<N>)(__builtin_convertvector(halves, Bits<N>) << 16);
}

template <int N>
inline void store(float* to, Vector<N> v) {
    std::memcpy(to, &v, sizeof v);
}

template <int N>
inline void store(bfloat16* to, Vector<N> v) {
    const Bits<N> bits = (Bits<N>)v, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Halves<N> halves = __builtin_convertvector(v == v ? nearest : bits >> 16 | 64, Halves<N>);   // NaN stays NaN
    std::memcpy(to, &halves, sizeof halves);
}

template <int N, class T>
inline Vector<N> load_some(const T* from, int count) {
    if (count == N) return load<N>(from);
    T there[N] = {};
    std::memcpy(there, from, count * sizeof(T));
    return load<N>(there);
}

template <int N, class T>
inline void store_some(T* to, Vector<N> v, int count) {
    if (count == N) return store<N>(to, v);
    T there[N];
    store<N>(there, v);
    std::memcpy(to, there, count * sizeof(T));
}

// Calls run with the constant that a value in 1..most is.
template <int most, class Run>
inline void with_constant(int64_t value, const Run& run) {
    if constexpr (most > 1)
        if (value < most) return with_constant<most - 1>(value, run);
    run(std::integral_constant<int, most>{});
}

// Calls run with the numbers of lanes to take channels by, from the widest vectors down to single channels.
template <class Run>
__attribute__((always_inline)) inline void over_lanes(const Run& run) {
    run(std::integral_constant<int, LANES>{});
    if constexpr (LANES > 8) run(std::integral_constant<int, 8>{});
    if constexpr (LANES > 4) run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 1>{});
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A buffer of this thread's, kept from call to call.
template <class T>
T* scratch(int64_t count) {
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    static thread_local std::unique_ptr<T, Free> memory;
    static thread_local int64_t size = 0;
    if (size < count) {
        size = ceil_div(count, 64) * 64;
        memory.reset(static_cast<T*>(std::aligned_alloc(64, size * sizeof(T))));
    }
    return memory.get();
}

// Each thread works through its own share of the items, neighbours in memory, and then helps the others.
template <class Work>
void parallel(int64_t threads, int64_t items, const Work& work) {
    constexpr int64_t MOST = 256;
    threads = std::min(threads, MOST);
    std::atomic<int64_t> started{0}, next[MOST];
    for (int64_t share = 0; share < threads; ++share) next[share] = share * items / threads;
    auto run = [&] {
        const int64_t self = started++;
        for (int64_t other = 0; other < threads; ++other) {
            const int64_t share = (self + other) % threads, end = (share + 1) * items / threads;
            for (int64_t item; (item = next[share]++) < end;) work(item);
        }
    };
    if (threads == 1 || items == 1) return run();
    // Always as many threads as torch uses: another number would end some of its threads and start them again.
    GOMP_parallel([](void* data) { (*static_cast<decltype(run)*>(data))(); }, &run, threads, 0);
}

// Primary convolution ---------------------------------------------------------------------------------------------------------------

struct Primary {
    int64_t height, width, out_height, out_width;
    int64_t in_planes, channels;                                    // m, L
    int64_t kernel, stride, dilation;
    const Number* in;                                               // (N, H, W, m, L)
    const Number* weight;                                           // (M, m, k, k, L)
    const Number* bias;                                             // (M, L), or null

    int64_t pixel() const { return in_planes * channels; }
    int64_t plane_weight() const { return pixel() * kernel * kernel; }
    int64_t padding() const { return dilation * (kernel / 2); }
};

struct Target {
    Number* out;                                                    // the first pixel of the first plane
    int64_t pixel, plane;                                           // numbers from one to the next
};

struct Taps {
    int64_t begin, end;                                             // those of a kernel's rows or columns that lie inside the map
};

inline Taps taps_inside(const Primary& p, int64_t position, int64_t size) {
    const int64_t first = position * p.stride - p.padding();
    return {first < 0 ? ceil_div(-first, p.dilation) : 0, std::min(p.kernel, (size - 1 - first) / p.dilation + 1)};
}

// N channels of `run` pixels in `planes` planes: a weight serves all these pixels, an input all these planes. With a `window`, a kernel
// three columns wide that moves by one, an input serves its neighbours as well. `columns` begin at the first pixel's first tap inside
// the map and end with the last pixel's last.
template <int N, int planes, int run, bool window>
__attribute__((always_inline)) inline void convolve_channels(
    const Primary& p, const Number* in, const Number* weight, const Number* bias, Target target, Taps rows, Taps columns) {
    const int64_t L = p.channels, pixel = p.pixel();
    Vector<N> sum[planes][run];
#pragma GCC unroll 2
    for (int j = 0; j < planes; ++j)
#pragma GCC unroll 8
        for (int r = 0; r < run; ++r) sum[j][r] = bias ? load<N>(bias + j * L) : Vector<N>{};
    for (int64_t i = 0; i < p.in_planes; ++i)
        for (int64_t ky = rows.begin; ky < rows.end; ++ky) {
            const Number* w = weight + (i * p.kernel + ky) * p.kernel * L;
            const Number* x = in + ky * p.dilation * p.width * pixel + i * L;
            if constexpr (window) {
                Vector<N> taps[planes][3];
#pragma GCC unroll 2
                for (int j = 0; j < planes; ++j)
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t) taps[j][t] = load<N>(w + j * p.plane_weight() + t * L);
#pragma GCC unroll 10
                for (int column = 0; column < run + 2; ++column, x += pixel) {
                    if ((column == 0 && columns.begin) || (column == run + 1 && columns.end < 3)) continue;
                    const Vector<N> value = load<N>(x);
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t)
#pragma GCC unroll 2
                        for (int j = 0; j < planes; ++j)
                            if (column >= t && column - t < run) sum[j][column - t] += taps[j][t] * value;
                }
            } else {
                for (int64_t kx = columns.begin; kx < columns.end; ++kx) {
                    Vector<N> tap[planes];
#pragma GCC unroll 2
                    for (int j = 0; j < planes; ++j) tap[j] = load<N>(w + j * p.plane_weight() + kx * L);
#pragma GCC unroll 8
                    for (int r = 0; r < run; ++r) {
                        const Vector<N> value = load<N>(x + (kx * p.dilation + r * p.stride) * pixel);
#pragma GCC unroll 2
                        for (int j = 0; j < planes; ++j) sum[j][r] += tap[j] * value;
                    }
                }
            }
        }
#pragma GCC unroll 2
    for (int j = 0; j < planes; ++j)
#pragma GCC unroll 8
        for (int r = 0; r < run; ++r) store<N>(target.out + j * target.plane + r * target.pixel, sum[j][r]);
}

// On the way it fetches what the next run reads first of all: that run's lowest rows of the input, from the pixel `next` on.
template <int planes, int run, bool window>
__attribute__((noinline)) void convolve_run(
    const Primary& p, const Number* in, const Number* next, const Number* weight, const Number* bias, Target target, Taps rows,
    Taps columns) {
    int64_t c = 0;
    over_lanes([&](auto lanes) __attribute__((always_inline)) {
        for (; c + lanes <= p.channels; c += lanes) {
            for (int64_t y = 0; y < std::min(p.stride, p.kernel); ++y)
                for (int64_t x = 0; x < run * p.stride; ++x)
                    for (int64_t i = 0; i < p.in_planes; ++i)
                        __builtin_prefetch(next + (x - y * p.width) * p.pixel() + i * p.channels + c);
            convolve_channels<lanes, planes, run, window>(
                p, in + c, weight + c, bias ? bias + c : nullptr, Target{target.out + c, target.pixel, target.plane}, rows, columns);
        }
    });
}

// Output pixels [begin, end), counted through all images, of output planes [plane, plane + planes).
void convolve(const Primary& p, int64_t begin, int64_t end, int64_t plane, int64_t planes, Target target) {
    const int64_t pixel = p.pixel(), padding = p.padding();
    const bool window = p.kernel == 3 && p.stride == 1 && p.dilation == 1;
    // The pixels of a run have the same taps: all of them in columns [inner, outer); with a window, the ends of a row may lack one.
    const int64_t inner = window ? 0 : ceil_div(padding, p.stride);
    const int64_t outer = window ? p.out_width : p.width > padding ? (p.width - 1 - padding) / p.stride + 1 : 0;
    for (int64_t at = begin; at < end;) {
        const int64_t y = at / p.out_width % p.out_height, image = at / p.out_width / p.out_height;
        const Taps rows = taps_inside(p, y, p.height);
        const Number* in_row = p.in + ((image * p.height + y * p.stride - padding) * p.width - padding) * pixel;
        for (int64_t x = at % p.out_width, x_end = std::min(p.out_width, x + end - at), run; x < x_end; x += run, at += run) {
            const int64_t length = inner <= x && x < outer ? std::min(x_end, outer) - x : 1;
            run = ceil_div(length, ceil_div(length, RUN));
            const Taps columns = {taps_inside(p, x, p.width).begin, taps_inside(p, x + run - 1, p.width).end};
            const Number* in = in_row + x * p.stride * pixel;
            const Number* next = in + ((rows.end - 1) * p.dilation * p.width + (run - 1) * p.stride + p.kernel * p.dilation) * pixel;
            for (int64_t j = 0, pair; j < planes; j += pair) {
                pair = std::min<int64_t>(2, planes - j);
                const Number* weight = p.weight + (plane + j) * p.plane_weight();
                const Number* bias = p.bias ? p.bias + (plane + j) * p.channels : nullptr;
                const Target here = {target.out + j * target.plane + (at - begin) * target.pixel, target.pixel, target.plane};
                with_constant<2>(pair, [&](auto pair) {
                    with_constant<RUN>(run, [&](auto run) {
                        const auto convolve_here = window ? convolve_run<pair, run, true> : convolve_run<pair, run, false>;
                        convolve_here(p, in, next, weight, bias, here, rows, columns);
                    });
                });
            }
        }
    }
}

// Secondary convolution -------------------------------------------------------------------------------------------------------------

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
    const Bits<N> pairs = Bits<N>{} + x;
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    if constexpr (N == 16) return (Vector<N>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, (__m512bh)w);
    else if constexpr (N == 8) return (Vector<N>)_mm256_dpbf16_ps((__m256)sum, (__m256bh)pairs, (__m256bh)w);
    else return (Vector<N>)_mm_dpbf16_ps((__m128)sum, (__m128bh)pairs, (__m128bh)w);
#else
    sum += (Vector<N>)(pairs << 16) * (Vector<N>)(w << 16);
    return sum + (Vector<N>)(pairs & 0xffff0000) * (Vector<N>)(w & 0xffff0000);
#endif
}

// rows (pixels, pieces x length) by weight (pieces x length, columns): a pixel's row may lie in pieces, as the rows of its window do.
template <class T>
struct Product {
    const T* rows;
    int64_t row, piece;                                             // numbers from one pixel's to the next's; from one piece to the next
    int64_t pieces, length;                                         // an odd row of bfloat16 has a zero behind its end
    const T* weight;
    int64_t step;                                                   // numbers from one of its rows to the next; packed, from FACTORS
    const T* bias;                                                  // (columns)
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
        bias += columns;
        out += columns;
        if (residual) residual += columns;
    }
};

// `height` pixels by `vectors` vectors of N columns; of a single vector perhaps only `count` columns are there.
template <int N, int height, int vectors, class T>
__attribute__((noinline)) void multiply_block(const Product<T>& p, int count) {
#pragma GCC unroll 6
    for (int h = 0; h < height; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            __builtin_prefetch(p.out + h * p.pixel + v * N, 1);
            if (p.residual) __builtin_prefetch(p.residual + h * p.residual_pixel + v * N);
        }
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
    const int there = vectors == 1 ? count : N;
#pragma GCC unroll 6
    for (int h = 0; h < height; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            Vector<N> y = sum[h][v] + load_some<N>(p.bias + v * N, there);
            if (p.residual) y += load_some<N>(p.residual + h * p.residual_pixel + v * N, there);
            if (p.relu) y = y <= Vector<N>{} ? Vector<N>{} : y;     // written so that NaN stays NaN and -0 becomes +0
            store_some<N>(p.out + h * p.pixel + v * N, y, there);
        }
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

// Numbers that `multiply` needs room for, to pack a weight of so many rows.
constexpr int64_t packed(int64_t rows) { return (rows + 1) * VECTORS * LANES; }

// All columns of all pixels.
template <class T>
void multiply(Product<T> p, int64_t pixels, int64_t columns, T* copy) {
    for (int64_t vectors; columns >= LANES; columns -= vectors * LANES, p.skip_columns(vectors * LANES)) {
        vectors = ceil_div(columns / LANES, ceil_div(columns / LANES, VECTORS));
        with_constant<VECTORS>(vectors, [&](auto vectors) { multiply_columns<LANES, vectors>(p, pixels, LANES, copy); });
    }
    if (columns > 8) multiply_columns<LANES, 1>(p, pixels, columns, copy);
    else if (columns > 4) multiply_columns<std::min(LANES, 8), 1>(p, pixels, columns, copy);
    else if (columns > 0) multiply_columns<4, 1>(p, pixels, columns, copy);
}

// Shares of the work ----------------------------------------------------------------------------------------------------------------

// The output is split in tiles of pixels, groups of planes and parts of a plane's columns.
struct Split {
    int64_t tiles, group, parts;
};

Split split(int64_t pixels, int64_t planes, int64_t channels, int64_t taps, int64_t threads) {
    constexpr int64_t CACHE = 1 << 17;                              // floats: half the smallest L2 cache of today's servers
    Split best = {};
    int64_t least = INT64_MAX;
    for (int64_t group = 1; group <= std::min<int64_t>(2, planes); ++group) {
        const int64_t groups = ceil_div(planes, group), most = std::clamp<int64_t>(CACHE / (group * channels), 6, 192);
        for (int64_t parts = 1; parts == 1 || parts * 64 <= channels; parts *= 2)
            for (int64_t tiles = ceil_div(pixels, most), last = tiles + threads; tiles < last; ++tiles) {
                // Of the thread with most items: taps, which two planes share, at a quarter of the product's speed, and the weights, read
                // anew for each tile.
                const int64_t items = ceil_div(tiles * groups * parts, threads), tile = ceil_div(pixels, tiles);
                const int64_t cost = items * (tile * (4 * taps * parts + group * channels) + 4 * group * channels) / parts;
                if (cost < least) least = cost, best = {tiles, group, parts};
            }
    }
    return best;
}

// A tile of pixels at a time: the primary convolution, and the projection of a shortcut, then a product for each plane.
void unit(const Primary& p, const Primary& shortcut, const Number* secondary, const Number* bias, int64_t images, int64_t planes, bool relu,
          int64_t threads, Number* out) {
    const int64_t L = p.channels, row = ceil_div(L, 16) * 16, pixels = images * p.out_height * p.out_width;
    const Split s = split(pixels, planes, L, p.in_planes * p.kernel * p.kernel, threads);
    const int64_t most = ceil_div(pixels, s.tiles), part = ceil_div(ceil_div(L, s.parts), 64) * 64;
    parallel(threads, s.tiles * s.parts * ceil_div(planes, s.group), [&](int64_t item) {
        const int64_t tile = item % s.tiles, begin = tile * pixels / s.tiles, end = (tile + 1) * pixels / s.tiles;
        const int64_t column = item / s.tiles % s.parts * part, first = item / s.tiles / s.parts * s.group;
        const int64_t group = std::min(s.group, planes - first);
        if (column >= L) return;
        const int64_t plane_rows = most * row, buffer = s.group * plane_rows;
        Number* rows = scratch<Number>((shortcut.weight ? 2 : 1) * buffer + packed(L));
        Number* copy = rows + buffer;
        Number* added = copy + packed(L);
        convolve(p, begin, end, first, group, {rows, row, plane_rows});
        if (L % FACTORS<Number>)
            for (Number* end_of_row = rows + L; end_of_row < rows + buffer; end_of_row += row) *end_of_row = {};
        if (shortcut.weight) convolve(shortcut, begin, end, first, group, {added, row, plane_rows});
        for (int64_t j = 0; j < group; ++j) {
            const int64_t plane = first + j, at = begin * planes * L + plane * L;
            Product<Number> product = {rows + j * plane_rows, row, 0, 1, L, secondary + plane * L * L, L, bias + plane * L,
                                       shortcut.in, planes * L, out + at, planes * L, relu};
            if (shortcut.weight) product.residual = added + j * plane_rows, product.residual_pixel = row;
            else if (product.residual) product.residual += at;
            product.skip_columns(column);
            multiply(product, end - begin, std::min(part, L - column), copy);
        }
    });
}

// Stem ------------------------------------------------------------------------------------------------------------------------------

constexpr int64_t STEM_KERNEL = 7, STEM_STRIDE = 2, STEM_PADDING = 3, POOL_KERNEL = 3, POOL_STRIDE = 2, POOL_PADDING = 1;

struct Image {
    int64_t height, width, channels;
    const Number* in;
    int64_t row, column, channel;                                   // numbers from one to the next
};

// Rows [begin, end) of an image and columns from -padding on, as (rows, columns, channels) with zeros outside the image.
void copy_padded(const Image& image, int64_t begin, int64_t end, int64_t columns, float* out) {
    std::memset(out, 0, (end - begin) * columns * image.channels * sizeof(float));
    for (int64_t y = std::max<int64_t>(begin, 0); y < std::min(end, image.height); ++y)
        for (int64_t c = 0; c < image.channels; ++c) {
            const Number* from = image.in + y * image.row + c * image.channel;
            float* to = out + ((y - begin) * columns + STEM_PADDING) * image.channels + c;
            const int64_t width = std::min(image.width, columns - STEM_PADDING);
            for (int64_t x = 0; x < width; ++x) to[x * image.channels] = load<1>(from + x * image.column)[0];
        }
}

// One row of the max-pool, from the map's rows it covers. After the ReLU no number is below +0, so that the bits compare as the numbers
// do, and NaN is the largest.
void pool_row(const float* const rows[], int64_t num_rows, int64_t width, int64_t out_width, int64_t channels, Number* out) {
    for (int64_t x = 0; x < out_width; ++x) {
        const int64_t begin = std::max<int64_t>(x * POOL_STRIDE - POOL_PADDING, 0);
        const int64_t end = std::min(x * POOL_STRIDE - POOL_PADDING + POOL_KERNEL, width);
        int64_t c = 0;
        over_lanes([&](auto lanes) {
            for (; c + lanes <= channels; c += lanes) {
                Bits<lanes> most = {};
                for (int64_t row = 0; row < num_rows; ++row)
                    for (int64_t column = begin; column < end; ++column) {
                        const Bits<lanes> bits = (Bits<lanes>)load<lanes>(rows[row] + column * channels + c);
                        most = bits > most ? bits : most;
                    }
                store<lanes>(out + x * channels + c, (Vector<lanes>)most);
            }
        });
    }
}

std::vector<float> to_floats(const Number* from, int64_t count) {
    std::vector<float> to(count);
    for (int64_t at = 0; at < count; ++at) to[at] = load<1>(from + at)[0];
    return to;
}

// Rows [begin, end) of the stem's output, from a padded copy of the image, over a ring of rows of the map that is pooled. All in float32.
void stem_rows(const Image& image, const float* weight, const float* bias, int64_t channels, int64_t begin, int64_t end, Number* out) {
    const int64_t map_height = ceil_div(image.height, STEM_STRIDE), map_width = ceil_div(image.width, STEM_STRIDE);
    const int64_t out_width = ceil_div(map_width, POOL_STRIDE), map_row = map_width * channels;
    const int64_t first = std::max<int64_t>(begin * POOL_STRIDE - POOL_PADDING, 0);
    const int64_t last = std::min((end - 1) * POOL_STRIDE - POOL_PADDING + POOL_KERNEL, map_height);
    const int64_t columns = (map_width - 1) * STEM_STRIDE + STEM_KERNEL, copy_row = columns * image.channels;
    const int64_t copy_begin = first * STEM_STRIDE - STEM_PADDING, copy_end = (last - 1) * STEM_STRIDE - STEM_PADDING + STEM_KERNEL;
    const int64_t piece = STEM_KERNEL * image.channels;
    float* ring = scratch<float>(POOL_KERNEL * map_row + (copy_end - copy_begin) * copy_row + packed(STEM_KERNEL * piece));
    float* copy = ring + POOL_KERNEL * map_row;
    float* last_columns = copy + (copy_end - copy_begin) * copy_row;
    copy_padded(image, copy_begin, copy_end, columns, copy);
    for (int64_t y = begin, map_y = first; y < end; ++y) {
        const int64_t top = std::max<int64_t>(y * POOL_STRIDE - POOL_PADDING, 0);
        const int64_t bottom = std::min(y * POOL_STRIDE - POOL_PADDING + POOL_KERNEL, map_height);
        for (; map_y < bottom; ++map_y)
            multiply<float>({copy + (map_y - first) * STEM_STRIDE * copy_row, STEM_STRIDE * image.channels, copy_row, STEM_KERNEL, piece,
                             weight, channels, bias, nullptr, 0, ring + map_y % POOL_KERNEL * map_row, channels, true},
                            map_width, channels, last_columns);
        const float* rows[POOL_KERNEL];
        for (int64_t row = top; row < bottom; ++row) rows[row - top] = ring + row % POOL_KERNEL * map_row;
        pool_row(rows, bottom - top, map_width, out_width, channels, out + y * out_width * channels);
    }
}

}  // namespace

extern "C" {

// out = relu?(secondary(primary(in)) + bias + residual?), out and residual (N, H', W', M, L), which may be the same memory. With a
// `projection` the residual is the input of the shortcut (N, height, width, m, L), and what is added is projection(residual) + its bias.
void igc_unit(Number* out, const Number* in, const Number* primary, const Number* secondary, const Number* bias,
              const Number* residual, const Number* projection, const Number* projection_bias,
              int64_t images, int64_t height, int64_t width, int64_t in_planes, int64_t planes, int64_t channels,
              int64_t kernel, int64_t stride, int64_t dilation, int64_t relu,
              int64_t shortcut_height, int64_t shortcut_width, int64_t shortcut_planes, int64_t shortcut_stride, int64_t threads) {
    const int64_t out_height = ceil_div(height, stride), out_width = ceil_div(width, stride);
    unit({height, width, out_height, out_width, in_planes, channels, kernel, stride, dilation, in, primary, nullptr},
         {shortcut_height, shortcut_width, out_height, out_width, shortcut_planes, channels, 1, shortcut_stride, 1, residual, projection,
          projection_bias},
         secondary, bias, images, planes, relu != 0, threads, out);
}

// out = maxpool(relu(conv(in) + bias)), out (N, H/4, W/4, C) rounded up, weight (7, 7, in_channels, C).
void igc_stem(Number* out, const Number* in, const Number* weight, const Number* bias, int64_t images, int64_t in_channels,
              int64_t height, int64_t width, int64_t in_image, int64_t in_channel, int64_t in_row, int64_t in_column, int64_t channels,
              int64_t threads) {
    const int64_t out_height = ceil_div(ceil_div(height, STEM_STRIDE), POOL_STRIDE);
    const int64_t out_width = ceil_div(ceil_div(width, STEM_STRIDE), POOL_STRIDE);
    // Few bands, for each computes a row its neighbour computes too, but two for a thread.
    const int64_t bands = std::min(out_height, std::max(ceil_div(2 * threads, images), ceil_div(out_height, 16)));
    const std::vector<float> weights = to_floats(weight, STEM_KERNEL * STEM_KERNEL * in_channels * channels);
    const std::vector<float> biases = to_floats(bias, channels);
    parallel(threads, images * bands, [&](int64_t item) {
        const int64_t image = item / bands, band = item % bands;
        stem_rows({height, width, in_channels, in + image * in_image, in_row, in_column, in_channel}, weights.data(), biases.data(),
                  channels, band * out_height / bands, (band + 1) * out_height / bands, out + image * out_height * out_width * channels);
    });
}

}

// Products of bfloat16 by the tiles of AMX: 16 pixels by 16 columns at a time, 32 numbers of each row in one instruction. AMX_MODEL names a
// header that has the instructions as functions, for tests on processors that have none.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "product.h"
#include "threads.h"

#if defined(AMX_MODEL)
#include AMX_MODEL
#define HAS_TILES
#elif defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES

namespace {

// Whether the processor has tiles and the system lets this process have them: they are saved for no process that has not asked.
inline bool tiles_granted() {
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;      // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA, in few headers yet
    unsigned eax, ebx, ecx, edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && edx & AMX_BF16 && edx & AMX_TILE &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

}  // namespace
#endif

namespace {

constexpr int64_t TILE_ROWS = 16, TILE_NUMBERS = 32;                // of a tile of bfloat16; of sums, as many rows of 16

#ifdef HAS_TILES

// The tile registers of a thread, all of one shape, as long as this lives.
struct TileRegisters {
    struct Shapes {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};

        constexpr Shapes() {
            for (int tile = 0; tile < 8; ++tile) bytes[tile] = 64, rows[tile] = TILE_ROWS;
        }
    };
    const bool on;

    explicit TileRegisters(bool on) : on(on) {
        static constexpr Shapes SHAPES;
        if (on) _tile_loadconfig(&SHAPES);
    }
    ~TileRegisters() {
        if (on) _tile_release();
    }
    TileRegisters(const TileRegisters&) = delete;
};

// `height` by `width` tiles of the output, of which so many pixels and columns are there.
template <int height, int width, class T>
__attribute__((noinline)) void multiply_tiles(
    const Product<T>& p, const bfloat16* rows, const bfloat16* weight, int64_t pixels, int64_t columns) {
    const int64_t chunks = ceil_div(p.length, TILE_NUMBERS), tile = TILE_ROWS * TILE_NUMBERS, across = p.pieces * chunks * tile;
    alignas(64) float sums[height * TILE_ROWS][width * 16];
    asm volatile("" ::: "memory");                                  // GCC does not know that its tile loads read memory
    _tile_zero(0);
    if constexpr (width > 1) _tile_zero(1);
    if constexpr (height > 1) _tile_zero(2);
    if constexpr (height > 1 && width > 1) _tile_zero(3);
    for (int64_t piece = 0; piece < p.pieces; ++piece)
        for (int64_t chunk = 0; chunk < chunks; ++chunk, weight += tile) {
            const bfloat16* x = rows + piece * p.piece + chunk * TILE_NUMBERS;
            _tile_loadd(4, x, p.row * 2);
            _tile_loadd(6, weight, 64);
            if constexpr (height > 1) _tile_loadd(5, x + TILE_ROWS * p.row, p.row * 2);
            if constexpr (width > 1) _tile_loadd(7, weight + across, 64);
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (width > 1) _tile_dpbf16ps(1, 4, 7);
            if constexpr (height > 1) _tile_dpbf16ps(2, 5, 6);
            if constexpr (height > 1 && width > 1) _tile_dpbf16ps(3, 5, 7);
        }
    _tile_stored(0, sums[0], sizeof sums[0]);
    if constexpr (width > 1) _tile_stored(1, sums[0] + 16, sizeof sums[0]);
    if constexpr (height > 1) _tile_stored(2, sums[TILE_ROWS], sizeof sums[0]);
    if constexpr (height > 1 && width > 1) _tile_stored(3, sums[TILE_ROWS] + 16, sizeof sums[0]);
    for (int64_t h = 0; h < std::min(pixels, height * TILE_ROWS); ++h)
        for (int v = 0; v < width; ++v) put<16>(p, h, v, load<16>(sums[h] + v * 16), std::min<int64_t>(16, columns - v * 16));
}

// All columns of all pixels, from `rows` and a weight in tiles in place of p's own. What lies behind a piece is multiplied by zeros, up to
// whole tiles, and must be finite; behind the last pixel up to 15 more are read, whatever they are.
template <class T>
void multiply_by_tiles(Product<T> p, const bfloat16* rows, const bfloat16* weight, int64_t pixels, int64_t columns) {
    const int64_t step = 2 * p.pieces * ceil_div(p.length, TILE_NUMBERS) * TILE_ROWS * TILE_NUMBERS;
    for (; columns > 0; columns -= 32, p.skip_columns(32), weight += step) {
        Product<T> q = p;
        const bfloat16* x = rows;
        for (int64_t left = pixels; left > 0; left -= 32, q.skip_pixels(32), x += 32 * p.row)
            with_constant<2>(1 + (left > 16), [&](auto height) {
                with_constant<2>(1 + (columns > 16), [&](auto width) { multiply_tiles<height, width>(q, x, weight, left, columns); });
            });
    }
}

// Weights (planes, pieces, length, columns) as (planes, columns / 16, pieces, length / 32) tiles, rounded up, of (16 pairs of rows, 16
// columns, 2), with zeros where there are none. This thread's until its next.
inline const bfloat16* pack_tiles(
    const bfloat16* weight, int64_t planes, int64_t pieces, int64_t length, int64_t columns, int64_t threads) {
    struct Tile { bfloat16 numbers[TILE_ROWS * TILE_NUMBERS]; };
    const int64_t across = ceil_div(columns, 16), chunks = ceil_div(length, TILE_NUMBERS), size = chunks * TILE_ROWS * TILE_NUMBERS;
    bfloat16* tiles = scratch<Tile>(planes * across * pieces * chunks)->numbers;
    parallel(threads, planes * across, [&](int64_t item) {
        const int64_t plane = item / across, column = item % across * 16;
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const bfloat16* from = weight + (plane * pieces + piece) * length * columns + column;
            bfloat16* to = tiles + (item * pieces + piece) * size;
            const Product<bfloat16> rows = {nullptr, 0, 0, 1, length, from, columns, nullptr, nullptr, 0, nullptr, 0, false};
            pack<16, 1>(rows, std::min<int64_t>(16, columns - column), to);
            std::fill(to + ceil_div(length, 2) * TILE_NUMBERS, to + size, bfloat16{});
        }
    });
    return tiles;
}

// Whether a product by tiles, of whole numbers that nothing rounds, is what it is by vectors.
inline bool tiles_are_right() {
    constexpr int64_t PIXELS = 40, LENGTH = 70, COLUMNS = 40, ROW = 96;
    std::vector<bfloat16> rows(48 * ROW), weight(LENGTH * COLUMNS);
    std::vector<float> float_rows(48 * ROW), float_weight(LENGTH * COLUMNS), copy(packed(LENGTH));
    const auto fill = [](std::vector<bfloat16>& numbers, std::vector<float>& floats, int64_t at, int64_t number) {
        floats[at] = number;
        store<1>(&numbers[at], load<1>(&floats[at]));
    };
    for (int64_t pixel = 0; pixel < PIXELS; ++pixel)
        for (int64_t k = 0; k < LENGTH; ++k) fill(rows, float_rows, pixel * ROW + k, (pixel * 37 + k * 11) % 31 - 15);
    for (int64_t at = 0; at < LENGTH * COLUMNS; ++at) fill(weight, float_weight, at, at * at % 29 - 14);
    float found[PIXELS * COLUMNS], expected[PIXELS * COLUMNS];
    Product<float> product = {float_rows.data(), ROW, 0, 1, LENGTH, float_weight.data(), COLUMNS, nullptr, nullptr, 0, expected, COLUMNS,
                              false};
    multiply(product, PIXELS, COLUMNS, copy.data());
    product.out = found;
    const TileRegisters registers(true);
    multiply_by_tiles(product, rows.data(), pack_tiles(weight.data(), 1, 1, LENGTH, COLUMNS, 1), PIXELS, COLUMNS);
    return std::memcmp(found, expected, sizeof found) == 0;
}

// Why no product is by tiles though this was compiled for them, in one line; else ''. The first one that asks tries them.
inline const char* why_no_tiles() {
    static const char* const reason =
        !tiles_granted() ? "the system refuses this process the tiles of AMX, so the kernel multiplies bfloat16 by vectors"
        : !tiles_are_right() ? "a product by the tiles of AMX was wrong, so the kernel multiplies bfloat16 by vectors" : "";
    return reason;
}

// Weights as pack_tiles gives them, or null where products are to be by vectors: also with few columns, where tiles were nearly empty.
template <class T>
const bfloat16* in_tiles(const T* weight, int64_t planes, int64_t pieces, int64_t length, int64_t columns, int64_t threads) {
    if constexpr (std::is_same_v<T, bfloat16>)
        if (columns >= 16 && !*why_no_tiles()) return pack_tiles(weight, planes, pieces, length, columns, threads);
    return nullptr;
}

#else

struct TileRegisters {
    explicit TileRegisters(bool) {}
};

template <class T>
void multiply_by_tiles(const Product<T>&, const bfloat16*, const bfloat16*, int64_t, int64_t) {}

inline const char* why_no_tiles() { return ""; }

template <class T>
const bfloat16* in_tiles(const T*, int64_t, int64_t, int64_t, int64_t, int64_t) { return nullptr; }

#endif

}  // namespace

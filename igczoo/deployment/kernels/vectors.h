// Vectors of float, the extension that GCC and Clang share: the kernel compiles for AVX-512, AVX2, SSE and NEON.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <arm_neon.h>
#endif

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

struct bfloat16 {
    uint16_t bits;                                                  // the upper half of a float
};

using Number = NUMBER;
using Real = std::conditional_t<std::is_same_v<Number, double>, double, float>;     // what is summed; double where tests ask for it

template <int N>
struct Vectors {
    typedef Real Floats __attribute__((vector_size(N * sizeof(Real))));
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
inline Vector<N> load(const Real* from) {
    Vector<N> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <int N>
inline Vector<N> widened(Halves<N> halves) {
    return (Vector<N>)(__builtin_convertvector(halves, Bits<N>) << 16);
}

template <int N>
inline Vector<N> load(const bfloat16* from) {
    Halves<N> halves;
    std::memcpy(&halves, from, sizeof halves);
    return widened<N>(halves);
}

template <int N>
inline void store(Real* to, Vector<N> v) {
    std::memcpy(to, &v, sizeof v);
}

// To the nearest. Where the processor has an instruction for that, it takes numbers next to nothing, below 1.2e-38, for nothing.
template <int N>
inline Halves<N> rounded(Vector<N> v) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    if constexpr (N == 16) return (Halves<N>)_mm512_cvtneps_pbh((__m512)v);
    else if constexpr (N == 8) return (Halves<N>)_mm256_cvtneps_pbh((__m256)v);
#endif
    const Bits<N> bits = (Bits<N>)v, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector(v == v ? nearest : bits >> 16 | 64, Halves<N>);     // NaN stays NaN
}

template <int N>
inline void store(bfloat16* to, Vector<N> v) {
    const Halves<N> halves = rounded<N>(v);
    std::memcpy(to, &halves, sizeof halves);
}

// Of a vector, the first `count`; the others are zero, or stay as they are in memory.
template <int N, class T>
inline Vector<N> load_some(const T* from, int count) {
    if (count == N) return load<N>(from);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (N == 16 && std::is_same_v<T, float>) return (Vector<N>)_mm512_maskz_loadu_ps((1 << count) - 1, from);
    else if constexpr (N == 8 && std::is_same_v<T, float>) return (Vector<N>)_mm256_maskz_loadu_ps((1 << count) - 1, from);
    else if constexpr (N == 16 && std::is_same_v<T, bfloat16>)
        return widened<N>((Halves<N>)_mm256_maskz_loadu_epi16((1 << count) - 1, from));
    else if constexpr (N == 8 && std::is_same_v<T, bfloat16>)
        return widened<N>((Halves<N>)_mm_maskz_loadu_epi16((1 << count) - 1, from));
#endif
    T there[N] = {};
    std::memcpy(there, from, count * sizeof(T));
    return load<N>(there);
}

template <int N, class T>
inline void store_some(T* to, Vector<N> v, int count) {
    if (count == N) return store<N>(to, v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (N == 16 && std::is_same_v<T, float>) return _mm512_mask_storeu_ps(to, (1 << count) - 1, (__m512)v);
    else if constexpr (N == 8 && std::is_same_v<T, float>) return _mm256_mask_storeu_ps(to, (1 << count) - 1, (__m256)v);
    else if constexpr (N == 16 && std::is_same_v<T, bfloat16>)
        return _mm256_mask_storeu_epi16(to, (1 << count) - 1, (__m256i)rounded<N>(v));
    else if constexpr (N == 8 && std::is_same_v<T, bfloat16>)
        return _mm_mask_storeu_epi16(to, (1 << count) - 1, (__m128i)rounded<N>(v));
#endif
    T there[N];
    store<N>(there, v);
    std::memcpy(to, there, count * sizeof(T));
}

// Whether the processor has products of pairs of bfloat16, which halve the multiplications of two planes or of two pixels.
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
template <int N>
constexpr bool BY_PAIRS = std::is_same_v<Number, bfloat16> && (N == 16 || N == 8);
#else
template <int N>
constexpr bool BY_PAIRS = false;
#endif

// Of bfloat16, numbers of two rows in pairs; and sum + x0 w0 + x1 w1 of pairs.
template <int N>
inline Bits<N> pairs(const bfloat16* first, const bfloat16* second) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (N == 16 || N == 8) {                              // in one instruction, which compilers do not find
        Bits<N> place;
        for (int n = 0; n < N; ++n) place[n] = n | (n + 2 * N) << 16;
        if constexpr (N == 16) {
            const auto load = [](const bfloat16* from) { return _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from)); };
            return (Bits<N>)_mm512_permutex2var_epi16(load(first), (__m512i)place, load(second));
        } else {
            const auto load = [](const bfloat16* from) { return _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)from)); };
            return (Bits<N>)_mm256_permutex2var_epi16(load(first), (__m256i)place, load(second));
        }
    }
#endif
    Halves<N> low, high;
    std::memcpy(&low, first, sizeof low);
    std::memcpy(&high, second, sizeof high);
    return __builtin_convertvector(low, Bits<N>) | __builtin_convertvector(high, Bits<N>) << 16;
}

template <int N>
inline Vector<N> add_pairs(Bits<N> x, Bits<N> w, Vector<N> sum) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    if constexpr (N == 16) return (Vector<N>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
    else if constexpr (N == 8) return (Vector<N>)_mm256_dpbf16_ps((__m256)sum, (__m256bh)x, (__m256bh)w);
    else return (Vector<N>)_mm_dpbf16_ps((__m128)sum, (__m128bh)x, (__m128bh)w);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return (Vector<N>)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)x, (bfloat16x8_t)w);
#else
    sum += (Vector<N>)(x << 16) * (Vector<N>)(w << 16);
    return sum + (Vector<N>)(x & 0xffff0000) * (Vector<N>)(w & 0xffff0000);
#endif
}

template <class V>
inline V relu(V v) {
    return v <= V{} ? V{} : v;                                      // written so that NaN stays NaN and -0 becomes +0
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

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

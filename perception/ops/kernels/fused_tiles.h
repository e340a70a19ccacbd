// Products, made of tiles: MR rows times 2 vectors of columns stay in registers while the sum runs. The right-hand side lies in panels of NR
// columns. What comes after a sum (bias, activation, its derivative) is done while it is still in registers. All is row-major.
//
// Factors are float32, or bfloat16 (HALF) two by two: what is a word, 32 bits, holds one number of the sum in the first case and two that follow
// each other in the second. Sums are float32.

#pragma once

#include <ATen/Parallel.h>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <type_traits>
#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512DQ__
constexpr int VL = 16, MR = 14;
#else
constexpr int VL = 8, MR = 6;
#endif
constexpr int NR = 2 * VL;
constexpr int ROWS = 128;   // of a block that goes through all layers
constexpr int LONG = 64;   // words of a sum that takes longer than memory
constexpr int LINE = 16;   // numbers of a line of the cache
constexpr int DEPTH = 256; // rows whose gradients of weights are summed at once

typedef float V __attribute__((vector_size(VL * 4)));
typedef int32_t I __attribute__((vector_size(VL * 4)));
typedef float U __attribute__((vector_size(VL * 4), aligned(4), may_alias));

inline V load(const float *p) { return *reinterpret_cast<const U *>(p); }
inline void store(float *p, V x) { *reinterpret_cast<U *>(p) = x; }
#ifdef __AVX512DQ__
inline V spread(const float *word) { return reinterpret_cast<V>(_mm512_set1_ps(*word)); }
#else
inline V spread(const float *word) { return *word - V{}; } // a sum would not be folded: -0 + 0 is 0
#endif
inline V all(float x) { return spread(&x); }

// The first `count` numbers of a vector
inline V load(const float *p, int count) {
#ifdef __AVX512DQ__
    return reinterpret_cast<V>(_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p));
#else
    alignas(sizeof(V)) float part[VL] = {};
    memcpy(part, p, count * sizeof(float));
    return load(part);
#endif
}
inline void store(float *p, V x, int count) {
#ifdef __AVX512DQ__
    _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), reinterpret_cast<__m512>(x));
#else
    memcpy(p, &x, count * sizeof(float));
#endif
}

inline float total(V x) {
#ifdef __AVX512DQ__
    return _mm512_reduce_add_ps(reinterpret_cast<__m512>(x));
#else
    float sum = 0;
    for (int i = 0; i < VL; i++) sum += x[i];
    return sum;
#endif
}

// Words of `count` numbers
template <bool HALF> constexpr long words(long count) { return HALF ? (count + 1) / 2 : count; }

// A number of bfloat16: the upper half of a float32
struct bfloat {
    uint16_t bits;
    operator float() const {
        const uint32_t word = uint32_t(bits) << 16;
        float out;
        memcpy(&out, &word, sizeof(out));
        return out;
    }
};
template <bool HALF> using Number = std::conditional_t<HALF, bfloat, float>;

#ifdef __AVX512BF16__
// VL numbers, of which the first `count` are there, as bfloat16 in the lower half of each word
inline __m512i halves(const float *p, int count) {
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(reinterpret_cast<__m512>(load(p, count))));
}
inline __m512i halves(const bfloat *p, int count) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p)); }
inline V load(const bfloat *p, int count = VL) { return reinterpret_cast<V>(_mm512_slli_epi32(halves(p, count), 16)); }
inline void store(bfloat *p, V x, int count = VL) {
    _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), (__m256i)_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
}
#endif

enum Activation { NONE, ELU, LEAKY, RELU };
constexpr float SLOPE = 0.01f;

// e^x, to within 2e-7 of itself and of 1, where x is at most 87: 2^t = 2^floor(t) times a polynomial of what is left of t, which is exact at
// both ends
inline V exponential(V x) {
    const float log2e = 1.44269504088896341f;
#ifdef __AVX512DQ__
    const V t = x * log2e, f = reinterpret_cast<V>(_mm512_reduce_ps(reinterpret_cast<__m512>(t), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
#else
    const float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    x = x < -87.0f ? all(-87.0f) : x;
    const V t = x * log2e, shifted = t - 0.5f + magic, f = t - (shifted - magic);
#endif
    V p = all(1.879318617e-3f);
    p = p * f + 8.990994655e-3f;
    p = p * f + 5.581867695e-2f;
    p = p * f + 2.401592731e-1f;
    p = p * f + 6.931517124e-1f;
    p = p * f + 1.0f;
#ifdef __AVX512DQ__
    return reinterpret_cast<V>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(t)));
#else
    return x == x ? reinterpret_cast<V>(reinterpret_cast<I>(p) + (reinterpret_cast<I>(shifted) << 23)) : x; // a NaN stays one
#endif
}

inline V reciprocal(V x) {
#ifdef __AVX512DQ__
    V y = reinterpret_cast<V>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
    return y * (2.0f - x * y);
#else
    return 1.0f / x;
#endif
}

inline V sigmoid(V x) {
#ifdef __AVX512DQ__
    const V up = reinterpret_cast<V>(_mm512_min_ps(_mm512_set1_ps(87.0f), reinterpret_cast<__m512>(-x))); // a NaN stays one
#else
    const V up = x < -87.0f ? all(87.0f) : -x;
#endif
    return reciprocal(1.0f + exponential(up));
}

template <int A> inline V activate(V x) {
    if (A == ELU) return x > 0.0f ? x : exponential(x) - 1.0f;
    if (A == LEAKY) return x > 0.0f ? x : x * SLOPE;
    if (A == RELU) return x < 0.0f ? V{} : x;
    return x;
}

// The derivative by the activation's own value
template <int A> inline V slope(V y) {
    if (A == ELU) return y > 0.0f ? all(1.0f) : y + 1.0f;
    if (A == LEAKY) return y > 0.0f ? all(1.0f) : all(SLOPE);
    if (A == RELU) return y <= 0.0f ? V{} : all(1.0f);
    return all(1.0f);
}

// What one product does: C (m, n) = sum over k of A * B, with word (i, k) of A at A[i * lda + k], or transposed at A[k * lda + i]
template <class Out> struct ProductInto {
    const float *A;
    long lda;
    const float *panel; // (k, NR)
    int depth;          // words
    Out *C;
    long ldc;
    int columns;       // of the panel that exist
    const float *bias; // (NR), added; or null
    const Out *gate;   // where the values are whose slope multiplies, laid out as C; or null
    bool add;          // to what C holds
    // Where the sum goes on elsewhere: `runs` stretches of `depth`, so far apart in A and in what is the panel, whose rows may lie apart too
    int runs = 1;
    long A_apart = 0, panel_apart = 0, ldb = NR;
    const float *row_bias = nullptr; // (m), added instead of `bias`
};
using Product = ProductInto<float>;

template <bool HALF> inline V multiply_add(V sum, V a, V b) {
#ifdef __AVX512BF16__
    if constexpr (HALF) return reinterpret_cast<V>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), (__m512bh)a, (__m512bh)b));
#endif
    return sum + a * b;
}

// RUNS: whether there are `runs`, without which a tile is faster. LDA, RUN: `lda` and `depth` where they are known beforehand, which short runs
// gain by; else 0.
template <int M, int N, bool T, int ACT, bool RUNS, bool HALF, int LDA, int RUN, class Out> void tile(const ProductInto<Out> &p) {
    const long lda = LDA ? LDA : p.lda, ldb = RUNS ? p.ldb : NR;
    const int depth = RUN ? RUN : p.depth, runs = RUNS ? p.runs : 1;
    V sum[M][N];
    auto each = [&](auto call) {
#pragma GCC unroll 16
        for (int i = 0; i < M; i++)
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) call(i * p.ldc + j * VL, sum[i][j], p.columns - j * VL);
    };
    // What follows the sum is asked for before it
    if (p.gate) each([&](long at, V, int) { __builtin_prefetch(p.gate + at); });
    if (depth >= LONG) each([&](long at, V, int) { __builtin_prefetch(p.C + at, 1); });
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) sum[i][j] = p.bias ? load(p.bias + j * VL) : p.row_bias ? spread(p.row_bias + i) : V{};
    for (int run = 0; run < runs; run++) {
        const float *A = RUNS ? p.A + run * p.A_apart : p.A, *B = RUNS ? p.panel + run * p.panel_apart : p.panel;
        for (int k = 0; k < depth; k++, A += T ? lda : 1, B += ldb) {
            V b[N];
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) b[j] = load(B + j * VL);
#pragma GCC unroll 16
            for (int i = 0; i < M; i++) {
                V a = spread(T ? A + i : A + i * lda);
#pragma GCC unroll 2
                for (int j = 0; j < N; j++) sum[i][j] = multiply_add<HALF>(sum[i][j], a, b[j]);
            }
        }
    }
    if (p.columns < N * VL)
        each([&](long at, V x, int there) {
            const int count = std::max(0, std::min(VL, there));
            if (p.gate) x *= slope<ACT>(load(p.gate + at, count));
            else x = activate<ACT>(x);
            if (p.add) x += load(p.C + at, count);
            store(p.C + at, x, count);
        });
    else if (p.gate) each([&](long at, V x, int) { store(p.C + at, x * slope<ACT>(load(p.gate + at))); });
    else if (p.add) each([&](long at, V x, int) { store(p.C + at, activate<ACT>(x) + load(p.C + at)); });
    else each([&](long at, V x, int) { store(p.C + at, activate<ACT>(x)); });
}

template <int N, bool T, int ACT, bool RUNS, bool HALF, int LDA, int RUN, class Out> auto tile_of(int rows) {
    using Tile = void (*)(const ProductInto<Out> &);
    switch (rows) {
#define CASE(m) case m: return Tile(tile<m, N, T, ACT, RUNS, HALF, LDA, RUN, Out>);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#ifdef __AVX512DQ__
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
#undef CASE
    }
    return Tile(nullptr);
}

// Rows [0, m) of a product with one panel, in tiles of nearly equal height
template <bool T, int ACT, bool RUNS, bool HALF = false, int LDA = 0, int RUN = 0, class Out> void stripe(ProductInto<Out> p, int m) {
    const int tiles = (m + MR - 1) / MR, rows = m / tiles, longer = m % tiles;
    for (int t = 0; t < tiles; t++) {
        const int height = rows + (t < longer);
        (p.columns > VL ? tile_of<2, T, ACT, RUNS, HALF, LDA, RUN, Out>(height) : tile_of<1, T, ACT, RUNS, HALF, LDA, RUN, Out>(height))(p);
        p.A += T ? height : height * p.lda;
        p.C += height * p.ldc;
        if (p.gate) p.gate += height * p.ldc;
        if (p.row_bias) p.row_bias += height;
    }
}

// The same with an activation that is known only now, one of a chain's
template <bool HALF, class Out> void stripe(const ProductInto<Out> &p, int m, int activation) {
    switch (activation) {
    case ELU: return stripe<false, ELU, false, HALF>(p, m);
    case LEAKY: return stripe<false, LEAKY, false, HALF>(p, m);
    default: return stripe<false, NONE, false, HALF>(p, m);
    }
}

inline int panels(int n) { return (n + NR - 1) / NR; }

// Words [0, 4) of VL rows that lie `k` numbers apart, as rows of a panel
template <bool HALF> inline void transpose(const float *from, long k, float *to) {
    typedef float Q __attribute__((vector_size(16)));
    typedef float QU __attribute__((vector_size(16), aligned(4), may_alias));
    auto quarter = [&](int row) {
#ifdef __AVX512BF16__
        if constexpr (HALF) return Q(_mm256_cvtneps_pbh(_mm256_loadu_ps(from + row * k)));
#endif
        return Q(*reinterpret_cast<const QU *>(from + row * k));
    };
    V a[4], b[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { // row i of each four, side by side
        const auto low = __builtin_shufflevector(quarter(i), quarter(i + 4), 0, 1, 2, 3, 4, 5, 6, 7);
#ifdef __AVX512DQ__
        const auto top = __builtin_shufflevector(quarter(i + 8), quarter(i + 12), 0, 1, 2, 3, 4, 5, 6, 7);
        a[i] = __builtin_shufflevector(low, top, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
        a[i] = low;
#endif
    }
#ifdef __AVX512DQ__
#define FOURS(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l, i + 4, j + 4, k + 4, l + 4, i + 8, j + 8, k + 8, l + 8, i + 12, j + 12, k + 12, l + 12)
#else
#define FOURS(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l, i + 4, j + 4, k + 4, l + 4)
#endif
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        b[2 * i] = FOURS(a[2 * i], a[2 * i + 1], 0, VL, 1, VL + 1);
        b[2 * i + 1] = FOURS(a[2 * i], a[2 * i + 1], 2, VL + 2, 3, VL + 3);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        store(to + 2 * i * NR, FOURS(b[i], b[i + 2], 0, 1, VL, VL + 1));
        store(to + (2 * i + 1) * NR, FOURS(b[i], b[i + 2], 2, 3, VL + 2, VL + 3));
    }
#undef FOURS
}

// One word of a row of `k` numbers
template <bool HALF> inline float word(const float *row, long k, long index) {
#ifdef __AVX512BF16__
    if constexpr (HALF) {
        const float high = 2 * index + 1 < k ? row[2 * index + 1] : 0.0f;
        const __m128 both = (__m128)_mm_cvtneps_pbh(_mm_setr_ps(row[2 * index], high, 0.0f, 0.0f));
        return _mm_cvtss_f32(both);
    }
#endif
    return row[index];
}

// Panel number `index` of W (n, k) as the right-hand side of x W^T: (k, NR) words, zeros where there are no rows; asks for what the next panel
// will read
template <bool HALF> void pack_transposed(const float *W, int n, int k, int index, float *to) {
    constexpr int each = HALF ? 2 : 1; // numbers of a word
    const int begin = index * NR, width = std::min(NR, n - begin), depth = int(words<HALF>(k));
    const float *from = W + long(begin) * k;
    const float *ahead = from + NR * long(k);
    if (width < NR) memset(to, 0, sizeof(float) * NR * depth);
    int r = 0;
    for (; r + VL <= width; r += VL) {
        int c = 0;
        for (; each * (c + 4) <= k; c += 4) {
            transpose<HALF>(from + r * long(k) + each * c, k, to + c * NR + r);
            for (int i = 0; i < each * VL / 4; i++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
        }
        for (; c < depth; c++)
            for (int i = r; i < r + VL; i++) to[c * NR + i] = word<HALF>(from + i * long(k), k, c);
    }
    for (; r < width; r++)
        for (int c = 0; c < depth; c++) to[c * NR + r] = word<HALF>(from + r * long(k), k, c);
}

// Columns [NR * index, ...) of X (m, n): (m, NR); where there are none, numbers that nobody uses
inline void pack(const float *X, int m, int n, int index, float *to) {
    const int begin = index * NR, width = std::min(NR, n - begin);
    const float *from = X + begin, *end = X + long(m) * n;
    for (int i = 0; i < m; i++, from += n, to += NR) {
        if (end - from >= NR) {
            store(to, load(from));
            store(to + VL, load(from + VL));
            for (int c = 0; c < NR; c += LINE) __builtin_prefetch(from + NR + c, 0, 2);
        } else {
            memcpy(to, from, sizeof(float) * width);
            memset(to + width, 0, sizeof(float) * (NR - width));
        }
    }
}

#ifdef __AVX512BF16__
// Each two rows of X (m, ...), which lie `ld` apart, as one row of words, `apart`, zeros beside the last of an odd number; of so many columns,
// and zeros up to a multiple of VL
template <class From> void pair_rows(const From *X, int m, long ld, int columns, float *to, long apart) {
    for (int i = 0; i < m; i += 2)
        for (int c = 0; c < columns; c += VL) {
            const int count = std::min(VL, columns - c);
            const From *row = X + i * ld + c;
            const __m512i high = halves(row + ld, i + 1 < m ? count : 0);
            _mm512_storeu_si512(to + i / 2 * apart + c, _mm512_or_si512(halves(row, count), _mm512_slli_epi32(high, 16)));
        }
}

// Columns of X (m, k), whose rows lie `apart`, as bfloat16, in rows of `ld`, with zeros in `zeros` columns behind them
inline void narrow(const float *X, int m, int k, long apart, bfloat *to, long ld, int zeros) {
    for (int i = 0; i < m; i++)
        for (int c = 0; c < k + zeros; c += VL)
            store(to + i * ld + c, load(X + i * apart + c, std::clamp(k - c, 0, VL)), std::min(VL, k + zeros - c));
}
#endif

struct Buffer {
    float *data = nullptr;
    size_t size = 0;
    float *get(size_t floats) {
        if (floats > size) {
            free(data);
            size = floats;
            data = static_cast<float *>(aligned_alloc(4096, (floats * sizeof(float) + 4095) / 4096 * 4096));
        }
        return data;
    }
    ~Buffer() { free(data); }
};

thread_local Buffer shared_buffer, own_buffer;

struct Range {
    long begin, end;
};

Range share(long whole, int part, int parts) { return {whole * part / parts, whole * (part + 1) / parts}; }

int threads_for(long rows) { return rows < ROWS ? 1 : at::get_num_threads(); }

} // namespace

// Products, made of tiles: MR rows times 2 vectors of columns stay in registers while the sum runs. The right-hand side lies in panels of NR
// columns. What comes after a sum (bias, activation, its derivative) is done while it is still in registers. Row-major float32 throughout.

#pragma once

#include <ATen/Parallel.h>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <omp.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int VL = 16, MR = 14;
#else
constexpr int VL = 8, MR = 6;
#endif
constexpr int NR = 2 * VL;
constexpr int ROWS = 64;   // of a block that goes through all layers
constexpr int DEPTH = 256; // rows whose gradients of weights are summed at once

typedef float V __attribute__((vector_size(VL * 4)));
typedef int32_t I __attribute__((vector_size(VL * 4)));
typedef float U __attribute__((vector_size(VL * 4), aligned(4), may_alias));

inline V load(const float *p) { return *reinterpret_cast<const U *>(p); }
inline void store(float *p, V x) { *reinterpret_cast<U *>(p) = x; }
inline V all(float x) { return x - V{}; } // a sum would not be folded: -0 + 0 is 0

// The first `count` numbers of a vector
inline V load(const float *p, int count) {
#ifdef __AVX512F__
    return reinterpret_cast<V>(_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p));
#else
    alignas(sizeof(V)) float part[VL] = {};
    memcpy(part, p, count * sizeof(float));
    return load(part);
#endif
}
inline void store(float *p, V x, int count) {
#ifdef __AVX512F__
    _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), reinterpret_cast<__m512>(x));
#else
    memcpy(p, &x, count * sizeof(float));
#endif
}

enum Activation { NONE, ELU, LEAKY, RELU };
constexpr float SLOPE = 0.01f;

// e^x, to within 2e-7 of itself, where x is at most 87
inline V exponential(V x) {
    const float magic = 12582912.0f, log2e = 1.44269504088896341f; // 1.5 * 2^23: adding it rounds to an integer
    x = x < -87.0f ? all(-87.0f) : x;
    const V shifted = x * log2e + magic, whole = shifted - magic, f = x * log2e - whole;
    V p = all(1.326472720e-3f);
    p = p * f + 9.671512640e-3f;
    p = p * f + 5.550733743e-2f;
    p = p * f + 2.402224209e-1f;
    p = p * f + 6.931469776e-1f;
    p = p * f + 1.0f;
#ifdef __AVX512F__
    return reinterpret_cast<V>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(whole)));
#else
    return x == x ? reinterpret_cast<V>(reinterpret_cast<I>(p) + (reinterpret_cast<I>(shifted) << 23)) : x; // a NaN stays one
#endif
}

inline V reciprocal(V x) {
#ifdef __AVX512F__
    V y = reinterpret_cast<V>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
    return y * (2.0f - x * y);
#else
    return 1.0f / x;
#endif
}

inline V sigmoid(V x) { return reciprocal(1.0f + exponential(x < -87.0f ? all(87.0f) : -x)); }

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

// What one product does: C (m, n) = sum over k of A * B, with A (i, k) at A[i * lda + k], or transposed at A[k * lda + i]
struct Product {
    const float *A;
    long lda;
    const float *panel; // (k, NR)
    int depth;
    float *C;
    long ldc;
    int columns;       // of the panel that exist
    const float *bias; // (NR), added; or null
    const float *gate; // where the values are whose slope multiplies, laid out as C; or null
    bool add;          // to what C holds
    // Where the sum goes on elsewhere: `runs` stretches of `depth`, so far apart in A and in what is the panel, whose rows may lie apart too
    int runs = 1;
    long A_apart = 0, panel_apart = 0, ldb = NR;
};

// LDA, RUN: `lda` and `depth` where they are known beforehand, which short runs gain by; else 0
template <int M, int N, bool T, int ACT, int LDA, int RUN> void tile(const Product &p) {
    const long lda = LDA ? LDA : p.lda;
    const int depth = RUN ? RUN : p.depth;
    V sum[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) sum[i][j] = p.bias ? load(p.bias + j * VL) : V{};
    for (int run = 0; run < p.runs; run++) {
        const float *A = p.A + run * p.A_apart, *B = p.panel + run * p.panel_apart;
        for (int k = 0; k < depth; k++, A += T ? lda : 1, B += p.ldb) {
            V b[N];
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) b[j] = load(B + j * VL);
#pragma GCC unroll 16
            for (int i = 0; i < M; i++) {
                V a = all(T ? A[i] : A[i * lda]);
#pragma GCC unroll 2
                for (int j = 0; j < N; j++) sum[i][j] += a * b[j];
            }
        }
    }
    const bool whole = p.columns == N * VL;
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) {
            const long at = i * p.ldc + j * VL;
            const int count = whole ? VL : std::max(0, std::min(VL, p.columns - j * VL));
            V x = sum[i][j];
            if (p.gate) x *= slope<ACT>(whole ? load(p.gate + at) : load(p.gate + at, count));
            else x = activate<ACT>(x);
            if (p.add) x += whole ? load(p.C + at) : load(p.C + at, count);
            if (whole) store(p.C + at, x);
            else store(p.C + at, x, count);
        }
}

using Tile = void (*)(const Product &);

template <int N, bool T, int ACT, int LDA, int RUN> Tile tile_of(int rows) {
    switch (rows) {
#define CASE(m) case m: return tile<m, N, T, ACT, LDA, RUN>;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#ifdef __AVX512F__
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
#undef CASE
    }
    return nullptr;
}

// Rows [0, m) of a product with one panel, in tiles of nearly equal height
template <bool T, int ACT, int LDA = 0, int RUN = 0> void stripe(Product p, int m) {
    const int tiles = (m + MR - 1) / MR, rows = m / tiles, longer = m % tiles;
    for (int t = 0; t < tiles; t++) {
        const int height = rows + (t < longer);
        (p.columns > VL ? tile_of<2, T, ACT, LDA, RUN>(height) : tile_of<1, T, ACT, LDA, RUN>(height))(p);
        p.A += T ? height : height * p.lda;
        p.C += height * p.ldc;
        if (p.gate) p.gate += height * p.ldc;
    }
}

template <bool T> void stripe(const Product &p, int m, int activation) {
    switch (activation) {
    case ELU: return stripe<T, ELU>(p, m);
    case LEAKY: return stripe<T, LEAKY>(p, m);
    case RELU: return stripe<T, RELU>(p, m);
    default: return stripe<T, NONE>(p, m);
    }
}

inline int panels(int n) { return (n + NR - 1) / NR; }

// Panel number `index` of W (n, k) as the right-hand side of x W^T: (k, NR), zeros where there are no rows
void pack_transposed(const float *W, int n, int k, int index, float *to) {
    const int begin = index * NR, width = std::min(NR, n - begin);
    if (width < NR) memset(to, 0, sizeof(float) * NR * k);
    constexpr int S = 8;
    int c = 0;
    for (; c + S <= k; c += S)
        for (int r = 0; r < width; r += S) {
            const int high = std::min(S, width - r);
            const float *from = W + long(begin + r) * k + c;
            if (high == S) {
                typedef float Q __attribute__((vector_size(32)));
                typedef float QU __attribute__((vector_size(32), aligned(4), may_alias));
                Q a[8], b[8];
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) a[i] = *reinterpret_cast<const QU *>(from + long(i) * k);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    b[2 * i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
                    b[2 * i + 1] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
                }
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    a[4 * i] = __builtin_shufflevector(b[4 * i], b[4 * i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
                    a[4 * i + 1] = __builtin_shufflevector(b[4 * i], b[4 * i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
                    a[4 * i + 2] = __builtin_shufflevector(b[4 * i + 1], b[4 * i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
                    a[4 * i + 3] = __builtin_shufflevector(b[4 * i + 1], b[4 * i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
                }
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    Q low = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
                    Q top = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
                    *reinterpret_cast<QU *>(to + long(c + i) * NR + r) = low;
                    *reinterpret_cast<QU *>(to + long(c + 4 + i) * NR + r) = top;
                }
            } else
                for (int i = 0; i < high; i++)
                    for (int j = 0; j < S; j++) to[long(c + j) * NR + r + i] = from[long(i) * k + j];
        }
    for (; c < k; c++)
        for (int r = 0; r < width; r++) to[long(c) * NR + r] = W[long(begin + r) * k + c];
}

// Columns [NR * index, ...) of X (m, n): (m, NR); where there are none, numbers that nobody uses
void pack(const float *X, int m, int n, int index, float *to) {
    const int begin = index * NR, width = std::min(NR, n - begin);
    const float *from = X + begin, *end = X + long(m) * n;
    for (int i = 0; i < m; i++, from += n, to += NR) {
        if (end - from >= NR) {
            store(to, load(from));
            store(to + VL, load(from + VL));
        } else {
            memcpy(to, from, sizeof(float) * width);
            memset(to + width, 0, sizeof(float) * (NR - width));
        }
    }
}

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

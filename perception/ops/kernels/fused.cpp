// Chains of linear layers with an activation between them, forward and backward, as one pass over blocks of rows that stay in the cache.
//
// Panels are copies of weights, made at each call. G groups (agents) side by side, each with weights of its own.

#include "fused_conv.h"
#include "fused_tiles.h"
#include "fused_torch.h"

namespace {

// One linear layer, W (n, k) and b (n) ------------------------------------------------------------------------------------------------

// All of this with factors in float32 or, HALF, in bfloat16; what goes in and out is float32, what stays between layers is what factors are.
// Sizes are in floats, that is in words.

// Of a layer that is packed for y = x W^T + b: panels, then biases
template <bool HALF> long forward_size(int n, int k) { return long(panels(n)) * NR * (words<HALF>(k) + 1); }

// Of panel number j
template <bool HALF> void pack_forward(const float *W, const float *b, int n, int k, int j, float *to) {
    const long depth = words<HALF>(k);
    pack_transposed<HALF>(W, n, k, j, to + long(j) * NR * depth);
    pack(b, 1, n, j, to + long(panels(n)) * NR * depth + j * NR);
}

// Columns [NR * j, ...) of act(x W^T + b); x: m rows of words, to (m, ...) with rows of `ld`
template <bool HALF, class Out>
void forward(const float *x, int m, int n, int k, const float *packed, int j, Out *to, long ld, int activation) {
    const int depth = int(words<HALF>(k));
    const float *bias = packed + long(panels(n)) * NR * depth + j * NR;
    stripe<HALF>(ProductInto<Out>{x, depth, packed + long(j) * NR * depth, depth, to, ld, std::min(NR, n - j * NR), bias, nullptr, false}, m,
                 activation);
}

// x W^T + b of a layer of width 1 (m), as sums along rows: as columns they would be a whole vector of which one number is wanted
template <bool HALF> void dots(const float *x, int m, int depth, const float *W, float b, float *to) {
    for (int i = 0; i < m; i++, x += depth) {
        V sum{};
        int c = 0;
        for (; c + VL <= depth; c += VL) sum = multiply_add<HALF>(sum, load(x + c), load(W + c));
        if (c < depth) sum = multiply_add<HALF>(sum, load(x + c, depth - c), load(W + c, depth - c));
        to[i] = total(sum) + b;
    }
}

// Of a layer that is packed for up W
template <bool HALF> long backward_size(int n, int k) { return long(panels(k)) * NR * words<HALF>(n); }

// Columns [NR * index, ...) of X (m, n), as rows of words for a sum over m
template <bool HALF, class From> void pack_rows(const From *X, int m, int n, int index, float *to) {
    if constexpr (HALF) pair_rows(X + index * NR, m, n, std::min(NR, n - index * NR), to, NR);
    else pack(X, m, n, index, to);
}

// up W, up: m rows of words of n numbers, times the slope of the activation whose values are `gate` where there is one, or added to what is
// there: (m, k); W is packed first unless it is null
template <bool HALF, class Out>
void backward(const float *up, int m, int n, int k, const float *W, float *packed, Out *to, const Out *gate, int activation, bool add = false) {
    const int depth = int(words<HALF>(n));
    for (int i = 0; i < m; i += ROWS)
        for (int j = 0; j < panels(k); j++) {
            if (W && i == 0) pack_rows<HALF>(W, n, k, j, packed + long(j) * NR * depth);
            const long at = long(i) * k + j * NR;
            stripe<HALF>(ProductInto<Out>{up + long(i) * depth, depth, packed + long(j) * NR * depth, depth, to + at, k,
                                          std::min(NR, k - j * NR), nullptr, gate ? gate + at : nullptr, add},
                         std::min(ROWS, m - i), activation);
        }
}

// Sums of a layer's gradients over blocks of rows of one thread: of W, then of b
long sum_size(int n, int k) { return long(n) * (k + 1); }

// What `gather` needs for itself
template <bool HALF> long gather_size(int n) { return words<HALF>(DEPTH) * (NR + (HALF ? panels(n) * NR : 0)); }

// up^T x into gW (n, k) and the sum of up into gb (n); up: m rows of whole words of n numbers, x (m, k)
template <bool HALF, class From>
void gather(const Number<HALF> *up, const From *x, int m, int n, int k, float *gW, float *gb, bool add, float *own) {
    const long ld = HALF ? 2 * words<HALF>(n) : n;
    const int depth = int(words<HALF>(m));
    if (!add) memset(gb, 0, sizeof(float) * n);
    for (int i = 0; i < m; i++)
        for (int c = 0; c < n; c++) gb[c] += up[i * ld + c];
    const float *A;
    long lda = n;
    float *strip = own;
    if constexpr (HALF) {
        lda = panels(n) * NR;
        strip += depth * lda;
        pair_rows(up, m, ld, n, own, lda);
        A = own;
    } else A = up;
    for (int j = 0; j < panels(k); j++) {
        pack_rows<HALF>(x, m, k, j, strip);
        stripe<true, NONE, false, HALF>(Product{A, lda, strip, depth, gW + j * NR, k, std::min(NR, k - j * NR), nullptr, nullptr, add}, n);
    }
}

// An input (G, rows, k), of which columns may lie in several tensors, beside each other
struct Input {
    std::vector<const float *> pieces;
    std::vector<int> widths;
    std::vector<long> group, row; // how far apart groups, and rows, of each piece are

    int width() const {
        int sum = 0;
        for (int k : widths) sum += k;
        return sum;
    }
    // m rows of (m, k) as they are, or in `to` where they are not one behind the other
    const float *rows(int g, long r, int m, float *to) const {
        const int k = width();
        if (widths.size() == 1 && row[0] == k) return pieces[0] + g * group[0] + r * k;
        long at = 0;
        for (size_t p = 0; p < pieces.size(); at += widths[p++])
            for (int i = 0; i < m; i++) memcpy(to + i * long(k) + at, pieces[p] + g * group[p] + (r + i) * row[p], sizeof(float) * widths[p]);
        return to;
    }
    // The same as words
    template <bool HALF> const float *as_words(int g, long r, int m, float *to) const {
        if constexpr (!HALF) return rows(g, r, m, to);
        else {
            const int ld = int(2 * words<true>(width()));
            int at = 0;
            for (size_t p = 0; p < pieces.size(); at += widths[p++])
                narrow(pieces[p] + g * group[p] + r * row[p], m, widths[p], row[p], reinterpret_cast<Number<HALF> *>(to) + at, ld,
                       p + 1 == pieces.size() ? ld - at - widths[p] : 0);
            return to;
        }
    }
};

// m rows of (m, k), k even where factors are bfloat16, as words in rows of `ld`
template <bool HALF> void place(const float *X, int m, int k, float *to, long ld) {
    if constexpr (HALF) narrow(X, m, k, k, reinterpret_cast<Number<HALF> *>(to), 2 * ld, 0);
    else
        for (int i = 0; i < m; i++) memcpy(to + i * ld, X + i * long(k), sizeof(float) * k);
}

Input whole(const float *x, int k, long group) { return {{x}, {k}, {group}, {k}}; }

// A share of the sums of the other threads, which lie `apart`, onto those of the first, which are where the result goes
void join(const float *sums, long apart, int n, int k, float *gW, float *gb, int me, int team) {
    const Range part = share(long(n) * k, me, team);
    for (int other = 1; other < team; other++) {
        const float *from = sums + other * apart;
        for (long i = part.begin; i < part.end; i++) gW[i] += from[i];
        if (me == 0)
            for (int i = 0; i < n; i++) gb[i] += from[long(n) * k + i];
    }
}

// X (n, NR), of which the first m columns are there, as rows (m, n); strip: (NR, NR)
void as_rows(const float *X, int m, int n, float *to, float *strip) {
    for (int j = 0; j < panels(n); j++) {
        pack_transposed<false>(X, n, NR, j, strip);
        for (int i = 0; i < m; i++) memcpy(to + long(i) * n + j * NR, strip + i * NR, sizeof(float) * std::min(NR, n - j * NR));
    }
}

// Whether a thread that has so many rows copies at most half as many numbers sideways
bool sideways_pays(int layers, long rows, const int *sizes, void *const *out) {
    long copied = sizes[0], weights = 0;
    for (int l = 0; l < layers; l++) {
        copied += out[l] ? sizes[l + 1] : 0;
        weights += long(sizes[l]) * sizes[l + 1];
    }
    return 2 * rows * copied < weights;
}

// `chain_forward` with rows as columns: W x^T, so that x is copied into panels instead of weights, which are read where they are, once for
// each NR rows
void chain_sideways(int layers, int groups, long rows, int activation, const int *sizes, const long *strides, const Input &x,
                    const float *const *W, const float *const *b, void *const *out) {
    const long widest = *std::max_element(sizes, sizes + layers + 1);
    const int threads = threads_for(rows);
#pragma omp parallel num_threads(threads)
    {
        const Range mine = share(rows, omp_get_thread_num(), omp_get_num_threads());
        float *scratch = own_buffer.get((2 * widest + NR) * NR), *strip = scratch + 2 * widest * NR;
        for (int g = 0; g < groups; g++)
            for (long r = mine.begin; r < mine.end; r += NR) {
                const int m = int(std::min<long>(NR, mine.end - r));
                float *in = scratch, *to = scratch + widest * NR;
                pack_transposed<false>(x.rows(g, r, m, to), m, sizes[0], 0, in);
                for (int l = 0; l < layers; l++, std::swap(in, to)) {
                    const int k = sizes[l], n = sizes[l + 1];
                    Product p{W[l] + g * strides[2 * l], k, in, k, to, NR, NR, nullptr, nullptr, false};
                    p.row_bias = b[l] + g * strides[2 * l + 1];
                    stripe<false>(p, n, l + 1 < layers ? activation : NONE);
                    if (out[l]) as_rows(to, m, n, static_cast<float *>(out[l]) + (g * rows + r) * n, strip);
                }
            }
    }
}

// out[l] (G, rows, n[l]) = act(in W[l]^T + b[l]), without the activation in the last layer; null where nobody wants it. All but the last are
// Number<HALF>, and of even width where that is bfloat16. sizes: k[0], n[0], n[1], ...; strides: of each W and b, from group to group
template <bool HALF>
void chain_forward(int layers, int groups, long rows, int activation, const int *sizes, const long *strides, const Input &x,
                   const float *const *W, const float *const *b, void *const *out) {
    if (!HALF && sideways_pays(layers, rows / threads_for(rows), sizes, out))
        return chain_sideways(layers, groups, rows, activation, sizes, strides, x, W, b, out);
    std::vector<long> at(layers + 1, 0);
    long widest = words<HALF>(sizes[0]);
    for (int l = 0; l < layers; l++) {
        at[l + 1] = at[l] + forward_size<HALF>(sizes[l + 1], sizes[l]);
        widest = std::max<long>(widest, words<HALF>(sizes[l + 1]));
    }
    const int threads = threads_for(rows), end = layers - 1;
    const bool narrow_end = sizes[layers] == 1;
#pragma omp parallel num_threads(threads)
    {
        const Range mine = share(rows, omp_get_thread_num(), omp_get_num_threads());
        float *packed = own_buffer.get(at[layers] + 2 * ROWS * widest), *scratch = packed + at[layers];
        for (int g = 0; g < groups; g++) {
            const Input last = whole(W[end] + g * strides[2 * end], sizes[end], 0);
            const float *narrow = narrow_end ? last.as_words<HALF>(0, 0, 1, packed + at[end]) : nullptr;
            for (long r = mine.begin; r < mine.end; r += ROWS) {
                const int m = int(std::min<long>(ROWS, mine.end - r));
                const float *in = x.as_words<HALF>(g, r, m, scratch + ROWS * widest);
                auto layer = [&](int l, auto *to, int activation) {
                    const int n = sizes[l + 1], k = sizes[l];
                    for (int j = 0; j < panels(n); j++) {
                        if (r == mine.begin) pack_forward<HALF>(W[l] + g * strides[2 * l], b[l] + g * strides[2 * l + 1], n, k, j, packed + at[l]);
                        forward<HALF>(in, m, n, k, packed + at[l], j, to + j * NR, n, activation);
                    }
                    in = reinterpret_cast<const float *>(to);
                };
                for (int l = 0; l < end; l++) {
                    auto *kept = static_cast<Number<HALF> *>(out[l]);
                    layer(l, kept ? kept + (g * rows + r) * sizes[l + 1] : reinterpret_cast<Number<HALF> *>(scratch + (l & 1) * ROWS * widest),
                          activation);
                }
                auto *to = static_cast<float *>(out[end]) + (g * rows + r) * sizes[layers];
                if (narrow) dots<HALF>(in, m, int(words<HALF>(sizes[end])), narrow, b[end][g * strides[2 * end + 1]], to);
                else layer(end, to, NONE);
            }
        }
    }
}

// Gradients of x (G, rows, k) unless it is null, and of each W and b (contiguous) unless `gW` is null; hidden: the outputs of all layers but
// the last
template <bool HALF>
void chain_backward(int layers, int groups, long rows, int activation, const int *sizes, const long *strides, const float *gradient,
                    const Input &x, const float *const *W, const void *const *hidden, float *gx, float *const *gW, float *const *gb) {
    std::vector<long> at(layers + 1, 0), sum_at(layers + 1, 0);
    int widest = 0;
    for (int l = 0; l < layers; l++) {
        at[l + 1] = at[l] + backward_size<HALF>(sizes[l + 1], sizes[l]);
        sum_at[l + 1] = sum_at[l] + sum_size(sizes[l + 1], sizes[l]);
        widest = std::max(widest, sizes[l + 1]);
    }
    const int threads = threads_for(rows);
    const int first = gx ? 0 : 1; // the lowest layer through which gradients flow
    float *sums = shared_buffer.get(gW ? threads * sum_at[layers] : 0);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads();
        const Range mine = share(rows, me, team);
        const long block = DEPTH * words<HALF>(widest);
        float *packed = own_buffer.get(at[layers] + 2 * block + gather_size<HALF>(widest) + long(DEPTH) * sizes[0]);
        float *scratch = packed + at[layers], *own = scratch + 2 * block, *inputs = own + gather_size<HALF>(widest);
        const Input upstream = whole(gradient, sizes[layers], rows * sizes[layers]);
        for (int g = 0; g < groups; g++) {
            for (long r = mine.begin; r < mine.end; r += DEPTH) {
                const int m = int(std::min<long>(DEPTH, mine.end - r));
                const float *up = upstream.as_words<HALF>(g, r, m, scratch + (layers & 1) * block);
                for (int l = layers - 1; l >= 0; l--) {
                    const int k = sizes[l], n = sizes[l + 1];
                    const Number<HALF> *values = l ? static_cast<const Number<HALF> *>(hidden[l - 1]) + (g * rows + r) * k : nullptr;
                    if (gW) {
                        float *of_W = me ? sums + me * sum_at[layers] + sum_at[l] : gW[l] + long(g) * n * k;
                        float *of_b = me ? of_W + long(n) * k : gb[l] + long(g) * n;
                        const auto *numbers = reinterpret_cast<const Number<HALF> *>(up);
                        if (l) gather<HALF>(numbers, values, m, n, k, of_W, of_b, r > mine.begin, own);
                        else gather<HALF>(numbers, x.rows(g, r, m, inputs), m, n, k, of_W, of_b, r > mine.begin, own);
                    }
                    if (l < first) break;
                    float *down = scratch + (l & 1) * block;
                    const float *to_pack = r == mine.begin ? W[l] + g * strides[2 * l] : nullptr;
                    if (l) backward<HALF>(up, m, n, k, to_pack, packed + at[l], reinterpret_cast<Number<HALF> *>(down), values, activation);
                    else backward<HALF, float>(up, m, n, k, to_pack, packed, gx + (g * rows + r) * k, nullptr, NONE);
                    up = down;
                }
            }
#pragma omp barrier
            for (int l = 0; gW && l < layers; l++)
                join(sums + sum_at[l], sum_at[layers], sizes[l + 1], sizes[l], gW[l] + long(g) * sizes[l] * sizes[l + 1],
                     gb[l] + long(g) * sizes[l + 1], me, team);
#pragma omp barrier
        }
    }
}

// Of a GRU's products: panels of x beside those of h, each (3n, ...), which share a panel, and biases after all panels: of both together for reset
// and update, of x for new, and of h for new
template <bool HALF> long gru_size(int k, int n) { return long(panels(3 * n)) * NR * (words<HALF>(k) + words<HALF>(n)) + 4L * n; }

// Of panel number `index`
template <bool HALF> void pack_gru(const float *const *W, const float *const *b, int k, int n, int index, float *to) {
    const long of_x = words<HALF>(k) * NR, depth = of_x + words<HALF>(n) * NR;
    pack_transposed<HALF>(W[0], 3 * n, k, index, to + index * depth);
    pack_transposed<HALF>(W[1], 3 * n, n, index, to + index * depth + of_x);
    float *bias = to + panels(3 * n) * depth;
    for (int i = index * NR; i < (index + 1) * NR; i++) {
        bias[i] = i < 2 * n ? b[0][i] + b[1][i] : b[0][i];
        if (i >= 2 * n) bias[i + n] = b[1][i];
    }
}

// Steps of a GRU with known inputs: x (G, T, rows, k), h (G, rows, n) -> out (G, T, rows, n); W, b: of the input (3n, k), (3n) and of the state
// (3n, n), (3n), each for reset, update and new; k and n multiples of NR. gates (G, T, rows, 4, n): reset, update, new, and the state's part of
// new, unless it is null. strides: of h, and of each W and b, from group to group. Where there are enough columns, threads share these, so that
// weights are copied once and half as many fill the cache, else rows.
template <bool HALF>
void gru_forward(int groups, int steps, long rows, int k, int n, const long *strides, const float *x, const float *h, const float *const *W,
                 const float *const *b, float *out, float *gates) {
    const long size = gru_size<HALF>(k, n);
    const int threads = threads_for(rows), of_x = int(words<HALF>(k)), of_h = int(words<HALF>(n)), third = n / NR;
    const int ld = of_x + of_h + VL; // rows do not begin in the same set of the cache
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads();
        const bool wide = third % team == 0;
        const Range mine = wide ? Range{0, rows} : share(rows, me, team), columns = wide ? share(third, me, team) : Range{0, third};
        float *packed = own_buffer.get(size + ROWS * (4 * NR + ld)), *sum = packed + size;
        float *reset = sum, *update = sum + ROWS * NR, *input = sum + 2 * ROWS * NR, *state = sum + 3 * ROWS * NR, *both = sum + 4 * ROWS * NR;
        const float *bias = packed + 3L * third * NR * (of_x + of_h);
        for (int g = 0; g < groups; g++) {
            const float *const own_W[] = {W[0] + g * strides[1], W[1] + g * strides[3]};
            const float *const own_b[] = {b[0] + g * strides[2], b[1] + g * strides[4]};
            for (int t = 0; t < steps; t++) {
                for (long r = mine.begin; r < mine.end; r += ROWS) {
                    const int m = int(std::min<long>(ROWS, mine.end - r));
                    const long row = (long(g) * steps + t) * rows + r;
                    const float *old = t ? out + (row - rows) * n : h + g * strides[0] + r * n;
                    place<HALF>(x + row * k, m, k, both, ld);
                    place<HALF>(old, m, n, both + of_x, ld);
                    auto product = [&](int panel, int from, int depth, const float *bias, float *to) {
                        const float *its = packed + (long(panel) * (of_x + of_h) + from) * NR;
                        stripe<HALF>(Product{both + from, ld, its, depth, to, NR, NR, bias + panel * NR, nullptr, false}, m, NONE);
                    };
                    for (int j = int(columns.begin); j < columns.end; j++) {
                        for (int index = j; t == 0 && r == mine.begin && index < 3 * third; index += third)
                            pack_gru<HALF>(own_W, own_b, k, n, index, packed);
                        product(j, 0, of_x + of_h, bias, reset);
                        product(third + j, 0, of_x + of_h, bias, update);
                        product(2 * third + j, 0, of_x, bias, input);
                        product(2 * third + j, of_x, of_h, bias + n, state);
                        for (int i = 0; i < m; i++)
                            for (int c = 0; c < NR; c += VL) {
                                const long at = i * NR + c, column = j * NR + c;
                                const V s = load(state + at), w = sigmoid(load(reset + at)), u = sigmoid(load(update + at));
                                const V fresh = 2.0f * sigmoid(2.0f * (load(input + at) + w * s)) - 1.0f; // tanh
                                store(out + (row + i) * n + column, fresh + u * (load(old + long(i) * n + column) - fresh));
                                if (gates) {
                                    float *kept = gates + (row + i) * 4 * n + column;
                                    store(kept, w);
                                    store(kept + n, u);
                                    store(kept + 2 * n, fresh);
                                    store(kept + 3 * n, s);
                                }
                            }
                    }
                }
#pragma omp barrier
            }
        }
    }
}

// Gradients of x unless it is null, of h, and of each W and b unless `gW` is null, from that of `out`
template <bool HALF>
void gru_backward(int groups, int steps, long rows, int k, int n, const long *strides, const float *gradient, const float *x, const float *h,
                  const float *const *W, const float *out, const float *gates, float *gx, float *gh, float *const *gW, float *const *gb) {
    const long split = backward_size<HALF>(3 * n, k), whole = split + backward_size<HALF>(3 * n, n);
    const long sum_split = sum_size(3 * n, k), sum_whole = sum_split + sum_size(3 * n, n);
    const int threads = threads_for(rows);
    float *sums = shared_buffer.get(gW ? threads * sum_whole : 0);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads();
        const Range mine = share(rows, me, team);
        const long block = DEPTH * words<HALF>(3L * n);
        float *packed = own_buffer.get(whole + 2 * block + gather_size<HALF>(3 * n)), *up = packed + whole, *up_h = up + block, *strip = up_h + block;
        auto *of_input = reinterpret_cast<Number<HALF> *>(up), *of_state = reinterpret_cast<Number<HALF> *>(up_h);
        for (int g = 0; g < groups; g++) {
            for (long r = mine.begin; r < mine.end; r += DEPTH) {
                const int m = int(std::min<long>(DEPTH, mine.end - r));
                float *carried = gh + (g * rows + r) * n; // the gradient of the state between two steps
                for (int t = steps - 1; t >= 0; t--) {
                    const long row = (long(g) * steps + t) * rows + r;
                    const bool last = t + 1 == steps;
                    const float *in = x + row * k, *old = t ? out + (row - rows) * n : h + g * strides[0] + r * n;
                    for (int i = 0; i < m; i++)
                        for (int c = 0; c < n; c += VL) {
                            const float *kept = gates + (row + i) * 4 * n + c;
                            const V w = load(kept), u = load(kept + n), fresh = load(kept + 2 * n), s = load(kept + 3 * n);
                            V up = load(gradient + (row + i) * n + c);
                            if (!last) up += load(carried + long(i) * n + c);
                            const V new_up = up * (1.0f - u) * (1.0f - fresh * fresh), reset_up = new_up * s * w * (1.0f - w);
                            const V update_up = up * (load(old + long(i) * n + c) - fresh) * u * (1.0f - u);
                            Number<HALF> *to = of_input + i * 3L * n + c, *beside = of_state + i * 3L * n + c;
                            store(to, reset_up);
                            store(beside, reset_up);
                            store(to + n, update_up);
                            store(beside + n, update_up);
                            store(to + 2 * n, new_up);
                            store(beside + 2 * n, new_up * w);
                            store(carried + long(i) * n + c, up * u);
                        }
                    if (gW) {
                        const bool add = r > mine.begin || !last;
                        float *own = sums + me * sum_whole, *beside = own + sum_split;
                        gather<HALF>(of_input, in, m, 3 * n, k, me ? own : gW[0] + 3L * g * n * k, me ? own + 3L * n * k : gb[0] + 3L * g * n, add, strip);
                        gather<HALF>(of_state, old, m, 3 * n, n, me ? beside : gW[1] + 3L * g * n * n, me ? beside + 3L * n * n : gb[1] + 3L * g * n,
                                     add, strip);
                    }
                    const bool first = r == mine.begin && last;
                    if (gx) backward<HALF, float>(up, m, 3 * n, k, first ? W[0] + g * strides[1] : nullptr, packed, gx + row * k, nullptr, NONE);
                    backward<HALF, float>(up_h, m, 3 * n, n, first ? W[1] + g * strides[3] : nullptr, packed + split, carried, nullptr, NONE, true);
                }
            }
#pragma omp barrier
            if (gW) {
                join(sums, sum_whole, 3 * n, k, gW[0] + 3L * g * n * k, gb[0] + 3L * g * n, me, team);
                join(sums + sum_split, sum_whole, 3 * n, n, gW[1] + 3L * g * n * n, gb[1] + 3L * g * n, me, team);
            }
#pragma omp barrier
        }
    }
}

// As operators of torch ----------------------------------------------------------------------------------------------------------------
// With a leading axis of groups, each with weights of its own, on everything; or without it on everything. half: whether factors are bfloat16.

// `call(std::true_type())` where factors are bfloat16, else `call(std::false_type())`
template <class Call> void with_factors(bool half, Call call) {
#ifdef __AVX512BF16__
    if (half) return call(std::true_type());
#endif
    TORCH_CHECK(!half, "this processor has no instructions for bfloat16");
    call(std::false_type());
}

int groups_of(const Tensor &x) { return x.dim() == 3 ? int(x.size(0)) : 1; }

std::vector<long> strides_of(TensorList first, TensorList weights, TensorList biases) {
    std::vector<long> out;
    for (const Tensor &t : first) out.push_back(t.stride(0));
    for (size_t i = 0; i < weights.size(); i++) {
        out.push_back(weights[i].stride(0));
        out.push_back(biases[i].stride(0));
    }
    return out;
}

Input input_of(const Tensors &x) {
    Input out;
    for (const Tensor &t : x) {
        out.pieces.push_back(t.const_data_ptr<float>());
        out.widths.push_back(int(t.size(-1)));
        out.group.push_back(t.dim() == 3 ? t.stride(0) : 0);
        out.row.push_back(t.stride(-2));
    }
    return out;
}

// The tensors themselves where numbers of a row lie one behind the other, else copies
Tensors with_rows(TensorList tensors) {
    Tensors out;
    for (const Tensor &t : tensors) out.push_back(t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous());
    return out;
}

std::vector<int> sizes_of(int k, TensorList weights) {
    std::vector<int> out{k};
    for (const Tensor &w : weights) out.push_back(int(w.size(-2)));
    return out;
}

// The outputs of all layers where they are to be kept for gradients, else of the last alone
Tensors chain(TensorList x_, TensorList weights_, TensorList biases_, int64_t activation, bool half, bool keep) {
    const Tensors x = with_rows(x_);
    const Input input = input_of(x);
    const Tensors weights = dense(weights_), biases = dense(biases_);
    const int layers = int(weights.size());
    Tensors out;
    std::vector<void *> to(layers, nullptr);
    for (int l = keep ? 0 : layers - 1; l < layers; l++) {
        auto shape = x[0].sizes().vec();
        shape.back() = weights[l].size(-2);
        out.push_back(at::empty(shape, x[0].options().dtype(half && l + 1 < layers ? at::kBFloat16 : at::kFloat)));
        to[l] = out.back().mutable_data_ptr();
    }
    with_factors(half, [&](auto factors) {
        chain_forward<factors.value>(layers, groups_of(x[0]), x[0].size(-2), int(activation), sizes_of(input.width(), weights).data(),
                                     strides_of({}, weights, biases).data(), input, addresses(weights).data(), addresses(biases).data(),
                                     to.data());
    });
    return out;
}

// Of x, whole, if asked for, and of all weights and all biases if asked for
Tensors chain_gradients(const Tensor &gradient_, TensorList x_, TensorList weights_, TensorList biases_, TensorList hidden,
                        int64_t activation, bool half, bool of_x, bool of_weights) {
    const Tensor gradient = gradient_.contiguous();
    const Tensors x = with_rows(x_), weights = dense(weights_), biases = dense(biases_);
    const Input input = input_of(x);
    auto shape = gradient.sizes().vec();
    shape.back() = input.width();
    Tensors out, gw = of_weights ? empty_like(weights) : Tensors(), gb = of_weights ? empty_like(biases) : Tensors();
    if (of_x) out.push_back(at::empty(shape, gradient.options()));
    std::vector<const void *> values;
    for (const Tensor &t : hidden) values.push_back(t.const_data_ptr());
    with_factors(half, [&](auto factors) {
        chain_backward<factors.value>(int(weights.size()), groups_of(gradient), gradient.size(-2), int(activation),
                                      sizes_of(input.width(), weights).data(), strides_of({}, weights, biases).data(),
                                      gradient.const_data_ptr<float>(), input, addresses(weights).data(), values.data(), of_x ? out[0].mutable_data_ptr<float>() : nullptr,
                                      of_weights ? places(gw).data() : nullptr, places(gb).data());
    });
    out.insert(out.end(), gw.begin(), gw.end());
    out.insert(out.end(), gb.begin(), gb.end());
    return out;
}

// The state after each step, and its gates where they are to be kept for gradients
Tensors gru(const Tensor &x_, const Tensor &h_, TensorList weights_, TensorList biases_, bool half, bool keep) {
    const Tensor x = x_.contiguous(), h = dense(h_);
    const Tensors weights = dense(weights_), biases = dense(biases_);
    auto shape = x.sizes().vec();
    shape.back() = h.size(-1);
    Tensors out{at::empty(shape, h.options())};
    if (keep) {
        shape.insert(shape.end() - 1, 4);
        out.push_back(at::empty(shape, h.options()));
    }
    with_factors(half, [&](auto factors) {
        gru_forward<factors.value>(groups_of(h), int(x.size(-3)), x.size(-2), int(x.size(-1)), int(h.size(-1)),
                                   strides_of({h}, weights, biases).data(), x.const_data_ptr<float>(), h.const_data_ptr<float>(),
                                   addresses(weights).data(), addresses(biases).data(), out[0].mutable_data_ptr<float>(),
                                   keep ? out[1].mutable_data_ptr<float>() : nullptr);
    });
    return out;
}

// Of h, of x if asked for, and of all weights and all biases if asked for; out: the states
Tensors gru_gradients(const Tensor &gradient_, const Tensor &x_, const Tensor &h_, TensorList weights_, TensorList biases_,
                      const Tensor &out, const Tensor &gates, bool half, bool of_x, bool of_weights) {
    const Tensor gradient = gradient_.contiguous(), x = x_.contiguous(), h = dense(h_);
    const Tensors weights = dense(weights_), biases = dense(biases_);
    Tensors found{at::empty(h.sizes(), h.options())};
    Tensors gw = of_weights ? empty_like(weights) : Tensors(), gb = of_weights ? empty_like(biases) : Tensors();
    if (of_x) found.push_back(at::empty(x.sizes(), x.options()));
    with_factors(half, [&](auto factors) {
        gru_backward<factors.value>(groups_of(h), int(x.size(-3)), x.size(-2), int(x.size(-1)), int(h.size(-1)),
                                    strides_of({h}, weights, biases).data(), gradient.const_data_ptr<float>(), x.const_data_ptr<float>(),
                                    h.const_data_ptr<float>(), addresses(weights).data(), out.const_data_ptr<float>(), gates.const_data_ptr<float>(),
                                    of_x ? found[1].mutable_data_ptr<float>() : nullptr, found[0].mutable_data_ptr<float>(),
                                    of_weights ? places(gw).data() : nullptr, places(gb).data());
    });
    found.insert(found.end(), gw.begin(), gw.end());
    found.insert(found.end(), gb.begin(), gb.end());
    return found;
}

Tensors call_chain(TensorList x, TensorList weights, TensorList biases, int64_t activation, bool half, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = operator_named<decltype(chain)>("perception::chain");
    return op.call(x, weights, biases, activation, half, keep);
}

Tensors call_gru(const Tensor &x, const Tensor &h, TensorList weights, TensorList biases, bool half, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = operator_named<decltype(gru)>("perception::gru");
    return op.call(x, h, weights, biases, half, keep);
}

struct ChainFunction : torch::autograd::Function<ChainFunction> {
    static variable_list forward(AutogradContext *context, TensorList x, TensorList weights, TensorList biases, int64_t activation, bool half) {
        Tensors out = call_chain(x, weights, biases, activation, half, true);
        variable_list saved(x.begin(), x.end());
        saved.insert(saved.end(), weights.begin(), weights.end());
        saved.insert(saved.end(), biases.begin(), biases.end());
        saved.insert(saved.end(), out.begin(), out.end() - 1);
        context->save_for_backward(saved);
        context->saved_data["pieces"] = int64_t(x.size());
        context->saved_data["activation"] = activation;
        context->saved_data["half"] = half;
        context->set_materialize_grads(false);
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const variable_list saved = context->get_saved_variables();
        const size_t pieces = context->saved_data["pieces"].toInt(), n = (saved.size() + 1 - pieces) / 3; // n weights, n biases, n - 1 hidden layers
        const TensorList all(saved), x = all.slice(0, pieces);
        const bool of_x = any_needed(context, 0, pieces), of_weights = any_needed(context, pieces, 2 * n);
        static const auto op = operator_named<decltype(chain_gradients)>("perception::chain_backward");
        Tensors found = op.call(gradients.back(), x, all.slice(pieces, n), all.slice(pieces + n, n), all.slice(pieces + 2 * n),
                                context->saved_data["activation"].toInt(), context->saved_data["half"].toBool(), of_x, of_weights);
        variable_list out(pieces);
        if (of_x) {
            int64_t at = 0;
            for (size_t p = 0; p < pieces; at += x[p++].size(-1))
                if (context->needs_input_grad(p)) out[p] = found[0].narrow(-1, at, x[p].size(-1));
            found.erase(found.begin());
        }
        append(out, found, 2 * n, 2);
        return out;
    }
};

struct GruFunction : torch::autograd::Function<GruFunction> {
    static variable_list forward(AutogradContext *context, const Tensor &x, const Tensor &h, TensorList weights, TensorList biases, bool half) {
        Tensors out = call_gru(x, h, weights, biases, half, true);
        variable_list saved{x, h};
        saved.insert(saved.end(), weights.begin(), weights.end());
        saved.insert(saved.end(), biases.begin(), biases.end());
        saved.insert(saved.end(), out.begin(), out.end());
        context->saved_data["half"] = half;
        context->save_for_backward(saved);
        context->set_materialize_grads(false);
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const variable_list saved = context->get_saved_variables();
        const TensorList all(saved);
        const bool of_x = context->needs_input_grad(0), of_weights = any_needed(context, 2, 4);
        static const auto op = operator_named<decltype(gru_gradients)>("perception::gru_backward");
        Tensors found = op.call(gradients[0], saved[0], saved[1], all.slice(2, 2), all.slice(4, 2), saved[6], saved[7],
                                context->saved_data["half"].toBool(), of_x, of_weights);
        variable_list out{of_x ? found[1] : Tensor(), found[0]};
        found.erase(found.begin(), found.begin() + (of_x ? 2 : 1));
        append(out, found, 4, 1);
        return out;
    }
};

Tensors chain_autograd(TensorList x, TensorList weights, TensorList biases, int64_t activation, bool half, bool keep) {
    return differentiable(x, weights, biases) ? ChainFunction::apply(x, weights, biases, activation, half)
                                                : call_chain(x, weights, biases, activation, half, keep);
}

Tensors gru_autograd(const Tensor &x, const Tensor &h, TensorList weights, TensorList biases, bool half, bool keep) {
    return differentiable({x, h}, weights, biases) ? GruFunction::apply(x, h, weights, biases, half)
                                                   : call_gru(x, h, weights, biases, half, keep);
}

} // namespace

TORCH_LIBRARY(perception, m) {
    m.def("chain(Tensor[] x, Tensor[] weights, Tensor[] biases, int activation, bool half, bool keep) -> Tensor[]");
    m.def("chain_backward(Tensor gradient, Tensor[] x, Tensor[] weights, Tensor[] biases, Tensor[] hidden, int activation, bool half, "
          "bool of_x, bool of_weights) -> Tensor[]");
    m.def("gru(Tensor x, Tensor h, Tensor[] weights, Tensor[] biases, bool half, bool keep) -> Tensor[]");
    m.def("gru_backward(Tensor gradient, Tensor x, Tensor h, Tensor[] weights, Tensor[] biases, Tensor out, Tensor gates, bool half, bool of_x, "
          "bool of_weights) -> Tensor[]");
    m.def("encode(Tensor frames, Tensor[] weights, Tensor[] biases, bool keep) -> Tensor[]");
    m.def("encode_backward(Tensor gradient, Tensor frames, Tensor[] weights, Tensor[] biases, Tensor[] kept) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(perception, CPU, m) {
    m.impl("chain", chain);
    m.impl("chain_backward", chain_gradients);
    m.impl("gru", gru);
    m.impl("gru_backward", gru_gradients);
    m.impl("encode", encode);
    m.impl("encode_backward", encode_gradients);
}

TORCH_LIBRARY_IMPL(perception, Autograd, m) {
    m.impl("chain", chain_autograd);
    m.impl("gru", gru_autograd);
    m.impl("encode", encode_autograd);
}

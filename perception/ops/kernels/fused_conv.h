// An encoder of pairs of frames: convolutions of 3 x 3 that halve the image, with ReLU between them, forward and backward, one pair after the
// other, so that all that is between frames and features stays in the cache.
//
// Images lie with channels last and a border of zeros, so that what one output reads of a row, 3 pixels, is one stretch of memory, and the
// next output reads what lies two pixels further: products of tiles without a copy. All numbers of channels but the frames' are multiples
// of NR.

#pragma once

#include "fused_tiles.h"
#include "fused_torch.h"

namespace {

// k channels in, of each of `parts` images whose rows take turns, to n; from images of height x width to h x w
struct Layer {
    int parts, k, n, height, width, h, w;

    Layer(int parts, int k, int n, int height, int width)
        : parts(parts), k(k), n(n), height(height), width(width), h((height + 1) / 2), w((width + 1) / 2) {}
    // Of the input, with a border where it is read: always before it, behind it where the size is odd
    long line() const { return (2L * w + 1) * k; }
    long input_size() const { return (2L * h + 1) * parts * line(); }
    float *inside(float *input) const { return input + parts * line() + k; }
    // Of the gradient of the output, with zeros behind each row and behind the last
    long up_line() const { return (w + 1L) * n; }
    long up_size() const { return (h + 1) * up_line(); }
    // The sum of one output: 3 rows of each part, each a run
    int runs() const { return 3 * parts; }
    int depth() const { return 3 * k; }
    long weights() const { return 9L * parts * k * n; }
    // The number, in order of runs, of what reads channel c of the input in row y and column x of the kernel
    long place(int c, int y, int x, long first = 0) const { return first + ((long(y) * parts + c / k) * 3 + x) * k + c % k; }
};

// Panels of (runs, depth, NR)
void pack_conv(const Layer &l, const float *W, float *to) {
    for (int o = 0; o < l.n; o++)
        for (int c = 0; c < l.parts * l.k; c++)
            for (int y = 0; y < 3; y++)
                for (int x = 0; x < 3; x++) to[l.place(c, y, x, o / NR * l.runs() * l.depth()) * NR + o % NR] = *W++;
}

// Rows of out, which lie `apart`, = act(input * W + b)
void conv(const Layer &l, const float *input, const float *packed, const float *bias, float *out, long apart, int rows, int activation) {
    for (int y = 0; y < rows; y++)
        for (int j = 0; j < l.n; j += NR) {
            Product p{input + 2L * y * l.parts * l.line(), 2L * l.k, packed + long(j) * l.runs() * l.depth(), l.depth(),
                      out + y * apart + j, l.n, NR, bias + j, nullptr, false};
            p.runs = l.runs(), p.A_apart = l.line(), p.panel_apart = long(l.depth()) * NR;
            if (activation != RELU) stripe<false, NONE, true>(p, l.w);
            else if (l.k == 3) stripe<false, RELU, true, false, 6, 9>(p, l.w);
            else stripe<false, RELU, true>(p, l.w);
        }
}

// For each parity of a row and of a column of the input: the row of the kernel that meets it, 1, or the two, 2 and 0, and columns alike
constexpr int TAPS_BEFORE[2][2] = {{0, 1}, {3, 5}};
inline int tap(int parity, int index) { return parity ? 2 - 2 * index : 1; }

void pack_conv_backward(const Layer &l, const float *W, float *to) {
    for (int j = 0; j < l.k; j += NR)
        for (int a = 0; a < 2; a++)
            for (int b = 0; b < 2; b++)
                for (int y = 0; y <= a; y++)
                    for (int x = 0; x <= b; x++)
                        for (int o = 0; o < l.n; o++) {
                            float *row = to + ((j / NR * 9L + TAPS_BEFORE[a][b] + y * (b + 1) + x) * l.n + o) * NR;
                            for (int c = 0; c < NR; c++) row[c] = W[(long(o) * l.k + j + c) * 9 + tap(a, y) * 3 + tap(b, x)];
                        }
}

// The gradient of the input, laid out as the `up` of the layer below, from that of the output; `input` are values of a ReLU
void conv_backward(const Layer &l, const float *up, const float *packed, const float *input, float *down) {
    for (int y = 0; y < l.height; y++)
        for (int b = 0; b < std::min(2, l.width); b++)
            for (int j = 0; j < l.k; j += NR) {
                const int a = y & 1;
                Product p{up + y / 2 * l.up_line(), l.n, packed + (j / NR * 9L + TAPS_BEFORE[a][b]) * l.n * NR, (b + 1) * l.n,
                          down + (y * (l.width + 1L) + b) * l.k + j, 2L * l.k, NR, nullptr,
                          input + (y + 1) * l.line() + (1L + b) * l.k + j, false};
                p.runs = a + 1, p.A_apart = l.up_line(), p.panel_apart = long(p.depth) * NR;
                stripe<false, RELU, true>(p, (l.width + 1 - b) / 2);
            }
}

// The gradients of weights (runs, depth, n), then of biases (n), added to `sums`, over so many rows of the output
void conv_gather(const Layer &l, const float *up, const float *input, int rows, float *sums) {
    for (int j = 0; j < l.n; j += NR)
        for (int run = 0; run < l.runs(); run++) {
            Product p{input + run * l.line(), 2L * l.k, up + j, l.w, sums + long(run) * l.depth() * l.n + j, l.n, NR, nullptr, nullptr, true};
            p.runs = rows, p.A_apart = 2L * l.parts * l.line(), p.panel_apart = l.up_line(), p.ldb = l.n;
            stripe<true, NONE, true>(p, l.depth());
        }
    float *bias = sums + l.weights();
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < l.w; x++)
            for (int o = 0; o < l.n; o++) bias[o] += up[y * l.up_line() + long(x) * l.n + o];
}

constexpr int PAIR = 2;
constexpr int FIRST_KEPT = 2; // of the layers whose inputs are kept for gradients: they are small
constexpr int BAND = 4; // rows of the first layer's output at once: what they read stays in the first-level cache

// A batch of frames (G, T + 1, B, height, width, channels) of which those next to each other in T are pairs
struct Frames {
    const uint8_t *data;
    int groups, steps, batch, height, width, channels;
    long strides[3]; // of G, T and B

    long pairs() const { return long(steps) * batch; }
    int threads() const { return int(std::min<long>(pairs(), at::get_num_threads())); }

    // What rows [y, y + rows) of the first layer's output read of both frames of a pair, [0, 255] as [-0.5, 0.5]; borders beside are there
    void read(const Layer &l, int group, long pair, int y, int rows, float *input) const {
        const uint8_t *first = data + group * strides[0] + pair / batch * strides[1] + pair % batch * strides[2];
        for (int from = 2 * y - 1; from < 2 * (y + rows); from++)
            for (int part = 0; part < PAIR; part++, input += l.line()) {
                const int count = width * channels;
                float *__restrict to = input + channels;
                if (from < 0 || from >= height) {
                    memset(to, 0, sizeof(float) * count);
                    continue;
                }
                const uint8_t *__restrict row = first + part * strides[1] + long(from) * count;
                for (int i = 0; i < count; i += 64) __builtin_prefetch(row + strides[2] + i); // of the next pair
                for (int i = 0; i < count; i++) to[i] = row[i] * (1.0f / 255.0f) - 0.5f;
            }
    }
};

// The network and the places of what it needs, in one buffer, each beginning at a multiple of whole lines of the cache
struct Encoder {
    std::vector<Layer> layers;
    std::vector<long> packed, packed_backward, input, up, sums;
    long size = 0, size_backward, sums_size = 0, out_size;

    Encoder(const Frames &frames, const std::vector<int> &channels) {
        int h = frames.height, w = frames.width;
        for (size_t l = 0; l < channels.size(); l++) {
            layers.emplace_back(l ? 1 : PAIR, l ? channels[l - 1] : frames.channels, channels[l], h, w);
            h = layers[l].h, w = layers[l].w;
        }
        out_size = long(h) * w * channels.back();
        auto piece = [](long &size, long floats) {
            const long begin = size;
            size += (floats + 15) / 16 * 16;
            return begin;
        };
        for (const Layer &l : layers) packed.push_back(piece(size, l.weights()));
        for (const Layer &l : layers) input.push_back(piece(size, l.parts == PAIR ? (2 * BAND + 1) * PAIR * l.line() : l.input_size()));
        size_backward = size;
        for (const Layer &l : layers) packed_backward.push_back(piece(size_backward, l.weights()));
        for (const Layer &l : layers) up.push_back(piece(size_backward, l.up_size()));
        for (const Layer &l : layers) sums.push_back(piece(sums_size, l.weights() + l.n));
        size += out_size;
    }
    const Layer &last() const { return layers.back(); }

    // Inputs of all layers but the first, or of the second alone, into the buffer; biases: of this group
    void inputs(const Frames &frames, int group, long pair, const float *const *biases, float *buffer, bool of_all = true) const {
        for (size_t l = 0; l + 1 < layers.size() && (of_all || l == 0); l++) {
            const Layer &next = layers[l + 1];
            layer(l, frames, group, pair, biases[l], buffer, next.inside(buffer + input[l + 1]), next.line(), RELU);
        }
    }

    void layer(size_t l, const Frames &frames, int group, long pair, const float *bias, float *buffer, float *out, long apart,
               int activation) const {
        const Layer &it = layers[l];
        for (int y = 0; y < it.h; y += l ? it.h : BAND) {
            const int rows = l ? it.h : std::min(BAND, it.h - y);
            if (l == 0) frames.read(it, group, pair, y, rows, buffer + input[0]);
            conv(it, buffer + input[l], buffer + packed[l], bias, out + y * apart, apart, rows, activation);
        }
    }
};

// The biases, and the packed weights, of one group; strides: of each W and b, from group to group
std::vector<const float *> begin_group(const Encoder &e, int group, const std::vector<long> &strides, const float *const *W,
                                       const float *const *b, float *buffer) {
    std::vector<const float *> biases;
    for (size_t l = 0; l < e.layers.size(); l++) {
        pack_conv(e.layers[l], W[l] + group * strides[2 * l], buffer + e.packed[l]);
        biases.push_back(b[l] + group * strides[2 * l + 1]);
    }
    return biases;
}

// features (G, pairs, n * h * w), channels first; kept: of each layer from the third on its inputs (G, pairs, ...) with their borders, or empty
void encode_forward(const Frames &frames, const Encoder &e, const std::vector<long> &strides, const float *const *W, const float *const *b,
                    float *features, const std::vector<float *> &kept) {
#pragma omp parallel num_threads(frames.threads())
    {
        const Range mine = share(frames.pairs(), omp_get_thread_num(), omp_get_num_threads());
        const int n = e.last().n, area = e.last().h * e.last().w;
        float *buffer = own_buffer.get(e.size), *out = buffer + e.size - e.out_size;
        memset(buffer, 0, sizeof(float) * e.size); // borders stay zero
        for (int g = 0; g < frames.groups; g++) {
            const auto biases = begin_group(e, g, strides, W, b, buffer);
            for (long i = mine.begin; i < mine.end; i++) {
                e.inputs(frames, g, i, biases.data(), buffer);
                for (size_t k = 0; k < kept.size(); k++) {
                    const long size = e.layers[k + FIRST_KEPT].input_size();
                    memcpy(kept[k] + (g * frames.pairs() + i) * size, buffer + e.input[k + FIRST_KEPT], sizeof(float) * size);
                }
                e.layer(e.layers.size() - 1, frames, g, i, biases.back(), buffer, out, long(e.last().w) * n, NONE);
                float *to = features + (g * frames.pairs() + i) * e.out_size;
                for (int o = 0; o < n; o++)
                    for (int p = 0; p < area; p++) to[o * area + p] = out[p * n + o];
            }
        }
    }
}

// Gradients of each W and b. What the first layer made of a frame is computed again: that takes less time than memory needs to keep it.
void encode_backward(const Frames &frames, const Encoder &e, const std::vector<long> &strides, const float *const *W, const float *const *b,
                     const float *gradient, const std::vector<const float *> &kept, float *const *gW, float *const *gb) {
    const int threads = frames.threads(), layers = int(e.layers.size());
    float *sums = shared_buffer.get(threads * e.sums_size);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads();
        const Range mine = share(frames.pairs(), me, team);
        const Layer &first = e.layers[0], &last = e.last();
        float *buffer = own_buffer.get(e.size_backward), *own = sums + me * e.sums_size;
        memset(buffer, 0, sizeof(float) * e.size_backward); // borders stay zero
        for (int g = 0; g < frames.groups; g++) {
            memset(own, 0, sizeof(float) * e.sums_size);
            const auto biases = begin_group(e, g, strides, W, b, buffer);
            for (int l = 1; l < layers; l++) pack_conv_backward(e.layers[l], W[l] + g * strides[2 * l], buffer + e.packed_backward[l]);
            for (long i = mine.begin; i < mine.end; i++) {
                e.inputs(frames, g, i, biases.data(), buffer, false);
                const float *from = gradient + (g * frames.pairs() + i) * e.out_size;
                for (int o = 0; o < last.n; o++)
                    for (int y = 0; y < last.h; y++)
                        for (int x = 0; x < last.w; x++) buffer[e.up.back() + y * last.up_line() + long(x) * last.n + o] = *from++;
                for (int l = layers - 1; l > 0; l--) {
                    const long pair = g * frames.pairs() + i;
                    const float *up = buffer + e.up[l];
                    const float *input = l < FIRST_KEPT ? buffer + e.input[l] : kept[l - FIRST_KEPT] + pair * e.layers[l].input_size();
                    conv_gather(e.layers[l], up, input, e.layers[l].h, own + e.sums[l]);
                    conv_backward(e.layers[l], up, buffer + e.packed_backward[l], input, buffer + e.up[l - 1]);
                }
                for (int y = 0; y < first.h; y += BAND) {
                    const int rows = std::min(BAND, first.h - y);
                    frames.read(first, g, i, y, rows, buffer + e.input[0]);
                    conv_gather(first, buffer + e.up[0] + y * first.up_line(), buffer + e.input[0], rows, own + e.sums[0]);
                }
            }
#pragma omp barrier
            for (int l = 0; l < layers; l++) {
                const Layer &it = e.layers[l];
                const float *of_all = sums + e.sums[l];
                auto total = [&](long at) {
                    float sum = 0;
                    for (int t = 0; t < team; t++) sum += of_all[t * e.sums_size + at];
                    return sum;
                };
                const Range part = share(it.n, me, team);
                for (long o = part.begin; o < part.end; o++) {
                    float *to = gW[l] + (long(g) * it.n + o) * 9 * it.parts * it.k;
                    for (int c = 0; c < it.parts * it.k; c++)
                        for (int y = 0; y < 3; y++)
                            for (int x = 0; x < 3; x++) *to++ = total(it.place(c, y, x) * it.n + o);
                    gb[l][long(g) * it.n + o] = total(it.weights() + o);
                }
            }
#pragma omp barrier
        }
    }
}

// As operators of torch: frames (T + 1, B, H, W, C), weights (N, K, 3, 3), biases (N), all with a leading axis of groups or none -----------

Tensor packed_frames(const Tensor &frames) {
    const auto inner = frames.dim() == 6 ? frames.select(0, 0).select(0, 0).select(0, 0) : frames.select(0, 0).select(0, 0);
    return inner.is_contiguous() ? frames : frames.contiguous();
}

Frames frames_of(const Tensor &t) {
    const int d = int(t.dim()) - 5;
    Frames out{t.const_data_ptr<uint8_t>(), d ? int(t.size(0)) : 1, int(t.size(d)) - 1, int(t.size(d + 1)), int(t.size(d + 2)),
               int(t.size(d + 3)), int(t.size(d + 4)), {d ? t.stride(0) : 0, t.stride(d), t.stride(d + 1)}};
    return out;
}

std::vector<int> channels_of(TensorList weights) {
    std::vector<int> out;
    for (const Tensor &w : weights) out.push_back(int(w.size(-4)));
    return out;
}

Tensors whole(TensorList tensors) {
    Tensors out;
    for (const Tensor &t : tensors) out.push_back(t.contiguous());
    return out;
}

std::vector<long> group_strides(TensorList weights, TensorList biases) {
    std::vector<long> out;
    for (size_t i = 0; i < weights.size(); i++) {
        out.push_back(weights[i].stride(0) * (weights[i].dim() == 5));
        out.push_back(biases[i].stride(0) * (biases[i].dim() == 2));
    }
    return out;
}

// Features (T, B, N * H' * W'), channels first, and where they are to be kept for gradients, inputs (T, B, ...) of layers from the third on
Tensors encode(const Tensor &frames_, TensorList weights_, TensorList biases_, bool keep) {
    const Tensor frames = packed_frames(frames_);
    const Tensors weights = whole(weights_), biases = whole(biases_);
    const Frames f = frames_of(frames);
    const Encoder e(f, channels_of(weights));
    Tensors out;
    auto make = [&](std::initializer_list<int64_t> numbers) {
        std::vector<int64_t> shape{f.groups, f.steps, f.batch};
        if (frames.dim() == 5) shape.erase(shape.begin());
        shape.insert(shape.end(), numbers);
        out.push_back(at::empty(shape, weights[0].options()));
    };
    make({e.out_size});
    for (size_t l = FIRST_KEPT; keep && l < e.layers.size(); l++) make({2 * e.layers[l].h + 1, 2 * e.layers[l].w + 1, e.layers[l].k});
    std::vector<float *> kept = places(out);
    kept.erase(kept.begin());
    encode_forward(f, e, group_strides(weights, biases), addresses(weights).data(), addresses(biases).data(), out[0].mutable_data_ptr<float>(), kept);
    return out;
}

// Of all weights and all biases
Tensors encode_gradients(const Tensor &gradient_, const Tensor &frames_, TensorList weights_, TensorList biases_, TensorList kept) {
    const Tensor frames = packed_frames(frames_), gradient = gradient_.contiguous();
    const Tensors weights = whole(weights_), biases = whole(biases_);
    const Frames f = frames_of(frames);
    Tensors gw = empty_like(weights), gb = empty_like(biases);
    encode_backward(f, Encoder(f, channels_of(weights)), group_strides(weights, biases), addresses(weights).data(), addresses(biases).data(),
                    gradient.const_data_ptr<float>(), addresses(kept), places(gw).data(), places(gb).data());
    gw.insert(gw.end(), gb.begin(), gb.end());
    return gw;
}

Tensors call_encode(const Tensor &frames, TensorList weights, TensorList biases, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = operator_named<decltype(encode)>("perception::encode");
    return op.call(frames, weights, biases, keep);
}

struct EncodeFunction : torch::autograd::Function<EncodeFunction> {
    static variable_list forward(AutogradContext *context, const Tensor &frames, TensorList weights, TensorList biases) {
        Tensors out = call_encode(frames, weights, biases, true);
        variable_list saved{frames};
        saved.insert(saved.end(), weights.begin(), weights.end());
        saved.insert(saved.end(), biases.begin(), biases.end());
        saved.insert(saved.end(), out.begin() + 1, out.end());
        context->saved_data["layers"] = int64_t(weights.size());
        context->save_for_backward(saved);
        context->set_materialize_grads(false);
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const variable_list saved = context->get_saved_variables();
        const size_t n = context->saved_data["layers"].toInt(); // frames, n weights, n biases, what was kept
        const TensorList all(saved);
        static const auto op = operator_named<decltype(encode_gradients)>("perception::encode_backward");
        variable_list out(1);
        append(out, op.call(gradients[0], saved[0], all.slice(1, n), all.slice(1 + n, n), all.slice(1 + 2 * n)), 2 * n, 0);
        return out;
    }
};

Tensors encode_autograd(const Tensor &frames, TensorList weights, TensorList biases, bool keep) {
    return differentiable({}, weights, biases) ? EncodeFunction::apply(frames, weights, biases) : call_encode(frames, weights, biases, keep);
}

} // namespace

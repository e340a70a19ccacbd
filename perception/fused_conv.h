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
    // Where in weights (n, parts * k, 3, 3) that of output o is which row `run` multiplies with its number `i`
    long place(int o, int run, int i) const { return ((long(o) * parts + run % parts) * k + i % k) * 9 + run / parts * 3 + i / k; }

    void clear_border(float *input) const {
        memset(input, 0, sizeof(float) * parts * line());
        for (int row = parts; row < (2 * h + 1) * parts; row++) {
            memset(input + row * line(), 0, sizeof(float) * k);
            if (2 * w > width) memset(input + (row + 1) * line() - k, 0, sizeof(float) * k);
        }
        if (2 * h > height) memset(input + 2L * h * parts * line(), 0, sizeof(float) * parts * line());
    }
};

// Both frames (height, width, k) of a pair, [0, 255] as [-0.5, 0.5]
void read_frames(const Layer &l, const uint8_t *const *frames, float *input) {
    for (int y = 0; y < l.height; y++)
        for (int part = 0; part < l.parts; part++) {
            const uint8_t *from = frames[part] + long(y) * l.width * l.k;
            float *to = l.inside(input) + (long(y) * l.parts + part) * l.line();
            for (int i = 0; i < l.width * l.k; i++) to[i] = from[i] * (1.0f / 255.0f) - 0.5f;
        }
}

// Panels of (runs, depth, NR)
void pack_conv(const Layer &l, const float *W, float *to) {
    for (int o = 0; o < l.n; o++)
        for (int run = 0; run < l.runs(); run++)
            for (int i = 0; i < l.depth(); i++)
                to[((long(o / NR) * l.runs() + run) * l.depth() + i) * NR + o % NR] = W[l.place(o, run, i)];
}

// out, rows of which lie `row` apart, = act(input * W + b)
void conv(const Layer &l, const float *input, const float *packed, const float *bias, float *out, long row, int activation) {
    for (int y = 0; y < l.h; y++)
        for (int j = 0; j < l.n; j += NR) {
            Product p{input + 2L * y * l.parts * l.line(), 2L * l.k, packed + long(j) * l.runs() * l.depth(), l.depth(),
                      out + y * row + j, l.n, NR, bias + j, nullptr, false};
            p.runs = l.runs(), p.A_apart = l.line(), p.panel_apart = long(l.depth()) * NR;
            stripe<false>(p, l.w, activation);
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
                stripe<false>(p, (l.width + 1 - b) / 2, RELU);
            }
}

// The gradients of weights (runs, depth, n), then of biases (n), added to `sums`
void conv_gather(const Layer &l, const float *up, const float *input, float *sums) {
    for (int j = 0; j < l.n; j += NR)
        for (int run = 0; run < l.runs(); run++) {
            Product p{input + run * l.line(), 2L * l.k, up + j, l.w, sums + long(run) * l.depth() * l.n + j, l.n, NR, nullptr, nullptr, true};
            p.runs = l.h, p.A_apart = 2L * l.parts * l.line(), p.panel_apart = l.up_line(), p.ldb = l.n;
            stripe<true>(p, l.depth(), NONE);
        }
    float *bias = sums + l.weights();
    for (int y = 0; y < l.h; y++)
        for (int x = 0; x < l.w; x++)
            for (int o = 0; o < l.n; o++) bias[o] += up[y * l.up_line() + long(x) * l.n + o];
}

// A batch of frames (G, T + 1, B, height, width, k) of which those next to each other in T are pairs
struct Frames {
    const uint8_t *data;
    int groups, steps, batch, height, width, channels;
    long strides[3]; // of G, T and B

    long pairs() const { return long(steps) * batch; }
    void read(const Layer &l, int group, long pair, float *input) const {
        const uint8_t *first = data + group * strides[0] + pair / batch * strides[1] + pair % batch * strides[2];
        const uint8_t *both[2] = {first, first + strides[1]};
        read_frames(l, both, input);
    }
    int threads() const { return int(std::min<long>(pairs(), at::get_num_threads())); }
};

constexpr int PAIR = 2;

std::vector<Layer> layers_of(const Frames &frames, const std::vector<int> &channels) {
    std::vector<Layer> out;
    int h = frames.height, w = frames.width;
    for (size_t l = 0; l < channels.size(); l++) {
        out.emplace_back(l ? 1 : PAIR, l ? channels[l - 1] : frames.channels, channels[l], h, w);
        h = out[l].h, w = out[l].w;
    }
    return out;
}

// Pieces of a buffer, each beginning at a multiple of whole lines of the cache
struct Pieces {
    long size = 0;
    long add(long floats) {
        const long begin = size;
        size += (floats + 15) / 16 * 16;
        return begin;
    }
};

// features (G, pairs, n * h * w), channels first; kept[l] (G, pairs, ...): the input of layer l + 1 with its border, unless it is null
void encode_forward(const Frames &frames, const std::vector<Layer> &layers, const std::vector<long> &strides, const float *const *W,
                    const float *const *b, float *features, float *const *kept) {
    Pieces pieces;
    std::vector<long> packed_at, input_at;
    for (const Layer &l : layers) packed_at.push_back(pieces.add(l.weights()));
    for (const Layer &l : layers) input_at.push_back(pieces.add(l.input_size()));
    const Layer &last = layers.back();
    const long out_size = long(last.h) * last.w * last.n, out_at = pieces.add(out_size);
#pragma omp parallel num_threads(frames.threads())
    {
        const Range mine = share(frames.pairs(), omp_get_thread_num(), omp_get_num_threads());
        float *buffer = own_buffer.get(pieces.size), *out = buffer + out_at;
        for (size_t l = 0; l < layers.size(); l++) layers[l].clear_border(buffer + input_at[l]);
        for (int g = 0; g < frames.groups; g++) {
            for (size_t l = 0; l < layers.size(); l++) pack_conv(layers[l], W[l] + g * strides[2 * l], buffer + packed_at[l]);
            for (long i = mine.begin; i < mine.end; i++) {
                const long pair = g * frames.pairs() + i;
                float *input = buffer + input_at[0];
                frames.read(layers[0], g, i, input);
                for (size_t l = 0; l < layers.size(); l++) {
                    const float *bias = b[l] + g * strides[2 * l + 1];
                    if (l + 1 == layers.size()) {
                        conv(last, input, buffer + packed_at[l], bias, out, long(last.w) * last.n, NONE);
                        break;
                    }
                    const Layer &next = layers[l + 1];
                    float *to = kept ? kept[l] + pair * next.input_size() : buffer + input_at[l + 1];
                    if (kept) next.clear_border(to);
                    conv(layers[l], input, buffer + packed_at[l], bias, next.inside(to), next.line(), RELU);
                    input = to;
                }
                for (int o = 0; o < last.n; o++)
                    for (int p = 0; p < last.h * last.w; p++) features[pair * out_size + o * last.h * last.w + p] = out[p * last.n + o];
            }
        }
    }
}

// Gradients of each W and b
void encode_backward(const Frames &frames, const std::vector<Layer> &layers, const std::vector<long> &strides, const float *const *W,
                     const float *const *kept, const float *gradient, float *const *gW, float *const *gb) {
    Pieces pieces, sum_pieces;
    std::vector<long> packed_at, up_at, sums_at;
    for (const Layer &l : layers) {
        packed_at.push_back(pieces.add(l.weights()));
        up_at.push_back(pieces.add(l.up_size()));
        sums_at.push_back(sum_pieces.add(l.weights() + l.n));
    }
    const long input_at = pieces.add(layers[0].input_size());
    const Layer &last = layers.back();
    const int threads = frames.threads(), area = last.h * last.w;
    float *sums = shared_buffer.get(threads * sum_pieces.size);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads();
        const Range mine = share(frames.pairs(), me, team);
        float *buffer = own_buffer.get(pieces.size), *own = sums + me * sum_pieces.size, *frame = buffer + input_at;
        layers[0].clear_border(frame);
        for (size_t l = 0; l < layers.size(); l++) memset(buffer + up_at[l], 0, sizeof(float) * layers[l].up_size());
        for (int g = 0; g < frames.groups; g++) {
            memset(own, 0, sizeof(float) * sum_pieces.size);
            for (size_t l = 1; l < layers.size(); l++) pack_conv_backward(layers[l], W[l] + g * strides[2 * l], buffer + packed_at[l]);
            for (long i = mine.begin; i < mine.end; i++) {
                const long pair = g * frames.pairs() + i;
                for (int y = 0; y < last.h; y++)
                    for (int x = 0; x < last.w; x++)
                        for (int o = 0; o < last.n; o++)
                            buffer[up_at.back() + y * last.up_line() + long(x) * last.n + o] =
                                gradient[(pair * last.n + o) * area + y * last.w + x];
                for (size_t l = layers.size(); l-- > 1;) {
                    const float *input = kept[l - 1] + pair * layers[l].input_size();
                    conv_gather(layers[l], buffer + up_at[l], input, own + sums_at[l]);
                    conv_backward(layers[l], buffer + up_at[l], buffer + packed_at[l], input, buffer + up_at[l - 1]);
                }
                frames.read(layers[0], g, i, frame);
                conv_gather(layers[0], buffer + up_at[0], frame, own + sums_at[0]);
            }
#pragma omp barrier
            for (size_t l = 0; l < layers.size(); l++) {
                const Layer &layer = layers[l];
                const Range part = share(layer.n, me, team);
                for (long o = part.begin; o < part.end; o++) {
                    auto total = [&](long at) {
                        float sum = 0;
                        for (int t = 0; t < team; t++) sum += sums[t * sum_pieces.size + sums_at[l] + at];
                        return sum;
                    };
                    for (int run = 0; run < layer.runs(); run++)
                        for (int i = 0; i < layer.depth(); i++)
                            gW[l][g * layer.weights() + layer.place(o, run, i)] = total((long(run) * layer.depth() + i) * layer.n + o);
                    gb[l][long(g) * layer.n + o] = total(layer.weights() + o);
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

// Features (T, B, N * H' * W'), channels first, and what lies between layers where it is to be kept for gradients
Tensors encode(const Tensor &frames_, TensorList weights_, TensorList biases_, bool keep) {
    const Tensor frames = packed_frames(frames_);
    const Tensors weights = whole(weights_), biases = whole(biases_);
    const Frames f = frames_of(frames);
    const std::vector<Layer> layers = layers_of(f, channels_of(weights));
    std::vector<int64_t> shape{f.steps, f.batch};
    if (frames.dim() == 6) shape.insert(shape.begin(), f.groups);
    auto make = [&](std::initializer_list<int64_t> inner) {
        auto sizes = shape;
        sizes.insert(sizes.end(), inner);
        return at::empty(sizes, weights[0].options());
    };
    const Layer &last = layers.back();
    Tensors out{make({long(last.n) * last.h * last.w})};
    std::vector<float *> kept;
    for (size_t l = 1; keep && l < layers.size(); l++) {
        out.push_back(make({2 * layers[l].h + 1, 2 * layers[l].w + 1, layers[l].k}));
        kept.push_back(out.back().mutable_data_ptr<float>());
    }
    encode_forward(f, layers, group_strides(weights, biases), addresses(weights).data(), addresses(biases).data(),
                   out[0].mutable_data_ptr<float>(), keep ? kept.data() : nullptr);
    return out;
}

// Of all weights and all biases
Tensors encode_gradients(const Tensor &gradient_, const Tensor &frames_, TensorList weights_, TensorList biases_, TensorList kept) {
    const Tensor frames = packed_frames(frames_), gradient = gradient_.contiguous();
    const Tensors weights = whole(weights_), biases = whole(biases_);
    const Frames f = frames_of(frames);
    Tensors gw = empty_like(weights), gb = empty_like(biases);
    encode_backward(f, layers_of(f, channels_of(weights)), group_strides(weights, biases), addresses(weights).data(), addresses(kept).data(),
                    gradient.const_data_ptr<float>(), places(gw).data(), places(gb).data());
    gw.insert(gw.end(), gb.begin(), gb.end());
    return gw;
}

Tensors call_encode(const Tensor &frames, TensorList weights, TensorList biases, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = operator_named<decltype(encode)>("vis_rpg::encode");
    return op.call(frames, weights, biases, keep);
}

struct EncodeFunction : torch::autograd::Function<EncodeFunction> {
    static variable_list forward(AutogradContext *context, const Tensor &frames, TensorList weights, TensorList biases) {
        Tensors out = call_encode(frames, weights, biases, true);
        variable_list saved{frames};
        saved.insert(saved.end(), weights.begin(), weights.end());
        saved.insert(saved.end(), biases.begin(), biases.end());
        saved.insert(saved.end(), out.begin() + 1, out.end());
        context->save_for_backward(saved);
        context->set_materialize_grads(false);
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const variable_list saved = context->get_saved_variables();
        const size_t n = saved.size() / 3; // frames, n weights, n biases, n - 1 images between layers
        const TensorList all(saved);
        static const auto op = operator_named<decltype(encode_gradients)>("vis_rpg::encode_backward");
        variable_list out(1);
        append(out, op.call(gradients[0], saved[0], all.slice(1, n), all.slice(1 + n, n), all.slice(1 + 2 * n)), 2 * n, 0);
        return out;
    }
};

Tensors encode_autograd(const Tensor &frames, TensorList weights, TensorList biases, bool keep) {
    return differentiable({}, weights, biases) ? EncodeFunction::apply(frames, weights, biases) : call_encode(frames, weights, biases, keep);
}

} // namespace

// Chains of linear layers with an activation between them, forward and backward, as one pass over blocks of rows that stay in the cache.
//
// Panels are copies of weights, made at each call. G groups (agents) side by side, each with weights of its own.

#include "fused_conv.h"
#include "fused_tiles.h"
#include "fused_torch.h"

namespace {

// One linear layer, W (n, k) and b (n) ------------------------------------------------------------------------------------------------

// Floats of a layer that is packed for y = x W^T + b: panels, then biases
long forward_size(int n, int k) { return long(panels(n)) * NR * (k + 1); }

// So many of the panels
void pack_forward(const float *W, const float *b, int n, int k, Range columns, float *to) {
    for (int j = int(columns.begin); j < columns.end; j++) {
        pack_transposed(W, n, k, j, to + long(j) * NR * k);
        pack(b, 1, n, j, to + long(panels(n)) * NR * k + j * NR);
    }
}

// Columns [NR * j, ...) of act(x W^T + b), or of that added to what is there; x (m, k), to (m, ...) with rows of `ld`
void forward(const float *x, int m, int n, int k, const float *packed, int j, float *to, long ld, int activation, bool add = false) {
    const float *bias = packed + long(panels(n)) * NR * k + j * NR;
    stripe<false>({x, k, packed + long(j) * NR * k, k, to, ld, std::min(NR, n - j * NR), bias, nullptr, add}, m, activation);
}

// Floats of a layer that is packed for up W
long backward_size(int n, int k) { return long(panels(k)) * NR * n; }

void pack_backward(const float *W, int n, int k, float *to) {
    for (int j = 0; j < panels(k); j++) pack(W, n, k, j, to + long(j) * NR * n);
}

// up W, up (m, n), times the slope of the activation whose values are `gate` where there is one, or added to what is there: (m, k)
void backward(const float *up, int m, int n, int k, const float *packed, float *to, const float *gate, int activation, bool add = false) {
    for (int i = 0; i < m; i += ROWS)
        for (int j = 0; j < panels(k); j++) {
            const long at = long(i) * k + j * NR;
            stripe<false>({up + long(i) * n, n, packed + long(j) * NR * n, n, to + at, k, std::min(NR, k - j * NR), nullptr,
                           gate ? gate + at : nullptr, add},
                          std::min(ROWS, m - i), activation);
        }
}

// Sums of a layer's gradients over blocks of rows of one thread: of W, then of b
long sum_size(int n, int k) { return long(n) * (k + 1); }

// up^T x into gW (n, k) and the sum of up into gb (n); strip: (DEPTH, NR)
void gather(const float *up, const float *x, int m, int n, int k, float *gW, float *gb, bool add, float *strip) {
    if (!add) memset(gb, 0, sizeof(float) * n);
    for (int i = 0; i < m; i++)
        for (int c = 0; c < n; c++) gb[c] += up[long(i) * n + c];
    for (int j = 0; j < panels(k); j++) {
        pack(x, m, k, j, strip);
        stripe<true>({up, n, strip, m, gW + j * NR, k, std::min(NR, k - j * NR), nullptr, nullptr, add}, n, NONE);
    }
}

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

// out[l] (G, rows, n[l]) = act(in W[l]^T + b[l]), without the activation in the last layer; null where nobody wants it.
// sizes: k[0], n[0], n[1], ...; strides: of x, then of each W and b, from group to group
void chain_forward(int layers, int groups, long rows, int activation, const int *sizes, const long *strides, const float *x,
                   const float *const *W, const float *const *b, float *const *out) {
    std::vector<long> at(layers + 1, 0);
    long widest = 0;
    for (int l = 0; l < layers; l++) {
        at[l + 1] = at[l] + forward_size(sizes[l + 1], sizes[l]);
        widest = std::max<long>(widest, sizes[l + 1]);
    }
    const int threads = threads_for(rows);
#pragma omp parallel num_threads(threads)
    {
        const Range mine = share(rows, omp_get_thread_num(), omp_get_num_threads());
        float *packed = own_buffer.get(at[layers] + 2 * ROWS * widest), *scratch = packed + at[layers];
        for (int g = 0; g < groups; g++) {
            for (int l = 0; l < layers; l++)
                pack_forward(W[l] + g * strides[1 + 2 * l], b[l] + g * strides[2 + 2 * l], sizes[l + 1], sizes[l], {0, panels(sizes[l + 1])}, packed + at[l]);
            for (long r = mine.begin; r < mine.end; r += ROWS) {
                const int m = int(std::min<long>(ROWS, mine.end - r));
                const float *in = x + g * strides[0] + r * sizes[0];
                for (int l = 0; l < layers; l++) {
                    const int k = sizes[l], n = sizes[l + 1];
                    float *to = out[l] ? out[l] + (g * rows + r) * n : scratch + (l & 1) * ROWS * widest;
                    for (int j = 0; j < panels(n); j++)
                        forward(in, m, n, k, packed + at[l], j, to + j * NR, n, l + 1 < layers ? activation : NONE);
                    in = to;
                }
            }
        }
    }
}

// Gradients of x (G, rows, k) unless it is null, and of each W and b (contiguous) unless `gW` is null; hidden: the outputs of all layers but
// the last
void chain_backward(int layers, int groups, long rows, int activation, const int *sizes, const long *strides, const float *gradient,
                    const float *x, const float *const *W, const float *const *hidden, float *gx, float *const *gW, float *const *gb) {
    std::vector<long> at(layers + 1, 0), sum_at(layers + 1, 0);
    int widest = 0;
    for (int l = 0; l < layers; l++) {
        at[l + 1] = at[l] + backward_size(sizes[l + 1], sizes[l]);
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
        float *packed = own_buffer.get(at[layers] + long(DEPTH) * (2 * widest + NR));
        float *scratch = packed + at[layers], *strip = scratch + long(DEPTH) * 2 * widest;
        for (int g = 0; g < groups; g++) {
            for (int l = first; l < layers; l++) pack_backward(W[l] + g * strides[1 + 2 * l], sizes[l + 1], sizes[l], packed + at[l]);
            for (long r = mine.begin; r < mine.end; r += DEPTH) {
                const int m = int(std::min<long>(DEPTH, mine.end - r));
                const float *up = gradient + (g * rows + r) * sizes[layers];
                for (int l = layers - 1; l >= 0; l--) {
                    const int k = sizes[l], n = sizes[l + 1];
                    const float *in = l ? hidden[l - 1] + (g * rows + r) * k : x + g * strides[0] + r * k;
                    if (gW) {
                        float *own = sums + me * sum_at[layers] + sum_at[l];
                        gather(up, in, m, n, k, me ? own : gW[l] + long(g) * n * k, me ? own + long(n) * k : gb[l] + long(g) * n,
                               r > mine.begin, strip);
                    }
                    if (l < first) break;
                    float *to = l ? scratch + long(l & 1) * DEPTH * widest : gx + (g * rows + r) * k;
                    backward(up, m, n, k, packed + at[l], to, l ? in : nullptr, l ? activation : NONE);
                    up = to;
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

// One step of a GRU: x (G, rows, k), h (G, rows, n) -> out (G, rows, n); W, b: of the input (3n, k), (3n) and of the state (3n, n), (3n), each
// for reset, update and new; n a multiple of NR. gates (G, rows, 4, n): reset, update, new, and the state's part of new, unless it is null.
// strides: of x, h, and of each W and b, from group to group. Where there are enough columns, threads share these, so that weights are copied
// once, else rows.
void gru_forward(int groups, long rows, int k, int n, const long *strides, const float *x, const float *h, const float *const *W,
                 const float *const *b, float *out, float *gates) {
    const long split = forward_size(3 * n, k), whole = split + forward_size(3 * n, n);
    const int threads = threads_for(rows);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads(), third = n / NR;
        const bool wide = third % team == 0;
        const Range mine = wide ? Range{0, rows} : share(rows, me, team), columns = wide ? share(third, me, team) : Range{0, third};
        float *packed = own_buffer.get(whole + 4 * ROWS * NR), *sum = packed + whole;
        float *reset = sum, *update = sum + ROWS * NR, *input = sum + 2 * ROWS * NR, *state = sum + 3 * ROWS * NR;
        for (int g = 0; g < groups; g++) {
            for (int gate = 0; gate < 3; gate++) {
                const Range its{columns.begin + gate * third, columns.end + gate * third};
                pack_forward(W[0] + g * strides[2], b[0] + g * strides[3], 3 * n, k, its, packed);
                pack_forward(W[1] + g * strides[4], b[1] + g * strides[5], 3 * n, n, its, packed + split);
            }
            for (long r = mine.begin; r < mine.end; r += ROWS) {
                const int m = int(std::min<long>(ROWS, mine.end - r));
                const float *in = x + g * strides[0] + r * k, *old = h + g * strides[1] + r * n;
                for (int j = int(columns.begin); j < columns.end; j++) {
                    forward(in, m, 3 * n, k, packed, j, reset, NR, NONE);
                    forward(in, m, 3 * n, k, packed, third + j, update, NR, NONE);
                    forward(in, m, 3 * n, k, packed, 2 * third + j, input, NR, NONE);
                    forward(old, m, 3 * n, n, packed + split, j, reset, NR, NONE, true);
                    forward(old, m, 3 * n, n, packed + split, third + j, update, NR, NONE, true);
                    forward(old, m, 3 * n, n, packed + split, 2 * third + j, state, NR, NONE);
                    for (int i = 0; i < m; i++)
                        for (int c = 0; c < NR; c += VL) {
                            const long at = i * NR + c, row = g * rows + r + i;
                            const V s = load(state + at), w = sigmoid(load(reset + at)), u = sigmoid(load(update + at));
                            const V fresh = 2.0f * sigmoid(2.0f * (load(input + at) + w * s)) - 1.0f; // tanh
                            store(out + row * n + j * NR + c, fresh + u * (load(old + long(i) * n + j * NR + c) - fresh));
                            if (gates) {
                                float *kept = gates + row * 4 * n + j * NR + c;
                                store(kept, w);
                                store(kept + n, u);
                                store(kept + 2 * n, fresh);
                                store(kept + 3 * n, s);
                            }
                        }
                }
            }
        }
    }
}

// Gradients of x unless it is null, of h, and of each W and b unless `gW` is null
void gru_backward(int groups, long rows, int k, int n, const long *strides, const float *gradient, const float *x, const float *h,
                  const float *const *W, const float *gates, float *gx, float *gh, float *const *gW, float *const *gb) {
    const long split = backward_size(3 * n, k), whole = split + backward_size(3 * n, n);
    const long sum_split = sum_size(3 * n, k), sum_whole = sum_split + sum_size(3 * n, n);
    const int threads = threads_for(rows);
    float *sums = shared_buffer.get(gW ? threads * sum_whole : 0);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads();
        const Range mine = share(rows, me, team);
        float *packed = own_buffer.get(whole + DEPTH * (6L * n + NR));
        float *of_input = packed + whole, *of_state = of_input + DEPTH * 3L * n, *strip = of_state + DEPTH * 3L * n;
        for (int g = 0; g < groups; g++) {
            if (gx) pack_backward(W[0] + g * strides[2], 3 * n, k, packed);
            pack_backward(W[1] + g * strides[4], 3 * n, n, packed + split);
            for (long r = mine.begin; r < mine.end; r += DEPTH) {
                const int m = int(std::min<long>(DEPTH, mine.end - r));
                const long row = g * rows + r;
                const float *in = x + g * strides[0] + r * k, *old = h + g * strides[1] + r * n;
                for (int i = 0; i < m; i++)
                    for (int c = 0; c < n; c += VL) {
                        const float *kept = gates + (row + i) * 4 * n + c;
                        const V w = load(kept), u = load(kept + n), fresh = load(kept + 2 * n), s = load(kept + 3 * n);
                        const V up = load(gradient + (row + i) * n + c), new_up = up * (1.0f - u) * (1.0f - fresh * fresh);
                        const V reset_up = new_up * s * w * (1.0f - w);
                        const V update_up = up * (load(old + long(i) * n + c) - fresh) * u * (1.0f - u);
                        float *to = of_input + i * 3L * n + c, *beside = of_state + i * 3L * n + c;
                        store(to, reset_up);
                        store(beside, reset_up);
                        store(to + n, update_up);
                        store(beside + n, update_up);
                        store(to + 2 * n, new_up);
                        store(beside + 2 * n, new_up * w);
                        store(gh + (row + i) * n + c, up * u);
                    }
                if (gW) {
                    float *own = sums + me * sum_whole, *beside = own + sum_split;
                    gather(of_input, in, m, 3 * n, k, me ? own : gW[0] + 3L * g * n * k, me ? own + 3L * n * k : gb[0] + 3L * g * n,
                           r > mine.begin, strip);
                    gather(of_state, old, m, 3 * n, n, me ? beside : gW[1] + 3L * g * n * n, me ? beside + 3L * n * n : gb[1] + 3L * g * n,
                           r > mine.begin, strip);
                }
                if (gx) backward(of_input, m, 3 * n, k, packed, gx + row * k, nullptr, NONE);
                backward(of_state, m, 3 * n, n, packed + split, gh + row * n, nullptr, NONE, true);
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
// With a leading axis of groups, each with weights of its own, on everything; or without it on everything.

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

std::vector<int> sizes_of(const Tensor &x, TensorList weights) {
    std::vector<int> out{int(x.size(-1))};
    for (const Tensor &w : weights) out.push_back(int(w.size(-2)));
    return out;
}

// The outputs of all layers where they are to be kept for gradients, else of the last alone
Tensors chain(const Tensor &x_, TensorList weights_, TensorList biases_, int64_t activation, bool keep) {
    const Tensor x = dense(x_);
    const Tensors weights = dense(weights_), biases = dense(biases_);
    const int layers = int(weights.size());
    Tensors out;
    std::vector<float *> to(layers, nullptr);
    for (int l = keep ? 0 : layers - 1; l < layers; l++) {
        auto shape = x.sizes().vec();
        shape.back() = weights[l].size(-2);
        out.push_back(at::empty(shape, x.options()));
        to[l] = out.back().mutable_data_ptr<float>();
    }
    chain_forward(layers, groups_of(x), x.size(-2), int(activation), sizes_of(x, weights).data(), strides_of({x}, weights, biases).data(),
                  x.const_data_ptr<float>(), addresses(weights).data(), addresses(biases).data(), to.data());
    return out;
}

// Of x if asked for, and of all weights and all biases if asked for
Tensors chain_gradients(const Tensor &gradient_, const Tensor &x_, TensorList weights_, TensorList biases_, TensorList hidden,
                        int64_t activation, bool of_x, bool of_weights) {
    const Tensor gradient = gradient_.contiguous(), x = dense(x_);
    const Tensors weights = dense(weights_), biases = dense(biases_);
    Tensors out, gw = of_weights ? empty_like(weights) : Tensors(), gb = of_weights ? empty_like(biases) : Tensors();
    if (of_x) out.push_back(at::empty(x.sizes(), x.options()));
    chain_backward(int(weights.size()), groups_of(x), x.size(-2), int(activation), sizes_of(x, weights).data(),
                   strides_of({x}, weights, biases).data(), gradient.const_data_ptr<float>(), x.const_data_ptr<float>(),
                   addresses(weights).data(), addresses(hidden).data(), of_x ? out[0].mutable_data_ptr<float>() : nullptr,
                   of_weights ? places(gw).data() : nullptr, places(gb).data());
    out.insert(out.end(), gw.begin(), gw.end());
    out.insert(out.end(), gb.begin(), gb.end());
    return out;
}

// The next state, and its gates where they are to be kept for gradients
Tensors gru(const Tensor &x_, const Tensor &h_, TensorList weights_, TensorList biases_, bool keep) {
    const Tensor x = dense(x_), h = dense(h_);
    const Tensors weights = dense(weights_), biases = dense(biases_);
    Tensors out{at::empty(h.sizes(), h.options())};
    if (keep) {
        auto shape = h.sizes().vec();
        shape.insert(shape.end() - 1, 4);
        out.push_back(at::empty(shape, h.options()));
    }
    gru_forward(groups_of(x), x.size(-2), int(x.size(-1)), int(h.size(-1)), strides_of({x, h}, weights, biases).data(),
                x.const_data_ptr<float>(), h.const_data_ptr<float>(), addresses(weights).data(), addresses(biases).data(),
                out[0].mutable_data_ptr<float>(), keep ? out[1].mutable_data_ptr<float>() : nullptr);
    return out;
}

// Of h, of x if asked for, and of all weights and all biases if asked for
Tensors gru_gradients(const Tensor &gradient_, const Tensor &x_, const Tensor &h_, TensorList weights_, TensorList biases_,
                      const Tensor &gates, bool of_x, bool of_weights) {
    const Tensor gradient = gradient_.contiguous(), x = dense(x_), h = dense(h_);
    const Tensors weights = dense(weights_), biases = dense(biases_);
    Tensors out{at::empty(h.sizes(), h.options())};
    Tensors gw = of_weights ? empty_like(weights) : Tensors(), gb = of_weights ? empty_like(biases) : Tensors();
    if (of_x) out.push_back(at::empty(x.sizes(), x.options()));
    gru_backward(groups_of(x), x.size(-2), int(x.size(-1)), int(h.size(-1)), strides_of({x, h}, weights, biases).data(),
                 gradient.const_data_ptr<float>(), x.const_data_ptr<float>(), h.const_data_ptr<float>(), addresses(weights).data(),
                 gates.const_data_ptr<float>(), of_x ? out[1].mutable_data_ptr<float>() : nullptr, out[0].mutable_data_ptr<float>(),
                 of_weights ? places(gw).data() : nullptr, places(gb).data());
    out.insert(out.end(), gw.begin(), gw.end());
    out.insert(out.end(), gb.begin(), gb.end());
    return out;
}

Tensors call_chain(const Tensor &x, TensorList weights, TensorList biases, int64_t activation, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = operator_named<decltype(chain)>("vis_rpg::chain");
    return op.call(x, weights, biases, activation, keep);
}

Tensors call_gru(const Tensor &x, const Tensor &h, TensorList weights, TensorList biases, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = operator_named<decltype(gru)>("vis_rpg::gru");
    return op.call(x, h, weights, biases, keep);
}

struct ChainFunction : torch::autograd::Function<ChainFunction> {
    static variable_list forward(AutogradContext *context, const Tensor &x, TensorList weights, TensorList biases, int64_t activation) {
        Tensors out = call_chain(x, weights, biases, activation, true);
        variable_list saved{x};
        saved.insert(saved.end(), weights.begin(), weights.end());
        saved.insert(saved.end(), biases.begin(), biases.end());
        saved.insert(saved.end(), out.begin(), out.end() - 1);
        context->save_for_backward(saved);
        context->saved_data["activation"] = activation;
        context->set_materialize_grads(false);
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const variable_list saved = context->get_saved_variables();
        const size_t n = saved.size() / 3; // x, n weights, n biases, n - 1 hidden layers
        const TensorList all(saved);
        const bool of_x = context->needs_input_grad(0), of_weights = any_needed(context, 1, 2 * n);
        static const auto op = operator_named<decltype(chain_gradients)>("vis_rpg::chain_backward");
        Tensors found = op.call(gradients.back(), saved[0], all.slice(1, n), all.slice(1 + n, n), all.slice(1 + 2 * n),
                                context->saved_data["activation"].toInt(), of_x, of_weights);
        variable_list out(1);
        if (of_x) {
            out[0] = found[0];
            found.erase(found.begin());
        }
        append(out, found, 2 * n, 1);
        return out;
    }
};

struct GruFunction : torch::autograd::Function<GruFunction> {
    static variable_list forward(AutogradContext *context, const Tensor &x, const Tensor &h, TensorList weights, TensorList biases) {
        Tensors out = call_gru(x, h, weights, biases, true);
        variable_list saved{x, h};
        saved.insert(saved.end(), weights.begin(), weights.end());
        saved.insert(saved.end(), biases.begin(), biases.end());
        saved.push_back(out[1]);
        context->save_for_backward(saved);
        context->set_materialize_grads(false);
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const variable_list saved = context->get_saved_variables();
        const TensorList all(saved);
        const bool of_x = context->needs_input_grad(0), of_weights = any_needed(context, 2, 4);
        static const auto op = operator_named<decltype(gru_gradients)>("vis_rpg::gru_backward");
        Tensors found = op.call(gradients[0], saved[0], saved[1], all.slice(2, 2), all.slice(4, 2), saved[6], of_x, of_weights);
        variable_list out{of_x ? found[1] : Tensor(), found[0]};
        found.erase(found.begin(), found.begin() + (of_x ? 2 : 1));
        append(out, found, 4, 0);
        return out;
    }
};

Tensors chain_autograd(const Tensor &x, TensorList weights, TensorList biases, int64_t activation, bool keep) {
    return differentiable({x}, weights, biases) ? ChainFunction::apply(x, weights, biases, activation)
                                                : call_chain(x, weights, biases, activation, keep);
}

Tensors gru_autograd(const Tensor &x, const Tensor &h, TensorList weights, TensorList biases, bool keep) {
    return differentiable({x, h}, weights, biases) ? GruFunction::apply(x, h, weights, biases) : call_gru(x, h, weights, biases, keep);
}

} // namespace

TORCH_LIBRARY(vis_rpg, m) {
    m.def("chain(Tensor x, Tensor[] weights, Tensor[] biases, int activation, bool keep) -> Tensor[]");
    m.def("chain_backward(Tensor gradient, Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] hidden, int activation, bool of_x, "
          "bool of_weights) -> Tensor[]");
    m.def("gru(Tensor x, Tensor h, Tensor[] weights, Tensor[] biases, bool keep) -> Tensor[]");
    m.def("gru_backward(Tensor gradient, Tensor x, Tensor h, Tensor[] weights, Tensor[] biases, Tensor gates, bool of_x, bool of_weights) "
          "-> Tensor[]");
    m.def("encode(Tensor frames, Tensor[] weights, Tensor[] biases) -> Tensor");
    m.def("encode_backward(Tensor gradient, Tensor frames, Tensor[] weights, Tensor[] biases) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(vis_rpg, CPU, m) {
    m.impl("chain", chain);
    m.impl("chain_backward", chain_gradients);
    m.impl("gru", gru);
    m.impl("gru_backward", gru_gradients);
    m.impl("encode", encode);
    m.impl("encode_backward", encode_gradients);
}

TORCH_LIBRARY_IMPL(vis_rpg, Autograd, m) {
    m.impl("chain", chain_autograd);
    m.impl("gru", gru_autograd);
    m.impl("encode", encode_autograd);
}

// What operators of torch that are written in C++ share: tensors as addresses, and what autograd asks for

#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#include <vector>

namespace {

using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Tensors = std::vector<Tensor>;

// The tensor itself where rows lie one behind the other in each group, else a copy; groups may lie apart where there are three dimensions,
// of two the first may be rows
Tensor dense(const Tensor &t) { return t.is_contiguous() || (t.dim() == 3 && t.select(0, 0).is_contiguous()) ? t : t.contiguous(); }

Tensors dense(TensorList tensors) {
    Tensors out;
    for (const Tensor &t : tensors) out.push_back(dense(t));
    return out;
}

std::vector<const float *> addresses(TensorList tensors) {
    std::vector<const float *> out;
    for (const Tensor &t : tensors) out.push_back(t.const_data_ptr<float>());
    return out;
}

std::vector<float *> places(TensorList tensors) {
    std::vector<float *> out;
    for (const Tensor &t : tensors) out.push_back(t.mutable_data_ptr<float>());
    return out;
}

Tensors empty_like(TensorList tensors) {
    Tensors out;
    for (const Tensor &t : tensors) out.push_back(at::empty(t.sizes(), t.options()));
    return out;
}

// Operators through the dispatcher, so that what traces them sees them
template <class F> c10::TypedOperatorHandle<F> operator_named(const char *name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

bool any_needed(AutogradContext *context, size_t begin, size_t count) {
    for (size_t i = begin; i < begin + count; i++)
        if (context->needs_input_grad(i)) return true;
    return false;
}

// Gradients of `found`, which are those of all parameters or of none, and nothing for `rest` more arguments
void append(variable_list &out, Tensors found, size_t parameters, size_t rest) {
    found.resize(parameters);
    out.insert(out.end(), found.begin(), found.end());
    out.resize(out.size() + rest);
}

bool differentiable(TensorList inputs, TensorList weights, TensorList biases) {
    auto needs = [](const Tensor &t) { return t.requires_grad(); };
    return at::GradMode::is_enabled() && (std::any_of(inputs.begin(), inputs.end(), needs) || std::any_of(weights.begin(), weights.end(), needs) ||
                                          std::any_of(biases.begin(), biases.end(), needs));
}
} // namespace

// How an op family puts its functions under the dispatcher's keys.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "arguments.h"

// The device implementations run on CPU tensors, and on CUDA ones where the CUDA kernels are built.
#ifdef ENTMASK_CUDA
#define ENTMASK_LIBRARY_CUDA(define) \
  TORCH_LIBRARY_IMPL(entmask, CUDA, m) { define(m); }
#else
#define ENTMASK_LIBRARY_CUDA(define)
#endif
#define ENTMASK_LIBRARY_DEVICES(define)              \
  TORCH_LIBRARY_IMPL(entmask, CPU, m) { define(m); } \
  ENTMASK_LIBRARY_CUDA(define)

// A composed op: its parts have the kernels, the derivatives and the rules for vmap.
#define ENTMASK_LIBRARY_COMPOSED(define)                                   \
  TORCH_LIBRARY_IMPL(entmask, CompositeImplicitAutograd, m) { define(m); } \
  TORCH_LIBRARY_IMPL(entmask, FuncTorchBatchedDecomposition, m) { define(m); }

namespace entmask::ops {

// A primitive: what every device without kernels in this build is told, in place of a missing kernel.
void define_primitive(torch::Library& m, const char* schema);
void define_composed(torch::Library& m, const char* schema);

// The op `name` behind the dispatcher; F is its signature.
template <class F>
auto dispatched(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

inline bool wants_grad(const Tensor& t) { return t.defined() && at::GradMode::is_enabled() && t.requires_grad(); }
inline bool wants_grad(const OptionalTensor& t) { return t.has_value() && wants_grad(*t); }

// Forward-mode tangents would be dropped without a word.
inline void check_no_tangent(const char* op, const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t.defined() || !t._fw_grad(/*level=*/0).defined(), "entmask::", op,
                              " has no forward-mode derivative; use reverse mode (backward or torch.autograd.grad)");
}
inline void check_no_tangent(const char* op, const OptionalTensor& t) {
  if (t) check_no_tangent(op, *t);
}
template <class First, class Second, class... More>
void check_no_tangent(const char* op, const First& first, const Second& second, const More&... more) {
  check_no_tangent(op, first);
  check_no_tangent(op, second, more...);
}

// An argument that the op's output depends on smoothly, but that it has no formula for.
inline void check_constant(const char* op, const char* name, const OptionalTensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!wants_grad(t) && !(t && t->defined() && t->_fw_grad(/*level=*/0).defined()),
                              "entmask::", op, " has no derivative with respect to ", name, "; pass ", name,
                              ".detach()");
}

// A gradient op that can be differentiated no further: asking for it says so. Any of its arguments stands for all.
struct OnceDifferentiable : torch::autograd::Function<OnceDifferentiable> {
  template <class F>
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor&, const std::string& name,
                        const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["name"] = name;
    return compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "entmask::", ctx->saved_data["name"].toStringRef(),
                                " is differentiable once; its second derivative is not implemented");
  }
};

// Runs a gradient op's compute() below autograd, as OnceDifferentiable where any argument wants a gradient.
template <class F>
Tensor once_differentiable(const char* name, std::initializer_list<OptionalTensor> arguments, const F& compute) {
  for (const OptionalTensor& t : arguments) check_no_tangent(name, t);
  for (const OptionalTensor& t : arguments)
    if (wants_grad(t)) return OnceDifferentiable::apply(*t, std::string(name), compute);
  at::AutoDispatchBelowADInplaceOrView below;
  return compute();
}

}  // namespace entmask::ops

// How an op family puts its functions under the dispatcher's keys.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "common.h"

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

namespace entmask::ops {

// The op `name` behind the dispatcher; F is its signature.
template <class F>
auto dispatched(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

inline bool wants_grad(const Tensor& t) { return at::GradMode::is_enabled() && t.requires_grad(); }

// Forward-mode tangents would be dropped without a word.
inline void check_no_tangent(const Tensor& t, const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t._fw_grad(/*level=*/0).defined(), "entmask::", op,
                              " has no forward-mode derivative; use reverse mode (backward or torch.autograd.grad)");
}

// A gradient op that can be differentiated no further: asking for it says so.
struct OnceDifferentiable : torch::autograd::Function<OnceDifferentiable> {
  template <class F>
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor&, const Tensor&, const std::string& name,
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

}  // namespace entmask::ops

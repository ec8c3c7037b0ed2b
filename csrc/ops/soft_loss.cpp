// The soft consistency loss and its gradient. Saved for backward: the inputs and two sums.
#include <ATen/Functions.h>

#include "loss_backward.h"
#include "ops.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

at::ScalarType result_dtype(const Tensor& logits, const Tensor& target) {
  return compute_dtype(compute_dtype(logits) == at::kDouble ? logits : target);
}

SoftLossParams make_params(const Tensor& logits, const Tensor& target, const OptionalTensor& where, string_view kind) {
  check_logits(logits);
  float_dtype(target, "target_logits");
  TORCH_CHECK_VALUE(target.layout() == at::kStrided, "target_logits must be a dense tensor, got layout ",
                    target.layout());
  check_same_device(logits, "logits", target, "target_logits");
  check_shape(target, "target_logits", logits.sym_sizes(), ", that of logits");
  TORCH_CHECK_VALUE(kind == "mse" || kind == "kl", "kind must be 'mse' or 'kl', got '", kind, "'");
  SoftLossParams p{};
  if (where) {
    check_same_device(logits, "logits", *where, "where");
    TORCH_CHECK_TYPE(where->scalar_type() == at::kBool, "where must be bool, got ", where->scalar_type());
    check_shape(*where, "where", pixel_shape(logits), " for logits ", logits.sizes());
    p.where = where->const_data_ptr<bool>();
    p.where_stride = pixel_strides_of(*where);
  }
  const Grid grid = whole_image(logits);
  p.logits = logits.const_data_ptr();
  p.target = target.const_data_ptr();
  p.logits_stride = strides_of(logits);
  p.target_stride = strides_of(target);
  p.dtype = float_dtype(logits, "logits");
  p.target_dtype = float_dtype(target, "target_logits");
  p.batch = logits.size(0);
  p.classes = logits.size(1);
  for (int axis = 0; axis < 3; ++axis) p.size[axis] = grid.size[axis];
  p.kl = kind == "kl";
  return p;
}

std::tuple<Tensor, Tensor> soft_consistency_loss_kernel(const Tensor& logits, const Tensor& target_logits,
                                                        const OptionalTensor& where, string_view kind) {
  SoftLossForwardParams p{};
  p.loss = make_params(logits, target_logits, where, kind);
  const Tensor mean = at::empty({}, logits.options().dtype(result_dtype(logits, target_logits)));
  const Tensor sums = at::empty({2}, logits.options().dtype(at::kDouble));
  p.sums = sums.mutable_data_ptr<double>();
  p.mean = mean.mutable_data_ptr();
  run(p, logits.device());
  return {mean, sums};
}

Tensor soft_consistency_loss_backward_kernel(const Tensor& grad, const Tensor& logits, const Tensor& target_logits,
                                             const OptionalTensor& where, string_view kind, const Tensor& sums) {
  SoftLossBackwardParams p{};
  p.loss = make_params(logits, target_logits, where, kind);
  p.grad = scalar_gradient(logits, grad, "grad", result_dtype(logits, target_logits));
  p.sums = saved_sums(logits, sums, 2);
  const Tensor out = empty_like_format(logits);
  p.grad_logits = out.mutable_data_ptr();
  p.grad_logits_stride = strides_of(out);
  run(p, logits.device());
  return out;
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SoftConsistencyLoss : torch::autograd::Function<SoftConsistencyLoss> {
  // The sums that backward reads are no output: compute() leaves them in `sums`.
  template <class F>
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const Tensor& target_logits,
                        const OptionalTensor& where, string_view kind, Tensor* sums, const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor mean;
    std::tie(mean, *sums) = compute();
    ctx->save_for_backward({logits, target_logits, where.value_or(Tensor()), *sums});
    ctx->saved_data["kind"] = std::string(kind);
    return mean;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor where = saved[2].defined() ? OptionalTensor(saved[2]) : OptionalTensor();
    variable_list out(6);
    out[0] = soft_consistency_loss_backward(grads[0], saved[0], saved[1], where, ctx->saved_data["kind"].toStringRef(),
                                            saved[3]);
    return out;
  }
};

std::tuple<Tensor, Tensor> soft_consistency_loss_autograd(const Tensor& logits, const Tensor& target_logits,
                                                          const OptionalTensor& where, string_view kind) {
  check_no_tangent("soft_consistency_loss", logits);
  check_constant("soft_consistency_loss", "target_logits", target_logits);
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return soft_consistency_loss(logits, target_logits, where, kind);
  };
  if (!wants_grad(logits)) return compute();
  Tensor sums;
  const Tensor mean = SoftConsistencyLoss::apply(logits, target_logits, where, kind, &sums, compute);
  return {mean, sums};
}

Tensor soft_consistency_loss_backward_autograd(const Tensor& grad, const Tensor& logits, const Tensor& target_logits,
                                               const OptionalTensor& where, string_view kind, const Tensor& sums) {
  const auto arguments = {OptionalTensor(grad), OptionalTensor(logits), OptionalTensor(target_logits),
                          OptionalTensor(sums)};
  return once_differentiable("soft_consistency_loss_backward", arguments, [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return soft_consistency_loss_backward(grad, logits, target_logits, where, kind, sums);
  });
}

void devices(torch::Library& m) {
  m.impl("soft_consistency_loss", soft_consistency_loss_kernel);
  m.impl("soft_consistency_loss_backward", soft_consistency_loss_backward_kernel);
}

}  // namespace

std::tuple<Tensor, Tensor> soft_consistency_loss(const Tensor& logits, const Tensor& target_logits,
                                                 const OptionalTensor& where, string_view kind) {
  static const auto op = dispatched<decltype(soft_consistency_loss)>("entmask::soft_consistency_loss");
  return op.call(logits, target_logits, where, kind);
}

Tensor soft_consistency_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& target_logits,
                                      const OptionalTensor& where, string_view kind, const Tensor& sums) {
  static const auto op =
      dispatched<decltype(soft_consistency_loss_backward)>("entmask::soft_consistency_loss_backward");
  return op.call(grad, logits, target_logits, where, kind, sums);
}

TORCH_LIBRARY_FRAGMENT(entmask, m) {
  define_primitive(m,
                   "soft_consistency_loss(Tensor logits, Tensor target_logits, Tensor? where, str kind) "
                   "-> (Tensor, Tensor)");
  define_primitive(m,
                   "soft_consistency_loss_backward(Tensor grad, Tensor logits, Tensor target_logits, Tensor? where, "
                   "str kind, Tensor sums) -> Tensor");
}

ENTMASK_LIBRARY_DEVICES(devices)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) {
  m.impl("soft_consistency_loss", soft_consistency_loss_autograd);
  m.impl("soft_consistency_loss_backward", soft_consistency_loss_backward_autograd);
}

}  // namespace entmask::ops

// patch_scores and entropy_map, and their gradients.
#include <ATen/Functions.h>

#include "ops.h"
#include "register.h"
#include "scores.h"
#include "stages.h"

namespace entmask::ops {

bool is_count(string_view score) {
  TORCH_CHECK_VALUE(score == "mean" || score == "count", "score must be 'mean' or 'count', got '", score, "'");
  return score == "count";
}

EntropyPoolParams pool_params(const Tensor& logits, const Grid& grid, bool count, const Scalar& threshold,
                              const Tensor& scores) {
  EntropyPoolParams p{};
  p.logits = logits.const_data_ptr();
  p.scores = scores.mutable_data_ptr();
  p.logits_stride = strides_of(logits);
  p.dtype = float_dtype(logits, "logits");
  p.label_dtype = LabelDtype::none;
  p.batch = logits.size(0);
  p.classes = logits.size(1);
  p.grid = grid;
  p.count = count;
  p.threshold = threshold;
  return p;
}

namespace {

void check_logits(const Tensor& logits) {
  check_image_like(logits, "logits", "K");
  check_classes(logits);
}

Tensor patch_scores_kernel(const Tensor& logits, at::IntArrayRef patch_size, string_view score, double threshold,
                           const OptionalTensor& threshold_tensor) {
  check_logits(logits);
  const Grid grid = make_grid(logits, patch_size);
  const bool count = is_count(score);
  const Scalar limit = make_threshold(threshold, threshold_tensor, logits.device());
  Tensor scores = at::empty(grid_shape(logits, grid), logits.options().dtype(compute_dtype(logits)));
  run(pool_params(logits, grid, count, limit, scores), logits.device());
  return scores;
}

Tensor entropy_map_kernel(const Tensor& logits, bool normalize) {
  check_logits(logits);
  Tensor entropy = at::empty(pixel_shape(logits), logits.options().dtype(compute_dtype(logits)));
  const Grid grid = whole_image(logits);
  EntropyMapParams p{};
  p.logits = logits.const_data_ptr();
  p.entropy = entropy.mutable_data_ptr();
  p.logits_stride = strides_of(logits);
  p.dtype = float_dtype(logits, "logits");
  p.batch = logits.size(0);
  p.classes = logits.size(1);
  for (int axis = 0; axis < 3; ++axis) p.size[axis] = grid.size[axis];
  p.normalize = normalize;
  run(p, logits.device());
  return entropy;
}

Tensor entropy_gradient(const Tensor& grad, const Tensor& logits, const Grid& grid, bool pooled, bool normalize) {
  check_same_device(grad, "grad", logits, "logits");
  const auto shape = pooled ? grid_shape(logits, grid) : pixel_shape(logits);
  TORCH_CHECK_VALUE(grad.sizes().equals(shape), "grad must have shape ", at::IntArrayRef(shape), ", got ",
                    grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == compute_dtype(logits), "grad must be ", compute_dtype(logits), ", got ",
                   grad.scalar_type());
  Tensor out = empty_like_format(logits);
  EntropyBackwardParams p{};
  p.logits = logits.const_data_ptr();
  p.grad = grad.const_data_ptr();
  p.grad_logits = out.mutable_data_ptr();
  p.logits_stride = strides_of(logits);
  p.grad_stride = pixel_strides_of(grad);
  p.grad_logits_stride = strides_of(out);
  p.dtype = float_dtype(logits, "logits");
  p.batch = logits.size(0);
  p.classes = logits.size(1);
  p.grid = grid;
  p.pooled = pooled;
  p.normalize = normalize;
  run(p, logits.device());
  return out;
}

Tensor patch_scores_backward_kernel(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size) {
  check_logits(logits);
  return entropy_gradient(grad, logits, make_grid(logits, patch_size), true, true);
}

Tensor entropy_map_backward_kernel(const Tensor& grad, const Tensor& logits, bool normalize) {
  check_logits(logits);
  return entropy_gradient(grad, logits, whole_image(logits), false, normalize);
}

struct PatchScores : torch::autograd::Function<PatchScores> {
  template <class F>
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& logits, at::IntArrayRef patch_size,
                        const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits});
    ctx->saved_data["patch_size"] = patch_size.vec();
    return compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
    return {patch_scores_backward(grads[0], ctx->get_saved_variables()[0], patch_size), Tensor(), Tensor()};
  }
};

Tensor patch_scores_autograd(const Tensor& logits, at::IntArrayRef patch_size, string_view score, double threshold,
                             const OptionalTensor& threshold_tensor) {
  check_no_tangent(logits, "patch_scores");
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return patch_scores(logits, patch_size, score, threshold, threshold_tensor);
  };
  if (!wants_grad(logits) || is_count(score)) return compute();
  return PatchScores::apply(logits, patch_size, compute);
}

struct EntropyMap : torch::autograd::Function<EntropyMap> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& logits, bool normalize) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits});
    ctx->saved_data["normalize"] = normalize;
    return entropy_map(logits, normalize);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    return {entropy_map_backward(grads[0], ctx->get_saved_variables()[0], ctx->saved_data["normalize"].toBool()),
            Tensor()};
  }
};

Tensor entropy_map_autograd(const Tensor& logits, bool normalize) {
  check_no_tangent(logits, "entropy_map");
  if (wants_grad(logits)) return EntropyMap::apply(logits, normalize);
  at::AutoDispatchBelowADInplaceOrView below;
  return entropy_map(logits, normalize);
}

Tensor patch_scores_backward_autograd(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size) {
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return patch_scores_backward(grad, logits, patch_size);
  };
  if (!wants_grad(grad) && !wants_grad(logits)) return compute();
  return OnceDifferentiable::apply(grad, logits, std::string("patch_scores_backward"), compute);
}

Tensor entropy_map_backward_autograd(const Tensor& grad, const Tensor& logits, bool normalize) {
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return entropy_map_backward(grad, logits, normalize);
  };
  if (!wants_grad(grad) && !wants_grad(logits)) return compute();
  return OnceDifferentiable::apply(grad, logits, std::string("entropy_map_backward"), compute);
}

void devices(torch::Library& m) {
  m.impl("patch_scores", patch_scores_kernel);
  m.impl("patch_scores_backward", patch_scores_backward_kernel);
  m.impl("entropy_map", entropy_map_kernel);
  m.impl("entropy_map_backward", entropy_map_backward_kernel);
}

}  // namespace

Tensor patch_scores(const Tensor& logits, at::IntArrayRef patch_size, string_view score, double threshold,
                    const OptionalTensor& threshold_tensor) {
  static const auto op = dispatched<decltype(patch_scores)>("entmask::patch_scores");
  return op.call(logits, patch_size, score, threshold, threshold_tensor);
}

Tensor patch_scores_backward(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size) {
  static const auto op = dispatched<decltype(patch_scores_backward)>("entmask::patch_scores_backward");
  return op.call(grad, logits, patch_size);
}

Tensor entropy_map(const Tensor& logits, bool normalize) {
  static const auto op = dispatched<decltype(entropy_map)>("entmask::entropy_map");
  return op.call(logits, normalize);
}

Tensor entropy_map_backward(const Tensor& grad, const Tensor& logits, bool normalize) {
  static const auto op = dispatched<decltype(entropy_map_backward)>("entmask::entropy_map_backward");
  return op.call(grad, logits, normalize);
}

ENTMASK_LIBRARY_DEVICES(devices)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) {
  m.impl("patch_scores", patch_scores_autograd);
  m.impl("patch_scores_backward", patch_scores_backward_autograd);
  m.impl("entropy_map", entropy_map_autograd);
  m.impl("entropy_map_backward", entropy_map_backward_autograd);
}

}  // namespace entmask::ops

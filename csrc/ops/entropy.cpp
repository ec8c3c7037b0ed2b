// score_patches (with the pseudo-labels), patch_scores and entropy_map, and their gradients.
#include <ATen/Functions.h>

#include "ops.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool is_count(string_view score) {
  TORCH_CHECK_VALUE(score == "mean" || score == "count", "score must be 'mean' or 'count', got '", score, "'");
  return score == "count";
}

std::tuple<Tensor, Tensor> score_patches_kernel(const Tensor& logits, at::IntArrayRef patch_size, string_view score,
                                                double threshold, const OptionalTensor& threshold_tensor,
                                                optional<at::ScalarType> label_dtype) {
  check_logits(logits);
  const auto shape = grid_shape(logits, patch_size);
  const bool count = is_count(score);
  const bool by_tensor = threshold_tensor.has_value() && threshold_tensor->defined();
  const NumberArgument limit{"threshold", by_tensor ? std::nullopt : optional<double>(threshold), threshold_tensor,
                             false, false};
  check_number(limit, logits.sym_size(0), logits.device());
  TORCH_CHECK_VALUE(!label_dtype || *label_dtype == at::kByte || *label_dtype == at::kLong,
                    "label_dtype must be None, torch.uint8 or torch.int64, got ", *label_dtype);
  TORCH_CHECK_VALUE(!label_dtype || *label_dtype != at::kByte || logits.size(1) <= 255,
                    "label_dtype torch.uint8 holds at most 255 classes, logits have ", logits.size(1),
                    ": use torch.int64");
  const Tensor scores = at::empty_symint(shape, logits.options().dtype(compute_dtype(logits)));
  const Tensor labels = label_dtype ? at::empty_symint(pixel_shape(logits), logits.options().dtype(*label_dtype))
                                    : at::empty({0}, logits.options().dtype(at::kByte));
  const HeldNumber held = make_number(limit, scores.scalar_type(), logits.device());
  EntropyPoolParams p{};
  p.logits = logits.const_data_ptr();
  p.scores = scores.mutable_data_ptr();
  p.labels = label_dtype ? labels.mutable_data_ptr() : nullptr;
  p.logits_stride = strides_of(logits);
  p.dtype = float_dtype(logits, "logits");
  p.label_dtype = !label_dtype ? LabelDtype::none : *label_dtype == at::kByte ? LabelDtype::uint8 : LabelDtype::int64;
  p.batch = logits.size(0);
  p.classes = logits.size(1);
  p.grid = make_grid(logits, patch_size);
  p.count = count;
  p.threshold = held.number;
  run(p, logits.device());
  return {scores, labels};
}

Tensor entropy_map_kernel(const Tensor& logits, bool normalize) {
  check_logits(logits);
  Tensor entropy = at::empty_symint(pixel_shape(logits), logits.options().dtype(compute_dtype(logits)));
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

Tensor entropy_gradient(const Tensor& grad, const Tensor& logits, const Shape& shape, const Grid& grid, bool pooled,
                        bool normalize) {
  check_same_device(grad, "grad", logits, "logits");
  check_shape(grad, "grad", shape);
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

Tensor score_patches_backward_kernel(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size) {
  check_logits(logits);
  const auto shape = grid_shape(logits, patch_size);
  return entropy_gradient(grad, logits, shape, make_grid(logits, patch_size), true, true);
}

Tensor entropy_map_backward_kernel(const Tensor& grad, const Tensor& logits, bool normalize) {
  check_logits(logits);
  return entropy_gradient(grad, logits, pixel_shape(logits), whole_image(logits), false, normalize);
}

struct ScorePatches : torch::autograd::Function<ScorePatches> {
  template <class F>
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, at::IntArrayRef patch_size, const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits});
    ctx->saved_data["patch_size"] = patch_size.vec();
    return compute();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
    return {score_patches_backward(grads[0], ctx->get_saved_variables()[0], patch_size), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> score_patches_autograd(const Tensor& logits, at::IntArrayRef patch_size, string_view score,
                                                  double threshold, const OptionalTensor& threshold_tensor,
                                                  optional<at::ScalarType> label_dtype) {
  check_no_tangent("score_patches", logits);
  Tensor labels;
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    auto result = score_patches(logits, patch_size, score, threshold, threshold_tensor, label_dtype);
    labels = std::get<1>(result);
    return std::get<0>(result);
  };
  const bool differentiable = wants_grad(logits) && !is_count(score);
  const Tensor scores = differentiable ? ScorePatches::apply(logits, patch_size, compute) : compute();
  return {scores, labels};
}

struct EntropyMap : torch::autograd::Function<EntropyMap> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, bool normalize) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits});
    ctx->saved_data["normalize"] = normalize;
    return entropy_map(logits, normalize);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {entropy_map_backward(grads[0], ctx->get_saved_variables()[0], ctx->saved_data["normalize"].toBool()),
            Tensor()};
  }
};

Tensor entropy_map_autograd(const Tensor& logits, bool normalize) {
  check_no_tangent("entropy_map", logits);
  if (wants_grad(logits)) return EntropyMap::apply(logits, normalize);
  at::AutoDispatchBelowADInplaceOrView below;
  return entropy_map(logits, normalize);
}

Tensor score_patches_backward_autograd(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size) {
  return once_differentiable("score_patches_backward", {grad, logits}, [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return score_patches_backward(grad, logits, patch_size);
  });
}

Tensor entropy_map_backward_autograd(const Tensor& grad, const Tensor& logits, bool normalize) {
  return once_differentiable("entropy_map_backward", {grad, logits}, [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return entropy_map_backward(grad, logits, normalize);
  });
}

Tensor patch_scores(const Tensor& logits, at::IntArrayRef patch_size, string_view score, double threshold,
                    const OptionalTensor& threshold_tensor) {
  return std::get<0>(score_patches(logits, patch_size, score, threshold, threshold_tensor, std::nullopt));
}

void devices(torch::Library& m) {
  m.impl("score_patches", score_patches_kernel);
  m.impl("score_patches_backward", score_patches_backward_kernel);
  m.impl("entropy_map", entropy_map_kernel);
  m.impl("entropy_map_backward", entropy_map_backward_kernel);
}
void composed(torch::Library& m) { m.impl("patch_scores", patch_scores); }

}  // namespace

std::tuple<Tensor, Tensor> score_patches(const Tensor& logits, at::IntArrayRef patch_size, string_view score,
                                         double threshold, const OptionalTensor& threshold_tensor,
                                         optional<at::ScalarType> label_dtype) {
  static const auto op = dispatched<decltype(score_patches)>("entmask::score_patches");
  return op.call(logits, patch_size, score, threshold, threshold_tensor, label_dtype);
}

Tensor score_patches_backward(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size) {
  static const auto op = dispatched<decltype(score_patches_backward)>("entmask::score_patches_backward");
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

TORCH_LIBRARY_FRAGMENT(entmask, m) {
  define_primitive(m,
                   "score_patches(Tensor logits, int[] patch_size, str score, float threshold, "
                   "Tensor? threshold_tensor, ScalarType? label_dtype) -> (Tensor, Tensor)");
  define_primitive(m, "score_patches_backward(Tensor grad, Tensor logits, int[] patch_size) -> Tensor");
  define_primitive(m, "entropy_map(Tensor logits, bool normalize) -> Tensor");
  define_primitive(m, "entropy_map_backward(Tensor grad, Tensor logits, bool normalize) -> Tensor");
  define_composed(m,
                  "patch_scores(Tensor logits, int[] patch_size, str score, float threshold, "
                  "Tensor? threshold_tensor) -> Tensor");
}

ENTMASK_LIBRARY_DEVICES(devices)
ENTMASK_LIBRARY_COMPOSED(composed)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) {
  m.impl("score_patches", score_patches_autograd);
  m.impl("score_patches_backward", score_patches_backward_autograd);
  m.impl("entropy_map", entropy_map_autograd);
  m.impl("entropy_map_backward", entropy_map_backward_autograd);
}

}  // namespace entmask::ops

// score_patches (with the pseudo-labels), patch_scores, the maps of uncertainty and their gradients; pseudo_labels.
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

Uncertainty uncertainty_of(string_view name) {
  if (name == "entropy") return Uncertainty::entropy;
  if (name == "least_confidence") return Uncertainty::least_confidence;
  TORCH_CHECK_VALUE(name == "margin", "uncertainty must be 'entropy', 'least_confidence' or 'margin', got '", name,
                    "'");
  return Uncertainty::margin;
}

NumberArgument confidence_argument(const optional<double>& value, const OptionalTensor& tensor) {
  return {"min_confidence", value, tensor, true, false};
}

LabelDtype label_dtype_of(optional<at::ScalarType> dtype) {
  return !dtype ? LabelDtype::none : *dtype == at::kByte ? LabelDtype::uint8 : LabelDtype::int64;
}

void check_labels(const Tensor& logits, optional<at::ScalarType> label_dtype, const NumberArgument& min_confidence) {
  TORCH_CHECK_VALUE(!label_dtype || *label_dtype == at::kByte || *label_dtype == at::kLong,
                    "label_dtype must be torch.uint8 or torch.int64, got ", *label_dtype);
  TORCH_CHECK_VALUE(!label_dtype || *label_dtype != at::kByte || logits.size(1) <= 255,
                    "label_dtype torch.uint8 holds at most 255 classes, logits have ", logits.size(1),
                    ": use torch.int64");
  if (!min_confidence.given()) return;
  TORCH_CHECK_VALUE(label_dtype.has_value(),
                    "min_confidence says which labels are kept: it needs label_dtype, torch.uint8 or torch.int64, got "
                    "None");
  TORCH_CHECK_VALUE(!min_confidence.is_tensor() || min_confidence.tensor->dim() == 0,
                    "min_confidence must be a number or a 0-d tensor, got a tensor of shape ",
                    min_confidence.is_tensor() ? min_confidence.tensor->sizes() : at::IntArrayRef());
  check_number(min_confidence, logits.sym_size(0), logits.device());
}

std::tuple<Tensor, Tensor> score_patches_kernel(const Tensor& logits, at::IntArrayRef patch_size,
                                                string_view uncertainty, string_view score, double threshold,
                                                const OptionalTensor& threshold_tensor,
                                                optional<at::ScalarType> label_dtype, optional<double> min_confidence,
                                                const OptionalTensor& min_confidence_tensor) {
  check_logits(logits);
  const auto shape = grid_shape(logits, patch_size);
  const Uncertainty kind = uncertainty_of(uncertainty);
  const bool count = is_count(score);
  const bool by_tensor = threshold_tensor.has_value() && threshold_tensor->defined();
  const NumberArgument limit{"threshold", by_tensor ? std::nullopt : optional<double>(threshold), threshold_tensor,
                             false, false};
  check_number(limit, logits.sym_size(0), logits.device());
  const NumberArgument confidence = confidence_argument(min_confidence, min_confidence_tensor);
  check_labels(logits, label_dtype, confidence);
  const at::ScalarType dtype = compute_dtype(logits);
  const HeldNumber held = make_number(limit, dtype, logits.device());
  const HeldNumber held_confidence = make_number(confidence, dtype, logits.device());
  const Tensor scores = at::empty_symint(shape, logits.options().dtype(dtype));
  const Tensor labels = label_dtype ? at::empty_symint(pixel_shape(logits), logits.options().dtype(*label_dtype))
                                    : at::empty({0}, logits.options().dtype(at::kByte));
  EntropyPoolParams p{};
  p.logits = logits.const_data_ptr();
  p.scores = scores.mutable_data_ptr();
  p.labels = label_dtype ? labels.mutable_data_ptr() : nullptr;
  p.logits_stride = strides_of(logits);
  p.dtype = float_dtype(logits, "logits");
  p.label_dtype = label_dtype_of(label_dtype);
  p.batch = logits.size(0);
  p.classes = logits.size(1);
  p.grid = make_grid(logits, patch_size);
  p.uncertainty = kind;
  p.count = count;
  p.gated = confidence.given();
  p.threshold = held.number;
  p.min_confidence = held_confidence.number;
  run(p, logits.device());
  return {scores, labels};
}

Tensor map_of(const Tensor& logits, Uncertainty uncertainty, bool normalize) {
  check_logits(logits);
  Tensor map = at::empty_symint(pixel_shape(logits), logits.options().dtype(compute_dtype(logits)));
  const Grid grid = whole_image(logits);
  EntropyMapParams p{};
  p.logits = logits.const_data_ptr();
  p.entropy = map.mutable_data_ptr();
  p.logits_stride = strides_of(logits);
  p.dtype = float_dtype(logits, "logits");
  p.batch = logits.size(0);
  p.classes = logits.size(1);
  for (int axis = 0; axis < 3; ++axis) p.size[axis] = grid.size[axis];
  p.uncertainty = uncertainty;
  p.normalize = normalize;
  run(p, logits.device());
  return map;
}

Tensor entropy_map_kernel(const Tensor& logits, bool normalize) {
  return map_of(logits, Uncertainty::entropy, normalize);
}

Tensor uncertainty_map_kernel(const Tensor& logits, string_view uncertainty) {
  return map_of(logits, uncertainty_of(uncertainty), true);
}

std::tuple<Tensor, Tensor> pseudo_labels_kernel(const Tensor& logits, optional<double> min_confidence,
                                                const OptionalTensor& min_confidence_tensor,
                                                at::ScalarType label_dtype) {
  check_logits(logits);
  const NumberArgument confidence = confidence_argument(min_confidence, min_confidence_tensor);
  check_labels(logits, label_dtype, confidence);
  const HeldNumber held = make_number(confidence, compute_dtype(logits), logits.device());
  const Tensor labels = at::empty_symint(pixel_shape(logits), logits.options().dtype(label_dtype));
  const int64_t images = logits.size(0);
  if (labels.numel() == 0) return {labels, at::zeros({images}, logits.options().dtype(at::kFloat))};
  const Tensor accepted = at::empty({images}, logits.options().dtype(at::kFloat));
  const Grid grid = whole_image(logits);
  PseudoLabelsParams p{};
  p.logits = logits.const_data_ptr();
  p.labels = labels.mutable_data_ptr();
  p.accepted = accepted.mutable_data_ptr<float>();
  p.logits_stride = strides_of(logits);
  p.dtype = float_dtype(logits, "logits");
  p.label_dtype = label_dtype_of(label_dtype);
  p.batch = images;
  p.classes = logits.size(1);
  for (int axis = 0; axis < 3; ++axis) p.size[axis] = grid.size[axis];
  p.gated = confidence.given();
  p.min_confidence = held.number;
  run(p, logits.device());
  return {labels, accepted};
}

Tensor gradient_of(const Tensor& grad, const Tensor& logits, const Shape& shape, const Grid& grid, bool pooled,
                   Uncertainty uncertainty, bool normalize) {
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
  p.uncertainty = uncertainty;
  p.pooled = pooled;
  p.normalize = normalize;
  run(p, logits.device());
  return out;
}

Tensor score_patches_backward_kernel(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size,
                                     string_view uncertainty) {
  check_logits(logits);
  const auto shape = grid_shape(logits, patch_size);
  return gradient_of(grad, logits, shape, make_grid(logits, patch_size), true, uncertainty_of(uncertainty), true);
}

Tensor entropy_map_backward_kernel(const Tensor& grad, const Tensor& logits, bool normalize) {
  check_logits(logits);
  return gradient_of(grad, logits, pixel_shape(logits), whole_image(logits), false, Uncertainty::entropy, normalize);
}

Tensor uncertainty_map_backward_kernel(const Tensor& grad, const Tensor& logits, string_view uncertainty) {
  check_logits(logits);
  return gradient_of(grad, logits, pixel_shape(logits), whole_image(logits), false, uncertainty_of(uncertainty), true);
}

struct ScorePatches : torch::autograd::Function<ScorePatches> {
  template <class F>
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, at::IntArrayRef patch_size,
                        const std::string& uncertainty, const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits});
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->saved_data["uncertainty"] = uncertainty;
    return compute();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
    const auto uncertainty = ctx->saved_data["uncertainty"].toStringView();
    return {score_patches_backward(grads[0], ctx->get_saved_variables()[0], patch_size, uncertainty), Tensor(),
            Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> score_patches_autograd(const Tensor& logits, at::IntArrayRef patch_size,
                                                  string_view uncertainty, string_view score, double threshold,
                                                  const OptionalTensor& threshold_tensor,
                                                  optional<at::ScalarType> label_dtype, optional<double> min_confidence,
                                                  const OptionalTensor& min_confidence_tensor) {
  check_no_tangent("score_patches", logits);
  Tensor labels;
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    auto result = score_patches(logits, patch_size, uncertainty, score, threshold, threshold_tensor, label_dtype,
                                min_confidence, min_confidence_tensor);
    labels = std::get<1>(result);
    return std::get<0>(result);
  };
  const bool differentiable = wants_grad(logits) && !is_count(score);
  const Tensor scores =
      differentiable ? ScorePatches::apply(logits, patch_size, std::string(uncertainty), compute) : compute();
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

struct UncertaintyMap : torch::autograd::Function<UncertaintyMap> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const std::string& uncertainty) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits});
    ctx->saved_data["uncertainty"] = uncertainty;
    return uncertainty_map(logits, uncertainty);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {uncertainty_map_backward(grads[0], ctx->get_saved_variables()[0],
                                     ctx->saved_data["uncertainty"].toStringView()),
            Tensor()};
  }
};

Tensor entropy_map_autograd(const Tensor& logits, bool normalize) {
  check_no_tangent("entropy_map", logits);
  if (wants_grad(logits)) return EntropyMap::apply(logits, normalize);
  at::AutoDispatchBelowADInplaceOrView below;
  return entropy_map(logits, normalize);
}

Tensor uncertainty_map_autograd(const Tensor& logits, string_view uncertainty) {
  check_no_tangent("uncertainty_map", logits);
  if (wants_grad(logits)) return UncertaintyMap::apply(logits, std::string(uncertainty));
  at::AutoDispatchBelowADInplaceOrView below;
  return uncertainty_map(logits, uncertainty);
}

// Labels have no derivative.
std::tuple<Tensor, Tensor> pseudo_labels_autograd(const Tensor& logits, optional<double> min_confidence,
                                                  const OptionalTensor& min_confidence_tensor,
                                                  at::ScalarType label_dtype) {
  at::AutoDispatchBelowADInplaceOrView below;
  return pseudo_labels(logits, min_confidence, min_confidence_tensor, label_dtype);
}

Tensor score_patches_backward_autograd(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size,
                                       string_view uncertainty) {
  return once_differentiable("score_patches_backward", {grad, logits}, [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return score_patches_backward(grad, logits, patch_size, uncertainty);
  });
}

Tensor entropy_map_backward_autograd(const Tensor& grad, const Tensor& logits, bool normalize) {
  return once_differentiable("entropy_map_backward", {grad, logits}, [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return entropy_map_backward(grad, logits, normalize);
  });
}

Tensor uncertainty_map_backward_autograd(const Tensor& grad, const Tensor& logits, string_view uncertainty) {
  return once_differentiable("uncertainty_map_backward", {grad, logits}, [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return uncertainty_map_backward(grad, logits, uncertainty);
  });
}

Tensor patch_scores(const Tensor& logits, at::IntArrayRef patch_size, string_view uncertainty, string_view score,
                    double threshold, const OptionalTensor& threshold_tensor) {
  return std::get<0>(score_patches(logits, patch_size, uncertainty, score, threshold, threshold_tensor, std::nullopt,
                                   std::nullopt, std::nullopt));
}

void devices(torch::Library& m) {
  m.impl("score_patches", score_patches_kernel);
  m.impl("score_patches_backward", score_patches_backward_kernel);
  m.impl("entropy_map", entropy_map_kernel);
  m.impl("entropy_map_backward", entropy_map_backward_kernel);
  m.impl("uncertainty_map", uncertainty_map_kernel);
  m.impl("uncertainty_map_backward", uncertainty_map_backward_kernel);
  m.impl("pseudo_labels", pseudo_labels_kernel);
}
void composed(torch::Library& m) { m.impl("patch_scores", patch_scores); }

}  // namespace

std::tuple<Tensor, Tensor> score_patches(const Tensor& logits, at::IntArrayRef patch_size, string_view uncertainty,
                                         string_view score, double threshold, const OptionalTensor& threshold_tensor,
                                         optional<at::ScalarType> label_dtype, optional<double> min_confidence,
                                         const OptionalTensor& min_confidence_tensor) {
  static const auto op = dispatched<decltype(score_patches)>("entmask::score_patches");
  return op.call(logits, patch_size, uncertainty, score, threshold, threshold_tensor, label_dtype, min_confidence,
                 min_confidence_tensor);
}

Tensor score_patches_backward(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size,
                              string_view uncertainty) {
  static const auto op = dispatched<decltype(score_patches_backward)>("entmask::score_patches_backward");
  return op.call(grad, logits, patch_size, uncertainty);
}

Tensor entropy_map(const Tensor& logits, bool normalize) {
  static const auto op = dispatched<decltype(entropy_map)>("entmask::entropy_map");
  return op.call(logits, normalize);
}

Tensor entropy_map_backward(const Tensor& grad, const Tensor& logits, bool normalize) {
  static const auto op = dispatched<decltype(entropy_map_backward)>("entmask::entropy_map_backward");
  return op.call(grad, logits, normalize);
}

Tensor uncertainty_map(const Tensor& logits, string_view uncertainty) {
  static const auto op = dispatched<decltype(uncertainty_map)>("entmask::uncertainty_map");
  return op.call(logits, uncertainty);
}

Tensor uncertainty_map_backward(const Tensor& grad, const Tensor& logits, string_view uncertainty) {
  static const auto op = dispatched<decltype(uncertainty_map_backward)>("entmask::uncertainty_map_backward");
  return op.call(grad, logits, uncertainty);
}

std::tuple<Tensor, Tensor> pseudo_labels(const Tensor& logits, optional<double> min_confidence,
                                         const OptionalTensor& min_confidence_tensor, at::ScalarType label_dtype) {
  static const auto op = dispatched<decltype(pseudo_labels)>("entmask::pseudo_labels");
  return op.call(logits, min_confidence, min_confidence_tensor, label_dtype);
}

TORCH_LIBRARY_FRAGMENT(entmask, m) {
  define_primitive(m,
                   "score_patches(Tensor logits, int[] patch_size, str uncertainty, str score, float threshold, "
                   "Tensor? threshold_tensor, ScalarType? label_dtype, float? min_confidence, "
                   "Tensor? min_confidence_tensor) -> (Tensor, Tensor)");
  define_primitive(m,
                   "score_patches_backward(Tensor grad, Tensor logits, int[] patch_size, str uncertainty) -> Tensor");
  define_primitive(m, "entropy_map(Tensor logits, bool normalize) -> Tensor");
  define_primitive(m, "entropy_map_backward(Tensor grad, Tensor logits, bool normalize) -> Tensor");
  define_primitive(m, "uncertainty_map(Tensor logits, str uncertainty) -> Tensor");
  define_primitive(m, "uncertainty_map_backward(Tensor grad, Tensor logits, str uncertainty) -> Tensor");
  define_primitive(m,
                   "pseudo_labels(Tensor logits, float? min_confidence, Tensor? min_confidence_tensor, "
                   "ScalarType label_dtype) -> (Tensor, Tensor)");
  define_composed(m,
                  "patch_scores(Tensor logits, int[] patch_size, str uncertainty, str score, float threshold, "
                  "Tensor? threshold_tensor) -> Tensor");
}

ENTMASK_LIBRARY_DEVICES(devices)
ENTMASK_LIBRARY_COMPOSED(composed)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) {
  m.impl("score_patches", score_patches_autograd);
  m.impl("score_patches_backward", score_patches_backward_autograd);
  m.impl("entropy_map", entropy_map_autograd);
  m.impl("entropy_map_backward", entropy_map_backward_autograd);
  m.impl("uncertainty_map", uncertainty_map_autograd);
  m.impl("uncertainty_map_backward", uncertainty_map_backward_autograd);
  m.impl("pseudo_labels", pseudo_labels_autograd);
}

}  // namespace entmask::ops

// Which patches are selected, and the calls that mask them.
#include <ATen/Functions.h>

#include <cmath>

#include "ops.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

// ---------------------------------------------------------------- select_patches

// The arguments that say which patches are selected.
struct Selection {
  optional<double> ratio;
  const OptionalTensor& ratio_tensor;
  optional<double> min_score;
  const OptionalTensor& min_score_tensor;
  int64_t min_patches;
  string_view order;
  double hint;
  string_view scope;

  NumberArgument ratio_argument() const { return {"ratio", ratio, ratio_tensor, true, true}; }
  NumberArgument min_score_argument() const { return {"min_score", min_score, min_score_tensor, false, false}; }
  bool by_ratio() const { return !min_score_argument().given(); }
};

void check_selection(const Selection& s, const c10::SymInt& images, const at::Device& device) {
  const NumberArgument ratio = s.ratio_argument(), min_score = s.min_score_argument();
  TORCH_CHECK_VALUE(!(ratio.given() && min_score.given()), "ratio and min_score exclude each other: got both");
  TORCH_CHECK_VALUE(s.min_patches >= 0, "min_patches must be >= 0, got ", s.min_patches);
  TORCH_CHECK_VALUE(s.min_patches == 0 || min_score.given(),
                    "min_patches needs min_score: with ratio the number is exact. Got ", s.min_patches);
  TORCH_CHECK_VALUE(s.order == "highest" || s.order == "lowest", "order must be 'highest' or 'lowest', got '", s.order,
                    "'");
  TORCH_CHECK_VALUE(s.scope == "image" || s.scope == "batch", "scope must be 'image' or 'batch', got '", s.scope, "'");
  check_fraction(s.hint, "hint");
  for (const NumberArgument& n : {ratio, min_score}) {
    check_number(n, images, device);
    TORCH_CHECK_VALUE(
        s.scope == "image" || !n.per_image(), n.name,
        " must be a number or a 0-d tensor with scope='batch', where all images are one row, got a tensor "
        "of shape ",
        n.is_tensor() ? n.tensor->sym_sizes() : c10::SymIntArrayRef());
  }
}

// k = max(1, floor(ratio P + 1e-6)) patches of P, 0 for a ratio of 0 or NaN.
int64_t count_of(double ratio, int64_t length) {
  return ratio > 0 ? std::min(length, std::max<int64_t>(1, share(ratio, length))) : 0;
}

// p.k, or p.ratio with the tensor that the kernel reads.
Tensor set_count(const NumberArgument& ratio, SelectParams& p, const at::Device& device) {
  if (!ratio.given()) {
    p.k = count_of(0.75, p.length);
    return {};
  }
  if (const auto value = known_value(ratio)) {
    p.k = count_of(*value, p.length);
    return {};
  }
  const Tensor& t = *ratio.tensor;
  if (t.dim() == 0 && t.device().is_cpu()) {  // an integer: the number of patches itself
    p.k = std::clamp<int64_t>(t.item<int64_t>(), 0, p.length);
    return {};
  }
  if (device.is_cpu() && !c10::isIntegralType(t.scalar_type(), false)) {
    const Tensor fractions = t.detach().to(at::kDouble).contiguous();
    const Tensor counts = at::empty({t.size(0)}, t.options().dtype(at::kLong).requires_grad(false));
    for (int64_t i = 0; i < t.size(0); ++i) {
      const double value = fractions.const_data_ptr<double>()[i];
      if (!std::isnan(value)) check_fraction(value, "ratio");
      counts.mutable_data_ptr<int64_t>()[i] = count_of(value, p.length);
    }
    p.ratio = {0, counts.const_data_ptr(), 1, Dtype::int64};
    return counts;
  }
  const HeldNumber held = make_number(ratio, at::kLong, device);
  p.ratio = held.number;
  return held.memory;
}

void check_scores(const Tensor& scores) {
  float_dtype(scores, "scores");
  TORCH_CHECK_VALUE(scores.layout() == at::kStrided, "scores must be a dense tensor, got layout ", scores.layout());
  TORCH_CHECK_VALUE(scores.dim() >= 2, "scores must have shape (N, *G), one value per patch, got ", scores.sym_sizes());
  check_axes(scores, "scores");
}

Tensor select_patches_kernel(const Tensor& scores, optional<double> ratio, const OptionalTensor& ratio_tensor,
                             optional<double> min_score, const OptionalTensor& min_score_tensor, int64_t min_patches,
                             string_view order, double hint, string_view scope) {
  check_scores(scores);
  const Selection s{ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint, scope};
  check_selection(s, scores.sym_size(0), scores.device());
  const Tensor ranked = scores.to(compute_dtype(scores)).contiguous();
  const Tensor patches = at::empty(scores.sizes(), scores.options().dtype(at::kBool));
  SelectParams p{};
  p.rows = scope == "batch" ? 1 : scores.size(0);
  p.length = p.rows > 0 ? scores.numel() / p.rows : 0;
  const HeldNumber limit = make_number(s.min_score_argument(), ranked.scalar_type(), scores.device());
  const Tensor counts = s.by_ratio() ? set_count(s.ratio_argument(), p, scores.device()) : Tensor();
  p.hinted = share(hint, p.length);
  if (patches.numel() == 0) return patches;
  p.scores = ranked.const_data_ptr();
  p.patches = patches.mutable_data_ptr<bool>();
  p.is_double = ranked.scalar_type() == at::kDouble;
  p.by_ratio = s.by_ratio();
  p.lowest = order == "lowest";
  p.min_score = limit.number;
  p.min_patches = min_patches;
  run(p, scores.device());
  return patches;
}

Tensor select_patches(const Tensor& scores, const Selection& s) {
  static const auto op = dispatched<decltype(select_patches_kernel)>("entmask::select_patches");
  return op.call(scores, s.ratio, s.ratio_tensor, s.min_score, s.min_score_tensor, s.min_patches, s.order, s.hint,
                 s.scope);
}

// A choice has no derivative.
Tensor select_patches_autograd(const Tensor& scores, optional<double> ratio, const OptionalTensor& ratio_tensor,
                               optional<double> min_score, const OptionalTensor& min_score_tensor, int64_t min_patches,
                               string_view order, double hint, string_view scope) {
  at::AutoDispatchBelowADInplaceOrView below;
  return select_patches(scores, {ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint, scope});
}

// ---------------------------------------------------------------- composed
//
// A composed op checks all of its arguments before its first part runs.

void check_masking(const Tensor& image, double fill, optional<at::ScalarType> mask_dtype) {
  check_image_like(image, "image", "C");
  check_mask_dtype(image, mask_dtype);
  bits_of(at::Scalar(fill), "fill", image.scalar_type());
}

using Masked = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // image, mask, patches, scores

Masked mask_by_scores(const Tensor& image, const Tensor& scores, at::IntArrayRef patch_size, const Selection& selection,
                      double fill, optional<at::ScalarType> mask_dtype) {
  const Tensor patches = select_patches(scores, selection);
  auto [out, mask] = patch_where(patches, at::Scalar(fill), std::nullopt, std::nullopt, image, patch_size,
                                 mask_dtype.value_or(image.scalar_type()));
  return {out, mask, patches, scores};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> patch_mask(
    const Tensor& image, const Tensor& logits, at::IntArrayRef patch_size, optional<double> ratio,
    const OptionalTensor& ratio_tensor, string_view uncertainty, string_view score, double threshold,
    const OptionalTensor& threshold_tensor, optional<double> min_score, const OptionalTensor& min_score_tensor,
    int64_t min_patches, string_view order, double hint, string_view scope, double fill,
    optional<at::ScalarType> mask_dtype, optional<at::ScalarType> label_dtype, optional<double> min_confidence,
    const OptionalTensor& min_confidence_tensor) {
  check_masking(image, fill, mask_dtype);
  check_logits(logits);
  check_same_device(image, "image", logits, "logits");
  check_same_image_sizes(image, "image", logits, "logits");
  const Selection selection{ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint, scope};
  check_selection(selection, logits.sym_size(0), logits.device());
  TORCH_CHECK_VALUE(
      scope == "image" || !threshold_tensor || threshold_tensor->dim() == 0,
      "threshold must be a number or a 0-d tensor with scope='batch', where all images are one row, got a "
      "tensor of shape ",
      threshold_tensor ? threshold_tensor->sym_sizes() : c10::SymIntArrayRef());
  auto [scores, labels] = score_patches(logits, patch_size, uncertainty, score, threshold, threshold_tensor,
                                        label_dtype, min_confidence, min_confidence_tensor);
  auto [out, mask, patches, ranked] = mask_by_scores(image, scores, patch_size, selection, fill, mask_dtype);
  return {out, mask, patches, ranked, labels};
}

Masked patch_mask_from_scores(const Tensor& image, const Tensor& scores, at::IntArrayRef patch_size,
                              optional<double> ratio, const OptionalTensor& ratio_tensor, optional<double> min_score,
                              const OptionalTensor& min_score_tensor, int64_t min_patches, string_view order,
                              double hint, string_view scope, double fill, optional<at::ScalarType> mask_dtype) {
  check_masking(image, fill, mask_dtype);
  check_scores(scores);
  check_same_device(image, "image", scores, "scores");
  const auto shape = grid_shape(image, patch_size);
  check_shape(scores, "scores", shape, ", one value per patch, for image ", image.sym_sizes(), " and patch_size ",
              patch_size);
  const Selection selection{ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint, scope};
  check_selection(selection, image.sym_size(0), image.device());
  return mask_by_scores(image, scores.to(compute_dtype(scores)), patch_size, selection, fill, mask_dtype);
}

Masked random_patch_mask(const Tensor& image, at::IntArrayRef patch_size, optional<double> ratio,
                         const OptionalTensor& ratio_tensor, bool shared, double fill,
                         optional<at::ScalarType> mask_dtype, optional<at::Generator> generator) {
  check_masking(image, fill, mask_dtype);
  auto shape = grid_shape(image, patch_size);
  const OptionalTensor none;
  const Selection selection{ratio, ratio_tensor, std::nullopt, none, 0, "highest", 0, "image"};
  check_selection(selection, image.sym_size(0), image.device());
  const auto whole = shape;
  if (shared) shape[0] = 1;
  const auto options = image.options().dtype(at::kFloat);
  Tensor scores = generator ? at::rand_symint(shape, generator, options) : at::rand_symint(shape, options);
  if (shared) scores = scores.expand_symint(whole);
  return mask_by_scores(image, scores, patch_size, selection, fill, mask_dtype);
}

void devices(torch::Library& m) { m.impl("select_patches", select_patches_kernel); }
void composed(torch::Library& m) {
  m.impl("patch_mask", patch_mask);
  m.impl("patch_mask_from_scores", patch_mask_from_scores);
  m.impl("random_patch_mask", random_patch_mask);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(entmask, m) {
#define SELECTION                                                                                         \
  "float? ratio, Tensor? ratio_tensor, float? min_score, Tensor? min_score_tensor, int min_patches, str " \
  "order, float hint, str scope"
  define_primitive(m, "select_patches(Tensor scores, " SELECTION ") -> Tensor");
  define_composed(m,
                  "patch_mask(Tensor image, Tensor logits, int[] patch_size, float? ratio, Tensor? ratio_tensor, "
                  "str uncertainty, str score, float threshold, Tensor? threshold_tensor, float? min_score, "
                  "Tensor? min_score_tensor, int min_patches, str order, float hint, str scope, float fill, "
                  "ScalarType? mask_dtype, ScalarType? label_dtype, float? min_confidence, "
                  "Tensor? min_confidence_tensor) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  define_composed(m, "patch_mask_from_scores(Tensor image, Tensor scores, int[] patch_size, " SELECTION
                     ", float fill, ScalarType? mask_dtype) -> (Tensor, Tensor, Tensor, Tensor)");
  define_composed(m,
                  "random_patch_mask(Tensor image, int[] patch_size, float? ratio, Tensor? ratio_tensor, bool shared, "
                  "float fill, ScalarType? mask_dtype, Generator? generator) -> (Tensor, Tensor, Tensor, Tensor)");
#undef SELECTION
}

ENTMASK_LIBRARY_DEVICES(devices)
ENTMASK_LIBRARY_COMPOSED(composed)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) { m.impl("select_patches", select_patches_autograd); }

}  // namespace entmask::ops

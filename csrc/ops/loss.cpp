// The consistency loss and its gradient. Saved for backward: the inputs and 4 + 3 K sums, or 4 + 6 K.
#include <ATen/Functions.h>

#include <cmath>

#include "loss_backward.h"
#include "ops.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

struct Weights {
  double mask, visible, ce, dice, smooth, offset;
};

void check_weight(double value, const char* name) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value >= 0, name, " must be finite and >= 0, got ", value);
}

int64_t count_sums(const LossParams& p) { return 4 + (p.dice_each ? 6 : 3) * p.classes; }

// What the kernels read beside the logits; keeps converted copies alive.
struct Inputs {
  LossParams params;
  Tensor patches, class_weight;
};

Inputs check_inputs(const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                    at::OptionalIntArrayRef patch_size, const OptionalTensor& class_weight, const Weights& w,
                    string_view dice_region) {
  check_logits(logits);
  check_same_device(logits, "logits", labels, "labels");
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kByte || labels.scalar_type() == at::kLong,
                   "labels must be uint8 or int64, got ", labels.scalar_type());
  check_shape(labels, "labels", pixel_shape(logits), " for logits ", logits.sizes());
  check_weight(w.mask, "mask_weight");
  check_weight(w.visible, "visible_weight");
  check_weight(w.ce, "ce_weight");
  check_weight(w.dice, "dice_weight");
  check_weight(w.smooth, "smooth");
  check_weight(w.offset, "denominator_offset");
  TORCH_CHECK_VALUE(dice_region == "all" || dice_region == "each", "dice_region must be 'all' or 'each', got '",
                    dice_region, "'");
  TORCH_CHECK_VALUE(!patches || patch_size,
                    "patches needs patch_size: a grid of patches does not tell their size. Got only patches");

  Inputs in{};
  LossParams& p = in.params;
  if (patch_size) {
    const auto shape = grid_shape(logits, *patch_size);  // checks it where there are no patches as well
    if (patches) {
      check_same_device(logits, "logits", *patches, "patches");
      TORCH_CHECK_TYPE(patches->scalar_type() == at::kBool, "patches must be bool, got ", patches->scalar_type());
      const bool shared = patches->dim() > 0 && patches->size(0) == 1;
      auto expected = shape;
      if (shared) expected[0] = 1;
      check_shape(*patches, "patches", expected, " (or 1 in place of N) for logits ", logits.sizes(),
                  " and patch_size ", *patch_size);
      in.patches = patches->contiguous();
      p.patches_stride = shared ? 0 : in.patches.stride(0);
      p.patches = in.patches.const_data_ptr<bool>();
    }
  }
  p.grid = patches ? make_grid(logits, *patch_size) : whole_image(logits);
  if (class_weight) {
    check_same_device(logits, "logits", *class_weight, "class_weight");
    float_dtype(*class_weight, "class_weight");
    TORCH_CHECK_VALUE(class_weight->dim() == 1 && class_weight->size(0) == logits.size(1),
                      "class_weight must have shape [", logits.size(1), "], one weight per class, got ",
                      class_weight->sizes());
    in.class_weight = class_weight->detach().to(compute_dtype(logits)).contiguous();
    // On CUDA the values are not looked at: that would wait for the device.
    if (in.class_weight.device().is_cpu()) {
      const Tensor given = class_weight->detach().to(at::kDouble).contiguous(), used = in.class_weight.to(at::kDouble);
      for (int64_t k = 0; k < given.numel(); ++k) {
        const double v = given.const_data_ptr<double>()[k], u = used.const_data_ptr<double>()[k];
        TORCH_CHECK_VALUE(std::isfinite(v) && v >= 0, "class_weight must be finite and >= 0, got ", v, " for class ",
                          k);
        TORCH_CHECK_VALUE(std::isfinite(u) && (u > 0 || v == 0), "class_weight must be 0 or a number that ",
                          in.class_weight.scalar_type(), ", in which the loss is computed, can hold, got ", v,
                          " for class ", k);
      }
    }
    p.class_weight = in.class_weight.const_data_ptr();
  }
  p.logits = logits.const_data_ptr();
  p.labels = labels.const_data_ptr();
  p.logits_stride = strides_of(logits);
  p.labels_stride = pixel_strides_of(labels);
  p.dtype = float_dtype(logits, "logits");
  p.label_dtype = labels.scalar_type() == at::kByte ? LabelDtype::uint8 : LabelDtype::int64;
  p.batch = logits.size(0);
  p.classes = logits.size(1);
  p.dice_each = dice_region == "each";
  p.mask_weight = w.mask;
  p.visible_weight = w.visible;
  p.ce_weight = w.ce;
  p.dice_weight = w.dice;
  p.smooth = w.smooth;
  p.denominator_offset = w.offset;
  return in;
}

LossResult consistency_loss_kernel(const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                                   at::OptionalIntArrayRef patch_size, double mask_weight, double visible_weight,
                                   const OptionalTensor& class_weight, double ce_weight, double dice_weight,
                                   double smooth, double denominator_offset, string_view dice_region) {
  const Inputs in =
      check_inputs(logits, labels, patches, patch_size, class_weight,
                   {mask_weight, visible_weight, ce_weight, dice_weight, smooth, denominator_offset}, dice_region);
  const auto options = logits.options().dtype(compute_dtype(logits));
  const Tensor total = at::empty({}, options), masked = at::empty({}, options), visible = at::empty({}, options),
               dice = at::empty({}, options);
  const Tensor sums = at::empty({count_sums(in.params)}, logits.options().dtype(at::kDouble));
  LossForwardParams p{};
  p.loss = in.params;
  p.sums = sums.mutable_data_ptr<double>();
  p.total = total.mutable_data_ptr();
  p.ce_masked = masked.mutable_data_ptr();
  p.ce_visible = visible.mutable_data_ptr();
  p.dice = dice.mutable_data_ptr();
  run(p, logits.device());
  return {total, masked, visible, dice, sums};
}

Tensor consistency_loss_backward_kernel(const OptionalTensor& grad_total, const OptionalTensor& grad_ce_masked,
                                        const OptionalTensor& grad_ce_visible, const OptionalTensor& grad_dice,
                                        const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                                        at::OptionalIntArrayRef patch_size, const OptionalTensor& class_weight,
                                        const Tensor& sums, double mask_weight, double visible_weight, double ce_weight,
                                        double dice_weight, double smooth, double denominator_offset,
                                        string_view dice_region) {
  const Inputs in =
      check_inputs(logits, labels, patches, patch_size, class_weight,
                   {mask_weight, visible_weight, ce_weight, dice_weight, smooth, denominator_offset}, dice_region);
  const auto pointer = [&](const OptionalTensor& g, const char* name) -> const void* {
    return g && g->defined() ? scalar_gradient(logits, *g, name, compute_dtype(logits)) : nullptr;
  };
  LossBackwardParams p{};
  p.loss = in.params;
  p.sums = saved_sums(logits, sums, count_sums(in.params));
  p.grad_total = pointer(grad_total, "grad_total");
  p.grad_ce_masked = pointer(grad_ce_masked, "grad_ce_masked");
  p.grad_ce_visible = pointer(grad_ce_visible, "grad_ce_visible");
  p.grad_dice = pointer(grad_dice, "grad_dice");
  const Tensor out = empty_like_format(logits);
  p.grad_logits = out.mutable_data_ptr();
  p.grad_logits_stride = strides_of(out);
  run(p, logits.device());
  return out;
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct ConsistencyLoss : torch::autograd::Function<ConsistencyLoss> {
  // The sums that backward reads are no output: compute() leaves them in `sums`.
  template <class F>
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& labels,
                               const OptionalTensor& patches, at::OptionalIntArrayRef patch_size,
                               const OptionalTensor& class_weight, const Weights& w, string_view dice_region,
                               Tensor* sums, const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    const LossResult result = compute();
    *sums = std::get<4>(result);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({logits, labels, patches.value_or(Tensor()), class_weight.value_or(Tensor()), *sums});
    if (patch_size) ctx->saved_data["patch_size"] = patch_size->vec();
    ctx->saved_data["dice_region"] = std::string(dice_region);
    ctx->saved_data["weights"] = std::vector<double>{w.mask, w.visible, w.ce, w.dice, w.smooth, w.offset};
    return {std::get<0>(result), std::get<1>(result), std::get<2>(result), std::get<3>(result)};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto maybe = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); };
    std::vector<int64_t> patch;
    at::OptionalIntArrayRef patch_size;
    if (saved[2].defined()) {
      patch = ctx->saved_data["patch_size"].toIntVector();
      patch_size = patch;
    }
    const auto w = ctx->saved_data["weights"].toDoubleVector();
    variable_list out(9);
    if (grads[0].defined() || grads[1].defined() || grads[2].defined() || grads[3].defined())
      out[0] = consistency_loss_backward(maybe(grads[0]), maybe(grads[1]), maybe(grads[2]), maybe(grads[3]), saved[0],
                                         saved[1], maybe(saved[2]), patch_size, maybe(saved[3]), saved[4], w[0], w[1],
                                         w[2], w[3], w[4], w[5], ctx->saved_data["dice_region"].toStringRef());
    return out;
  }
};

LossResult consistency_loss_autograd(const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                                     at::OptionalIntArrayRef patch_size, double mask_weight, double visible_weight,
                                     const OptionalTensor& class_weight, double ce_weight, double dice_weight,
                                     double smooth, double denominator_offset, string_view dice_region) {
  check_no_tangent("consistency_loss", logits);
  check_constant("consistency_loss", "class_weight", class_weight);
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return consistency_loss(logits, labels, patches, patch_size, mask_weight, visible_weight, class_weight, ce_weight,
                            dice_weight, smooth, denominator_offset, dice_region);
  };
  if (!wants_grad(logits)) return compute();
  const Weights w{mask_weight, visible_weight, ce_weight, dice_weight, smooth, denominator_offset};
  Tensor sums;
  const variable_list out =
      ConsistencyLoss::apply(logits, labels, patches, patch_size, class_weight, w, dice_region, &sums, compute);
  return {out[0], out[1], out[2], out[3], sums};
}

Tensor consistency_loss_backward_autograd(const OptionalTensor& grad_total, const OptionalTensor& grad_ce_masked,
                                          const OptionalTensor& grad_ce_visible, const OptionalTensor& grad_dice,
                                          const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                                          at::OptionalIntArrayRef patch_size, const OptionalTensor& class_weight,
                                          const Tensor& sums, double mask_weight, double visible_weight,
                                          double ce_weight, double dice_weight, double smooth,
                                          double denominator_offset, string_view dice_region) {
  const auto arguments = {grad_total,   grad_ce_masked,      grad_ce_visible, grad_dice, OptionalTensor(logits),
                          class_weight, OptionalTensor(sums)};
  return once_differentiable("consistency_loss_backward", arguments, [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return consistency_loss_backward(grad_total, grad_ce_masked, grad_ce_visible, grad_dice, logits, labels, patches,
                                     patch_size, class_weight, sums, mask_weight, visible_weight, ce_weight,
                                     dice_weight, smooth, denominator_offset, dice_region);
  });
}

void devices(torch::Library& m) {
  m.impl("consistency_loss", consistency_loss_kernel);
  m.impl("consistency_loss_backward", consistency_loss_backward_kernel);
}

}  // namespace

LossResult consistency_loss(const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                            at::OptionalIntArrayRef patch_size, double mask_weight, double visible_weight,
                            const OptionalTensor& class_weight, double ce_weight, double dice_weight, double smooth,
                            double denominator_offset, string_view dice_region) {
  static const auto op = dispatched<decltype(consistency_loss)>("entmask::consistency_loss");
  return op.call(logits, labels, patches, patch_size, mask_weight, visible_weight, class_weight, ce_weight, dice_weight,
                 smooth, denominator_offset, dice_region);
}

Tensor consistency_loss_backward(const OptionalTensor& grad_total, const OptionalTensor& grad_ce_masked,
                                 const OptionalTensor& grad_ce_visible, const OptionalTensor& grad_dice,
                                 const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                                 at::OptionalIntArrayRef patch_size, const OptionalTensor& class_weight,
                                 const Tensor& sums, double mask_weight, double visible_weight, double ce_weight,
                                 double dice_weight, double smooth, double denominator_offset,
                                 string_view dice_region) {
  static const auto op = dispatched<decltype(consistency_loss_backward)>("entmask::consistency_loss_backward");
  return op.call(grad_total, grad_ce_masked, grad_ce_visible, grad_dice, logits, labels, patches, patch_size,
                 class_weight, sums, mask_weight, visible_weight, ce_weight, dice_weight, smooth, denominator_offset,
                 dice_region);
}

TORCH_LIBRARY_FRAGMENT(entmask, m) {
  define_primitive(m,
                   "consistency_loss(Tensor logits, Tensor labels, Tensor? patches, int[]? patch_size, "
                   "float mask_weight, float visible_weight, Tensor? class_weight, float ce_weight, "
                   "float dice_weight, float smooth, float denominator_offset, str dice_region) "
                   "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  define_primitive(m,
                   "consistency_loss_backward(Tensor? grad_total, Tensor? grad_ce_masked, Tensor? grad_ce_visible, "
                   "Tensor? grad_dice, Tensor logits, Tensor labels, Tensor? patches, int[]? patch_size, "
                   "Tensor? class_weight, Tensor sums, float mask_weight, float visible_weight, float ce_weight, "
                   "float dice_weight, float smooth, float denominator_offset, str dice_region) -> Tensor");
}

ENTMASK_LIBRARY_DEVICES(devices)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) {
  m.impl("consistency_loss", consistency_loss_autograd);
  m.impl("consistency_loss_backward", consistency_loss_backward_autograd);
}

}  // namespace entmask::ops

// The ops' signatures, and what a device without kernels is told.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

TORCH_LIBRARY(entmask, m) {
  m.def(
      "patch_mask(Tensor image, Tensor logits, int[] patch_size, float? ratio, Tensor? ratio_tensor, str score, "
      "float threshold, Tensor? threshold_tensor, float? min_score, Tensor? min_score_tensor, int min_patches, str "
      "order, "
      "float hint, str scope, float fill, ScalarType? mask_dtype, ScalarType? label_dtype) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "patch_mask_from_scores(Tensor image, Tensor scores, int[] patch_size, float? ratio, Tensor? ratio_tensor, "
      "float? min_score, Tensor? min_score_tensor, int min_patches, str order, float hint, str scope, float fill, "
      "ScalarType? mask_dtype) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def("apply_mask(Tensor image, Tensor patches, int[] patch_size, float fill) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("patch_scores(Tensor logits, int[] patch_size, str score, float threshold, Tensor? threshold_tensor) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("patch_scores_backward(Tensor grad, Tensor logits, int[] patch_size) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("entropy_map(Tensor logits, bool normalize) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("entropy_map_backward(Tensor grad, Tensor logits, bool normalize) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "consistency_loss(Tensor logits, Tensor labels, Tensor? patches, int[]? patch_size, float mask_weight, "
      "Tensor? class_weight, float ce_weight, float dice_weight, float smooth, float denominator_offset) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "consistency_loss_backward(Tensor? grad_total, Tensor? grad_ce_masked, Tensor? grad_ce_visible, Tensor? "
      "grad_dice, "
      "Tensor logits, Tensor labels, Tensor? patches, int[]? patch_size, Tensor? class_weight, Tensor sums, "
      "float mask_weight, float ce_weight, float dice_weight, float smooth, float denominator_offset) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("shuffle_patches(Tensor x, int[] patch_size, Tensor permutation, bool inverse) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

namespace entmask::ops {
namespace {

#ifdef ENTMASK_CUDA
constexpr const char* kBuild = "CPU and CUDA";
bool has_kernels(const c10::Device& device) { return device.is_cpu() || device.is_cuda(); }
#else
constexpr const char* kBuild = "CPU only";
bool has_kernels(const c10::Device& device) { return device.is_cpu(); }
#endif

// Every device that has no kernels of its own in this build, and every layout but the strided one.
void no_kernels(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (const c10::IValue& argument : *stack) {
    if (!argument.isTensor() || !argument.toTensor().defined()) continue;
    const at::Tensor& t = argument.toTensor();
    TORCH_CHECK_VALUE(t.layout() == at::kStrided, op.schema().name(), " takes dense tensors, got one of layout ",
                      t.layout());
    TORCH_CHECK_NOT_IMPLEMENTED(has_kernels(t.device()), op.schema().name(), " got a tensor on ", t.device(),
                                ", but this build of entmask_ext has kernels for ", kBuild,
                                "; `python -m entmask_ext` says how it was built");
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(), " has no kernel for these tensors");
}

}  // namespace
}  // namespace entmask::ops

TORCH_LIBRARY_IMPL(entmask, CompositeExplicitAutograd, m) {
  for (const char* name :
       {"patch_mask", "patch_mask_from_scores", "apply_mask", "patch_scores", "patch_scores_backward", "entropy_map",
        "entropy_map_backward", "consistency_loss", "consistency_loss_backward", "shuffle_patches"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&entmask::ops::no_kernels>());
}

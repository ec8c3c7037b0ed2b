#include "register.h"

#include <ATen/core/stack.h>

#include <string>

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

void define_composed(torch::Library& m, const char* schema) { m.def(schema, {at::Tag::pt2_compliant_tag}); }

void define_primitive(torch::Library& m, const char* schema) {
  m.def(schema, {at::Tag::pt2_compliant_tag});
  const std::string name(schema, std::string_view(schema).find('('));
  m.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd,
                                       torch::CppFunction::makeFromBoxedFunction<&no_kernels>()));
}

}  // namespace entmask::ops

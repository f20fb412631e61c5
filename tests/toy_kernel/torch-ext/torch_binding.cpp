#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>

#include "../toy_cpu/toy.h"
#include "registration.h"

namespace {

using torch::stable::Tensor;

void increment(Tensor values) { toy::increment(static_cast<float*>(values.data_ptr()), values.numel()); }

#if defined(CUDA_KERNEL)
void increment_cuda(Tensor values) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(values.get_device_index(), &stream)) throw std::runtime_error("no stream");
  toy::increment_cuda(static_cast<float*>(values.data_ptr()), values.numel(), stream);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) { ops.def("increment(Tensor(a!) values) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { ops.impl("increment", TORCH_BOX(&increment)); }

#if defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) { ops.impl("increment", TORCH_BOX(&increment_cuda)); }
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)

// The schemas of the ops on hidden states, and that CUDA tensors have them.
#include "bind_hidden.h"

#include <torch/csrc/stable/library.h>

// The extra level lets the name and the key be macros.
#define MAXSIM_FRAGMENT(name, library) STABLE_TORCH_LIBRARY_FRAGMENT(name, library)
#define MAXSIM_IMPLEMENTATION(name, key, library) STABLE_TORCH_LIBRARY_IMPL(name, key, library)

MAXSIM_FRAGMENT(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "hidden_forward(Tensor queries, Tensor hidden, Tensor weight, Tensor? bias, Tensor? document_mask, bool "
      "normalize, "
      "bool with_argmax, int part_bytes) -> (Tensor, Tensor)");
  ops.def("hidden_project(Tensor hidden, Tensor weight, Tensor? bias, bool normalize) -> (Tensor, Tensor)");
  ops.def("hidden_chain(Tensor(a!) grad, Tensor? projected, Tensor? factors, bool with_sum) -> Tensor");
}

#if defined(CUDA_KERNEL)
MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, CUDA, ops) {
  ops.impl("hidden_forward", TORCH_BOX(&maxsim::hidden_forward_cuda));
  ops.impl("hidden_project", TORCH_BOX(&maxsim::hidden_project_cuda));
  ops.impl("hidden_chain", TORCH_BOX(&maxsim::hidden_chain_cuda));
}
#endif

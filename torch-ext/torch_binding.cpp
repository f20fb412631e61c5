// Registers the ops.
#include "torch_binding.h"

#include <torch/csrc/stable/library.h>

#include "registration.h"

namespace {

int64_t available_paths() {
#if defined(CUDA_KERNEL)
  return maxsim::available_paths_cpu() | maxsim::available_paths_cuda();
#else
  return maxsim::available_paths_cpu();
#endif
}

}  // namespace

#define MAXSIM_PROBLEM_SCHEMA                                                                                  \
  "Tensor queries, Tensor documents, Tensor? query_offsets, Tensor? document_offsets, Tensor? query_lengths, " \
  "Tensor? document_lengths, Tensor? query_mask, Tensor? document_mask, Tensor? pair_queries, "                \
  "Tensor? pair_documents"

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("forward(" MAXSIM_PROBLEM_SCHEMA ", bool normalize, float empty_score, int path) -> Tensor");
  ops.def("forward_argmax(" MAXSIM_PROBLEM_SCHEMA
          ", bool normalize, float empty_score, int path, SymInt argmax_width, int backward_mode) -> (Tensor, Tensor)");
  ops.def("backward(Tensor grad_scores, Tensor argmax, " MAXSIM_PROBLEM_SCHEMA
          ", bool normalize, bool need_queries, bool need_documents, int backward_mode, int path) -> (Tensor, Tensor)");
  ops.def("available_paths() -> int");
  ops.def("default_path(Tensor like) -> int");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CompositeExplicitAutograd, ops) {
  ops.impl("available_paths", TORCH_BOX(&available_paths));
}

#define MAXSIM_REGISTER(key, device)                                         \
  STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, key, ops) {         \
    ops.impl("forward", TORCH_BOX(&maxsim::forward_##device));               \
    ops.impl("forward_argmax", TORCH_BOX(&maxsim::forward_argmax_##device)); \
    ops.impl("backward", TORCH_BOX(&maxsim::backward_##device));             \
    ops.impl("default_path", TORCH_BOX(&maxsim::default_path_##device));     \
  }

MAXSIM_REGISTER(CPU, cpu)
#if defined(CUDA_KERNEL)
MAXSIM_REGISTER(CUDA, cuda)
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)

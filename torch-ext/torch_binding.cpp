// Registers the ops.
#include "torch_binding.h"

#include <torch/csrc/stable/library.h>

#include "bind_quantised.h"
#include "registration.h"

namespace {

int64_t available_paths() {
#if defined(CUDA_KERNEL)
  return maxsim::available_paths_cpu() | maxsim::available_paths_cuda();
#elif defined(METAL_KERNEL)
  return maxsim::available_paths_cpu() | maxsim::available_paths_mps();
#else
  return maxsim::available_paths_cpu();
#endif
}

// `forward` of padded tokens and no option. Each argument of an op costs the host, whether it was given or not.
template <auto* forward>
maxsim::Tensor plain(const maxsim::Tensor& queries, const maxsim::Tensor& documents) {
  const maxsim::MaybeTensor none;
  return forward(queries, documents, none, none, none, none, none, none, none, none, /*normalize=*/false,
                 /*empty_score=*/0.0, /*path=*/0, /*allow_tf32=*/false, /*longest_query=*/-1);
}

}  // namespace

#define MAXSIM_PROBLEM_SCHEMA                                                                                          \
  "Tensor queries, Tensor documents, Tensor? query_offsets, Tensor? document_offsets, Tensor? query_lengths, Tensor? " \
  "document_lengths, Tensor? query_mask, Tensor? document_mask, Tensor? pair_queries, Tensor? pair_documents"

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("forward(" MAXSIM_PROBLEM_SCHEMA
          ", bool normalize, float empty_score, int path, bool allow_tf32, SymInt longest_query=-1) -> Tensor");
  ops.def("forward_plain(Tensor queries, Tensor documents) -> Tensor");
  ops.def("forward_argmax(" MAXSIM_PROBLEM_SCHEMA
          ", bool normalize, float empty_score, int path, bool allow_tf32, SymInt argmax_width, int backward_mode) -> "
          "(Tensor, Tensor)");
  ops.def("backward(Tensor grad_scores, Tensor argmax, " MAXSIM_PROBLEM_SCHEMA
          ", bool normalize, bool need_queries, bool need_documents, int backward_mode, int path) -> (Tensor, Tensor)");
  ops.def("quantised_forward(" MAXSIM_PROBLEM_SCHEMA
          ", Tensor? query_scale, Tensor? document_scale, Tensor? document_minimum, int query_block, "
          "int document_block, int document_bits, float empty_score, int path, SymInt argmax_width) -> (Tensor, "
          "Tensor)");
  ops.def("available_paths() -> int");
  ops.def("default_path(Tensor like) -> int");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CompositeExplicitAutograd, ops) {
  ops.impl("available_paths", TORCH_BOX(&available_paths));
}

#define MAXSIM_REGISTER(key, device)                                         \
  STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, key, ops) {         \
    ops.impl("forward", TORCH_BOX(&maxsim::forward_##device));               \
    ops.impl("forward_plain", TORCH_BOX(&plain<&maxsim::forward_##device>)); \
    ops.impl("forward_argmax", TORCH_BOX(&maxsim::forward_argmax_##device)); \
    ops.impl("backward", TORCH_BOX(&maxsim::backward_##device));             \
    ops.impl("default_path", TORCH_BOX(&maxsim::default_path_##device));     \
  }

MAXSIM_REGISTER(CPU, cpu)
#if defined(CUDA_KERNEL)
MAXSIM_REGISTER(CUDA, cuda)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
  ops.impl("quantised_forward", TORCH_BOX(&maxsim::quantised_forward_cuda));
}
#elif defined(METAL_KERNEL)
MAXSIM_REGISTER(MPS, mps)
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)

// The schemas of the ops that keep the best documents of each query, and that CUDA tensors have them.
#include "bind_ranking.h"

#include <torch/csrc/stable/library.h>

// The extra level lets the name and the key be macros.
#define MAXSIM_FRAGMENT(name, library) STABLE_TORCH_LIBRARY_FRAGMENT(name, library)
#define MAXSIM_IMPLEMENTATION(name, key, library) STABLE_TORCH_LIBRARY_IMPL(name, key, library)

MAXSIM_FRAGMENT(TORCH_EXTENSION_NAME, ops) {
  ops.def("rank(Tensor? keys, Tensor scores, int first, int k, bool largest) -> Tensor");
  ops.def("unrank(Tensor keys, int k, bool largest) -> (Tensor, Tensor)");
}

#if defined(CUDA_KERNEL)
MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, CUDA, ops) {
  ops.impl("rank", TORCH_BOX(&maxsim::rank_cuda));
  ops.impl("unrank", TORCH_BOX(&maxsim::unrank_cuda));
}
#endif

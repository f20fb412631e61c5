// The ops that keep the best documents of each query.
#pragma once

#include "torch_binding.h"

namespace maxsim {

Tensor rank_cuda(const MaybeTensor& keys, const Tensor& scores, int64_t first, int64_t k, bool largest);
std::tuple<Tensor, Tensor> unrank_cuda(const Tensor& keys, int64_t k, bool largest);

}  // namespace maxsim

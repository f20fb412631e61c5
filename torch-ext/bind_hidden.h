// The ops on hidden states.
#pragma once

#include "torch_binding.h"

namespace maxsim {

std::tuple<Tensor, Tensor> hidden_forward_cuda(const Tensor& queries, const Tensor& hidden, const Tensor& weight,
                                               const MaybeTensor& bias, const MaybeTensor& document_mask,
                                               bool normalize, bool with_argmax, int64_t part_bytes);
std::tuple<Tensor, Tensor> hidden_project_cuda(const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias,
                                               bool normalize);
Tensor hidden_chain_cuda(Tensor grad, const MaybeTensor& projected, const MaybeTensor& factors, bool with_sum);

}  // namespace maxsim

// From the arguments of the op on quantised documents to a Problem.
#include "bind_quantised.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>

namespace maxsim {
namespace {

using torch::headeronly::ScalarType;

TokenFactor bind_factor(const MaybeTensor& factor, const Tensor& tokens, int64_t block, const std::string& name) {
  TokenFactor out;
  if (!factor) return out;
  const auto require = [&](bool holds, const char* rule) {
    if (!holds) throw std::runtime_error(name + rule);
  };
  int32_t type = 0, expected = 0;
  aoti_torch_get_device_type(factor->get(), &type);
  aoti_torch_get_device_type(tokens.get(), &expected);
  require(factor->scalar_type() == ScalarType::Float, " must be float32");
  require(type == expected && factor->get_device_index() == tokens.get_device_index(),
          " must be on the device of its tokens");
  require(block >= 1, "_block must be at least 1");
  out.data = static_cast<const float*>(factor->const_data_ptr());
  out.block = block;
  if (factor->dim() == 0) return out;
  const int64_t dims = tokens.dim() - 1;  // of tokens
  bool matches = factor->dim() == dims && factor->size(dims - 1) == (tokens.size(dims - 1) + block - 1) / block;
  for (int64_t i = 0; matches && i + 1 < dims; ++i) matches = factor->size(i) == tokens.size(i);
  require(matches, " must be [], or have the token shape with one entry for each block of tokens");
  out.block_stride = factor->stride(dims - 1);
  if (dims > 1) out.segment_stride.outer = factor->stride(0);
  if (dims > 2) out.segment_stride.inner = factor->stride(1);
  return out;
}

}  // namespace

BoundProblem bind_quantised(const ProblemArguments& arguments, const MaybeTensor& query_scale,
                            const MaybeTensor& document_scale, const MaybeTensor& document_minimum, int64_t query_block,
                            int64_t document_block, double empty_score, int64_t argmax_width) {
  if (arguments.document_bits != 8 && arguments.document_bits != 1)
    throw std::runtime_error("document_bits must be 8 or 1; got " + std::to_string(arguments.document_bits));
  BoundProblem bound = bind_problem(arguments, false, empty_score, argmax_width < 0 ? kNoArgmax : argmax_width);
  Segments& documents = bound.problem.documents;
  bound.problem.queries.scale = bind_factor(query_scale, arguments.queries, query_block, "query_scale");
  documents.scale = bind_factor(document_scale, arguments.documents, document_block, "document_scale");
  documents.minimum = bind_factor(document_minimum, arguments.documents, document_block, "document_minimum");
  return bound;
}

Tensor new_argmax_or_nothing(const BoundProblem& bound, const Tensor& like) {
  if (bound.problem.argmax_width != kNoArgmax) return new_argmax(bound, like);
  const int64_t nothing = 0;
  return new_tensor(like, &nothing, 1, aoti_torch_dtype_int32());
}

}  // namespace maxsim

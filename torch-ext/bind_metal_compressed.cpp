// Ops on compressed documents, for MPS tensors: centroids with residuals, and eight bits a feature.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>

#include "bind_metal.h"
#include "bind_quantised.h"
#include "bind_residual.h"

namespace maxsim {
namespace {

using metal_backend::Compression;
using metal_backend::Element;
using metal_backend::Format;
using torch::headeronly::ScalarType;

void require(bool holds, const char* rule) {
  if (!holds) throw std::runtime_error(rule);
}

Element element_of(const Tensor& t, const char* name) {
  const DType dtype = dtype_of(t, name);
  return dtype == DType::f16 ? Element::f16 : dtype == DType::bf16 ? Element::bf16 : Element::f32;
}

// Scores and argmax of a bound problem, whose queries and documents have these extents and masks.
std::tuple<Tensor, Tensor> run(const BoundProblem& bound, const Tensor& queries, const MaybeTensor& query_mask,
                               const MaybeTensor& document_extents, const MaybeTensor& document_mask,
                               const Compression& compression, MetalBuffers& buffers) {
  auto [scores, argmax] = new_results(bound, queries, bound.problem.argmax_width != kNoArgmax);
  buffers.set(Role::queries, queries);
  buffers.set(Role::query_mask, query_mask);
  buffers.set(Role::document_extents, document_extents);
  buffers.set(Role::document_mask, document_mask);
  buffers.set(Role::scores, scores);
  buffers.set(Role::argmax, argmax);
  buffers.run(metal_backend::plan_forward(bound.problem, buffers.token_offsets(), compression), queries);
  return {scores, argmax};
}

// A factor as the kernel reads it, one for each token.
Tensor by_token(const MaybeTensor& factor, int64_t block) {
  require(factor.has_value() && factor->dim() > 0 && block == 1,
          "MPS tensors take document_scale and document_minimum with one entry for each token");
  return torch::stable::contiguous(*factor);
}

}  // namespace

std::tuple<Tensor, Tensor> residual_forward_mps(MAXSIM_RESIDUAL_PARAMETERS) {
  require(!pair_queries, "pair lists of residual documents have no Metal kernel");
  const BoundResiduals call = bind_residuals(MAXSIM_RESIDUAL_ARGUMENTS);
  const Residuals& r = call.residuals;
  require(r.codes.bytes >= 4, "codes must be int32 or int64 on mps");
  Compression compression;
  compression.format = Format::residual;
  compression.normalize_queries = normalize_queries;
  compression.normalize_documents = normalize_documents;
  compression.params = {r.row_bytes,
                        r.centroid_count,
                        r.nbits,
                        r.codes.bytes == 8,
                        false,
                        false,
                        element_of(centroids, "centroids"),
                        element_of(bucket_weights, "bucket_weights")};
  MetalBuffers buffers;
  buffers.set(Role::documents, call.bytes);
  buffers.set(Role::codes, call.codes);
  buffers.set(Role::table, call.centroids);
  buffers.set(Role::second, call.weights);
  return run(call.bound, queries, query_mask, document_offsets ? document_offsets : document_lengths, document_mask,
             compression, buffers);
}

std::tuple<Tensor, Tensor> quantised_forward_mps(MAXSIM_QUANTISED_PARAMETERS) {
  require(path == 0 || path == kMetalPath, "this path does not run on MPS tensors");
  require(document_bits == 8, "MPS tensors take documents of eight bits a feature, not of one");
  require(!query_offsets && !query_lengths && !pair_queries && queries.dim() == 3 && documents.dim() <= 3,
          "MPS tensors take padded queries without lengths against all documents");
  require(!query_scale, "MPS tensors take queries as floats");
  const bool is_signed = documents.scalar_type() == ScalarType::Char;
  require(is_signed || documents.scalar_type() == ScalarType::Byte, "MPS tensors take int8 or uint8 documents");
  BoundProblem bound = bind_quantised(MAXSIM_QUANTISED_ARGUMENTS);
  require(argmax_width < 0 || argmax_width == queries.size(1), "argmax_width must be the length of the queries");
  const Tensor bytes = torch::stable::contiguous(documents);
  const Tensor table = by_token(document_scale, document_block);
  const MaybeTensor second = document_minimum ? MaybeTensor(by_token(document_minimum, document_block)) : MaybeTensor();
  Compression compression;
  compression.format = Format::bytes;
  compression.params = {queries.size(2), 0, 8, false, is_signed, second.has_value(), Element::f32, Element::f32};
  MetalBuffers buffers;
  buffers.set(Role::documents, bytes);
  buffers.set(Role::table, table);
  buffers.set(Role::second, second);
  bound.problem.documents =
      bind_documents({bytes, 1, document_offsets, document_lengths, document_mask}, queries.size(2));
  return run(bound, queries, query_mask, document_offsets ? document_offsets : document_lengths, document_mask,
             compression, buffers);
}

}  // namespace maxsim

#ifndef MAXSIM_METAL_KEY
#define MAXSIM_METAL_KEY MPS
#endif
MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, MAXSIM_METAL_KEY, ops) {
  ops.impl("residual_forward", TORCH_BOX(&maxsim::residual_forward_mps));
  ops.impl("quantised_forward", TORCH_BOX(&maxsim::quantised_forward_mps));
}

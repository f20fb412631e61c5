// Ops on compressed documents, for MPS tensors: centroids with residuals, and eight bits a feature.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>

#include "bind_metal.h"
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

std::tuple<Tensor, Tensor> bytes_forward_mps(const Tensor& queries, const Tensor& values, const Tensor& scales,
                                             const MaybeTensor& minima, const MaybeTensor& document_offsets,
                                             const MaybeTensor& document_lengths, const MaybeTensor& query_mask,
                                             const MaybeTensor& document_mask, double empty_score, bool with_argmax) {
  const bool is_signed = values.scalar_type() == ScalarType::Char;
  require(is_signed || values.scalar_type() == ScalarType::Byte, "values must be int8 or uint8");
  require(queries.dim() == 3 && values.dim() >= 2 && values.size(values.dim() - 1) == queries.size(2),
          "values must have the queries' d");
  const int64_t tokens = queries.size(2) ? values.numel() / queries.size(2) : 0;
  require(scales.numel() == tokens && (!minima || minima->numel() == tokens),
          "scales and minima must have one entry for each document token");
  const Tensor bytes = torch::stable::contiguous(values), table = torch::stable::contiguous(scales);
  const MaybeTensor second = minima ? MaybeTensor(torch::stable::contiguous(*minima)) : MaybeTensor();
  Compression compression;
  compression.format = Format::bytes;
  compression.params = {queries.size(2),
                        0,
                        8,
                        false,
                        is_signed,
                        minima.has_value(),
                        element_of(scales, "scales"),
                        minima ? element_of(*minima, "minima") : Element::f32};
  MetalBuffers buffers;
  buffers.set(Role::documents, bytes);
  buffers.set(Role::table, table);
  buffers.set(Role::second, second);
  const MaybeTensor none;
  BoundProblem bound = bind_problem({queries, queries, none, none, none, none, query_mask, none, none, none}, false,
                                    empty_score, with_argmax ? queries.size(1) : kNoArgmax);
  bound.problem.documents =
      bind_documents({bytes, 1, document_offsets, document_lengths, document_mask}, queries.size(2));
  bound.problem.pairs = bound.problem.queries.count * bound.problem.documents.count;
  bound.score_shape[1] = bound.problem.documents.count;
  return run(bound, queries, query_mask, document_offsets ? document_offsets : document_lengths, document_mask,
             compression, buffers);
}

}  // namespace maxsim

#ifndef MAXSIM_METAL_KEY
#define MAXSIM_METAL_KEY MPS
#endif
MAXSIM_FRAGMENT(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "bytes_forward(Tensor queries, Tensor values, Tensor scales, Tensor? minima, Tensor? document_offsets, "
      "Tensor? document_lengths, Tensor? query_mask, Tensor? document_mask, float empty_score, bool with_argmax) -> "
      "(Tensor, Tensor)");
}

MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, MAXSIM_METAL_KEY, ops) {
  ops.impl("residual_forward", TORCH_BOX(&maxsim::residual_forward_mps));
  ops.impl("bytes_forward", TORCH_BOX(&maxsim::bytes_forward_mps));
}

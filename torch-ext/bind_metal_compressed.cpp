// Ops on compressed documents, for MPS tensors: centroids with residuals, and eight bits a feature.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>

#include "bind_metal.h"

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

bool is_index(const Tensor& t) { return t.scalar_type() == ScalarType::Int || t.scalar_type() == ScalarType::Long; }

IndexView view(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.scalar_type() == ScalarType::Long}; }

// Which tokens there are: `tokens` is contiguous, [Nd, Ld, …] with lengths or [T, …] with offsets.
struct DocumentTokens {
  const Tensor& tokens;
  int64_t trailing;  // dimensions of one token
  const MaybeTensor& offsets;
  const MaybeTensor& lengths;
  const MaybeTensor& mask;
};

Segments bind_documents(const DocumentTokens& d, int64_t dim) {
  Segments side;
  side.data = d.tokens.const_data_ptr();
  side.dim = dim;
  const int64_t leading = d.tokens.dim() - d.trailing;
  if (d.offsets) {
    require(leading == 1, "document_offsets go with packed documents, one row a token");
    require(!d.lengths, "document_lengths cannot be combined with document_offsets");
    require(is_index(*d.offsets) && d.offsets->dim() == 1 && d.offsets->size(0) >= 1,
            "document_offsets must be int32 or int64 [segments + 1]");
    side.extent = d.tokens.size(0);
    side.offsets = view(*d.offsets);
    side.count = d.offsets->size(0) - 1;
  } else {
    require(leading == 2, "documents must be padded, or packed with document_offsets");
    side.count = d.tokens.size(0);
    side.extent = d.tokens.size(1);
  }
  if (d.lengths) {
    require(is_index(*d.lengths) && d.lengths->dim() == 1 && d.lengths->size(0) == side.count,
            "document_lengths must be int32 or int64, one for each document");
    side.lengths = view(*d.lengths);
    side.lengths_stride.outer = d.lengths->stride(0);
  }
  if (d.mask) {
    bool matches = d.mask->scalar_type() == ScalarType::Bool && d.mask->dim() == leading;
    for (int64_t i = 0; matches && i < leading; ++i) matches = d.mask->size(i) == d.tokens.size(i);
    require(matches, "document_mask must be bool with one flag for each document token");
    side.mask = static_cast<const uint8_t*>(d.mask->const_data_ptr());
    side.mask_token_stride = d.mask->stride(leading - 1);
    if (leading == 2) side.mask_stride.outer = d.mask->stride(0);
  }
  return side;
}

// Scores [Nq, Nd] of padded queries [Nq, Lq, d], and their argmax [Nq, Nd, Lq], or [0].
std::tuple<Tensor, Tensor> run(const Tensor& queries, const MaybeTensor& query_mask, const DocumentTokens& documents,
                               const Compression& compression, double empty_score, bool with_argmax,
                               MetalBuffers& buffers) {
  require(queries.dim() == 3, "queries must be [Nq, Lq, d]");
  const MaybeTensor none;
  BoundProblem bound = bind_problem({queries, queries, none, none, none, none, query_mask, none, none, none}, false,
                                    empty_score, with_argmax ? queries.size(1) : kNoArgmax);
  bound.problem.documents = bind_documents(documents, queries.size(2));
  bound.problem.pairs = bound.problem.queries.count * bound.problem.documents.count;
  bound.score_shape[1] = bound.problem.documents.count;
  const int64_t nothing = 0;
  Tensor scores = new_scores(bound, queries);
  Tensor argmax = with_argmax ? new_argmax(bound, queries) : new_tensor(queries, &nothing, 1, aoti_torch_dtype_int32());
  buffers.set(Role::queries, queries);
  buffers.set(Role::query_mask, query_mask);
  buffers.set(Role::document_extents, documents.offsets ? documents.offsets : documents.lengths);
  buffers.set(Role::document_mask, documents.mask);
  buffers.set(Role::scores, scores);
  buffers.set(Role::argmax, argmax);
  buffers.run(metal_backend::plan_forward(bound.problem, buffers.token_offsets(), compression), queries);
  return {scores, argmax};
}

}  // namespace

std::tuple<Tensor, Tensor> residual_forward_mps(const Tensor& queries, const Tensor& codes, const Tensor& residuals,
                                                const MaybeTensor& document_offsets,
                                                const MaybeTensor& document_lengths, const MaybeTensor& query_mask,
                                                const MaybeTensor& document_mask, const Tensor& centroids,
                                                const Tensor& bucket_weights, int64_t nbits, bool normalize,
                                                double empty_score, bool with_argmax) {
  require(nbits == 1 || nbits == 2 || nbits == 4 || nbits == 8, "nbits must be 1, 2, 4 or 8");
  require(is_index(codes), "codes must be int32 or int64");
  require(queries.dim() == 3 && centroids.dim() == 2 && centroids.size(1) == queries.size(2),
          "centroids must be [C, d] with the queries' d");
  require(bucket_weights.dim() == 1 && bucket_weights.size(0) == int64_t{1} << nbits,
          "bucket_weights must be [2 ** nbits]");
  const int64_t row_bytes = (queries.size(2) * nbits + 7) / 8, last = residuals.dim() - 1;
  bool matches =
      residuals.scalar_type() == ScalarType::Byte && last == codes.dim() && residuals.size(last) == row_bytes;
  for (int64_t i = 0; matches && i < last; ++i) matches = residuals.size(i) == codes.size(i);
  require(matches, "residuals must be uint8 [*codes.shape, ceil(d * nbits / 8)]");
  const Tensor rows = torch::stable::contiguous(codes), bytes = torch::stable::contiguous(residuals),
               table = torch::stable::contiguous(centroids), weights = torch::stable::contiguous(bucket_weights);
  Compression compression;
  compression.format = Format::residual;
  compression.normalize_documents = normalize;
  compression.params = {row_bytes,
                        centroids.size(0),
                        static_cast<int32_t>(nbits),
                        codes.scalar_type() == ScalarType::Long,
                        false,
                        false,
                        element_of(centroids, "centroids"),
                        element_of(bucket_weights, "bucket_weights")};
  MetalBuffers buffers;
  buffers.set(Role::documents, bytes);
  buffers.set(Role::codes, rows);
  buffers.set(Role::table, table);
  buffers.set(Role::second, weights);
  return run(queries, query_mask, {bytes, 1, document_offsets, document_lengths, document_mask}, compression,
             empty_score, with_argmax, buffers);
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
  return run(queries, query_mask, {bytes, 1, document_offsets, document_lengths, document_mask}, compression,
             empty_score, with_argmax, buffers);
}

}  // namespace maxsim

#ifndef MAXSIM_METAL_KEY
#define MAXSIM_METAL_KEY MPS
#endif
// The extra level lets the name and the key be macros.
#define MAXSIM_FRAGMENT(name, library) STABLE_TORCH_LIBRARY_FRAGMENT(name, library)
#define MAXSIM_IMPLEMENTATION(name, key, library) STABLE_TORCH_LIBRARY_IMPL(name, key, library)

MAXSIM_FRAGMENT(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "residual_forward(Tensor queries, Tensor codes, Tensor residuals, Tensor? document_offsets, "
      "Tensor? document_lengths, Tensor? query_mask, Tensor? document_mask, Tensor centroids, Tensor bucket_weights, "
      "int nbits, bool normalize, float empty_score, bool with_argmax) -> (Tensor, Tensor)");
  ops.def(
      "bytes_forward(Tensor queries, Tensor values, Tensor scales, Tensor? minima, Tensor? document_offsets, "
      "Tensor? document_lengths, Tensor? query_mask, Tensor? document_mask, float empty_score, bool with_argmax) -> "
      "(Tensor, Tensor)");
}

MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, MAXSIM_METAL_KEY, ops) {
  ops.impl("residual_forward", TORCH_BOX(&maxsim::residual_forward_mps));
  ops.impl("bytes_forward", TORCH_BOX(&maxsim::bytes_forward_mps));
}

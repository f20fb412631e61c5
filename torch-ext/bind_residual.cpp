// The ops on centroids and residuals: their schemas, and what every backend checks.
#include "bind_residual.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>

namespace maxsim {
namespace {

using torch::headeronly::ScalarType;

void require(bool holds, const char* rule) {
  if (!holds) throw std::runtime_error(rule);
}

void require_same_device(const Tensor& t, const Tensor& like, const char* rule) {
  int32_t type = 0, expected = 0;
  aoti_torch_get_device_type(t.get(), &type);
  aoti_torch_get_device_type(like.get(), &expected);
  require(type == expected && t.get_device_index() == like.get_device_index(), rule);
}

// Through the dispatcher alone where it has to be: that takes longer than a kernel's launch.
Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

bool is_index(const Tensor& t) { return t.scalar_type() == ScalarType::Int || t.scalar_type() == ScalarType::Long; }

IndexView view(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.scalar_type() == ScalarType::Long}; }

CodeView code_view(const Tensor& codes) {
  const void* data = codes.const_data_ptr();
  switch (codes.scalar_type()) {
    case ScalarType::Byte:
      return {data, 1, false};
    case ScalarType::Char:
      return {data, 1, true};
    case ScalarType::UInt16:
      return {data, 2, false};
    case ScalarType::Short:
      return {data, 2, true};
    case ScalarType::Int:
      return {data, 4, true};
    case ScalarType::Long:
      return {data, 8, true};
    default:
      throw std::runtime_error("codes must be integers of 8, 16, 32 or 64 bits");
  }
}

// A problem over `queries` alone, with the pairs that the ids name; the documents are the caller's to fill in.
BoundProblem bind_queries(const Tensor& queries, const MaybeTensor& query_mask, const MaybeTensor& pair_queries,
                          const MaybeTensor& pair_documents, bool normalize, double empty_score, bool with_argmax) {
  require(queries.dim() == 3, "queries must be [Nq, Lq, d]");
  const MaybeTensor none;
  return bind_problem({queries, queries, none, none, none, none, query_mask, none, pair_queries, pair_documents},
                      normalize, empty_score, with_argmax ? queries.size(1) : kNoArgmax);
}

void set_documents(BoundProblem& bound, const Segments& documents) {
  bound.problem.documents = documents;
  if (bound.problem.pairing == Pairing::list) return;
  bound.problem.pairs = bound.problem.queries.count * documents.count;
  bound.score_shape[1] = documents.count;
}

}  // namespace

Segments bind_documents(const DocumentTokens& d, int64_t dim) {
  Segments side;
  side.data = d.tokens.const_data_ptr();
  side.dim = dim;
  side.token_stride = 1;
  const int64_t leading = d.tokens.dim() - d.trailing;
  if (d.offsets) {
    require(leading == 1, "document_offsets go with packed documents, one row a token");
    require(!d.lengths, "document_lengths cannot be combined with document_offsets");
    require(is_index(*d.offsets) && d.offsets->dim() == 1 && d.offsets->size(0) >= 1,
            "document_offsets must be int32 or int64 [segments + 1]");
    require_same_device(*d.offsets, d.tokens, "document_offsets must be on the same device as the documents");
    side.extent = d.tokens.size(0);
    side.offsets = view(*d.offsets);
    side.count = d.offsets->size(0) - 1;
  } else {
    require(leading == 2, "documents must be padded, or packed with document_offsets");
    side.count = d.tokens.size(0);
    side.extent = d.tokens.size(1);
    side.segment_stride.outer = side.extent;
  }
  if (d.lengths) {
    require(is_index(*d.lengths) && d.lengths->dim() == 1 && d.lengths->size(0) == side.count,
            "document_lengths must be int32 or int64, one for each document");
    require_same_device(*d.lengths, d.tokens, "document_lengths must be on the same device as the documents");
    side.lengths = view(*d.lengths);
    side.lengths_stride.outer = d.lengths->stride(0);
  }
  if (d.mask) {
    bool matches = d.mask->scalar_type() == ScalarType::Bool && d.mask->dim() == leading;
    for (int64_t i = 0; matches && i < leading; ++i) matches = d.mask->size(i) == d.tokens.size(i);
    require(matches, "document_mask must be bool with one flag for each document token");
    require_same_device(*d.mask, d.tokens, "document_mask must be on the same device as the documents");
    side.mask = static_cast<const uint8_t*>(d.mask->const_data_ptr());
    side.mask_token_stride = d.mask->stride(leading - 1);
    if (leading == 2) side.mask_stride.outer = d.mask->stride(0);
  }
  return side;
}

BoundResiduals bind_residuals(MAXSIM_RESIDUAL_PARAMETERS) {
  (void)path;
  require(nbits == 1 || nbits == 2 || nbits == 4 || nbits == 8, "nbits must be 1, 2, 4 or 8");
  require(queries.dim() == 3 && centroids.dim() == 2 && centroids.size(1) == queries.size(2),
          "centroids must be [C, d] with the queries' d");
  require(bucket_weights.dim() == 1 && bucket_weights.size(0) == int64_t{1} << nbits,
          "bucket_weights must be [2 ** nbits]");
  const int64_t row_bytes = (queries.size(2) * nbits + 7) / 8, last = residuals.dim() - 1;
  bool matches =
      residuals.scalar_type() == ScalarType::Byte && last == codes.dim() && residuals.size(last) == row_bytes;
  for (int64_t i = 0; matches && i < last; ++i) matches = residuals.size(i) == codes.size(i);
  require(matches, "residuals must be uint8 [*codes.shape, ceil(d * nbits / 8)]");
  for (const Tensor* t : {&codes, &residuals, &centroids, &bucket_weights})
    require_same_device(*t, queries, "codes, residuals, centroids and bucket_weights must be on the queries' device");
  BoundResiduals out;
  out.bound =
      bind_queries(queries, query_mask, pair_queries, pair_documents, normalize_queries, empty_score, with_argmax);
  out.codes = as_contiguous(codes);
  out.bytes = as_contiguous(residuals);
  out.centroids = as_contiguous(centroids);
  out.weights = as_contiguous(bucket_weights);
  set_documents(out.bound,
                bind_documents({out.bytes, 1, document_offsets, document_lengths, document_mask}, queries.size(2)));
  Residuals& r = out.residuals;
  r.codes = code_view(out.codes);
  r.bytes = static_cast<const uint8_t*>(out.bytes.const_data_ptr());
  r.row_bytes = row_bytes;
  r.dim = queries.size(2);
  r.nbits = static_cast<int32_t>(nbits);
  r.centroids = out.centroids.const_data_ptr();
  r.centroid_type = dtype_of(centroids, "centroids");
  r.centroid_count = centroids.size(0);
  r.weights = out.weights.const_data_ptr();
  r.weight_type = dtype_of(bucket_weights, "bucket_weights");
  r.normalize = normalize_documents;
  if (inverse_norms) {
    require(inverse_norms->scalar_type() == ScalarType::Float && inverse_norms->numel() == codes.numel(),
            "inverse_norms must be float32 with one factor for each document token");
    require_same_device(*inverse_norms, queries, "inverse_norms must be on the queries' device");
    require(centroid_norm > 0, "centroid_norm must be positive when inverse_norms are given");
    out.norms = as_contiguous(*inverse_norms);
    r.inverse_norms = static_cast<const float*>(out.norms.const_data_ptr());
    r.centroid_norm = static_cast<float>(centroid_norm);
  }
  return out;
}

std::tuple<Tensor, Tensor> new_results(const BoundProblem& bound, const Tensor& like, bool with_argmax) {
  const int64_t nothing = 0;
  return {new_scores(bound, like),
          with_argmax ? new_argmax(bound, like) : new_tensor(like, &nothing, 1, aoti_torch_dtype_int32())};
}

BoundApproximation bind_approximation(MAXSIM_APPROX_PARAMETERS) {
  require(centroid_scores.dim() == 3 && centroid_scores.scalar_type() == ScalarType::Float,
          "centroid_scores must be float32 [Nq, C, Lq]");
  require(centroid_scores.size(2) >= 1 && centroid_scores.size(1) >= 1,
          "centroid_scores must have a centroid and a query token");
  require_same_device(codes, centroid_scores, "codes must be on the same device as centroid_scores");
  BoundApproximation out;
  const MaybeTensor none;
  out.scores = as_contiguous(centroid_scores);
  out.codes = as_contiguous(codes);
  out.bound = bind_queries(out.scores, none, none, none, false, 0.0, false);
  set_documents(out.bound, bind_documents({out.codes, 0, document_offsets, document_lengths, none}, 1));
  out.approximation.codes = code_view(out.codes);
  out.approximation.centroid_count = centroid_scores.size(1);
  out.approximation.centroid_scores = static_cast<const float*>(out.scores.const_data_ptr());
  if (probed) {
    require(probed->scalar_type() == ScalarType::Bool && probed->dim() == 2 &&
                probed->size(0) == centroid_scores.size(0) && probed->size(1) == centroid_scores.size(1),
            "probed must be bool [Nq, C]");
    require_same_device(*probed, centroid_scores, "probed must be on the same device as centroid_scores");
    out.probed = as_contiguous(*probed);
    out.approximation.probed = static_cast<const uint8_t*>(out.probed.const_data_ptr());
  }
  return out;
}

}  // namespace maxsim

MAXSIM_FRAGMENT(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "residual_forward(Tensor queries, Tensor codes, Tensor residuals, Tensor? document_offsets, "
      "Tensor? document_lengths, Tensor? query_mask, Tensor? document_mask, Tensor? pair_queries, "
      "Tensor? pair_documents, Tensor centroids, Tensor bucket_weights, Tensor? inverse_norms, float centroid_norm, "
      "int nbits, bool normalize_queries, bool normalize_documents, float empty_score, int path, bool with_argmax) -> "
      "(Tensor, Tensor)");
  ops.def(
      "approx_forward(Tensor centroid_scores, Tensor codes, Tensor? document_offsets, Tensor? document_lengths, "
      "Tensor? probed) -> Tensor");
  ops.def(
      "search_forward(Tensor? by_centroid, Tensor queries, Tensor codes, Tensor residuals, "
      "Tensor document_offsets, Tensor centroids, Tensor bucket_weights, Tensor inverse_norms, float centroid_norm, "
      "int nbits, int path, int probes, int kept, int top_k) -> (Tensor, Tensor)");
}

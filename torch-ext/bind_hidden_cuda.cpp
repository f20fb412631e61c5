// The ops on hidden states, for CUDA tensors.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <string>

#include "../maxsim_cuda/check.h"
#include "../maxsim_cuda/hidden.h"
#include "../maxsim_cuda/launch.h"
#include "bind_cuda.h"
#include "bind_hidden.h"

namespace maxsim {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kNothing = 0;

void require(bool holds, const char* message) {
  if (!holds) throw std::runtime_error(message);
}

void require_beside(const Tensor& t, const Tensor& hidden, const char* name) {
  int32_t type = 0, expected = 0;
  aoti_torch_get_device_type(t.get(), &type);
  aoti_torch_get_device_type(hidden.get(), &expected);
  if (type != expected || t.get_device_index() != hidden.get_device_index())
    throw std::runtime_error(std::string(name) + " must be on the same device as hidden");
}

// Contiguous, and where the copy engine can read it.
Tensor aligned(const Tensor& t) {
  const Tensor out = torch::stable::contiguous(t);
  return reinterpret_cast<uintptr_t>(out.const_data_ptr()) % 16 ? torch::stable::clone(out) : out;
}

// The arguments in the form that the kernels read, and what they point into.
struct __attribute__((visibility("hidden"))) BoundHidden {
  cuda::Hidden hidden;
  Tensor tokens, weight;
  MaybeTensor bias;
};

BoundHidden bind_hidden(const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias, bool normalize) {
  require(hidden.dim() == 3 && weight.dim() == 2 && weight.size(1) == hidden.size(2),
          "hidden must be [Nd, Ld, d_model] and weight [d_out, d_model]");
  require_beside(weight, hidden, "weight");
  BoundHidden bound;
  bound.hidden.dtype = dtype_of(hidden, "hidden");
  require(dtype_of(weight, "weight") == bound.hidden.dtype, "weight must have the dtype of hidden");
  if (bias) {
    require(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias must be [d_out]");
    require_beside(*bias, hidden, "bias");
    bound.bias = torch::stable::contiguous(*bias);
    bound.hidden.bias = bound.bias->const_data_ptr();
    bound.hidden.bias_dtype = dtype_of(*bias, "bias");
  }
  bound.hidden.documents = hidden.size(0);
  bound.hidden.length = hidden.size(1);
  bound.hidden.inputs = hidden.size(2);
  bound.hidden.dim = weight.size(0);
  bound.hidden.normalize = normalize;
  const Launch launch(hidden);
  require(cuda::hidden_takes(bound.hidden),
          "hidden states need a GPU of compute capability 9.0, float16 or bfloat16, and d_out and d_model that are "
          "multiples of 8, d_out at most 128");
  bound.tokens = aligned(hidden);
  bound.weight = aligned(weight);
  bound.hidden.tokens = bound.tokens.const_data_ptr();
  bound.hidden.weight = bound.weight.const_data_ptr();
  return bound;
}

// Projects a part of the documents at a time, of no more than `part_bytes` unless one document alone has more, and
// scores it by the kernels for projected ones. Half of the documents at most, but for a training step: its way back
// will hold as much, and every part is launches.
void score_parts(const cuda::Hidden& hidden, const Tensor& queries, const cuda::HiddenMask& mask, int64_t part_bytes,
                 Tensor& scores, Tensor* argmax, cudaStream_t stream) {
  const int64_t count = queries.size(0), width = argmax ? queries.size(1) : 0;
  const int64_t fitting = part_bytes / (hidden.length * hidden.dim * element_size(hidden.dtype));
  const int64_t most = argmax ? hidden.documents : (hidden.documents + 1) / 2;
  const int64_t per_part = std::max<int64_t>(1, std::min(most, fitting));
  const int64_t shape[3] = {per_part, hidden.length, hidden.dim};
  const Tensor projected = new_tensor(
      queries, shape, 3, hidden.dtype == DType::f16 ? aoti_torch_dtype_float16() : aoti_torch_dtype_bfloat16());
  const MaybeTensor none;
  BoundProblem bound = bind_problem({queries, projected, none, none, none, none, none, none, none, none}, false, 0.0,
                                    argmax ? queries.size(1) : kNoArgmax);
  Segments& documents = bound.problem.documents;
  documents.mask_stride.outer = mask.document_stride;
  documents.mask_token_stride = mask.token_stride;
  const bool whole = per_part == hidden.documents;
  const int64_t part_scores[2] = {count, per_part}, part_argmax[3] = {count, per_part, width};
  Tensor own_scores = whole ? scores : new_tensor(queries, part_scores, 2, aoti_torch_dtype_float32());
  Tensor own_argmax = argmax ? whole ? *argmax : new_tensor(queries, part_argmax, 3, aoti_torch_dtype_int32()) : scores;
  Tensor workspace;
  const int64_t bytes = cuda::forward_workspace(bound.problem, cuda::Path::choose);
  if (bytes) workspace = new_tensor(queries, &bytes, 1, aoti_torch_dtype_uint8());
  const auto copy = [&](const Tensor& to, const Tensor& from, int64_t first, int64_t slot) {
    cuda::check(cudaMemcpy2DAsync(static_cast<char*>(to.mutable_data_ptr()) + first * slot, hidden.documents * slot,
                                  from.const_data_ptr(), documents.count * slot, documents.count * slot, count,
                                  cudaMemcpyDeviceToDevice, stream),
                "copy of a part's results");
  };
  for (int64_t first = 0; first < hidden.documents; first += per_part) {
    cuda::Hidden part = hidden;
    part.documents = documents.count = std::min(per_part, hidden.documents - first);
    part.tokens =
        static_cast<const char*>(hidden.tokens) + first * hidden.length * hidden.inputs * element_size(hidden.dtype);
    cuda::hidden_project(part, projected.mutable_data_ptr(), nullptr, stream);
    documents.mask = mask.data ? mask.data + first * mask.document_stride : nullptr;
    bound.problem.pairs = count * part.documents;
    cuda::forward(bound.problem, cuda::Path::choose, false, static_cast<float*>(own_scores.mutable_data_ptr()),
                  argmax ? static_cast<int32_t*>(own_argmax.mutable_data_ptr()) : nullptr,
                  bytes ? workspace.mutable_data_ptr() : nullptr, stream);
    if (whole) return;
    copy(scores, own_scores, first, sizeof(float));
    if (argmax) copy(*argmax, own_argmax, first, width * sizeof(int32_t));
  }
}

}  // namespace

std::tuple<Tensor, Tensor> hidden_forward_cuda(const Tensor& queries, const Tensor& hidden, const Tensor& weight,
                                               const MaybeTensor& bias, const MaybeTensor& document_mask,
                                               bool normalize, bool with_argmax, int64_t part_bytes) {
  const BoundHidden bound = bind_hidden(hidden, weight, bias, normalize);
  require(queries.dim() == 3 && queries.size(2) == bound.hidden.dim, "queries must be [Nq, Lq, d_out]");
  require_beside(queries, hidden, "queries");
  cuda::HiddenMask mask;
  if (document_mask) {
    require(document_mask->dim() == 2 && document_mask->size(0) == bound.hidden.documents &&
                document_mask->size(1) == bound.hidden.length && document_mask->scalar_type() == ScalarType::Bool,
            "document_mask must be bool [Nd, Ld]");
    require_beside(*document_mask, hidden, "document_mask");
    mask = {static_cast<const uint8_t*>(document_mask->const_data_ptr()), document_mask->stride(0),
            document_mask->stride(1)};
  }
  const int64_t shape[3] = {queries.size(0), bound.hidden.documents, queries.size(1)}, nothing = 0;
  Tensor scores = new_tensor(queries, shape, 2, aoti_torch_dtype_float32());
  Tensor argmax = with_argmax ? new_tensor(queries, shape, 3, aoti_torch_dtype_int32())
                              : new_tensor(queries, &nothing, 1, aoti_torch_dtype_int32());
  const Launch launch(queries);
  const int64_t pairs = shape[0] * shape[1];
  if (pairs * shape[2] * bound.hidden.length == 0) {  // nothing meets: zero, and no winner
    cuda::check(cudaMemsetAsync(scores.mutable_data_ptr(), 0, pairs * sizeof(float), launch.stream), "scores");
    if (with_argmax)
      cuda::check(cudaMemsetAsync(argmax.mutable_data_ptr(), 0xff, pairs * shape[2] * sizeof(int32_t), launch.stream),
                  "argmax");
    return {scores, argmax};
  }
  if (shape[0] * shape[2] > cuda::kHiddenQueryRows || dtype_of(queries, "queries") != bound.hidden.dtype) {
    score_parts(bound.hidden, queries, mask, part_bytes, scores, with_argmax ? &argmax : nullptr, launch.stream);
    return {scores, argmax};
  }
  const Tensor resident = aligned(queries);
  const cuda::HiddenQueries bound_queries{resident.const_data_ptr(), shape[0], shape[2]};
  const int64_t bytes = cuda::hidden_workspace(bound.hidden, bound_queries, with_argmax);
  const Tensor workspace = new_tensor(queries, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::hidden_forward(bound.hidden, bound_queries, mask, static_cast<float*>(scores.mutable_data_ptr()),
                       with_argmax ? static_cast<int32_t*>(argmax.mutable_data_ptr()) : nullptr,
                       workspace.mutable_data_ptr(), launch.stream);
  return {scores, argmax};
}

std::tuple<Tensor, Tensor> hidden_project_cuda(const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias,
                                               bool normalize) {
  const BoundHidden bound = bind_hidden(hidden, weight, bias, normalize);
  const int64_t shape[3] = {hidden.size(0), hidden.size(1), bound.hidden.dim}, nothing = 0;
  const Tensor projected = new_tensor(
      hidden, shape, 3, bound.hidden.dtype == DType::f16 ? aoti_torch_dtype_float16() : aoti_torch_dtype_bfloat16());
  const Tensor factors =
      new_tensor(hidden, normalize ? shape : &nothing, normalize ? 2 : 1, aoti_torch_dtype_float32());
  const Launch launch(hidden);
  if (shape[0] * shape[1] > 0)
    cuda::hidden_project(bound.hidden, projected.mutable_data_ptr(),
                         normalize ? static_cast<float*>(factors.mutable_data_ptr()) : nullptr, launch.stream);
  return {projected, factors};
}

Tensor hidden_chain_cuda(Tensor grad, const MaybeTensor& projected, const MaybeTensor& factors, bool with_sum) {
  const int64_t dim = grad.dim() ? grad.size(grad.dim() - 1) : 0, rows = dim ? grad.numel() / dim : 0;
  const DType dtype = dtype_of(grad, "grad");
  require(dim >= 8 && dim <= 128 && dim % 8 == 0 && dtype != DType::f32 && grad.is_contiguous() &&
              reinterpret_cast<uintptr_t>(grad.const_data_ptr()) % 16 == 0,
          "grad must be float16 or bfloat16 [..., d_out], contiguous and aligned");
  require(projected.has_value() == factors.has_value(), "projected and factors must be given together");
  MaybeTensor rows_projected, rows_factors;
  if (projected) {
    require(projected->numel() == grad.numel() && factors->numel() == rows &&
                dtype_of(*projected, "projected") == dtype && factors->scalar_type() == ScalarType::Float,
            "projected must be as grad [..., d_out], and factors float32 [...]");
    require_beside(*projected, grad, "projected");
    require_beside(*factors, grad, "factors");
    rows_projected = aligned(*projected);
    rows_factors = torch::stable::contiguous(*factors);
  }
  const Tensor sum = new_tensor(grad, with_sum ? &dim : &kNothing, 1, aoti_torch_dtype_float32());
  const Launch launch(grad);
  if (rows == 0) {
    if (with_sum) cuda::check(cudaMemsetAsync(sum.mutable_data_ptr(), 0, dim * sizeof(float), launch.stream), "sum");
    return sum;
  }
  const int64_t bytes = with_sum ? cuda::hidden_chain_workspace(rows, dim) : 0;
  const Tensor workspace = new_tensor(grad, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::hidden_chain(dtype, rows, dim, grad.mutable_data_ptr(), projected ? rows_projected->const_data_ptr() : nullptr,
                     projected ? static_cast<const float*>(rows_factors->const_data_ptr()) : nullptr,
                     with_sum ? static_cast<float*>(sum.mutable_data_ptr()) : nullptr, workspace.mutable_data_ptr(),
                     launch.stream);
  return sum;
}

}  // namespace maxsim

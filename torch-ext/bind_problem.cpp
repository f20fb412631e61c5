// From op arguments to a Problem: the only place that knows which tensor shapes mean which layout.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "torch_binding.h"

namespace maxsim {
namespace {

using torch::headeronly::ScalarType;

// Only a failure pays for its message: a tensor stands for its shape and is written out when it is needed.
void write(std::ostringstream& out, const Tensor& t) {
  out << "[";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << "]";
}
template <class Part>
void write(std::ostringstream& out, const Part& part) {
  out << part;
}

template <class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void fail(const Parts&... parts) {
  std::ostringstream message;
  (write(message, parts), ...);
  throw std::runtime_error(message.str());
}

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (__builtin_expect(!holds, false)) fail(parts...);
}

void require_same_device(const Tensor& t, const Tensor& queries, const char* name) {
  int32_t type = 0, expected = 0;
  aoti_torch_get_device_type(t.get(), &type);
  aoti_torch_get_device_type(queries.get(), &expected);
  require(type == expected && t.get_device_index() == queries.get_device_index(), name,
          " must be on the same device as queries");
}

IndexView index_view(const Tensor& t, const Tensor& queries, const char* name) {
  const ScalarType type = t.scalar_type();
  require(type == ScalarType::Int || type == ScalarType::Long, name, " must be int32 or int64");
  require_same_device(t, queries, name);
  return IndexView{t.const_data_ptr(), t.dim() ? t.stride(t.dim() - 1) : 1, type == ScalarType::Long};
}

struct SideNames {
  const char *tokens, *offsets, *lengths, *mask;
};

Segments bind_side(const Tensor& tokens, const MaybeTensor& offsets, const MaybeTensor& lengths,
                   const MaybeTensor& mask, const Tensor& queries, const SideNames& names, int64_t bits) {
  Segments side;
  const int64_t dims = tokens.dim();
  side.data = tokens.const_data_ptr();
  side.dtype = bits == 1 ? DType::bit : dtype_of(tokens, names.tokens, bits != 0);
  require(bits != 1 || tokens.scalar_type() == ScalarType::Byte, names.tokens, " of one bit a feature must be uint8");
  require_same_device(tokens, queries, names.tokens);
  side.dim = tokens.size(dims - 1);
  side.extent = tokens.size(dims - 2);
  side.token_stride = tokens.stride(dims - 2);
  side.feature_stride = tokens.stride(dims - 1);
  require(side.dim >= 1, names.tokens, " must have at least one feature; got ", tokens);
  if (offsets) {
    require(dims == 2, names.offsets, " goes with packed ", names.tokens, " [T, d]; got ", tokens);
    require(!lengths, names.lengths, " cannot be combined with ", names.offsets);
    require(offsets->dim() == 1 && offsets->size(0) >= 1, names.offsets, " must be [segments + 1]; got ", *offsets);
    side.offsets = index_view(*offsets, queries, names.offsets);
    side.count = offsets->size(0) - 1;
  } else {
    require(dims >= 3, names.tokens, " must be padded, or packed [T, d] with ", names.offsets, "; got ", tokens);
    side.count = tokens.size(0);
    side.segment_stride.outer = tokens.stride(0);
    if (dims == 4) {
      side.inner = tokens.size(1) > 0 ? tokens.size(1) : 1;
      side.count *= tokens.size(1);
      side.segment_stride.inner = tokens.stride(1);
    }
  }
  if (lengths) {
    bool matches = lengths->dim() == dims - 2;
    for (int64_t i = 0; matches && i < dims - 2; ++i) matches = lengths->size(i) == tokens.size(i);
    require(matches, names.lengths, " must have the leading shape of ", names.tokens, " ", tokens, "; got ", *lengths);
    side.lengths = index_view(*lengths, queries, names.lengths);
    side.lengths_stride.outer = lengths->stride(0);
    if (dims == 4) side.lengths_stride.inner = lengths->stride(1);
  }
  if (mask) {
    bool matches = mask->dim() == dims - 1;
    for (int64_t i = 0; matches && i < dims - 1; ++i) matches = mask->size(i) == tokens.size(i);
    require(matches, names.mask, " must have the token shape of ", names.tokens, " ", tokens, "; got ", *mask);
    require(mask->scalar_type() == ScalarType::Bool, names.mask, " must be bool");
    require_same_device(*mask, queries, names.mask);
    side.mask = static_cast<const uint8_t*>(mask->const_data_ptr());
    side.mask_token_stride = mask->stride(dims - 2);
    if (!offsets) side.mask_stride.outer = mask->stride(0);
    if (dims == 4) side.mask_stride.inner = mask->stride(1);
  }
  return side;
}

}  // namespace

DType dtype_of(const Tensor& t, const char* name, bool stored) {
  const ScalarType type = t.scalar_type();
  if (stored) {
    switch (type) {
      case ScalarType::Float8_e4m3fn:
        return DType::e4m3;
      case ScalarType::Float8_e5m2:
        return DType::e5m2;
      case ScalarType::Char:
        return DType::s8;
      case ScalarType::Byte:
        return DType::u8;
      default:
        break;
    }
  }
  require(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, name,
          " must be float16, bfloat16 or float32");
  return type == ScalarType::Float ? DType::f32 : type == ScalarType::Half ? DType::f16 : DType::bf16;
}

BoundProblem bind_problem(const ProblemArguments& a, bool normalize, double empty_score, int64_t argmax_width) {
  const int64_t query_dims = a.queries.dim(), document_dims = a.documents.dim();
  require(query_dims == 2 || query_dims == 3, "queries must be [Nq, Lq, d] or packed [T, d]; got ", a.queries);
  require(document_dims >= 2 && document_dims <= 4,
          "documents must be [Nd, Ld, d], [Nq, K, Ld, d] or packed [T, d]; got ", a.documents);
  BoundProblem bound;
  Problem& problem = bound.problem;
  problem.queries = bind_side(a.queries, a.query_offsets, a.query_lengths, a.query_mask, a.queries,
                              {"queries", "query_offsets", "query_lengths", "query_mask"}, a.document_bits ? 8 : 0);
  problem.documents =
      bind_side(a.documents, a.document_offsets, a.document_lengths, a.document_mask, a.queries,
                {"documents", "document_offsets", "document_lengths", "document_mask"}, a.document_bits);
  if (a.document_bits == 1) {
    require(problem.documents.feature_stride == 1 && problem.documents.dim == (problem.queries.dim + 7) / 8,
            "documents of one bit a feature must have ceil(d / 8) bytes a token, one after another; got ", a.documents,
            " for queries ", a.queries);
    problem.documents.dim = problem.queries.dim;
  }
  require(problem.queries.dim == problem.documents.dim, "queries and documents must share the embedding dim; got ",
          a.queries, " and ", a.documents);
  problem.normalize = normalize;
  problem.empty_score = static_cast<float>(empty_score);
  problem.argmax_width = argmax_width;
  if (argmax_width != kNoArgmax) problem.longest_query = argmax_width;
  require(argmax_width >= 0 || argmax_width == kNoArgmax, "argmax_width must not be negative; got ", argmax_width);
  require(argmax_width == kNoArgmax || a.query_offsets || argmax_width == a.queries.size(1),
          "argmax_width must be the length of padded queries ", a.queries, "; got ", argmax_width);

  require(a.pair_queries.has_value() == a.pair_documents.has_value(),
          "pair_queries and pair_documents must be given together");
  if (a.pair_queries) {
    require(document_dims != 4, "pair ids do not go with own-slab documents ", a.documents);
    require(a.pair_queries->dim() == 1 && a.pair_documents->dim() == 1 &&
                a.pair_queries->size(0) == a.pair_documents->size(0),
            "pair_queries and pair_documents must be [P] each; got ", *a.pair_queries, " and ", *a.pair_documents);
    problem.pairing = Pairing::list;
    problem.query_ids = index_view(*a.pair_queries, a.queries, "pair_queries");
    problem.document_ids = index_view(*a.pair_documents, a.queries, "pair_documents");
    problem.pairs = bound.score_shape[0] = a.pair_queries->size(0);
    bound.score_dims = 1;
  } else if (document_dims == 4) {
    require(a.documents.size(0) == problem.queries.count, "own-slab documents need one slab per query; got ",
            a.documents, " for ", problem.queries.count, " queries");
    problem.pairing = Pairing::slab;
    bound.score_dims = 2;
    bound.score_shape[0] = a.documents.size(0);
    bound.score_shape[1] = a.documents.size(1);
    problem.pairs = problem.documents.count;
  } else {
    problem.pairing = Pairing::cross;
    bound.score_dims = 2;
    bound.score_shape[0] = problem.queries.count;
    bound.score_shape[1] = problem.documents.count;
    problem.pairs = problem.queries.count * problem.documents.count;
  }
  return bound;
}

Tensor new_tensor(const Tensor& like, const int64_t* shape, int64_t dims, int32_t dtype) {
  int64_t strides[4], stride = 1;
  for (int64_t i = dims; i-- > 0; stride *= shape[i]) strides[i] = stride;
  int32_t device = 0;
  aoti_torch_get_device_type(like.get(), &device);
  AtenTensorHandle out = nullptr;
  // Straight from the allocator: the same through the dispatcher takes three times as long.
  if (aoti_torch_empty_strided(dims, shape, strides, dtype, device, like.get_device_index(), &out))
    throw std::runtime_error("out of memory");
  return Tensor(out);
}

Tensor new_scores(const BoundProblem& bound, const Tensor& like) {
  return new_tensor(like, bound.score_shape, bound.score_dims, aoti_torch_dtype_float32());
}

Tensor new_argmax(const BoundProblem& bound, const Tensor& like) {
  int64_t shape[3] = {bound.score_shape[0], bound.score_shape[1], 0};
  shape[bound.score_dims] = bound.problem.argmax_width;
  return new_tensor(like, shape, bound.score_dims + 1, aoti_torch_dtype_int32());
}

BackwardTensors bind_backward(const BoundProblem& bound, const Tensor& grad_scores, const Tensor& argmax,
                              const Tensor& queries, const Tensor& documents, bool need_queries, bool need_documents,
                              bool whole) {
  const Problem& problem = bound.problem;
  require_same_device(grad_scores, queries, "grad_scores");
  require_same_device(argmax, queries, "argmax");
  require(grad_scores.numel() == problem.pairs && grad_scores.scalar_type() == ScalarType::Float,
          "grad_scores must be float32 with the scores' shape; got ", grad_scores, " for ", problem.pairs, " scores");
  require(argmax.numel() == problem.pairs * problem.argmax_width && argmax.scalar_type() == ScalarType::Int,
          "argmax must be the int32 tensor that forward_argmax returned; got ", argmax);
  const bool nothing = problem.pairs == 0 || problem.argmax_width == 0;
  const auto gradient = [&](const Tensor& like, const Segments& side, bool needed) {
    const int64_t none = 0;
    if (needed && (nothing || !whole || side.packed())) return torch::stable::new_zeros(like, like.sizes());
    int32_t dtype = 0;
    aoti_torch_get_dtype(like.get(), &dtype);
    return needed ? new_tensor(like, like.sizes().data(), like.dim(), dtype) : new_tensor(like, &none, 1, dtype);
  };
  return {torch::stable::contiguous(grad_scores), torch::stable::contiguous(argmax),
          gradient(queries, problem.queries, need_queries), gradient(documents, problem.documents, need_documents)};
}

}  // namespace maxsim

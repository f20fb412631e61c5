// Backward of the soft maximum: a block owns tokens of one side, computes the shares of the other side's tokens again
// and adds those, weighted. Nothing is added to by two blocks, so gradients are the same on every run.
#pragma once

#include "soft_tile.cuh"

namespace maxsim {
namespace cuda {

// The power of two that brings the largest gradient of a segment's scores to [1, 2), for weights in fp16.
template <class Number>
__device__ __forceinline__ float weight_unit(const SoftArgs& args, int64_t count, const Number& pair_of,
                                             float* shared) {
  float largest = 0.f;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const float grad = fabsf(args.grad_scores[pair_of(i)]);
    if (grad <= 0x1p100f) largest = fmaxf(largest, grad);
  }
  for (int step = 16; step; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int warp = 0; warp < blockDim.x / 32; ++warp) largest = fmaxf(largest, shared[warp]);
  if (!(largest >= 0x1p-100f)) return 1.f;
  return __int_as_float(__float_as_int(largest) & 0x7f800000);
}

// The logarithm of a query token's sum, and its weight: NaN where the logarithm is not finite.
struct TokenPart {
  float log = 0.f, weight = 0.f;

  __device__ __forceinline__ TokenPart() {}
  __device__ __forceinline__ TokenPart(const SoftArgs& args, int64_t pair, int64_t token, float grad) {
    const float part = args.parts[pair * args.width + token];
    const bool finite = isfinite(part);
    log = finite ? part * args.to_log : 0.f;
    weight = finite ? grad : NAN;
  }
};

// Writes feature k of the gradient of a token: through the normalisation, which below eps only scales.
__device__ __forceinline__ void finish_feature(const SoftSide& own, int64_t token, int64_t k, float sum,
                                               float projection, void* out) {
  if (own.norms) {
    const float scale = own.scale(token);
    if (scale < 1.f / kNormEps)
      sum -= load_feature(own.side, own.span.begin + token * own.side.token_stride, k) * scale * projection;
    sum *= scale;
  }
  store_element(own.side, out, (own.span.first_row + token) * own.side.dim + k, sum);
}

// kQueries: the gradient of queries, else of documents. The grid is segments x row blocks x (chunks of features,
// splits).
template <class Op, bool kQueries>
__global__ void __launch_bounds__(128) soft_backward(SoftArgs args, void* out) {
  constexpr int kColumns = Op::kFeatures / 8;
  __shared__ SoftTiles tiles;
  __shared__ float column_log[kSoftTokens], column_weight[kSoftTokens], shared[4];
  const Problem& problem = args.problem;
  const Segments &own_side = kQueries ? problem.queries : problem.documents,
                 &other_side = kQueries ? problem.documents : problem.queries;
  const float *own_norms = kQueries ? args.query_norms : args.document_norms,
              *other_norms = kQueries ? args.document_norms : args.query_norms;
  const int64_t row = int64_t{blockIdx.y} * (blockDim.x / 2);
  const int chunk = blockIdx.z / args.splits, split = blockIdx.z % args.splits, warp_row = threadIdx.x / 32 * 16;
  const int64_t segment = blockIdx.x;
  const SoftSide own(own_side, own_norms, segment);
  if (row >= own.span.length) return;

  const bool slab = problem.pairing == Pairing::slab;
  const int64_t inner = problem.documents.inner;
  const int64_t others = !slab ? other_side.count : kQueries ? inner : 1;
  const auto pair_of = [&](int64_t i) {
    if (slab) return kQueries ? segment * inner + i : segment;
    return kQueries ? segment * problem.documents.count + i : i * problem.documents.count + segment;
  };
  const auto other_of = [&](int64_t i) {
    return !slab ? i : kQueries ? segment * inner + i : quotient(segment, inner);
  };
  const float unit = weight_unit(args, others, pair_of, shared);

  float row_scale[2], projection[2] = {0.f, 0.f}, gradient[kColumns][4];
  bool row_kept[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t token = row + warp_row + fragment_row(2 * half);
    row_kept[half] = own.has(token);
    row_scale[half] = row_kept[half] ? own.scale(token) : 0.f;
  }
#pragma unroll
  for (int f = 0; f < kColumns; ++f)
#pragma unroll
    for (int i = 0; i < 4; ++i) gradient[f][i] = 0.f;
  const int features = static_cast<int>(min(own_side.dim - int64_t{chunk} * Op::kFeatures, int64_t{Op::kFeatures}));

  bool fresh = true;
  for (int64_t i = others * split / args.splits; i < others * (split + 1) / args.splits; ++i) {
    const int64_t pair = pair_of(i);
    const SoftSide other(other_side, other_norms, other_of(i));
    const float grad = args.grad_scores[pair] / unit;
    TokenPart mine[2];
    if (kQueries)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (row_kept[half]) mine[half] = TokenPart(args, pair, row + warp_row + fragment_row(2 * half), grad);
    for (int64_t token = 0; token < other.span.length; token += kSoftTokens) {
      float s[8][4];
      tile_similarities<Op>(tiles, own, row, other, token, chunk, fresh, s);
      fresh = false;
      if (!kQueries) {
        for (int c = threadIdx.x; c < kSoftTokens; c += blockDim.x) {
          const TokenPart part = tiles.column_kept[c] ? TokenPart(args, pair, token + c, grad) : TokenPart();
          column_log[c] = part.log;
          column_weight[c] = part.weight;
        }
        __syncthreads();
      }
      const int columns = columns_of(other, token);
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4 && j * 8 < columns; ++e) {
          const int half = e / 2, column = j * 8 + fragment_column(e);
          const float scale = tiles.column_scale[column];
          const float log = kQueries ? mine[half].log : column_log[column];
          const float weight = kQueries ? mine[half].weight : column_weight[column];
          const float similarity = s[j][e] * scale * row_scale[half];
          const bool counts = tiles.column_kept[column] && row_kept[half];
          const float share = counts ? exp2f(fmaf(similarity, args.to_log, -log)) * weight : 0.f;
          if (counts) projection[half] = fmaf(share, similarity, projection[half]);
          s[j][e] = share * scale;
        }
      Op::weighted_sums(tiles.other, features, columns, s, gradient);
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    projection[half] += __shfl_xor_sync(~0u, projection[half], 1);
    projection[half] += __shfl_xor_sync(~0u, projection[half], 2);
    if (!row_kept[half]) continue;
    const int64_t token = row + warp_row + fragment_row(2 * half);
    const int64_t place = split * own_side.count * own_side.extent + own.span.first_row + token;
    if (args.splits > 1 && chunk == 0 && threadIdx.x % 4 == 0)
      args.partial[args.splits * own_side.count * own_side.extent * own_side.dim + place] = projection[half] * unit;
#pragma unroll
    for (int f = 0; f < kColumns; ++f)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int64_t k = int64_t{chunk} * Op::kFeatures + f * 8 + fragment_column(e);
        if (k >= own_side.dim) continue;
        const float sum = gradient[f][2 * half + e] * unit;
        if (args.splits > 1)
          args.partial[place * own_side.dim + k] = sum;
        else
          finish_feature(own, token, k, sum, projection[half] * unit, out);
      }
  }
}

// The splits' sums of every token, one after another. A warp takes a token.
template <bool kQueries>
__global__ void __launch_bounds__(128) soft_add_splits(SoftArgs args, void* out) {
  const Segments& side = kQueries ? args.problem.queries : args.problem.documents;
  const int64_t rows = side.count * side.extent;
  for (int64_t i = int64_t{blockIdx.x} * 4 + threadIdx.x / 32; i < rows; i += int64_t{gridDim.x} * 4) {
    const int64_t segment = quotient(i, side.extent), token = i - segment * side.extent;
    const SoftSide own(side, kQueries ? args.query_norms : args.document_norms, segment);
    if (!own.has(token)) continue;
    float projection = 0.f;
    for (int split = 0; split < args.splits; ++split)
      projection += args.partial[args.splits * rows * side.dim + split * rows + i];
    for (int64_t k = threadIdx.x % 32; k < side.dim; k += 32) {
      float sum = 0.f;
      for (int split = 0; split < args.splits; ++split) sum += args.partial[(split * rows + i) * side.dim + k];
      finish_feature(own, token, k, sum, projection, out);
    }
  }
}

}  // namespace cuda
}  // namespace maxsim

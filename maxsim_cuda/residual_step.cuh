// A warp's way over the tokens of a document: codes are read two steps ahead, buckets one.
#pragma once

#include "codes.cuh"
#include "ptx/dependent_launch.cuh"
#include "ptx/mma.cuh"
#include "residual_tokens.cuh"

namespace maxsim {
namespace cuda {

// Tokens first to first + 16 kTiles - 1 of a document. Lanes 4g to 4g + 3 share token g of every group of eight.
// kWhole: of 128 features, without a mask, everything aligned.
template <class E, int kBits, int kTiles, bool kWhole>
struct Step {
  static constexpr int kGroups = 2 * kTiles, kTokens = 16 * kTiles;
  RawCode raw;                              // of this step once it is gathered, of the next one from then on
  RawCode ahead;                            // of the step behind that
  uint32_t kept, unknown;                   // a bit a token: counts; names no centroid
  Packed<kBits, kWhole> packed[kGroups];    // of the next step once `add` is done
  uint32_t centroids[kGroups][kShare / 2];  // of the next step once `add` is done
  uint32_t rows[kTiles][kSteps][4];         // their sums with the weights: operands of 16 tokens by 16 features

  __device__ __forceinline__ static int64_t row_of(const Span& document, int token) {
    return document.first_row + min(token, document.length - 1);
  }

  __device__ __forceinline__ void load_packed(const ResidualArgs& args, const Span& document, int first) {
    if (first >= document.length) return;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) packed[j].load(args, row_of(document, first + 8 * j + threadIdx.x % 32 / 4));
  }

  __device__ __forceinline__ void load_ahead(const ResidualArgs& args, const Span& document, int first) {
    if (first < document.length) ahead.load(args.index.codes, row_of(document, first + threadIdx.x % kTokens));
  }

  __device__ __forceinline__ void start(const ResidualArgs& args, const Span& document, int first, int stride) {
    raw = RawCode{}, ahead = RawCode{};
    load_ahead(args, document, first);
    raw = ahead;
    load_packed(args, document, first);
    load_ahead(args, document, first + stride);
  }

  // Centroid rows of the tokens in `raw`. An unknown one takes the first row, and a NaN later.
  __device__ __forceinline__ void gather(const ResidualArgs& args) {
    gather(args, raw.known(args.index.centroid_count) ? raw.low : 0);
  }
  __device__ __forceinline__ void gather(const ResidualArgs& args, uint32_t code) {
    const int lane = threadIdx.x % 32, first = lane % 4 * kChunk8;
    const E* table = static_cast<const E*>(args.index.centroids);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int64_t row = __shfl_sync(~0u, code, 8 * j + lane / 4);
      const int64_t dim = kWhole ? kMaxResidualDim : args.index.dim;
      const uint4* from = reinterpret_cast<const uint4*>(table + row * dim + first);
      if constexpr (kWhole) {  // nothing but loads: none may wait for another
#pragma unroll
        for (int c = 0; c < kChunks; ++c) set(j, c, __ldg(from + 4 * c));
      } else {
#pragma unroll
        for (int c = 0; c < kChunks; ++c)
          set(j, c, 32 * c + first < args.index.dim ? __ldg(from + 4 * c) : make_uint4(0, 0, 0, 0));
      }
    }
  }

  __device__ __forceinline__ void set(int j, int c, const uint4& four) {
    centroids[j][4 * c] = four.x, centroids[j][4 * c + 1] = four.y;
    centroids[j][4 * c + 2] = four.z, centroids[j][4 * c + 3] = four.w;
  }

  // What `raw` says of this step's tokens, before `advance` puts the next one's there.
  __device__ __forceinline__ void describe(const ResidualArgs& args, const Span& document, int first) {
    const int lane = threadIdx.x % 32, token = first + lane % kTokens;
    const bool counts =
        lane < kTokens && token < document.length && (kWhole || token_kept(args.problem.documents, document, token));
    kept = __ballot_sync(~0u, counts);
    unknown = __ballot_sync(~0u, counts && !raw.known(args.index.centroid_count));
  }

  // Sums of centroids and weights. Features that do not exist stay zero.
  __device__ __forceinline__ void add(const ResidualArgs& args, const unsigned char* table, uint32_t own,
                                      float multiplier) {
    const int first = threadIdx.x % 4 * kChunk8;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const bool exists = kWhole || 32 * c + first < args.index.dim;
      const uint32_t shared = exists ? Pair<E>::pack(multiplier, multiplier) : 0u;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        uint32_t values[4], multipliers[4];
        packed[j].look_up(table, own, c, values, multipliers);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t factor = Weight<E, kBits>::kShared ? shared : exists ? multipliers[i] : 0u;
          const int pair = 4 * c + i;
          rows[j / 2][pair / 2][j % 2 + 2 * (pair % 2)] = add_weights<E>(centroids[j][pair], values[i], factor);
        }
      }
    }
  }

  // What `raw` says is of the next step from here on.
  __device__ __forceinline__ void advance(const ResidualArgs& args, const Span& document, int next, int stride) {
    raw = ahead;
    load_packed(args, document, next);
    load_ahead(args, document, next + stride);
  }
};

// Factors of a lane's tokens, g and g + 8 of each tile: inverse lengths where documents are normalised, of tokens as
// they were rounded; NaN without a centroid.
template <int kTiles>
struct Factors {
  float low[kTiles], high[kTiles];

  // Squares of lengths are the diagonal of the tokens' products with themselves: what is an operand for the rows is one
  // for the columns as well. Lane 4g + g / 2 has those of tokens g and g + 8.
  template <class E, int kBits, bool kWhole>
  __device__ __forceinline__ void from_squares(const Step<E, kBits, kTiles, kWhole>& step) {
    const int lane = threadIdx.x % 32, group = lane / 4, source = lane / 4 * 4 + group / 2;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float first[2][4] = {}, second[2][4] = {};  // two sums each, so that half as many wait for one another
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const uint32_t (&rows)[4] = step.rows[tile][s];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          ptx::mma_k8<E>(first[half], rows[2 * half], rows[2 * half + 1], rows[2 * half]);
          ptx::mma_k8<E>(second[half], rows[2 * half], rows[2 * half + 1], rows[2 * half + 1]);
        }
      }
      const int odd = group % 2;
      low[tile] = inverse(__shfl_sync(~0u, odd ? first[0][1] + first[1][1] : first[0][0] + first[1][0], source));
      high[tile] = inverse(__shfl_sync(~0u, odd ? second[0][3] + second[1][3] : second[0][2] + second[1][2], source));
    }
  }
  static __device__ __forceinline__ float inverse(float square) {
    return square < kNormEps * kNormEps ? 1.f / kNormEps : rsqrtf(square);
  }

  template <class E, int kBits, bool kWhole>
  __device__ __forceinline__ void take(bool squared, const Step<E, kBits, kTiles, kWhole>& step) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) low[tile] = high[tile] = 1.f;
    if (squared) from_squares(step);
    spoil(step.unknown);
  }

  // A bit a token.
  __device__ __forceinline__ void spoil(uint32_t unknown) {
    if (!unknown) return;
    const int group = threadIdx.x % 32 / 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (unknown >> (16 * tile + group) & 1) low[tile] = __int_as_float(0x7fc00000);
      if (unknown >> (16 * tile + 8 + group) & 1) high[tile] = __int_as_float(0x7fc00000);
    }
  }
};

}  // namespace cuda
}  // namespace maxsim

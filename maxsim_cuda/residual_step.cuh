// A warp's way over the tokens of a document: codes are read two steps ahead, buckets one, centroid rows as soon as the
// registers of the step before are free.
#pragma once

#include "ptx/mma.cuh"
#include "residual_tokens.cuh"

namespace maxsim {
namespace cuda {

// A lane's token as it was loaded. Nothing here waits for the value: what it means is asked a step later.
struct RawToken {
  uint32_t low = 0, high = 0;
  float inverse = 1.f;

  __device__ __forceinline__ void load(const ResidualArgs& args, int64_t row) {
    const CodeView& codes = args.index.codes;
    high = 0;
    switch (codes.bytes) {
      case 1:
        low = codes.is_signed ? static_cast<uint32_t>(__ldg(static_cast<const int8_t*>(codes.data) + row))
                              : __ldg(static_cast<const uint8_t*>(codes.data) + row);
        break;
      case 2:
        low = codes.is_signed ? static_cast<uint32_t>(__ldg(static_cast<const int16_t*>(codes.data) + row))
                              : __ldg(static_cast<const uint16_t*>(codes.data) + row);
        break;
      case 4:
        low = __ldg(static_cast<const uint32_t*>(codes.data) + row);
        break;
      default: {
        const uint2 both = __ldg(static_cast<const uint2*>(codes.data) + row);
        low = both.x, high = both.y;
      }
    }
    if (args.index.inverse_norms) inverse = __ldg(args.index.inverse_norms + row);
  }
  // Negative ones are large without their sign.
  __device__ __forceinline__ bool known(const ResidualArgs& args) const {
    return high == 0 && low < static_cast<uint32_t>(args.index.centroid_count);
  }
};

// Tokens first to first + 16 kTiles - 1 of a document. Lanes 4g to 4g + 3 share token g of every group of eight.
// kWhole: of 128 features, without a mask, everything aligned.
template <class E, int kBits, int kTiles, bool kWhole>
struct Step {
  static constexpr int kGroups = 2 * kTiles, kTokens = 16 * kTiles;
  RawToken raw;                           // of this step once it is gathered, of the next one from then on
  RawToken ahead;                         // of the step behind that
  float inverse;                          // of the lane's token
  uint32_t kept, unknown;                 // a bit a token: counts; names no centroid
  Packed<kBits, kWhole> packed[kGroups];  // of the next step once `add` is done
  uint32_t pairs[kGroups][kShare / 2];    // centroids, then sums with the weights

  __device__ __forceinline__ static int64_t row_of(const Span& document, int token) {
    return document.first_row + min(token, document.length - 1);
  }

  __device__ __forceinline__ void load_packed(const ResidualArgs& args, const Span& document, int first) {
    if (first >= document.length) return;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) packed[j].load(args, row_of(document, first + 8 * j + threadIdx.x % 32 / 4));
  }

  __device__ __forceinline__ void load_ahead(const ResidualArgs& args, const Span& document, int first) {
    if (first < document.length) ahead.load(args, row_of(document, first + threadIdx.x % kTokens));
  }

  __device__ __forceinline__ void start(const ResidualArgs& args, const Span& document, int first, int stride) {
    raw = RawToken{}, ahead = RawToken{};
    load_ahead(args, document, first);
    raw = ahead;
    load_packed(args, document, first);
    load_ahead(args, document, first + stride);
    if (first < document.length) gather(args);
  }

  // Centroid rows of the tokens in `raw`. An unknown one takes the first row, and a NaN later.
  __device__ __forceinline__ void gather(const ResidualArgs& args) {
    const int lane = threadIdx.x % 32, first = lane % 4 * kChunk8;
    const uint32_t code = raw.known(args) ? raw.low : 0;
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
    pairs[j][4 * c] = four.x, pairs[j][4 * c + 1] = four.y;
    pairs[j][4 * c + 2] = four.z, pairs[j][4 * c + 3] = four.w;
  }

  // What `raw` says of this step's tokens, before `advance` puts the next one's there.
  __device__ __forceinline__ void describe(const ResidualArgs& args, const Span& document, int first) {
    const int lane = threadIdx.x % 32, token = first + lane % kTokens;
    const bool counts =
        lane < kTokens && token < document.length && token_kept(args.problem.documents, document, token);
    kept = __ballot_sync(~0u, counts);
    unknown = __ballot_sync(~0u, counts && !raw.known(args));
    inverse = raw.inverse;
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
          pairs[j][4 * c + i] = add_weights<E>(pairs[j][4 * c + i], values[i], factor);
        }
      }
    }
  }

  // The next step's rows start on their way into the registers that this one has multiplied.
  __device__ __forceinline__ void advance(const ResidualArgs& args, const Span& document, int next, int stride) {
    raw = ahead;
    if (next < document.length) gather(args);
    load_ahead(args, document, next + stride);
  }

  __device__ __forceinline__ void operand(int j, int s, uint32_t (&b)[2]) const {
    b[0] = pairs[j][2 * s];
    b[1] = pairs[j][2 * s + 1];
  }
};

// Squares of the tokens' lengths, as the diagonal of their products with themselves: what is an operand for the columns
// is one for the rows as well.
template <int kTiles>
struct Squares {
  float low[kTiles][4], high[kTiles][4];

  template <class E, int kBits, bool kWhole>
  __device__ __forceinline__ void multiply(const Step<E, kBits, kTiles, kWhole>& step, int s) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t first[2], second[2];
      step.operand(2 * tile, s, first);
      step.operand(2 * tile + 1, s, second);
      const uint32_t rows[4] = {first[0], second[0], first[1], second[1]};
      ptx::mma<E>(low[tile], rows, first);
      ptx::mma<E>(high[tile], rows, second);
    }
  }
};

// Factors of a step's columns in shared memory: inverse lengths where documents are normalised, NaN without a centroid.
// Lane 4g + g / 2 has the squares of tokens g and g + 8.
template <class E, int kBits, int kTiles, bool kWhole>
__device__ __forceinline__ void write_factors(bool squared, const Squares<kTiles>& squares,
                                              const Step<E, kBits, kTiles, kWhole>& step, float* factors) {
  const int lane = threadIdx.x % 32, group = lane / 4;
  __syncwarp();
  if (squared) {
    if (lane % 4 == group / 2)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* both = half ? squares.high[tile] + 2 : squares.low[tile];
          const float square = group % 2 ? both[1] : both[0];
          factors[16 * tile + 8 * half + group] = square < kNormEps * kNormEps ? 1.f / kNormEps : rsqrtf(square);
        }
  } else if (lane < 16 * kTiles) {
    factors[lane] = step.inverse;
  }
  __syncwarp();
  if (step.unknown) {
    if (step.unknown >> lane & 1) factors[lane] = __int_as_float(0x7fc00000);
    __syncwarp();
  }
}

}  // namespace cuda
}  // namespace maxsim

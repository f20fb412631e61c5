// The weights of residual tokens: packed buckets of a lane's features, and the table that they are looked up in.
#pragma once

#include "residual_queries.cuh"

namespace maxsim {
namespace cuda {

// Bucket weights have more digits than 16 bits hold, and e = centroid + value * multiplier is rounded only once: so
// each weight is kept as a product. One multiplier serves all weights of one or two bits, which leaves their table
// small: the one of 128 that loses least. Wider buckets have a multiplier each, unless the caller wants one of all.
template <class E, int kBits, bool kShared_ = kBits <= 2>
struct Weight {
  static constexpr bool kShared = kShared_;
  float value, multiplier;

  static __device__ __forceinline__ float candidate(int i) { return 1.f + static_cast<float>(i) * (1.f / 128); }
  static __device__ __forceinline__ float rounded(float x) { return Pair<E>::unpack(Pair<E>::pack(x, 0.f)).x; }

  // Of the candidates for each weight the one that loses least, by the whole block of threads: as many share a weight
  // as there are for it. Among equals the first.
  static __device__ __forceinline__ void best_of_all(const Residuals& index, Weight* best) {
    constexpr int kWeights = 1 << kBits, kSharing = kWeights < kResidualThreads ? kResidualThreads / kWeights : 1;
    static_assert(kSharing <= 32, "within a warp");
    for (int w = threadIdx.x / kSharing; w < kWeights; w += kResidualThreads / kSharing) {
      const float weight = load_element(index.weights, index.weight_type, w);
      int least = threadIdx.x % kSharing;
      float error = INFINITY;
      for (int i = least; i < 128; i += kSharing) {
        const float off = fabsf(fmaf(rounded(weight / candidate(i)), candidate(i), -weight));
        if (off < error) error = off, least = i;
      }
#pragma unroll
      for (int step = 1; step < kSharing; step *= 2) {
        const float other = __shfl_xor_sync(~0u, error, step);
        const int there = __shfl_xor_sync(~0u, least, step);
        if (other < error || (other == error && there < least)) error = other, least = there;
      }
      best[w] = {rounded(weight / candidate(least)), candidate(least)};
    }
    __syncthreads();
  }

  // For all of them, by the whole block of threads, of which each tries one. `own` is the weight of the bucket whose
  // number is the lane's, from 0 again behind the last.
  static __device__ float shared_multiplier(float own, uint64_t* scratch) {
    static_assert(kResidualThreads == 128, "a candidate a thread");
    if (kBits == 8) return 1.f;  // so many weights differ in what suits them
    float off = 0.f;
    for (int bucket = 0; bucket < 1 << kBits; ++bucket) {
      const float weight = __shfl_sync(~0u, own, bucket), m = candidate(threadIdx.x);
      const float e = fmaf(rounded(weight / m), m, -weight);
      off = fmaf(e, e, off);
    }
    // The least error, and among equals the first candidate: as integers, floats from 0 up are ordered alike.
    uint64_t mine = static_cast<uint64_t>(__float_as_uint(off)) << 32 | threadIdx.x;
    for (int step = 16; step; step /= 2) mine = min(mine, __shfl_xor_sync(~0u, mine, step));
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = mine;
    __syncthreads();
    for (int warp = 0; warp < kResidualWarps; ++warp) mine = min(mine, scratch[warp]);
    __syncthreads();
    const int least = static_cast<int>(mine & 0xffffffffu);
    return candidate(least);
  }
};

// Values of every byte in shared memory, ready to be looked up by this lane; wider buckets' multipliers behind them.
template <int kBits, bool kShared = kBits <= 2>
struct Lookup {
  static constexpr int kEntry = kBits == 8 ? 4 : kBits == 4 && !kShared ? 8 : 16 / kBits;  // bytes
  static constexpr int kCopies = kLookupRow / kEntry;

  static constexpr int kWords = kEntry / 4;

  // The weight of the bucket whose number is the lane's, from 0 again behind the last.
  static __device__ __forceinline__ float own_weight(const Residuals& index) {
    return load_element(index.weights, index.weight_type, threadIdx.x % (1 << kBits));
  }

  // What a byte stands for, by whole warps that have their own_weight(); `shared` is the multiplier of all weights
  // where they share one, `best` the products else.
  template <class E>
  static __device__ __forceinline__ void entry_of(int byte, const Residuals& index, float own, float shared,
                                                  const Weight<E, kBits, kShared>* best, uint32_t (&entry)[kWords]) {
    using W = Weight<E, kBits, kShared>;
    if constexpr (kShared) {
      const float value = own / shared;
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        float values[2] = {};
#pragma unroll
        for (int e = 0; e < 2 && (2 * word + e) * kBits < 8; ++e) {
          const int bucket = byte >> (2 * word + e) * kBits & ((1 << kBits) - 1);
          values[e] = kBits < 8 ? __shfl_sync(~0u, value, bucket)
                                : load_element(index.weights, index.weight_type, bucket) / shared;
        }
        entry[word] = Pair<E>::pack(values[0], values[1]);
      }
    } else {
      if constexpr (kBits == 8) {
        const W one = best[byte];
        entry[0] = Pair<E>::pack(one.value, one.multiplier);
      } else {
        const W low = best[byte & 15], high = best[byte >> 4];
        entry[0] = Pair<E>::pack(low.value, high.value);
        entry[1] = Pair<E>::pack(low.multiplier, high.multiplier);
      }
    }
  }

  // By the whole block of threads, null where weights share a multiplier.
  template <class E>
  static __device__ __forceinline__ const Weight<E, kBits, kShared>* products(const Residuals& index) {
    if constexpr (kShared) {
      return nullptr;
    } else {
      __shared__ alignas(8) unsigned char memory[sizeof(Weight<E, kBits, kShared>) << kBits];
      auto* best = reinterpret_cast<Weight<E, kBits, kShared>*>(memory);
      Weight<E, kBits, kShared>::best_of_all(index, best);
      return best;
    }
  }

  static constexpr int kSharing = kLookupRow / 16;  // threads that write a row
  static __device__ __forceinline__ void write_piece(unsigned char* table, int piece, const uint32_t (&entry)[kWords]) {
    reinterpret_cast<uint4*>(table)[piece] =
        make_uint4(entry[0], entry[1 % kWords], entry[2 % kWords], entry[3 % kWords]);
  }

  // Returns the multiplier of all weights, where they share one. The whole table at once, 16 bytes a thread, side by
  // side.
  template <class E>
  static __device__ float build(unsigned char* table, const Residuals& index) {
    const float own = own_weight(index);
    float shared = 1.f;
    if constexpr (kShared)
      shared = Weight<E, kBits, kShared>::shared_multiplier(own, reinterpret_cast<uint64_t*>(table));
    const auto* best = products<E>(index);
#pragma unroll 4
    for (int piece = threadIdx.x; piece < kLookupBytes / 16; piece += kResidualThreads) {
      uint32_t entry[kWords];
      entry_of<E>(piece / kSharing, index, own, shared, best, entry);
      write_piece(table, piece, entry);
    }
    return shared;
  }

  // A thread's part of the same, of entries that are one behind another in memory.
  struct Pieces {
    static constexpr int kCount = kLookupBytes / 16 / kResidualThreads;
    struct alignas(kEntry) Entry {
      uint32_t words[kWords];
    } entries[kCount];

    __device__ __forceinline__ explicit Pieces(const uint32_t* from) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        entries[i] = reinterpret_cast<const Entry*>(from)[(i * kResidualThreads + threadIdx.x) / kSharing];
    }
    __device__ __forceinline__ void write(unsigned char* table) const {
#pragma unroll
      for (int i = 0; i < kCount; ++i) write_piece(table, i * kResidualThreads + threadIdx.x, entries[i].words);
    }
  };

  // This lane's copy within a row. Opaque, so that it stays one value in a register.
  static __device__ __forceinline__ uint32_t own() {
    uint32_t offset = threadIdx.x % kCopies * kEntry;
    asm volatile("" : "+r"(offset));
    return offset;
  }
};

// e = centroid + value * multiplier of two features, rounded once.
template <class E>
__device__ __forceinline__ uint32_t add_weights(uint32_t centroid, uint32_t value, uint32_t multiplier) {
#if __CUDA_ARCH__ < 800
  if constexpr (std::is_same<E, __nv_bfloat16>::value) {  // Turing has no such sum: the launcher never asks for it
    __trap();
    return 0;
  } else
#endif
  {
    using Two = typename Pair<E>::Two;
    const Two sum = __hfma2(*reinterpret_cast<const Two*>(&value), *reinterpret_cast<const Two*>(&multiplier),
                            *reinterpret_cast<const Two*>(&centroid));
    return *reinterpret_cast<const uint32_t*>(&sum);
  }
}

// The buckets of one lane's features: four chunks of eight, kBits bytes each.
// kWhole: rows of 128 features, which can be read as words.
template <int kBits, bool kWhole>
struct Packed {
  static constexpr int kWords = kBits == 8 ? 2 : 1;  // of a chunk; the bytes beyond are zero
  uint32_t words[kChunks][kWords];

  __device__ __forceinline__ void load(const ResidualArgs& args, int64_t row) {
    if constexpr (kWhole) {  // nothing but loads: none may wait for another
      const unsigned char* bytes = args.index.bytes + row * (kMaxResidualDim / 8 * kBits) + threadIdx.x % 4 * kBits;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) load_chunk(c, bytes + c * 4 * kBits);
      return;
    }
    const unsigned char* bytes = args.index.bytes + row * args.index.row_bytes + threadIdx.x % 4 * kBits;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {  // a chunk that does not exist is read in place of the lane's first, and unused
      const bool exists = 32 * c + static_cast<int>(threadIdx.x % 4) * kChunk8 < args.index.dim;
      const unsigned char* from = exists ? bytes + c * 4 * kBits : args.index.bytes + row * args.index.row_bytes;
      if (args.aligned) {
        load_chunk(c, from);
      } else {
#pragma unroll
        for (int i = 0; i < kWords; ++i) words[c][i] = 0;
#pragma unroll
        for (int b = 0; b < kBits; ++b) words[c][b / 4] |= static_cast<uint32_t>(from[b]) << 8 * (b % 4);
      }
    }
  }

  __device__ __forceinline__ void load_chunk(int c, const unsigned char* bytes) {
    if constexpr (kBits == 1) words[c][0] = __ldg(bytes);
    if constexpr (kBits == 2) words[c][0] = __ldg(reinterpret_cast<const uint16_t*>(bytes));
    if constexpr (kBits == 4) words[c][0] = __ldg(reinterpret_cast<const uint32_t*>(bytes));
    if constexpr (kBits == 8) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(bytes));
      words[c][0] = two.x, words[c][kWords - 1] = two.y;
    }
  }

  // Where byte b of chunk c is looked up: its number times the 128 bytes of a row, and the lane's copy.
  __device__ __forceinline__ const unsigned char* entry(const unsigned char* table, uint32_t own, int c, int b) const {
    const int shift = 8 * (b % 4);
    const uint32_t word = words[c][b / 4];
    const uint32_t offset = shift >= 7 ? word >> (shift - 7) : word << (7 - shift);
    return table + ((offset & 0x7f80u) | own);
  }

  // Values, and multipliers unless they are shared, of feature pair i of chunk c.
  __device__ __forceinline__ void look_up(const unsigned char* table, uint32_t own, int c, uint32_t (&values)[4],
                                          uint32_t (&multipliers)[4]) const {
    if constexpr (kBits == 1) {
      const uint4 four = *reinterpret_cast<const uint4*>(entry(table, own, c, 0));
      values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else if constexpr (kBits == 2) {
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const uint2 two = *reinterpret_cast<const uint2*>(entry(table, own, c, b));
        values[2 * b] = two.x, values[2 * b + 1] = two.y;
      }
    } else if constexpr (kBits == 4) {
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const uint2 two = *reinterpret_cast<const uint2*>(entry(table, own, c, b));
        values[b] = two.x, multipliers[b] = two.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t low = *reinterpret_cast<const uint32_t*>(entry(table, own, c, 2 * i));
        const uint32_t high = *reinterpret_cast<const uint32_t*>(entry(table, own, c, 2 * i + 1));
        values[i] = __byte_perm(low, high, 0x5410), multipliers[i] = __byte_perm(low, high, 0x7632);
      }
    }
  }
};

}  // namespace cuda
}  // namespace maxsim

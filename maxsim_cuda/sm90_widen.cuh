// Stored documents under 16-bit queries: values of eight bits or of one become the queries' type where they lie in
// shared memory, which is exact, between the copy engine and the products.
#pragma once

#include "ptx/permute.cuh"
#include "ptx/shared.cuh"
#include "sm90_shared.cuh"

namespace maxsim {
namespace cuda {

// What unsigned values are widened less of: products with what is left are small, and lose less to rounding.
constexpr float kUnsignedCentre = 128.f;

template <class Pair>
__device__ __forceinline__ Pair as_pair(uint32_t bits) {
  return *reinterpret_cast<const Pair*>(&bits);
}
template <class Pair>
__device__ __forceinline__ uint32_t bits_of(const Pair& pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Two of four bytes, less kUnsignedCentre or signed. fp16: put behind the exponent of a number whose last place is 1.
template <bool kSigned>
__device__ __forceinline__ uint32_t widen_integers(uint32_t bytes, int pair, __half) {  // 1024 + 128 + x, less 1152
  const uint32_t shifted = kSigned ? bytes ^ 0x80808080 : bytes;
  const uint32_t two = __byte_perm(shifted, 0x64646464, pair ? 0x4342 : 0x4140);
  return bits_of(__hsub2(as_pair<__half2>(two), as_pair<__half2>(0x64806480)));
}
// bf16: the bits of a byte are a number already, that many times 2^-133, of which 2^6 and 2^127 make the byte.
template <bool kSigned>
__device__ __forceinline__ uint32_t widen_integers(uint32_t bytes, int pair, __nv_bfloat16) {
  using Pair = __nv_bfloat162;
  const uint32_t shifted = kSigned ? bytes ^ 0x80808080 : bytes;
  const Pair two = as_pair<Pair>(__byte_perm(shifted, 0, pair ? 0x4342 : 0x4140));
  const Pair large = __hmul2(two, as_pair<Pair>(0x42804280));
  return bits_of(__hfma2(large, as_pair<Pair>(0x7f007f00), as_pair<Pair>(0xc300c300)));
}

__device__ __forceinline__ uint32_t widen_floats(uint32_t pair, __nv_fp8_interpretation_t kind, __half) {
  return bits_of(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), kind));
}
__device__ __forceinline__ uint32_t widen_floats(uint32_t pair, __nv_fp8_interpretation_t kind, __nv_bfloat16) {
  return bits_of(__float22bfloat162_rn(__half22float2(as_pair<__half2>(widen_floats(pair, kind, __half())))));
}

// 1 where the bit is set, -1 where it is not, of the lowest eight bits. Shifted copies, which a product adds, hold bits
// 3 to 0 and 7 to 4 as the signs of the bytes of a word.
template <class T>
__device__ __forceinline__ void widen_signs(uint32_t bits, uint32_t (&out)[4]) {
  constexpr uint32_t kOne = std::is_same_v<T, __half> ? 0x3c003c00 : 0x3f803f80;
  const uint32_t eight = bits & 0xff, signs[2] = {eight * 0x80402010, eight * 0x08040201};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t set = i % 2 ? ptx::byte_signs<0, 1>(signs[i / 2]) : ptx::byte_signs<2, 3>(signs[i / 2]);
    out[i] = (~set & 0x80008000) | kOne;
  }
}

// Eight neighbouring features: bytes, or the bits of the lowest one.
template <class T, DType kDType>
__device__ __forceinline__ uint4 widen_eight(const uint2& raw) {
  uint32_t out[4];
  if constexpr (kDType == DType::bit) {
    widen_signs<T>(raw.x, out);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = i < 2 ? raw.x : raw.y;
      if constexpr (kDType == DType::e4m3 || kDType == DType::e5m2)
        out[i] = widen_floats(word >> i % 2 * 16 & 0xffff, kDType == DType::e4m3 ? __NV_E4M3 : __NV_E5M2, T());
      else
        out[i] = widen_integers<kDType == DType::s8>(word, i % 2, T());
    }
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}

// Calls with the documents' dtype as a constant.
template <class Call>
__device__ __forceinline__ void with_stored(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::e4m3:
      return call(std::integral_constant<DType, DType::e4m3>());
    case DType::e5m2:
      return call(std::integral_constant<DType, DType::e5m2>());
    case DType::s8:
      return call(std::integral_constant<DType, DType::s8>());
    case DType::u8:
      return call(std::integral_constant<DType, DType::u8>());
    default:
      return call(std::integral_constant<DType, DType::bit>());
  }
}

// Sixteen features as they are stored, of which a row of kAtoms * 128 bytes has kAtoms * 4, at the front of its last
// atom. They go to two 16-byte chunks of the row, which may hold what another lane has yet to read.
template <class C>
struct Sm90WideRows {
  static constexpr int kSixteens = C::kAtoms * 4, kStored = (C::kAtoms - 1) * C::N * 128;

  // Rows that came one by one.
  template <DType kDType>
  struct Apart {
    uint32_t tile;
    __device__ __forceinline__ uint4 load(int row, int sixteen) const {
      if constexpr (kDType == DType::bit)
        return make_uint4(ptx::load_shared_2(tile + kStored + swizzled(C::N, row, 0) + sixteen * 2), 0, 0, 0);
      else
        return ptx::load_shared_16(tile + kStored + swizzled(C::N, row, sixteen));
    }
  };
  // Rows of signs that came as they lie in memory. Behind a row's last byte is another row's first one, or what was
  // there before: signs that meet zeros.
  struct Together {
    uint32_t from;
    int row_bytes, last_eight;
    __device__ __forceinline__ uint4 load(int column, int sixteen) const {
      const int row = min(column & ~7, last_eight) + (column & 7);
      const uint32_t at = from + row * row_bytes + sixteen * 2;
      return make_uint4(ptx::load_shared_1(at) | ptx::load_shared_1(at + 1) << 8, 0, 0, 0);
    }
  };

  // Rows of two atoms: the upper half of the sixteens goes to the other atom, to the same banks, so it begins with its
  // second chunk.
  template <class T, DType kDType>
  __device__ __forceinline__ static void store(uint32_t tile, int row, int sixteen, const uint4& raw) {
    const int swap = sixteen / 4;
    uint2 low = make_uint2(raw.x, raw.y), high = make_uint2(raw.z, raw.w);
    if constexpr (kDType == DType::bit) high.x = raw.x >> 8;
    ptx::store_shared_16(tile + swizzled(C::N, row, sixteen * 2 + swap), widen_eight<T, kDType>(swap ? high : low));
    ptx::store_shared_16(tile + swizzled(C::N, row, sixteen * 2 + 1 - swap), widen_eight<T, kDType>(swap ? low : high));
  }
};

// Of kSteps rows, kThreads / kSixteens apart, one of kThreads threads' sixteen features. Lanes that share a row are in
// one warp, whose rows are all inside the tile or none.
template <class C, class T, DType kDType, int kThreads, int kSteps, bool kAllInside, class Stored>
__device__ __forceinline__ void widen_rows(const Stored& stored, uint32_t tile, int first, int sixteen) {
  using Rows = Sm90WideRows<C>;
  constexpr int kStep = kThreads / Rows::kSixteens;
  static_assert(C::N % (32 / Rows::kSixteens) == 0);
  uint4 raw[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i)
    if (kAllInside || first + i * kStep < C::N) raw[i] = stored.load(first + i * kStep, sixteen);
  __syncwarp();  // the rows have been read
#pragma unroll
  for (int i = 0; i < kSteps; ++i)
    if (kAllInside || first + i * kStep < C::N)
      Rows::template store<T, kDType>(tile, first + i * kStep, sixteen, raw[i]);
}

// A thread's part of a tile: kTogether rows are loaded before the first is looked at.
template <class C, class T, DType kDType, int kThreads, int kTogether, class Stored>
__device__ __forceinline__ void widen_tile(const Stored& stored, uint32_t tile, int thread) {
  constexpr int kSixteens = Sm90WideRows<C>::kSixteens, kStride = kThreads / kSixteens * kTogether;
  constexpr int kWhole = C::N / kStride * kStride;
  const int first = thread / kSixteens, sixteen = thread % kSixteens;
#pragma unroll 1
  for (int from = 0; from < kWhole; from += kStride)
    widen_rows<C, T, kDType, kThreads, kTogether, true>(stored, tile, from + first, sixteen);
  if constexpr (kWhole < C::N)
    widen_rows<C, T, kDType, kThreads, kTogether, false>(stored, tile, kWhole + first, sixteen);
}

// The warps behind those that load.
template <class C, class T>
struct Sm90Widener {
  const Sm90Args& args;
  Sm90Shared<C>& shared;
  uint32_t tiles;  // shared address
  int thread;

  __device__ __forceinline__ void run() const {
    using Rows = Sm90WideRows<C>;
    if (args.signs)
      return run<DType::bit>([&](int stage, uint32_t) {
        const uint32_t staged = tiles + C::kStages * C::kTileBytes + stage * C::kStagedBytes;
        const StageInfo& info = shared.stages[stage];
        return typename Rows::Together{staged + info.skipped, static_cast<int>(args.problem.documents.token_stride),
                                       info.last_eight};
      });
    with_stored(args.problem.documents.dtype, [&](auto dtype) {
      constexpr DType kDType = decltype(dtype)::value;
      run<kDType>([](int, uint32_t tile) { return typename Rows::template Apart<kDType>{tile}; });
    });
  }

 private:
  template <DType kDType, class StoredOf>
  __device__ __forceinline__ void run(const StoredOf& stored_of) const {
    Ring<C::kStages> ring;
    while (true) {
      ptx::mbarrier_wait(&shared.full[ring.at], ring.phase);
      const bool end = shared.stages[ring.at].flags & StageInfo::kEnd;
      const uint32_t tile = tiles + ring.at * C::kTileBytes;
      if (!end) widen_tile<C, T, kDType, C::kMoreWarps * 32, 3>(stored_of(ring.at, tile), tile, thread);
      ptx::fence_async_proxy();
      ptx::mbarrier_arrive(&shared.scaled[ring.at]);
      if (end) return;
      ring.advance();
    }
  }
};

}  // namespace cuda
}  // namespace maxsim

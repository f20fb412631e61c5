// Row maxima in registers, for products laid out as mma.sync and wgmma leave them: a thread holds columns
// 8j + 2 (lane % 4) and the next one, of row lane / 4 and of the row 8 below, in four consecutive accumulators.
#pragma once

#include <type_traits>

#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

// NaN if either is.
__device__ __forceinline__ float max_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  return a != a || a > b ? a : b;
#endif
}

// The two rows a thread holds of one tile.
template <bool kArgmax>
struct RowState {
  float best[2];
  int32_t winner[2];

  __device__ __forceinline__ void reset() {
    best[0] = best[1] = -INFINITY;
    if (kArgmax) winner[0] = winner[1] = INT32_MAX;
  }
  __device__ __forceinline__ void take(int row, float value, int32_t token) {
    if (!kArgmax) {
      best[row] = max_nan(best[row], value);
    } else if (beats(value, token, best[row], winner[row])) {
      best[row] = value;
      winner[row] = token;
    }
  }
  // Over the four lanes that share a row.
  __device__ __forceinline__ void reduce() {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int step = 1; step <= 2; step *= 2) {
        const float other = __shfl_xor_sync(~0u, best[row], step);
        const int32_t token = kArgmax ? __shfl_xor_sync(~0u, winner[row], step) : 0;
        take(row, other, token);
      }
  }
};

// The document token of each column of a tile: those from one on.
struct TokensFrom {
  int32_t first;
  __device__ __forceinline__ int32_t at(int column) const { return first + column; }
};

// Factors of the columns: null where the products are what they are. Sums of integers become floats here, exactly.
template <bool kScaled>
struct ColumnScale {
  static constexpr bool kScales = kScaled;
  const float* factors;  // of the tile's first column

  __device__ __forceinline__ float2 at(int column) const {
    return kScaled ? *reinterpret_cast<const float2*>(factors + column) : make_float2(1.f, 1.f);
  }
  __device__ __forceinline__ float apply(float value, const float2& scale, int, int column) const {
    return kScaled ? value * (column % 2 ? scale.y : scale.x) : value;
  }
};

// Factors of columns, and what is added to all features of a column, for each of the two rows whose features have these
// `sums`. Products are of values that were less by `centre`.
struct ColumnAffine {
  static constexpr bool kScales = true;
  struct Two {
    float scale[2], minimum[2];
  };
  const float *factors, *minima;
  float centre;
  const float (&sums)[2];

  __device__ __forceinline__ Two at(int column) const {
    const float2 scale = *reinterpret_cast<const float2*>(factors + column);
    const float2 minimum = *reinterpret_cast<const float2*>(minima + column);
    return {{scale.x, scale.y}, {fmaf(scale.x, centre, minimum.x), fmaf(scale.y, centre, minimum.y)}};
  }
  __device__ __forceinline__ float apply(float value, const Two& two, int row, int column) const {
    return fmaf(value, two.scale[column], sums[row] * two.minimum[column]);
  }
};

// Which of a thread's columns count, two of every eight: all of them.
struct EveryColumn {
  __device__ __forceinline__ bool any(int) const { return true; }
  __device__ __forceinline__ int32_t keep(int32_t value, int, int) const { return value; }
};

// Or those of the `bits` of a tile, in which this thread's first column is column0.
struct KeptColumns {
  const uint32_t* bits;
  int column0;

  // Of two eights, which lie in one word.
  __device__ __forceinline__ uint32_t word(int eight) const {
    const int column = column0 + eight / 2 * 16;
    return bits[column / 32] >> column % 32;
  }
  __device__ __forceinline__ bool any(int eights) const {
    uint32_t found = 0;
#pragma unroll
    for (int eight = 0; eight < eights; eight += 2) found |= word(eight) & (eight + 1 < eights ? 0x0303 : 0x0003);
    return found;
  }
  // The value of a column of an eight, or what is below every other one.
  __device__ __forceinline__ int32_t keep(int32_t value, int eight, int e) const {
    const int32_t mask = static_cast<int32_t>(word(eight) << (31 - eight % 2 * 8 - e)) >> 31;
    return (value & mask) | (INT32_MIN & ~mask);
  }
};

// Maxima by the bits of the products, three at a time, which is four times as fast as comparing floats: as integers
// they are ordered as floats are, with NaN above all of them, as long as the maximum is not negative.
template <int kCount, class A, class Kept, class Scale>
__device__ __forceinline__ void integer_maxima(const A (&c)[kCount], int column0, const Kept& kept, const Scale& scale,
                                               int32_t (&best)[2]) {
  best[0] = best[1] = INT32_MIN;
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const auto factor = scale.at(column0 + j * 8);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      best[r] = __vimax3_s32(best[r], kept.keep(__float_as_int(scale.apply(c[4 * j + 2 * r], factor, r, 0)), j, 0),
                             kept.keep(__float_as_int(scale.apply(c[4 * j + 2 * r + 1], factor, r, 1)), j, 1));
  }
}

// Two maxima of values as integers, where `counts` is not zero. The compiler would compare and select.
__device__ __forceinline__ void raise_both_if(uint32_t counts, int32_t& first, int32_t& second, float a, float b) {
  asm("{\n"
      ".reg .pred counts;\n"
      "setp.ne.u32 counts, %2, 0;\n"
      "@counts max.s32 %0, %0, %3;\n"
      "@counts max.s32 %1, %1, %4;\n"
      "}"
      : "+r"(first), "+r"(second)
      : "r"(counts), "r"(__float_as_int(a)), "r"(__float_as_int(b)));
}

// The maxima of two rows and two values of each.
__device__ __forceinline__ void raise_rows_if(uint32_t counts, int32_t (&best)[2], const float* c) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (counts) best[r] = __vimax3_s32(best[r], __float_as_int(c[2 * r]), __float_as_int(c[2 * r + 1]));
}

// Maxima of a tile of whose columns this thread's count where a bit of `own` is set, two for each eight. A value is
// skipped by a predicate, which takes one operation for a column; cutting values out by bits takes one for each of
// them, and four for a column. False, with nothing taken, where one is negative. kContinues: the maximum so far counts,
// which makes that rare; the kernel of padded documents finds no registers for it and serialises products.
template <bool kContinues, bool kEights, int kCount>
__device__ __forceinline__ bool take_own_maxima(const float (&c)[kCount], RowState<false>& row, uint32_t own) {
  static_assert(kCount / 2 <= 32, "a bit for each column");
  int32_t best[2] = {INT32_MIN, INT32_MIN};
  if (kContinues)
#pragma unroll
    for (int r = 0; r < 2; ++r) best[r] = __float_as_int(row.best[r]);
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i)
    if constexpr (!kEights)
      raise_both_if(own & 1u << i, best[0], best[1], c[i / 2 * 4 + i % 2], c[i / 2 * 4 + 2 + i % 2]);
    else if (i % 2 == 0)
      raise_rows_if(own & 1u << i, best, c + i * 2);
  const bool any = own != 0, negative = __any_sync(~0u, any && (best[0] | best[1]) < 0);
  if (__shfl_sync(~0u, negative, 0)) return false;
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (kContinues)
      row.best[r] = __int_as_float(best[r]);
    else if (any)
      row.best[r] = max_nan(row.best[r], __int_as_float(best[r]));
  return true;
}

// Maxima of a tile. False, with nothing taken, where one is negative.
template <int kCount, class A, class Tokens, class Kept, class Scale>
__device__ __forceinline__ bool take_maxima(const A (&c)[kCount], RowState<false>& row, const Tokens&, int column0,
                                            const Kept& kept, const Scale& scale) {
  int32_t best[2];
  integer_maxima(c, column0, kept, scale, best);
  const bool any = kept.any(kCount / 4), negative = __any_sync(~0u, any && (best[0] | best[1]) < 0);
  if (__shfl_sync(~0u, negative, 0)) return false;  // shuffled for the compiler: it keeps wgmma's control flow uniform
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (any) row.best[r] = max_nan(row.best[r], __int_as_float(best[r]));
  return true;
}

// The maximum of kTo - kFrom values, three at a time.
template <int kFrom, int kTo, class Values>
__device__ __forceinline__ int32_t maximum(const Values& value) {
  int32_t best = value(kFrom);
#pragma unroll
  for (int i = kFrom + 1; i < kTo; i += 2) best = __vimax3_s32(best, value(i), i + 1 < kTo ? value(i + 1) : INT32_MIN);
  return best;
}

// Which of kCount values is the first that equals `best`, as one does. Of three groups the first one to hold it is
// chosen, value by value, and looked through in turn: two operations a value, where a comparison and a selection for
// each would be four.
template <int kCount, class Values>
__device__ __forceinline__ int first_of(const Values& value, int32_t best) {
  constexpr int kThird = (kCount + 2) / 3, kSecondEnd = 2 * kThird < kCount ? 2 * kThird : kCount;
  const bool first = maximum<0, kThird>(value) == best;
  const bool second = maximum<kThird, kSecondEnd>(value) == best;
  const int begin = first ? 0 : second ? kThird : 2 * kThird;
  if constexpr (kThird == 1) {
    return begin;
  } else {
    int32_t chosen[kThird];
#pragma unroll
    for (int i = 0; i < kThird; ++i) {
      const int32_t last = 2 * kThird + i < kCount ? value(2 * kThird + i) : INT32_MIN;
      chosen[i] = first ? value(i) : second && kThird + i < kCount ? value(kThird + i) : last;
    }
    return begin + first_of<kThird>([&](int i) { return chosen[i]; }, best);
  }
}

// Which as an integer is below all others, but as a float equals zero.
template <int kCount, class Values>
__device__ __forceinline__ bool has_negative_zero(const Values& value) {
  int32_t least = value(0);
#pragma unroll
  for (int i = 1; i < kCount; ++i) least = min(least, value(i));
  return least == INT32_MIN;
}

// Winners of a tile of which every column counts, as products are. False, with nothing taken, where a maximum is
// negative, NaN or a zero that may equal one of another sign.
template <int kCount, class Tokens>
__device__ __forceinline__ bool take_winners(const float (&c)[kCount], RowState<true>& row, const Tokens& tokens,
                                             int column0) {
  constexpr int kValues = kCount / 2;
  const auto value_of = [&](int r) { return [&c, r](int i) { return __float_as_int(c[i / 2 * 4 + 2 * r + i % 2]); }; };
  int32_t best[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) best[r] = maximum<0, kValues>(value_of(r));
  constexpr int32_t kInfinite = 0x7f800000;
  bool exact = (best[0] | best[1]) < 0 || best[0] > kInfinite || best[1] > kInfinite;
  if (__any_sync(~0u, best[0] == 0 || best[1] == 0))
#pragma unroll
    for (int r = 0; r < 2; ++r) exact |= best[r] == 0 && has_negative_zero<kValues>(value_of(r));
  if (__shfl_sync(~0u, __any_sync(~0u, exact), 0)) return false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    unsigned winner = first_of<kValues>(value_of(r), best[r]);
    asm volatile("" : "+r"(winner));  // no branch around it
    const bool greater = __int_as_float(best[r]) > row.best[r];
    row.best[r] = greater ? __int_as_float(best[r]) : row.best[r];
    row.winner[r] = greater ? tokens.at(column0 + static_cast<int>(winner / 2 * 8 + winner % 2)) : row.winner[r];
  }
  return true;
}

// Winners of any tile: choosing among groups would need each kept or scaled value in a register. A product's distance
// below the maximum, blown up, pushes its column's rank far below zero; only products that equal the maximum keep
// theirs, and the highest rank is the lowest column. That costs the idle FMA pipe two operations a product and the busy
// one half of one, where a comparison and two selections cost it three. False, with nothing taken, where a maximum is
// negative, NaN or too large to subtract from.
template <int kCount, class A, class Tokens, class Kept, class Scale>
__device__ __forceinline__ bool take_maxima(const A (&c)[kCount], RowState<true>& row, const Tokens& tokens,
                                            int column0, const Kept& kept, const Scale& scale) {
  constexpr int kRanks = 1024;  // as the bits of a float, which addition to zero leaves as they are
  static_assert(kCount * 2 <= kRanks, "a rank above zero for each column of the tile");
  constexpr uint32_t kTooLarge = 0x7e800000;  // the bits of 2^126; as unsigned, those of negative numbers are above
  // Whatever the maximum, two floats differ by 2^-149 at least: times 2^100 and 2^60 that is 2^11, far above any rank.
  // From 2^-20 on they differ by 2^-44, and the first factor is not needed; it could overflow.
  constexpr float kBlowUp = 0x1p60f, kSmall = 0x1p-20f, kSmallFactor = 0x1p100f;
  int32_t best[2];
  integer_maxima(c, column0, kept, scale, best);
  const bool any = kept.any(kCount / 4);
  const bool exact = __any_sync(
      ~0u, any && (static_cast<uint32_t>(best[0]) >= kTooLarge || static_cast<uint32_t>(best[1]) >= kTooLarge));
  if (__shfl_sync(~0u, exact, 0)) return false;
  float factor[2], origin[2];
  int32_t rank[2] = {INT32_MIN, INT32_MIN};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float value = __int_as_float(best[r]);
    factor[r] = value < kSmall ? kSmallFactor : 1.f;
    origin[r] = -value * factor[r];
  }
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const auto column = scale.at(column0 + j * 8);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int32_t ranks[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float below = fmaf(scale.apply(c[4 * j + 2 * r + e], column, r, e), factor[r], origin[r]);
        ranks[e] = kept.keep(__float_as_int(fmaf(below, kBlowUp, __int_as_float(kRanks - (8 * j + e)))), j, e);
      }
      rank[r] = __vimax3_s32(rank[r], ranks[0], ranks[1]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (any && __int_as_float(best[r]) > row.best[r]) {
      row.best[r] = __int_as_float(best[r]);
      row.winner[r] = tokens.at(column0 + kRanks - rank[r]);
    }
  return true;
}

// The products of one tile of rows and kCount * 2 columns, of which this thread's first is column0. `bits` are the kept
// columns from the tile's first one on, looked at unless the tile is full.
template <int kCount, class A, bool kArgmax, class Tokens, class Scale>
__device__ __forceinline__ void take_products(const A (&c)[kCount], RowState<kArgmax>& row, const Tokens& tokens,
                                              int column0, bool full, const uint32_t* bits, const Scale& scale) {
  // Sums of integers and factors leave no registers for the masks.
  if constexpr (std::is_same_v<A, float> && !Scale::kScales) {
    const auto take_whole = [&] {
      if constexpr (kArgmax)
        return take_winners(c, row, tokens, column0);
      else
        return take_maxima(c, row, tokens, column0, EveryColumn{}, scale);
    };
    if (full ? take_whole() : take_maxima(c, row, tokens, column0, KeptColumns{bits, column0}, scale)) return;
  } else {
    if (full && take_maxima(c, row, tokens, column0, EveryColumn{}, scale)) return;
    column0 = __shfl_xor_sync(~0u, column0, 0);  // scaled anew: what was scaled above would wait in registers
  }
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const int column = column0 + j * 8;
    const auto factor = scale.at(column);
    const uint32_t kept = full ? ~0u : bits[column / 32] >> column % 32;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (kept >> e % 2 & 1)
        row.take(e / 2, scale.apply(c[4 * j + e], factor, e / 2, e % 2), kArgmax ? tokens.at(column + e % 2) : 0);
  }
}

// As take_products, where `own` says which of this thread's columns count if the tile is not full. kEights: all or none
// of each eight.
template <bool kContinues, bool kEights = false, int kCount, class Tokens>
__device__ __forceinline__ void take_own_products(const float (&c)[kCount], RowState<false>& row, const Tokens& tokens,
                                                  bool full, const uint32_t& own) {
  if (full ? take_maxima(c, row, tokens, 0, EveryColumn{}, ColumnScale<false>{})
           : take_own_maxima<kContinues, kEights>(c, row, own))
    return;
  uint32_t counts = full ? ~0u : own;
  // Else the predicates from above are kept for this rare case, and take as many operations as the maxima.
  if (kEights) asm("" : "+r"(counts));
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i)
    if (counts >> i & 1)
#pragma unroll
      for (int r = 0; r < 2; ++r) row.take(r, c[i / 2 * 4 + 2 * r + i % 2], 0);
}

// Maxima are added in double, where 24-bit terms add without rounding unless they lie 2^20 apart: so the order, which
// holes in a query mask change, does not show.
__device__ __forceinline__ double sum_lanes(double sum) {
#pragma unroll
  for (int step = 1; step <= 16; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

}  // namespace cuda
}  // namespace maxsim

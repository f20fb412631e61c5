// The loops of every instruction set, written once over a `Simd` of `lanes` floats.
// Included by each isa_*.cpp under its own target pragma, so all of it has internal linkage.
#pragma once

#include <cstring>

#include "isa.h"

#define MAXSIM_UNROLL _Pragma("GCC unroll 32")
#define MAXSIM_INLINE_ALWAYS inline __attribute__((always_inline))

namespace maxsim {
namespace cpu {
namespace {

MAXSIM_INLINE_ALWAYS float bf16_to_float(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

// Round to nearest even; a NaN keeps its sign and becomes quiet.
MAXSIM_INLINE_ALWAYS uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

// Operands of one multiply-add: fp32 words, or bf16 pairs where the instruction set has a dot product for them.
template <class Simd>
struct Fp32Words {
  using Word = typename Simd::F;
  static constexpr bool bf16_pairs = false;
  static MAXSIM_INLINE_ALWAYS Word load(const uint32_t* panel) {
    return Simd::load(reinterpret_cast<const float*>(panel));
  }
  static MAXSIM_INLINE_ALWAYS Word broadcast(const char* word) {
    float value;
    std::memcpy(&value, word, 4);
    return Simd::broadcast(value);
  }
  static MAXSIM_INLINE_ALWAYS typename Simd::F multiply_add(Word q, Word d, typename Simd::F sum) {
    return Simd::fma(q, d, sum);
  }
};

// P panels meet R rows. Every dot product runs over k in ascending order in one accumulator, whatever P and R are:
// that is what makes a pair's score independent of its place in the call.
template <class Simd, class Words, int P, int R, bool kScale>
MAXSIM_INLINE_ALWAYS void products(const PanelTask& t, const uint32_t* panel, int64_t row,
                                   typename Simd::F (&sum)[P][R]) {
  const int64_t panel_words = t.words * Simd::lanes;
  const char* rows = t.rows + row * t.row_stride;
  const int64_t stride = t.row_stride;
  MAXSIM_UNROLL
  for (int p = 0; p < P; ++p) {
    MAXSIM_UNROLL
    for (int r = 0; r < R; ++r) sum[p][r] = Simd::zero();
  }
  for (int64_t k = 0; k < t.words; ++k) {
    typename Words::Word q[P];
    MAXSIM_UNROLL
    for (int p = 0; p < P; ++p) q[p] = Words::load(panel + p * panel_words + k * Simd::lanes);
    MAXSIM_UNROLL
    for (int r = 0; r < R; ++r) {
      const typename Words::Word d = Words::broadcast(rows + r * stride + k * 4);
      MAXSIM_UNROLL
      for (int p = 0; p < P; ++p) sum[p][r] = Words::multiply_add(q[p], d, sum[p][r]);
    }
  }
  if (kScale) {
    MAXSIM_UNROLL
    for (int p = 0; p < P; ++p) {
      MAXSIM_UNROLL
      for (int r = 0; r < R; ++r) sum[p][r] = Simd::mul(sum[p][r], Simd::broadcast(t.scale[row + r]));
    }
  }
}

template <class Simd, class Words, int P, int R, bool kWinner, bool kScale>
MAXSIM_INLINE_ALWAYS void tile(const PanelTask& t, const uint32_t* panel, int64_t row, typename Simd::F (&best)[P],
                               typename Simd::I (&winner)[P]) {
  typename Simd::F sum[P][R];
  products<Simd, Words, P, R, kScale>(t, panel, row, sum);
  MAXSIM_UNROLL
  for (int p = 0; p < P; ++p) {
    typename Simd::Mask nan = Simd::unordered(sum[p][0], sum[p][R - 1]);
    MAXSIM_UNROLL
    for (int r = 1; r < (R + 1) / 2; ++r) nan = Simd::either(nan, Simd::unordered(sum[p][r], sum[p][R - 1 - r]));
    // A vector max drops NaN or keeps it by operand order; a NaN must win and stay, so such a tile goes the exact way.
    if (__builtin_expect(Simd::any(nan), 0)) {
      MAXSIM_UNROLL
      for (int r = 0; r < R; ++r) {
        float value[Simd::lanes], top[Simd::lanes];
        int32_t index[Simd::lanes];
        Simd::store(value, sum[p][r]);
        Simd::store(top, best[p]);
        Simd::store(index, winner[p]);
        const int32_t token = t.index ? t.index[row + r] : t.first_index + static_cast<int32_t>(row + r);
        for (int l = 0; l < Simd::lanes; ++l) {
          const bool wins = value[l] > top[l] || (value[l] != value[l] && top[l] == top[l]);
          top[l] = wins ? value[l] : top[l];
          index[l] = wins ? token : index[l];
        }
        best[p] = Simd::load(top);
        winner[p] = Simd::load(index);
      }
      continue;
    }
    MAXSIM_UNROLL
    for (int r = 0; r < R; ++r) {
      if (kWinner) {
        const int32_t token = t.index ? t.index[row + r] : t.first_index + static_cast<int32_t>(row + r);
        const typename Simd::Mask wins = Simd::greater(sum[p][r], best[p]);
        best[p] = Simd::select(wins, sum[p][r], best[p]);
        winner[p] = Simd::select(wins, Simd::broadcast(token), winner[p]);
      } else {
        best[p] = Simd::max(sum[p][r], best[p]);  // returns the second operand, a NaN already found, when unordered
      }
    }
  }
}

// Rows in steps of R, then a last step that overlaps the one before: meeting a row twice changes no max and no winner.
template <class Simd, class Words, int P, int R, bool kWinner, bool kScale>
void sweep(const PanelTask& t, int64_t first_panel, int64_t from, int64_t to) {
  typename Simd::F best[P];
  typename Simd::I winner[P];
  const uint32_t* panel = t.panels + first_panel * t.words * Simd::lanes;
  float* best_out = t.best + first_panel * Simd::lanes;
  int32_t* winner_out = kWinner ? t.winner + first_panel * Simd::lanes : nullptr;
  MAXSIM_UNROLL
  for (int p = 0; p < P; ++p) {
    best[p] = Simd::load(best_out + p * Simd::lanes);
    winner[p] = kWinner ? Simd::load(winner_out + p * Simd::lanes) : Simd::broadcast(int32_t{-1});
  }
  int64_t row = from;
  for (; row + R <= to; row += R) tile<Simd, Words, P, R, kWinner, kScale>(t, panel, row, best, winner);
  if (row < to) tile<Simd, Words, P, R, kWinner, kScale>(t, panel, to - R, best, winner);
  MAXSIM_UNROLL
  for (int p = 0; p < P; ++p) {
    Simd::store(best_out + p * Simd::lanes, best[p]);
    if (kWinner) Simd::store(winner_out + p * Simd::lanes, winner[p]);
  }
}

// Full steps first, then the smallest step that covers what is left.
template <class Simd, class Words, int P, bool kWinner, bool kScale>
void score_panels(const PanelTask& t, int64_t first_panel) {
  constexpr int R = Simd::rows;
  const int64_t full = t.row_count / R * R, left = t.row_count - full;
  if (full) sweep<Simd, Words, P, R, kWinner, kScale>(t, first_panel, 0, full);
  if (left == 0) return;
  if (left > R / 2 && full) {
    sweep<Simd, Words, P, R, kWinner, kScale>(t, first_panel, t.row_count - R, t.row_count);
  } else if (left > R / 4 && t.row_count >= R / 2) {
    sweep<Simd, Words, P, R / 2, kWinner, kScale>(t, first_panel, full ? t.row_count - R / 2 : 0, t.row_count);
  } else {
    sweep<Simd, Words, P, 1, kWinner, kScale>(t, first_panel, full, t.row_count);
  }
}

template <class Simd, class Words, bool kWinner, bool kScale>
void score_all(const PanelTask& t) {
  int64_t panel = 0;
  for (; panel + Simd::panels <= t.panel_count; panel += Simd::panels)
    score_panels<Simd, Words, Simd::panels, kWinner, kScale>(t, panel);
  for (; panel < t.panel_count; ++panel) score_panels<Simd, Words, 1, kWinner, kScale>(t, panel);
}

template <class Simd, class Words>
void score(const PanelTask& t) {
  if (t.winner)
    t.scale ? score_all<Simd, Words, true, true>(t) : score_all<Simd, Words, true, false>(t);
  else
    t.scale ? score_all<Simd, Words, false, true>(t) : score_all<Simd, Words, false, false>(t);
}

// An eight-bit float is the upper end of an fp16: e5m2 as it is, e4m3 a bit lower and 2^8 too small.
template <class Simd, DType kType>
MAXSIM_INLINE_ALWAYS typename Simd::F load_bytes(const uint8_t* source) {
  if (kType == DType::s8 || kType == DType::u8) {
    float wide[Simd::lanes];
    for (int l = 0; l < Simd::lanes; ++l)
      wide[l] = kType == DType::s8 ? static_cast<float>(static_cast<int8_t>(source[l])) : static_cast<float>(source[l]);
    return Simd::load(wide);
  }
  uint16_t half[Simd::lanes];
  for (int l = 0; l < Simd::lanes; ++l) {
    const uint16_t sign = static_cast<uint16_t>((source[l] & 0x80) << 8), rest = source[l] & 0x7f;
    half[l] = kType == DType::e5m2 ? static_cast<uint16_t>(source[l] << 8)
                                   : static_cast<uint16_t>(sign | (rest == 0x7f ? 0x7e00 : rest << 7));
  }
  const typename Simd::F value = Simd::load_f16(half);
  return kType == DType::e5m2 ? value : Simd::mul(value, Simd::broadcast(256.f));
}

// Loads `lanes` elements of one dtype, or the last few of a row filled up with zeros.
template <class Simd, DType kType>
struct Row {
  static constexpr int64_t size = kType == DType::f32 ? 4 : is_stored(kType) ? 1 : 2;
  static MAXSIM_INLINE_ALWAYS typename Simd::F load(const char* source) {
    if (kType == DType::f32) return Simd::load(reinterpret_cast<const float*>(source));
    if (is_stored(kType)) return load_bytes<Simd, kType>(reinterpret_cast<const uint8_t*>(source));
    const uint16_t* half = reinterpret_cast<const uint16_t*>(source);
    return kType == DType::f16 ? Simd::load_f16(half) : Simd::load_bf16(half);
  }
  static MAXSIM_INLINE_ALWAYS typename Simd::F load_part(const char* source, int64_t count) {
    char padded[Simd::lanes * size] = {};
    std::memcpy(padded, source, count * size);
    return load(padded);
  }
};

template <class Simd>
MAXSIM_INLINE_ALWAYS void store_part(float* out, typename Simd::F v, int64_t count) {
  float part[Simd::lanes];
  Simd::store(part, v);
  std::memcpy(out, part, count * sizeof(float));
}

template <class Simd>
MAXSIM_INLINE_ALWAYS float sum_lanes(typename Simd::F v) {
  float part[Simd::lanes];
  Simd::store(part, v);
  MAXSIM_UNROLL
  for (int width = Simd::lanes / 2; width; width /= 2) {
    MAXSIM_UNROLL
    for (int l = 0; l < width; ++l) part[l] += part[l + width];
  }
  return part[0];
}

template <class Simd, DType kType>
void widen_rows(const char* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
  using R = Row<Simd, kType>;
  for (int64_t r = 0; r < count; ++r, rows += stride, out += dim) {
    int64_t k = 0;
    for (; k + Simd::lanes <= dim; k += Simd::lanes) Simd::store(out + k, R::load(rows + k * R::size));
    if (k < dim) store_part<Simd>(out + k, R::load_part(rows + k * R::size, dim - k), dim - k);
  }
}

template <class Simd, DType kType>
void inverse_norms_of(const char* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
  using R = Row<Simd, kType>;
  for (int64_t r = 0; r < count; ++r, rows += stride) {
    typename Simd::F even = Simd::zero(), odd = Simd::zero();
    int64_t k = 0;
    for (; k + 2 * Simd::lanes <= dim; k += 2 * Simd::lanes) {
      const typename Simd::F a = R::load(rows + k * R::size), b = R::load(rows + (k + Simd::lanes) * R::size);
      even = Simd::fma(a, a, even);
      odd = Simd::fma(b, b, odd);
    }
    for (; k < dim; k += Simd::lanes) {
      const int64_t left = dim - k;
      const typename Simd::F a =
          left < Simd::lanes ? R::load_part(rows + k * R::size, left) : R::load(rows + k * R::size);
      even = Simd::fma(a, a, even);
    }
    out[r] = sum_lanes<Simd>(Simd::fma(Simd::broadcast(1.f), even, odd));
  }
  for (int64_t r = 0; r < count; ++r) {
    const float norm = __builtin_sqrtf(out[r]);
    out[r] = 1.f / (norm < kNormEps ? kNormEps : norm);
  }
}

template <class Simd, DType kType>
void accumulate_row(float* sum, const char* row, float factor, int64_t dim) {
  using R = Row<Simd, kType>;
  const typename Simd::F f = Simd::broadcast(factor);
  int64_t k = 0;
  for (; k + Simd::lanes <= dim; k += Simd::lanes)
    Simd::store(sum + k, Simd::fma(f, R::load(row + k * R::size), Simd::load(sum + k)));
  if (k < dim) {
    const typename Simd::F old = Row<Simd, DType::f32>::load_part(reinterpret_cast<const char*>(sum + k), dim - k);
    store_part<Simd>(sum + k, Simd::fma(f, R::load_part(row + k * R::size, dim - k), old), dim - k);
  }
}

inline void widen_bits(const char* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
  for (int64_t r = 0; r < count; ++r, rows += stride, out += dim)
    for (int64_t k = 0; k < dim; ++k) out[k] = rows[k / 8] >> k % 8 & 1 ? 1.f : -1.f;
}

#define MAXSIM_CASE(type, function, ...) \
  case DType::type:                      \
    return function<Simd, DType::type>(__VA_ARGS__);
#define MAXSIM_FLOATS(function, ...)      \
  MAXSIM_CASE(f32, function, __VA_ARGS__) \
  MAXSIM_CASE(f16, function, __VA_ARGS__) \
  MAXSIM_CASE(bf16, function, __VA_ARGS__)

template <class Simd>
void widen(const char* rows, int64_t stride, DType type, int64_t count, int64_t dim, float* out) {
  switch (type) {
    MAXSIM_FLOATS(widen_rows, rows, stride, count, dim, out)
    MAXSIM_CASE(e4m3, widen_rows, rows, stride, count, dim, out)
    MAXSIM_CASE(e5m2, widen_rows, rows, stride, count, dim, out)
    MAXSIM_CASE(s8, widen_rows, rows, stride, count, dim, out)
    MAXSIM_CASE(u8, widen_rows, rows, stride, count, dim, out)
    case DType::bit:
      return widen_bits(rows, stride, count, dim, out);
  }
}

template <class Simd>
void inverse_norms(const char* rows, int64_t stride, DType type, int64_t count, int64_t dim, float* out) {
  switch (type) {
    MAXSIM_FLOATS(inverse_norms_of, rows, stride, count, dim, out)
    default:
      return;  // what is stored is never normalised
  }
}

template <class Simd>
void accumulate(float* sum, const char* row, DType type, float factor, int64_t dim) {
  switch (type) {
    MAXSIM_FLOATS(accumulate_row, sum, row, factor, dim)
    default:
      return;  // what is stored has no gradient
  }
}

#undef MAXSIM_CASE
#undef MAXSIM_FLOATS

template <class Simd>
void narrow(const float* source, DType type, void* out, int64_t n) {
  if (type == DType::f32) {
    std::memcpy(out, source, n * sizeof(float));
    return;
  }
  uint16_t* half = static_cast<uint16_t*>(out);
  if (type == DType::bf16) {
    for (int64_t k = 0; k < n; ++k) half[k] = float_to_bf16(source[k]);
    return;
  }
  int64_t k = 0;
  for (; k + Simd::lanes <= n; k += Simd::lanes) Simd::store_f16(half + k, Simd::load(source + k));
  if (k < n) {
    uint16_t part[Simd::lanes];
    Simd::store_f16(part, Row<Simd, DType::f32>::load_part(reinterpret_cast<const char*>(source + k), n - k));
    std::memcpy(half + k, part, (n - k) * sizeof(uint16_t));
  }
}

template <class Simd>
float dot(const float* a, const float* b, int64_t n) {
  using R = Row<Simd, DType::f32>;
  typename Simd::F sum = Simd::zero();
  int64_t k = 0;
  for (; k + Simd::lanes <= n; k += Simd::lanes) sum = Simd::fma(Simd::load(a + k), Simd::load(b + k), sum);
  if (k < n)
    sum = Simd::fma(R::load_part(reinterpret_cast<const char*>(a + k), n - k),
                    R::load_part(reinterpret_cast<const char*>(b + k), n - k), sum);
  return sum_lanes<Simd>(sum);
}

// Weights of the buckets in one vector's worth of packed bits, one after another: for sets without a table look-up.
template <class Simd, int kBits>
MAXSIM_INLINE_ALWAYS typename Simd::F look_up_each(const float* table, const uint8_t* packed) {
  float part[Simd::lanes];
  MAXSIM_UNROLL
  for (int l = 0; l < Simd::lanes; ++l) {
    const int bit = l * kBits;
    part[l] = table[packed[bit / 8] >> bit % 8 & ((1 << kBits) - 1)];
  }
  return Simd::load(part);
}

template <class Simd, int kBits>
void add_buckets_of(const uint8_t* packed, const float* table, int64_t dim, float* row) {
  constexpr int64_t step = Simd::lanes * kBits / 8;
  int64_t k = 0;
  if constexpr (Simd::lanes * kBits % 8 == 0)  // four lanes of one bit begin at half bytes
    for (; k + Simd::lanes <= dim; k += Simd::lanes, packed += step)
      Simd::store(row + k,
                  Simd::fma(Simd::broadcast(1.f), Simd::load(row + k), Simd::template look_up<kBits>(table, packed)));
  for (int64_t bit = 0; k < dim; ++k, bit += kBits) row[k] += table[packed[bit / 8] >> bit % 8 & ((1 << kBits) - 1)];
}

template <class Simd>
void add_buckets(const uint8_t* packed, int32_t nbits, const float* table, int64_t dim, float* row) {
  switch (nbits) {
    case 1:
      return add_buckets_of<Simd, 1>(packed, table, dim, row);
    case 2:
      return add_buckets_of<Simd, 2>(packed, table, dim, row);
    case 4:
      return add_buckets_of<Simd, 4>(packed, table, dim, row);
    default:
      return add_buckets_of<Simd, 8>(packed, table, dim, row);
  }
}

}  // namespace
}  // namespace cpu
}  // namespace maxsim

// The loops of the soft maximum: an online sum of exponentials, and its gradient from the sum that was found.
// Included by each isa_*.cpp under its own target pragma, so all of it has internal linkage.
#pragma once

#include "kernels.h"

namespace maxsim {
namespace cpu {
namespace {

template <int N>
struct Count {
  static constexpr int value = N;
};

// 2^x to 2e-7, for x up to 126. Below -100 it stays at 2^-100: a sum that has a term of 1 does not notice, and products
// with it are no subnormal numbers, which are slow.
template <class Simd>
MAXSIM_INLINE_ALWAYS typename Simd::F exp2(typename Simd::F x) {
  using F = typename Simd::F;
  const F one = Simd::broadcast(1.f);
  const F shift = Simd::broadcast(12582912.f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const F clamped = Simd::max(x, Simd::broadcast(-100.f));
  const F shifted = Simd::fma(clamped, one, shift);
  const F rest = Simd::fma(Simd::fma(shifted, one, Simd::broadcast(-12582912.f)), Simd::broadcast(-1.f), clamped);
  F power = Simd::broadcast(1.5403530394e-4f);  // Taylor's coefficients: the rest is within half of 0
  power = Simd::fma(power, rest, Simd::broadcast(1.3333558146e-3f));
  power = Simd::fma(power, rest, Simd::broadcast(9.6181291076e-3f));
  power = Simd::fma(power, rest, Simd::broadcast(5.5504108665e-2f));
  power = Simd::fma(power, rest, Simd::broadcast(2.4022650696e-1f));
  power = Simd::fma(power, rest, Simd::broadcast(6.9314718056e-1f));
  power = Simd::fma(power, rest, one);
  return Simd::mul(power, Simd::power_of_two(shifted));
}

// One more x in the sum of one lane, infinities and NaN included. `best` is finite before the first.
MAXSIM_INLINE_ALWAYS void add_exactly(float x, float& best, float& total) {
  if (x != x || best != best) {
    best = x + best;
  } else if (x > best) {
    total = (__builtin_isinf(best) || __builtin_isinf(x) ? 0.f : total * __builtin_exp2f(best - x)) + 1.f;
    best = x;
  } else if (x == best) {
    total += 1.f;
  } else if (!__builtin_isinf(best) && !__builtin_isinf(x)) {
    total += __builtin_exp2f(x - best);
  }
}

template <class Simd, class Words, int P, int R, bool kScale>
MAXSIM_INLINE_ALWAYS void soft_tile(const SoftTask& t, const uint32_t* panel, int64_t row, const float* factor,
                                    typename Simd::F (&best)[P], typename Simd::F (&total)[P]) {
  using F = typename Simd::F;
  const F minus_one = Simd::broadcast(-1.f), one = Simd::broadcast(1.f);
  F sum[P][R];
  products<Simd, Words, P, R, kScale>(t.tokens, panel, row, sum);
  MAXSIM_UNROLL
  for (int p = 0; p < P; ++p) {
    const F by = Simd::load(factor + p * Simd::lanes);
    F highest = best[p], finite = Simd::mul(best[p], Simd::zero());
    MAXSIM_UNROLL
    for (int r = 0; r < R; ++r) {
      sum[p][r] = Simd::mul(sum[p][r], by);
      highest = Simd::max(sum[p][r], highest);
      finite = Simd::fma(sum[p][r], Simd::zero(), finite);  // 0, or NaN once anything was not finite
    }
    if (__builtin_expect(Simd::any(Simd::unordered(finite, finite)), 0)) {
      float x[R][Simd::lanes], top[Simd::lanes], sums[Simd::lanes];
      MAXSIM_UNROLL
      for (int r = 0; r < R; ++r) Simd::store(x[r], sum[p][r]);
      Simd::store(top, best[p]);
      Simd::store(sums, total[p]);
      for (int r = 0; r < R; ++r)
        for (int l = 0; l < Simd::lanes; ++l) add_exactly(x[r][l], top[l], sums[l]);
      best[p] = Simd::load(top);
      total[p] = Simd::load(sums);
      continue;
    }
    const F less = Simd::mul(highest, minus_one);
    F sums = Simd::mul(total[p], exp2<Simd>(Simd::fma(best[p], one, less)));
    MAXSIM_UNROLL
    for (int r = 0; r < R; ++r) sums = Simd::fma(exp2<Simd>(Simd::fma(sum[p][r], one, less)), one, sums);
    total[p] = sums;
    best[p] = highest;
  }
}

// Weights of P panels and R rows, then R rows added to each panel's gradient.
template <class Simd, class Words, int P, int R, bool kScale>
MAXSIM_INLINE_ALWAYS void gradient_tile(const SoftGradientTask& t, int64_t first_panel, int64_t row) {
  using F = typename Simd::F;
  const int64_t words = t.tokens.words, lane = first_panel * Simd::lanes;
  const char* rows = t.tokens.rows + row * t.tokens.row_stride;
  F weight[P][R];
  products<Simd, Words, P, R, kScale>(t.tokens, t.tokens.panels + words * lane, row, weight);
  MAXSIM_UNROLL
  for (int p = 0; p < P; ++p) {
    const F by = Simd::load(t.factor + lane + p * Simd::lanes);
    const F log = Simd::load(t.lane_log + lane + p * Simd::lanes);
    const F lane_weight = Simd::load(t.lane_weight + lane + p * Simd::lanes);
    MAXSIM_UNROLL
    for (int r = 0; r < R; ++r) {
      const F less = Simd::fma(log, Simd::broadcast(-1.f), Simd::broadcast(-t.row_log[row + r]));
      const F scale = Simd::mul(lane_weight, Simd::broadcast(t.row_weight[row + r]));
      weight[p][r] = Simd::mul(exp2<Simd>(Simd::fma(weight[p][r], by, less)), scale);
    }
  }
  float* gradient = t.gradient + words * lane;
  for (int64_t k = 0; k < words; ++k) {
    F sum[P];
    MAXSIM_UNROLL
    for (int p = 0; p < P; ++p) sum[p] = Simd::load(gradient + (p * words + k) * Simd::lanes);
    MAXSIM_UNROLL
    for (int r = 0; r < R; ++r) {
      const F feature = Words::broadcast(rows + r * t.tokens.row_stride + k * 4);
      MAXSIM_UNROLL
      for (int p = 0; p < P; ++p) sum[p] = Simd::fma(weight[p][r], feature, sum[p]);
    }
    MAXSIM_UNROLL
    for (int p = 0; p < P; ++p) Simd::store(gradient + (p * words + k) * Simd::lanes, sum[p]);
  }
}

// Every row once, in steps that depend on the number of rows alone: a sum, unlike a max, must not meet a row twice.
template <int R, class Step>
MAXSIM_INLINE_ALWAYS int64_t steps_of(int64_t row, int64_t count, const Step& step) {
  for (; row + R <= count; row += R) step(Count<R>(), row);
  return row;
}

template <class Simd, class Step>
MAXSIM_INLINE_ALWAYS void in_steps(int64_t count, const Step& step) {
  constexpr int R = Simd::rows;
  int64_t row = steps_of<R>(0, count, step);
  row = steps_of<R / 2>(row, count, step);
  if (R >= 12) row = steps_of<(R >= 12 ? R / 4 : 1)>(row, count, step);
  steps_of<1>(row, count, step);
}

template <class Simd, class Words, int P, bool kScale>
void soft_panels(const SoftTask& t, int64_t first) {
  using F = typename Simd::F;
  const uint32_t* panel = t.tokens.panels + first * t.tokens.words * Simd::lanes;
  float *best_out = t.tokens.best + first * Simd::lanes, *total_out = t.total + first * Simd::lanes;
  F best[P], total[P];
  MAXSIM_UNROLL
  for (int p = 0; p < P; ++p) {
    best[p] = Simd::load(best_out + p * Simd::lanes);
    total[p] = Simd::load(total_out + p * Simd::lanes);
  }
  in_steps<Simd>(t.tokens.row_count, [&](auto rows, int64_t row) {
    soft_tile<Simd, Words, P, decltype(rows)::value, kScale>(t, panel, row, t.factor + first * Simd::lanes, best,
                                                             total);
  });
  MAXSIM_UNROLL
  for (int p = 0; p < P; ++p) {
    Simd::store(best_out + p * Simd::lanes, best[p]);
    Simd::store(total_out + p * Simd::lanes, total[p]);
  }
}

template <class Simd, class Words, int P, bool kScale>
void gradient_panels(const SoftGradientTask& t, int64_t first) {
  in_steps<Simd>(t.tokens.row_count, [&](auto rows, int64_t row) {
    gradient_tile<Simd, Words, P, decltype(rows)::value, kScale>(t, first, row);
  });
}

// Calls body(P, first) over all panels, as many at a time as fill the registers.
template <class Simd, class Body>
MAXSIM_INLINE_ALWAYS void all_panels(int64_t count, const Body& body) {
  int64_t panel = 0;
  for (; panel + Simd::panels <= count; panel += Simd::panels) body(Count<Simd::panels>(), panel);
  for (; panel < count; ++panel) body(Count<1>(), panel);
}

template <class Simd, class Words>
void soft_score(const SoftTask& t) {
  all_panels<Simd>(t.tokens.panel_count, [&](auto panels, int64_t first) {
    constexpr int P = decltype(panels)::value;
    t.tokens.scale ? soft_panels<Simd, Words, P, true>(t, first) : soft_panels<Simd, Words, P, false>(t, first);
  });
}

template <class Simd, class Words>
void soft_gradient(const SoftGradientTask& t) {
  all_panels<Simd>(t.tokens.panel_count, [&](auto panels, int64_t first) {
    constexpr int P = decltype(panels)::value;
    t.tokens.scale ? gradient_panels<Simd, Words, P, true>(t, first) : gradient_panels<Simd, Words, P, false>(t, first);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace maxsim

// Plain C++ for any CPU: fixed-size loops that a compiler may vectorise as it likes.
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "make_isa.h"

namespace maxsim {
namespace cpu {
namespace {

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu, wide;
  if (exponent == 0x1f) {
    wide = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent) {
    wide = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa) {
    exponent = 113;
    for (; !(mantissa & 0x400u); mantissa <<= 1) --exponent;
    wide = sign | (exponent << 23) | ((mantissa & 0x3ffu) << 13);
  } else {
    wide = sign;
  }
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

// Round to nearest even, overflow to infinity, as the conversion instructions do.
uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u | static_cast<uint16_t>((bits >> 13) & 0x3ffu);
  if (bits >= 0x47800000u) return sign | 0x7c00u;
  uint32_t shift = 13, base = bits - (112u << 23);
  if (bits < 0x38800000u) {  // subnormal half: shift the whole significand into place
    const uint32_t exponent = bits >> 23;
    if (exponent < 102) return sign;
    base = (bits & 0x7fffffu) | 0x800000u;
    shift = 126 - exponent;
  }
  const uint32_t kept = base >> shift, rest = base & ((1u << shift) - 1), half = 1u << (shift - 1);
  return sign | static_cast<uint16_t>(kept + (rest > half || (rest == half && (kept & 1u))));
}

struct Portable {
  static constexpr int lanes = 8;
  static constexpr int panels = 1;
  static constexpr int rows = 4;
  struct F {
    float v[lanes];
  };
  struct I {
    int32_t v[lanes];
  };
  struct Mask {
    bool v[lanes];
  };

#define MAXSIM_EACH_LANE(type, expression)               \
  type out;                                              \
  for (int l = 0; l < lanes; ++l) out.v[l] = expression; \
  return out

  static F zero() { return broadcast(0.f); }
  static F load(const float* p) { MAXSIM_EACH_LANE(F, p[l]); }
  static I load(const int32_t* p) { MAXSIM_EACH_LANE(I, p[l]); }
  static F load_f16(const uint16_t* p) { MAXSIM_EACH_LANE(F, half_to_float(p[l])); }
  static F load_bf16(const uint16_t* p) { MAXSIM_EACH_LANE(F, bf16_to_float(p[l])); }
  static void store(float* p, const F& v) { std::memcpy(p, v.v, sizeof v.v); }
  static void store(int32_t* p, const I& v) { std::memcpy(p, v.v, sizeof v.v); }
  static void store_f16(uint16_t* p, const F& v) {
    for (int l = 0; l < lanes; ++l) p[l] = float_to_half(v.v[l]);
  }
  static F broadcast(float v) { MAXSIM_EACH_LANE(F, v); }
  static I broadcast(int32_t v) { MAXSIM_EACH_LANE(I, v); }
  static F fma(const F& a, const F& b, const F& c) { MAXSIM_EACH_LANE(F, a.v[l] * b.v[l] + c.v[l]); }
  static F mul(const F& a, const F& b) { MAXSIM_EACH_LANE(F, a.v[l] * b.v[l]); }
  static F max(const F& a, const F& b) { MAXSIM_EACH_LANE(F, a.v[l] > b.v[l] ? a.v[l] : b.v[l]); }
  static F power_of_two(const F& n) {
    F out;
    for (int l = 0; l < lanes; ++l) {
      uint32_t bits;
      std::memcpy(&bits, &n.v[l], 4);
      bits = (bits + 127u) << 23;
      std::memcpy(&out.v[l], &bits, 4);
    }
    return out;
  }
  static Mask unordered(const F& a, const F& b) { MAXSIM_EACH_LANE(Mask, a.v[l] != a.v[l] || b.v[l] != b.v[l]); }
  static Mask greater(const F& a, const F& b) { MAXSIM_EACH_LANE(Mask, a.v[l] > b.v[l]); }
  static Mask either(const Mask& a, const Mask& b) { MAXSIM_EACH_LANE(Mask, a.v[l] || b.v[l]); }
  static bool any(const Mask& m) {
    bool out = false;
    for (int l = 0; l < lanes; ++l) out |= m.v[l];
    return out;
  }
  static F select(const Mask& m, const F& yes, const F& no) { MAXSIM_EACH_LANE(F, m.v[l] ? yes.v[l] : no.v[l]); }
  static I select(const Mask& m, const I& yes, const I& no) { MAXSIM_EACH_LANE(I, m.v[l] ? yes.v[l] : no.v[l]); }
  template <int kBits>
  static F look_up(const float* table, const uint8_t* packed) {
    return look_up_each<Portable, kBits>(table, packed);
  }

#undef MAXSIM_EACH_LANE
};

}  // namespace

const Isa portable_isa = make_isa<Portable, Fp32Words<Portable>>(Path::portable);

}  // namespace cpu
}  // namespace maxsim

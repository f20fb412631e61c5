// AArch64 NEON: 4 floats a vector, 32 registers, every dtype widened to fp32.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "isa.h"
#include "make_isa.h"

namespace maxsim {
namespace cpu {
namespace {

struct Neon {
  using F = float32x4_t;
  using I = int32x4_t;
  using Mask = uint32x4_t;
  static constexpr int lanes = 4;
  // 4 panels x 6 rows: 24 accumulators, 4 query words and a broadcast fill 29 of 32 registers.
  static constexpr int panels = 4;
  static constexpr int rows = 6;

  static F zero() { return vdupq_n_f32(0.f); }
  static F load(const float* p) { return vld1q_f32(p); }
  static I load(const int32_t* p) { return vld1q_s32(p); }
  static F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  static void store(int32_t* p, I v) { vst1q_s32(p, v); }
  static void store_f16(uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  static F broadcast(float v) { return vdupq_n_f32(v); }
  static I broadcast(int32_t v) { return vdupq_n_s32(v); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  // Second operand when unordered, as the x86 max does; vmaxq would return NaN, which the running max also allows.
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F power_of_two(F n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vreinterpretq_s32_f32(n), vdupq_n_s32(127)), 23));
  }
  static Mask unordered(F a, F b) { return vmvnq_u32(vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b))); }
  static Mask greater(F a, F b) { return vcgtq_f32(a, b); }
  static Mask either(Mask a, Mask b) { return vorrq_u32(a, b); }
  static bool any(Mask m) { return vmaxvq_u32(m) != 0; }
  static F select(Mask m, F yes, F no) { return vbslq_f32(m, yes, no); }
  static I select(Mask m, I yes, I no) { return vbslq_s32(m, yes, no); }
  template <int kBits>
  static F look_up(const float* table, const uint8_t* packed) {
    return look_up_each<Neon, kBits>(table, packed);
  }
};

}  // namespace

const Isa neon_isa = make_isa<Neon, Fp32Words<Neon>>(Path::neon);
}  // namespace cpu
}  // namespace maxsim

#endif

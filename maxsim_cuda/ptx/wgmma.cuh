// Warpgroup matrix products: 64 query rows by N document rows by 32 bytes of features, accumulators in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "mbarrier.cuh"

namespace maxsim {
namespace ptx {

// K-major operand in swizzled rows of 128 or 64 bytes, in groups of eight that lie kGroupBytes apart. Of its descriptor
// only the low word holds the address, in units of 16 bytes: places within an operand are one addition apart. Shuffled,
// because the instruction takes it from uniform registers, and the compiler would rather compute the address anew for
// every product.
__device__ __forceinline__ uint32_t wgmma_operand(uint32_t address) {
  return __shfl_sync(~0u, ((address & 0x3ffff) >> 4) | (1u << 16), 0);
}
template <int kRowBytes = 128, int kGroupBytes = kRowBytes * 8>
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t operand, int bytes) {
  static_assert(kRowBytes == 128 || kRowBytes == 64);
  constexpr uint32_t kGroup = kGroupBytes / 16, kSwizzle = kRowBytes == 128 ? 1 : 2;
  return static_cast<uint64_t>(kGroup | kSwizzle << 30) << 32 | (operand + bytes / 16);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Accumulators of a product that was waited for: without this the compiler may read them before the wait.
template <int kCount>
__device__ __forceinline__ void wgmma_settled(float (&c)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(c[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void wgmma_settled(int32_t (&c)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(c[i])::"memory");
}

// Operands in registers, which stay there until here: products read them while they wait.
template <int kCount>
__device__ __forceinline__ void wgmma_read(uint32_t (&rows)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(rows[i]));
}

template <class T, int N>
struct Wgmma;

// The same with the query rows in registers: 16 for each warp, of which a lane holds eight bytes of one and of the row
// eight below.
template <class T, int N>
struct WgmmaHeld;

// Operand lists, four accumulators a step: the instruction names every register.
#define MAXSIM_ACC4(r, i) "+" r(c[i]), "+" r(c[i + 1]), "+" r(c[i + 2]), "+" r(c[i + 3])

// `kind` is features, accumulators and operands; `signs` the immediates behind the predicate, which differ by type.
#define MAXSIM_WGMMA(type, accumulator, kind, signs, N, registers, a, b, accumulate, ...)                             \
  template <>                                                                                                         \
  struct Wgmma<type, N> {                                                                                             \
    using Accumulator = accumulator;                                                                                  \
    static __device__ __forceinline__ void run(accumulator (&c)[N / 2], uint64_t query, uint64_t document, int add) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate                                                     \
                   ", 0;\n"                                                                                           \
                   "wgmma.mma_async.sync.aligned.m64n" #N kind " {" registers "}, " a ", " b ", p" signs ";\n}\n"     \
                   : __VA_ARGS__                                                                                      \
                   : "l"(query), "l"(document), "r"(add));                                                            \
    }                                                                                                                 \
  };
#define MAXSIM_WGMMA_HELD(type, accumulator, kind, signs, N, registers, a, b, accumulate, ...)                         \
  template <>                                                                                                          \
  struct WgmmaHeld<type, N> {                                                                                          \
    using Accumulator = accumulator;                                                                                   \
    static __device__ __forceinline__ void run(accumulator (&c)[N / 2], const uint32_t (&query)[4], uint64_t document, \
                                               int add) {                                                              \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate                                                      \
                   ", 0;\n"                                                                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #N kind " {" registers "}, {" a "}, " b ", p" signs ";\n}\n"    \
                   : __VA_ARGS__                                                                                       \
                   : "r"(query[0]), "r"(query[1]), "r"(query[2]), "r"(query[3]), "l"(document), "r"(add));             \
    }                                                                                                                  \
  };
#define MAXSIM_WGMMA_FLOATS(N, registers, a, b, accumulate, accumulators)                                 \
  MAXSIM_WGMMA(__nv_bfloat16, float, "k16.f32.bf16.bf16", ", 1, 1, 0, 0", N, registers, a, b, accumulate, \
               accumulators("f"))                                                                         \
  MAXSIM_WGMMA(__half, float, "k16.f32.f16.f16", ", 1, 1, 0, 0", N, registers, a, b, accumulate, accumulators("f"))
#define MAXSIM_WGMMA_EIGHTS(N, registers, a, b, accumulate, accumulators)                                \
  MAXSIM_WGMMA_HELD(__nv_fp8_e4m3, float, "k32.f32.e4m3.e4m3", ", 1, 1", N, registers, a, b, accumulate, \
                    accumulators("f"))                                                                   \
  MAXSIM_WGMMA_HELD(__nv_fp8_e5m2, float, "k32.f32.e5m2.e5m2", ", 1, 1", N, registers, a, b, accumulate, \
                    accumulators("f"))
// Which have no width of 104.
#define MAXSIM_WGMMA_INTEGERS(N, registers, a, b, accumulate, accumulators) \
  MAXSIM_WGMMA_HELD(int8_t, int32_t, "k32.s32.s8.s8", "", N, registers, a, b, accumulate, accumulators("r"))

#define MAXSIM_REGS_32                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MAXSIM_REGS_48 \
  MAXSIM_REGS_32       \
  ", "                 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define MAXSIM_REGS_52 \
  MAXSIM_REGS_48       \
  ", "                 \
  "%48, %49, %50, %51"
#define MAXSIM_REGS_56 \
  MAXSIM_REGS_52       \
  ", "                 \
  "%52, %53, %54, %55"
#define MAXSIM_REGS_64 \
  MAXSIM_REGS_56       \
  ", "                 \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define MAXSIM_ACCS_32(r)                                                                                              \
  MAXSIM_ACC4(r, 0), MAXSIM_ACC4(r, 4), MAXSIM_ACC4(r, 8), MAXSIM_ACC4(r, 12), MAXSIM_ACC4(r, 16), MAXSIM_ACC4(r, 20), \
      MAXSIM_ACC4(r, 24), MAXSIM_ACC4(r, 28)
#define MAXSIM_ACCS_48(r) \
  MAXSIM_ACCS_32(r), MAXSIM_ACC4(r, 32), MAXSIM_ACC4(r, 36), MAXSIM_ACC4(r, 40), MAXSIM_ACC4(r, 44)
#define MAXSIM_ACCS_52(r) MAXSIM_ACCS_48(r), MAXSIM_ACC4(r, 48)
#define MAXSIM_ACCS_56(r) MAXSIM_ACCS_52(r), MAXSIM_ACC4(r, 52)
#define MAXSIM_ACCS_64(r) MAXSIM_ACCS_56(r), MAXSIM_ACC4(r, 56), MAXSIM_ACC4(r, 60)

MAXSIM_WGMMA_FLOATS(64, MAXSIM_REGS_32, "%32", "%33", "%34", MAXSIM_ACCS_32)
MAXSIM_WGMMA_FLOATS(96, MAXSIM_REGS_48, "%48", "%49", "%50", MAXSIM_ACCS_48)
MAXSIM_WGMMA_FLOATS(104, MAXSIM_REGS_52, "%52", "%53", "%54", MAXSIM_ACCS_52)
MAXSIM_WGMMA_FLOATS(112, MAXSIM_REGS_56, "%56", "%57", "%58", MAXSIM_ACCS_56)
MAXSIM_WGMMA_FLOATS(128, MAXSIM_REGS_64, "%64", "%65", "%66", MAXSIM_ACCS_64)
MAXSIM_WGMMA_HELD(__half, float, "k16.f32.f16.f16", ", 1, 1, 0", 96, MAXSIM_REGS_48, "%48, %49, %50, %51", "%52", "%53",
                  MAXSIM_ACCS_48("f"))
MAXSIM_WGMMA_EIGHTS(64, MAXSIM_REGS_32, "%32, %33, %34, %35", "%36", "%37", MAXSIM_ACCS_32)
MAXSIM_WGMMA_EIGHTS(96, MAXSIM_REGS_48, "%48, %49, %50, %51", "%52", "%53", MAXSIM_ACCS_48)
MAXSIM_WGMMA_EIGHTS(104, MAXSIM_REGS_52, "%52, %53, %54, %55", "%56", "%57", MAXSIM_ACCS_52)
MAXSIM_WGMMA_EIGHTS(112, MAXSIM_REGS_56, "%56, %57, %58, %59", "%60", "%61", MAXSIM_ACCS_56)
MAXSIM_WGMMA_EIGHTS(128, MAXSIM_REGS_64, "%64, %65, %66, %67", "%68", "%69", MAXSIM_ACCS_64)
MAXSIM_WGMMA_INTEGERS(96, MAXSIM_REGS_48, "%48, %49, %50, %51", "%52", "%53", MAXSIM_ACCS_48)
MAXSIM_WGMMA_INTEGERS(112, MAXSIM_REGS_56, "%56, %57, %58, %59", "%60", "%61", MAXSIM_ACCS_56)
MAXSIM_WGMMA_INTEGERS(128, MAXSIM_REGS_64, "%64, %65, %66, %67", "%68", "%69", MAXSIM_ACCS_64)

#undef MAXSIM_ACC4
#undef MAXSIM_WGMMA
#undef MAXSIM_WGMMA_FLOATS
#undef MAXSIM_WGMMA_HELD
#undef MAXSIM_WGMMA_EIGHTS
#undef MAXSIM_WGMMA_INTEGERS
#undef MAXSIM_REGS_32
#undef MAXSIM_REGS_48
#undef MAXSIM_ACCS_48
#undef MAXSIM_REGS_52
#undef MAXSIM_REGS_64
#undef MAXSIM_REGS_56
#undef MAXSIM_ACCS_32
#undef MAXSIM_ACCS_52
#undef MAXSIM_ACCS_64
#undef MAXSIM_ACCS_56

}  // namespace ptx
}  // namespace maxsim

// Warpgroup matrix products whose first operand lies in registers: 64 rows by 32 rows of shared memory by 16 features.
#pragma once

#include "wgmma.cuh"

namespace maxsim {
namespace ptx {

template <class T>
struct WgmmaRegisters;

#define MAXSIM_WGMMA_REGISTERS(type, name)                                                                       \
  template <>                                                                                                    \
  struct WgmmaRegisters<type> {                                                                                  \
    static __device__ __forceinline__ void run(float (&c)[16], const uint32_t* a, uint64_t b, int add) {         \
      asm volatile(                                                                                              \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"                                                           \
          "wgmma.mma_async.sync.aligned.m64n32k16.f32." name "." name                                            \
          " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "                                                           \
          "%10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"                           \
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),      \
            "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]) \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                       \
    }                                                                                                            \
  };

MAXSIM_WGMMA_REGISTERS(__nv_bfloat16, "bf16")
MAXSIM_WGMMA_REGISTERS(__half, "f16")

#undef MAXSIM_WGMMA_REGISTERS

}  // namespace ptx
}  // namespace maxsim
